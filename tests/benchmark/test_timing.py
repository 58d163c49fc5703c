"""Turns: ratios with quartiles, warm subjects, and stalls that are told apart from the speed."""

import re
import time
from collections.abc import Callable

import pytest

from batchnorm.benchmark import timing
from batchnorm.benchmark.timing import Times, alternate


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes only when a subject makes it pass."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def takes(clock: list[float], *seconds: float, calls: list[str] | None = None, name: str = "") -> Callable[[], None]:
    """A subject whose calls take so many seconds, over and over."""
    done = [0]

    def run() -> None:
        clock[0] += seconds[done[0] % len(seconds)]
        done[0] += 1
        if calls is not None:
            calls.append(name)

    return run


def test_subjects_take_turns(clock: list[float]) -> None:
    calls: list[str] = []
    subjects = {"f": takes(clock, 1.1e-3, calls=calls, name="f"), "s": takes(clock, 9e-3, calls=calls, name="s")}
    times = alternate(subjects, 0.1, least=5)
    turns = "".join(calls).lstrip("f").lstrip("s")  # after the warm-up
    assert turns.startswith("ffffs" + "sffff" + "ffffs"), "a turn is filled with calls, and the order is reversed"
    assert times.seconds("f").median == pytest.approx(1.1e-3)
    assert times.ratio("s", "f").median == pytest.approx(9 / 1.1)
    assert len(times.turns["s"]) == pytest.approx(0.1 / 0.0134, abs=1)


def test_a_slow_first_call_is_not_in_the_times(clock: list[float]) -> None:
    loads = iter([2.0, 1.0, 0.5])
    times = alternate({"a": lambda: clock.__setitem__(0, clock[0] + next(loads, 0.1))}, 0)
    assert max(times.turns["a"]) == pytest.approx(0.5), "two calls at least come before the clock counts"
    loads = iter([0.1, 0.05, 0.04, 0.03, 0.02])
    times = alternate({"a": lambda: clock.__setitem__(0, clock[0] + next(loads, 1e-3))}, 0)
    assert max(times.turns["a"]) == pytest.approx(1e-3), "and a quarter of a second"


def test_short_calls_fill_a_turn(clock: list[float]) -> None:
    calls: list[str] = []
    alternate({"a": takes(clock, 1e-5, calls=calls)}, 0, least=3)
    assert len(calls) - timing.WARM / 1e-5 == pytest.approx(3 * timing.TURN / 1e-5, rel=0.02)


def test_a_ratio_is_that_of_a_turn() -> None:
    """The machine is ten times slower in two of three turns; the subjects do not change places."""
    times = Times({"a": [1.0, 10.0, 10.0], "b": [0.5, 5.0, 4.0]}, {"a": 10.0, "b": 4.0})
    assert times.ratio("a", "b").median == 2.0
    assert times.seconds("b").median == 4.0


def test_quartiles() -> None:
    times = Times({"a": [1.0, 2.0, 3.0, 4.0, 5.0], "b": [1.0] * 5}, {"a": 1.0, "b": 1.0})
    found = times.seconds("a")
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    ratio = times.ratio("b", "a")
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((1 / 4, 1 / 3, 1 / 2))


def test_a_planted_stall_is_flagged(clock: list[float]) -> None:
    """torch's layer waits 30 ms in three of four calls; ours does not."""
    stalls, steady = takes(clock, 1e-4, 30e-3, 30e-3, 30e-3), takes(clock, 1e-4)
    times = alternate({"torch": stalls, "ours": steady}, 0)
    ratio = times.ratio("torch", "ours")
    assert ratio.median > 100, "the figure that would have been printed"
    assert ratio.doubt is not None
    assert re.fullmatch(r"torch stalls: its median, 22\.\d ms, is 22\d times its shortest time", ratio.doubt)
    assert times.ratio("ours", "torch").doubt == ratio.doubt, "whichever side it is on"
    assert times.ratio("ours", "ours").doubt is None


def test_stalls_now_and_then_are_not_flagged(clock: list[float]) -> None:
    """One turn in five is slow: the median is right, and says so."""
    times = alternate({"torch": takes(clock, *[2e-3] * 8, 30e-3), "ours": takes(clock, 1e-3)}, 0, least=21)
    ratio = times.ratio("torch", "ours")
    assert ratio.median == pytest.approx(2)
    assert ratio.doubt is None


def test_the_limit_of_a_stall() -> None:
    for slow, flagged in ((2.9, False), (3.1, True)):
        times = Times({"torch": [slow] * 5, "ours": [1.0] * 5}, {"torch": 1.0, "ours": 1.0})
        assert (times.ratio("torch", "ours").doubt is not None) == flagged


def test_turns_that_disagree_are_flagged() -> None:
    turns = [1.0, 1.0, 1.5, 2.1, 2.1]
    times = Times({"torch": turns, "ours": [1.0] * 5}, {"torch": 1.0, "ours": 1.0})
    doubt = times.ratio("torch", "ours").doubt
    assert doubt == "turns of torch and ours disagree: quartiles of the ratio 1 and 2.1"


def test_the_clock_is_the_real_one() -> None:
    times = alternate({"sleep": lambda: time.sleep(0.003), "nothing": lambda: None}, 0, least=3)
    assert 0.003 <= times.seconds("sleep").median < 0.3
    assert times.seconds("nothing").median < 1e-4
