"""The same views however they are computed: alone or together, in blocks of any size, as one graph, compiled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from augment_inputs import PLAIN, draws_of, photos, source

from clf.augment import Augment, Recipe, Views, apply, simclr_recipe
from clf.augment.blocks import in_blocks
from clf.augment.dense import _columns_by_matrix, _columns_by_taps, in_one_graph, table
from clf.augment.resample import crop_taps
from clf.compiling import obstacle

NO_COMPILER = obstacle(torch.device("cpu"))
EVERYTHING = Recipe(size=24, blur=0.5, solarize=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "height", "width"), [(24, 40, 48), (32, 32, 32), (96, 112, 128), (23, 30, 41)])
def test_a_row_depends_on_its_own_image_and_draws_only(size: int, height: int, width: int, dtype: torch.dtype) -> None:
    """Bit for bit where all sides are multiples of 8; otherwise a matrix product goes by where its matrix lies."""
    recipe = EVERYTHING.with_overrides({"size": size})
    x = photos(33, height, width)
    d = draws_of(recipe, 33)
    augment = Augment(recipe)
    together = augment(x, d, dtype)
    assert together.dtype == dtype
    tolerance = 0 if size % 8 == 0 else 100 * torch.finfo(dtype).eps
    for parts in (1, 2, 11):
        pieces = [augment(x[i : i + parts], d.rows(slice(i, i + parts)), dtype) for i in range(0, 33, parts)]
        assert (torch.cat(pieces) - together).abs().max() <= tolerance
    shuffled = torch.randperm(33, generator=source(6))
    assert (augment(x[shuffled], d.rows(shuffled), dtype) - together[shuffled]).abs().max() <= tolerance


@pytest.mark.parametrize("size", [24, 72])
def test_the_size_of_the_blocks_changes_nothing(size: int) -> None:
    recipe = EVERYTHING.with_overrides({"size": size})
    x, d = photos(33, 32, 40), draws_of(recipe, 33)
    whole = in_blocks(x, d, recipe, torch.float32, block=33 * size**2)
    for rows in (1, 4, 16):
        assert torch.equal(in_blocks(x, d, recipe, torch.float32, block=rows * size**2), whole)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"jitter": 0},
        {"hue": 0},
        {"contrast": 0},
        {"brightness": 0, "saturation": 0},
        {"grayscale": 0, "blur": 0, "solarize": 0},
        {"size": 70, "jitter": 1},
    ],
)
def test_blocks_and_one_graph_are_equal_up_to_rounding(changes: dict[str, float], channels: int) -> None:
    recipe = EVERYTHING.with_overrides(changes)
    x, d = photos(48, 31, 40, channels), draws_of(recipe, 48)
    blocks = in_blocks(x, d, recipe, torch.float64)
    graph = in_one_graph(x, table(d, recipe, channels, 31, 40), recipe)
    assert graph.dtype == torch.float64
    assert (blocks - graph).abs().max() < 1e-9


def test_columns_by_taps_and_by_matrix_are_equal() -> None:
    """A GPU takes the one, a CPU the other."""
    boxes = torch.tensor([[0, 3, 20, 30], [5, 0, 9, 8]]).double()
    _, taps = crop_taps(boxes, torch.tensor([0.0, 1.0]).double(), 24, 31, 60)
    x = photos(2, 31, 60).double()
    assert (_columns_by_taps(x, taps) - _columns_by_matrix(x, taps)).abs().max() < 1e-12


@pytest.mark.parametrize("channels", [1, 3])
def test_the_graph_reads_no_value_on_the_host(channels: int) -> None:
    """Meta tensors have no values, so it would fail; they take the way of a GPU."""
    images = photos(4, 31, 40, channels).to("meta")
    parameters = table(draws_of(EVERYTHING, 4), EVERYTHING, channels, 31, 40).float().to("meta")
    assert in_one_graph(images, parameters, EVERYTHING).shape == (4, channels, 24, 24)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # which a reset leaves, of what other tests have compiled
    apply._compiled.cache_clear()
    yield
    torch._dynamo.reset()
    apply._compiled.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(NO_COMPILER is not None, reason=str(NO_COMPILER))
def test_compiled_is_eager_up_to_rounding_and_compiles_once(fresh_compiler: None) -> None:
    recipe = EVERYTHING
    eager, compiled = Augment(recipe), Augment(recipe, compiled=True)
    x = photos(32, 30, 30)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(4):
            images, d = x.roll(seed, 0), draws_of(recipe, 32, seed)
            found = compiled(images, d)
            assert (found - eager(images, d)).abs().max() < 1e-5
            assert torch.equal(compiled(images, d), found)
        few = draws_of(recipe, 5)
        assert torch.equal(compiled(x[:5], few), eager(x[:5], few))  # another size runs eagerly
        assert torch.equal(Augment(recipe, compiled=True)(images, d), found)  # the second view uses the same graph
        larger = draws_of(recipe, 8)
        assert (Augment(recipe, compiled=True)(x[:8], larger) - eager(x[:8], larger)).abs().max() < 1e-5  # its own code
    assert compiled.note is None
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one for each size of batch
    assert not torch._dynamo.utils.counters["graph_break"]


def test_without_a_compiler_it_runs_eagerly_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "obstacle", lambda device: "there is no C++ compiler (g++)")
    x, d = photos(6, 30, 30), draws_of(EVERYTHING, 6)
    augment = Augment(EVERYTHING, compiled=True)
    assert torch.equal(augment(x, d), Augment(EVERYTHING)(x, d))
    assert augment.note == "augmentation is not compiled, for there is no C++ compiler (g++)"


def test_large_views_on_a_cpu_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "obstacle", lambda device: None)
    recipe = EVERYTHING.with_overrides({"size": 72})
    augment = Augment(recipe, compiled=True)
    augment(photos(2, 30, 30), draws_of(recipe, 2))
    assert augment.note == "augmentation is not compiled, for above 64 pixels a CPU is faster without"


def test_a_compiler_that_fails_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*shape: object) -> object:
        raise RuntimeError("g++ ended with 1\nlong output")

    monkeypatch.setattr(apply, "obstacle", lambda device: None)
    monkeypatch.setattr(apply, "_compiled", broken)
    x, d = photos(6, 30, 30), draws_of(EVERYTHING, 6)
    augment = Augment(EVERYTHING, compiled=True)
    assert torch.equal(augment(x, d), Augment(EVERYTHING)(x, d))
    assert augment.note == "augmentation is not compiled, for RuntimeError: g++ ended with 1"


def test_float64_and_float32_agree_and_nothing_is_rounded_between() -> None:
    recipe = Recipe(size=24, blur=0.5)
    x = photos(20, 30, 30)
    d = draws_of(recipe, 20)
    exact = Augment(recipe)(x, d, torch.float64)
    assert (Augment(recipe)(x, d).double() - exact).abs().max() < 1e-4
    assert (exact.float().double() != exact).any()


def test_autocast_does_not_coarsen_the_pixels() -> None:
    recipe = simclr_recipe(24)
    x, d = photos(8, 24, 24), draws_of(simclr_recipe(24), 8)
    plain = Augment(recipe)(x, d)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Augment(recipe)(x, d), plain)


def test_the_images_are_left_as_they_were() -> None:
    x = photos(8, 24, 24)
    before = x.clone()
    Augment(Recipe(size=24, solarize=1))(x, draws_of(Recipe(size=24, solarize=1), 8))
    assert torch.equal(x, before)


def test_wrong_batches_are_refused() -> None:
    apply, d = Augment(PLAIN), draws_of(PLAIN, 2)
    for images in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 2, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="images must be"):
            apply(images, d)
    with pytest.raises(ValueError, match="3 images need as many draws, got 2"):
        apply(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), d)


def test_two_views_differ() -> None:
    recipe = simclr_recipe(24)
    x = photos(16, 24, 24)
    g = source(5)
    a, b = (Augment(recipe)(x, recipe.draw(16, g)) for _ in range(2))
    assert ((a - b).abs().amax(dim=(1, 2, 3)) > 0.01).all()


def test_views_are_those_of_each_recipe_alone_whichever_share_a_call() -> None:
    small, large = Recipe(size=16, solarize=0.5), Recipe(size=24, blur=0.5)
    recipes = [large, large, small, large]
    x = photos(6, 32, 32)
    draws = [draws_of(recipe, 6, seed) for seed, recipe in enumerate(recipes)]
    found = Views(recipes)(x, draws)
    for view, recipe, d in zip(found, recipes, draws, strict=True):
        assert torch.equal(view, Augment(recipe)(x, d))


def test_a_note_says_once_why_views_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clf.augment.apply.obstacle", lambda device: "there is no C++ compiler")
    recipe = Recipe(size=16)
    views = Views([recipe, recipe, Recipe(size=24)], compiled=True)
    assert views.notes == []
    views(photos(4, 16, 16), [draws_of(recipe, 4)] * 3)
    assert views.notes == ["augmentation is not compiled, for there is no C++ compiler"]
