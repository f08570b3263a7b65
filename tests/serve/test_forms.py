"""Forms as httpx writes them and Starlette reads them; and forms nobody should write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser

from clf_serve.http.forms import read_form
from clf_serve.problems import Problem

LETTERS = st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters='\\"')  # quoted differently
NAMES = st.text(LETTERS, min_size=1, max_size=12)
KIND = "multipart/form-data; boundary=x"
MOST = 99


def part(disposition: str = 'name="a"', content: str = "1") -> bytes:
    return f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{content}\r\n".encode()


@settings(max_examples=40, deadline=None)
@given(files=st.lists(st.tuples(NAMES, st.binary(max_size=99))), fields=st.dictionaries(NAMES, st.text(max_size=20)))
def test_it_reads_what_starlette_reads(files: list[tuple[str, bytes]], fields: dict[str, str]) -> None:
    named = [(name, (f"{index}.png", blob)) for index, (name, blob) in enumerate(files)]
    request = httpx.Request("POST", "http://x", files=named or {"f": ("f", b"1")}, data=fields)
    body, kind = request.read(), request.headers["content-type"]

    async def starlette() -> tuple[list[bytes], dict[str, list[str]]]:
        async def stream() -> AsyncGenerator[bytes, None]:
            yield body

        form = await MultiPartParser(Headers({"content-type": kind}), stream()).parse()
        blobs, texts = [], dict[str, list[str]]()
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                blobs.append(await value.read())
                await value.close()
            else:
                texts.setdefault(name, []).append(value)
        return blobs, texts

    found = read_form(kind, body, MOST)
    assert (found.files, found.fields) == asyncio.run(starlette())
    assert found.files == [blob for _, blob in files] or not files


@given(blob=st.binary(max_size=60).map(lambda blob: blob + b"\r\n--boundary\r\n--x"))
def test_a_file_may_hold_anything_but_the_boundary(blob: bytes) -> None:
    body = b'--xyz\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n' + blob + b"\r\n--xyz--"

    assert read_form("multipart/form-data; boundary=xyz", body, MOST).files == [blob]


def test_a_part_that_says_it_is_an_image_needs_no_file_name() -> None:
    body = b'--x\r\nContent-Type: image/png\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xff\r\n--x--'

    assert read_form(KIND, body, MOST).files == [b"\xff"]


def test_a_preamble_an_epilogue_and_repeated_fields_are_fine() -> None:
    form = read_form(KIND, b"hello\r\n" + part() + part(content="2") + b"--x--\r\nbye", 2)

    assert form.fields == {"a": ["1", "2"]} and form.last() == {"a": "2"}


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("multipart/form-data", part() + b"--x--", "no boundary"),
        (KIND + ';"' * 20_000, part() + b"--x--", "no boundary"),  # reading it would take seconds
        (KIND, b"", "not in the body"),
        (KIND, b"hello", "not in the body"),
        (KIND, b"--x", "new line"),
        (KIND, b"--x junk\r\n", "new line"),
        (KIND, part(), "without its boundary"),
        (KIND, part()[:-4], "without its boundary"),
        (KIND, b"--x\r\nno headers\r\n--x--", "no headers"),
        (KIND, b"--x\r\nA: b\r\n\r\n1\r\n--x--", "no Content-Disposition"),
        (KIND, part("no=name") + b"--x--", "no name"),
        (KIND, b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xff\r\n--x--', "UTF-8"),
        (KIND, b"--x\r\nA: " + b"b" * 3000 + b"\r\n\r\n1\r\n--x--", "too many"),
    ],
)
def test_a_form_that_is_not_one_is_refused(kind: str, body: bytes, words: str) -> None:
    with pytest.raises(Problem) as caught:
        read_form(kind, body, MOST)
    assert caught.value.code == "invalid_form" and words in caught.value.message


@pytest.mark.parametrize("one", [part(), b"--x\r\n"])
def test_a_form_of_countless_parts_is_refused(one: bytes) -> None:
    with pytest.raises(Problem) as caught:
        read_form(KIND, one * (MOST + 1) + b"--x--", MOST)
    assert caught.value.status == 413


@given(body=st.binary(max_size=200))
def test_no_bytes_break_it(body: bytes) -> None:
    for text in (body, b"--x\r\n" + body, part() + body, part() + body + b"\r\n--x--"):
        try:
            read_form(KIND, text, MOST)
        except Problem as problem:
            assert problem.status == 400
