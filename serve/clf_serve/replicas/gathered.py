"""One text for Prometheus from many replicas, each series with the label ``replica``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from clf_serve.metrics import Metrics

LABEL = "replica"


class ReplicaMetrics(Metrics):
    """Of one replica; :meth:`text` shows the others' too.

    Args:
        replica: its name.
    """

    def __init__(self, replica: str) -> None:
        super().__init__()
        self._replica = replica
        self.others: Mapping[str, list[Metric]] = {}
        """As they were reported last, by replica."""

    def text(self) -> bytes:
        return gathered({**self.others, self._replica: self.snapshot()})


def gathered(snapshots: Mapping[str, list[Metric]]) -> bytes:
    """In Prometheus' text format; one family of each name, as it demands."""
    families: dict[str, Metric] = {}
    for replica, snapshot in sorted(snapshots.items()):
        for metric in snapshot:
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.samples.append(sample._replace(labels={**sample.labels, LABEL: replica}))
    registry = CollectorRegistry()
    registry.register(_Fixed(families.values()))
    return generate_latest(registry)


class _Fixed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families
