"""Start ranks as processes that meet through a file, because a port might be in use."""

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from torch import distributed as dist

ROOT = Path(__file__).parents[2]  # ranks import `tests`
WARNINGS = ["-W", "error", "-W", "ignore:`broadcast_buffers` is deprecated:FutureWarning"]


def start(program: Path, world_size: int, folder: Path) -> list[subprocess.Popen[str]]:
    """`python program RANK WORLD_SIZE FOLDER` for every rank."""
    commands = [
        [sys.executable, *WARNINGS, str(program), str(r), str(world_size), str(folder)] for r in range(world_size)
    ]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "env": os.environ | {"PYTHONPATH": paths}}
    return [subprocess.Popen(c, text=True, **settings) for c in commands]


def finish(ranks: list[subprocess.Popen[str]], seconds: float = 400) -> list[tuple[int, str]]:
    """The exit status and stderr of each rank; none is left running."""
    try:
        return [(process.returncode, said) for process in ranks for said in [process.communicate(timeout=seconds)[1]]]
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def meet(folder: Path, name: str, rank: int, world_size: int, seconds: float = 60) -> None:
    """Start a gloo group once all ranks have arrived, so that its timeout covers only what follows."""
    (folder / f"{name}, {rank}.here").touch()
    while not all((folder / f"{name}, {r}.here").exists() for r in range(world_size)):
        time.sleep(0.01)
    at, timeout = f"file://{folder}/{name}", timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=at, rank=rank, world_size=world_size, timeout=timeout)
