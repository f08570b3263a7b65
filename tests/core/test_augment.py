"""Each operation, and the whole recipe, against torchvision's on the same parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision.transforms.v2.functional as oracle
from augment_inputs import LEVEL, PLAIN, draws_of, photos, source
from torch import Tensor
from torchvision.transforms import InterpolationMode

from clf.augment import Augment, Draws, Recipe, crop_boxes, gaussian_blur, simclr_recipe
from clf.augment.colour import blend_, mean_luma, turn_hue
from clf.augment.dense import in_one_graph, table
from clf.augment.resample import crop_taps, resample


def crop_resize(images: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    """As blocks.in_blocks does it."""
    n, c, height, width = images.shape
    out = torch.empty(n, c, size, size)
    resample(images, *crop_taps(boxes.float(), flip.float(), size, height, width), out)
    return out


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 32, 32), (48, 48, 48), (40, 64, 24), (23, 9, 16), (9, 9, 40), (300, 210, 32), (60, 90, 75), (500, 400, 100)],
)
def test_crop_resize_and_flip_are_torchvisions(height: int, width: int, size: int) -> None:
    n = 24
    x = photos(n, height, width)
    d = draws_of(simclr_recipe(size), n)
    boxes = crop_boxes(d, height, width, (3 / 4, 4 / 3))
    found = crop_resize(x, boxes, d.flip, size)
    assert 0 < d.flip.sum() < n
    for i, (top, left, h, w) in enumerate(boxes.tolist()):
        expected = oracle.resized_crop(
            x[i].float() / 255, top, left, h, w, [size, size], InterpolationMode.BICUBIC, antialias=True
        ).clamp(0, 1)  # bicubic overshoots
        expected = oracle.horizontal_flip(expected) if d.flip[i] else expected
        assert (found[i] - expected).abs().max() <= LEVEL / 20


FACTORS = torch.cat([torch.tensor([0.0, 0.2, 1.0, 1.8]), torch.rand(12, generator=source(3)) * 2])[:, None]


def brightness_(x: Tensor) -> None:
    blend_(x, FACTORS)


def contrast_(x: Tensor) -> None:
    blend_(x, FACTORS, None, mean_luma(x) * (1 - FACTORS))


def saturation_(x: Tensor) -> None:
    blend_(x, FACTORS, 1 - FACTORS)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (brightness_, oracle.adjust_brightness),
        (contrast_, oracle.adjust_contrast),
        (saturation_, oracle.adjust_saturation),
    ],
)
def test_each_blend_is_torchvisions(ours: Callable[[Tensor], None], theirs: Callable[[Tensor, float], Tensor]) -> None:
    x = photos(len(FACTORS), 20, 20).float() / 255
    found = x.clone()
    ours(found.flatten(2))
    for i, factor in enumerate(FACTORS[:, 0].tolist()):
        assert (found[i] - theirs(x[i], factor)).abs().max() <= LEVEL / 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_hue_is_torchvisions(dtype: torch.dtype) -> None:
    turns = torch.tensor([-0.5, -0.2, 0.0, 1 / 6, 0.3, 0.5], dtype=dtype)
    x = photos(len(turns), 20, 20).to(dtype) / 255
    found = torch.stack(turn_hue(x.flatten(2).unbind(1), turns[:, None]), 1).view_as(x)
    for i, turn in enumerate(turns.tolist()):
        assert (found[i] - oracle.adjust_hue(x[i], turn)).abs().max() <= LEVEL / 20


def test_hue_worked_by_hand() -> None:
    """A third of a turn takes red to green, a half takes it to cyan; grey has no hue."""
    x = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0.5, 0.5, 0.5]])
    found = torch.cat(turn_hue(x.split(1, 1), torch.tensor([[1 / 3], [0.5], [0.25]])), 1)
    assert torch.allclose(found, torch.tensor([[0.0, 1, 0], [0, 1, 1], [0.5, 0.5, 0.5]]), atol=1e-6)


def test_all_hues_turn_all_the_way_round() -> None:
    """The six pure colours, a sixth of a turn at a time, are each other in turn."""
    wheel = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]]).T.contiguous()  # (3, 6)
    for sixths in range(-3, 4):
        planes = [channel[None] for channel in wheel]
        found = torch.cat(turn_hue(planes, torch.tensor([[sixths / 6]])))
        assert torch.allclose(found, wheel.roll(-sixths, 1), atol=1e-5)


@pytest.mark.parametrize("size", [8, 32, 75, 96])
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


def one_by_one(x: Tensor, box: list[int], d: Draws, i: int, size: int) -> Tensor:
    """Row ``i`` by torchvision's functional operations."""
    y = oracle.resized_crop(x.float() / 255, *box, [size, size], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    y = oracle.horizontal_flip(y) if d.flip[i] else y
    steps = [oracle.adjust_brightness, oracle.adjust_contrast, oracle.adjust_saturation, oracle.adjust_hue]
    for operation in d.order[i].tolist() if d.jitter[i] else []:
        y = steps[operation](y, d.factors[i, operation].item())
    y = oracle.rgb_to_grayscale(y, 3) if d.grayscale[i] else y
    kernel = 2 * max(1, size // 20) + 1
    y = oracle.gaussian_blur(y, [kernel, kernel], [d.sigma[i].item()] * 2) if d.blur[i] else y
    return oracle.solarize(y, 0.5) if d.solarize[i] else y


@pytest.mark.parametrize("form", ["blocks", "one graph"])
@pytest.mark.parametrize(
    ("size", "height", "width", "n"), [(24, 32, 28, 64), (75, 60, 110, 12), (96, 300, 130, 8), (224, 224, 224, 8)]
)
def test_a_whole_recipe_equals_the_operations_one_by_one(form: str, size: int, height: int, width: int, n: int) -> None:
    recipe = Recipe(size=size, grayscale=0.4, blur=0.5, solarize=0.3)
    x = photos(n, height, width)
    d = draws_of(recipe, n)
    if form == "blocks":
        found = Augment(recipe)(x, d)
    else:
        found = in_one_graph(x, table(d, recipe, 3, height, width).float(), recipe)
    boxes = crop_boxes(d, height, width, recipe.crop_ratio).tolist()
    expected = torch.stack([one_by_one(x[i], boxes[i], d, i, size) for i in range(n)])
    assert (found - expected).abs().max() <= LEVEL / 10
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


def test_one_channel_has_brightness_and_contrast_only() -> None:
    recipe = Recipe(size=24, jitter=1, grayscale=1, saturation=0.9, hue=0.5)
    n = 32
    x, d = photos(n, 24, 24, channels=1), draws_of(recipe, n)
    found = Augment(recipe)(x, d)
    assert found.shape == (n, 1, 24, 24)
    boxes = crop_boxes(d, 24, 24, recipe.crop_ratio)
    y = crop_resize(x, boxes, d.flip, 24)
    for i in range(n):
        z = y[i]
        for operation in d.order[i].tolist():
            if operation < 2:
                z = (oracle.adjust_brightness, oracle.adjust_contrast)[operation](z, d.factors[i, operation].item())
        assert (found[i] - z).abs().max() <= LEVEL / 20
