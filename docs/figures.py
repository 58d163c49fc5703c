"""Writes the figures of performance.md, memory.md and big-batch.md from saved runs of the benchmark.

    batchnorm bench --targets --output bench
    batchnorm bench --block relu --no-networks --output bench-compiled
    batchnorm bench --recompute --output bench-recompute
    batchnorm bench --big-batch --output bench-big-batch

    python docs/figures.py REPORT.json...   # takes new runs into docs/measured/, then writes
    python docs/figures.py                  # writes again from docs/measured/
    python docs/figures.py --readme         # prints the table for the README

No figure is typed by hand. A run with --targets becomes docs/measured/targets.json, one beside torch.compile
compiled.json, one with --recompute recompute.json and one with --big-batch big_batch.json. The text between
`<!-- figures: NAME -->` and `<!-- end -->` in a page is replaced.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from batchnorm.benchmark import targets
from batchnorm.report import bench_markdown as markdown
from batchnorm.report import big_batch_table, recompute_table
from batchnorm.report.bench_chart import chart

HERE = Path(__file__).parent
PAGE, MEMORY_PAGE, BIG_BATCH_PAGE = (HERE / name for name in ("performance.md", "memory.md", "big-batch.md"))
CHART = HERE / "images" / "bench.svg"
SECTION = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOTHING = "*Not measured yet.*\n"

Result = dict[str, Any]

# Each section of the page: the run that it comes from, and how it is written.
SECTIONS: dict[str, tuple[str, Callable[[Result], str]]] = {
    "chart": ("targets", lambda result: "![How many times faster than torch's layers](images/bench.svg)\n"),
    "run": ("targets", markdown.run),
    "targets": ("targets", markdown.targets),
    "totals": ("targets", lambda result: markdown.totals(result, "torch")),
    "contiguous": ("targets", lambda result: markdown.inputs(result, "float32", "plain", "contiguous")),
    "channels_last": ("targets", lambda result: markdown.inputs(result, "float32", "plain", "channels_last")),
    "networks": ("targets", markdown.networks),
    "memory": ("targets", markdown.memory),
    "compiled": ("compiled", lambda result: markdown.run(result) + "\n" + markdown.totals(result, "compiled")),
}
# The same for memory.md.
MEMORY_SECTIONS: dict[str, tuple[str, Callable[[Result], str]]] = {
    "recompute": ("recompute", recompute_table.markdown),
}
# The same for big-batch.md.
BIG_BATCH_SECTIONS: dict[str, tuple[str, Callable[[Result], str]]] = {
    "big_batch": ("big_batch", big_batch_table.markdown),
}
PAGES = ((PAGE, SECTIONS), (MEMORY_PAGE, MEMORY_SECTIONS), (BIG_BATCH_PAGE, BIG_BATCH_SECTIONS))


def take(report: Path, folder: Path) -> None:
    """Keep a run in the folder, each number with four digits.

    Raises:
        SystemExit: the run is one that no section shows.
    """
    result = json.loads(report.read_text(encoding="utf-8"))
    name = _kind(result)
    if name is None or result["settings"]["quick"] or result["interrupted"]:
        sys.exit(
            f"{report}: expected a whole run with --targets, --recompute, --big-batch or torch.compile; no --quick"
        )
    folder.mkdir(exist_ok=True)
    text = json.dumps(_short(result), ensure_ascii=False, separators=(",", ":"))
    text = text.replace('{"dtype"', '\n{"dtype"').replace('{"name"', '\n{"name"')
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _kind(result: Result) -> str | None:
    if "exact" in result:
        return "big_batch"
    if "steps" in result:
        return "recompute"
    if result["settings"]["targets"]:
        return "targets"
    return "compiled" if any("compiled" in case["ratios"] for case in result["cases"]) else None


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_short(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def saved(folder: Path) -> dict[str, Result]:
    """The runs in the folder, by name, beside the aims as they stand today."""
    runs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
    return {name: run | {"targets": targets.rows(run)} if "cases" in run else run for name, run in runs.items()}


def filled(page: str, runs: dict[str, Result], sections: dict[str, Any] = SECTIONS) -> str:
    """The page with every section written anew, as not measured if there is no run for it."""

    def section(match: re.Match[str]) -> str:
        run, write = sections[match[2]]
        return f"{match[1]}\n{write(runs[run]) if run in runs else NOTHING}\n{match[3]}"

    return SECTION.sub(section, page)


def main(arguments: list[str], folder: Path = HERE / "measured") -> None:
    for report in arguments:
        if report != "--readme":
            take(Path(report), folder)
    runs = saved(folder)
    if "--readme" in arguments:
        print(markdown.readme(runs["targets"]) if "targets" in runs else NOTHING, end="")
        return
    for page, sections in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), runs, sections), encoding="utf-8")
    if "targets" in runs:
        CHART.write_text(chart(runs["targets"]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
