"""KServe v2 over a real connection and by NVIDIA's own client, in JSON and in binary."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from api_helpers import PHOTO, TEXT
from hypothesis import given
from hypothesis import strategies as st
from serve_helpers import DIM, SIZE, encoded, picture

from clf_serve.engine import Engine
from clf_serve.http.kserve import parse_infer
from clf_serve.problems import Problem

tritonclient = pytest.importorskip("tritonclient.http")
ENCODED: dict[str, Any] = {"name": "encoded", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
IMAGES: dict[str, Any] = {"name": "images", "shape": [1, SIZE, SIZE, 3], "datatype": "UINT8"}
NUMBERS = [7] * (SIZE * SIZE * 3)


@pytest.fixture(scope="module")
def triton(client: httpx.Client) -> Iterator[Any]:
    with tritonclient.InferenceServerClient(f"{client.base_url.host}:{client.base_url.port}") as found:
        yield found


def photo_vector(engine: Engine) -> Any:
    return engine.embed(engine.prepare(PHOTO)[None])


def infer(client: httpx.Client, **tree: Any) -> httpx.Response:
    return client.post("/v2/models/tiny/infer", json=tree)


def test_the_server_and_its_models_are_described(triton: Any) -> None:
    assert triton.is_server_live() and triton.is_server_ready()
    assert triton.is_model_ready("tiny") and triton.is_model_ready("tiny", "1")
    assert not triton.is_model_ready("other") and not triton.is_model_ready("tiny", "2")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    facts = triton.get_model_metadata("tiny")
    assert facts["inputs"][0] == {"name": "images", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}
    assert facts["outputs"] == [{"name": "embeddings", "datatype": "FP32", "shape": [-1, DIM]}]
    assert triton.get_model_config("tiny", "1")["output"][0]["dims"] == [DIM]
    (listed,) = triton.get_model_repository_index()
    assert (listed["name"], listed["state"]) == ("tiny", "READY")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
def test_pixels_give_the_engine_s_vectors(
    triton: Any, engine: Engine, binary_in: bool, binary_out: bool, packed: str | None
) -> None:
    pixels = np.stack([engine.prepare(encoded(picture(seed))) for seed in (3, 4)])
    tensor = tritonclient.InferInput("images", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary_in)
    wanted = [tritonclient.InferRequestedOutput("embeddings", binary_data=binary_out)]

    reply = triton.infer("tiny", [tensor], outputs=wanted, request_id="7", request_compression_algorithm=packed)

    np.testing.assert_array_equal(reply.as_numpy("embeddings"), engine.embed(pixels))
    assert reply.get_response()["id"] == "7"


def test_files_give_the_same_vectors(client: httpx.Client, triton: Any, engine: Engine) -> None:
    tensor = tritonclient.InferInput("encoded", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([PHOTO, PHOTO], object))
    reply = triton.infer("tiny", [tensor], model_version="1")
    np.testing.assert_array_equal(reply.as_numpy("embeddings"), np.repeat(photo_vector(engine), 2, axis=0))

    for tensor in (ENCODED, {**ENCODED, "shape": [1, 1], "data": [[TEXT]]}):
        output = infer(client, inputs=[tensor]).json()["outputs"][0]
        assert (output["shape"], output["datatype"]) == ([1, DIM], "FP32")
        np.testing.assert_array_equal(np.array(output["data"], np.float32), photo_vector(engine)[0])
    raw = client.post("/v2/models/tiny/infer", content=PHOTO, headers={"Inference-Header-Content-Length": "0"}).json()[
        "outputs"
    ][0]
    np.testing.assert_array_equal(np.array(raw["data"], np.float32), photo_vector(engine)[0])


def test_statistics_count_calls(triton: Any, client: httpx.Client) -> None:
    def stats() -> dict[str, Any]:
        found: dict[str, Any] = triton.get_inference_statistics("tiny")["model_stats"][0]
        return found

    before = stats()
    infer(client, inputs=[ENCODED])
    infer(client, inputs=[])
    after = stats()
    assert after["inference_count"] == before["inference_count"] + 1
    for name in ("success", "fail"):
        assert after["inference_stats"][name]["count"] == before["inference_stats"][name]["count"] + 1
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert [each["name"] for each in triton.get_inference_statistics()["model_stats"]] == ["tiny"]


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({}, "inputs must hold one tensor"),
        ({"inputs": [ENCODED, ENCODED]}, "inputs must hold one tensor"),
        ({"inputs": [{**ENCODED, "name": "x"}]}, "no input 'x'"),
        ({"inputs": [{**ENCODED, "datatype": "FP32"}]}, "must be of the datatype BYTES"),
        ({"inputs": [{**ENCODED, "shape": [2]}]}, "1 elements, but its shape says 2"),
        ({"inputs": [{**ENCODED, "shape": [0], "data": []}]}, "holds no image"),
        ({"inputs": [{**ENCODED, "shape": "x"}]}, "shape must be a list"),
        ({"inputs": [{**ENCODED, "shape": [-1]}]}, "shape must be a list"),
        ({"inputs": [{**ENCODED, "data": ["a cat"]}]}, "neither base64 nor"),
        ({"inputs": [{**ENCODED, "data": None}]}, "encoded has no data"),
        ({"inputs": [{**ENCODED, "parameters": {"binary_data_size": 9}}]}, "both data and binary_data_size"),
        ({"inputs": [{**ENCODED, "parameters": {"shared_memory_region": "x"}}]}, "shared memory"),
        ({"inputs": [{**ENCODED, "parameters": 3}]}, "must be an object"),
        ({"inputs": [{**IMAGES, "data": NUMBERS, "datatype": "FP32"}]}, "datatype UINT8"),
        ({"inputs": [{**IMAGES, "data": NUMBERS, "shape": [1, 3, SIZE, SIZE]}]}, "of the shape"),
        ({"inputs": [{**IMAGES, "data": NUMBERS[1:]}]}, f"{len(NUMBERS)} numbers, got {len(NUMBERS) - 1}"),
        ({"inputs": [{**IMAGES, "data": [256, *NUMBERS[1:]]}]}, "from 0 to 255"),
        ({"inputs": [{**IMAGES, "data": [0.5, *NUMBERS[1:]]}]}, "whole numbers"),
        ({"inputs": [{**IMAGES, "data": [True, *NUMBERS[1:]]}]}, "whole numbers"),
        ({"inputs": [{**IMAGES, "data": ["a" * 100_000, *NUMBERS[1:]]}]}, "whole numbers"),
        ({"inputs": [{**IMAGES, "data": [[1], [2, 3]]}]}, "nested"),
        (
            {"inputs": [{**IMAGES, "data": [[[[1, 2]] * SIZE] * SIZE]}]},
            "nested as the shape [1, 32, 32, 3] is, at depth 3",
        ),
        ({"inputs": [IMAGES]}, "a list"),
        ({"inputs": [{**IMAGES, "data": [NUMBERS]}]}, "nested"),
        ({"inputs": [ENCODED], "outputs": [{"name": "logits"}]}, "no output 'logits'"),
        ({"inputs": [ENCODED], "outputs": [{"name": "embeddings", "parameters": {"classification": 3}}]}, "no classes"),
        ({"inputs": [ENCODED], "parameters": {"binary_data_output": 1}}, "true or false"),
        ({"inputs": [ENCODED], "id": 3}, "id must be a string"),
    ],
)
def test_what_is_wrong_is_said_in_the_protocol_s_own_shape(
    client: httpx.Client, tree: dict[str, Any], words: str
) -> None:
    reply = infer(client, **tree)

    assert reply.status_code == 400, reply.text
    assert list(reply.json()) == ["error"] and words in reply.json()["error"]


def test_other_refusals_have_that_shape_too(client: httpx.Client) -> None:
    broken = infer(client, inputs=[{**ENCODED, "data": [base64.b64encode(PHOTO[:70]).decode()]}])
    many = infer(client, inputs=[{**ENCODED, "shape": [6], "data": [TEXT] * 6}])
    replies = [
        (client.post("/v2/models/other/infer", json={}), 404),
        (client.get("/v2/models/tiny/versions/2"), 404),
        (client.get("/v2/nothing"), 404),
        (client.get("/v2/models/tiny/infer"), 404),  # that is how a model called tiny/infer would be asked for
        (client.post("/v2"), 405),
        (broken, 422),
        (many, 413),
    ]
    for reply, status in replies:
        assert reply.status_code == status and isinstance(reply.json()["error"], str), reply.text


@pytest.mark.parametrize("length", ["x", "-1", "99999", "1e3"])
def test_a_wrong_header_length_is_refused(client: httpx.Client, length: str) -> None:
    reply = client.post("/v2/models/tiny/infer", content=b"{}", headers={"Inference-Header-Content-Length": length})

    assert reply.status_code == 400 and "Inference-Header-Content-Length" in reply.json()["error"]


@given(blobs=st.lists(st.binary(max_size=40), min_size=1, max_size=5), cut=st.integers(0, 30))
def test_elements_in_binary_come_back_and_a_damaged_tail_is_refused(blobs: list[bytes], cut: int) -> None:
    tail = b"".join(struct.pack("<I", len(blob)) + blob for blob in blobs)
    tensor = {"name": "encoded", "shape": [len(blobs)], "datatype": "BYTES"}

    def parse(tail: bytes, size: int) -> Any:
        head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}).encode()
        return parse_infer(head + tail, str(len(head)), SIZE, 5).blobs

    assert parse(tail, len(tail)) == blobs
    short = tail[: max(0, len(tail) - 1 - cut)]
    for damaged, size in ((short, len(tail)), (short, len(short)), (tail + b"x", len(tail) + 1)):
        with pytest.raises(Problem):
            parse(damaged, size)


def test_pixels_in_json_may_be_nested_as_their_shape_is(engine: Engine) -> None:
    pixels = np.stack([engine.prepare(encoded(picture(seed))) for seed in (3, 4)])
    for data in (pixels.tolist(), pixels.ravel().tolist()):
        body = json.dumps({"inputs": [{**IMAGES, "shape": list(pixels.shape), "data": data}]}).encode()
        np.testing.assert_array_equal(parse_infer(body, None, SIZE, 5).pixels, pixels)


def test_numbers_without_end_are_refused_unread() -> None:
    with pytest.raises(Problem) as caught:
        parse_infer(b"[" + b"7," * 2**22, None, SIZE, 5)
    assert (caught.value.status, caught.value.code) == (413, "too_many_values")


def test_a_compressed_body_may_not_grow_beyond_the_limit(client: httpx.Client) -> None:
    headers = {"Content-Encoding": "gzip"}
    reply = client.post("/v2/models/tiny/infer", content=gzip.compress(bytes(10**8)), headers=headers)

    assert reply.status_code == 413
