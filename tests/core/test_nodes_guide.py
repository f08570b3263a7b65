"""The guide to training on several machines: its commands are run by :mod:`test_nodes`, the rest of it here."""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from namespaces import Host, two_hosts, why_not
from several_machines import (
    GUIDE,
    block,
    blocks,
    environment,
    on_one_host,
    open_the_gate,
    prepare,
    said,
    until,
    wait_at_the_gate,
)
from torch.distributed.run import parse_args

from clf import settings
from clf.runs import Run
from clf.verify.compare import end_of

needs_hosts = pytest.mark.skipif(why_not() != "", reason=why_not())
KUBERNETES = ("1.29", "1.31", "1.34")
SRUN = """
import os, signal, subprocess, sys

words = [word for word in sys.argv[1:] if not word.startswith("--")]
told = []
signal.signal(signal.SIGTERM, lambda *_: [told.append(1), *(step.terminate() for step in steps)])
steps = []
for number, (name, there) in enumerate(HOSTS.items()):
    with open(f"{name}.txt", "a") as said:
        task = {**os.environ, "SLURM_NODEID": str(number)}
        steps.append(subprocess.Popen([*there, *words], env=task, stdout=said, stderr=said))
sys.exit(max(step.wait() for step in steps))
"""
"""Stands in for SLURM's: its command runs once on each host, and a signal goes to all."""
SCONTROL = """
import os, sys

if sys.argv[1:3] == ["show", "hostnames"]:
    print(*sys.argv[3].split(","), sep="\\n")
else:
    with open("asked", "a") as file:
        print(*sys.argv[1:], file=file)
"""


def program(path: Path, text: str) -> None:
    path.write_text(f"#!{sys.executable}\n{text}", encoding="utf-8")
    path.chmod(0o755)


def submit(hosts: tuple[Host, Host], folder: Path) -> subprocess.Popen[bytes]:
    """Runs the batch script as SLURM would on the first of its nodes, with a process on each."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    program(tools / "srun", f"HOSTS = { {host.name: host.command([]) for host in hosts}!r}\n{SRUN}")
    program(tools / "scontrol", SCONTROL)
    (folder / "train.sbatch").write_text(block("train.sbatch"), encoding="utf-8")
    own = environment(folder)
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": ",".join(host.name for host in hosts),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
        "GLOO_SOCKET_IFNAME": "eth0",
    }
    paths = {"PATH": os.pathsep.join([str(tools), own["PATH"]])}
    return subprocess.Popen(["bash", "train.sbatch"], cwd=folder, env={**os.environ, **own, **job, **paths})


@pytest.mark.slow
@needs_hosts
def test_a_slurm_job_that_must_leave_goes_on_when_it_is_queued_again(tmp_path: Path) -> None:
    """On hosts whose names have addresses that only they can reach, as Debian's installer leaves them."""
    prepare(tmp_path)
    with two_hosts(tmp_path) as hosts:
        for host in hosts:
            table = host.hosts_file.read_text()
            host.hosts_file.write_text(table.replace(f"{host.address} {host.name}", f"127.0.1.1 {host.name}"))
        other = f"{hosts[0].address} {hosts[0].name}\n"
        hosts[1].hosts_file.write_text(hosts[1].hosts_file.read_text() + other)
        job = submit(hosts, tmp_path)
        wait_at_the_gate(tmp_path, 2, lambda: said(hosts, tmp_path))
        job.send_signal(signal.SIGTERM)
        until(
            lambda: all("closing signal SIGTERM" in host.said(tmp_path) for host in hosts),
            lambda: said(hosts, tmp_path),
        )
        open_the_gate(tmp_path)
        assert job.wait(120) == 1
        assert (tmp_path / "asked").read_text() == "requeue 7\n"
        assert "stopped by SIGTERM at step 9" in hosts[0].said(tmp_path)
        assert submit(hosts, tmp_path).wait(240) == 0, said(hosts, tmp_path)
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert Run(tmp_path / "runs" / "first").state() == "complete"


@pytest.mark.slow
@needs_hosts
def test_a_pod_that_is_lost_and_made_again_joins_again(tmp_path: Path) -> None:
    """Two pods with one process each; what was lost is the same pod's on any node."""
    prepare(tmp_path)
    words = pod()["command"] + ["--nproc-per-node=1" if "nproc" in word else word for word in pod()["args"]]
    with two_hosts(tmp_path, ("first-0", "first-1"), "first") as pods:
        own = environment(tmp_path) | {each["name"]: each["value"] for each in pod()["env"]}
        kept, lost = (each.start(words, tmp_path, own) for each in pods)
        wait_at_the_gate(tmp_path, 2, lambda: said(pods, tmp_path))
        pods[1].kill()
        open_the_gate(tmp_path)
        again = pods[1].start(words, tmp_path, own)
        assert (again.wait(240), kept.wait(240)) == (0, 0), said(pods, tmp_path)
        assert lost.wait() != 0
    end, whole = end_of(Run(tmp_path / "runs" / "first")), on_one_host(tmp_path, "whole", 2)
    assert (end.state_sha256, end.records_sha256) == (whole.state_sha256, whole.records_sha256)


def manifests() -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in yaml.safe_load_all(block("train-job.yaml"))}


def pod() -> dict[str, Any]:
    (container,) = manifests()["Job"]["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_manifests_are_what_kubernetes_takes(version: str) -> None:
    for each in manifests().values():
        kubernetes_validate.validate(each, version, strict=True)
    worse = copy.deepcopy(manifests()["Job"])
    worse["spec"]["completionmode"] = worse["spec"].pop("completionMode")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(worse, version, strict=True)


def test_the_manifests_belong_together() -> None:
    service, job = manifests()["Service"], manifests()["Job"]
    spec, name = job["spec"]["template"]["spec"], job["metadata"]["name"]
    told = parse_args(pod()["args"])
    assert service["spec"]["selector"] == {"job-name": name}  # a label that the Job gives its pods
    assert spec["subdomain"] == service["metadata"]["name"]
    assert told.rdzv_endpoint == f"{name}-0.{spec['subdomain']}:29400"
    assert int(told.nnodes) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert told.nproc_per_node == pod()["resources"]["limits"]["nvidia.com/gpu"]
    assert told.shutdown_timeout < spec["terminationGracePeriodSeconds"]
    assert told.max_restarts == job["spec"]["backoffLimit"]
    assert {each["name"] for each in pod()["volumeMounts"]} == {each["name"] for each in spec["volumes"]}


def test_the_batch_script_leaves_time_to_leave() -> None:
    text = block("train.sbatch")
    asked = re.search(r"--signal=B:TERM@(\d+)", text)
    waits = re.search(r"--shutdown-timeout (\d+)", text)
    assert asked and waits and int(waits[1]) < int(asked[1])


def test_every_block_is_known_and_every_command_is_one() -> None:
    found = [(each.file or each.text.split()[0], each.language) for each in blocks()]
    assert found == [
        ("train.yaml", "yaml"),
        ("torchrun", "sh"),
        ("export", "sh"),
        ("train.sbatch", "bash"),
        ("train-job.yaml", "yaml"),
    ]
    for each in blocks():
        if each.language in ("sh", "bash"):
            subprocess.run(["bash", "-n"], input=each.text, text=True, check=True, timeout=30)


def test_the_configuration_is_one(tmp_path: Path) -> None:
    from clf import config as configuration

    path = tmp_path / "train.yaml"
    path.write_text(block("train.yaml"), encoding="utf-8")
    config, _ = settings.resolve([configuration.read_file(path)])
    assert (config.run.name, config.train.batch_size) == ("first", 512)


def test_the_guide_tells_the_defaults() -> None:
    from clf.config import TrainSection
    from clf.distributed import TIMEOUT, UNREACHABLE

    text = GUIDE.read_text(encoding="utf-8")
    assert f"`train.unreachable_seconds` ({TrainSection().unreachable_seconds})" in text
    assert TrainSection().unreachable_seconds == UNREACHABLE
    assert "after ten minutes" in text and TIMEOUT.total_seconds() == 600
