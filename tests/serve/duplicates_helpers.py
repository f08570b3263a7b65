"""Pictures with something to see in them, and galleries of them made without files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from serve_helpers import encoded

from clf import images
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity
from clf_serve.gallery.store import Entry
from clf_serve.sync.thumbnails import thumbnail


def scene(seed: int, width: int = 300, height: int = 220) -> Image.Image:
    """Soft fields of colour with some hard-edged boxes on them."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    picture = soft.resize((width, height), Image.Resampling.BICUBIC)
    for _ in range(8):
        x, y = int(rng.integers(0, width - 40)), int(rng.integers(0, height - 40))
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        picture.paste(colour, (x, y, x + int(rng.integers(10, 40)), y + int(rng.integers(10, 40))))
    return picture


def jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    return encoded(picture, "JPEG", quality=quality)


def fill(folder: Path, engine: Engine, files: Mapping[str, bytes]) -> Gallery:
    """An open gallery of these files, that lie nowhere; ages rise in their order."""
    gallery = Gallery.open_or_create(folder, Identity.of(engine.manifest), engine.folder)
    entries = []
    for age, (name, data) in enumerate(files.items()):
        picture = images.decode(data)
        vector = engine.embed(images.resize(picture, engine.image_size)[None])[0]
        width, height = picture.size
        digest = hashlib.sha256(data).hexdigest()
        entries.append(
            Entry(name, name, vector, thumbnail(picture), len(data), age, digest, width, height, {"seed": age})
        )
    gallery.upsert(entries)
    return gallery
