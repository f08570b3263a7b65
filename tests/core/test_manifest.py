"""The sidecar of an exported model: read by older and newer versions, and believed only where the files agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clf.errors import ModelError
from clf.manifest import (
    Manifest,
    Parity,
    Variant,
    check_model_bytes,
    read_manifest,
    sha256_file,
    variant_file,
    variant_sha256,
    write_manifest,
)


def variant(path: Path, **changes: object) -> dict[str, object]:
    figures = {"bytes": 5, "method": "static", "images": 30, "mean_cosine": 0.999, "min_cosine": 0.99}
    return {"file": path.name, "sha256": sha256_file(path), **figures, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "encoder.onnx").write_bytes(b"graph")
    (tmp_path / "encoder.int8.onnx").write_bytes(b"small")
    parity = Parity(images=1, min_cosine=1, max_abs_error=0)
    digest = sha256_file(tmp_path / "encoder.onnx")
    about = Manifest(name="m", image_size=8, dim=2, channels=3, sha256=digest, plugin="simclr", run="r", parity=parity)
    write_manifest(tmp_path, about)
    return tmp_path


def add_int8(folder: Path, **changes: object) -> Manifest:
    small = Variant.model_validate(variant(folder / "encoder.int8.onnx", **changes))
    manifest = read_manifest(folder).model_copy(update={"variants": {"int8": small}})
    write_manifest(folder, manifest)
    return manifest


def test_without_variants_it_is_what_it_was_before_there_were_any(folder: Path) -> None:
    fields = json.loads((folder / "manifest.json").read_text())
    assert "variants" not in fields and fields["format"] == 1
    assert read_manifest(folder).variants == {}


def test_variants_come_back_as_written(folder: Path) -> None:
    manifest = add_int8(folder, neighbours_kept=0.97, speed_ratio=3.4, speed_device="one core of a CPU")
    assert read_manifest(folder) == manifest
    assert variant_file(folder, manifest, "int8") == folder / "encoder.int8.onnx"
    assert variant_file(folder, manifest, "fp32") == folder / "encoder.onnx"
    assert variant_sha256(manifest, "int8") == sha256_file(folder / "encoder.int8.onnx")
    assert variant_sha256(manifest, "fp32") == manifest.sha256


def test_a_variant_that_is_not_there_says_how_to_make_it(folder: Path) -> None:
    manifest = add_int8(folder)
    with pytest.raises(ModelError) as caught:
        variant_file(folder, manifest, "fp16")
    assert str(caught.value) == f"{folder} has no fp16 variant. Make one: clf export r --variants fp16 -o {folder}"
    with pytest.raises(ModelError, match=r"'int4' is no variant of a model; there are fp32, fp16, int8\. Did you mean"):
        variant_file(folder, manifest, "int4")
    (folder / "encoder.int8.onnx").unlink()
    with pytest.raises(ModelError, match=r"encoder\.int8\.onnx is missing\. Export the run again"):
        variant_file(folder, manifest, "int8")


def test_bytes_are_checked_when_they_are_read(folder: Path) -> None:
    manifest = add_int8(folder)
    path = folder / "encoder.int8.onnx"
    check_model_bytes(path.read_bytes(), variant_sha256(manifest, "int8"), path)
    path.write_bytes(b"other")
    assert read_manifest(folder) == manifest  # nobody has asked for it
    with pytest.raises(ModelError, match=r"encoder\.int8\.onnx does not match its manifest: SHA-256 is "):
        check_model_bytes(path.read_bytes(), variant_sha256(manifest, "int8"), path)


@pytest.mark.parametrize("name", ["../encoder.onnx", "/etc/passwd.onnx", "a/b.onnx", ".hidden.onnx", "encoder.bin"])
def test_a_variant_lies_in_the_model_folder_and_nowhere_else(folder: Path, name: str) -> None:
    fields = json.loads((folder / "manifest.json").read_text())
    fields["variants"] = {"int8": variant(folder / "encoder.int8.onnx", file=name)}
    (folder / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(ModelError, match=r"is not a valid manifest: variants\.int8\.file"):
        read_manifest(folder)
