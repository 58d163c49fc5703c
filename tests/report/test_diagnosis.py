"""A diagnosis as JSON, table and page: complete, escaped, and drawn in a browser without a request."""

import io
import json
import re
from functools import cache

import pytest
import torch
from rich.console import Console

import batchnorm as bn
from batchnorm.doctor.findings import Finding, report
from tests.support.browsers import chromium
from tests.support.patients import batches, trained
from tests.support.screens import faults
from tests.support.studies import EVIL


@cache
def ill():
    """A network with faults of three layers, under a name that would like to be markup."""
    model = trained(False)
    with torch.no_grad():
        model[3].weight.mul_(3)
        model[4].running_var[0] = torch.nan
        model[8].weight[0] = 0
    named = torch.nn.ModuleDict({f"[red]{EVIL}[/red]": model})
    return bn.diagnose(named, batches(), feed=lambda m, batch: next(iter(m.values()))(batch))


def printed(result, width=120):
    out = io.StringIO()
    result.show(Console(file=out, width=width))
    return out.getvalue()


def test_json_is_strict_and_complete():
    result = json.loads(ill().to_json(), parse_constant=lambda c: pytest.fail(c))
    assert result["worst"] == "error"
    assert {"not-finite", "dead-gamma"} <= {f["rule"] for f in result["findings"]}
    assert all(f["evidence"] and f["cause"] and f["cure"] for f in result["findings"])
    assert len(result["layers"]) == 3


def test_the_terminal_says_it_all_as_text():
    text = printed(ill(), 400)
    for f in ill().findings:
        assert all(part in text for part in (f.rule, f.what, f.cause, f.cure))
    assert f"[red]{EVIL}[/red].4: values 1" in text
    assert max(map(len, printed(ill(), 80).splitlines())) <= 80


def test_nothing_found_is_one_line_and_the_healthy_layers() -> None:
    first, *rest = printed(bn.diagnose(trained(True))).splitlines()
    assert first == "3 batch norms read: nothing found"
    assert rest[0].rstrip() == "3 of 3 layers healthy"
    assert sum("healthy" in line for line in rest[1:]) == 3


def test_sick_layers_are_listed_with_their_worst_finding_beside_the_healthy() -> None:
    many = {f"layer{i}": {"channels": 4, "updates": 7} for i in range(40)}
    sick = Finding("error", "not-finite", ("layer33",), "NaN", "a batch", "calibrate", {"layer33": {"values": 1}})
    text = printed(report([sick], many))
    assert "39 of 40 layers healthy" in text
    assert re.search(r"error +│ layer33 ", text)
    assert "and 19 more healthy layers" in text


def test_notes_and_many_layers():
    many = {f"layer{i}": {"updates": i} for i in range(9)}
    finding = Finding("info", "unreached", tuple(many), "no batch", "a branch", "nothing", many)
    text = printed(report([finding], {}, notes=("no step was tried",)))
    assert "layer3: updates 3" in text
    assert "layer4" not in text
    assert "and 5 more" in text
    assert "note: no step was tried" in text


def test_the_page_needs_nothing_else_and_escapes_names(tmp_path):
    text = ill().save(tmp_path / "doctor.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert 'src="http' not in text
    assert EVIL not in text
    assert "&lt;script&gt;evil()" in text
    assert text.count('class="plot"') == 4, "the gap of NaN is no figure"
    assert all(f'id="finding-{i}"' in text for i in range(1, len(ill().findings) + 1))


def test_the_page_is_small_and_has_a_figure_for_each_measurement(tmp_path):
    model = trained(True)
    bn.calibrate(model, batches())
    text = bn.diagnose(model, batches()).save(tmp_path / "doctor.html").read_text(encoding="utf-8")
    assert len(text.encode()) < 60_000
    assert re.findall('class="plot" id="figure-([a-z]+)"', text) == ["gap", "stale", "values", "drift", "state"]


def test_a_greek_letter_keeps_its_size(tmp_path):
    finding = Finding("warning", "dead-gamma", ("a",), "γ is all but zero", "decay", "prune it", {"a": 1})
    html = report([finding], {}).save(tmp_path / "doctor.html").read_text(encoding="utf-8")
    assert "<h2>γ is all but zero " in html


def test_without_data_the_page_shows_the_state(tmp_path):
    text = bn.diagnose(trained(True)).save(tmp_path / "doctor.html").read_text(encoding="utf-8")
    assert re.findall('class="plot" id="([a-z-]+)"', text) == ["figure-state"]


@pytest.mark.parametrize(("width", "theme"), [(1300, "dark"), (390, "light"), (390, "dark"), (360, "light")])
def test_in_a_browser(tmp_path, width, theme):
    page = ill().save(tmp_path / "doctor.html")
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=theme)
        requests, complaints = [], []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(page.as_uri())
        assert tab.locator(".plot:has(svg.chart)").count() == 4
        assert EVIL in tab.locator(".evidence").first.text_content()
        assert complaints == []
        assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
        tab.locator("details").evaluate_all("(all) => all.forEach((details) => { details.open = true; })")
        assert faults(tab) == []
