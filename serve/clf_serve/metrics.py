"""What the server counts, for Prometheus. One registry per server, nothing global."""

from __future__ import annotations

from collections.abc import Mapping

from clf.errors import missing_extra

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
except ModuleNotFoundError:
    raise missing_extra("prometheus_client", "serve", "clf serve") from None

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "clf_requests", "Requests answered, by route and status.", ("route", "status"), registry=registry
        )
        self._refusals = Counter("clf_refusals", "Requests refused, by reason.", ("reason",), registry=registry)
        self.images = Counter("clf_images", "Images embedded for requests.", registry=registry)
        self.abandoned = Counter("clf_abandoned_requests", "Requests whose client went away.", registry=registry)
        self._not_computed = Counter(
            "clf_not_computed",
            "Images that were queued but not computed: their client had gone, or their deadline had passed.",
            ("reason",),
            registry=registry,
        )
        self.inside = Gauge("clf_images_inside", "Images being decoded, waiting or computed.", registry=registry)
        self._reloads = Counter("clf_reloads", "Reloads of a model, by outcome.", ("outcome",), registry=registry)
        self.ready = Gauge("clf_ready", "1 when the server answers requests.", registry=registry)
        self.batch_size = Histogram(
            "clf_batch_images", "Images in a batch of the model.", registry=registry, buckets=_IMAGES
        )
        self._stages = Histogram(
            "clf_stage_seconds", "Time of each stage.", ("stage",), registry=registry, buckets=_SECONDS
        )

        self._searches = Counter("clf_gallery_searches", "Searches in a gallery.", ("gallery",), registry=registry)
        self._changes = Counter(
            "clf_gallery_changes",
            "Images of a gallery that were created, replaced, changed or deleted over HTTP.",
            ("gallery", "change"),
            registry=registry,
        )
        self._images = Gauge("clf_gallery_images", "Images of a gallery.", ("gallery",), registry=registry)
        self._recall = Gauge(
            "clf_gallery_index_recall", "Measured recall@10 of its index.", ("gallery",), registry=registry
        )

    def stage(self, name: str) -> Histogram:
        """The histogram of one of read, decode, queue, inference, search, store."""
        return self._stages.labels(name)

    def answered(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def refused(self, reason: str) -> None:
        self._refusals.labels(reason).inc()

    def not_computed(self, reason: str, images: int = 1) -> None:
        self._not_computed.labels(reason).inc(images)

    def reloaded(self, outcome: str) -> None:
        self._reloads.labels(outcome).inc()

    def searched(self, gallery: str) -> None:
        """Args: gallery: one that is served, so that there are no more series than galleries."""
        self._searches.labels(gallery).inc()

    def changed(self, gallery: str, change: str, images: int) -> None:
        if images:
            self._changes.labels(gallery, change).inc(images)

    def galleries(self, facts: Mapping[str, tuple[int, float | None]]) -> None:
        """Args: facts: the images and the recall of each gallery; those of others are forgotten."""
        self._images.clear()
        self._recall.clear()
        for gallery, (images, recall) in facts.items():
            self._images.labels(gallery).set(images)
            if recall is not None:
                self._recall.labels(gallery).set(recall)

    def snapshot(self) -> list[Metric]:
        """Everything as it stands now; copies, which may go to another process."""
        return list(self._registry.collect())

    def text(self) -> bytes:
        return generate_latest(self._registry)
