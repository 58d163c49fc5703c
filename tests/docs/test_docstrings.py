"""Docstrings of the package begin with a statement, and every module has one."""

import ast
from pathlib import Path

import pytest

import batchnorm

SOURCE = Path(batchnorm.__file__).parent
FILES = sorted(f for f in SOURCE.rglob("*.py") if "node_modules" not in f.parts)
QUESTION_WORDS = {"What", "How", "Whether", "Which", "Where", "Why", "Who", "When"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SOURCE).as_posix())
def test_docstrings_begin_with_a_statement(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    assert ast.get_docstring(tree), "a module needs a docstring"
    assert [text for text in texts if text and text.split()[0] in QUESTION_WORDS] == []
