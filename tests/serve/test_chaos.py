"""Hundreds of requests of every kind to a real server, bad images and rude callers among them; nothing gives way."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from chaos_load import OPTIONS, Load, second_half
from corpus import bad, corpus, good
from PIL import Image
from serve_helpers import Server, encoded, until
from vitals import slope, vitals

from clf import images
from clf.errors import ImageError
from clf_serve.engine import Engine

MIB = 2**20


def test_the_corpus_is_what_it_says() -> None:
    """Every sample, by the decoder alone: refused in words, or decoded to the picture that it must look like."""
    limits, trouble = images.Limits(max_bytes=3 * MIB), []
    for sample in corpus():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                found = images.decode(sample.data, limits)
        except ImageError as error:
            if sample.status == 200:
                trouble.append(f"{sample.name}: {error}")
            continue
        if sample.status != 200:
            trouble.append(f"{sample.name}: was decoded")
        elif sample.looks is not None and not np.array_equal(found, sample.looks):
            trouble.append(f"{sample.name}: looks different")

    assert trouble == []
    assert len(bad()) >= 80 and len(good()) >= 60


def fill_pools(base: str) -> None:
    """Asks for so much at once that the server's pools, whose threads start when they are needed, have all of theirs:
    a thread that starts after that is one too many."""
    client = httpx.Client(base_url=base, trust_env=False, timeout=60)
    with client, ThreadPoolExecutor(32) as us:
        for _ in range(4):
            replies = list(us.map(lambda number: client.get(f"/thumbnails/{1 + number % 20}"), range(200)))
            assert {reply.status_code for reply in replies} == {200}


@pytest.mark.slow
def test_no_load_of_good_and_bad_brings_it_down(
    serve: Callable[..., Server], model: Path, engine: Engine, gallery: Path, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    server = serve(model, "--gallery", gallery, *OPTIONS, env={"TMPDIR": str(temporary)})
    with httpx.Client(base_url=server.base, trust_env=False, timeout=60) as client:
        until(lambda: client.get("/health/ready").status_code == 200)
    load = Load(server.base, server.process.pid)
    load.ask_solo()
    for sample in good():
        pixels = engine.prepare(encoded(sample.looks) if sample.looks else sample.data)
        right = base64.b64encode(engine.embed(pixels[None])[0].tobytes()).decode()
        assert load.solo[sample.name] == right, sample.name
    fill_pools(server.base)
    load.run(100)  # until all threads have met all decoders
    before = vitals(server.process.pid)
    report = load.run(400)

    assert report.wrong == []
    assert report.spoilt > 10 and {kind for kind, _ in report.answers} == {"raw", "form", "json", "left", "cut", "slow"}
    assert not any(status >= 500 for _, status in report.answers)
    with httpx.Client(base_url=server.base, trust_env=False, timeout=60) as client:
        assert client.get("/health/ready").status_code == 200
        counted = client.get("/metrics").text
    assert [line for line in counted.splitlines() if 'status="5' in line and "/health" not in line] == []
    until(lambda: vitals(server.process.pid).files <= before.files)
    assert slope(second_half(report, lambda seen: seen.rss)) < 32 * MIB
    assert slope(second_half(report, lambda seen: seen.threads)) < 1
    assert list(temporary.iterdir()) == []
