"""Programs that other people's clients run, unchanged, against a server.

``python real_clients.py NAME[,NAME] URL FILE.npz`` runs one or some of them.

FILE holds what the server must answer: ``blobs`` (n,) of image files, ``pixels`` (n, S, S, 3) uint8 of the same images,
and their ``vectors`` (n, D). Each program ends with an exception if anything differs. A hook in the interpreter itself
refuses every connection, look-up and datagram that would leave the machine, so that nothing can be downloaded or told.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

_WATCHED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")


@dataclass
class Task:
    url: str
    blobs: list[bytes]
    pixels: NDArray[np.uint8]
    vectors: NDArray[np.float32]
    model: str = "tiny"

    @classmethod
    def read(cls, url: str, file: Path) -> Task:
        with np.load(file) as data:
            blobs = [bytes(blob) for blob in np.split(data["bytes"], np.cumsum(data["lengths"])[:-1])]
            return cls(url, blobs, data["pixels"], data["vectors"])

    def write(self, file: Path) -> None:
        joined = np.frombuffer(b"".join(self.blobs), np.uint8)
        lengths = [len(blob) for blob in self.blobs]
        np.savez(file, bytes=joined, lengths=lengths, pixels=self.pixels, vectors=self.vectors)

    @property
    def uris(self) -> list[str]:
        return ["data:image/png;base64," + base64.b64encode(blob).decode() for blob in self.blobs]

    def check(self, found: Any) -> None:
        np.testing.assert_allclose(np.asarray(found, np.float32), self.vectors, rtol=0, atol=1e-6)


def stay_here() -> list[str]:
    """Refuses whatever would leave the machine, from now on; the list of what was refused."""
    refused: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _WATCHED:
            return
        host = arguments[0] if event in ("socket.getaddrinfo", "socket.gethostbyname") else arguments[-1]
        host = host[0] if isinstance(host, tuple) else host
        name = host.decode() if isinstance(host, bytes) else host
        if name not in (None, "127.0.0.1", "::1", "localhost") and not str(name).startswith("/"):
            refused.append(f"{event} {name}")
            raise OSError(f"{event} {name} would leave the machine")

    sys.addaudithook(watch)
    return refused


def refusal(kind: type[Exception], work: Callable[[], Any]) -> Any:
    """The exception that ``work`` ends with, which must be of that kind."""
    try:
        found = work()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} but {found!r}")


def openai(task: Task) -> None:
    import openai

    client = openai.OpenAI(base_url=task.url + "/v1", api_key="unused")
    create = client.embeddings.create

    def rows(reply: Any) -> list[list[float]]:
        assert [row.index for row in reply.data] == list(range(len(task.blobs)))
        assert (reply.model, reply.object) == (task.model, "list")
        return [row.embedding for row in reply.data]

    task.check(rows(create(model=task.model, input=task.uris)))  # base64 on the wire, by this client's default
    task.check(rows(create(model=task.model, input=task.uris, encoding_format="float")))
    task.check(rows(create(model=task.model, input=task.uris, extra_body={"modality": "image"})))
    task.check(np.array([create(model=task.model, input=uri).data[0].embedding for uri in task.uris]))
    short = task.vectors[:, :5] / np.linalg.norm(task.vectors[:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(rows(create(model=task.model, input=task.uris, dimensions=5)), short, atol=1e-6)
    assert [model.id for model in client.models.list()] == [task.model]

    async def awaited() -> None:
        async with openai.AsyncOpenAI(base_url=task.url + "/v1", api_key="unused") as other:
            task.check(rows(await other.embeddings.create(model=task.model, input=task.uris)))

    asyncio.run(awaited())
    text = refusal(openai.BadRequestError, lambda: create(model=task.model, input="two cute cats"))
    assert (text.param, text.type) == ("input", "invalid_request_error") and "images, not text" in str(text)
    bad = refusal(
        openai.UnprocessableEntityError, lambda: create(model=task.model, input=[task.uris[0], task.uris[1][:60]])
    )
    assert (bad.code, bad.param) == ("invalid_image", "input[1]")
    assert refusal(openai.NotFoundError, lambda: create(model="gpt", input=task.uris)).code == "model_not_found"


def openai_retry(task: Task) -> None:
    """The server refuses once with 429 and ``Retry-After: 2``."""
    import openai

    start = time.monotonic()
    with openai.OpenAI(base_url=task.url + "/v1", api_key="unused") as client:
        reply = client.embeddings.create(model=task.model, input=task.uris)
    task.check([row.embedding for row in reply.data])
    assert time.monotonic() - start >= 2


def infinity(task: Task) -> None:
    import requests
    from infinity_client import Client
    from infinity_client.api.default import embeddings
    from infinity_client.models import OpenAIEmbeddingInputImage
    from infinity_client.vision_client import InfinityVisionAPI

    with Client(base_url=task.url, raise_on_unexpected_status=True) as client:
        for body in (
            OpenAIEmbeddingInputImage(input_=task.uris),  # its default is model "default/not-specified", dimensions 0
            OpenAIEmbeddingInputImage(input_=task.uris, model=task.model),
        ):
            reply = embeddings.sync(client=client, body=body)
            task.check([row.embedding for row in reply.data])
    # its other client embeds the text "test" to learn the dimension, and can do nothing without an answer
    error = refusal(requests.HTTPError, lambda: InfinityVisionAPI(task.url, model=task.model))
    assert error.response.status_code == 400
    assert error.response.json()["error"]["code"] == "text_input"


def litellm(task: Task) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it downloads a list of prices when it is imported
    import litellm

    litellm.telemetry = False
    ways: list[dict[str, Any]] = [
        {"model": f"openai/{task.model}", "api_base": task.url + "/v1"},
        {"model": f"openai/{task.model}", "api_base": task.url + "/v1", "encoding_format": "base64"},
        {"model": f"infinity/{task.model}", "api_base": task.url, "modality": "image"},
        {"model": f"jina_ai/{task.model}", "api_base": task.url + "/v1"},
    ]
    for way in ways:
        reply = litellm.embedding(input=task.uris, api_key="unused", **way)
        task.check([_numbers(row["embedding"]) for row in reply.data])
    error = refusal(
        litellm.exceptions.BadRequestError,
        lambda: litellm.embedding(input=["two cute cats"], api_key="unused", **ways[0]),
    )
    assert "images, not text" in str(error)


def langchain(task: Task) -> None:
    litellm_folder = Path(find_spec("litellm").origin).parent  # type: ignore[union-attr, arg-type]
    # tiktoken would download its vocabulary; litellm brings the same file along
    os.environ["TIKTOKEN_CACHE_DIR"] = str(litellm_folder / "litellm_core_utils" / "tokenizers")
    import openai
    from langchain_openai import OpenAIEmbeddings

    options: dict[str, Any] = {"model": task.model, "base_url": task.url + "/v1", "api_key": "unused"}
    embeddings = OpenAIEmbeddings(check_embedding_ctx_length=False, **options)
    task.check(embeddings.embed_documents(task.uris))
    task.check([embeddings.embed_query(uri) for uri in task.uris])
    task.check(asyncio.run(embeddings.aembed_documents(task.uris)))
    # by default it sends arrays of token numbers; the refusal says what to do
    error = refusal(openai.BadRequestError, lambda: OpenAIEmbeddings(**options).embed_documents(["a cat"]))
    assert "check_embedding_ctx_length=False" in str(error)


def triton(task: Task) -> None:
    from tritonclient import http
    from tritonclient.utils import InferenceServerException

    with http.InferenceServerClient(urlsplit(task.url).netloc, concurrency=2) as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(task.model)
        assert not client.is_model_ready("gpt")
        assert {"name", "version", "extensions"} <= set(client.get_server_metadata())
        _check_metadata(task, client.get_model_metadata(task.model))
        assert client.get_model_config(task.model)["name"] == task.model
        for inputs in _inputs(task, http.InferInput):
            for binary in (True, False):
                outputs = [http.InferRequestedOutput("embeddings", binary_data=binary)]
                task.check(client.infer(task.model, inputs, outputs=outputs).as_numpy("embeddings"))
        (pixels, *_) = _inputs(task, http.InferInput)
        task.check(client.infer(task.model, pixels).as_numpy("embeddings"))
        for how in ("gzip", "deflate"):
            found = client.infer(
                task.model, pixels, request_compression_algorithm=how, response_compression_algorithm=how
            )
            task.check(found.as_numpy("embeddings"))
        named = client.infer(task.model, pixels, request_id="seven").get_response()
        assert (named["id"], named["model_name"]) == ("seven", task.model)
        task.check(client.async_infer(task.model, pixels).get_result().as_numpy("embeddings"))
        wrong = http.InferInput("pictures", [1, 2], "UINT8").set_data_from_numpy(np.zeros((1, 2), np.uint8))
        assert "pictures" in str(refusal(InferenceServerException, lambda: client.infer(task.model, [wrong])))
        refusal(InferenceServerException, lambda: client.infer("gpt", pixels))
    asyncio.run(_triton_awaited(task))


async def _triton_awaited(task: Task) -> None:
    import tritonclient.http.aio as http

    async with http.InferenceServerClient(urlsplit(task.url).netloc) as client:
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready(task.model)
        _check_metadata(task, await client.get_model_metadata(task.model))
        for inputs in _inputs(task, http.InferInput):
            found = await client.infer(task.model, inputs)
            task.check(found.as_numpy("embeddings"))


def _check_metadata(task: Task, found: dict[str, Any]) -> None:
    inputs = {tensor["name"]: tensor for tensor in found["inputs"]}
    (output,) = found["outputs"]
    assert found["name"] == task.model
    assert inputs["images"]["datatype"] == "UINT8"
    assert [int(side) for side in inputs["images"]["shape"]] == [-1, *task.pixels.shape[1:]]
    assert inputs["encoded"]["datatype"] == "BYTES" and [int(side) for side in inputs["encoded"]["shape"]] == [-1]
    assert (output["name"], output["datatype"]) == ("embeddings", "FP32")
    assert [int(side) for side in output["shape"]] == [-1, task.vectors.shape[1]]


def _inputs(task: Task, kind: Any) -> list[list[Any]]:
    """The same images as prepared pixels and as files, as JSON and as bytes; a file in JSON is base64."""
    blobs = np.array(task.blobs, object)
    texts = np.array([base64.b64encode(blob) for blob in task.blobs], object)
    n = len(blobs)
    return [
        [kind("images", list(task.pixels.shape), "UINT8").set_data_from_numpy(task.pixels, binary_data=True)],
        [kind("images", list(task.pixels.shape), "UINT8").set_data_from_numpy(task.pixels, binary_data=False)],
        [kind("encoded", [n], "BYTES").set_data_from_numpy(blobs, binary_data=True)],
        [kind("encoded", [n], "BYTES").set_data_from_numpy(texts, binary_data=False)],
    ]


def _numbers(embedding: Any) -> Any:
    return np.frombuffer(base64.b64decode(embedding), "<f4") if isinstance(embedding, str) else embedding


PROGRAMS: dict[str, Callable[[Task], None]] = {
    each.__name__: each for each in (openai, openai_retry, infinity, litellm, langchain, triton)
}


def main(names: str, url: str, file: str) -> None:
    refused = stay_here()
    for name in names.split(","):
        PROGRAMS[name](Task.read(url, Path(file)))
    assert not refused, refused
    print("all is as it should be")


if __name__ == "__main__":
    main(*sys.argv[1:])
