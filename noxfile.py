"""Every supported Python with every supported torch, in an environment each: ``nox --list``.

    nox -s "tests(python='3.12', torch='2.13.0')"    # all tests with one pair
    nox -s compatibility --python 3.12               # the tests that docs/compatibility.md lists, recorded there
    nox -s wheel -- -x                               # what follows -- goes to pytest

A Python that is not installed is skipped, and is an error with --error-on-missing-interpreters.
"""

import re
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "tests", "wheel"]
nox.options.reuse_existing_virtualenvs = True

PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))
# The last patch of each release since the oldest that the metadata admits, and the Pythons that its wheels are for.
TORCH = {
    "2.8.0": PYTHONS[:3],
    "2.9.1": PYTHONS,
    "2.10.0": PYTHONS,
    "2.11.0": PYTHONS,
    "2.12.1": PYTHONS,
    "2.13.0": PYTHONS,
    "2.14.1": PYTHONS,
    "2.15.0": PYTHONS,
}
PAIRS = [(python, torch) for torch, pythons in TORCH.items() for python in pythons]

# constraints.txt pins these for one release of torch; with another, pip chooses what fits.
TIED_TO_TORCH = {"torch", "torchao", "torchvision", "triton"}


def install(session: nox.Session, *packages: str) -> None:
    """Install packages in the versions of constraints.txt, except those tied to a release of torch."""
    lines = Path("constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if re.split("==", line)[0] not in TIED_TO_TORCH]
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text("\n".join(kept) + "\n", encoding="utf-8")
    session.install("--constraint", str(constraints), *packages)


@nox.session
@nox.parametrize("python,torch", PAIRS)
def tests(session: nox.Session, torch: str) -> None:
    """All tests."""
    install(session, f"torch=={torch}", "--editable", ".[dev]")
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session
@nox.parametrize("python,torch", PAIRS)
def compatibility(session: nox.Session, torch: str) -> None:
    """The tests that cover the package, and their outcome in docs/compatibility.md."""
    install(session, f"torch=={torch}", "--editable", ".[test]")
    session.run("python", "docs/compatibility.py", *session.posargs)


@nox.session(python=PYTHONS[0])
def lint(session: nox.Session) -> None:
    """Lint, format, spelling and types."""
    install(session, "--editable", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")
    session.run("mypy")


@nox.session(python=PYTHONS)
def wheel(session: nox.Session) -> None:
    """A wheel and an sdist, built in isolation, installed into an empty environment, and tried."""
    install(session, f"torch=={list(TORCH)[-1]}", "--editable", ".[test]")
    session.run("pytest", "-m", "packaging", "tests/test_packaging.py", *session.posargs)
