"""Which images of a gallery are duplicates, at which level, and what would be kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from duplicates_helpers import fill, jpeg, scene
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageEnhance
from serve_helpers import encoded

from clf_serve.duplicates.finding import Found, Level, Progress, default_threshold, find, fold
from clf_serve.duplicates.groups import File, Pictures
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Where
from clf_serve.gallery.store import Entry, Hit


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[Gallery]:
    """Forty scenes; of the first three there are copies, encodings and edits."""
    files = {f"{seed}.jpg": jpeg(scene(seed)) for seed in range(40)}
    files |= {"0 copy.jpg": jpeg(scene(0)), "0 again.jpg": jpeg(scene(0))}
    files |= {
        "1 copy.jpg": jpeg(scene(1)),
        "1 large.jpg": jpeg(scene(1).resize((600, 440))),
        "1.png": encoded(scene(1)),
    }
    files["2.jpg"] = jpeg(scene(2), 97)
    bright = ImageEnhance.Brightness(scene(2)).enhance(1.15)
    files |= {"2 bright.jpg": jpeg(bright), "2 bright small.jpg": jpeg(bright.resize((150, 110)))}
    with fill(tmp_path_factory.mktemp("shelf") / "gallery", engine, files) as gallery:
        yield gallery


def names(found: Found) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(g.keep.uri, sorted((m.file.uri, m.level.value) for m in g.others)) for g in found.groups]


COPIES = ("0.jpg", [("0 again.jpg", "bytes"), ("0 copy.jpg", "bytes")])
VERSIONS = ("1 large.jpg", [("1 copy.jpg", "picture"), ("1.jpg", "picture"), ("1.png", "picture")])
EDITS = ("2.jpg", [("2 bright small.jpg", "near"), ("2 bright.jpg", "near")])


def test_each_pair_is_in_the_strongest_level_that_holds(shelf: Gallery) -> None:
    found = find(shelf, threshold=0.999)

    assert found.images == 47
    assert [group for group in names(found) if group[0][0] in "012" and "." in group[0][1:]] == [
        COPIES,
        VERSIONS,
        EDITS,
    ]
    assert [group.level for group in found.groups][:2] == [Level.bytes, Level.picture]


def test_members_of_one_picture_say_so(shelf: Gallery) -> None:
    edits = next(group for group in find(shelf, threshold=0.999).groups if group.keep.uri == "2.jpg")

    assert len({member.picture for member in edits.others}) == 1 and edits.others[0].picture != edits.keep.id
    assert len({member.cosine for member in edits.others}) == 1
    vectors = shelf.vectors([edits.keep.id, edits.others[0].picture])
    assert edits.others[0].cosine == pytest.approx(float(vectors[0] @ vectors[1]))


def test_a_level_goes_as_far_as_it_says(shelf: Gallery) -> None:
    bytes_only, pictures = find(shelf, Level.bytes), find(shelf, Level.picture)

    assert names(bytes_only) == [COPIES, ("1.jpg", [("1 copy.jpg", "bytes")])] and bytes_only.near is None
    small = ("2 bright.jpg", [("2 bright small.jpg", "picture")])
    assert names(pictures) == [COPIES, VERSIONS, small]


def test_what_is_freed_is_all_but_the_largest(shelf: Gallery) -> None:
    found = find(shelf, Level.picture)
    sizes = {item.uri: item.size for item in shelf.page(limit=100)}

    assert found.freed(Level.bytes) == 2 * sizes["0.jpg"] + sizes["1.jpg"]
    assert found.groups[1].freed == 2 * sizes["1.jpg"] + sizes["1.png"]


def test_what_could_go_at_a_level_does_not_depend_on_how_far_one_goes(shelf: Gallery) -> None:
    far, near = find(shelf, Level.picture), find(shelf, threshold=0.9)  # most scenes are in near groups here

    for level in (Level.bytes, Level.picture):
        assert {member.file.uri for member in near.others(level)} == {member.file.uri for member in far.others(level)}
    assert [member.file.uri for member in near.others(Level.bytes)].count("1 copy.jpg") == 1


def test_a_filter_narrows_what_is_looked_at(shelf: Gallery) -> None:
    found = find(shelf, Level.near, threshold=0.999, where=Where.parse({"@uri": {"$prefix": "1"}}))

    assert found.images == 14  # 1, 10 to 19, and three versions
    assert VERSIONS in names(found) and COPIES not in names(found)


def test_the_report_of_the_threshold(shelf: Gallery) -> None:
    near = find(shelf, threshold=0.99).near
    assert near is not None and near.given and not near.derived and near.threshold == 0.99

    assert near.same is not None and near.same.pairs == 4 and near.same.low > 0.999
    assert [step.cosine for step in near.steps] == sorted((step.cosine for step in near.steps), reverse=True)
    assert [step.pairs for step in near.steps] == sorted(step.pairs for step in near.steps)
    assert all(example.cosine >= 0.99 for example in near.above)
    assert near.below and all(example.cosine < 0.99 for example in near.below)
    assert near.below[0].cosine == max(example.cosine for example in near.below)
    for step in near.steps:
        assert all(example.cosine >= step.cosine for example in step.examples)


def test_the_default_threshold_is_derived(shelf: Gallery, tmp_path: Path, engine: Engine) -> None:
    near = find(shelf).near

    assert near is not None and near.derived and 0.9 < near.threshold < 1
    assert near.threshold in [step.cosine for step in near.steps]
    assert default_threshold(shelf) == pytest.approx(near.threshold, abs=0.02)  # copies are still in that one
    with fill(tmp_path / "few", engine, {f"{seed}.jpg": jpeg(scene(seed)) for seed in range(3)}) as few:
        assert default_threshold(few) == 0.95
        found = find(few)
        assert found.near is not None and found.near.threshold == 0.95 and not found.near.derived


def test_small_galleries(tmp_path: Path, engine: Engine) -> None:
    with fill(tmp_path / "none", engine, {}) as none:
        assert find(none) == Found(0, ()) and default_threshold(none) == 0.95
    with fill(tmp_path / "one", engine, {"a": jpeg(scene(0)), "b": jpeg(scene(0))}) as one:
        assert names(find(one)) == [("a", [("b", "bytes")])]


def test_vectors_without_pictures_can_be_near(tmp_path: Path, engine: Engine) -> None:
    with fill(tmp_path / "gallery", engine, {f"{seed}.jpg": jpeg(scene(seed)) for seed in range(5)}) as gallery:
        vector = gallery.vectors(gallery.ids().tolist())[0]
        gallery.upsert([Entry("bare", "bare", vector), Entry("bare too", "bare too", vector)])

        groups = {member.file.uri: member.level for member in find(gallery, threshold=0.9999).groups[0].others}

    assert groups == {"bare": Level.near, "bare too": Level.near}  # nobody knows their bytes


def test_progress_reaches_what_it_announced(shelf: Gallery) -> None:
    announced: dict[str, int] = {}
    done: dict[str, int] = {}

    def begin(stage: str, total: int, unit: str) -> None:
        announced[stage] = total
        done[stage] = 0

    def advance(count: int) -> None:
        done[list(done)[-1]] += count

    find(shelf, progress=Progress(begin, advance))

    assert list(announced) == ["reading", "looking at pictures", "comparing pictures", "comparing vectors"]
    assert done == announced


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.01, float("nan")])
def test_a_threshold_is_a_cosine(shelf: Gallery, threshold: float) -> None:
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        find(shelf, threshold=threshold)


def test_of_equals_the_largest_then_the_heaviest_then_the_oldest_is_kept() -> None:
    def file(id_: int, width: int, size: int, age: int) -> File:
        return File(id_, str(id_), str(id_), "same", width, 10, size, age)

    files = [file(1, 10, 500, 1), file(2, 20, 100, 9), file(3, 20, 200, 5), file(4, 20, 200, 4)]
    pictures = Pictures(files)
    pictures.join(list(pictures.same_bytes()))

    (group,) = pictures.groups({})
    assert [group.keep.id, *(member.file.id for member in group.others)] == [4, 3, 2, 1]


def hits(n: int) -> list[Hit]:
    return [Hit(position, str(position), 1 - position / 100) for position in range(n)]


def test_results_are_folded_under_the_best_of_them() -> None:
    degrees = np.radians([0, 40, 5, 44, 41, 90])
    vectors = np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)

    folded = fold(hits(6), vectors, ["a", "b", "c", "d", "", "a"], float(np.cos(np.radians(6))))

    assert folded == [[0, 2, 5], [1, 3, 4]]
    assert fold([], np.empty((0, 2), np.float32), [], 0.9) == []
    assert fold(hits(2), vectors[[0, 5]], ["", ""], 0.9) == [[0], [1]]


@given(st.integers(0, 12), st.floats(0.1, 0.99), st.integers(0, 999))
def test_what_is_folded_resembles_what_is_shown(n: int, threshold: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    digests = [str(number) for number in rng.integers(0, 6, n)]

    folded = fold(hits(n), vectors, digests, threshold)

    assert sorted(position for group in folded for position in group) == list(range(n))
    leads = [group[0] for group in folded]
    assert leads == sorted(leads)
    for lead, *rest in folded:
        for position in rest:
            assert position > lead
            assert digests[position] == digests[lead] or vectors[position] @ vectors[lead] >= threshold - 1e-6
    for one in range(len(leads)):
        for other in range(one):
            assert digests[leads[one]] != digests[leads[other]]
            assert vectors[leads[one]] @ vectors[leads[other]] < threshold + 1e-6


@pytest.mark.parametrize("threshold", [0.2, 0.6, 0.9])
def test_long_results_are_folded_as_one_by_one(threshold: float) -> None:
    """And the first of them as they are alone, or a page would show what another has folded away."""
    rng = np.random.default_rng(7)
    n = 500
    vectors = np.repeat(rng.standard_normal((n // 4, 6)), 4, axis=0) + 0.3 * rng.standard_normal((n, 6))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[rng.permutation(n)].astype(np.float32)
    digests = ["" if number < 200 else str(number) for number in rng.integers(0, 600, n)]

    expected: list[list[int]] = []
    for place in range(n):
        for group in expected:
            same = digests[place] and digests[place] == digests[group[0]]
            if same or vectors[place] @ vectors[group[0]] >= threshold:
                group.append(place)
                break
        else:
            expected.append([place])

    assert fold(hits(n), vectors, digests, threshold) == expected
    for part in (1, 63, 64, 65, 130, 333):
        shorter = [[place for place in group if place < part] for group in expected if group[0] < part]
        assert fold(hits(part), vectors[:part], digests[:part], threshold) == shorter
