"""What the search tab shows, as HTML. Every text from outside is escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import PurePath
from typing import Any

from clf_serve.background import percent, words
from clf_serve.gallery.store import Hit, Item


@dataclass(frozen=True)
class Links:
    """Addresses of one gallery's images, not escaped."""

    picture: Callable[[Hit | Item], str]
    """The thumbnail."""
    search: Callable[[int], str]
    """A search from the image of this id."""


def cards(groups: Sequence[Sequence[Hit]], shares: Mapping[int, float], links: Links, first: int) -> str:
    """A list of results, best first.

    Args:
        groups: near duplicates together, the best of each first.
        shares: by id, the share of random pairs that are less alike; may be empty.
        first: the rank of the first, from 1.
    """
    items = []
    for rank, group in enumerate(groups, first):
        items.append(_card(group[0], rank, shares.get(group[0].id), links, alike=len(group) - 1))
        items += [_card(hit, rank, shares.get(hit.id), links, under=group[0].id) for hit in group[1:]]
    return f'<ol class="clf-grid" aria-label="Results, the most alike first">{"".join(items)}</ol>'


def _card(hit: Hit, rank: int, share: float | None, links: Links, *, alike: int = 0, under: int | None = None) -> str:
    name = escape(PurePath(hit.uri).name)
    closer = f'<span class="clf-closer">closer than {percent(share)}</span>' if share is not None else ""
    folder = f'<span class="clf-folder">{escape(hit.folder)}</span>' if hit.folder else ""
    fold = (
        f'<button type="button" class="clf-alike" data-alike="{hit.id}" aria-expanded="false">+{alike} alike</button>'
        if alike
        else ""
    )
    hidden = f' hidden data-under="{under}"' if under is not None else ""
    return (
        f'<li{hidden}><article class="clf-card" data-id="{hit.id}" data-uri="{escape(hit.uri)}"'
        f' aria-label="{_spoken(hit, rank, share)}" tabindex="-1">'
        f'<div class="clf-frame"><a class="clf-picture" href="{escape(links.search(hit.id))}" data-search="{hit.id}"'
        f' tabindex="-1" title="Search from this"><img src="{escape(links.picture(hit))}" alt="{name}" loading="lazy"'
        f' decoding="async"></a>{fold}{_actions(hit.id, name)}</div>'
        f'<div class="clf-facts"><div class="clf-score"><b>{hit.score:.3f}</b>{closer}</div>'
        f'<i class="clf-bar" style="--share:{max(0.0, min(1.0, hit.score)):.3f}"></i>'
        f'<div class="clf-name">{name}</div>{folder}</div></article></li>'
    )


def _actions(id_: int, name: str) -> str:
    def button(kind: str, sign: str, label: str) -> str:
        return (
            f'<button type="button" data-{kind}="{id_}" tabindex="-1" title="{label}"'
            f' aria-label="{label}: {name}">{sign}</button>'
        )

    more, less = button("more", "+", "More like this"), button("less", "−", "Less like this")
    return f'<div class="clf-actions">{more}{less}{button("open", "Details", "Details")}</div>'


def _spoken(hit: Hit, rank: int, share: float | None) -> str:
    parts = [f"{rank}. {hit.uri}", f"score {hit.score:.3f}"]
    if share is not None:
        parts.append(words(share))
    return escape(", ".join(parts))


def details(item: Item, url: str) -> str:
    """One image with all that is known of it, for the dialog."""
    facts = {
        "Path": item.uri,
        "Folder": item.folder,
        "Size": f"{item.width} × {item.height} pixels" if item.width else "",
        "File": _bytes(item.size) if item.size else "",
        "Changed": _day(item.mtime_ns) if item.mtime_ns else "",
        "Number": str(item.id),
        "SHA-256": item.sha256,
    }
    rows = "".join(_row(name, value) for name, value in facts.items() if value)
    more = "".join(_row(name, _plain(value)) for name, value in _flat(item.metadata))
    metadata = f"<h3>Metadata</h3><dl>{more}</dl>" if more else ""
    return (
        f'<div class="clf-large"><img src="{escape(url)}" alt="{escape(item.uri)}"></div>'
        f'<div class="clf-all"><h2 id="clf-details-title">{escape(PurePath(item.uri).name)}</h2>'
        f"<dl>{rows}</dl>{metadata}</div>"
    )


def _row(name: str, value: str) -> str:
    return f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"


def _flat(metadata: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names, as filters use them, with what they hold."""
    for name, value in metadata.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _plain(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(each, str | int | float) for each in value):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB" if size >= 1000 else f"{size} bytes"


def _day(mtime_ns: int) -> str:
    try:
        return datetime.fromtimestamp(mtime_ns / 1e9).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, OSError, ValueError):  # a file system may say anything
        return ""


def message(title: str, text: str) -> str:
    """What stands where results would, when there are none."""
    return f'<div class="clf-message"><h2>{escape(title)}</h2><p>{escape(text)}</p></div>'


def samples(items: Sequence[Item], links: Links) -> str:
    """Pictures of the gallery to start from."""
    if not items:
        return ""
    pictures = "".join(
        f'<a href="{escape(links.search(item.id))}" data-search="{item.id}"'
        f' aria-label="Search from {escape(item.uri)}">'
        f'<img src="{escape(links.picture(item))}" alt="" loading="lazy" decoding="async"></a>'
        for item in items
    )
    return f'<section class="clf-samples"><h2>Start from one of these</h2><div>{pictures}</div></section>'
