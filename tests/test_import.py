"""`import batchnorm` loads torch and nothing heavy."""

import subprocess
import sys

import pytest

HEAVY = {"plotly", "pandas", "pyarrow", "sklearn", "scipy", "typer", "rich", "matplotlib", "onnx", "triton"}


def loaded_by(statement: str) -> set[str]:
    """The heavy packages that a fresh process has loaded after `statement`, beyond those that torch itself loads."""
    program = f"import sys, torch; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {name for name in done.stdout.split() if name in HEAVY}


def test_import_loads_nothing_heavy():
    assert loaded_by("import batchnorm") == set()


def test_a_first_call_on_the_reference_loads_nothing_of_the_study():
    call = "import batchnorm; batchnorm.BatchNorm2d(3)(torch.ones(2, 3, 4, 4)).sum().backward()"
    assert loaded_by(call) == set()


@pytest.mark.parametrize("package", ["sklearn", "plotly"])
def test_the_check_can_fail(package):
    pytest.importorskip(package)
    assert package in loaded_by(f"import batchnorm, {package}")


def test_public_names_are_there_and_documented():
    import batchnorm

    assert sorted(batchnorm.__all__) == sorted(set(batchnorm.__all__))
    for name in batchnorm.__all__:
        assert getattr(batchnorm, name).__doc__, name
