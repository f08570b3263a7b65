"""What the metadata of an installed distribution tells about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from clf.catalogue import requirement_on_clf

_HOME = ("homepage", "home", "home-page", "repository", "source", "source code", "github")
"""Labels of ``Project-URL`` that name the place of a project, the best one first."""


@dataclass(frozen=True)
class About:
    """Each is empty where the metadata does not say."""

    summary: str = ""
    authors: str = ""
    home_page: str = ""
    license: str = ""
    requires_clf: str = ""
    """Its requirement on clf-vision, such as ``clf-vision<0.2,>=0.1``."""


def about(distribution: str) -> About:
    """What is known of a distribution; of one that cannot be found or read, nothing."""
    try:
        found = metadata.distribution(distribution)
        fields = found.metadata
    except Exception:  # a third party's damaged file; the catalogue says what is wrong with it
        return About()

    def one(name: str) -> str:
        text = " ".join(str(fields[name] or "").split()) if name in fields else ""
        return "" if text == "UNKNOWN" else text

    requirements = [requirement_on_clf(text) for text in found.requires or ()]
    return About(
        summary=one("Summary"),
        authors=one("Author") or one("Author-email"),
        home_page=_home_page(fields.get_all("Project-URL") or ()) or one("Home-page"),
        license=one("License-Expression") or _licence(one("License"), fields.get_all("Classifier") or ()),
        requires_clf=", ".join(f"{each.name}{each.specifier}" for each in requirements if each is not None),
    )


def _home_page(urls: Iterable[str]) -> str:
    labelled = {label.strip().lower(): url.strip() for label, _, url in (str(each).partition(",") for each in urls)}
    return next((labelled[label] for label in _HOME if label in labelled), "")


def _licence(text: str, classifiers: Iterable[str]) -> str:
    """The classifier's name, where the field holds a whole text."""
    if text and len(text) < 60:
        return text
    named = [str(each).rpartition("::")[2].strip() for each in classifiers if str(each).startswith("License ::")]
    return ", ".join(named)
