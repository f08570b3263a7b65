"""What ``clf duplicates`` prints: a table, JSON, or paths for a script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clf_serve.commands.terminal import printable
from clf_serve.duplicates.finding import Found
from clf_serve.duplicates.groups import File, Group, Level, Member
from clf_serve.duplicates.near import Near
from clf_serve.place import Place

NAMES = {Level.bytes: "same bytes", Level.picture: "same picture", Level.near: "near"}
"""Of the levels, as people read them."""

_GROUPS, _MEMBERS = 20, 8  # shown on the terminal


def size(count: int) -> str:
    """Bytes for people, in powers of 1000."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"


def basis(near: Near) -> str:
    """Where the threshold comes from, in a sentence."""
    if near.given:
        return f"Threshold {near.threshold:.4f}, as given."
    if near.chance.distance is None:
        return f"Threshold {near.threshold:.4f}: there are too few images to derive one from; choose with --threshold."
    return (
        f"Threshold {near.threshold:.4f}, derived from {near.chance.pairs:,} random pairs of this gallery: "
        "one image in a hundred has a partner so close by chance."
    )


def print_found(found: Found, gallery: Place, html: Path | None) -> None:
    """The largest groups, what each level comes to, and the thresholds one could choose."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if found.groups:
        for group in found.groups[:_GROUPS]:
            _print_group(console, group)
        if len(found.groups) > _GROUPS:
            rest = f"and {len(found.groups) - _GROUPS} more groups"
            console.print(f"{rest}, in {html}" if html else f"{rest}; --html FILE shows them, --json lists them all")
    console.print(f"{gallery}: {found.images:,} images, {len(found.groups):,} groups")
    for level in Level:
        others = found.others(level)
        if others:
            console.print(f"  {NAMES[level]:13}{len(others):>7,} could go, {size(found.freed(level))}")
    if found.near is not None:
        console.print(basis(found.near))
        console.print(_steps(found.near))


def as_json(found: Found, gallery: Place, level: Level) -> dict[str, Any]:
    """The schema is documented in serve/README.md; fields are only ever added within ``format`` 1."""
    return {
        "format": 1,
        "gallery": str(gallery),
        "level": level.value,
        "images": found.images,
        "could_go": {each.value: {"images": len(found.others(each)), "bytes": found.freed(each)} for each in Level},
        "near": None if found.near is None else _near(found.near),
        "groups": [_group(group) for group in found.groups],
    }


def paths_to_go(found: Found, null: bool) -> tuple[list[str], list[str]]:
    """Paths of all that are not to be kept, each with its end; and what was left out, in sentences.

    Only files that are still as they were indexed are listed, and only while the file to keep is too, and is another
    file than they are (not the same one by a link).
    """
    lines: list[str] = []
    missing = changed = linked = unprintable = 0
    for group in found.groups:
        keep = _identity(group.keep)
        if keep is None:
            missing += 1
            continue
        for member in group.others:
            there = _identity(member.file)
            if there is None:
                changed += 1
            elif there == keep:
                linked += 1
            elif not null and "\n" in member.file.key:
                unprintable += 1
            else:
                lines.append(member.file.key + ("\0" if null else "\n"))
    notes = [
        (missing, "groups left out, because the file to keep is not there as it was indexed; run clf index again"),
        (changed, "files left out, because they are not there as they were indexed; run clf index again"),
        (linked, "files left out, because they are the file to keep by another name (a link)"),
        (unprintable, "files left out, because their name holds a line break; use -0"),
    ]
    return lines, [f"{count} {text}" for count, text in notes if count]


def _identity(file: File) -> tuple[int, int] | None:
    """Device and inode of a file; None when it is not there, or not as it was indexed."""
    try:
        found = Path(file.key).stat()
    except (OSError, ValueError):
        return None
    if not Path(file.key).is_absolute() or (found.st_size, found.st_mtime_ns) != (file.size, file.mtime_ns):
        return None
    return found.st_dev, found.st_ino


def _print_group(console: Console, group: Group) -> None:
    console.print(Text(_line("keep", group.keep), style="bold"))
    for member in group.others[:_MEMBERS]:
        console.print(_line(_name(member), member.file))
    if len(group.others) > _MEMBERS:
        console.print(f"and {len(group.others) - _MEMBERS} more")
    console.print()


def _name(member: Member) -> str:
    return NAMES[member.level] + (f" {member.cosine:.4f}" if member.cosine is not None else "")


def _line(name: str, file: File) -> str:
    return f"{name:13} {f'{file.width} x {file.height}':>13} {size(file.size):>8}  {printable(file.uri)}"


def _steps(near: Near) -> Table:
    table = Table("threshold", "pairs", "of them by chance", box=None, header_style="bold")
    for step in near.steps:
        chance = "" if step.chance is None else f"{step.chance:,.1f}" if step.chance < 10 else f"{step.chance:,.0f}"
        table.add_row(f"{step.cosine:.4f}", f"{step.pairs:,}", chance)
    for column in table.columns:
        column.justify = "right"
    return table


def _near(near: Near) -> dict[str, Any]:
    basis = "given" if near.given else "few_images" if near.chance.distance is None else "gallery"
    return {
        "threshold": near.threshold,
        "basis": basis,
        "random_pairs": near.chance.pairs,
        "thresholds": [{"cosine": step.cosine, "pairs": step.pairs, "by_chance": step.chance} for step in near.steps],
        "same_picture_cosines": None if near.same is None else near.same._asdict(),
    }


def _group(group: Group) -> dict[str, Any]:
    keep = {**_file(group.keep), "level": None, "spare": None, "picture": group.keep.id, "cosine": None}
    others = [
        {**_file(m.file), "level": m.level.value, "spare": m.spare.value, "picture": m.picture, "cosine": m.cosine}
        for m in group.others
    ]
    return {"level": group.level.value, "bytes_freed": group.freed, "keep": group.keep.id, "images": [keep, *others]}


def _file(file: File) -> dict[str, Any]:
    fields = file._asdict()
    fields["bytes"] = fields.pop("size")
    return fields
