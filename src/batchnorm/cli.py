"""The command line: one function per command, which handles only its arguments and its output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from batchnorm.experiment.result import Study


app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

INTERRUPTED = 130


class FailOn(StrEnum):
    """The severity at which the doctor's exit status is 1."""

    error = "error"
    warning = "warning"


class Language(StrEnum):
    """The language that the page opens in."""

    en = "en"
    ko = "ko"


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"batchnorm {version('batchnorm')}")
        raise typer.Exit


@app.callback()
def _batchnorm(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Batch normalization for PyTorch, and what it does to a network."""


@app.command()
def study(
    data: Annotated[
        str,
        typer.Argument(
            help="digits, wine, diabetes, iris, breast_cancer, fashion, mnist, a .csv, .tsv, .parquet or .npz file, "
            "or a folder of idx files."
        ),
    ] = "digits",
    target: Annotated[str | None, typer.Option(help="The column of a table to predict.")] = None,
    drop: Annotated[str | None, typer.Option(help="Columns of a table to leave out, as in id,name.")] = None,
    fill: Annotated[
        str | None, typer.Option(help="The value in place of missing ones of a table: mean, median or a number.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="classification or regression; else the target decides.")] = None,
    network: Annotated[str, typer.Option(help="mlp, conv, deep, deep-residual or package.module:factory.")] = "mlp",
    norms: Annotated[
        str, typer.Option(help="Arms: batch and none, which are compared, and layer, group beside them.")
    ] = "batch,none",
    lr: Annotated[str | None, typer.Option(help="Learning rates to sweep, as in 0.01,0.1,1.")] = None,
    seeds: Annotated[int | None, typer.Option(help="The number of seeds; by default 3, with --quick 2.")] = None,
    seed: Annotated[int, typer.Option(help="The first seed; it also splits the data.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="Epochs a run; by default enough for about 360 steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples in a batch; 60, fewer for few samples.")] = None,
    optimizer: Annotated[str, typer.Option(help="sgd or adam.")] = "sgd",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that train at once; by default one a core.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads for torch in one process; with more than 1 there is one process.")
    ] = 1,
    output: Annotated[Path, typer.Option(help="Folder for report.html and report.json.")] = Path("study"),
    json: Annotated[bool, typer.Option("--json", help="Print the JSON, and nothing else, to stdout.")] = False,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Figures that zoom, with plotly in the page (5 MB).")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A small sweep, for a first look.")] = False,
) -> None:
    """Trains a network with and without batch norm and judges nine claims about batch norm on it."""
    from batchnorm.experiment import arms, plan, settings, sources, study_networks
    from batchnorm.experiment.data import InputError, standardise

    if task not in (None, "classification", "regression"):
        raise InputError(f"--task {task}: expected classification or regression")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the user's network lies in the working directory
    make_network = study_networks.named(network)
    left_out = [] if drop is None else drop.split(",")
    loaded = sources.load(data, target, task, seed, drop=left_out, fill=fill)  # type: ignore[arg-type]  # checked above
    chosen = settings.choose(
        loaded,
        rates=None if lr is None else _numbers(lr),
        seeds=seeds,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        norms=norms,
        workers=workers,
        threads=threads,
        quick=quick,
    )
    arms.check(make_network, standardise(loaded))  # before the bar is drawn, so that an error is one line
    errors = _console(stderr=True)
    with _progress(errors) as progress:
        result = plan.run(make_network, loaded, chosen, network, progress, errors.print)
    _deliver(result, output, json, interactive, errors)
    if quick:
        errors.print(
            "--quick is a first look, on few seeds and short runs: a whole study may give other verdicts", style="dim"
        )
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command()
def play(
    lang: Annotated[Language, typer.Option(help="The language that the page opens in; it has a switch.")] = Language.en,
    output: Annotated[Path, typer.Option(help="Folder for index.html.")] = Path("play"),
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Writes and opens a page on which batch norm can be tried by hand. It needs no network connection."""
    import webbrowser

    from batchnorm.experiment.data import InputError
    from batchnorm.play import NoPageError, write_page

    try:
        path = write_page(output, lang.value, say=lambda text: print(text, file=sys.stderr))
    except NoPageError as error:
        raise InputError(f"play: {error}") from error
    except OSError as error:
        raise InputError(f"cannot write to {output}: {error.strerror}") from error
    print(path)
    if open_page and not webbrowser.open(path.resolve().as_uri()):
        print("batchnorm: no browser was found here: open the page yourself", file=sys.stderr)


@app.command()
def doctor(
    subject: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="A state dict (.safetensors, .pt), an .onnx file, or module:factory."),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A state dict for the model of module:factory.")] = None,
    fail_on: Annotated[
        FailOn | None, typer.Option(help="Exit with status 1 for a finding of this severity or a worse one.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="An HTML file for the report, such as doctor.html.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the JSON, and nothing else, to stdout.")] = False,
    environment: Annotated[
        bool,
        typer.Option("--environment", help="Say which backend serves here and why; no FILE is read."),
    ] = False,
) -> None:
    """Finds faults of the batch norms in a checkpoint. Files are read as numbers and never executed."""
    from batchnorm.doctor import diagnose, diagnose_states, files
    from batchnorm.experiment.data import InputError

    if (subject is None) is not environment:
        raise InputError("doctor: give either a FILE (.pt, .safetensors, .onnx or module:factory) or --environment")
    if subject is None:
        _environment(json)
        return
    try:
        if ":" in subject and not Path(subject).exists():
            report = diagnose(files.build(subject, checkpoint))
        else:
            report = diagnose_states(files.read(subject))
    except files.BadFileError as error:
        raise InputError(str(error)) from error
    if not report.layers:
        raise InputError(f"{subject}: no batch norm with running statistics in it (exporters may fold them away)")
    if json:
        print(report.to_json())
    else:
        report.show(_console())
    if output is not None:
        _console(stderr=True).print(str(report.save(output)), markup=False, soft_wrap=True)
    if fail_on is not None and report.reaches(fail_on.value):
        raise typer.Exit(1)


def _environment(json: bool) -> None:
    from json import dumps

    from batchnorm.doctor.environment import environment
    from batchnorm.report.environment_table import show

    found = environment().to_dict()
    if json:
        print(dumps(found, indent=2))
    else:
        show(found, _console())


@app.command()
def bench(
    targets: Annotated[
        bool,
        typer.Option(
            "--targets",
            help="Measure every row of the table of aims, whose cases are given.",
        ),
    ] = False,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32, bfloat16, float16 or float64; may be given several times.")
    ] = None,
    layout: Annotated[str, typer.Option(help="contiguous, channels_last or both.")] = "both",
    block: Annotated[
        list[str] | None, typer.Option(help="plain, relu, add-relu, silu or gelu; may be given several times.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads for torch and for us; by default torch's.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="The time to spend on each case.")] = 2.0,
    networks: Annotated[bool, typer.Option(help="Measure training steps too, and the memory they keep.")] = True,
    compile: Annotated[bool, typer.Option(help="Compare with torch.compile as well; not with --targets.")] = True,
    big_batch: Annotated[
        bool, typer.Option("--big-batch", help="Measure bn.big_batch beside one big batch, and nothing else.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for report.html and report.json.")] = Path("bench"),
    json: Annotated[bool, typer.Option("--json", help="Print the JSON, and nothing else, to stdout.")] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Measure small inputs, to see that it works. Do not quote these times.",
        ),
    ] = False,
    recompute: Annotated[
        bool,
        typer.Option("--recompute", help="Measure memory and time under bn.recompute, and nothing else."),
    ] = False,
    device: Annotated[
        str, typer.Option(help="cpu, cuda or xpu. Cases and networks are chosen for the kind of device.")
    ] = "cpu",
) -> None:
    """Compares the speed with torch's on this machine. Judges the results first, then takes the times in turns."""
    import torch

    from batchnorm.benchmark.agreement import DisagreementError
    from batchnorm.benchmark.cases import BLOCKS, DTYPES, LAYOUTS
    from batchnorm.benchmark.comparison import Settings, compare
    from batchnorm.benchmark.targets import PAIRS
    from batchnorm.experiment.data import InputError

    if big_batch:
        if targets or dtype or block or layout != "both":
            raise InputError("--big-batch measures networks only: leave out --targets, --dtype, --layout and --block")
        _big_batch(threads, seconds, quick, output, json)
        return
    if device != "cpu":
        if targets or recompute or big_batch or dtype or block or layout != "both":
            raise InputError(
                f"--device {device} sets the cases: leave out all but --quick, --no-networks, --output and --json"
            )
        _on_accelerator(device, networks, threads, seconds, quick, output, json)
        return
    for name in dtype or []:
        _one_of("--dtype", name, DTYPES)
    _one_of("--layout", layout, (*LAYOUTS, "both"))
    for name in block or []:
        _one_of("--block", name, BLOCKS)
    if targets and (dtype or block or layout != "both"):
        raise InputError("--targets sets dtypes, layouts and blocks: leave out --dtype, --layout and --block")
    if recompute:
        if targets or dtype or block or layout != "both":
            raise InputError("--recompute measures networks only: leave out --targets, --dtype, --layout and --block")
        _memory_of_steps(threads, seconds, quick, output, json)
        return
    pairs = PAIRS if targets else [(d, b) for d in dtype or ["float32"] for b in block or ["plain"]]
    layouts = LAYOUTS if layout == "both" else (layout,)
    chosen = Settings(tuple(pairs), layouts, seconds, quick, networks, compile and not targets, targets)
    torch.set_num_threads(threads or torch.get_num_threads())
    try:
        with _progress(_console(stderr=True)) as progress:
            result = compare(chosen, progress)
    except DisagreementError as error:
        print(f"batchnorm: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    _deliver_comparison(result, output, json)
    if result["interrupted"]:
        raise typer.Exit(INTERRUPTED)


def _on_accelerator(device: str, networks: bool, *settings: Any) -> None:
    import torch

    from batchnorm.benchmark.accelerator_steps import compare
    from batchnorm.experiment.data import InputError
    from batchnorm.report.accelerator_table import show

    _one_of("--device", device, ("cpu", "cuda", "xpu"))
    module = torch.get_device_module(device)
    if not module.is_available():
        raise InputError(f"--device {device}: torch {torch.__version__} finds none here; run it where there is one")
    current = torch.device(device, module.current_device())
    _deliver_steps(
        lambda seconds, quick, progress: compare(current, quick, networks, progress), show, *settings
    )  # fmt: skip


def _memory_of_steps(*settings: Any) -> None:
    from batchnorm.benchmark.memory_of_steps import measure
    from batchnorm.report.recompute_table import show

    _deliver_steps(measure, show, *settings)


def _big_batch(*settings: Any) -> None:
    from batchnorm.benchmark.big_batch_steps import measure
    from batchnorm.report.big_batch_table import show

    _deliver_steps(measure, show, *settings)


def _deliver_steps(
    measure: Callable[..., dict[str, Any]],
    show: Callable[..., None],
    threads: int | None,
    seconds: float,
    quick: bool,
    output: Path,
    json: bool,
) -> None:
    from json import dumps

    import torch

    from batchnorm.benchmark.agreement import DisagreementError
    from batchnorm.experiment.data import InputError

    torch.set_num_threads(threads or torch.get_num_threads())
    try:
        with _progress(_console(stderr=True)) as progress:
            result = measure(seconds, quick, progress)
    except DisagreementError as error:
        print(f"batchnorm: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    text, saved = dumps(result, allow_nan=False), output / "report.json"
    try:
        output.mkdir(parents=True, exist_ok=True)
        saved.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write to {output}: {error.strerror}") from error
    if json:
        print(text)
    else:
        show(result, _console())
        print(saved)
    if result["interrupted"]:
        raise typer.Exit(INTERRUPTED)


def _deliver_comparison(result: dict[str, Any], output: Path, json: bool) -> None:
    from json import dumps

    from batchnorm.experiment.result import write
    from batchnorm.report.bench_page import page
    from batchnorm.report.bench_table import show

    text = dumps(result, allow_nan=False)
    saved = write(output, text, page(result))
    if json:
        print(text)
    else:
        show(result, _console())
        print(saved)


@app.command()
def warmup() -> None:
    """Compiles the CPU kernels for this machine, so that no first step waits for them. The status is 1 if it fails."""
    from time import monotonic

    from batchnorm.backends import native
    from batchnorm.backends.native import build

    console, start = _console(stderr=True), monotonic()
    spins = console.is_terminal and not build.describe().built
    try:
        with _spinner(console) if spins else nullcontext():
            build.library(retry=True, quiet=spins)
        path = native.load()
    except build.Unavailable as reason:
        print(f"batchnorm: no native CPU kernels: {reason}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"{path}\nready after {monotonic() - start:.1f} s")


def _one_of(option: str, value: str, allowed: Iterable[str]) -> None:
    from batchnorm.experiment.data import InputError

    if value not in allowed:
        raise InputError(f"{option} {value}: expected one of {', '.join(allowed)}")


def _deliver(result: Study, output: Path, json: bool, interactive: bool, errors: Console) -> None:
    from batchnorm.report.terminal import show

    saved = result.save(output, interactive=interactive)
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
    from rich.console import Console

    return Console(stderr=stderr)


def _spinner(console: Console) -> AbstractContextManager[object]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    progress = Progress(*columns, console=console, transient=True)
    progress.add_task("compiling the CPU kernels for this machine, once (about 40 s)", total=None)
    return progress


class _progress:  # noqa: N801  # reads as a function
    """A progress bar with the time left, on the given console; it is called as a progress callback."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns: tuple[Any, ...] = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn())
        self.bar = Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[what]}"), console=console)
        self.task = self.bar.add_task("", total=None, what="")

    def __enter__(self) -> _progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, done: int, total: int, what: str) -> None:
        self.bar.update(self.task, completed=done, total=total, what=what)


def main() -> None:
    """Runs the command line. Wrong input gives one line on stderr and exit status 2."""
    from batchnorm.experiment.data import InputError

    try:
        app()
    except InputError as error:
        print(f"batchnorm: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
