"""The board is made of records alone: golden text of records made by hand, verdicts, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from board_records import PUBLISHED, STUDY, lay_out, record, six
from typer.testing import CliRunner

from clf.commands.study import board as command
from clf.errors import ClfError, ConfigError, RunError
from clf.study.board import Board, read_board, readme_text, results_text
from clf.study.verdicts import judge

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = """\
## The claims

Of the papers, at our scales and in our words, beside controls and questions of our own. With each study below stand the
wall times of both sides and what it would take to tell.

| study | claim | cpu | gpu |
|---|---|---|---|
| toy | New is better | confirmed (linear +3.0 points, 95 % interval +0.5 to +5.5, 3 seeds) | not measured yet |

Scale cpu, 1 of 1 measured: 1 confirmed. Were none of these differences real, about 0.05 of 1 intervals would leave \
zero out all the same.

## Studies

### toy: A toy

Is the new one better? Paper: arXiv 0000.00000.

[Published figures](#published-figures) that stand beside it: Theirs.

#### toy at scale cpu

6 of 6 cells are measured.

40,000 training images of cifar10 (32 px, 3 channels; official test split), without labels. tiny, 0.392 M parameters. \
Batch 8, 4 epochs, 20,000 steps. Seeds 0, 1, 2.

- k-NN: k = 20
- linear probe: L-BFGS

- machines: cpu (x86_64, 2 cores), 1 thread
- commits: abc123
- versions: clf 0.1.0, Python 3.12.1, torch 2.9.0

All cells, and one of them by hand:

```sh
clf study configs/studies/toy.yaml --scale cpu
clf train --plugin simclr data.name=cifar10 plain seed=0
```

k-NN / linear probe, %:

|  | epoch 1 | end |
|---|---|---|
| plain | 30.0 ± 0.0 / 33.0 ± 1.0 | 40.0 ± 0.0 / 43.0 ± 1.0 |
| new | 30.0 ± 0.0 / 36.0 ± 2.0 | 40.0 ± 0.0 / 46.0 ± 2.0 |

Less plain of the same seed, points, with the 95 % interval:

|  | epoch 1 | end |
|---|---|---|
| new | +0.0 / **+3.0** (+0.5 to +5.5) | +0.0 / **+3.0** (+0.5 to +5.5) |

- New is better: **confirmed**; linear +3.0 points, 95 % interval +0.5 to +5.5, 3 seeds. Wall time: 41 s, against 41 s.

#### toy at scale gpu

Not measured yet: 2 cells, `clf study configs/studies/toy.yaml --scale gpu`.

## Methods

### cifar10, scale cpu

| method | study | row | column | seeds | k-NN | linear | epochs | batch | images | wall time | images/s | device \
| commit |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
| simclr | toy | plain | end | 3 | 40.0 ± 0.0 | 43.0 ± 1.0 | 4 | 8 | 40,000 | 41 s | 3,900 | cpu (x86_64, 2 cores), \
1 thread | abc123 |
| simclr | toy | new | end | 3 | 40.0 ± 0.0 | 46.0 ± 2.0 | 4 | 8 | 40,000 | 41 s | 3,900 | cpu (x86_64, 2 cores), \
1 thread | abc123 |

<details><summary>Commands, of the first seed of each line</summary>

```sh
clf train --plugin simclr data.name=cifar10 plain seed=0
clf train --plugin simclr data.name=cifar10 new seed=0
```

</details>

## Speedrun: least wall time to a linear accuracy on CIFAR-10, without labels
"""


def made(folder: Path, records: list[dict[str, Any]], study: dict[str, Any] | None = None) -> Board:
    return read_board(*lay_out(folder, records, study))


def test_the_board_of_six_records_made_by_hand(tmp_path: Path) -> None:
    text = results_text(made(tmp_path, six()))
    body = text[text.index("## The claims") :]
    assert body[: len(GOLDEN)] == GOLDEN
    rest = body[len(GOLDEN) :]
    assert "### Theirs (a repository)\n\nBeside: toy. Differs from ours: another probe.\n" in rest
    assert "| New | CIFAR-10 | not stated | 200 | not stated | linear | 84.0 |  |" in rest
    assert rest.endswith(
        "## Not measured yet\n\n- toy at scale gpu: 2 of 2 cells (`clf study configs/studies/toy.yaml --scale gpu`)\n"
    )


def test_the_order_of_records_does_not_matter(tmp_path: Path) -> None:
    assert results_text(made(tmp_path, six()[::-1])) == results_text(made(tmp_path, six()))


@pytest.mark.parametrize(
    ("expect", "gains", "outcome"),
    [
        ("higher", [0.02, 0.03, 0.04], "confirmed"),
        ("lower", [-0.02, -0.03, -0.04], "confirmed"),
        ("higher", [-0.02, -0.03, -0.04], "the opposite was found"),
        ("lower", [0.02, 0.03, 0.04], "the opposite was found"),
        ("higher", [0.02, -0.03, 0.04], "not confirmed: no difference could be told"),
        ("higher", [0.02], "not confirmed: no difference could be told"),
        ("equal", [0.02, -0.03, 0.04], "no difference was seen"),
        ("equal", [0.02, 0.03, 0.04], "not confirmed: a difference was found"),
        ("equal", [0.0], "not confirmed: no difference could be told"),
        ("higher", [], "not measured yet"),
    ],
)
def test_verdicts(tmp_path: Path, expect: str, gains: list[float], outcome: str) -> None:
    claims = [{**STUDY["claims"][0], "expect": expect}]
    plain = [record("plain", seed, 0.4, 0.4) for seed in range(3)]
    new = [record("new", seed, 0.4, 0.4 + gain) for seed, gain in enumerate(gains)]
    board = made(tmp_path, plain + new, {**STUDY, "claims": claims})
    (verdict,) = judge(board.evidence[0].study, board.evidence[0].records)
    assert verdict.outcome == outcome
    assert verdict.difference is None if not gains else verdict.difference is not None
    told = f"New is better: **{outcome}**"
    text = results_text(board)
    assert told in text and ("To tell: more seeds." in text) == (outcome != "confirmed")
    assert ("Differences inside the interval stay possible." in text) == (outcome == "no difference was seen")


def test_a_claim_may_compare_an_early_epoch_with_the_end_and_one_column_with_another(tmp_path: Path) -> None:
    """New after epoch 1 has 34, 36, 38 %, and plain at the end of the other column 20, 20, 20 %."""
    other = {"after": 1, "against_column": "other"}
    study = {**STUDY, "columns": {"end": {}, "other": {}}, "claims": [{**STUDY["claims"][0], **other}]}
    elsewhere = [record("plain", seed, 0.2, 0.2, column="other") for seed in range(3)]
    board = made(tmp_path, [*six(), *elsewhere], study)
    (verdict,) = judge(board.evidence[0].study, board.evidence[0].records)
    assert verdict.difference is not None and verdict.difference.mean == pytest.approx(0.16)
    assert "3 seeds. Wall time: 10 s, against 41 s." in results_text(board)


def test_times_beside_a_claim_are_of_one_machine_with_preparation_and_without_a_common_one_untold(
    tmp_path: Path,
) -> None:
    records = six()
    for each in records[3:]:
        each["preparation_seconds"] = 120.0
    assert "3 seeds. Wall time: 41 s + 2.0 min before, against 41 s." in results_text(made(tmp_path, records))
    for each in records[3:]:
        each["device"] = "Some GPU"
    assert "Wall time:" not in results_text(made(tmp_path, records))


def test_two_claims_of_the_same_words_are_both_on_the_board(tmp_path: Path) -> None:
    claims = [STUDY["claims"][0], {**STUDY["claims"][0], "score": "knn"}]
    text = results_text(made(tmp_path, six(), {**STUDY, "claims": claims}))
    (row,) = [line for line in text.splitlines() if line.startswith("| toy | New is better")]
    assert "confirmed (linear +3.0" in row and "; not confirmed: no difference could be told (k-NN +0.0" in row
    assert "Scale cpu, 2 of 2 measured: 1 confirmed; 1 not confirmed: no difference could be told. Were" in text


def test_seeds_are_paired_and_those_of_one_side_are_left_out(tmp_path: Path) -> None:
    records = [each for each in six() if (each["row"], each["seed"]) not in {("plain", 0), ("new", 2)}]
    text = results_text(made(tmp_path, records))
    assert "linear +3.0 points, no interval, 1 seed" in text  # seed 1 alone: 46 less 43
    assert "Scale cpu, 1 of 1 measured: 1 not confirmed: no difference could be told.\n" in text
    assert "40.0 ± 0.0 / 43.5 ± 0.7 (n = 2)" in text and "4 of 6 cells are measured." in text
    assert "- toy at scale cpu: 2 of 6 cells" in text


def test_a_seed_that_the_study_does_not_ask_for_counts(tmp_path: Path) -> None:
    more = [record("plain", 7, 0.4, 0.4), record("new", 7, 0.4, 0.43)]
    text = results_text(made(tmp_path, [*six(), *more]))
    assert "interval +1.7 to +4.3, 4 seeds" in text and "Seeds 0, 1, 2, 7." in text


def test_mixed_machines_and_commits_are_said_and_times_of_machines_kept_apart(tmp_path: Path) -> None:
    records = six()
    records[2] |= {
        "device": "Some GPU",
        "threads": 4,
        "wall_seconds": 2.0,
        "images_per_second": 90_000.0,
        "commit": "d+",
    }
    text = results_text(made(tmp_path, records))
    assert "**mixed: measured on or with 2 machines, 2 commits.**" in text
    assert "- machines: cpu (x86_64, 2 cores), 1 thread; Some GPU\n- commits: abc123; d+\n" in text
    assert "- `+`: the source tree had changes that were not committed" in text
    (plain,) = [line for line in text.splitlines() if line.startswith("| simclr | toy | plain")]
    assert "| 2 s (Some GPU); 40 s (cpu (x86_64, 2 cores), 1 thread) |" in plain
    assert "| 90,000 (Some GPU); 3,950 (cpu (x86_64, 2 cores), 1 thread) |" in plain


def test_preparation_is_told_and_the_run_that_a_training_starts_from(tmp_path: Path) -> None:
    records = six()
    for each in records:
        each["preparation_seconds"] = 120.0 if each["row"] == "plain" else 0.001
    for each in records[3:]:
        each["builds_on"] = {"method.gan_run": f"plain--end--seed-{each['seed']}"}
    text = results_text(made(tmp_path, records))
    assert "| 41 s + 2.0 min before |" in text and "| 41 s, after plain |" in text


def test_settings_that_are_not_those_of_the_file_and_cells_that_it_lacks_are_said(tmp_path: Path) -> None:
    records = six()
    for each in records:
        each["settings"] = {**each["settings"], "data.name": "npz", "data.root": "cifar10.npz"}
    records[0]["settings"]["train.epochs"] = 2
    del records[1]["settings"]["train.batch_size"]
    text = results_text(made(tmp_path, [*records, record("gone", 0, 0.5, 0.5)]))
    assert (
        "settings other than the file's: `data.name=npz`, `data.root=cifar10.npz`, `train.epochs=2 (1 of 6)`, "
        "`without train.batch_size (1 of 6)`" in text
    )
    assert "clf study configs/studies/toy.yaml --scale cpu data.name=npz data.root=cifar10.npz\n" in text
    assert "left out: 1 records of cells that the file does not have" in text and "| gone |" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {**record("plain", 0, 0, 0)["data"], "fingerprint": "cd"}}, "different data sets, for example plain"),
        ({"evaluate": {"knn_k": 200, "linear": True}}, "records of different evaluations"),
        ({"seed": 0}, "several records of plain | end | 0: keep one"),
        ({"study": "other"}, "holds a record of other at scale cpu: move it"),
    ],
)
def test_records_that_do_not_compare_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    records = six()
    records[1] |= changes
    with pytest.raises(RunError) as caught:
        made(tmp_path, records)
    assert words in str(caught.value) and "toy-cpu.jsonl" in str(caught.value)


def test_files_that_belong_to_nothing_are_refused(tmp_path: Path) -> None:
    results, studies = lay_out(tmp_path, six())
    (results / "toy-cpus.jsonl").write_text("")
    with pytest.raises(RunError, match=r"toy-cpus.jsonl belongs to no study .* Did you mean 'toy-cpu'\?"):
        read_board(results, studies)
    (results / "toy-cpus.jsonl").unlink()
    for change, words in (
        ({"beside": ["toys"]}, r"there is no study 'toys'. Did you mean 'toy'\?"),
        ({"figures": [{"metod": "New"}]}, r"published.yaml: 0.figures.0"),
    ):
        (results / "published.yaml").write_text(yaml.safe_dump([{**PUBLISHED[0], **change}]))
        with pytest.raises(ConfigError, match=words):
            read_board(results, studies)
    with pytest.raises(ConfigError, match="nowhere is no folder"):
        read_board(tmp_path / "nowhere", studies)


def test_blocks_of_a_readme_are_made_anew_and_nothing_else(tmp_path: Path) -> None:
    board = made(tmp_path, six())
    head, tail = "# new\n\n<!-- results: toy-cpu -->\n", "<!-- end of results -->\n\nMore.\n"
    text = readme_text(f"{head}old words\n{tail}", board, Path("README.md"))
    assert text.startswith(head) and text.endswith(tail) and "old words" not in text
    assert "| new | 30.0 ± 0.0 / 36.0 ± 2.0 | 40.0 ± 0.0 / 46.0 ± 2.0 |" in text
    assert "- New is better: **confirmed**; linear +3.0 points" in text
    assert "A training took 41 s on cpu (x86_64, 2 cores), 1 thread." in text
    assert readme_text(text, board, Path("README.md")) == text
    some = readme_text(f"<!-- results: toy-cpu, rows: plain -->\n{tail}", board, Path("README.md"))
    assert "| plain |" in some and "| new |" not in some and "New is better" not in some
    none = readme_text(f"<!-- results: toy-gpu -->\n{tail}", board, Path("README.md"))
    assert "Not measured yet at scale gpu: `clf study configs/studies/toy.yaml --scale gpu`" in none


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- results: toy-cpus -->\n<!-- end of results -->\n", r"'toy-cpus' .* Did you mean 'toy-cpu'\?"),
        ("<!-- results: toy-cpu, rows: news -->\n<!-- end of results -->\n", r"no row 'news'. Did you mean 'new'\?"),
        ("<!-- results: toy-cpu -->\n", "needs a line '<!-- end of results -->'"),
        ("<!-- results: toy-cpu -->\n<!-- results: toy-cpu -->\n<!-- end of results -->\n", "needs a line"),
    ],
)
def test_a_wrong_block_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"README.md: .*{words}"):
        readme_text(text, made(tmp_path, six()), Path("README.md"))


def invoke(*words: object) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, ClfError):
        raise result.exception
    return result.exit_code, result.output


def test_a_changed_digit_of_the_text_or_of_a_record_is_found(tmp_path: Path) -> None:
    results, studies = lay_out(tmp_path, six())
    readme = tmp_path / "plugins/new/README.md"
    readme.parent.mkdir()
    readme.write_text("<!-- results: toy-cpu -->\n<!-- end of results -->\n")
    (tmp_path / "plugins/RESULTS.md").write_text("")
    words = (results, "--studies", studies, "--readmes", tmp_path / "plugins")
    assert invoke(*words, "--check")[0] == 1
    assert invoke(*words) == (0, f"Wrote {tmp_path / 'plugins/RESULTS.md'}\nWrote {readme}\n")
    assert invoke(*words) == (0, "Nothing has changed\n")
    assert invoke(*words, "--check") == (0, "")
    for path in (tmp_path / "plugins/RESULTS.md", readme):
        good = path.read_text()
        path.write_text(good.replace("46.0", "46.1", 1))
        status, output = invoke(*words, "--check")
        number = 1 + next(i for i, line in enumerate(good.splitlines()) if "46.0" in line)
        assert status == 1 and f"{path}, line {number}, is\n" in output and "and the records give\n" in output
        assert path.read_text() == good.replace("46.0", "46.1", 1)
        path.write_text(good)
    records = results / "toy-cpu.jsonl"
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    lines[0]["scores"]["linear"] = 0.43
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert invoke(*words, "--check")[0] == 1


def test_the_results_of_this_repository_are_those_of_its_records() -> None:
    plugins = ROOT / "plugins"
    words = (plugins / "results", "-o", plugins / "RESULTS.md", "--studies", ROOT / "configs/studies")
    status, output = invoke(*words, "--readmes", plugins, "--check")
    assert status == 0, output
