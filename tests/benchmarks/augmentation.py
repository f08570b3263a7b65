"""Two SimCLR views of a batch: clf's augmentation against torchvision and kornia, the same recipe for all.

    python tests/benchmarks/augmentation.py [--threads 1] [--rounds 9] [--no-compile]
    python tests/benchmarks/augmentation.py --device cuda

Every round runs all contestants once, in a random order; given are the median of the rounds, their spread (least to
most) and the ratio of the medians to clf's eager form. torchvision has one image at a time, as in a loader's worker:
a PIL image to a float tensor, or tensor to tensor. kornia (not a dependency; ``pip install kornia``) has the batch,
with draws per image, though its crop does not antialias and a batch shares one order of the jitter. On CUDA only clf
and kornia run, on 2 x 256 views of 224 pixels. On a CPU, clf compiles views of up to 64 pixels.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2

from clf.allocator import keep_freed_memory
from clf.augment import Recipe, Views, simclr_recipe

Work = Callable[[], object]


def clf_views(images: Tensor, views: Views) -> Work:
    seeds = iter(range(2**31))

    def work() -> None:
        sources = [torch.Generator().manual_seed(next(seeds)) for _ in views.recipes]
        views(images, [recipe.draw(len(images), s) for recipe, s in zip(views.recipes, sources, strict=True)])

    return work


def blur_kernel(size: int) -> int:
    return 2 * max(1, size // 20) + 1


def torchvision_views(images: Tensor, recipe: Recipe, pil: bool) -> Work:
    size = recipe.size
    inputs = [v2.functional.to_pil_image(image) for image in images] if pil else list(images)
    jitter = v2.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    steps: list[torch.nn.Module] = [
        v2.RandomResizedCrop(size, recipe.crop_area, recipe.crop_ratio, v2.InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(recipe.flip),
        v2.RandomApply([jitter], recipe.jitter),
        v2.RandomGrayscale(recipe.grayscale),
    ]
    if recipe.blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(blur_kernel(size), recipe.blur_sigma)], recipe.blur))
    transform = v2.Compose([*steps, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def work() -> None:
        for _ in range(2):
            torch.stack([transform(image) for image in inputs])

    return work


def kornia_views(images: Tensor, recipe: Recipe) -> Work:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kornia import augmentation as K
    size = recipe.size
    strengths = (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    steps = [
        K.RandomResizedCrop((size, size), recipe.crop_area, recipe.crop_ratio, resample="bicubic"),
        K.RandomHorizontalFlip(p=recipe.flip),
        K.ColorJitter(*strengths, p=recipe.jitter),
        K.RandomGrayscale(p=recipe.grayscale),
    ]
    if recipe.blur:
        kernel = blur_kernel(size)
        steps.append(K.RandomGaussianBlur((kernel, kernel), recipe.blur_sigma, p=recipe.blur))
    transform = torch.nn.Sequential(*steps)

    @torch.no_grad()
    def work() -> None:
        for _ in range(2):
            transform(images.float() / 255)

    return work


def milliseconds(work: Work, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e3


def contestants(images: Tensor, recipe: Recipe, compiled: bool) -> dict[str, Work]:
    works: dict[str, Work] = {"clf eager": clf_views(images, Views([recipe, recipe]))}
    if compiled:
        views = Views([recipe, recipe], compiled=True)
        work = clf_views(images, views)
        work()
        if views.notes:
            print(*views.notes, sep="\n")
        else:
            works["clf compiled"] = work
    if images.device.type == "cpu":
        works["torchvision PIL"] = torchvision_views(images, recipe, pil=True)
        works["torchvision tensor"] = torchvision_views(images, recipe, pil=False)
    if importlib.util.find_spec("kornia"):
        works["kornia"] = kornia_views(images, recipe)
    return works


def compare(size: int, n: int, options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8).to(device)
    works = contestants(images, simclr_recipe(size), not options.no_compile)
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        for _ in range(2):  # compile and warm up
            work()
    order = list(works)
    for _ in range(options.rounds):
        random.shuffle(order)
        for name in order:
            times[name].append(milliseconds(works[name], device))
    base = statistics.median(times["clf eager"])
    print(f"{size} px, 2 x {n} views, {device}, {options.threads} threads")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"  {name:19}{median:9.2f} ms  ({min(values):.2f} .. {max(values):.2f})  x {median / base:6.2f}")
    if "kornia" not in times:
        print("  kornia             not installed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-compile", action="store_true", help="leave out clf's compiled form")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the trainer does, and to the gain of all contestants
    cases = [(224, 256)] if options.device.startswith("cuda") else [(32, 256), (48, 256), (224, 16)]
    for size, n in cases:
        compare(size, n, options)


if __name__ == "__main__":
    main()
