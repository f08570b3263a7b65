"""Known copies and edits of photos, and at which level ``clf duplicates`` finds each:

    python tests/benchmarks/duplicates.py MODEL IMAGES [--photos 200]

MODEL is a folder of ``clf export``, IMAGES any folder of photos. For every kind of edit a gallery is made of all photos
and of the edits of some of them, and the levels are asked for. "wrong" counts images that were grouped with an image of
another photo; what the photos without any edit hold of that is the first row, and listed below the table, because many
collections do hold copies. The last two columns say where the original is to be found: among the candidates by colour,
and above the threshold by vector.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from clf import images
from clf_serve.duplicates.finding import Found, Level, find
from clf_serve.duplicates.pictures import NEARBY, code, look
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity
from clf_serve.gallery.store import Entry
from clf_serve.sync.thumbnails import thumbnail

Edit = Callable[[Image.Image], bytes]


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" and "quality" not in options else {}), **options)
    return buffer.getvalue()


def scaled(image: Image.Image, factor: float) -> Image.Image:
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def cropped(image: Image.Image, share: float, left: float = 0.5, top: float = 0.5) -> Image.Image:
    width, height = (round(side * (1 - share)) for side in image.size)
    x, y = round((image.width - width) * left), round((image.height - height) * top)
    return image.crop((x, y, x + width, y + height))


def marked(image: Image.Image) -> Image.Image:
    """A square of a tenth of the shorter side, black or white, in a corner."""
    image, side = image.copy(), max(4, min(image.size) // 10)
    box = (image.width - side - 4, image.height - side - 4, image.width - 4, image.height - 4)
    bright = np.asarray(image.crop(box)).mean() > 127
    image.paste((0, 0, 0) if bright else (255, 255, 255), box)
    return image


def turned(image: Image.Image) -> bytes:
    """Stored on its side, with the EXIF orientation that sets it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(image.transpose(Image.Transpose.ROTATE_90), exif=exif)


EDITS: dict[str, Edit | None] = {
    "copy of the file": None,
    "JPEG, quality 90": lambda image: encode(image, quality=90),
    "JPEG, quality 75": lambda image: encode(image, quality=75),
    "JPEG, quality 50": lambda image: encode(image, quality=50),
    "JPEG, quality 20": lambda image: encode(image, quality=20),
    "PNG": lambda image: encode(image, "PNG"),
    "WebP, quality 80": lambda image: encode(image, "WEBP", quality=80),
    "EXIF orientation": turned,
    "half the size": lambda image: encode(scaled(image, 0.5)),
    "a quarter of the size": lambda image: encode(scaled(image, 0.25)),
    "twice the size": lambda image: encode(scaled(image, 2)),
    "crop of 1 %": lambda image: encode(cropped(image, 0.01)),
    "crop of 3 %": lambda image: encode(cropped(image, 0.03)),
    "crop of 10 %": lambda image: encode(cropped(image, 0.10)),
    "shifted by 2 %": lambda image: encode(cropped(image, 0.02, left=1, top=0)),
    "brighter by 5 %": lambda image: encode(ImageEnhance.Brightness(image).enhance(1.05)),
    "brighter by 15 %": lambda image: encode(ImageEnhance.Brightness(image).enhance(1.15)),
    "black and white": lambda image: encode(image.convert("L")),
    "a mark in a corner": lambda image: encode(marked(image)),
    "mirrored": lambda image: encode(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "rotated by 90 degrees": lambda image: encode(image.transpose(Image.Transpose.ROTATE_90)),
}


def entries(engine: Engine, files: dict[str, bytes]) -> list[Entry]:
    found = []
    for key, data in files.items():
        picture = images.decode(data)
        vector = engine.embed(images.resize(picture, engine.image_size)[None])[0]
        width, height = picture.size
        digest = hashlib.sha256(data).hexdigest()
        found.append(Entry(key, key, vector, thumbnail(picture), len(data), 0, digest, width, height))
    return found


def edited(path: Path, edit: Edit | None) -> bytes:
    return path.read_bytes() if edit is None else edit(images.decode(path))


def source(key: str) -> str:
    """The photo that an entry shows."""
    return key.partition("|")[0]


def judge(found: Found) -> tuple[Counter[str], Counter[str], list[str]]:
    """Edits by the level at which they are with their photo, images with another photo by level, and which."""
    right: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    which = []
    for group in found.groups:
        levels = {member.file.key: member.level for member in group.others}
        shown = {member.file.key: (member.file.sha256, member.picture) for member in group.others}
        shown[group.keep.key] = group.keep.sha256, group.keep.id
        for key, facts in shown.items():
            if key != source(key) and source(key) in shown:
                same = [one == other for one, other in zip(facts, shown[source(key)], strict=True)]
                right[Level.bytes if same[0] else Level.picture if same[1] else Level.near] += 1
        for key, level in levels.items():
            if source(key) != source(group.keep.key):
                wrong[level] += 1
                which.append(f"{level:8} {group.keep.key}  {key}")
    return right, wrong, which


def row(name: str, found: Found, chosen: int, near: str) -> str:
    right, wrong, _ = judge(found)
    share = [f"{right[level] / chosen:.1%}" if chosen else "" for level in Level]
    return f"| {name} | {' | '.join(share)} | {' | '.join(str(wrong[level]) for level in Level)} | {near} |"


def located(old: dict[str, Entry], new: list[Entry], threshold: float) -> str:
    """Shares of edits whose original is near in colour, and near to the encoder."""
    colour = vector = 0
    for entry in new:
        original = old[source(entry.key)]
        one, other = look(entry.thumbnail), look(original.thumbnail)
        assert one is not None and other is not None
        colour += bool(np.linalg.norm(code(one) - code(other)) <= NEARBY)
        vector += bool(entry.vector @ original.vector >= threshold)
    return f"{colour / len(new):.1%} | {vector / len(new):.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--photos", type=int, default=200, help="of which edits are made")
    parser.add_argument("--threshold", type=float, help="of the near level; derived by default")
    arguments = parser.parse_args()
    engine = Engine(arguments.model, "cpu")
    paths = {str(path.relative_to(arguments.images)): path for path in images.find_images(arguments.images)}
    old = {entry.key: entry for entry in entries(engine, {key: path.read_bytes() for key, path in paths.items()})}
    chosen = random.Random(0).sample(sorted(paths), min(arguments.photos, len(paths)))
    with tempfile.TemporaryDirectory() as folder:
        identity = Identity.of(engine.manifest)
        with Gallery.open_or_create(Path(folder) / "gallery", identity, arguments.model) as gallery:
            gallery.upsert(list(old.values()))
            plain = find(gallery, threshold=arguments.threshold)
            assert plain.near is not None
            print(f"{len(old)} photos, {len(chosen)} of them edited; threshold {plain.near.threshold:.4f}\n")
            print("| edit | same bytes | same picture | near | wrong: bytes | picture | near | by colour | by vector |")
            print("|---|---|---|---|---|---|---|---|---|")
            print(row("none", plain, 0, " | "))
            for name, edit in EDITS.items():
                new = entries(engine, {f"{key}|{name}": edited(paths[key], edit) for key in chosen})
                ids = gallery.upsert(new)
                found = find(gallery, threshold=arguments.threshold)
                assert found.near is not None
                print(row(name, found, len(chosen), located(old, new, found.near.threshold)), flush=True)
                gallery.delete(ids)
    print("\nwithout any edit:", *judge(plain)[2], sep="\n")


if __name__ == "__main__":
    main()
