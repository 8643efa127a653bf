"""Means over seeds with their intervals, paired differences, and the number of pairs that a test needs."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import NamedTuple

from semaug.training.record import Record


class Summary(NamedTuple):
    """Mean, half-width of its 95% Student interval (NaN for fewer than three values), standard deviation, and n."""

    mean: float
    half_width: float
    std: float
    n: int

    def __str__(self) -> str:
        return f"{self.text('.3f')} (n = {self.n})"

    @property
    def side(self) -> int:
        """Where the interval lies: 1 above zero, -1 below it, 0 if it contains zero or there is none."""
        return 0 if not abs(self.mean) > self.half_width else 1 if self.mean > 0 else -1

    def text(self, form: str = ".1f") -> str:
        """For tables: mean ± half-width, to the digits of ``form``; no interval for fewer than three values.

        A minus is a minus sign, and never stands before a zero.
        """
        half = f" ± {self.half_width:{form.lstrip('+')}}" if self.n > 2 else ""
        return f"{self.mean:{form.replace('.', 'z.')}}{half}".replace("-", "\N{MINUS SIGN}")


def summary(values: Iterable[float]) -> Summary:
    """Mean with its 95% Student interval: the interval of the mean over seeds, not of one run."""
    numbers = [float(value) for value in values]
    n = len(numbers)
    if n == 0:
        raise ValueError("values: got none; summary needs at least one")
    mean = math.fsum(numbers) / n
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in numbers) / (n - 1)) if n > 1 else math.nan
    if n < 3:
        return Summary(mean, math.nan, std, n)
    from scipy.stats import t  # here: SciPy takes half a second to load

    quantile = float(t.ppf(0.975, n - 1))
    return Summary(mean, quantile * std / math.sqrt(n), std, n)


def points(record: Record) -> float:
    """Test accuracy in percent."""
    return 100 * record.metrics["test_accuracy"]


def gains(
    records: Iterable[Record], baseline: Iterable[Record], score: Callable[[Record], float] = points
) -> list[float]:
    """Differences of a score, records - baseline, on the seeds that both have, in their order.

    Raises:
        ValueError: where a side holds a seed twice.
    """
    sides = []
    for name, side in (("records", list(records)), ("baseline", list(baseline))):
        sides.append({record.seed: score(record) for record in side})
        if len(sides[-1]) != len(side):
            raise ValueError(f"{name}: got seeds {sorted(record.seed for record in side)}; takes each seed once")
    return [sides[0][seed] - sides[1][seed] for seed in sorted(sides[0].keys() & sides[1].keys())]


def pairs_needed(effect: float, std: float, power: float = 0.8, level: float = 0.05) -> int:
    """Paired seeds that a two-sided t test at ``level`` needs to see a mean difference ``effect`` with ``power``.

    std: standard deviation of the paired differences, in the unit of effect (``Summary.std``). The smallest n of at
    least 2 whose power, by the noncentral t distribution, suffices. Raises ValueError for an effect of 0, a std that
    is not positive, and a power or level outside (0, 1).
    """
    from semaug._checks import check_number, require  # here: it loads torch

    require(math.isfinite(effect) and effect != 0, "effect", effect, "a finite number other than 0")
    check_number("std", std, low=0, without=(0,))
    check_number("power", power, low=level, high=1, without=(level, 1))
    check_number("level", level, low=0, high=1, without=(0, 1))
    from scipy.stats import nct, t

    def enough(n: int) -> bool:
        critical, shift = t.ppf(1 - level / 2, n - 1), abs(effect) / std * math.sqrt(n)
        return bool(nct.sf(critical, n - 1, shift) + nct.cdf(-critical, n - 1, shift) >= power)

    high = 2
    while not enough(high):
        high *= 2
    return 2 + bisect_left(range(2, high), True, key=enough)
