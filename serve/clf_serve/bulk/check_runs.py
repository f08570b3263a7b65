"""The checks of what an engine does when all goes well."""

from __future__ import annotations

import json
from collections import Counter

from clf.checks import Check, Failed
from clf_serve.bulk.bench import BAD, SHARD, SHARDS, Bench
from clf_serve.bulk.worker import ShardReport

_IMAGES = SHARDS * SHARD - 1


def _runs_at_all(bench: Bench) -> str:
    ran = bench.first()
    return f"{len(ran.reports)} reports from {len(set(bench.opened('first')))} processes"


def _same_bytes(bench: Bench) -> str:
    bench.first()
    bench.same("first", "after a run over shards in no order", lists=False)
    return f"{len(bench.wanted())} files"


def _reports(bench: Bench) -> None:
    ran = bench.first()
    if strange := [report for report in ran.reports if not isinstance(report, ShardReport)]:
        raise Failed(f"run gave a {type(strange[0]).__name__} for a ShardReport")
    counts = Counter(report.shard for report in ran.reports)
    wanted = {shard.number for shard in ran.bulk.left}
    if lost := sorted(wanted - counts.keys()):
        raise Failed(f"shard {lost[0]} was never reported, and {len(lost) - 1} more")
    if strange_numbers := sorted(counts.keys() - wanted):
        raise Failed(f"shard {strange_numbers[0]} was reported and not asked for")
    if twice := sorted(number for number, times in counts.items() if times > 1):
        raise Failed(f"shard {twice[0]} was reported {counts[twice[0]]} times")
    found = sum(report.images for report in ran.reports), sum(report.skipped for report in ran.reports)
    if found != (_IMAGES - len(BAD), len(BAD)):
        raise Failed(
            f"the reports speak of {found[0]} images and {found[1]} skipped of {_IMAGES}, {len(BAD)} of them bad"
        )


def _bad_files(bench: Bench) -> str:
    bench.first()
    found = {}
    for path in sorted((bench.folder / "first").glob("skipped-*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            found[row["key"]] = row["reason"]
    wanted = {f"{number:02d}.png" for number in BAD}
    if found.keys() != wanted:
        raise Failed(f"{sorted(found)} stand among the skipped, where {sorted(wanted)} belong")
    return "; ".join(sorted(found.values()))[:200]


def _progress(bench: Bench) -> None:
    ran = bench.first()
    made = sum(report.made for report in ran.reports)
    told = sum(ran.progress)
    if told != made:
        raise Failed(f"progress was told of {told} images in all, and the reports of {made}")


def _opened_once(bench: Bench) -> str:
    bench.first()
    counts = Counter(bench.opened("first"))
    pid, times = counts.most_common(1)[0]
    if times > 1:
        raise Failed(f"process {pid} opened the model {times} times")
    return f"{len(counts)} processes"


def _quiet(bench: Bench) -> None:
    if printed := bench.first().printed.strip():
        raise Failed(f"it wrote to standard output: {printed.splitlines()[0][:120]!r}")


def _nothing(bench: Bench) -> None:
    bulk = bench.bulk("nothing")
    ran = bench.run(bulk, [])
    if ran.reports or ran.progress:
        raise Failed(f"there was nothing to do, and {len(ran.reports)} shards were reported")
    if opened := bench.opened("nothing"):
        raise Failed(f"there was nothing to do, and the model was opened {len(opened)} times")


def _one_shard(bench: Bench) -> None:
    bulk = bench.bulk("one")
    ran = bench.run(bulk, bulk.left[-1:])
    if [report.shard for report in ran.reports] != [bulk.left[-1].number]:
        raise Failed(f"one shard was to be done, and {[report.shard for report in ran.reports]} were reported")
    bench.same("one", "after a run of the last shard alone", whole=False)
    made = {bulk.left[-1].number}
    if others := [shard.number for shard in bench.bulk("one").left if shard.number in made]:
        raise Failed(f"shard {others[0]} was reported and is not done")
    if len(bench.bulk("one").left) != len(bulk.left) - 1:
        raise Failed("shards were done that were not asked for")


def _what_is_there(bench: Bench) -> None:
    """Done shards are given again, as after a lost report."""
    bench.first()
    bulk = bench.bulk("first")
    again = bench.run(bulk, bulk.plan.shards()[:2])
    if sorted(report.shard for report in again.reports) != [0, 1]:
        raise Failed("shards that are done already were given again, and not reported")
    if sum(again.progress) or any(report.made for report in again.reports):
        raise Failed(f"shards that are done already were given again, and {sum(again.progress)} images made anew")


CHECKS: tuple[Check[Bench], ...] = (
    Check(
        "run",
        "Six shards, given in no order, are run.",
        "Nothing else can be said of an engine that does not run.",
        "Let run open one worker for each process and have it do each shard.",
        _runs_at_all,
    ),
    Check(
        "same bytes",
        "All files of the output are compared with those that one worker makes, shard after shard.",
        "A run on many machines that differs from the one on a laptop cannot be gone on with, nor trusted.",
        "Give each shard whole to one worker, and let nothing but workers write to the output.",
        _same_bytes,
        ("run",),
    ),
    Check(
        "reports",
        "The reports of that run are counted.",
        "A shard that is not reported is taken for lost, and one that is reported twice is counted twice.",
        "Hand on each ShardReport that Worker.do returns, once and unchanged.",
        _reports,
        ("run",),
    ),
    Check(
        "bad files",
        "Three of the files hold no image.",
        "Among a million photos some are broken; they have to be listed with reasons, and to stop nobody.",
        "Leave bad files to the worker, which lists them; do not run a shard again for them.",
        _bad_files,
        ("run",),
    ),
    Check(
        "progress",
        "The numbers given to progress are added up.",
        "A bar that runs past its end, or never gets there, says nothing of the time that is left.",
        "Call progress once for each image that was made, at the latest with the report: progress(report.made).",
        _progress,
        ("reports",),
    ),
    Check(
        "opened once",
        "The model notes in which process it was opened.",
        "To open a model takes seconds and memory; for each shard anew, it takes most of the time.",
        "Keep the worker that Work.open gave for as long as the process works.",
        _opened_once,
        ("run",),
    ),
    Check(
        "standard output",
        "What is written to standard output meanwhile is kept.",
        "clf embed --json writes JSON there, and programs read it.",
        "Log to standard error, or to files of the engine's own.",
        _quiet,
        ("run",),
    ),
    Check(
        "nothing to do",
        "No shards are given.",
        "A finished output is run again in scripts; it should take no time and start no machine.",
        "Return before anything is opened when there are no shards.",
        _nothing,
    ),
    Check(
        "one shard",
        "Only the last shard is given.",
        "What is left after an interruption is any part of the shards.",
        "Do the shards that were given and no others, by their own numbers.",
        _one_shard,
        ("same bytes",),
    ),
    Check(
        "what is there",
        "Two shards that are done are given again.",
        "Reports are lost with the machine that was to send them; the work should not be done twice for that.",
        "Hand on the reports as the worker gives them; do not count images in the engine.",
        _what_is_there,
        ("same bytes",),
    ),
)
