"""The model repository for Triton, without Triton: tests/benchmarks/triton_repository.py runs the real one."""

import base64
import errno
import hashlib
import importlib.util
import io
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image

from clf import export
from clf.errors import ExportError
from clf.images import prepare
from clf.manifest import MODEL_FILE, Manifest, Variant, read_manifest, write_manifest
from clf.onnx_session import session
from clf.runs import Run
from clf.triton import check_repository, put_in_place, repository_name, write_repository

UTILS = """
import numpy as np


class Tensor:
    def __init__(self, name, array):
        self.name, self.array = name, array

    def as_numpy(self):
        return self.array


class TritonError:
    INVALID_ARG = 3

    def __init__(self, text, code):
        self.text, self.code = text, code


class InferenceResponse:
    def __init__(self, output_tensors, error=None):
        self.output_tensors, self.error = output_tensors, error


class TritonModelException(Exception):
    pass


def get_input_tensor_by_name(request, name):
    return Tensor(name, request[name])
"""
"""What a model of Triton's Python backend finds there."""

RUN = """
import json, pickle, sys
utils, folder, given, size = sys.argv[1:]
sys.path[:0] = [folder, utils]
import clf, model
assert clf.__file__.startswith(folder), clf.__file__
made = model.TritonPythonModel()
made.initialize({"model_config": json.dumps({"parameters": {"image_size": {"string_value": size}}})})
with open(given, "rb") as file:
    requests = pickle.load(file)
for answer in made.execute(requests):
    (tensor,) = answer.output_tensors or [None]
    if tensor is None:
        print(json.dumps({"error": answer.error.text}))
    else:
        print(json.dumps({"name": tensor.name, "type": str(tensor.array.dtype), "values": tensor.array.tolist()}))
"""


@pytest.fixture(scope="module")
def model(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export.export_run(tiny_run, tmp_path_factory.mktemp("triton") / "model")


@pytest.fixture(scope="module")
def with_variants(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same export with two variants, whose graphs are the first one's."""
    folder = shutil.copytree(model, tmp_path_factory.mktemp("variants") / "model")
    manifest = read_manifest(folder)
    made = {}
    for name, method in (("fp16", "float16"), ("int8", "dynamic")):
        file = shutil.copyfile(folder / MODEL_FILE, folder / f"encoder.{name}.onnx")
        size = file.stat().st_size
        about = {"file": file.name, "sha256": manifest.sha256, "bytes": size, "method": method, "images": 1}
        made[name] = Variant.model_validate({**about, "mean_cosine": 1, "min_cosine": 1})
    write_manifest(folder, manifest.model_copy(update={"variants": made}))
    return folder


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    """Triton's ModelConfig as its client carries it; of the package around it the gRPC parts would be needed."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(model: Path, folder: Path, backend: Any = "onnxruntime") -> Path:
    folder.mkdir()
    names = write_repository(model, folder, backend)
    assert names == sorted(path.name for path in folder.iterdir())
    return folder


def parsed(schema: ModuleType, repository: Path) -> dict[str, Any]:
    """Every config.pbtxt by the name of its folder. A field that Triton does not know is an error."""
    found = {}
    for path in sorted(repository.glob("*/config.pbtxt")):
        found[path.parent.name] = text_format.Parse(path.read_text(), schema.ModelConfig())
    return found


def tensors(some: Any, schema: ModuleType) -> list[tuple[str, str, list[int]]]:
    return [(each.name, schema.DataType.Name(each.data_type), list(each.dims)) for each in some]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_configurations_are_tritons_own_and_say_what_the_model_is(
    model: Path, tmp_path: Path, schema: ModuleType, backend: str
) -> None:
    configs = parsed(schema, written(model, tmp_path / "models", backend))
    assert list(configs) == ["tiny", "tiny_decode", "tiny_encoded"]
    assert all(config.name == name for name, config in configs.items())
    plain, decode, whole = configs.values()
    assert (plain.backend, plain.max_batch_size, plain.HasField("dynamic_batching")) == (backend, 256, True)
    assert tensors(plain.input, schema) == [("images", "TYPE_UINT8", [16, 16, 3])]
    assert tensors(plain.output, schema) == [("embeddings", "TYPE_FP32", [96])]
    (warm,) = plain.model_warmup
    assert (warm.batch_size, list(warm.inputs["images"].dims)) == (1, [16, 16, 3])
    assert plain.parameters["sha256"].string_value == read_manifest(model).sha256
    assert (decode.backend, decode.max_batch_size) == ("python", 0)
    assert tensors(decode.input, schema) == tensors(whole.input, schema) == [("encoded", "TYPE_STRING", [-1])]
    assert tensors(decode.output, schema) == [("images", "TYPE_UINT8", [-1, 16, 16, 3])]
    assert tensors(whole.output, schema) == [("embeddings", "TYPE_FP32", [-1, 96])]
    assert [step.model_name for step in whole.ensemble_scheduling.step] == ["tiny_decode", "tiny"]
    with pytest.raises(text_format.ParseError):
        text_format.Parse("pictures: 1", schema.ModelConfig())


def test_the_files_are_those_of_the_export(model: Path, tmp_path: Path) -> None:
    plain = written(model, tmp_path / "models")
    graph = plain / "tiny" / "1" / "model.onnx"
    assert hashlib.sha256(graph.read_bytes()).hexdigest() == read_manifest(model).sha256
    assert Manifest.model_validate_json((plain / "tiny" / "manifest.json").read_bytes()) == read_manifest(model)
    assert sorted(path.name for path in (plain / "tiny").rglob("*")) == [
        "1",
        "config.pbtxt",
        "manifest.json",
        "model.onnx",
    ]
    assert (plain / "tiny_encoded" / "1").is_dir()
    python = written(model, tmp_path / "python", "python")
    assert (python / "tiny" / "requirements.txt").read_text() == "numpy\nonnxruntime\n"
    assert (python / "tiny_decode" / "requirements.txt").read_text().startswith("numpy\npillow==")


def test_variants_are_models_of_their_own(with_variants: Path, tmp_path: Path, schema: ModuleType) -> None:
    """One whose ranges are those of the whole batch runs one image at a time."""
    configs = parsed(schema, written(with_variants, tmp_path / "models"))
    graphs = ["tiny", "tiny_fp16", "tiny_int8"]
    assert sorted(configs) == sorted([*graphs, *(f"{name}_encoded" for name in graphs), "tiny_decode"])
    assert [configs[name].max_batch_size for name in graphs] == [256, 256, 1]
    assert [configs[name].HasField("dynamic_batching") for name in graphs] == [True, True, False]
    assert [step.model_name for step in configs["tiny_fp16_encoded"].ensemble_scheduling.step] == [
        "tiny_decode",
        "tiny_fp16",
    ]


def test_names_are_fit_for_folders_and_urls() -> None:
    assert [repository_name(name) for name in ("simclr-2026.1", "über/mäßig", "..", "a b")] == [
        *("simclr-2026.1", "ber_m_ig", "encoder", "a_b")
    ]


def execute(folder: Path, given: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a model of the Python backend answers, in an interpreter where its folder comes first."""
    given.write_bytes(pickle.dumps(requests))
    given.with_name("triton_python_backend_utils.py").write_text(UTILS)
    command = [sys.executable, "-I", "-c", RUN, str(given.parent), str(folder / "1"), str(given), "16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def pictures() -> list[bytes]:
    """Files that a careless decoder gets wrong: on their side, in other modes, with transparency."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((90, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(rng.integers(0, 65536, (40, 50), np.uint16))
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((photo, "JPEG", {"exif": exif}), (photo.convert("CMYK"), "JPEG", {}), (photo.convert("P"), "GIF", {})),
        *((photo.convert("LA"), "PNG", {}), (deep, "PNG", {}), (photo, "WEBP", {})),
    ]
    blobs = []
    for image, kind, options in made:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        blobs.append(buffer.getvalue())
    return blobs


def test_the_decoder_needs_no_clf_and_gives_the_pixels_of_training(model: Path, tmp_path: Path) -> None:
    folder = written(model, tmp_path / "models") / "tiny_decode"
    files = pictures()
    coded = [base64.b64encode(file) for file in files]  # as JSON brings them
    spoilt = [files[0], files[5][:40]]
    requests = [{"encoded": np.array(some, object)} for some in (files, coded, spoilt, files[:1])]
    plain, text, bad, one = execute(folder, tmp_path / "given", requests)
    wanted = np.stack([prepare(file, 16) for file in files])
    assert (plain["name"], plain["type"]) == ("images", "uint8")
    np.testing.assert_array_equal(plain["values"], wanted)
    np.testing.assert_array_equal(text["values"], wanted)
    np.testing.assert_array_equal(one["values"], wanted[:1])
    assert bad["error"].startswith("encoded[1]: the image is ")


def test_the_python_backend_gives_the_vectors_of_the_graph(model: Path, tmp_path: Path) -> None:
    folder = written(model, tmp_path / "models", "python") / "tiny"
    images = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), np.uint8)
    answers = execute(folder, tmp_path / "given", [{"images": images[:3]}, {"images": images[3:]}])
    found = np.concatenate([np.array(answer["values"], np.float32) for answer in answers])
    embed = session(model / MODEL_FILE, 1)
    assert {(answer["name"], answer["type"]) for answer in answers} == {("embeddings", "float32")}
    np.testing.assert_allclose(found, np.concatenate([embed(image[None]) for image in images]), atol=1e-6)


def added(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_a_repository_keeps_the_models_of_others(with_variants: Path, model: Path, tmp_path: Path) -> None:
    repository = written(with_variants, tmp_path / "models")
    (repository / "other" / "1").mkdir(parents=True)
    added(repository / "tiny" / "config.pbtxt", "# tuned")
    check_repository(repository, "tiny")
    gone = put_in_place(written(model, tmp_path / "draft"), repository, "tiny")
    assert gone == ["tiny_fp16", "tiny_fp16_encoded", "tiny_int8", "tiny_int8_encoded"]
    assert sorted(path.name for path in repository.iterdir()) == ["other", "tiny", "tiny_decode", "tiny_encoded"]
    assert "tuned" not in (repository / "tiny" / "config.pbtxt").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draft", "models"]


def test_what_is_not_ours_is_left_alone(model: Path, tmp_path: Path) -> None:
    repository = written(model, tmp_path / "models")
    (repository / "tiny" / "2").mkdir()
    with pytest.raises(ExportError, match=r"holds more than an export \(2\)"):
        check_repository(repository, "tiny")
    (repository / "tiny" / "2").rmdir()
    (repository / "tiny_decode" / "config.pbtxt").write_text("")
    with pytest.raises(ExportError, match="tiny_decode exists and is not an export of the run tiny"):
        check_repository(repository, "tiny")
    with pytest.raises(ExportError, match="is an exported model, not a model repository"):
        check_repository(model, "tiny")
    with pytest.raises(ExportError, match="is a file"):
        check_repository(model / MODEL_FILE, "tiny")


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_earlier_repository_is_put_back(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    repository, draft = written(model, tmp_path / "models"), written(model, tmp_path / "draft")
    for path in repository.glob("*/config.pbtxt"):
        added(path, "# earlier")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.parent == draft and self.name == "tiny_encoded":
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(type(failure)):
        put_in_place(draft, repository, "tiny")
    texts = [path.read_text() for path in repository.glob("*/config.pbtxt")]
    assert len(texts) == 3 and all(text.endswith("# earlier") for text in texts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draft", "models"]


@pytest.mark.slow
def test_the_command_writes_a_repository_and_says_how_to_serve_it(
    tiny_run: Run, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    repository = tmp_path / "deep" / "models"
    done = run_cli("export", str(tiny_run.path), "--format", "triton", "-o", str(repository))
    assert done.code == 0, done.err
    assert f"tritonserver --model-repository {repository}" in done.out
    assert f"-r {repository}/tiny_decode/requirements.txt" in done.out
    assert sorted(path.name for path in repository.iterdir()) == ["tiny", "tiny_decode", "tiny_encoded"]
    assert [path.name for path in repository.parent.iterdir()] == ["models"]
    (repository / "tiny" / "notes.txt").write_text("mine")
    refused = run_cli("export", str(tiny_run.path), "--format", "triton-python", "-o", str(repository))
    assert refused.code == 2 and "holds more than an export (notes.txt)" in " ".join(refused.err.split())
    assert run_cli("export", str(tiny_run.path), "--format", "tritton").code == 2
