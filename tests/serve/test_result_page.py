"""The page of a search: whole, self-contained and safe to open."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from clf.errors import DataError
from clf_serve.gallery.store import Hit
from clf_serve.report import page, picture, result_page, write_whole

VOID = {"meta", "img", "br", "link"}


class Tags(HTMLParser):
    """Every element and its attributes; what is open at the end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_result_page_needs_nothing_and_believes_nobody() -> None:
    evil = '<script>alert(1)</script>"onerror="x.jpg'
    tags = Tags(result_page(evil, b"query", [(Hit(1, evil, 0.75), b"jpeg"), (Hit(2, "b", 0.5), b"")], evil))

    assert tags.open == [] and "script" not in {tag for tag, _ in tags.seen}
    sources = [attributes["src"] or "" for tag, attributes in tags.seen if tag == "img"]
    assert len(sources) == 2 and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert [a["title"] for tag, a in tags.seen if tag == "span" and "title" in a] == [evil, "b"]
    assert not any(name.startswith("on") for _, attributes in tags.seen for name in attributes)


def test_without_a_thumbnail_there_is_a_blank_field_with_a_name() -> None:
    assert picture(b"", 'a "b"') == '<span class="blank" role="img" aria-label="a &quot;b&quot;"></span>'


def test_a_page_is_light_and_dark() -> None:
    assert "color-scheme: light dark" in page("title", "", "")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    write_whole(target, "first")
    write_whole(target, "second é")

    assert target.read_text(encoding="utf-8") == "second é" and list(tmp_path.iterdir()) == [target]
    with pytest.raises(DataError, match="is a folder"):
        write_whole(tmp_path, "x")
    with pytest.raises(DataError, match=r"the folder .*missing of page.html does not exist"):
        write_whole(tmp_path / "missing" / "page.html", "x")
    with pytest.raises(UnicodeEncodeError):
        write_whole(target, "\ud800")
    assert target.read_text(encoding="utf-8") == "second é" and list(tmp_path.iterdir()) == [target]
