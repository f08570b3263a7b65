"""clf embed --engine ray, on a real Ray of this machine. In processes of its own: Ray leaves threads and warnings."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bulk_helpers import embedded, tree, write_tar
from serve_helpers import PROGRAM, encoded, picture

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")

_SUITE = """
import json, os, subprocess
from clf_serve.bulk import rays, run_checks

def ours(pid):
    while pid > 1 and pid != os.getpid():
        pid = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
    return pid == os.getpid()

def open_to_all():
    lines = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True).stdout.splitlines()
    told = [(line.split()[3], int(line.partition("pid=")[2].split(",")[0])) for line in lines if "pid=" in line]
    own = [address for address, pid in told if ours(pid)]
    assert own
    return [address for address in own if not address.lstrip("[").startswith(("127.", "::ffff:127.", "::1"))]

with rays.started():
    addresses = open_to_all()
    found = run_checks("ray")
print(json.dumps({**found.as_dict(), "open": addresses}))
"""


@pytest.mark.slow
def test_it_is_the_same_as_the_local_engine(model: Path, tmp_path: Path) -> None:
    """From the command line to the last byte; then there is nothing to do."""
    pictures = [(f"{i:03d}.png", encoded(picture(i)) if i != 4 else b"bad") for i in range(10)]
    for name in "abc":
        write_tar(tmp_path / f"{name}.tar", pictures)
    source, out = str(tmp_path / "{a,b,c}.tar"), tmp_path / "out"
    words = ["embed", str(model), source, "-o", str(out), "--engine", "ray", "--workers", "1", "--provider", "cpu"]
    words += ["--shard-size", "4", "--batch-size", "2", "--format", "npy", "--json"]

    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=300)
    again = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=300)

    assert (done.returncode, done.stderr) == (0, ""), done
    facts = json.loads(done.stdout)
    assert (facts["embedded"], facts["skipped_total"], facts["made"], facts["engine"]) == (27, 3, 30, "ray")
    assert json.loads(again.stdout)["made"] == 0
    embedded(model, source, tmp_path / "local")
    assert tree(out) == tree(tmp_path / "local")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ss") is None, reason="ss (iproute2) is not installed")
def test_it_passes_the_suite_for_engines() -> None:
    """All of it; Ray listens on loopback only."""
    done = subprocess.run([sys.executable, "-c", _SUITE], capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert [check for check in found["checks"] if check["state"] != "passed"] == []
    assert found["conforms"] and found["open"] == []


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it has no /tmp that all share")
def test_what_a_killed_command_has_left_is_removed_by_the_next() -> None:
    program = "from clf_serve.bulk import rays\nwith rays.started():\n    print('started', flush=True)\n    input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "started\n"
        child.kill()
    owned = [file for file in Path("/tmp").glob("clf-*/owner") if file.read_text().endswith(f" {child.pid}")]
    assert len(owned) == 1 and (owned[0].parent / "r").is_dir()

    done = subprocess.run([sys.executable, "-c", program], input="\n", capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")
    assert not owned[0].parent.exists()


def test_what_it_cannot_do_is_said(model: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.png", encoded(picture(1)))])
    words = ["embed", str(model), str(tmp_path / "a.tar"), "-o", "memory://x", "--engine", "ray"]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "memory://x is seen by one process only; name a folder or another URL with -o" in done.stderr

    words[4] = str(tmp_path / "out")
    hidden = "import sys\nsys.modules['ray'] = None\nimport importlib.util as u\nfind = u.find_spec\n"
    hidden += "u.find_spec = lambda name, *a: None if name == 'ray' else find(name, *a)\n"
    done = subprocess.run([sys.executable, "-c", hidden + PROGRAM, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "--engine ray needs the package 'ray', which is not installed: pip install 'clf-vision[ray]'" in done.stderr
