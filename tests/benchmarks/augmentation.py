"""Two SimCLR views of a batch: clf's batched augmentation against torchvision's transforms on PIL images.

    python tests/benchmarks/augmentation.py [--threads 1] [--rounds 9]

Both do the same recipe; the rounds are interleaved, and the ratio of medians is what counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torchvision.transforms import v2

from clf import simclr_recipe
from clf.augment import Augment


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for size, n in ((32, 256), (48, 256), (224, 16)):
        images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)
        pictures = [v2.functional.to_pil_image(image) for image in images]
        recipe = simclr_recipe(size)
        ours = Augment(recipe)
        jitter = v2.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
        steps: list[torch.nn.Module] = [
            v2.RandomResizedCrop(size, recipe.crop_area, recipe.crop_ratio, v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(recipe.flip),
            v2.RandomApply([jitter], recipe.jitter),
            v2.RandomGrayscale(recipe.grayscale),
        ]
        if recipe.blur:
            kernel = round(0.1 * size) // 2 * 2 + 1
            steps.append(v2.RandomApply([v2.GaussianBlur(kernel, recipe.blur_sigma)], recipe.blur))
        theirs = v2.Compose([*steps, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

        def batched(images: torch.Tensor = images, ours: Augment = ours) -> None:
            for view in range(2):
                ours(images, ours.recipe.draw(len(images), torch.Generator().manual_seed(view)))

        def one_by_one(pictures: list[object] = pictures, theirs: v2.Compose = theirs) -> None:
            for _ in range(2):
                torch.stack([theirs(picture) for picture in pictures])

        rounds = [(timed(batched), timed(one_by_one)) for _ in range(options.rounds + 1)][1:]
        a, b = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(
            f"{size:4} px, 2 x {n} views, {options.threads} threads: {a * 1e3:8.1f} ms, torchvision {b * 1e3:8.1f} ms, "
            f"ratio {b / a:.1f}"
        )


if __name__ == "__main__":
    main()
