"""A hook of mkdocs: the page of `batchnorm play` becomes part of the site, where it can be built."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.structure.files import File, Files

from batchnorm.play import NoPageError, write_page

PLACE = "play/page.html"


def on_files(files: Files, config: Any) -> Files:
    with TemporaryDirectory() as folder:
        try:
            text = write_page(Path(folder), docs="../").read_text(encoding="utf-8")
        except NoPageError as error:
            print(f"the site has no page to play with: {error}")
        else:
            files.append(File.generated(config, PLACE, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Without the page, the line that links to it is left out."""
    if files.get_file_from_path(PLACE):
        return markdown
    return "\n".join(line for line in markdown.splitlines() if PLACE not in line)
