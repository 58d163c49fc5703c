"""Writes the tables of big-batch.md from a saved run of the benchmark, so that no figure is typed by hand.

batchnorm bench --big-batch --output bench-big-batch

python docs/big_batch_figures.py bench-big-batch/report.json   # takes a new run, then writes
python docs/big_batch_figures.py                               # writes again from docs/measured/big_batch/
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from batchnorm.report.big_batch_table import markdown

HERE = Path(__file__).parent
PAGE, RUN = HERE / "big-batch.md", HERE / "measured" / "big_batch" / "report.json"
SECTION = re.compile(r"(<!-- figures: big_batch -->\n).*?(<!-- end -->)", re.DOTALL)


def take(report: Path) -> None:
    """Keep a run, each number with four digits.

    Raises:
        SystemExit: the run is not a whole one.
    """
    result = json.loads(report.read_text(encoding="utf-8"))
    if "exact" not in result or result["settings"]["quick"] or result["interrupted"]:
        sys.exit(f"{report}: expected a whole run with --big-batch; no --quick")
    RUN.parent.mkdir(parents=True, exist_ok=True)
    RUN.write_text(json.dumps(short(result), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def short(value: Any) -> Any:
    """The value with four digits to a number."""
    if isinstance(value, dict):
        return {k: short(v) for k, v in value.items()}
    if isinstance(value, list):
        return [short(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(reports: list[str]) -> None:
    for report in reports:
        take(Path(report))
    tables = markdown(json.loads(RUN.read_text(encoding="utf-8")))
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(SECTION.sub(lambda match: f"{match[1]}\n{tables}\n{match[2]}", page), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
