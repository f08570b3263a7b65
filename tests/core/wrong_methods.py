"""Plugins that are wrong in one way each, as packages, and the one check that must tell of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import conformance_bodies as bodies
from conforming import REQUIRES
from plugins_to_verify import HEAD

SETTINGS = "class Settings(clf.MethodConfig):\n    pass\n"


@dataclass(frozen=True)
class Wrong:
    """A package ``clf-mine`` with the plugin ``mine``."""

    check: str
    source: str
    requires: tuple[str, ...] = REQUIRES
    beside: str = ""
    """A file that is installed beside the package."""

    def install(self, install: Callable[..., Path]) -> None:
        site = install(
            "clf-mine", plugins={"mine": "clf_mine"}, modules={"clf_mine": self.source}, requires=self.requires
        )
        files = ["clf_mine.py", *([self.beside] if self.beside else [])]
        (site / "clf_mine-1.0.dist-info" / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def trained(check: str, body: str) -> Wrong:
    return Wrong(check, HEAD + body)


def good(old: str = "", new: str = "") -> str:
    """A right package, but for one change of its source."""
    source = HEAD + bodies.GOOD
    assert old in source
    return source.replace(old, new, 1) if old else source


def settings(line: str) -> str:
    return good(SETTINGS, f"from pydantic import Field\n\nclass Settings(clf.MethodConfig):\n    {line}\n")


LOOKS_AT_SOME_ROWS = bodies.plain(
    done="self.backbone.eval()\n"
    "with torch.no_grad(): self.backbone(batch.views[0][: 1 + ctx.step])\n"
    "self.backbone.train()"
)
"""In eval mode, where batch norm keeps nothing of them: with statistics it would be wrong on several ranks too."""

WRONG: Mapping[str, Wrong] = {
    "hook without its mark": Wrong("loads", good("@clf.hookimpl")),
    "ends the process at import": Wrong("loads", good("import clf\n", "import clf\nos._exit(0)\n")),
    "another name": Wrong("name", good('name = "mine"', 'name = "yours"')),
    "no description": Wrong("config", settings("tau: float = 0.5")),
    "thawed settings": Wrong("config", settings("model_config = {'frozen': False}")),
    "no default": Wrong("defaults", settings("tau: float = Field(description='tau')")),
    "recommends a key that is none": Wrong(
        "defaults", good("    Config = Settings\n", "    Config = Settings\n    defaults = {'optimizer.rate': 1}\n")
    ),
    "private names": Wrong("imports", good("import clf\n", "import clf\nfrom clf.trainer import Trainer\n")),
    "prints at import": Wrong("import is quiet", good("import clf\n", "import clf\nprint('hello')\n")),
    "seeds torch at import": Wrong("import is quiet", good("import clf\n", "import clf\ntorch.manual_seed(0)\n")),
    "no upper bound": Wrong("requirement", good(), requires=("clf-vision>=0.1",)),
    "installs its tests": Wrong("package", good(), beside="tests/__init__.py"),
    "loss is a number": trained("trains", bodies.FLOAT),
    "loss without a gradient": trained("trains", bodies.DETACHED),
    "loss becomes infinite": trained("trains", bodies.INFINITE),
    "counts in fours": trained("odd batch", bodies.FOURS),
    "three channels": trained("one channel", bodies.COLOURS),
    "single precision": trained("float64", bodies.SINGLE),
    "queue of another type": trained("bf16", bodies.STORES_HALF),
    "untrained head": trained("parameters move", bodies.UNUSED_HEAD),
    "trained outside of all groups": trained("parameters move", bodies.LEFT_OUT),
    "one view twice": trained("views matter", bodies.ONE_VIEW_TWICE),
    "reads labels": trained("no labels", bodies.OWN_LABELS),
    "goes round the backbone": trained("chunks", bodies.INSIDE),
    "other rows in each step": trained("compile", LOOKS_AT_SOME_ROWS),
    "state that grows": trained("state size", bodies.GROWS),
    "data in the state": trained("state size", bodies.KEEPS_IMAGES),
    "pickles": trained("state size", bodies.PICKLES),
    "random numbers of its own": trained("repeatable", bodies.FROM_NUMPY),
    "counts in an attribute": trained("resume", bodies.COUNTS),
    "counts its preparation": trained("resume", bodies.COUNTS_PREPARATION),
    "negatives of its own rank": trained("ranks", bodies.DOES_NOT_GATHER),
    "encoder that sees the batch": trained("export", bodies.CENTRES),
}
