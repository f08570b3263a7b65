"""What the README shows is what is in the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_simclr_is_shown_whole() -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    assert code.group(1) == (ROOT / "plugins/simclr/clf_simclr/__init__.py").read_text(encoding="utf-8")


def test_the_links_lead_somewhere() -> None:
    local = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert local
    for link in local:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings], link


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_configuration_is_valid_and_says_what_it_gave(path: Path) -> None:
    from clf import config
    from clf.plugins import load_method

    layer = config.read_file(path)
    config.build([layer], load_method(layer.values["plugin"]).Config)
    header = path.read_text(encoding="utf-8").partition("\n\n")[0]
    assert header.startswith("#") and "clf train" in header
