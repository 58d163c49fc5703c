"""The API page shows the real keywords of the layers with their defaults, every argument, examples as code, sources."""

import ast
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


# Subclasses with the formula, the arguments and the examples of `BatchNorm`, which their docstrings name.
ONE_RANK = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d"}
SAME_AS_BATCH_NORM = set(inspect.signature(bn.BatchNorm).parameters) - {"process_group"}
# Names that compute nothing of their own, and so have no paper to cite.
WITHOUT_SOURCE = {
    "backend": "chooses who computes",
    "convert": "changes classes",
    "diagnose": "its rules are our own, and the page on them gives the reasons",
    "empty_cache": "frees memory",
    "freeze": "stops updates",
    "from_flax": "copies arrays",
    "from_keras": "copies arrays",
    "integrations.federated.arrays": "copies arrays",
    "integrations.federated.load": "copies arrays",
    "integrations.lightning.BatchNormCallback": "calls public functions, which name their sources",
    "integrations.lightning.BatchNormSync": "makes the layers share, as SyncBatchNorm does",
    "integrations.torchao.convert_pt2e": "wraps torchao's function",
    "integrations.torchao.move_exported_model_to_eval": "wraps torchao's function",
    "integrations.torchao.move_exported_model_to_train": "wraps torchao's function",
    "integrations.torchao.prepare_qat_pt2e": "wraps torchao's function",
    "integrations.transformers.BatchNormCallback": "calls public functions, which name their sources",
    "paused": "stops updates",
    "register": "changes classes",
    "revert": "changes classes",
    "unfreeze": "undoes freeze",
    "watch": "records what layers compute",
}


def of_integrations() -> list[str]:
    """The public names of the modules that users import: functions, and classes of the frameworks' kinds."""
    names = []
    for module in ("accelerate", "federated", "lightning", "sklearn", "torchao", "transformers"):
        tree = ast.parse((SOURCE / "batchnorm/integrations" / f"{module}.py").read_text(encoding="utf-8"))
        kinds = (ast.FunctionDef, ast.ClassDef)
        defined = [n.name for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]
        names += [f"integrations.{module}.{name}" for name in defined]
    return names


NAMES = [name for name in bn.__all__ if name not in ONE_RANK] + of_integrations()


def found(package, name):
    # `batchnorm.watch` is a function at run time and a module of the doctor in the source
    return package["doctor.watch.watch" if name == "watch" else name]


def sections(package, name):
    parsed = griffe.Docstring(found(package, name).docstring.value).parse("google", warnings=False)
    return {section.kind.value: section.value for section in parsed}


@pytest.mark.parametrize("name", NAMES)
def test_every_public_docstring_has_an_example_that_renders_as_code(package, name):
    assert "examples" in sections(package, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_described_and_no_other(package, name):
    described = sections(package, name).get("parameters", [])
    described = {part.strip(" *") for argument in described for part in argument.name.split(",")}
    real = {argument.name.lstrip("*") for argument in found(package, name).parameters} - {"self"}
    if name == "SyncBatchNorm":
        real -= SAME_AS_BATCH_NORM
    assert described == real


@pytest.mark.parametrize("name", sorted(ONE_RANK))
def test_a_layer_for_one_rank_names_the_layer_that_describes_it(name):
    assert "`BatchNorm`" in inspect.getdoc(getattr(bn, name))


@pytest.mark.parametrize("name", NAMES)
def test_what_computes_names_its_source(package, name):
    assert ("\nSource: " in "\n" + found(package, name).docstring.value) is (name not in WITHOUT_SOURCE)
