"""Exports in fewer bits: what is written, whether the figures beside it are true, and when a variant is refused."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clf import experiment, export, quantize, variants
from clf.errors import ConfigError
from clf.manifest import Variant, read_manifest, sha256_file, variant_names
from clf.onnx_session import session
from clf.runs import Run

FILES = ["encoder.fp16.onnx", "encoder.int8.onnx", "encoder.onnx", "manifest.json"]


@pytest.fixture(scope="module")
def run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    shutil.copytree(tiny_run.path, folder)
    return Run(folder)


@pytest.fixture(scope="module")
def exported(run: Run) -> export.Exported:
    return export.export(run, variants=("fp16", "int8"))


def write_graph(path: Path, *, width: int = 24) -> Path:
    """images (n, 8, 8, 3) -> two matrix products with a ReLU between -> unit vectors (n, 16), the norm spelt out."""
    rng = np.random.default_rng(0)
    weights = {
        "scale": np.float32(255),
        "A": rng.normal(size=(192, width)).astype(np.float32) / 8,
        "B": rng.normal(size=(width, 16)).astype(np.float32),
        "axes": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["x", "scale"], ["y"]),
        helper.make_node("Flatten", ["y"], ["flat"]),
        helper.make_node("MatMul", ["flat", "A"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "B"], ["b"]),
        helper.make_node("ReduceL2", ["b", "axes"], ["norm"]),
        helper.make_node("Div", ["b", "norm"], ["embeddings"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 8, 8, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", 16])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def noise(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), np.uint8)


@pytest.mark.slow
def test_the_variants_lie_beside_the_graph_and_the_manifest_tells_of_them(exported: export.Exported) -> None:
    assert sorted(path.name for path in exported.folder.iterdir()) == FILES
    manifest = read_manifest(exported.folder)
    assert manifest == exported.manifest and list(manifest.variants) == ["fp16", "int8"] and not exported.refused
    for name, variant in manifest.variants.items():
        path = exported.folder / variant.file
        assert (variant.file, variant.sha256) == (f"encoder.{name}.onnx", sha256_file(path))
        assert variant.bytes == path.stat().st_size < (exported.folder / "encoder.onnx").stat().st_size
    assert manifest.variants["fp16"].method == "float16"
    assert manifest.variants["fp16"].min_cosine > 0.9999
    assert manifest.variants["int8"].mean_cosine > 0.99


def test_the_figures_are_those_of_the_held_out_images(run: Run, exported: export.Exported) -> None:
    test = experiment.load(run).data.test
    assert test is not None
    images = np.ascontiguousarray(test.clean[:].permute(0, 2, 3, 1).numpy())
    exact = session(exported.folder / "encoder.onnx", 1)(images)

    def ten(queries: np.ndarray, bank: np.ndarray, i: int) -> set[int]:
        others = [j for j in range(len(bank)) if j != i]
        return set(sorted(others, key=lambda j: -float(queries[i] @ bank[j]))[:10])

    for variant in exported.manifest.variants.values():
        embed = session(exported.folder / variant.file, 1)
        got = np.concatenate([embed(image[None]) for image in images])
        cosines = (got * exact).sum(1)
        assert variant.images == len(images) == 48
        assert variant.mean_cosine == pytest.approx(cosines.mean(), abs=1e-6)
        assert variant.min_cosine == pytest.approx(cosines.min(), abs=1e-6)
        truth = [ten(exact, exact, i) for i in range(48)]
        both = np.mean([len(truth[i] & ten(got, got, i)) / 10 for i in range(48)])
        mixed = np.mean([len(truth[i] & ten(got, exact, i)) / 10 for i in range(48)])
        assert (variant.neighbours_kept, variant.neighbours_kept_in_fp32) == (
            pytest.approx(both, abs=0.005),  # two neighbours equally far may change places
            pytest.approx(mixed, abs=0.005),
        )
        assert variant.speed_ratio is not None and variant.speed_device.startswith("one core of ")


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_a_variant_has_the_interface_of_the_graph(exported: export.Exported, name: str) -> None:
    graph = onnx.load(exported.folder / f"encoder.{name}.onnx")
    onnx.checker.check_model(graph)
    (given,), (got,) = graph.graph.input, graph.graph.output
    assert (given.name, given.type.tensor_type.elem_type) == ("images", TensorProto.UINT8)
    assert (got.name, got.type.tensor_type.elem_type) == ("embeddings", TensorProto.FLOAT)
    embed = session(exported.folder / f"encoder.{name}.onnx", 1)
    for n in (1, 2, 5):
        vectors = embed(np.random.default_rng(n).integers(0, 256, (n, 16, 16, 3), np.uint8))
        assert vectors.shape == (n, 96)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_integer_weights_leave_a_bit_to_processors_that_add_in_16(exported: export.Exported) -> None:
    graph = onnx.load(exported.folder / "encoder.int8.onnx").graph
    weights = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.data_type == TensorProto.INT8]
    assert all(60 < np.abs(tensor).max() <= 64 for tensor in weights if tensor.ndim == 4)


@pytest.mark.parametrize(("name", "kind"), [("fp16", TensorProto.FLOAT16), ("int8", TensorProto.INT8)])
def test_pixels_are_scaled_in_32_bits_and_weights_are_small(exported: export.Exported, name: str, kind: int) -> None:
    graph = onnx.load(exported.folder / f"encoder.{name}.onnx").graph
    weights = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 4 and tensor.dims[0] > 1}
    assert weights == {kind}
    made = {output: node for node in graph.node for output in node.output}
    cast = next(node for node in graph.node if node.op_type == "Cast" and _root(made, node) == "images")
    assert cast.attribute[0].i == TensorProto.FLOAT


def _root(made: dict[str, onnx.NodeProto], node: onnx.NodeProto) -> str:
    """The graph's input that a node takes, through nodes that only move numbers."""
    before = made.get(node.input[0])
    return node.input[0] if before is None or before.op_type != "Transpose" else _root(made, before)


def test_half_precision_keeps_the_norm_in_32_bits(tmp_path: Path) -> None:
    """The converter rounds what it leaves in 32 bits when it hands it on; these casts are taken out again."""
    source, target = write_graph(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    quantize.half(source, target)
    graph = onnx.load(target)
    onnx.checker.check_model(graph)  # every name written once, every node behind its inputs
    last = next(node for node in graph.graph.node if "embeddings" in node.output)
    assert last.op_type == "Div"
    got = session(target, 1)(noise(9))
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got.astype(np.float64), axis=1), 1, atol=2e-7)  # 5e-4 if rounded
    np.testing.assert_allclose(got, session(source, 1)(noise(9)), atol=2e-3)


def test_dynamic_ranges_are_offered_to_graphs_with_matrix_products_only(
    tmp_path: Path, exported: export.Exported
) -> None:
    source = write_graph(tmp_path / "a.onnx")
    assert quantize.multiplies_weights(source)
    assert not quantize.multiplies_weights(exported.folder / "encoder.onnx")  # convolutions alone
    quantize.dynamic(source, tmp_path / "b.onnx")
    weights = [tensor for tensor in onnx.load(tmp_path / "b.onnx").graph.initializer if len(tensor.dims) == 2]
    assert {tensor.data_type for tensor in weights} == {TensorProto.INT8}
    assert 60 < max(np.abs(numpy_helper.to_array(tensor)).max() for tensor in weights) <= 64  # else it may overflow
    measured = variants.Measure(source, noise(30))(tmp_path / "b.onnx", "dynamic")
    assert measured.mean_cosine > 0.999


def test_both_ways_are_tried_and_only_the_best_stays(tmp_path: Path) -> None:
    source = write_graph(tmp_path / "encoder.onnx")
    said: list[str] = []
    made, refused = variants.make_variants(source, ["int8"], noise(40, 2), noise(30), said.append)
    assert [word for word in said if "making" in word] == ["int8: making (static)", "int8: making (dynamic)"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.int8.onnx", "encoder.onnx"]
    assert not refused and made["int8"].sha256 == sha256_file(tmp_path / "encoder.int8.onnx")


def figures(method: str, cosine: float, kept: float | None, speed: float) -> Variant:
    return Variant(
        file=f"{method}.onnx",
        sha256="0" * 64,
        bytes=1,
        method=method,
        images=30,
        mean_cosine=cosine,
        min_cosine=cosine,
        neighbours_kept=kept,
        speed_ratio=speed,
    )


@pytest.mark.parametrize(
    ("static", "dynamic", "best"),
    [
        ((0.99, 0.95, 3.0), (0.999, 0.98, 1.5), "dynamic"),  # both faster than the graph: the one that keeps more
        ((0.99, 0.95, 3.0), (0.999, 0.98, 0.7), "static"),  # a slower one has no use
        ((0.99, 0.95, 0.8), (0.999, 0.98, 0.7), "dynamic"),  # unless there is no other
        ((0.90, 0.50, 3.0), (0.999, 0.98, 0.7), "dynamic"),  # nor has one that loses too much
        ((0.99, None, 2.0), (0.98, None, 2.0), "static"),
    ],
)
def test_the_best_keeps_the_most_among_those_not_slower(
    static: tuple[float, float | None, float], dynamic: tuple[float, float | None, float], best: str
) -> None:
    found = variants._best([figures("static", *static), figures("dynamic", *dynamic)])
    assert found is not None and found.method == best


def test_a_variant_that_loses_much_is_doubted_in_a_sentence() -> None:
    assert variants.doubts("int8", figures("static", 0.995, 0.95, 2)) is None
    assert variants.doubts("int8", figures("static", 0.995, None, 2)) is None
    doubt = variants.doubts("int8", figures("static", 0.995, 0.62, 2))
    assert doubt is not None and doubt.startswith(
        "int8 keeps a mean cosine of 0.9950 and 62% of the nearest neighbours"
    )


def test_few_images_say_nothing_of_neighbours(tmp_path: Path) -> None:
    source = write_graph(tmp_path / "a.onnx")
    measured = variants.Measure(source, noise(20))(source, "static")
    assert (measured.neighbours_kept, measured.neighbours_kept_in_fp32) == (None, None)
    measured = variants.Measure(source, noise(21))(source, "static")
    assert (measured.neighbours_kept, measured.neighbours_kept_in_fp32) == (1, 1)


@pytest.mark.slow
def test_a_variant_that_loses_too_much_is_refused_and_the_rest_stays(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., object]
) -> None:
    def coarse(source: Path, target: Path, images: np.ndarray) -> None:
        model = onnx.load(source)
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 4:
                tensor.CopyFrom(numpy_helper.from_array(np.sign(numpy_helper.to_array(tensor)), tensor.name))
        onnx.save(model, target)

    monkeypatch.setattr(quantize, "static", coarse)
    out = tmp_path / "model"
    ended = run_cli("export", str(run.path), "-o", str(out), "--variants", "all")
    assert ended.code == 2
    assert f"{out} was written without int8: its mean cosine to the fp32 graph is " in ended.err
    assert [line.split()[0] for line in ended.out.splitlines()[2:4]] == ["fp32", "fp16"]
    assert sorted(path.name for path in out.iterdir()) == ["encoder.fp16.onnx", "encoder.onnx", "manifest.json"]
    assert list(read_manifest(out).variants) == ["fp16"]


def test_a_graph_the_tools_cannot_take_is_told_with_their_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no such\noperator")

    monkeypatch.setattr(quantize, "half", fail)
    source = write_graph(tmp_path / "encoder.onnx")
    made, refused = variants.make_variants(source, ["fp16"], noise(8), noise(8), lambda what: None)
    assert not made
    assert str(refused[0]) == "fp16: onnxruntime cannot make it of this graph (float16: no such operator)"
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.onnx"]


def test_a_full_disk_is_no_fault_of_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(quantize, "half", full)
    with pytest.raises(OSError, match="No space left"):  # which export tells of as of any other of its files
        variants.make_variants(write_graph(tmp_path / "a.onnx"), ["fp16"], noise(8), noise(8), lambda what: None)


def test_an_export_with_variants_is_replaced_and_what_is_gone_is_told(
    run: Run, exported: export.Exported, tmp_path: Path, run_cli: Callable[..., object]
) -> None:
    out = shutil.copytree(exported.folder, tmp_path / "model")
    ended = run_cli("export", str(run.path), "-o", str(out))
    assert ended.code == 0
    assert "The earlier export had fp16 and int8 too; to have that again: --variants fp16,int8" in ended.out
    assert sorted(path.name for path in out.iterdir()) == ["encoder.onnx", "manifest.json"]
    assert "variants" not in (out / "manifest.json").read_text()


def test_calibration_never_sees_the_images_compared(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = experiment.load(run)
    calibration, held_out = export._for_variants(trained)
    assert (len(calibration), len(held_out)) == (96, 48)
    monkeypatch.setattr(export, "CALIBRATION", 20)
    monkeypatch.setattr(export, "HELD_OUT", 40)
    alone = replace(trained, data=replace(trained.data, test=None))
    calibration, held_out = export._for_variants(alone)
    assert (len(calibration), len(held_out)) == (20, 40)
    assert not {image.tobytes() for image in calibration} & {image.tobytes() for image in held_out}


def test_names_of_variants() -> None:
    assert variant_names("") == ()
    assert variant_names("int8, FP16") == ("fp16", "int8")
    assert variant_names("all") == ("fp16", "int8")
    with pytest.raises(ConfigError, match=r"'int9' is no variant of a model; there are fp16, int8 and all\. Did you"):
        variant_names("fp16,int9")
