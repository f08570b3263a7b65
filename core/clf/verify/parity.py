"""``clf verify export``: the exported model gives the trainer's embeddings."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clf.errors import ExportError
from clf.export import MIN_COSINE, export_run
from clf.manifest import read_manifest
from clf.verify.child import Child, Job
from clf.verify.report import Report
from clf.verify.tiny import named, tiny


def export(plugin: str, changes: Mapping[str, Any] | None = None) -> Report:
    """Whether a few steps of training export to ONNX, and onnxruntime gives the trainer's embeddings.

    Args:
        plugin: a plugin's name or the path of a file.
        changes: dotted configuration keys, over the tiny default.

    Raises:
        ClfError: the training itself fails.
    """
    with tempfile.TemporaryDirectory(prefix="clf-verify-") as folder:
        own = {"train.max_steps": 6, "monitor.knn_every": 0}
        job = Job(named(tiny(plugin, Path(folder), changes or {}, own), "trained"))
        Child(job).join()
        report = Report(f"the exported encoder of {plugin} gives the trainer's embeddings")
        try:
            manifest = read_manifest(export_run(job.run))
        except ExportError as error:
            report.differences.append(f"{error}.")
            return report
        report.fact("encoder", f"{manifest.backbone}, {manifest.dim} numbers for an image of {manifest.image_size} px")
        report.fact("SHA-256 of encoder.onnx", manifest.sha256)
        report.fact("images compared", manifest.parity.images)
        report.fact("least cosine", f"{manifest.parity.min_cosine:.9f} (needed: {MIN_COSINE})")
        report.fact("largest difference of a number", f"{manifest.parity.max_abs_error:.3g}")
    return report
