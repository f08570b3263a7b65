"""What is drawn: recipes and what they refuse, and the draws against their distributions."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from augment_inputs import draws_of, source
from torchvision.transforms import RandomResizedCrop

from clf.augment import Draws, Recipe, crop_boxes, simclr_recipe

MANY = 10_000


def test_the_first_rows_are_the_same_whatever_the_number_of_images() -> None:
    recipe = Recipe(size=8, blur=0.5, solarize=0.5)
    few, many = recipe.draw(3, source()), recipe.draw(50, source()).rows(slice(0, 3))
    assert all(torch.equal(getattr(few, name), getattr(many, name)) for name in vars(few))


def test_probabilities_are_met_within_three_sigma() -> None:
    recipe = Recipe(size=8, flip=0.5, jitter=0.8, grayscale=0.2, blur=0.1, solarize=0.35)
    d = draws_of(recipe, MANY)
    for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
        p = getattr(recipe, name)
        assert abs(getattr(d, name).double().mean().item() - p) < 3 * math.sqrt(p * (1 - p) / MANY), name


def test_probability_zero_and_one_are_never_and_always() -> None:
    never = Recipe(size=8, flip=0, jitter=0, grayscale=0, blur=0, solarize=0)
    always = Recipe(size=8, flip=1, jitter=1, grayscale=1, blur=1, solarize=1)
    for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
        assert not getattr(draws_of(never, MANY), name).any()
        assert getattr(draws_of(always, MANY), name).all()


def test_all_orders_of_the_jitter_are_equally_likely() -> None:
    d = draws_of(Recipe(size=8), MANY)
    code = d.order @ torch.tensor([1000, 100, 10, 1])
    p = 1 / 24
    for order in permutations(range(4)):
        share = (code == int("".join(map(str, order)))).double().mean().item()
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / MANY)  # 4 sigma: the largest of 24


def test_factors_are_uniform_in_their_ranges() -> None:
    recipe = Recipe(size=8, brightness=0.4, contrast=1.5, saturation=0, hue=0.1, blur_sigma=(0.5, 1.5))
    d = draws_of(recipe, MANY)
    for values, low, high in [
        (d.factors[:, 0], 0.6, 1.4),
        (d.factors[:, 1], 0.0, 2.5),  # never negative
        (d.factors[:, 2], 1.0, 1.0),
        (d.factors[:, 3], -0.1, 0.1),
        (d.sigma, 0.5, 1.5),
        (d.crop_place[:, 0], 0.0, 1.0),
    ]:
        assert values.min() >= low and values.max() <= high
        assert abs(values.mean().item() - (low + high) / 2) <= 3 * (high - low) / math.sqrt(12 * MANY)


def test_crop_area_is_uniform_and_ratio_log_uniform() -> None:
    recipe = Recipe(size=8, crop_area=(0.1, 0.5))
    boxes = crop_boxes(draws_of(recipe, MANY), 1000, 1000, recipe.crop_ratio).double()
    area = boxes[:, 2] * boxes[:, 3] / 1e6
    ratio = (boxes[:, 3] / boxes[:, 2]).log()
    assert abs(area.mean().item() - 0.3) < 3 * 0.4 / math.sqrt(12 * MANY)
    assert abs(ratio.mean().item()) < 3 * 2 * math.log(4 / 3) / math.sqrt(12 * MANY)
    # whole pixels: each side is off by half a pixel at most
    assert area.min() > 0.099 and area.max() < 0.501 and ratio.abs().max() < math.log(4 / 3) + 0.005


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 61), (61, 20)])
def test_crops_lie_inside_and_follow_torchvisions_distribution(height: int, width: int) -> None:
    recipe = Recipe(size=8)
    top, left, h, w = crop_boxes(draws_of(recipe, 4000), height, width, recipe.crop_ratio).T
    assert (top >= 0).all() and (left >= 0).all() and (h > 0).all() and (w > 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()
    torch.manual_seed(4)
    image = torch.empty(1, height, width)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, list(recipe.crop_area), list(recipe.crop_ratio)) for _ in range(4000)]
    ).double()
    for ours, other in zip((top, left, h, w), theirs.T, strict=True):
        spread = math.sqrt((ours.double().var() + other.var()).item() / 4000)
        assert abs(ours.double().mean() - other.mean()) < 4 * spread


@pytest.mark.parametrize(
    ("height", "width", "box"), [(10, 90, (0, 38, 10, 13)), (90, 10, (38, 0, 13, 10)), (30, 36, (0, 0, 30, 36))]
)
def test_when_nothing_fits_the_largest_central_crop_is_taken(height: int, width: int, box: tuple[int, ...]) -> None:
    d = draws_of(Recipe(size=8, crop_area=(1, 1)), 50)
    stuck = Draws(**{**vars(d), "crop_ratio": torch.full((50, 10), 20.0), "crop_area": torch.full((50, 10), 2.0)})
    assert (crop_boxes(stuck, height, width, (3 / 4, 4 / 3)) == torch.tensor(box)).all()


def test_simclr_recipes() -> None:
    small, large, grey = simclr_recipe(32), simclr_recipe(224), simclr_recipe(64, channels=1)
    assert (small.brightness, small.contrast, small.saturation, small.hue, small.blur) == (0.4, 0.4, 0.4, 0.1, 0)
    assert (large.brightness, large.contrast, large.saturation, large.hue, large.blur) == (0.8, 0.8, 0.8, 0.2, 0.5)
    assert (grey.brightness, grey.contrast, grey.saturation, grey.hue, grey.grayscale) == (0.4, 0.4, 0, 0, 0)
    for recipe in (small, large):
        assert (recipe.crop_area, recipe.crop_ratio) == ((0.08, 1), (3 / 4, 4 / 3))
        assert (recipe.flip, recipe.jitter, recipe.grayscale, recipe.blur_sigma) == (0.5, 0.8, 0.2, (0.1, 2))


def test_overrides_replace_what_is_given() -> None:
    recipe = simclr_recipe(32)
    changed = recipe.with_overrides({"crop_area": [0.3, 1], "flip": None, "blur": 0.5})
    assert changed == Recipe(**{**vars(recipe), "crop_area": (0.3, 1.0), "blur": 0.5})
    assert recipe.with_overrides({}) == recipe
    with pytest.raises(ValueError, match="a recipe has no blurr"):
        recipe.with_overrides({"blurr": 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 1}, "size must be 2"),
        ({"crop_area": (0, 1)}, "crop_area must be two rising"),
        ({"crop_area": (0.5, 0.4)}, "crop_area must be two rising"),
        ({"crop_area": (0.5, 1.2)}, "at most 1"),
        ({"crop_ratio": (2, 1)}, "crop_ratio must be"),
        ({"flip": 1.1}, "flip is a probability"),
        ({"solarize": -0.1}, "solarize is a probability"),
        ({"contrast": -1}, "contrast is a strength"),
        ({"contrast": float("nan")}, "contrast is a strength"),
        ({"hue": 0.6}, "hue is a shift"),
        ({"blur_sigma": (0, 1)}, "blur_sigma must be"),
    ],
)
def test_impossible_recipes_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**{"size": 32, **values})
