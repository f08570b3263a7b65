"""Metadata from a file beside the images, and from the photos themselves."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image
from serve_helpers import picture, write_pictures

from clf.errors import DataError, MissingExtraError
from clf_serve.engine import Engine
from clf_serve.gallery import Gallery, Identity, Where
from clf_serve.sync.exif import photo_facts
from clf_serve.sync.indexing import IndexReport, Settings, index_images
from clf_serve.sync.sidecar import read_sidecar


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    write_pictures(folder, 3)
    write_pictures(folder / "sub", 2, first=10)
    return folder


def index(gallery: Path, engine: Engine, photos: Path, **options: Any) -> IndexReport:
    with Gallery.open_or_create(gallery, Identity.of(engine.manifest), engine.folder) as opened:
        return index_images(opened, engine, photos, Settings(**options))


def described(gallery: Path) -> dict[str, dict[str, Any]]:
    with Gallery(gallery) as opened:
        return {Path(item.uri).name: item.metadata for item in opened.page(limit=100)}


def test_a_csv_gives_numbers_where_all_cells_are_numbers(tmp_path: Path, engine: Engine, photos: Path) -> None:
    table = tmp_path / "m.csv"
    table.write_text(
        "file,year,weight,code,seen,label\n"
        '0000.png,2020,1.5,007,true,"a, b"\n'
        "./0001.png,-3,2,010,False,\n"
        f"{photos}/sub/0010.png,,1e3,1,,ü\n"
        "sub/none.png,1,1,1,true,x\n",
        encoding="utf-8",
    )

    report = index(tmp_path / "g", engine, photos, metadata=table)

    assert report.added == 5 and report.described == 0 and report.unmatched == ["sub/none.png"]
    assert described(tmp_path / "g") == {
        "0000.png": {"year": 2020, "weight": 1.5, "code": "007", "seen": True, "label": "a, b"},
        "0001.png": {"year": -3, "weight": 2.0, "code": "010", "seen": False},
        "0002.png": {},
        "0010.png": {"weight": 1000.0, "code": "1", "label": "ü"},
        "0011.png": {},
    }
    with Gallery(tmp_path / "g") as opened:
        assert opened.count(Where.parse({"year": {"$gte": 2000}, "seen": True})) == 1
        assert opened.count(Where.parse({"@folder": "sub"})) == 2


def test_metadata_of_unchanged_files_changes_without_embedding(
    tmp_path: Path, engine: Engine, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(tmp_path / "g", engine, photos)
    table = tmp_path / "m.jsonl"
    table.write_text('{"file": "0000.png", "a": 1, "b": [1, {"c": null}]}\n\n{"file": "sub/0010.png", "a": 2}\n')

    def no_model() -> Engine:
        raise AssertionError("nothing is to be embedded")

    def again() -> int:
        with Gallery(tmp_path / "g", write=True) as opened:
            return index_images(opened, no_model, photos, Settings(metadata=table)).described

    assert again() == 2
    assert described(tmp_path / "g")["0000.png"] == {"a": 1, "b": [1, {"c": None}]}
    assert again() == 0  # and nothing is written
    table.write_text('{"file": "0000.png", "a": null, "d": 4}')
    assert again() == 1
    assert described(tmp_path / "g")["0000.png"] == {"b": [1, {"c": None}], "d": 4}
    assert described(tmp_path / "g")["0010.png"] == {"a": 2}


def test_json_tsv_and_parquet(tmp_path: Path, engine: Engine, photos: Path) -> None:
    import datetime
    import decimal

    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "m.json").write_text(json.dumps([{"file_name": "0000.png", "a": 1.0}]))
    (tmp_path / "m.tsv").write_text("file\ta b\n0001.png\t5\n")
    rows = {
        "file": ["0002.png"],
        "n": [7],
        "day": [datetime.date(2024, 2, 29)],
        "price": [decimal.Decimal("1.25")],
        "nan": [float("nan")],
        "tags": [["x", "y"]],
    }
    parquet.write_table(pyarrow.table(rows), tmp_path / "m.parquet")

    for name in ("m.json", "m.tsv", "m.parquet"):
        index(tmp_path / "g", engine, photos, metadata=tmp_path / name)

    found = described(tmp_path / "g")
    assert found["0000.png"] == {"a": 1.0} and found["0001.png"] == {"a b": 5}
    assert found["0002.png"] == {"n": 7, "day": "2024-02-29", "price": 1.25, "tags": ["x", "y"]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.xls", "", r"must end in one of \.csv"),
        ("m.csv", "file,a\nx,1,2\n", "line 2: 3 cells, and the first line names 2 columns"),
        ("m.csv", "file,a,a\nx,1,2\n", "two columns have the same name"),
        ("m.csv", "file,a\nx,1\n./x,2\n", "line 3: x has a row already"),
        ("m.csv", "file,@id\nx,1\n", "not beginning with @"),
        ("m.csv", 'file,a\n"x,1\n', "line 2"),
        ("m.csv", "file,a\n,1\n", "'file' must be the path of an image"),
        ("m.csv", b"file,a\n\xff,1\n", "is not UTF-8"),
        ("m.jsonl", '{"file": "x"}\n[1]\n', "line 2: expected an object"),
        ("m.jsonl", '{"file": 3}\n', "'file' must be the path of an image"),
        ("m.jsonl", '{"file": "x"\n', "line 1: not JSON"),
        ("m.csv", "name,a\n", "line 1: there is no column 'file' .* the columns are: name, a"),
        ("m.csv", "", "line 1: there is no column 'file' .* the columns are: none"),
        ("m.csv", "file,a\nx,1\ny,\0\n", r"m\.csv, line 3: metadata\.a: the text holds a NUL"),
        ("m.jsonl", '{"file": "x", "a": 18446744073709551616}\n', r"line 1: metadata\.a: .* 64 bits"),
        ("m.jsonl", '{"file": "x", "a": ' + "[" * 700 + "]" * 700 + "}", "line 1: "),
        ("m.json", "{}", "must hold a list of objects"),
        ("m.json", "[" * 100_000, "not JSON"),
        ("m.parquet", "PAR1", "is no parquet file, or a damaged one"),
        ("none.csv", None, "none.csv cannot be read: No such file"),
    ],
)
def test_a_metadata_file_that_cannot_be_used_changes_nothing(
    tmp_path: Path, engine: Engine, photos: Path, name: str, text: str | bytes | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)

    with pytest.raises(DataError, match=message):
        index(tmp_path / "g", engine, photos, metadata=tmp_path / name)
    with Gallery(tmp_path / "g") as opened:
        assert len(opened) == 0


def test_large_whole_numbers_stay_text(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"file,a,b,c\nx,{2**63},{2**63 - 1},{'9' * 5000}\ny,1,1,1\n")

    sidecar = read_sidecar(tmp_path / "m.csv", tmp_path)

    assert sidecar is not None and sidecar.rows["x"] == {"a": float(2**63), "b": 2**63 - 1, "c": "9" * 5000}


def test_a_missing_pyarrow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "m.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"clf-vision\[parquet\]"):
        read_sidecar(tmp_path / "m.parquet", tmp_path)


def photo(**tags: Any) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = tags.get("make", "Acme")
    exif[ExifTags.Base.Model] = tags.get("model", "ACME Z1\0")
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.DateTimeOriginal] = tags.get("taken", "2023:05:01 12:30:00")
    if "offset" in tags:
        details[ExifTags.Base.OffsetTimeOriginal] = tags["offset"]
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps[ExifTags.GPS.GPSLatitudeRef], gps[ExifTags.GPS.GPSLatitude] = "S", (33.0, 30.0, 36.0)
    gps[ExifTags.GPS.GPSLongitudeRef], gps[ExifTags.GPS.GPSLongitude] = "E", (18.0, tags.get("minutes", 15.0), 0.0)
    buffer = io.BytesIO()
    picture(1).save(buffer, tags.get("kind", "JPEG"), exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photo_says_when_and_by_what_it_was_taken(kind: str) -> None:
    assert photo_facts(photo(kind=kind)) == {"taken": "2023-05-01T12:30:00", "camera": "ACME Z1"}


def test_places_are_told_only_when_asked_for() -> None:
    facts = photo_facts(photo(make="Other", offset="+02:00"), places=True)
    assert facts == {
        "taken": "2023-05-01T12:30:00+02:00",
        "camera": "Other ACME Z1",
        "latitude": -33.51,
        "longitude": 18.25,
    }


@pytest.mark.parametrize(
    "data", [b"", b"no image", photo()[:40], photo(taken="0000:00:00 00:00:00", make="", model="", minutes=0.0)]
)
def test_a_photo_that_says_nothing(data: bytes) -> None:
    assert photo_facts(data) == {}


def test_exif_becomes_metadata_and_follows_the_file(tmp_path: Path, engine: Engine, photos: Path) -> None:
    (photos / "photo.jpg").write_bytes(photo())
    (photos / "twin.jpg").write_bytes(photo())
    (tmp_path / "m.csv").write_text("file,label\nphoto.jpg,cat\n")
    index(tmp_path / "g", engine, photos, exif=True, metadata=tmp_path / "m.csv")
    found = described(tmp_path / "g")
    assert found["photo.jpg"] == {"taken": "2023-05-01T12:30:00", "camera": "ACME Z1", "label": "cat"}
    assert found["twin.jpg"] == {"taken": "2023-05-01T12:30:00", "camera": "ACME Z1"} and found["0000.png"] == {}

    picture(5).save(photos / "photo.jpg")
    assert index(tmp_path / "g", engine, photos, exif=True).updated == 1
    assert described(tmp_path / "g")["photo.jpg"] == {"label": "cat"}  # not the other picture's camera


def test_a_single_image_is_described_by_its_name_or_path(tmp_path: Path, engine: Engine, photos: Path) -> None:
    image = photos / "0000.png"
    for name, value in (("0000.png", 1), (str(image), 2)):
        (tmp_path / "m.csv").write_text(f"file,a\n{name},{value}\n")
        report = index(tmp_path / "g", engine, image, metadata=tmp_path / "m.csv")
        assert report.unmatched == [] and described(tmp_path / "g") == {"0000.png": {"a": value}}
