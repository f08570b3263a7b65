"""The file of a study, its cells, its records and its tables; nothing is trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from clf.errors import ConfigError, RunError
from clf.study.records import Record, TrainedOn, append_record, read_records
from clf.study.spec import Study, read_studies, read_study, slug
from clf.study.tables import markdown, tables

BASE: dict[str, Any] = {
    "name": "toy",
    "title": "A toy",
    "reference": "plain",
    "seeds": [0, 1],
    "base": {"plugin": "simclr", "data.name": "shapes", "train": {"epochs": 4, "batch_size": 8}},
    "rows": {"plain": None, "warm": {"method.temperature": 0.5}},
    "scales": {"cpu": {}},
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}, sort_keys=False))
    return path


def read(folder: Path, scale: str | None = None, **changes: Any) -> Study:
    return read_study(write(folder, **changes), scale)


def test_every_source_of_settings_wins_over_the_one_before_it(tmp_path: Path) -> None:
    """Each two neighbours set one key of their own."""
    sources = ("base", "scale base", "column", "row", "scale row", "cells", "scale cells", "command line")

    def of(name: str) -> dict[str, str]:
        i = sources.index(name)
        return {f"method.k{pair}": name for pair in (i - 1, i) if 0 <= pair < len(sources) - 1}

    study = read(
        tmp_path,
        base={"plugin": "simclr", **of("base")},
        rows={"plain": of("row")},
        columns={"end": of("column")},
        cells=[{"row": "plain", "settings": of("cells")}],
        scales={
            "cpu": {
                "base": of("scale base"),
                "rows": {"plain": of("scale row")},
                "cells": [{"column": "end", "settings": of("scale cells")}],
            }
        },
    )
    won = study.cells(of("command line"))[0].settings
    assert [won[f"method.k{pair}"] for pair in range(len(sources) - 1)] == list(sources[1:])


def test_cells_go_by_seed_then_column_then_row_and_have_folders_of_their_own(tmp_path: Path) -> None:
    study = read(tmp_path, columns={"batch 8": {}, "Batch  16%": {"train.batch_size": 16}})
    assert [str(cell) for cell in study.cells()][:4] == [
        "plain | batch 8 | seed 0",
        "warm | batch 8 | seed 0",
        "plain | Batch  16% | seed 0",
        "warm | Batch  16% | seed 0",
    ]
    assert [cell.seed for cell in study.cells()] == [0] * 4 + [1] * 4
    assert study.cells()[3].slug == "warm--batch-16--seed-0" == slug(("warm", "Batch  16%", 0))
    assert study.cells()[3].settings == {
        "plugin": "simclr",
        "data.name": "shapes",
        "train.epochs": 4,
        "train.batch_size": 16,
        "method.temperature": 0.5,
    }


def test_a_grid_is_every_combination_named_after_its_values(tmp_path: Path) -> None:
    study = read(tmp_path, grid={"train.batch_size": [8, 16], "schedule.name": ["cosine", "linear"]})
    assert list(study.columns) == [
        "train.batch_size 8, schedule.name cosine",
        "train.batch_size 8, schedule.name linear",
        "train.batch_size 16, schedule.name cosine",
        "train.batch_size 16, schedule.name linear",
    ]
    assert study.columns["train.batch_size 16, schedule.name cosine"] == {
        "train.batch_size": 16,
        "schedule.name": "cosine",
    }


def test_a_scale_adds_to_the_study_and_replaces_its_columns(tmp_path: Path) -> None:
    scales = {
        "cpu": {"title": "(small)", "seeds": [7], "evaluate": {"bank": 50}, "grid": {"train.batch_size": [4]}},
        "gpu": {"cells": [{"row": "warm", "skip": True}]},
    }
    changes = {"columns": {"a": {}, "b": {}}, "evaluate": {"knn_k": 3, "after_epochs": [2, 1]}, "scales": scales}
    cpu, gpu = read(tmp_path, "cpu", **changes), read(tmp_path, "gpu", **changes)
    assert (cpu.title, cpu.seeds, list(cpu.columns)) == ("A toy (small)", (7,), ["train.batch_size 4"])
    assert (cpu.evaluate.knn_k, cpu.evaluate.bank, cpu.after_epochs("warm")) == (3, 50, (1, 2))
    assert (gpu.title, gpu.seeds, gpu.evaluate.bank) == ("A toy", (0, 1), None)
    assert [cell.row for cell in gpu.cells()] == ["plain"] * 4
    assert str(gpu) == "toy-gpu"
    assert [str(each) for each in read_studies(tmp_path)] == ["toy-cpu", "toy-gpu"]


def test_the_default_scale_is_cpu_or_the_only_one(tmp_path: Path) -> None:
    assert read(tmp_path, scales={"gpu": {}}).scale == "gpu"
    assert read(tmp_path, scales={"gpu": {}, "cpu": {}}).scale == "cpu"
    with pytest.raises(ConfigError, match=r"has no scale 'cpu'\. .*It has gpu, tpu: give one of them with --scale"):
        read(tmp_path, scales={"gpu": {}, "tpu": {}})


def test_a_cell_comes_behind_the_one_whose_run_it_needs(tmp_path: Path) -> None:
    study = read(tmp_path, runs_of={"plain": {"method.start": "warm"}}, columns={"a": {}, "b": {}})
    first, second = study.cells()[:2]
    assert (str(first), str(second)) == ("warm | a | seed 0", "plain | a | seed 0")
    assert second.needs == {"method.start": ("warm", "a", 0)} and first.needs == {}
    assert len(study.cells()) == len({cell.key for cell in study.cells()}) == 8


def test_epochs_to_measure_after_are_by_row_and_end_with_the_training(tmp_path: Path) -> None:
    study = read(tmp_path, evaluate={"after_epochs": {"warm": [3, 1]}})
    assert [cell.after_epochs for cell in study.cells()[:2]] == [(), (1, 3)]
    assert study.cells({"train": {"epochs": 2}})[1].after_epochs == (1,)


def test_claims_are_those_that_a_scale_can_tell(tmp_path: Path) -> None:
    claim = {"text": "Better", "row": "warm", "against": "plain", "column": "b"}
    study = {"columns": {"a": {}}, "claims": [claim], "scales": {"cpu": {}, "gpu": {"columns": {"b": {}}}}}
    assert read(tmp_path, "cpu", **study).claims == ()
    assert [each.text for each in read(tmp_path, "gpu", **study).claims] == ["Better"]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a key": ({"seed": [1]}, r"toy.yaml: seed is unknown\. Did you mean 'seeds'\?"),
    "a key inside": (
        {"scales": {"cpu": {"evaluate": {"knnk": 5}}}},
        r"scales\.cpu\.evaluate\.knnk is unknown\. Did you mean 'knn_k'\?",
    ),
    "a type": ({"evaluate": {"bank": "many"}}, r"toy.yaml: evaluate\.bank: Input should be a valid integer"),
    "a name": ({"name": "../toy"}, r"toy.yaml: name: a study's name is that of a folder"),
    "a setting": (
        {"rows": {"plain": {"train.epoch": 1}}},
        r"unknown key 'train\.epoch' \(toy\.yaml, row 'plain'\)\. Did you mean 'train\.epochs'\?",
    ),
    "a value": (
        {"columns": {"a": {"train.epochs": 0}}},
        r"train\.epochs = 0 \(toy\.yaml, column 'a'\): .* It must be int, at least 1",
    ),
    "no plugin": ({"base": {}}, r"row 'plain' has no plugin; give it one"),
    "its own seed": ({"rows": {"plain": {"seed": 3}}}, r"seed \(toy\.yaml, row 'plain'\) is set for each cell"),
    "reference": ({"reference": "plane"}, r"reference: there is no row 'plane'\. Did you mean 'plain'\?"),
    "row of a cell": ({"cells": [{"row": "worm"}]}, r"cells: there is no row 'worm'\. Did you mean 'warm'\?"),
    "row of a scale": ({"scales": {"cpu": {"rows": {"worm": {}}}}}, r"scales\.cpu\.rows: there is no row 'worm'"),
    "column of a cell": ({"cells": [{"column": "and"}]}, r"cells: there is no column 'and'\. Did you mean 'end'\?"),
    "row of epochs": ({"evaluate": {"after_epochs": {"worm": [1]}}}, r"after_epochs: there is no row 'worm'"),
    "late epoch": (
        {"evaluate": {"after_epochs": [5]}},
        r"after_epochs \[5\] of row 'plain' lie behind the end of its training, train\.epochs = 4",
    ),
    "same folder": ({"columns": {"lr 1": {}, "LR  1": {}}}, r"columns 'lr 1' and 'LR  1' would have the same run"),
    "same seed": ({"seeds": [1, 1]}, r"seeds = \[1, 1\] must be different"),
    "grid and columns": ({"grid": {"train.epochs": [1]}, "columns": {"a": {}}}, r"gives columns and a grid"),
    "needs itself": (
        {"runs_of": {"warm": {"method.a": "plain"}, "plain": {"method.a": "warm"}}},
        r"the run of row 'plain' would need itself",
    ),
    "needs what is skipped": (
        {"runs_of": {"warm": {"method.a": "plain"}}, "cells": [{"row": "plain", "skip": True}]},
        r"row 'warm' needs the run of row 'plain' in column 'end', which is skipped",
    ),
    "nothing": ({"cells": [{"skip": True}]}, r"has no cells at scale 'cpu'"),
    "empty grid": ({"grid": {}}, r"toy\.yaml: the grid is empty"),
    "same value": ({"grid": {"train.epochs": [1, "1"]}}, r"the grid has 'train\.epochs 1' twice"),
    "same cell": (
        {"claims": [{"text": "Better", "row": "warm", "against": "warm"}]},
        r"claim 'Better' compares a cell with itself",
    ),
    "claim": (
        {"claims": [{"text": "Better", "row": "warm", "against": "plain", "after": 2}]},
        r"claim 'Better': no scale \(cpu\) measures both of its cells",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    changes, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, **changes)


def test_two_rows_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace("  warm:", "  plain: {}\n  warm:"))
    with pytest.raises(ConfigError, match=r"toy\.yaml is not valid YAML: 'plain' is there twice"):
        read_study(path)
    with pytest.raises(ConfigError, match=r"study .*none\.yaml does not exist"):
        read_study(tmp_path / "none.yaml")


def test_an_anchor_may_be_merged_and_its_keys_repeated(tmp_path: Path) -> None:
    path = write(tmp_path)
    lines = path.read_text().replace(
        "rows:\n  plain: null\n", "rows:\n  plain: &p {train.epochs: 2, train.accumulate: 2}\n"
    )
    path.write_text(lines.replace("  warm:\n", "  warm:\n    <<: *p\n    train.epochs: 3\n"))
    rows = read_study(path).rows
    assert rows["warm"] == {"train.accumulate": 2, "train.epochs": 3, "method.temperature": 0.5}
    path.write_text(path.read_text().replace("    train.epochs: 3\n", "    train.epochs: 3\n    train.epochs: 4\n"))
    with pytest.raises(ConfigError, match=r"'train\.epochs' is there twice"):
        read_study(path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("? [1, 2]\n  : {}", "found unhashable key"),
        ("plain: &a {train: *a}", "an anchor stands inside of what it names"),
    ],
)
def test_keys_and_anchors_that_cannot_be_are_named(tmp_path: Path, row: str, words: str) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace("  plain: null", f"  {row}"))
    with pytest.raises(ConfigError, match=rf"toy\.yaml is not valid YAML: .*{words}"):
        read_study(path)


def test_an_empty_section_is_none_and_a_null_inside_of_one_is_a_value(tmp_path: Path) -> None:
    empty = {"claims": None, "cells": None, "columns": None, "base": BASE["base"], "evaluate": {"bank": 9}}
    assert read(tmp_path, **empty, scales={"cpu": None}).evaluate.bank == 9
    assert read(tmp_path, **empty, scales={"cpu": {"evaluate": {"bank": None}, "rows": None}}).evaluate.bank is None


def test_the_command_line_cannot_set_what_cells_differ_in(tmp_path: Path) -> None:
    """Or a cell named after its batch size of 16 would have another."""
    columns = {"batch 8": {"train.batch_size": 8}, "batch 16": {"train.batch_size": 16}}
    study = read(tmp_path, columns=columns)
    with pytest.raises(ConfigError, match=r"train\.batch_size \(command line\) is what cells .*'plain \| batch 8' and"):
        study.cells({"train": {"batch_size": 4}})
    with pytest.raises(
        ConfigError, match=r"method\.temperature \(command line\) is what cells of study toy-cpu differ"
    ):
        study.cells({"method.temperature": 0.2})
    assert study.cells({"train.epochs": 9})[0].settings["train.epochs"] == 9


def test_the_command_line_cannot_set_what_the_study_sets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.dir \(command line\) is set for each cell by the study"):
        read(tmp_path).cells({"run": {"dir": "x"}})


def record(row: str = "plain", seed: int = 0, column: str = "end", **changes: Any) -> Record:
    data = TrainedOn(
        name="shapes", fingerprint="f", split="own", train_images=8, test_images=4, image_size=16, channels=3
    )
    own: dict[str, Any] = {
        "study": "toy", "scale": "cpu", "plugin": "simclr", "settings": {}, "evaluate": {}, "command": "clf train",
        "backbone": "b", "epochs": 4, "batch_size": 8, "steps": 4, "parameters": 1, "wall_seconds": 90.0,
        "preparation_seconds": None, "images_per_second": 1.0, "device": "cpu", "threads": 1, "world_size": 1,
        "packages": {}, "python": "3", "commit": None, "clf_version": "0", "created": "now", "protocol": {"a": "b"},
        "scores": {"knn": 0.5},
    }  # fmt: skip
    return Record(row=row, column=column, seed=seed, data=data, **{**own, **changes})


def test_records_are_written_once_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "records.jsonl"
    assert read_records(path) == []
    assert append_record(path, record(seed=0)) and append_record(path, record(seed=1, scores={"knn": 0.25}))
    assert not append_record(path, record(seed=0, scores={"knn": 0.9}))
    assert read_records(path) == [record(seed=0), record(seed=1, scores={"knn": 0.25})]
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [0, 1]
    path.write_text(path.read_text().replace('"seed": 1', '"seed": "one"'))
    with pytest.raises(RunError, match=r"records\.jsonl, line 2 is not a record of a study \(seed: Input should be"):
        read_records(path)


def test_tables_have_means_over_seeds_and_differences_by_seed(tmp_path: Path) -> None:
    """0.5 and 0.7 are 60.0 ± 14.1; less the row's 0.4 and 0.5, 0.1 and 0.2: 15 ± 7.1, t = 12.706 times 5 about it."""
    study = read(tmp_path, columns={"a": {}, "b": {}}, cells=[{"row": "warm", "column": "b", "skip": True}])
    found = [
        *(record(seed=0, column="a", scores={"knn": 0.4}), record(seed=1, column="a", scores={"knn": 0.5})),
        record("warm", 0, "a", scores={"knn": 0.5}, preparation_seconds=120.0),
        record("warm", 1, "a", scores={"knn": 0.7}, wall_seconds=30.0),
        record(seed=0, column="b"),
        record("gone", 0, "a"),
    ]
    scores, differences, times, preparation = tables(study, found)
    assert scores.title.startswith("k-NN (k = 20), %") and scores.columns == ("a", "b")
    assert scores.rows == (("plain", "45.0 ± 7.1", "50.0 (n = 1)"), ("warm", "60.0 ± 14.1", ""))
    assert differences.rows == (("warm", "+15.0 ± 7.1 [-48.5, +78.5]"),) and differences.columns == ("a",)
    assert times.rows == (("plain", "1.5", "1.5"), ("warm", "1.0", ""))
    assert preparation.rows == (("warm", "2.0"),)
    page = markdown(study, found)
    assert "| plain | 45.0 ± 7.1 | 50.0 (n = 1) |" in page and "- a: b" in page
    assert "5 of 6 cells are done. Left out: 1 record of rows or columns" in page
    assert "Settings other than the file's: without data.name, " in page


def test_epochs_are_columns_before_the_end(tmp_path: Path) -> None:
    study = read(tmp_path, seeds=[0], evaluate={"after_epochs": {"warm": [1, 2]}})
    after = {"1": {"knn": 0.1, "wall_seconds": 1.0}}
    scores = tables(study, [record(), record("warm", after=after)])[0]
    assert scores.columns == ("epoch 1", "epoch 2", "end")
    assert scores.rows == (("plain", "", "", "50.0"), ("warm", "10.0", "-", "50.0"))


def test_reading_and_printing_need_no_torch(tmp_path: Path) -> None:
    """In the order of a person who looks: the list, then the tables, then the records."""
    append_record(tmp_path / "out" / "toy-cpu" / "records.jsonl", record(scores={"knn": 0.5, "linear": 0.25}))
    program = (
        "import sys; from pathlib import Path; from clf.commands.study import study\n"
        f"file, out = Path({str(write(tmp_path))!r}), Path({str(tmp_path / 'out')!r})\n"
        "study(file, out=out, only='', list_=True)\n"
        "study(file, out=out, only='warm', list_=True, json=True)\n"
        "study(file, out=out, table=True)\n"
        "study(file, out=out, seeds='0', table=True, json=True)\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["row", "column", "seed", "state", "knn", "linear", "minutes", "run"]
    assert lines[1].split() == ["plain", "end", "0", "done", "0.5", "0.25", "1.5", "plain--end--seed-0"]
    assert lines[2].split() == ["warm", "end", "0", "missing", "-", "-", "-", "warm--end--seed-0"]
    assert '"state": "missing"' in done.stdout and "Linear probe, %" in done.stdout and '"scores": {' in done.stdout
    assert lines[-1] == "[]"
