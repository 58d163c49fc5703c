"""The package as it is distributed: its metadata, what is in the wheel, and an installation in an empty environment.

Tests marked `packaging` build and install; `make wheel` runs them.
"""

import email
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
VERSION = PYPROJECT["project"]["version"]

packaging = pytest.mark.packaging
Run = Callable[..., str]


# ---- the files that say the same things


def test_the_citation_has_the_version_of_the_package() -> None:
    yaml = pytest.importorskip("yaml", reason="reads CITATION.cff")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == VERSION
    assert citation["license"] == PYPROJECT["project"]["license"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    latest = re.findall(r"^## (\d\S+), (\d{4}-\d\d-\d\d)$", changelog, re.M)[0]
    assert latest == (citation["version"], str(citation["date-released"]))
    assert f"Version {VERSION}" in (ROOT / "docs" / "cite.md").read_text(encoding="utf-8")


def sessions() -> list[dict[str, Any]]:
    """The sessions as nox lists them for a program."""
    pytest.importorskip("nox", reason="lists the sessions")
    command = [sys.executable, "-m", "nox", "--noxfile", str(ROOT / "noxfile.py"), "--list", "--json", "--session"]
    done = subprocess.run([*command, "tests", "compatibility", "lint", "wheel"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_sessions_cover_what_the_metadata_claims() -> None:
    found = sessions()
    classifiers = re.findall(r"Python :: (3\.\d+)$", "\n".join(PYPROJECT["project"]["classifiers"]), re.M)
    oldest = re.search(r"torch>=(\S+?)[\"',]", json.dumps(PYPROJECT["project"]["dependencies"]))
    assert oldest is not None
    for name in ("tests", "compatibility"):
        pairs = [(s["python"], re.search(r"torch='(.*)'", s["session"])) for s in found if s["name"] == name]
        releases = [match[1] for _, match in pairs if match]
        assert len(releases) == len(pairs)
        assert sorted({python for python, _ in pairs}) == classifiers
        assert releases[0].startswith(f"{oldest[1]}.")
    assert PYPROJECT["project"]["requires-python"] == f">={classifiers[0]}"


def test_the_workflow_runs_what_there_is() -> None:
    """Its commands are a target of the Makefile and sessions of nox."""
    yaml = pytest.importorskip("yaml", reason="reads the workflow")
    workflow = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    actions = [step["uses"] for step in steps if "uses" in step]
    assert actions
    # A tag can be moved to another commit.
    assert [action for action in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)] == []
    commands = [step["run"] for step in steps if "run" in step]
    assert "make check" in commands
    assert re.search(r"^check:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    listing = re.search(r"nox --session (.+?) --list", "\n".join(commands))
    assert listing is not None
    assert set(listing[1].split()) <= {session["name"] for session in sessions()}


def test_the_sessions_that_the_docs_name_are_there() -> None:
    found = sessions()
    known = {session[key] for session in found for key in ("session", "name")}
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("noxfile.py", "docs/compatibility.md")]
    named = re.findall(r'^ *nox -s (?:"(.+?)"|(\w+))', "\n".join(texts), re.M)
    assert len(named) == 5
    assert {quoted or plain for quoted, plain in named} <= known


def test_hooks_use_programs_of_the_environment() -> None:
    yaml = pytest.importorskip("yaml", reason="reads .pre-commit-config.yaml")
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local"
    programs = {hook["entry"].split()[0] for hook in repository["hooks"]}
    assert programs == {f".venv/bin/{name}" for name in ("ruff", "codespell", "mypy")}
    dev = PYPROJECT["project"]["optional-dependencies"]["dev"]
    assert {Path(program).name for program in programs} <= set(dev)


def test_every_pin_is_of_one_version() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = [re.fullmatch(r"([\w.-]+)==[\w.]+", line) for line in lines]
    assert all(names)
    assert len({match[1].lower().replace("_", "-") for match in names if match}) == len(lines)


# ---- a wheel and an sdist, built in isolation


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both: the sdist is built from the tree, the wheel from the sdist."""
    folder, mark = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("mark") / "called"
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, env=with_marked_compiler(mark), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not mark.exists(), "the build called a compiler"
    return folder


def with_marked_compiler(mark: Path) -> dict[str, str]:
    """An environment whose compiler leaves a mark and fails."""
    compiler = mark.parent / "compiler"
    compiler.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    compiler.chmod(0o755)
    return os.environ | {"CC": str(compiler), "CXX": str(compiler)}


@packaging
def test_contents_of_the_wheel(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"batchnorm-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = email.message_from_bytes(archive.read(f"batchnorm-{VERSION}.dist-info/METADATA"))
    sources = ROOT / "src"
    kinds = "*.py", "*.typed", "*.cpp", "*.h", "*.js", "*.css"
    wanted = {str(p.relative_to(sources)) for kind in kinds for p in sources.rglob(kind) if "page" not in p.parts}
    assert {"batchnorm/py.typed", "batchnorm/backends/native/ops.cpp", "batchnorm/report/page.css"} <= wanted
    assert wanted <= names
    assert f"batchnorm-{VERSION}.dist-info/licenses/LICENSE" in names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"batchnorm", "batchnorm_command.py", "batchnorm_conformance.py", f"batchnorm-{VERSION}.dist-info"}
    assert not [name for name in names if "__pycache__" in name or "node_modules" in name or name.endswith(".so")]
    assert metadata["Requires-Python"] == PYPROJECT["project"]["requires-python"]
    required = [r for r in metadata.get_all("Requires-Dist") or [] if "extra ==" not in r]
    assert sorted(required) == sorted(PYPROJECT["project"]["dependencies"])
    # The installation below sees all packages of this environment, so it does not fail for one that is there.
    assert {re.split("[<>=]", r)[0] for r in required} == {"torch", "numpy", "rich", "typer"}


@packaging
def test_contents_of_the_sdist(built: Path) -> None:
    with tarfile.open(built / f"batchnorm-{VERSION}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "src/batchnorm/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks", ".ci"))]


# ---- an installation


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of an environment that has the wheel, and else only sees what this one has.

    pip is given no index: an installation that needs another torch than this one, or any other package, fails.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    visible = folder / "visible"
    visible.mkdir()
    entries = [entry for place in sys.path if place.endswith("site-packages") for entry in Path(place).iterdir()]
    for entry in reversed(entries):  # what stands first on the path is linked last
        if "batchnorm" not in entry.name:
            (visible / entry.name).unlink(missing_ok=True)
            (visible / entry.name).symlink_to(entry)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "visible.pth").write_text(f"{visible}\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(program: str, *arguments: str, **more: str) -> str:
        done = subprocess.run(
            [str(folder / "bin" / program), *arguments],
            env=environment | more,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (wheel,) = built.glob("*.whl")
    mark = folder / "called"
    compilers = {name: with_marked_compiler(mark)[name] for name in ("CC", "CXX")}
    said = run("python", "-m", "pip", "install", "--no-index", "--disable-pip-version-check", str(wheel), **compilers)
    assert re.findall(r"^Successfully installed (.*)$", said, re.M) == [f"batchnorm-{VERSION}"]
    assert not mark.exists(), "the installation called a compiler"
    return run


@packaging
def test_a_layer(installed: Run) -> None:
    program = """
import sys, torch, batchnorm as bn
y = bn.BatchNorm2d(3, activation="relu")(torch.randn(4, 3, 5, 5, requires_grad=True))
y.sum().backward()
print(bn.__file__, bn.convert(torch.nn.Sequential(torch.nn.BatchNorm1d(2))))
"""
    said = installed("python", "-W", "error", "-c", program)
    assert str(ROOT) not in said
    assert "(0): BatchNorm1d(2" in said


@packaging
def test_the_command(installed: Run) -> None:
    assert installed("batchnorm", "--version") == f"batchnorm {VERSION}\n"
    assert installed("python", "-m", "batchnorm", "--version") == f"batchnorm {VERSION}\n"
    assert "torch" in installed("batchnorm", "doctor", "--environment")


@packaging
def test_the_conformance_suite(installed: Run) -> None:
    assert "Flax" in installed("python", "-m", "batchnorm.conformance", "--help")
    suite = "-q", "-p", "no:cacheprovider", "--pyargs", "batchnorm.conformance", "--impl", "batchnorm:BatchNorm2d"
    assert "1 passed" in installed("python", "-m", "pytest", *suite, "-k", "test_evaluation")
