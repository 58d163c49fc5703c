"""The whole study, through the Python function."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchnorm.experiment import study
from batchnorm.experiment.data import InputError
from batchnorm.report.html import page
from tests.support.studies import OPTIONS, arrays, make_network, quick


def numbers(result: Any) -> dict[str, Any]:
    found = json.loads(result.to_json())
    del found["timings"]
    return found


def test_all_nine_claims_are_judged() -> None:
    result = quick()
    assert [claim.number for claim in result.claims] == list(range(1, 10))
    assert {claim.verdict for claim in result.claims} <= {"holds", "within its spread", "does not hold here"}
    assert all(claim.sentence for claim in result.claims)
    assert all(len(claim.effects) == 2 for claim in result.claims)
    assert not result.interrupted
    assert len(result.runs) == result.planned


def test_the_arithmetic_of_the_layer_holds_anywhere() -> None:
    by_number = {claim.number: claim for claim in quick().claims}
    assert by_number[4].verdict == by_number[5].verdict == "holds"


def test_the_same_seed_gives_the_same_json_from_arrays_and_from_loaders() -> None:
    x, y = arrays()
    again = study(
        make_network,
        DataLoader(TensorDataset(x, y), batch_size=33),
        name=quick().data.name,
        **OPTIONS,  # type: ignore[arg-type]
    )
    assert numbers(again) == numbers(quick())


def test_another_seed_gives_other_numbers_and_a_test_loader_is_used() -> None:
    x, y = arrays()
    test = DataLoader(TensorDataset(x[:10], y[:10]), batch_size=4)
    result = study(make_network, (x, y), test, seed=5, **OPTIONS)  # type: ignore[arg-type]
    assert len(result.data.test) == 10
    assert result.settings.seeds == (5, 6)
    assert numbers(result)["runs"] != numbers(quick())["runs"]


def test_the_seed_splits_the_data() -> None:
    options: dict[str, Any] = {"rates": [0.1], "seeds": 1, "epochs": 1, "batch_sizes": [2, 4], "quick": True}
    one, other = (study(make_network, arrays(), seed=seed, **options).data for seed in (0, 1))
    assert not torch.equal(one.test.x, other.test.x)


def test_the_callers_generator_and_table_are_left_as_they_were() -> None:
    x, y = arrays()
    before, state = x.clone(), torch.get_rng_state()
    study(make_network, (x, y), rates=[0.1], seeds=1, epochs=1, batch_sizes=[2, 4], quick=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, before)


def test_progress_ends_where_it_was_planned() -> None:
    seen: list[tuple[int, int, str]] = []
    study(
        make_network, arrays(), rates=[0.1], seeds=1, epochs=1, batch_sizes=[2, 4], quick=True,
        progress=lambda done, total, what: seen.append((done, total, what)),
    )  # fmt: skip
    done = [step for step, _, _ in seen]
    assert done == sorted(done)
    assert seen[-1][0] == seen[-1][1]
    assert "rate 0.1" in seen[0][2]


def test_regression_and_adam_off_the_main_thread() -> None:
    x, _ = arrays()
    results = []

    def work() -> None:
        options = OPTIONS | {"rates": [0.01]}
        results.append(study(make_network, (x, x.mean(1)), optimizer="adam", **options))  # type: ignore[arg-type]

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (result,) = results
    assert result.data.score_name == "R²"
    assert {run.setting.optimizer for run in result.runs} == {"adam"}


def test_more_arms_are_trained_and_shown_beside_the_pair() -> None:
    options = OPTIONS | {"rates": [0.3], "epochs": 2}
    result = study(make_network, arrays(), norms="batch,none,layer,group", **options)  # type: ignore[arg-type]
    arms = ["batch norm", "plain", "layer norm", "group norm"]
    assert list(result.scores) == arms
    found = result.to_dict()
    assert set(found["claims"][0]["detail"]["losses"]) == set(arms)
    text = page(found)
    assert "layer norm, rate 0.3" in text
    assert "the claims compare the first two" in text


def test_random_labels_give_a_headline_that_says_so() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 4, generator=generator), torch.randint(0, 2, (200,), generator=generator)
    result = study(make_network, (x, y), **OPTIONS)  # type: ignore[arg-type]
    found = result.to_dict()
    assert found["headline"].startswith("Nothing was learned")
    assert [c["number"] for c in found["claims"] if c["verdict"] != "not measured"] == [4, 5]
    assert "Nothing was learned" in page(found)


def test_in_a_notebook_the_page_is_in_a_frame() -> None:
    shown = quick()._repr_html_()
    assert shown.startswith("<iframe")
    assert "&lt;!doctype html&gt;" in shown
    assert shown.count("<") == 2


def test_saving_writes_the_page_and_the_json(tmp_path: Path) -> None:
    page = quick().save(tmp_path / "a" / "b")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert json.loads((page.parent / "report.json").read_text(encoding="utf-8")) == json.loads(quick().to_json())


def test_saving_into_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot write to"):
        quick().save(tmp_path / "taken")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "optimizer 'lion': expected sgd or adam"),
        ({"rates": [0.1, -1]}, "expected numbers above 0"),
        ({"seeds": 0}, "seeds 0: expected at least 1"),
        ({"batch_size": 500}, "batch size 500: expected 2 to 96"),
        ({"batch_sizes": [1]}, "expected one or more, from 2 to 96"),
    ],
)
def test_options_that_cannot_be_run(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        study(make_network, arrays(), **options)


def test_a_network_without_batch_norm_is_refused() -> None:
    with pytest.raises(InputError, match="has no batch norm"):
        study(lambda: nn.Linear(4, 2), arrays(), **OPTIONS)  # type: ignore[arg-type]
