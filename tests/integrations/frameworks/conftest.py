"""Run a function of a test module on two ranks, as processes over gloo."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integrations.frameworks.ranks import THEIRS
from tests.integrations.frameworks.run import make_torchvision_importable
from tests.support.launch import finish, start

if importlib.util.find_spec("lightning"):  # `make test` has no need of torchvision here
    make_torchvision_importable()
for framework in ("accelerate", "lightning", "tensorboard", "torchrl", "transformers"):
    if importlib.util.find_spec(framework):
        importlib.import_module(framework)  # or a missing requirement of it would skip its tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for message in THEIRS:
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{message}"))


@pytest.fixture
def on_two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """One start for all cases of a module: to import a framework takes most of the time."""

    def run(module: str, *cases: str) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # or Accelerate sets it, with a warning
        monkeypatch.setenv("CASES", f"tests.integrations.frameworks.{module} {' '.join(cases)}")
        ended = finish(start(Path(__file__).with_name("ranks.py"), 2, tmp_path))
        assert [code for code, _ in ended] == [0, 0], "\n".join(said for _, said in ended)
        assert all((tmp_path / f"{case}, {rank}.passed").exists() for rank in range(2) for case in cases)

    return run
