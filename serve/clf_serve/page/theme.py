"""How the page looks: Gradio's theme in the project's colours, and the tabs' style sheets and scripts, all inlined."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio

from clf_serve.style import PALETTE

_HERE = Path(__file__).parent


def accepted(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options that this version of Gradio knows."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}


def look() -> dict[str, Any]:
    """Options of ``gradio.Blocks``, or since Gradio 6 of ``mount_gradio_app``."""
    styles, scripts = PALETTE + _all("css"), _all("js")
    return {
        "theme": _theme(),
        "head": f"<style>{styles}</style><script>{scripts}</script>",
    }  # as css Gradio rewrites it


def _all(ending: str) -> str:
    """The style sheets or the scripts of all tabs, those of the page itself first."""
    paths = sorted(_HERE.glob(f"*.{ending}"), key=lambda path: (path.stem != "page", path.name))
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def _theme() -> gradio.themes.Base:
    """The palette's colours, which know light from dark by themselves, and fonts that are on the machine."""
    fonts = [gradio.themes.Font(name) for name in ("ui-sans-serif", "system-ui", "sans-serif")]
    mono = [gradio.themes.Font(name) for name in ("ui-monospace", "monospace")]
    theme = gradio.themes.Base(font=fonts, font_mono=mono, radius_size=gradio.themes.sizes.radius_lg)
    colours = {
        "body_background_fill": "var(--ground)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--soft)",
        "block_background_fill": "var(--card)",
        "block_border_color": "var(--line)",
        "block_label_text_color": "var(--soft)",
        "block_title_text_color": "var(--soft)",
        "border_color_primary": "var(--line)",
        "background_fill_primary": "var(--card)",
        "background_fill_secondary": "var(--ground)",
        "input_background_fill": "var(--card)",
        "color_accent": "var(--accent)",
        "color_accent_soft": "var(--accent-ground)",
        "button_primary_background_fill": "var(--accent)",
        "button_primary_text_color": "var(--ground)",
        "checkbox_label_background_fill": "var(--card)",
        "checkbox_label_background_fill_hover": "var(--accent-ground)",
        "checkbox_label_background_fill_selected": "var(--accent-ground)",
        "checkbox_label_text_color": "var(--ink)",
        "checkbox_label_text_color_selected": "var(--accent)",
        "checkbox_background_color_selected": "var(--accent)",
        "checkbox_border_color_selected": "var(--accent)",
        "link_text_color": "var(--accent)",
    }
    dark = {f"{name}_dark": value for name, value in colours.items()}
    return theme.set(**accepted(theme.set, colours | dark))
