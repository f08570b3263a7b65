"""The exported model: its interface, its agreement with the encoder, and what happens when it has none."""

import copy
import errno
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clf import experiment, export, training
from clf.backbones import create_backbone
from clf.config import BackboneSection, Config
from clf.errors import ExportError
from clf.evaluate.features import encode
from clf.images import prepare
from clf.manifest import read_manifest
from clf.onnx_session import session
from clf.runs import Run


@pytest.fixture(scope="module")
def run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    shutil.copytree(tiny_run.path, folder)
    return Run(folder)


@pytest.fixture(scope="module")
def model(run: Run) -> Path:
    return export.export_run(run)


def test_the_folder_is_what_the_server_reads(run: Run, model: Path) -> None:
    assert model == run.path / "model"
    assert sorted(path.name for path in model.iterdir()) == ["encoder.onnx", "manifest.json"]
    manifest = read_manifest(model)
    assert (manifest.image_size, manifest.dim, manifest.channels) == (16, 96, 3)
    assert (manifest.plugin, manifest.backbone, manifest.run, manifest.step) == ("simclr", "test_resnet", "tiny", 12)
    assert manifest.parity.images == 64 + 48
    assert manifest.parity.min_cosine > 0.99999
    assert [path.name for path in run.path.glob(".model*")] == []


def test_the_graph_has_one_input_one_output_and_a_free_batch(model: Path) -> None:
    graph = onnx.load(model / "encoder.onnx", load_external_data=False)
    onnx.checker.check_model(graph)
    assert all(not tensor.external_data for tensor in graph.graph.initializer)
    assert graph.opset_import[0].version >= 18
    (given,), (got,) = graph.graph.input, graph.graph.output
    assert (given.name, got.name) == ("images", "embeddings")
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert got.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    shapes = [[d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] for x in (given, got)]
    assert shapes[0][1:] == [16, 16, 3]
    assert isinstance(shapes[0][0], str)
    assert shapes[1] == [shapes[0][0], 96]


@pytest.mark.parametrize("batch", [1, 2, 5, 33])
def test_any_batch_gives_the_encoders_own_embeddings(run: Run, model: Path, batch: int) -> None:
    images = torch.randint(0, 256, (batch, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    got = session(model / "encoder.onnx", 1)(images.numpy())
    encoder = experiment.load(run).method.encoder()
    wanted = nn.functional.normalize(encode(encoder, images.permute(0, 3, 1, 2)))
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_an_earlier_export_is_replaced_and_another_folder_is_not(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="not an exported model"):
        export.export_run(run, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    out = tmp_path / "deep" / "model"
    assert export.export_run(run, out) == out
    (out / "manifest.json").write_text("{}")
    export.export_run(run, out)
    assert json.loads((out / "manifest.json").read_text())["run"] == "tiny"
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def test_a_folder_that_holds_more_than_an_export_is_left_alone(run: Run, model: Path, tmp_path: Path) -> None:
    out = shutil.copytree(model, tmp_path / "model")
    (out / "gallery").mkdir()
    (out / "gallery" / "gallery.sqlite").write_text("hours of work")
    with pytest.raises(ExportError, match=r"holds more than an exported model \(gallery\)"):
        export.export_run(run, out)
    assert (out / "gallery" / "gallery.sqlite").read_text() == "hours of work"


@pytest.mark.slow
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_earlier_export_is_put_back(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    out = shutil.copytree(model, tmp_path / "model")
    (out / "manifest.json").write_text("earlier")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "draft":
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    wanted = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else ExportError
    with pytest.raises(wanted, match=None if wanted is KeyboardInterrupt else "No space left"):
        export.export_run(run, out)
    assert (out / "manifest.json").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_not_laid_to_the_backbone(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("the exporter failed") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "by_tracing_export", full)
    monkeypatch.setattr(export, "by_torchscript", full)
    with pytest.raises(ExportError, match=r"cannot be written \(No space left on device\)"):
        export.export_run(run, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        export.export_run(run, tmp_path / "file" / "model")


@pytest.mark.slow
def test_a_graph_that_disagrees_is_refused_and_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shifted(export.Embedder):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.flip(3))  # BGR: the mistake that parity is there to find

    monkeypatch.setattr(export, "Embedder", Shifted)
    with pytest.raises(ExportError, match="least cosine"):
        export.export_run(run, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_encoder_that_cannot_be_exported_is_one_sentence(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hopeless(export.Embedder):
        def forward(self, images: Tensor) -> Tensor:
            raise NotImplementedError("no such operator")

    monkeypatch.setattr(export, "Embedder", Hopeless)
    with pytest.raises(ExportError, match=r"test_resnet.*cannot be exported.*no such operator"):
        export.export_run(run, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_older_exporter_steps_in(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("not this time")

    monkeypatch.setattr(export, "by_tracing_export", broken)
    folder = export.export_run(run, tmp_path / "model")
    assert read_manifest(folder).parity.min_cosine > 0.99999
    embed = session(folder / "encoder.onnx", 1)
    assert [len(embed(np.zeros((n, 16, 16, 3), np.uint8))) for n in (1, 2, 5)] == [1, 2, 5]


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_vit",
        pytest.param("resnet18", marks=pytest.mark.slow),
        pytest.param("convnext_atto", marks=pytest.mark.slow),
        pytest.param("vit_tiny_patch16_224", marks=pytest.mark.slow),
        pytest.param("mobilenetv3_small_050", marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", marks=pytest.mark.slow),
    ],
)
def test_backbones_export(run: Run, tmp_path: Path, name: str) -> None:
    what = experiment.load(run)
    method = copy.copy(what.method)
    backbone = create_backbone(BackboneSection(name=name, normalize="imagenet"), 3, 16, seed=0).eval()
    method.encoder = lambda: backbone  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parity = export._export(replace(what, method=method), tmp_path / "encoder.onnx")
    assert parity.min_cosine > 0.9999
    assert caught == []


@pytest.mark.slow
def test_a_grey_run_takes_rgb_and_weighs_it_as_luma(tmp_path: Path, tiny: Callable[..., Config]) -> None:
    config = tiny(tmp_path, {"data.name": "digits", "data.limit": 64, "train.max_steps": 2, "monitor.knn_every": 0})
    data = config.data.model_copy(update={"options": {}})
    grey_run = training.train(config.model_copy(update={"data": data}), [])
    folder = export.export_run(grey_run)
    assert read_manifest(folder).channels == 1
    colours = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    luma = colours @ np.array([0.299, 0.587, 0.114])
    encoder = experiment.load(grey_run).method.encoder()
    with torch.no_grad():
        wanted = nn.functional.normalize(encoder(torch.from_numpy(luma / 255).float()[:, None]))
    np.testing.assert_allclose(session(folder / "encoder.onnx", 1)(colours), wanted.numpy(), atol=1e-5)


def odd_files(folder: Path) -> None:
    """Photos of every kind that is not simply RGB, some large, each different."""
    folder.mkdir()
    rng = np.random.default_rng(0)

    def picture() -> Image.Image:
        size = (int(rng.integers(20, 150)), int(rng.integers(20, 150)))
        return Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize(size)

    for i in range(12):
        picture().save(folder / f"plain-{i}.{'png' if i % 2 else 'jpg'}")
    for turn in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        picture().save(folder / f"turned-{turn}.jpg", exif=exif)
    picture().convert("CMYK").save(folder / "inks.jpg")
    picture().convert("P").save(folder / "palette.gif")
    picture().convert("L").save(folder / "grey.webp")
    picture().convert("1").save(folder / "bits.png")
    Image.merge("RGBA", [*picture().resize((40, 30)).split(), Image.linear_gradient("L").resize((40, 30))]).save(
        folder / "alpha.png"
    )
    Image.fromarray(rng.integers(0, 65536, (40, 50), np.uint16)).save(folder / "deep.png")


@pytest.mark.slow
def test_any_kind_of_file_has_one_vector_in_evaluation_and_in_the_exported_model(
    tmp_path: Path, tiny: Callable[..., Config]
) -> None:
    """Evaluation's features of a folder run, beside what a server computes of the same files and of their bytes."""
    photos = tmp_path / "photos"
    odd_files(photos)
    config = tiny(tmp_path / "runs", {"train.max_steps": 2, "monitor.knn_every": 0})
    data = config.data.model_copy(update={"name": "folder", "root": str(photos), "options": {}})
    folder_run = training.train(config.model_copy(update={"data": data}), [])
    folder = export.export_run(folder_run)
    assert read_manifest(folder).parity.images == 25
    trained = experiment.load(folder_run)
    names = trained.data.train.names
    assert names is not None and len(names) == 25
    files = [photos / name for name in names]
    served = np.stack([prepare(file, 16) for file in files])
    np.testing.assert_array_equal(served, np.stack([prepare(file.read_bytes(), 16) for file in files]))
    np.testing.assert_array_equal(served.transpose(0, 3, 1, 2), trained.data.train.clean[:].numpy())
    wanted = nn.functional.normalize(encode(trained.method.encoder(), trained.data.train.clean)).numpy()
    np.testing.assert_allclose(session(folder / "encoder.onnx", 1)(served), wanted, atol=1e-5)
