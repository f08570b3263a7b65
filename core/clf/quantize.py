"""An exported graph in fewer bits, by onnxruntime's own tools: half precision, and 8-bit integers static or dynamic.

https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html and .../float16.html. Whatever comes
before the first and after the last convolution or matrix product stays in 32-bit floats: the cast of uint8 pixels,
their scaling and normalisation, the last pooling and the L2 norm. Half precision leaves softmax and all norms so, too.

Integer weights use seven of their eight bits (``reduce_range``). Processors without VNNI add two products of 8-bit
numbers in 16 bits, and larger weights would overflow there unnoticed: vectors would depend on the server's processor.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from clf.onnx_session import onnxruntime_module

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
CALIBRATION_BATCH = 8
_SENSITIVE = (
    *("Exp", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization", "Pow"),
    *("Reciprocal", "ReduceL2", "ReduceMean", "ReduceSum", "Softmax", "Sqrt"),
)
_FLOAT = onnx.TensorProto.FLOAT
_FROM_FLOAT = "_cast_to_fp16"
"""How the converter ends the name of a 32-bit tensor that it is about to cast."""


def half(source: Path, target: Path) -> None:
    """Weights and arithmetic in IEEE half precision; ``images`` and ``embeddings`` keep their types."""
    graph = _folded(source)
    with _silent():
        convert, sort = _half_tools()
        ends = _before_products(graph) | _after_products(graph)
        converted = convert.convert_float_to_float16(
            graph,
            keep_io_types=True,
            op_block_list=[*convert.DEFAULT_OP_BLOCK_LIST, *_SENSITIVE],
            node_block_list=sorted(ends),
        )
        _join_casts(converted.graph)
        sort.OnnxModel.graph_topological_sort(converted.graph)
    onnx.save(converted, str(target))


def static(source: Path, target: Path, images: NDArray[np.uint8]) -> None:
    """8-bit weights, each output channel with its own scale, and 8-bit activations between fixed limits (QDQ format).

    Args:
        images: (n, S, S, 3), of which the limits are the least and the largest value of each tensor.
    """
    graph = _folded(source)
    with _silent():
        from onnxruntime import quantization

        quantization.quantize_static(
            graph,
            str(target),
            _Batches(images),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            nodes_to_exclude=sorted(_before_products(graph) | _after_products(graph)),
        )


def dynamic(source: Path, target: Path) -> None:
    """8-bit weights of matrix products, each output channel with its own scale; activations scaled as they come."""
    graph = _folded(source)
    with _silent():
        from onnxruntime import quantization

        quantization.quantize_dynamic(
            graph,
            str(target),
            op_types_to_quantize=["Gemm", "MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=quantization.QuantType.QInt8,
        )


def multiplies_weights(source: Path) -> bool:
    """Whether the graph has matrix products by constants, which alone :func:`dynamic` makes smaller."""
    graph = onnx.load(str(source)).graph
    constants = {tensor.name for tensor in graph.initializer}
    return any(node.op_type in ("Gemm", "MatMul") and node.input[1] in constants for node in graph.node)


class _Batches:
    """What onnxruntime asks calibration images of."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        parts = np.split(images, range(CALIBRATION_BATCH, len(images), CALIBRATION_BATCH))
        self._batches = iter([{"images": part} for part in parts])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        return next(self._batches, None)


def _folded(source: Path) -> Any:
    """The graph with constants folded, batch norms inside convolutions, shapes inferred, and every node named."""
    onnxruntime_module()
    with _silent(), tempfile.TemporaryDirectory(prefix="clf-variant-") as folder:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        path = Path(folder) / "folded.onnx"
        quant_pre_process(str(source), str(path), skip_symbolic_shape=True)
        model = onnx.load(str(path))
    taken = {node.name for node in model.graph.node}
    for i, node in enumerate(model.graph.node):
        if not node.name:
            node.name = next(name for n in range(i, sys.maxsize) if (name := f"{node.op_type}_{n}") not in taken)
            taken.add(node.name)
    return model


def _before_products(model: Any) -> set[str]:
    """Names of the nodes that no convolution or matrix product feeds."""
    fed: set[str] = set()
    before = set()
    for node in model.graph.node:
        if node.op_type in PRODUCTS or fed.intersection(node.input):
            fed.update(node.output)
        else:
            before.add(node.name)
    return before


def _after_products(model: Any) -> set[str]:
    """Names of the nodes that feed no convolution or matrix product."""
    feeding: set[str] = set()
    after = set()
    for node in reversed(model.graph.node):
        if node.op_type in PRODUCTS or feeding.intersection(node.output):
            feeding.update(node.input)
        else:
            after.add(node.name)
    return after


def _join_casts(graph: Any) -> None:
    """Takes out each cast of 32-bit floats to half precision and straight back, which would only round them.

    The converter also writes one cast once for each of its readers, under one name, which no graph may have.
    """
    casts: dict[str, Any] = {}
    for node in [node for node in graph.node if node.op_type == "Cast"]:
        if node.output[0] in casts:
            graph.node.remove(node)
        else:
            casts[node.output[0]] = node
    outputs = {value.name for value in graph.output}
    same: dict[str, str] = {}  # a name to go -> the name that stays
    for name, back in casts.items():
        there = casts.get(back.input[0])
        if there is not None and there.input[0].endswith(_FROM_FLOAT) and _to(back) == _FLOAT:
            same.update({there.input[0]: name} if name in outputs else {name: there.input[0]})
            graph.node.remove(back)
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = same.get(name, name)
    read = {name for node in graph.node for name in node.input} | outputs
    for node in [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in read]:
        graph.node.remove(node)


def _to(cast: Any) -> int:
    return next((int(attribute.i) for attribute in cast.attribute if attribute.name == "to"), 0)


def _half_tools() -> Sequence[Any]:
    """onnxruntime's converter and graph utilities; importing them lengthens ``sys.path`` by a folder of scripts."""
    path = list(sys.path)
    try:
        from onnxruntime.transformers import float16, onnx_model
    finally:
        sys.path[:] = path
    return float16, onnx_model


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the tools' advice to their developers, on standard output and by the root logger."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
