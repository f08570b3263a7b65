"""The batcher with a real engine: blanks beside an image change no bit of its vector."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from serve_helpers import SIZE, sign, write_model

from clf.manifest import MODEL_FILE
from clf_serve.batching.batcher import Batcher
from clf_serve.batching.scheduling import Choice, covering
from clf_serve.engine import Engine, Pixels, Vectors
from clf_serve.metrics import Metrics

DIM = 48


def write_network(folder: Path) -> Path:
    """A model folder whose encoder is two convolutions and a matrix product, with random weights."""
    rng = np.random.default_rng(0)
    weights = {"wide": (16, 3, 5, 5), "deep": (32, 16, 3, 3), "flat_to_vector": (32 * 14 * 14, DIM)}
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "most"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "wide"], ["first"], strides=[1, 1], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["first"], ["bent"]),
        helper.make_node("Conv", ["bent", "deep"], ["second"], strides=[2, 2], pads=[0, 0, 0, 0]),
        helper.make_node("AveragePool", ["second"], ["pooled"], kernel_shape=[2, 2], strides=[1, 1]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "flat_to_vector"], ["vector"]),
        helper.make_node("LpNormalization", ["vector"], ["embeddings"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", DIM])],
        [
            numpy_helper.from_array(np.array(255.0, np.float32), "most"),
            *(
                numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name)
                for name, shape in weights.items()
            ),
        ],
    )
    write_model(folder, dim=DIM)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / MODEL_FILE))
    sign(folder)
    return folder


def test_a_batch_filled_up_with_blanks_keeps_every_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(write_network(tmp_path / "model"), "cpu")
    monkeypatch.setattr(engine, "_time", lambda pixels: 1e-3 + 1e-6 * len(pixels))  # so that all exact sizes pay
    engine.warm_up()
    if engine.max_batch == 1:
        pytest.skip("on this machine every batch changes a bit, so none is used")
    rng = np.random.default_rng(1)
    images = list(rng.integers(0, 256, (engine.max_batch - 1, SIZE, SIZE, 3), dtype=np.uint8))
    ran: list[tuple[int, int]] = []  # rows, and of these blanks

    def run(pixels: Pixels) -> Vectors:
        ran.append((len(pixels), int((pixels.reshape(len(pixels), -1).max(1) == 0).sum())))
        return engine.embed(pixels)

    async def main() -> None:
        batcher = Batcher(run, lambda: engine.buckets, 100, Metrics())
        monkeypatch.setattr(
            batcher._scheduler, "choose", lambda waiting, sizes, now: Choice(covering(waiting, sizes))
        )  # as its rule does where a batch costs little more than an image
        batcher.start()
        for n in range(1, len(images) + 1):
            vectors, _ = await batcher.embed(images[:n])
            alone = np.concatenate([engine.embed(image[None]) for image in images[:n]])
            np.testing.assert_array_equal(vectors, alone)
        await batcher.stop()

    asyncio.run(main())
    assert ran[-1] == (engine.max_batch, 1)  # one image fewer than the batch has rows
    engine.close()
