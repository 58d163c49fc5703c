"""The axes of figures: positions of values, limits and ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Value = float | None


@dataclass(frozen=True)
class Axis:
    """Maps values from low to high to pixels from start to end, linearly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value; values beyond the ends are drawn at the ends."""
        low, high, value = ((math.log10(v) for v in (self.low, self.high, max(value, self.low))) if self.log
                            else (self.low, self.high, value))  # fmt: skip
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        return _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)


def limits(values: Iterable[Value], log: bool, zero: bool = False) -> tuple[float, float]:
    """The ends of an axis that shows all values. With `zero`, for bars, it includes 0; ends get a little room."""
    known = [v for v in values if v is not None and math.isfinite(v) and (v > 0 or not log)]
    if not known:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(known), max(known)
    if log:
        room = max((high / low) ** 0.04, 1.05)
        return low / room, high * room
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
        return low * 1.05, (high or 1.0) * 1.05
    room = (high - low or abs(high) or 1.0) * 0.04
    return low - room, high + room


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    decades = list(range(first, last + 1))
    if len(decades) >= 2:
        every = math.ceil(len(decades) / most)
        return [10.0**d for d in decades if d % every == 0] or [10.0 ** decades[0]]
    fine = [m * 10.0**d for d in range(first - 1, last + 2) for m in (1, 1.5, 2, 3, 5, 7)]
    return [tick for tick in fine if low <= tick <= high]


def tick_text(value: float) -> str:
    """The text of a tick: numbers from 0.001 to 9,999 as they are, others with a power of ten."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    head = value / 10.0**exponent
    power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if math.isclose(head, 1) else f"{head:.3g}·{power}"
