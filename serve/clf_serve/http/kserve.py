"""Tensors of the Open Inference Protocol (KServe v2), with the binary data extension, in and out of bytes.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md and, for binary
data, https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md

One input is given: ``images``, UINT8 (n, S, S, 3), pixels that are prepared already; or ``encoded``, BYTES (n,), files.
BYTES in binary are elements of a little-endian 4-byte length and so many bytes; in JSON they are base64, which is ours,
as JSON holds no bytes.
The output is ``embeddings``, FP32 (n, D).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from starlette.responses import Response

from clf_serve.engine import Pixels, Vectors
from clf_serve.http.inputs import read_json
from clf_serve.http.replies import JsonReply
from clf_serve.http.shapes import image_of
from clf_serve.problems import Problem

VERSION = "1"
LENGTH = "Inference-Header-Content-Length"
_OUTPUT = "embeddings"
_MOST_VALUES = 2**22  # in JSON, pixels included: 27 images of 224 x 224
_Bytes: TypeAlias = bytes | memoryview


@dataclass(frozen=True)
class InferRequest:
    """One of pixels and blobs is given."""

    id: str | None = None
    pixels: Pixels | None = None
    """(n, S, S, 3) uint8."""
    blobs: list[bytes] | None = None
    binary: bool = False
    """Whether the reply's tensor is binary."""


def parse_infer(body: bytes, length: str | None, size: int, most: int) -> InferRequest:
    """A request of ``/infer``.

    Args:
        length: the header :data:`LENGTH`; "0" makes the whole body one encoded image (Triton's raw request).
        size: S of the model.
        most: images that a request may hold.

    Raises:
        Problem: 400 with what is wrong; 413 too many images.
    """
    if length is not None and length.strip() == "0":
        return InferRequest(blobs=[body])
    head, tail = _split(body, length)
    tree = read_json(head, _MOST_VALUES)
    id_ = tree.get("id")
    if id_ is not None and not isinstance(id_, str):
        raise _bad("id must be a string")
    binary = _binary_output(tree)
    inputs = tree.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _bad("inputs must hold one tensor, either 'images' or 'encoded'")
    tensor = inputs[0]
    name, shape = tensor.get("name"), _shape(tensor)
    raw = _binary_data(tensor, tail)
    if name == "images":
        return InferRequest(id_, pixels=_pixels(tensor, shape, raw, size, most), binary=binary)
    if name == "encoded":
        return InferRequest(id_, blobs=_blobs(tensor, shape, raw, most), binary=binary)
    raise _bad(f"there is no input {name!r}; there are 'images' and 'encoded'")


def infer_reply(vectors: Vectors, model: str, asked: InferRequest, headers: dict[str, str]) -> Response:
    """(n, D) as a reply of ``/infer``."""
    output: dict[str, Any] = {"name": _OUTPUT, "datatype": "FP32", "shape": list(vectors.shape)}
    reply: dict[str, Any] = {"model_name": model, "model_version": VERSION, "outputs": [output]}
    if asked.id is not None:
        reply["id"] = asked.id
    if not asked.binary:
        output["data"] = np.ascontiguousarray(vectors).reshape(-1)
        return JsonReply(reply, headers=headers)
    tail = np.ascontiguousarray(vectors, "<f4").tobytes()
    output["parameters"] = {"binary_data_size": len(tail)}
    head = JsonReply(reply).body
    return Response(
        bytes(head) + tail, headers={LENGTH: str(len(head)), **headers}, media_type="application/octet-stream"
    )


def tensors(size: int, dim: int) -> dict[str, list[dict[str, Any]]]:
    """Inputs and outputs as model metadata names them."""
    return {
        "inputs": [
            {"name": "images", "datatype": "UINT8", "shape": [-1, size, size, 3]},
            {"name": "encoded", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [{"name": _OUTPUT, "datatype": "FP32", "shape": [-1, dim]}],
    }


def config(name: str, size: int, dim: int, most: int) -> dict[str, Any]:
    """The same as Triton's model configuration has it; dims are those of one image."""
    return {
        "name": name,
        "platform": "clf",
        "backend": "clf",
        "max_batch_size": most,
        "version_policy": {"latest": {"num_versions": 1}},
        "input": [
            {"name": "images", "data_type": "TYPE_UINT8", "dims": [size, size, 3], "optional": True},
            {"name": "encoded", "data_type": "TYPE_STRING", "dims": [], "optional": True},
        ],
        "output": [{"name": _OUTPUT, "data_type": "TYPE_FP32", "dims": [dim]}],
        "dynamic_batching": {},
    }


def _split(body: bytes, length: str | None) -> tuple[_Bytes, _Bytes]:
    """JSON and what follows it, neither of them copied."""
    if length is None:
        return body, b""
    if not (length.isascii() and length.isdigit() and len(length) < 12 and int(length) <= len(body)):
        raise _bad(f"{LENGTH} must be a number of bytes within the body, got {length!r}")
    return memoryview(body)[: int(length)], memoryview(body)[int(length) :]


def _binary_output(tree: dict[str, Any]) -> bool:
    parameters = _parameters(tree, "the request")
    everywhere = _flag(parameters, "binary_data_output")
    outputs = tree.get("outputs")
    if outputs is None or outputs == []:
        return bool(everywhere)
    if not isinstance(outputs, list) or len(outputs) != 1 or not isinstance(outputs[0], dict):
        raise _bad(f"outputs must name one tensor, {_OUTPUT!r}")
    name = outputs[0].get("name")
    if name != _OUTPUT:
        raise _bad(f"there is no output {name!r}; there is {_OUTPUT!r}")
    own = _parameters(outputs[0], name)
    if "classification" in own:
        raise _bad("an embedding has no classes; leave out the parameter 'classification'")
    _no_shared_memory(own)
    here = _flag(own, "binary_data")
    return bool(everywhere if here is None else here)


def _shape(tensor: dict[str, Any]) -> list[int]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(side) is int and 0 <= side < 2**31 for side in shape):
        raise _bad("shape must be a list of sizes")
    return shape


def _binary_data(tensor: dict[str, Any], tail: _Bytes) -> _Bytes | None:
    """The tensor's part of the tail, which is all of it, as there is one tensor."""
    parameters = _parameters(tensor, "the input")
    _no_shared_memory(parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        if tail:
            raise _bad(f"{len(tail)} bytes follow the JSON, but the input has no binary_data_size")
        return None
    if "data" in tensor:
        raise _bad("the input has both data and binary_data_size")
    if type(size) is not int or size != len(tail):
        raise _bad(f"binary_data_size is {size!r}, but {len(tail)} bytes follow the JSON")
    return tail


def _pixels(tensor: dict[str, Any], shape: list[int], raw: _Bytes | None, size: int, most: int) -> Pixels:
    wanted = ("n", size, size, 3)
    if tensor.get("datatype") != "UINT8":
        raise _bad(f"images must be of the datatype UINT8, got {tensor.get('datatype')!r}")
    if len(shape) != 4 or shape[1:] != [size, size, 3]:
        raise _bad(f"images must be of the shape {list(wanted)}, got {shape}")
    n = _number(shape[0], most)
    if raw is not None:
        if len(raw) != n * size * size * 3:
            raise _bad(f"images of the shape {shape} need {n * size * size * 3} bytes, got {len(raw)}")
        return np.frombuffer(raw, np.uint8).reshape(n, size, size, 3)
    try:
        packed = bytes(_flat(tensor.get("data"), shape))
    except ValueError:
        raise _bad("data must hold numbers from 0 to 255") from None
    return np.frombuffer(packed, np.uint8).reshape(shape)


def _flat(data: Any, shape: list[int]) -> list[int]:
    """The numbers of a tensor in JSON, which are nested as its shape is, or flat.

    Not by ``numpy.asarray``, which gives every element of a list the room of the longest string in it.
    """
    count = math.prod(shape)
    if not isinstance(data, list):
        raise _bad(f"data must be a list of {count} numbers")
    flat = data
    if data and isinstance(data[0], list):
        for depth, side in enumerate(shape[1:], 1):
            if not all(isinstance(row, list) and len(row) == side for row in flat):
                raise _bad(f"data is not nested as the shape {shape} is, at depth {depth}")
            flat = list(chain.from_iterable(flat))
    if len(flat) != count:
        raise _bad(f"data must hold {count} numbers, got {len(flat)}")
    if set(map(type, flat)) != {int}:
        raise _bad("data must hold whole numbers only")
    return flat


def _blobs(tensor: dict[str, Any], shape: list[int], raw: _Bytes | None, most: int) -> list[bytes]:
    if tensor.get("datatype") != "BYTES":
        raise _bad(f"encoded must be of the datatype BYTES, got {tensor.get('datatype')!r}")
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]):
        raise _bad(f"encoded must be of the shape ['n'], got {shape}")
    n = _number(shape[0], most)
    if raw is not None:
        return _elements(raw, n)
    data = tensor.get("data")
    if not isinstance(data, list):
        raise _bad("encoded has no data: a list of images in base64, or binary data")
    flat = [item for row in data for item in row] if data and all(isinstance(row, list) for row in data) else data
    if len(flat) != n:
        raise _bad(f"encoded has {len(flat)} elements, but its shape says {n}")
    blobs = [image_of({"image": item}, f"encoded[{i}]", urls=False) for i, item in enumerate(flat)]
    return [blob for blob in blobs if isinstance(blob, bytes)]


def _elements(raw: _Bytes, n: int) -> list[bytes]:
    found: list[bytes] = []
    at = 0
    while at < len(raw) and len(found) < n:
        if at + 4 > len(raw):
            break
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4 + length
        if at > len(raw):
            break
        found.append(bytes(raw[at - length : at]))
    if at != len(raw) or len(found) != n:
        raise _bad(f"the binary data of encoded is not {n} elements, each of a 4-byte length and so many bytes")
    return found


def _number(n: int, most: int) -> int:
    if n < 1:
        raise _bad("the request holds no image")
    if n > most:
        raise Problem(413, "too_many_images", f"{n} images are more than the {most} a request may hold")
    return n


def _parameters(tree: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = tree.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise _bad(f"the parameters of {what} must be an object")
    return parameters


def _flag(parameters: dict[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise _bad(f"{name} must be true or false")


def _no_shared_memory(parameters: dict[str, Any]) -> None:
    if any(name.startswith("shared_memory") for name in parameters):
        raise _bad("shared memory is not supported; send the data")


def _bad(text: str) -> Problem:
    return Problem(400, "invalid_tensor", text)
