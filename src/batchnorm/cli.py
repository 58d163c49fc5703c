"""The command line: arguments only. One function a command."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from rich.console import Console

    from batchnorm.experiment.result import Study

try:
    import typer
except ImportError:
    sys.exit("batchnorm: the command line needs typer: pip install 'batchnorm[study]'")

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

INTERRUPTED = 130


class FailOn(StrEnum):
    """What makes the doctor fail."""

    error = "error"
    warning = "warning"


@app.callback()
def _batchnorm() -> None:
    """Batch normalization for PyTorch, and what it does to a network."""


@app.command()
def study(
    data: Annotated[
        str, typer.Argument(help="digits, wine, diabetes, a .csv, .parquet or .npz file, or a folder of idx files.")
    ] = "digits",
    target: Annotated[str | None, typer.Option(help="The column of a table to predict.")] = None,
    task: Annotated[str | None, typer.Option(help="classification or regression; else the target decides.")] = None,
    network: Annotated[str, typer.Option(help="mlp, conv or package.module:factory.")] = "mlp",
    lr: Annotated[str | None, typer.Option(help="Learning rates to sweep, as in 0.01,0.1,1.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds (3, with --quick 2).")] = None,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="Epochs a run; by default enough for about 360 steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="60, less for few samples.")] = None,
    optimizer: Annotated[str, typer.Option(help="sgd or adam.")] = "sgd",
    threads: Annotated[int, typer.Option(min=1, help="Threads for torch; small networks gain nothing from more.")] = 1,
    output: Annotated[Path, typer.Option(help="Folder for report.html and report.json.")] = Path("study"),
    json: Annotated[bool, typer.Option("--json", help="Print the JSON, and nothing else, to stdout.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A small sweep, for a first look.")] = False,
) -> None:
    """What does normalisation do for a network? Trains it with and without batch norm and judges nine claims."""
    import torch

    from batchnorm.experiment import networks, plan, settings, sources
    from batchnorm.experiment.data import InputError, standardise

    if task not in (None, "classification", "regression"):
        raise InputError(f"--task {task}: expected classification or regression")
    torch.set_num_threads(threads)
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the user's network lies in the working directory
    make_network = networks.named(network)
    loaded = sources.load(data, target, task, seed)  # type: ignore[arg-type]  # checked above
    chosen = settings.choose(
        loaded,
        rates=None if lr is None else _numbers(lr),
        seeds=seeds,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        quick=quick,
    )
    networks.check(make_network, standardise(loaded))  # before the bar is drawn: wrong input is one line
    errors = _console(stderr=True)
    with _progress(errors) as progress:
        result = plan.run(make_network, loaded, chosen, network, progress, errors.print)
    _deliver(result, output, json, errors)
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command()
def doctor(
    subject: Annotated[
        str, typer.Argument(metavar="FILE", help="A state dict (.safetensors, .pt), an .onnx file, or module:factory.")
    ],
    checkpoint: Annotated[Path | None, typer.Option(help="A state dict for the model of module:factory.")] = None,
    fail_on: Annotated[
        FailOn | None, typer.Option(help="Exit with status 1 if something at least as bad is found.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write a page, as in doctor.html.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the JSON, and nothing else, to stdout.")] = False,
) -> None:
    """What is wrong with the batch norms in a checkpoint? Files are read as numbers and never executed."""
    from batchnorm.doctor import diagnose, diagnose_states, files
    from batchnorm.experiment.data import InputError

    try:
        if ":" in subject and not Path(subject).exists():
            report = diagnose(files.build(subject, checkpoint))
        else:
            report = diagnose_states(files.read(subject))
    except files.BadFileError as error:
        raise InputError(str(error)) from error
    if not report.layers:
        raise InputError(f"{subject}: no batch norm in it with a population (exporters fold them away)")
    if json:
        print(report.to_json())
    else:
        report.show(_console())
    if output is not None:
        _console(stderr=True).print(str(report.save(output)), markup=False, soft_wrap=True)
    if fail_on is not None and report.reaches(fail_on.value):
        raise typer.Exit(1)


def _deliver(result: Study, output: Path, json: bool, errors: Console) -> None:
    from batchnorm.report.terminal import show

    saved = result.save(output)
    if json:
        print(result.to_json())
    else:
        show(result.to_dict(), _console())
        print(f"{saved}  ({result.seconds:.0f} s)")
    if result.interrupted:
        errors.print(f"interrupted: kept the {len(result.runs)} of {result.planned} runs that were finished")


def _numbers(text: str) -> list[float]:
    from batchnorm.experiment.data import InputError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--lr {text}: expected numbers with commas between, as in 0.01,0.1,1") from None


def _console(stderr: bool = False) -> Console:
    from batchnorm.experiment.data import needs

    try:
        from rich.console import Console
    except ImportError:
        raise needs("rich") from None
    return Console(stderr=stderr)


class _progress:  # noqa: N801  # reads as a function
    """A bar with the time left on the given console; called as the study's progress callback."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns: tuple[Any, ...] = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn())
        self.bar = Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[what]}"), console=console)
        self.task = self.bar.add_task("study", total=None, what="")

    def __enter__(self) -> _progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, done: int, total: int, what: str) -> None:
        self.bar.update(self.task, completed=done, total=total, what=what)


def main() -> None:
    """Runs the command line. Wrong input: one line on stderr and exit status 2."""
    from batchnorm.experiment.data import InputError

    try:
        app()
    except InputError as error:
        print(f"batchnorm: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
