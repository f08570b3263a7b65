"""What goes out comes back the same: JSON, base64, .npy and raw float32, over the wire and through numpy's reader."""

from __future__ import annotations

import base64
import io
import json

import httpx
import numpy as np
import pytest
from api_helpers import PHOTO, TEXT, error, vectors
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from serve_helpers import DIM

from clf_serve.http.replies import accepted, embeddings_reply, shortened
from clf_serve.problems import Problem

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
MATRICES = st.tuples(st.integers(1, 4), st.integers(1, 9)).flatmap(lambda s: arrays(np.float32, s, elements=FLOATS))
IMAGE = {"Content-Type": "image/png"}


@given(matrix=MATRICES)
def test_every_encoding_gives_back_every_bit(matrix: NDArray[np.float32]) -> None:
    rows = json.loads(embeddings_reply(matrix, "m", "application/json").body)["data"]
    base = json.loads(embeddings_reply(matrix, "m", "application/json", "base64").body)["data"]
    file = embeddings_reply(matrix, "m", "application/x-npy")
    raw = embeddings_reply(matrix, "m", "application/octet-stream")

    shape = tuple(map(int, raw.headers["x-shape"].split(",")))
    found = [
        np.array([row["embedding"] for row in rows], np.float32),
        np.array([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in base]),
        np.load(io.BytesIO(bytes(file.body)), allow_pickle=False),
        np.frombuffer(bytes(raw.body), raw.headers["x-dtype"]).reshape(shape),
    ]
    for each in found:
        assert each.dtype == np.float32 and each.tobytes() == matrix.tobytes()


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/html", "application/json"),
        ("application/x-npy", "application/x-npy"),
        ("application/json;q=0.5, application/octet-stream", "application/octet-stream"),
        ("application/octet-stream;q=0.2, */*;q=0.1", "application/octet-stream"),
        ("*/*, application/json;q=0", "application/x-npy"),
        ("APPLICATION/X-NPY ; q=0.9, text/html", "application/x-npy"),
        ("application/x-npy;q=a, ,;", "application/json"),
    ],
)
def test_accept_chooses_the_reply(header: str, kind: str) -> None:
    assert accepted(header) == kind


@given(st.text())
def test_no_accept_header_is_an_error(header: str) -> None:
    assert accepted(header).startswith("application/")


@given(matrix=MATRICES, data=st.data())
def test_fewer_dimensions_are_the_first_ones_at_unit_length(matrix: NDArray[np.float32], data: st.DataObject) -> None:
    dimensions = data.draw(st.integers(1, matrix.shape[1]))
    norms = np.linalg.norm(matrix[:, :dimensions].astype(np.float64), axis=1)
    if dimensions < matrix.shape[1] and not norms.all():
        with pytest.raises(Problem) as caught:
            shortened(matrix, dimensions)
        assert caught.value.code == "no_embedding"
        return
    short = shortened(matrix, dimensions)
    assert short.shape == (len(matrix), dimensions)
    if dimensions == matrix.shape[1]:
        assert short is matrix
        return
    np.testing.assert_allclose(np.linalg.norm(short.astype(np.float64), axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(short, matrix[:, :dimensions] / norms[:, None], atol=1e-6)


def test_the_wire_carries_all_kinds(client: httpx.Client) -> None:
    files = [("images", ("a.png", PHOTO)), ("x", ("b.png", PHOTO))]
    truth = vectors(client.post("/v1/embeddings", files=files))
    npy = client.post("/v1/embeddings", files=files, headers={"Accept": "application/x-npy"})
    raw = client.post("/v1/embeddings", files=files, headers={"Accept": "application/octet-stream"})

    np.testing.assert_array_equal(np.load(io.BytesIO(npy.content)), truth)
    np.testing.assert_array_equal(np.frombuffer(raw.content, "<f4").reshape(2, DIM), truth)
    assert (raw.headers["x-shape"], raw.headers["x-dtype"]) == (f"2,{DIM}", "<f4")
    assert npy.headers["content-type"] == "application/x-npy" and "write" in npy.headers["server-timing"]
    refused = client.post("/v1/embeddings", content=b"no", headers={**IMAGE, "Accept": "application/x-npy"})
    error(refused, 422, "invalid_image")


def test_options_may_stand_in_the_body_the_form_or_the_url(client: httpx.Client) -> None:
    whole = vectors(client.post("/v1/embeddings", content=PHOTO, headers=IMAGE))
    replies = [
        client.post("/v1/embeddings?dimensions=5", content=PHOTO, headers=IMAGE),
        client.post("/v1/embeddings", files={"a": PHOTO}, data={"dimensions": "5"}),
        client.post("/v1/embeddings?dimensions=3", json={"input": TEXT, "dimensions": 5}),
    ]
    for reply in replies:
        np.testing.assert_allclose(vectors(reply), whole[:, :5] / np.linalg.norm(whole[:, :5]), atol=1e-6)
    for query in ("dimensions=x", "encoding_format=int8", f"dimensions={DIM + 1}"):
        bad = client.post(f"/v1/embeddings?{query}", content=PHOTO, headers=IMAGE)
        assert bad.status_code == 400
    error(client.post("/v1/embeddings?model=x", content=PHOTO, headers=IMAGE), 404, "model_not_found")


def test_nomic_s_route_has_nomic_s_shape(client: httpx.Client) -> None:
    files = [("images", ("a.png", PHOTO)), ("images", ("b.png", PHOTO))]
    reply = client.post("/v1/embedding/image", files=files, data={"model": "tiny"}).json()

    truth = vectors(client.post("/v1/embeddings", files=files))
    np.testing.assert_array_equal(np.array(reply["embeddings"], np.float32), truth)
    error(client.post("/v1/embedding/image", data={"urls": "http://x/a.png"}, files={"a": PHOTO}), 400, "url_input")
