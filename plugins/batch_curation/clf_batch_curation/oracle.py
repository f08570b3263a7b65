"""What uses labels: the mode ``oracle`` and two diagnostics. Off unless a file with labels is named.

An oracle is a supervised classifier of the training's own backbone. It answers one question only: would curation help
if someone knew which views still show the class? No result of the method may be quoted with it on.
``tests/benchmarks/curation_oracle.py`` trains one and writes the file.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import clf

KIND = "clf_batch_curation oracle 1"
CLASSES = 1024
"""The most classes whose rates of rejection are kept."""


@dataclass(frozen=True)
class Oracle:
    """A classifier and the label of each training image."""

    network: nn.Module
    """Views (n, C, H, W) -> logits (n, classes)."""
    labels: Tensor
    """(n_images,) int64; -1 where unknown."""

    @torch.no_grad()
    def mislabelled(self, views: Sequence[Tensor], index: Tensor) -> Tensor:
        """(n,) the share of each image's views, of positions ``index`` (n,), that are taken for another class.

        An image of unknown class counts as taken for its own.
        """
        if not len(index):
            return views[0].new_zeros(0)
        label = self.labels[index]  # (n,)
        guesses = self.network(torch.cat(list(views))).argmax(1).view(len(views), -1)  # (V, n)
        wrong: Tensor = (guesses != label) & (label >= 0)  # (V, n)
        return wrong.to(views[0].dtype).mean(0)


def save_oracle(path: Path, backbone: nn.Module, head: nn.Linear, labels: Tensor, fingerprint: str) -> None:
    """Writes an oracle for :func:`load_oracle`.

    Args:
        head: (D) -> (classes).
        labels: (n_images,) int64, in the order of the training set.
        fingerprint: :attr:`clf.DataSpec.fingerprint` of that training set.
    """
    weights = {"backbone": backbone.state_dict(), "head": head.state_dict()}
    torch.save({"kind": KIND, **weights, "labels": labels, "fingerprint": fingerprint}, path)


def load_oracle(path: Path, backbone: nn.Module, data: clf.DataSpec) -> Oracle:
    """The oracle of a file, on the device and in the precision of ``backbone``, whose copy it is.

    Raises:
        ConfigError: the file is missing, is no oracle, or belongs to another backbone or other images.
    """
    content = _read(path)
    labels = content["labels"]
    if len(labels) != data.n_images or content["fingerprint"] != data.fingerprint:
        raise clf.ConfigError(
            f"method.oracle = {path} was made for other training images ({len(labels)}; there are {data.n_images}): "
            "make it again with the data settings of this training"
        )
    body = copy.deepcopy(backbone)
    weight = content["head"]["weight"]
    head = nn.Linear(weight.shape[1], weight.shape[0])
    try:
        body.load_state_dict(content["backbone"])
        head.load_state_dict(content["head"])
    except (RuntimeError, KeyError) as error:
        raise clf.ConfigError(
            f"method.oracle = {path} holds another backbone than backbone.name: make it again with the same backbone"
        ) from error
    like = next(backbone.parameters())
    network = nn.Sequential(body, head).to(like.device, like.dtype).eval().requires_grad_(False)
    return Oracle(network, labels.to(like.device))


def load_labels(path: Path, data: clf.DataSpec) -> Tensor:
    """(n_images,) int64 labels of the training images from a ``.npy`` file; -1 where unknown.

    Raises:
        ConfigError: the file is missing or holds something else.
    """
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise clf.ConfigError(f"method.labels = {path} cannot be read as a .npy file: {error}") from error
    wanted = isinstance(labels, np.ndarray) and labels.shape == (data.n_images,) and labels.dtype.kind in "iu"
    if not wanted or not -1 <= labels.min() <= labels.max() < CLASSES:
        raise clf.ConfigError(
            f"method.labels = {path} must hold {data.n_images} whole numbers from -1 (unknown) to {CLASSES - 1}, one "
            "for each training image"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise clf.ConfigError(f"method.oracle = {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch.load raises what it likes on a file of another kind
        content = error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise clf.ConfigError(
            f"method.oracle = {path} is no oracle: write one with tests/benchmarks/curation_oracle.py"
        )
    return content


class ClassRates(nn.Module):
    """How often pairs of each class are rejected, as a running rate: curation must not drop a class silently."""

    seen: Tensor
    rejected: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("seen", torch.zeros(CLASSES))
        self.register_buffer("rejected", torch.zeros(CLASSES))

    @torch.no_grad()
    def update(self, labels: Tensor, rejected: Tensor) -> Tensor:
        """Takes in a batch, labels (M,) and rejected (M,) bool; returns the largest rate less the smallest, a scalar.

        Classes count that have been seen once or more, with decay.
        """
        known = labels >= 0
        for total, amount in ((self.seen, known), (self.rejected, known & rejected)):
            total.mul_(self.decay).index_add_(0, labels.clamp(min=0), amount.to(total))
        rate = self.rejected / self.seen.clamp(min=1)
        counted = self.seen >= 1
        highest = torch.where(counted, rate, 0.0).max()
        return highest - torch.where(counted, rate, highest).min()
