"""Docstrings of the package begin with a statement, and every module says what it is for."""

import ast
from pathlib import Path

import pytest

import batchnorm

SOURCE = Path(batchnorm.__file__).parent
# Commands and pages of results have tests of their own words; the folders below hold the rest of the package.
FOLDERS = ("core", "training", "tools", "backends", "integrations", "conformance")
FILES = [
    SOURCE / "layers.py",
    SOURCE / "functional.py",
    *(f for name in FOLDERS for f in (SOURCE / name).rglob("*.py")),
]
QUESTION_WORDS = {"What", "How", "Whether", "Which", "Where", "Why", "Who", "When"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SOURCE).as_posix())
def test_docstrings_begin_with_a_statement(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    assert ast.get_docstring(tree), "a module needs a docstring"
    assert [text for text in texts if text and text.split()[0] in QUESTION_WORDS] == []
