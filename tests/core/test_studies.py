"""The studies of this repository: valid, with settings that the installed plugins take, and said how to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from clf.study.cells import configure
from clf.study.spec import Study, read_studies

ROOT = Path(__file__).resolve().parents[2]
STUDIES = read_studies(ROOT / "configs/studies")


@pytest.mark.parametrize("study", STUDIES, ids=str)
def test_every_cell_can_be_configured(study: Study, tmp_path: Path) -> None:
    """Also from an archive in place of the downloaded set, whose options it does not take."""
    archive = {"data.name": "npz", "data.root": "cifar10.npz"}
    for given, options in ({}, {"held_out_batch": 5}), (archive, {}):
        for cell in study.cells(given):
            if cell.seed == study.seeds[0]:
                config = configure(cell, tmp_path)
                assert config.data.options == options and config.monitor.knn_every == 0


@pytest.mark.parametrize("path", sorted((ROOT / "configs/studies").glob("*.yaml")), ids=lambda path: path.name)
def test_the_file_says_how_to_run_it_and_has_both_scales(path: Path) -> None:
    header = path.read_text(encoding="utf-8").partition("\n\n")[0]
    assert path.stem in {study.name for study in STUDIES}
    for scale in ("cpu", "gpu"):
        assert f"clf study configs/studies/{path.name} --scale {scale} " in header
        assert any((study.name, study.scale) == (path.stem, scale) for study in STUDIES)


@pytest.mark.parametrize("study", STUDIES, ids=str)
def test_every_row_is_compared_with_the_reference_on_equal_terms(study: Study) -> None:
    """Cells of one column and seed have the same data, network and precision, whatever their method is."""
    shared = ("data.limit", "data.name", "backbone.name", "backbone.stem", "train.precision", "train.device")
    for column in study.columns:
        own = [cell.settings for cell in study.cells() if cell.column == column]
        assert len({tuple(str(settings.get(key)) for key in shared) for settings in own}) == 1


def test_each_claim_of_a_study_can_be_told_at_both_scales_or_names_an_epoch() -> None:
    by_name: dict[str, list[Study]] = {}
    for study in STUDIES:
        by_name.setdefault(study.name, []).append(study)
    for name, scales in by_name.items():
        told = [{claim.text for claim in study.claims if claim.after is None} for study in scales]
        assert all(each == told[0] for each in told), name
        assert name == "speedrun" or told[0]
