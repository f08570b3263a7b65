"""Each operation against torchvision's on the same parameters, the draws against their distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import pytest
import torch
import torchvision.transforms.v2.functional as oracle
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from clf import augment
from clf.augment import Augment, Draws, Recipe, crop_boxes, crop_resize, gaussian_blur, simclr_recipe

LEVEL = 1 / 255
MANY = 10_000
PLAIN = Recipe(
    size=24, crop_area=(1, 1), crop_ratio=(1, 1), flip=0, jitter=0, grayscale=0, blur=0, solarize=0
)  # identity but for the resize


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(n: int, height: int, width: int, channels: int = 3) -> Tensor:
    """Random pixels over a gradient, with flat, grey and saturated regions: (n, C, H, W) uint8."""
    x = torch.rand(n, channels, height, width, generator=source(1))
    x = (x + torch.linspace(0, 1, width)) / 2
    x[:, :, :3] = 1.0
    x[:, :, :, :2] = 0.0
    x[:, :, 4:6] = x[:, :1, 4:6]
    return (x * 255).round().to(torch.uint8)


def draws_of(recipe: Recipe, n: int, seed: int = 2) -> Draws:
    return recipe.draw(n, source(seed))


@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 32), (48, 48, 48), (40, 64, 24), (23, 9, 16), (9, 9, 40), (300, 210, 32)]
)
def test_crop_resize_and_flip_are_torchvisions(height: int, width: int, size: int) -> None:
    n = 24
    x = photos(n, height, width)
    d = draws_of(simclr_recipe(size), n)
    boxes = crop_boxes(d, height, width, (3 / 4, 4 / 3))
    found = crop_resize(x, boxes, d.flip, size, torch.float32)
    assert 0 < d.flip.sum() < n
    for i, (top, left, h, w) in enumerate(boxes.tolist()):
        expected = oracle.resized_crop(
            x[i].float() / 255, top, left, h, w, [size, size], InterpolationMode.BICUBIC, antialias=True
        ).clamp(0, 1)  # bicubic overshoots
        expected = oracle.horizontal_flip(expected) if d.flip[i] else expected
        assert (found[i] - expected).abs().max() <= LEVEL / 20


FACTORS = torch.cat([torch.tensor([0.0, 0.2, 1.0, 1.8]), torch.rand(12, generator=source(3)) * 2])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (augment.adjust_brightness_, oracle.adjust_brightness),
        (augment.adjust_contrast_, oracle.adjust_contrast),
        (augment.adjust_saturation_, oracle.adjust_saturation),
        (augment.adjust_hue_, oracle.adjust_hue),
    ],
)
def test_each_colour_operation_is_torchvisions(
    ours: Callable[[Tensor, Tensor], None], theirs: Callable[[Tensor, float], Tensor]
) -> None:
    factors = FACTORS / 2 - 0.5 if theirs is oracle.adjust_hue else FACTORS
    x = photos(16, 20, 28).float() / 255
    found = x.clone()
    ours(found, factors[:, None, None, None])
    for i, factor in enumerate(factors.tolist()):
        assert (found[i] - theirs(x[i], factor)).abs().max() <= LEVEL / 20


def test_hue_worked_by_hand() -> None:
    """A third of a turn takes red to green, a half takes it to cyan; grey has no hue."""
    x = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0.5, 0.5, 0.5]])[:, :, None, None]
    augment.adjust_hue_(x, torch.tensor([1 / 3, 0.5, 0.25])[:, None, None, None])
    assert torch.allclose(x[:, :, 0, 0], torch.tensor([[0.0, 1, 0], [0, 1, 1], [0.5, 0.5, 0.5]]), atol=1e-6)


@pytest.mark.parametrize("size", [8, 32, 96])
def test_blur_is_torchvisions(size: int) -> None:
    x = photos(12, size, size).float() / 255
    sigma = torch.linspace(0.1, 2, 12)
    kernel = 2 * max(1, size // 20) + 1
    found = gaussian_blur(x, sigma)
    for i, s in enumerate(sigma.tolist()):
        assert (found[i] - oracle.gaussian_blur(x[i], [kernel, kernel], [s, s])).abs().max() <= LEVEL / 20


def test_the_blur_kernel_at_224_is_simclrs_23() -> None:
    x = torch.zeros(1, 1, 224, 224)
    x[0, 0, 112, 112] = 1
    row = gaussian_blur(x, torch.tensor([100.0]))[0, 0, 112]
    assert int((row > 0).sum()) == 23


def jitter_one_by_one(x: Tensor, d: Draws, i: int) -> Tensor:
    steps = [oracle.adjust_brightness, oracle.adjust_contrast, oracle.adjust_saturation, oracle.adjust_hue]
    for operation in d.order[i].tolist():
        x = steps[operation](x, d.factors[i, operation].item())
    return x


def test_a_whole_recipe_equals_the_operations_one_by_one() -> None:
    recipe = Recipe(size=24, grayscale=0.4, blur=0.5, solarize=0.3)
    n = 64
    x = photos(n, 32, 28)
    d = draws_of(recipe, n)
    found = Augment(recipe)(x, d)
    boxes = crop_boxes(d, 32, 28, recipe.crop_ratio)
    worst = 0.0
    for i, (top, left, h, w) in enumerate(boxes.tolist()):
        y = x[i].float() / 255
        y = oracle.resized_crop(y, top, left, h, w, [24, 24], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        y = oracle.horizontal_flip(y) if d.flip[i] else y
        y = jitter_one_by_one(y, d, i) if d.jitter[i] else y
        y = oracle.rgb_to_grayscale(y, 3) if d.grayscale[i] else y
        y = oracle.gaussian_blur(y, [3, 3], [d.sigma[i].item()] * 2) if d.blur[i] else y
        near_threshold = ((y - 0.5).abs() < 1e-4) if d.solarize[i] else torch.zeros_like(y, dtype=torch.bool)
        y = oracle.solarize(y, 0.5) if d.solarize[i] else y
        worst = max(worst, (found[i] - y).abs().masked_fill(near_threshold, 0).max().item())
    assert worst <= LEVEL
    assert found.min() >= 0 and found.max() <= 1


def test_the_plain_recipe_returns_the_image() -> None:
    x = photos(5, 24, 24)
    assert torch.equal((Augment(PLAIN)(x, draws_of(PLAIN, 5)) * 255).round().to(torch.uint8), x)


def test_the_plain_recipe_resizes_and_cuts_the_central_square() -> None:
    x = photos(2, 48, 60)
    found = Augment(PLAIN)(x, draws_of(PLAIN, 2))
    square = oracle.center_crop(x.float() / 255, [48, 48])
    expected = oracle.resize(square, [24, 24], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    assert (found - expected).abs().max() <= LEVEL / 20


def test_solarize_inverts_from_one_half_up() -> None:
    recipe = PLAIN.with_overrides({"solarize": 1.0})
    x = torch.arange(24, dtype=torch.uint8).mul(11).expand(1, 3, 24, 24).contiguous()
    found = Augment(recipe)(x, draws_of(recipe, 1))[0, 0, 0] * 255
    expected = [v if v < 127.5 else 255 - v for v in range(0, 264, 11)][:24]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float32), atol=1e-3)


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
    assert area.min() > 0.0995 and area.max() < 0.5005 and ratio.abs().max() < math.log(4 / 3) + 0.005


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


def test_two_views_differ() -> None:
    recipe = simclr_recipe(24)
    x = photos(16, 24, 24)
    g = source(5)
    a, b = (Augment(recipe)(x, recipe.draw(16, g)) for _ in range(2))
    assert ((a - b).abs().amax(dim=(1, 2, 3)) > 0.01).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_depends_on_its_own_image_and_draws_only(dtype: torch.dtype) -> None:
    recipe = Recipe(size=24, blur=0.5, solarize=0.2)
    x = photos(33, 30, 30)
    d = draws_of(recipe, 33)
    apply = Augment(recipe)
    together = apply(x, d, dtype)
    assert together.dtype == dtype
    for parts in (1, 2, 11):
        pieces = [apply(x[i : i + parts], d.rows(slice(i, i + parts)), dtype) for i in range(0, 33, parts)]
        assert torch.equal(torch.cat(pieces), together)
    shuffled = torch.randperm(33, generator=source(6))
    assert torch.equal(apply(x[shuffled], d.rows(shuffled), dtype), together[shuffled])


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


def test_one_channel_has_brightness_and_contrast_only() -> None:
    recipe = Recipe(size=24, jitter=1, grayscale=1, saturation=0.9, hue=0.5)
    n = 32
    x, d = photos(n, 24, 24, channels=1), draws_of(recipe, n)
    found = Augment(recipe)(x, d)
    assert found.shape == (n, 1, 24, 24)
    boxes = crop_boxes(d, 24, 24, recipe.crop_ratio)
    y = crop_resize(x, boxes, d.flip, 24, torch.float32)
    for i in range(n):
        z = y[i]
        for operation in d.order[i].tolist():
            if operation < 2:
                z = (oracle.adjust_brightness, oracle.adjust_contrast)[operation](z, d.factors[i, operation].item())
        assert (found[i] - z).abs().max() <= LEVEL / 20


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


def test_wrong_batches_are_refused() -> None:
    apply, d = Augment(PLAIN), draws_of(PLAIN, 2)
    for images in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 2, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="images must be"):
            apply(images, d)
    with pytest.raises(ValueError, match="3 images need as many draws, got 2"):
        apply(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), d)
