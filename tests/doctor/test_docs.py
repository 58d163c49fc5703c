"""The page of the docs lists every rule in the words of the code."""

from pathlib import Path

from batchnorm.doctor import RULES


def rows() -> list[str]:
    return [f"| `{r.name}` | {r.severity} | {r.what} | {r.cause} | {r.cure} |" for r in RULES]


def test_every_rule_is_in_the_docs_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    listed = [line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 6]
    assert listed == rows(), "put these rows into docs/doctor.md:\n" + "\n".join(rows())


def test_names_are_unique() -> None:
    assert len({r.name for r in RULES}) == len(RULES)
