"""Training on two hosts with two ranks each, by the commands of the guide; then one host is lost.

The hosts are network namespaces (:mod:`namespaces`), the processes real ones under torchrun.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from namespaces import two_hosts, why_not
from several_machines import (
    UNREACHABLE,
    block,
    in_a_folder,
    on_one_host,
    open_the_gate,
    prepare,
    said,
    start,
    wait_at_the_gate,
)
from test_distributed import TINY, command, on_ranks

from clf import distributed
from clf.runs import Run
from clf.verify.compare import differences, end_of
from clf.verify.ranking import TOLERANCE

needs_hosts = pytest.mark.skipif(why_not() != "", reason=why_not())
LOST = f"lost the other ranks: one of them ended, its machine has been unreachable for {UNREACHABLE} seconds"


@pytest.mark.slow
@needs_hosts
def test_a_host_that_is_cut_off_is_noticed_and_the_same_ranks_go_on_exactly(tmp_path: Path) -> None:
    """Static rendezvous: no packet comes any more, no connection is closed; then the same command again."""
    prepare(tmp_path)
    text = block("--node-rank")
    with two_hosts(tmp_path) as hosts:
        jobs = start(hosts, tmp_path, text)
        wait_at_the_gate(tmp_path, 4, lambda: said(hosts, tmp_path))
        hosts[1].cut_off()
        open_the_gate(tmp_path)
        assert [job.wait(120) for job in jobs] == [1, 1]
        for host in hosts:
            assert f"error: rank {'0' if host is hosts[0] else '2'} {LOST}" in host.said(tmp_path)
            assert "clf/trainer.py" not in host.said(
                tmp_path
            )  # torchrun shows its own traceback; there is none of ours
        hosts[1].reconnect()
        assert [job.wait(240) for job in start(hosts, tmp_path, text)] == [0, 0], said(hosts, tmp_path)
    end = end_of(Run(tmp_path / "runs" / "first"))
    whole = on_one_host(tmp_path, "whole", 4)
    assert end.state["step"] == 12
    assert (end.state_sha256, end.records_sha256) == (whole.state_sha256, whole.records_sha256)
    one = on_one_host(tmp_path, "one", 1)
    assert differences(one, end, ("with one process", "on two hosts"), TOLERANCE) == []


@pytest.mark.slow
@needs_hosts
def test_the_host_that_is_left_goes_on_by_itself(tmp_path: Path) -> None:
    """Elastic rendezvous: every process of one host is killed; the launcher of the other starts its two ranks again."""
    prepare(tmp_path)
    text = block("--nnodes 1:2").replace("--rdzv-backend", "--rdzv-conf last_call_timeout=15 --rdzv-backend")
    with two_hosts(tmp_path) as hosts:
        jobs = start(hosts, tmp_path, text)
        wait_at_the_gate(tmp_path, 4, lambda: said(hosts, tmp_path))
        hosts[1].kill()
        open_the_gate(tmp_path)
        assert jobs[0].wait(240) == 0, said(hosts, tmp_path)
        assert LOST in hosts[0].said(tmp_path)
    run = Run(tmp_path / "runs" / "first")
    assert run.state() == "complete"
    one = on_one_host(tmp_path, "one", 1)
    assert differences(one, end_of(run), ("with one process", "with four, then two ranks"), TOLERANCE) == []


def come_alone() -> None:
    """Rank 1 ends before it joins."""
    distributed.TIMEOUT = timedelta(seconds=2)
    if os.environ["RANK"] == "1":
        sys.exit(2)
    with distributed.together("cpu"):
        pass


def test_a_rank_that_waits_for_others_in_vain_says_what_to_look_at(tmp_path: Path) -> None:
    (code, err), _ = on_ranks(2, tmp_path, come_alone)
    assert code == 1
    assert "clf.errors.TrainingError: rank 0 could not join the others (" in err
    assert "GLOO_SOCKET_IFNAME=DEVICE" in err


def on_a_machine_of_its_own(folder: Path, *words: str) -> None:
    own = folder / f"machine-{os.environ['RANK']}"
    own.mkdir(exist_ok=True)
    in_a_folder(own, *words)


def test_a_run_folder_that_is_not_shared_is_refused_when_it_is_needed(tmp_path: Path) -> None:
    """It begins, since rank 0 alone writes; the second rank has nothing that it could go on from."""
    words = ("train", "--plugin", "simclr", *TINY, "train.max_steps=2", "run.name=first", "--resume", "auto")
    for code, err in on_ranks(2, tmp_path, on_a_machine_of_its_own, tmp_path, *words):
        assert code == 0, err
    assert not (tmp_path / "machine-1" / "runs").exists()
    sees, misses = on_ranks(2, tmp_path, on_a_machine_of_its_own, tmp_path, *words)
    assert (sees[0], misses[0]) == (2, 2)
    assert "rank 0 sees the checkpoints of run 'first' in" in sees[1] and "others do not: run.dir must be" in sees[1]
    assert f"rank 1 does not see the checkpoints of run 'first' in {tmp_path}/machine-1/runs" in misses[1]


def with_images_of_its_own(*words: str) -> None:
    command(*words, f"data.options.test_images={16 + int(os.environ['RANK'])}")


def test_other_images_on_another_machine_are_refused(tmp_path: Path) -> None:
    words = ("train", "--plugin", "simclr", *TINY, f"run.dir={tmp_path}/runs")
    for rank, (code, err) in enumerate(on_ranks(2, tmp_path, with_images_of_its_own, *words)):
        assert code == 2
        assert f"the ranks see different images of shapes (96 to train on for rank {rank})" in err
    assert not list((tmp_path / "runs").glob("*"))
