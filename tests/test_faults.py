"""Every fault of `faults.FAULTS` on both backends; nothing is lost; the page in the docs is what the command writes."""

import threading

import pytest
import torch

import batchnorm as bn
from batchnorm.backends import _forced
from tests.support.backends import on
from tests.support.faults import EVERY, FAULTS, PAGE, STATISTICS, Fault, observe, prepare, table

CASES = [pytest.param(f, path, id=f"{f.place}: {f.what}, {path}") for f in FAULTS for path in f.paths]


@pytest.mark.parametrize("backend", ["reference", "default"])
@pytest.mark.parametrize(("fault", "path"), CASES)
def test_fault(fault: Fault, path: str, backend: str) -> None:
    step = prepare(path)
    layer, (x, residual, mask) = step.layer, (step.x.clone(), step.residual.clone(), step.mask)
    twin = prepare(path)
    observe(twin)
    fault.inject(step)
    with on(backend):
        seen, words = observe(step)
        assert _forced.get() == (None if backend == "default" else backend)
    assert seen == fault.seen, words
    if seen.skipped:
        assert f"channels {sorted(seen.kept)} are not finite" in words
        assert layer.skipped_batches == 1
    # modes
    assert layer.training
    assert (layer.frozen, layer._paused, layer._window, layer._domain) == (False, 0, None, None)
    # what the fault did not meet is remembered as without it
    if seen.kept == {1} or seen.lost:
        for name in STATISTICS:
            torch.testing.assert_close(getattr(layer, name)[[0, 2]], getattr(twin.layer, name)[[0, 2]])
    # the next good batch
    if "device" not in fault.what:
        count = layer.num_batches_tracked.item()
        y = layer.set_options(nonfinite="skip")(x, residual, mask)
        fine = EVERY - seen.lost if fault.place in ("statistics", "weight", "bias") or seen.lost else EVERY
        fine = fine - {1} if fault.place in ("weight", "bias") else fine
        assert all(y[:, c].isfinite().all() for c in fine)
        assert layer.num_batches_tracked == count + 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_lost_before_are_found_and_calibrated_back(value: float) -> None:
    """What torch's layer, or nonfinite='propagate', let in."""
    step = prepare("plain")
    step.layer.running_var[1] = value
    assert [f.rule for f in bn.diagnose(step.layer).findings] == ["not-finite"]
    bn.calibrate(step.layer, [step.x])
    assert not any(getattr(step.layer, name).isnan().any() for name in STATISTICS)


def test_paused_by_two_threads_ends_with_the_last() -> None:
    layer, inside, leave = prepare("plain").layer, threading.Event(), threading.Event()

    def other() -> None:
        with bn.paused(layer):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    with pytest.raises(KeyboardInterrupt), bn.paused(layer):
        raise KeyboardInterrupt
    before = layer.running_mean.clone()
    layer(prepare("plain").x)
    assert torch.equal(layer.running_mean, before)
    leave.set()
    thread.join()
    layer(prepare("plain").x)
    assert not torch.equal(layer.running_mean, before)


def test_the_page_is_what_the_command_writes() -> None:
    assert PAGE.read_text() == table(), "run `python tests/support/faults.py`"
