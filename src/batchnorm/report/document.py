"""Pages that need no other file: they contain style, script, figures and, if asked for, plotly.js."""

from __future__ import annotations

import importlib
import json
from html import escape
from importlib.resources import files
from typing import Any

from .chart import COLORS, color_variables

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


def plotly(part: str) -> Any:
    """A module of plotly. Raises ImportError, naming the extra to install, if it is missing."""
    try:
        return importlib.import_module(f"plotly.{part}")
    except ImportError as error:
        raise ImportError("the report needs plotly: pip install 'batchnorm[study]'") from error


def document(
    title: str, body: str, figures: dict[str, dict[str, Any]] | None = None, script: str = "", style: str = ""
) -> str:
    """The HTML page around a body. The body has an empty element with the id of each plotly figure.

    Without figures plotly is not needed and the page is small. With figures plotly.js is inlined once. A content
    security policy forbids every request. The title is escaped here, the body is not.
    """
    library = f"<script>{plotly('offline').get_plotlyjs()}</script>\n" if figures else ""
    if figures:
        data = json.dumps(figures).replace("<", "\\u003c")
        script = (
            f"const FIGURES = {data};\nconst DARK = {json.dumps(dict(COLORS.values()))};\n{part('figures.js')}{script}"
        )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>:root {{ {color_variables(dark=False)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {color_variables(dark=True)} }} }}
{part("page.css")}{style}</style>
{library}</head>
<body>
<main>
{body}
</main>
{f"<script>{script}</script>" if script else ""}
</body>
</html>
"""


def part(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
