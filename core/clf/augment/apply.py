"""A recipe applied to batches, on the CPU in blocks and elsewhere as one graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby
from types import FunctionType

import torch
from torch import Tensor

from clf.augment.blocks import blur_and_solarize_, in_blocks
from clf.augment.dense import in_one_graph, table
from clf.augment.recipe import Draws, Recipe
from clf.augment.resample import LARGEST_IN_FULL
from clf.compiling import obstacle

_Graph = Callable[[Tensor, Tensor], Tensor]


class Augment:
    """A recipe applied to batches.

    Eager on the CPU, a row's result depends on its own image and draws only: bit for bit where the sides of image and
    view are multiples of 8 (otherwise up to the last bit or two, for BLAS goes by where a matrix lies in memory).
    Compiled or on a GPU it is the same up to rounding (1e-5), for sums are ordered by the shape of the batch; the same
    batch gives the same bits.

    With ``compiled`` the graph is compiled for the shape of the first batch; batches of other shapes (the last rows,
    a redraw of some rows) run eagerly, so nothing is ever compiled twice. Where compiling fails, for want of a C++
    compiler or triton, or does not pay (large views on a CPU), all batches run eagerly and ``note`` says why.
    """

    def __init__(self, recipe: Recipe, compiled: bool = False) -> None:
        self.recipe = recipe
        self.note: str | None = None
        self._compiled = compiled
        self._shape: tuple[object, ...] | None = None  # of the first batch
        self._graph: _Graph | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, draws: Draws, dtype: torch.dtype = torch.float32) -> Tensor:
        """Views of a batch.

        Args:
            images: (N, C, H, W) uint8 of any height and width, C 1 or 3, on any device.
            draws: of :meth:`Recipe.draw`, N rows.

        Returns:
            (N, C, S, S) in [0, 1], on the images' device.

        Raises:
            ValueError: the images are not (N, 1 or 3, H, W) uint8, or the number of draws differs.
        """
        if not (images.ndim == 4 and images.shape[1] in (1, 3) and images.dtype == torch.uint8):
            raise ValueError(f"images must be (N, 1 or 3, H, W) uint8, got {tuple(images.shape)} {images.dtype}")
        if len(draws) != len(images):
            raise ValueError(f"{len(images)} images need as many draws, got {len(draws)}")
        with torch.autocast(images.device.type, enabled=False):  # pixels need more than 8 bits of mantissa
            return self._views(images, draws, dtype)

    def _views(self, images: Tensor, draws: Draws, dtype: torch.dtype) -> Tensor:
        shape = (images.shape, images.device, dtype)
        if self._shape is None:
            self._shape = shape
            if self._compiled and (reason := obstacle(images.device) or self._slower(images.device)):
                self._give_up(reason)
        if self._compiled and shape == self._shape:
            try:
                return self._in_compiled_graph(images, draws, dtype)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # where it is not the compiler's, it shows again below
                self._give_up(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        if images.device.type == "cpu":
            return in_blocks(images, draws, self.recipe, dtype)
        return in_one_graph(images, self._table(images, draws, dtype), self.recipe)

    def _slower(self, device: torch.device) -> str | None:
        if device.type == "cpu" and self.recipe.size > LARGEST_IN_FULL:
            return f"above {LARGEST_IN_FULL} pixels a CPU is faster without"
        return None

    def _give_up(self, reason: str) -> None:
        self._compiled = False
        self.note = f"augmentation is not compiled, for {reason}"

    def _in_compiled_graph(self, images: Tensor, draws: Draws, dtype: torch.dtype) -> Tensor:
        on_cpu = images.device.type == "cpu"
        if self._graph is None:
            # a CPU gains more from blurring only the images that are drawn to be than from one graph
            recipe = replace(self.recipe, blur=0.0, solarize=0.0) if on_cpu else self.recipe
            self._graph = _compiled(recipe, images.shape, dtype, images.device)
        parameters = self._table(images, draws, dtype)
        raw = images.to(dtype) if on_cpu else images  # compiled code for a CPU would load single bytes
        x = self._graph(raw, parameters)
        if on_cpu:
            blur_and_solarize_(x, draws)
        return x

    def _table(self, images: Tensor, draws: Draws, dtype: torch.dtype) -> Tensor:
        """All draws in one transfer that the host does not wait for."""
        _, c, height, width = images.shape
        parameters = table(draws, self.recipe, c, height, width).to(dtype)
        if images.is_cuda:
            parameters = parameters.pin_memory()
        return parameters.to(images.device, non_blocking=True)


class Views:
    """The views of a batch by one recipe each; two neighbours with equal recipes share a call, which is faster."""

    def __init__(self, recipes: Sequence[Recipe], compiled: bool = False) -> None:
        self.recipes = tuple(recipes)
        self._groups: list[tuple[Augment, int]] = []
        for recipe, same in groupby(self.recipes):
            count = len(list(same))
            sizes = [2] * (count // 2) + [1] * (count % 2)  # more would take more memory for no more speed
            self._groups += [(Augment(recipe, compiled), size) for size in sizes]

    @property
    def notes(self) -> list[str]:
        """Why something is not compiled that should be, as far as is known yet."""
        return list(dict.fromkeys(augment.note for augment, _ in self._groups if augment.note))

    def __call__(
        self, images: Tensor, draws: Sequence[Draws], dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, ...]:
        """V tensors (N, C, S, S) in [0, 1] of images (N, C, H, W), with draws for each view: see :class:`Augment`."""
        views: list[Tensor] = []
        for augment, count in self._groups:
            mine = draws[len(views) : len(views) + count]
            together = augment(images.repeat(count, 1, 1, 1), Draws.joined(mine), dtype)  # (count N, C, S, S)
            views.extend(together.chunk(count))
        return tuple(views)


@cache
def _compiled(recipe: Recipe, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> _Graph:
    """One graph for all streams with this recipe and batches of this shape.

    Its code is an object of its own, because torch counts on the code object how often something is compiled anew, and
    gives up after eight.
    """

    def graph(images: Tensor, parameters: Tensor) -> Tensor:
        return in_one_graph(images, parameters, recipe)

    own = FunctionType(graph.__code__.replace(), graph.__globals__, closure=graph.__closure__)
    compiled: _Graph = torch.compile(own, fullgraph=True, dynamic=False, options=_options())
    return compiled


def _options() -> dict[str, str | int | bool | Callable[..., object]]:
    """Of the compiler: products and sums in one instruction; no check of indices, which are clamped to the image."""
    from torch._inductor.config import cpp  # not at import: it takes long

    contract = "cpp.enable_floating_point_contract_flag"
    takes_a_word = isinstance(cpp.enable_floating_point_contract_flag, str)  # older releases take yes or no
    return {"assert_indirect_indexing": False, contract: "fast" if takes_a_word else True}
