"""Duplicates as one HTML file that needs nothing else: groups, what to keep, and what the threshold means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from html import escape

from clf_serve.duplicates.finding import Found
from clf_serve.duplicates.groups import File, Group, Level, Member
from clf_serve.duplicates.near import Example, Near, Step
from clf_serve.duplicates.text import NAMES, basis, size
from clf_serve.report import page, picture

BUDGET = 8 * 2**20
"""Bytes of thumbnails for each level and for the examples: the file stays below 45 MB, in base64."""

_LEAST = 2048  # what a picture counts at least, with its text
_MEMBERS = 12  # pictures of one group
_PATHS = 100  # of one list
_TEXT = {
    Level.bytes: "Equal files. All but one can go without losing anything.",
    Level.picture: "Encoded anew, resized, in another format or with other metadata; equal field by field otherwise.",
    Level.near: "Alike to the encoder: crops, edits, shots of one scene. Look before anything goes.",
}
_CSS = """
main { max-width: 1180px; } h1 { font-size: 28px; letter-spacing: -.02em; margin-bottom: 2px; }
h2 { font-size: 19px; letter-spacing: -.01em; margin: 0; } h3 { font-size: 14px; margin: 0; }
.where { overflow-wrap: anywhere; margin-bottom: 24px; } code { font: 12.5px/1.5 ui-monospace, monospace; }
nav { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-bottom: 40px; }
nav a { display: block; padding: 14px 16px; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; color: inherit; text-decoration: none; } nav a:hover { border-color: var(--accent); }
nav b { display: block; font-size: 24px; line-height: 1.2; letter-spacing: -.02em; }
nav small, figcaption, .soft { color: var(--soft); font-size: 13px; }
b, td, .num { font-variant-numeric: tabular-nums; }
section { margin-bottom: 48px; scroll-margin-top: 16px; } section > p { margin: 2px 0 16px; max-width: 70ch; }
.group { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 14px;
  margin-bottom: 14px; scroll-margin: 16px; }
.group header { display: flex; justify-content: space-between; gap: 12px; margin-bottom: 10px; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; }
figure { margin: 0; min-width: 0; } figcaption { margin-top: 6px; line-height: 1.4; }
figure img, .blank { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain; border-radius: 8px;
  background: var(--ground); } .blank { border: 1px dashed var(--line); }
.tag { color: var(--ink); font-weight: 600; } .keep img, .keep .blank { outline: 2px solid var(--accent); }
.keep .tag { color: var(--accent); } .path { display: block; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; direction: rtl; text-align: left; } .path bdi { user-select: all; }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--soft); font-size: 13px; width: fit-content; }
details ul { margin: 6px 0 0; padding-left: 18px; overflow-wrap: anywhere; }
.note { background: var(--accent-ground); border-radius: 10px; padding: 10px 14px; color: var(--ink); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; min-width: 620px; }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: 13px; }
th, td { padding: 10px 12px 10px 0; border-top: 1px solid var(--line); vertical-align: middle; }
tr.chosen td:first-child { color: var(--accent); font-weight: 700; } td:last-child, th:last-child { width: 52%; }
.pairs { display: flex; flex-wrap: wrap; gap: 12px; }
.pair { display: grid; grid-template-columns: 72px 72px; gap: 3px; }
.pair img, .pair .blank { width: 72px; height: 72px; aspect-ratio: 1; object-fit: cover; border-radius: 5px; }
.pair figcaption { grid-column: 1 / 3; margin: 0; text-align: center; } h3 + .pairs { margin: 8px 0 20px; }
kbd { font: 12px ui-monospace, monospace; border: 1px solid var(--line); border-radius: 4px; padding: 0 5px; }
@media (max-width: 560px) { .row { grid-template-columns: 1fr 1fr; } .group header { flex-direction: column; gap: 0; } }
@media print { .group { break-inside: avoid; } }
"""
_SCRIPT = """
addEventListener("keydown", event => {
  const step = {j: 1, k: -1}[event.key];
  if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
  const groups = [...document.querySelectorAll(".group")], now = groups.indexOf(document.activeElement);
  const next = groups[now < 0 ? (step > 0 ? 0 : groups.length - 1) : now + step];
  if (next) { next.focus({preventScroll: true}); next.scrollIntoView({block: "nearest"}); event.preventDefault(); }
});
"""

Thumbnails = Callable[[int], bytes]


class _Pictures:
    """Thumbnails for one part of the file; what begins after its budget is spent is left out."""

    def __init__(self, thumbnail: Thumbnails) -> None:
        self._thumbnail = thumbnail
        self._left = BUDGET

    @property
    def spent(self) -> bool:
        return self._left <= 0

    def show(self, file: File) -> str:
        jpeg = self._thumbnail(file.id)
        self._left -= max(len(jpeg), _LEAST)
        return picture(jpeg, file.uri)


def duplicates_page(found: Found, gallery: str, thumbnail: Thumbnails) -> str:
    """The document.

    Args:
        thumbnail: of an id, JPEG; empty where there is none.
    """
    could_go = sum(len(group.others) for group in found.groups)
    head = (
        f'<h1>Duplicates</h1><p class="where"><code>{escape(gallery)}</code> · {found.images:,} images · '
        f"{could_go:,} could go, {size(sum(map(found.freed, Level)))} · nothing was deleted</p>"
    )
    sections = [_level(level, found, thumbnail) for level in Level]
    near = "" if found.near is None else _threshold(found.near, _Pictures(thumbnail))
    keys = "<p><kbd>j</kbd> and <kbd>k</kbd> go from group to group.</p>" if found.groups else ""
    nothing = "" if found.groups else '<p class="note">No image is there more than once.</p>'
    body = [head, _navigation(found), nothing, keys, *sections, near, f"<script>{_SCRIPT}</script>"]
    return page(f"Duplicates · {gallery}", _CSS, "\n".join(filter(None, body)))


def _navigation(found: Found) -> str:
    tiles = []
    for level in Level:
        others = found.others(level)
        count = sum(group.level is level for group in found.groups)
        href = f' href="#{level}"' if count else ""
        tiles.append(
            f"<a{href}><small>{NAMES[level]}</small><b>{len(others):,}</b>"
            f"<small>could go, {size(found.freed(level))}</small></a>"
        )
    if found.near is not None:
        tiles.append(
            f'<a href="#threshold"><small>near from cosine</small><b>{found.near.threshold:.4f}</b>'
            "<small>what that means</small></a>"
        )
    return f'<nav aria-label="levels">{"".join(tiles)}</nav>'


def _level(level: Level, found: Found, thumbnail: Thumbnails) -> str:
    groups = [group for group in found.groups if group.level is level]
    if not groups:
        return ""
    pictures = _Pictures(thumbnail)
    shown = list(_shown(groups, pictures))
    note = (
        ""
        if len(shown) == len(groups)
        else (
            f'<p class="note">The first {len(shown):,} of {len(groups):,} groups, those that would free most; '
            "<code>clf duplicates --json</code> lists them all.</p>"
        )
    )
    title = f"{NAMES[level].capitalize()} · {len(groups):,} group{'s' if len(groups) > 1 else ''}"
    return (
        f'<section id="{level}" aria-label="{NAMES[level]}"><h2>{title}</h2><p>{_TEXT[level]}</p>{note}'
        f"{''.join(shown)}</section>"
    )


def _shown(groups: Iterable[Group], pictures: _Pictures) -> Iterator[str]:
    for group in groups:
        if pictures.spent:
            return
        yield _group(group, pictures)


def _group(group: Group, pictures: _Pictures) -> str:
    copies = [member for member in group.others if member.level is Level.bytes]
    others = [member for member in group.others if member.level is not Level.bytes]
    figures = [_figure(group.keep, "keep", pictures, "keep")]
    figures += [_figure(member.file, _tag(member), pictures) for member in others[:_MEMBERS]]
    lists = _paths(copies, f"{len(copies):,} with the same bytes as the one to keep", opened=not others)
    lists += _paths(others[_MEMBERS:], f"{len(others) - _MEMBERS:,} more")
    return (
        f'<article class="group" tabindex="0"><header><h3>{len(group.others) + 1:,} images</h3>'
        f'<span class="soft num">{size(group.freed)} could be freed</span></header>'
        f'<div class="row">{"".join(figures)}</div>{lists}</article>\n'
    )


def _figure(file: File, tag: str, pictures: _Pictures, style: str = "") -> str:
    return (
        f'<figure class="{style}">{pictures.show(file)}<figcaption><span class="tag">{tag}</span> '
        f'<span class="num">{file.width} × {file.height}, {size(file.size)}</span>'
        f'<span class="path" title="{escape(file.uri)}"><bdi>{escape(file.uri)}</bdi></span></figcaption></figure>'
    )


def _tag(member: Member) -> str:
    return NAMES[member.level] if member.cosine is None else f"{NAMES[member.level]} {member.cosine:.4f}"


def _paths(members: list[Member], title: str, *, opened: bool = False) -> str:
    if not members:
        return ""
    rows = [f"<li><code>{escape(m.file.uri)}</code> <span class=soft>{_tag(m)}</span></li>" for m in members[:_PATHS]]
    if len(members) > _PATHS:
        rows.append(f"<li>and {len(members) - _PATHS:,} more, listed by <code>clf duplicates --json</code></li>")
    return f"<details{' open' if opened else ''}><summary>{title}</summary><ul>{''.join(rows)}</ul></details>"


def _threshold(near: Near, pictures: _Pictures) -> str:
    rows = "".join(_step(step, near.threshold, pictures) for step in near.steps)
    same = ""
    if near.same is not None:
        same = (
            f" Of {near.same.pairs:,} pairs of the same picture here, half are above {near.same.median:.4f} and 95 % "
            f"above {near.same.low:.4f}."
        )
    return (
        f'<section id="threshold" aria-label="threshold"><h2>What the threshold means</h2><p>{basis(near)}{same} '
        "Another one: <code>clf duplicates GALLERY --threshold 0.97</code>.</p>"
        f"{_strip('Just above: near', near.above, pictures)}{_strip('Just below: not near', near.below, pictures)}"
        '<div class="scroll" tabindex="0"><table><thead><tr><th>threshold</th><th>pairs</th><th>of them by chance</th>'
        f"<th>pairs just above it</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _step(step: Step, threshold: float, pictures: _Pictures) -> str:
    chance = "" if step.chance is None else f"{step.chance:,.1f}" if step.chance < 10 else f"{step.chance:,.0f}"
    chosen = ' class="chosen"' if step.cosine == threshold else ""
    return (
        f"<tr{chosen}><td>{step.cosine:.4f}</td><td>{step.pairs:,}</td><td>{chance}</td>"
        f"<td>{_pairs(step.examples, pictures)}</td></tr>"
    )


def _strip(title: str, examples: tuple[Example, ...], pictures: _Pictures) -> str:
    return f"<h3>{title}</h3>{_pairs(examples, pictures)}" if examples else ""


def _pairs(examples: tuple[Example, ...], pictures: _Pictures) -> str:
    figures = (
        f'<figure class="pair" title="{escape(e.one.uri)}\n{escape(e.other.uri)}">{pictures.show(e.one)}'
        f'{pictures.show(e.other)}<figcaption class="num">{e.cosine:.4f}</figcaption></figure>'
        for e in examples
    )
    return f'<div class="pairs">{"".join(figures)}</div>'
