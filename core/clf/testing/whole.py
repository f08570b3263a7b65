"""Checks of whole runs, some of them in processes of their own; what they do is in :mod:`clf.testing.runs`."""

from __future__ import annotations

from clf.checks import Check, at
from clf.testing.subject import Subject

CHECKS: tuple[Check[Subject], ...] = (
    Check(
        name="state size",
        looks_at="What a checkpoint holds of the method after 2, 4 and 6 steps, and for 96 and 192 images; a "
        "checkpoint is written and read with weights_only=True.",
        why="A state that grows fills disks and, at some step, cannot be loaded; one that holds more than tensors and "
        "plain values could run code when it is loaded, and is refused.",
        remedy="Give buffers their final shape in __init__ and overwrite the oldest rows (clf.nn.Queue does). Take "
        "images by ctx.images(index) and keep their numbers, not their pixels. Return only tensors, numbers, strings, "
        "lists and dicts of them from get_extra_state().",
        run=at("clf.testing.runs:state_size"),
        needs=("trains",),
    ),
    Check(
        name="repeatable",
        looks_at="Two runs of eight steps in two processes: metrics, weights and optimizers must have the same bits.",
        why="A run that cannot be repeated can be neither checked, nor compared, nor resumed exactly.",
        remedy="Draw from ctx.generator(name), or from torch's global generator, which the engine seeds for each step; "
        "never from numpy.random, random, time or os.urandom. Do not let results depend on the order of a set.",
        run=at("clf.testing.runs:repeatable"),
        needs=("trains", "state size"),
    ),
    Check(
        name="resume",
        looks_at="A new process goes on from a checkpoint half-way, and from one half-way through the preparation: "
        "metrics, weights and optimizers must end with the bits of the run that was left alone.",
        why="Long runs are killed and resumed; what a checkpoint does not hold starts anew, unnoticed.",
        remedy="Keep what lasts longer than a step in parameters and buffers: self.register_buffer('queue', ...), "
        "persistent; numbers too, as torch.zeros(()). Counters are ctx.step and ctx.epoch. Optimizers are those of "
        "parameter_groups().",
        run=at("clf.testing.runs:resume"),
        needs=("repeatable",),
    ),
    Check(
        name="ranks",
        looks_at="Six steps by one process and by two that share its batch, in float64, to 1e-10; batch norm sees the "
        "rows of both.",
        why="Several GPUs must train what one trains: with the negatives of one's own rows only, the loss is another.",
        remedy="Compare local rows with ctx.gather(z), with the partner of row i at ctx.rank * len(z) + i (clf.losses "
        "take gather and rank), and return the mean over the local rows. A mean, variance or correlation over the "
        "batch is one over gathered rows. Draw for all rows from ctx.generator(name) and take this rank's. Push "
        "gathered rows into queues.",
        run=at("clf.testing.runs:ranks"),
        needs=("trains", "float64", "repeatable"),
    ),
    Check(
        name="export",
        looks_at="Three steps, then encoder() as an ONNX file: onnxruntime must give the encoder's embeddings for "
        "batches of several sizes.",
        why="Search and serving use the exported file, not the Python code.",
        remedy="Let encoder() be a module that makes each row of (N, D) from its own image, in eval mode alike each "
        "time, by operations that ONNX has, for any N.",
        run=at("clf.testing.runs:export"),
        needs=("trains", "state size"),
    ),
)
