"""The API page shows the real keywords of the layers with their defaults, and examples as code."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

import batchnorm as bn
from batchnorm.core.rules import OPTIONS, Options, Rules

griffe = pytest.importorskip("griffe")
DEFAULTS = {f.name: f.default for f in fields(Rules) if f.init}
SOURCE = Path(bn.__file__).parents[1]


@pytest.fixture(scope="module")
def package():
    return griffe.load("batchnorm", search_paths=[SOURCE], docstring_parser="google", resolve_aliases=True)


@pytest.mark.parametrize("kind", ["BatchNorm", "SyncBatchNorm"])
def test_options_are_keywords_with_the_defaults_of_the_rules(package, kind):
    shown = package[f"layers.{kind}"].parameters
    found = inspect.signature(getattr(bn, kind)).parameters
    for name, default in DEFAULTS.items():
        assert shown[name].default == repr(default)
        assert found[name].default == default


def test_the_keywords_of_set_options_are_the_options():
    assert set(get_type_hints(Options)) == set(OPTIONS)


@pytest.mark.parametrize(
    "name", [name for name in bn.__all__ if name not in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")]
)
def test_every_public_docstring_has_an_example_that_renders_as_code(name):
    text = inspect.getdoc(getattr(bn, name))
    kinds = [section.kind.value for section in griffe.Docstring(text).parse("google", warnings=False)]
    assert "examples" in kinds
