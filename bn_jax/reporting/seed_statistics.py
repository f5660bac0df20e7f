"""Mean and standard deviation of a value over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def seed_statistics(values: Sequence[float | None]) -> dict[str, Any]:
    """Returns the values of all seeds, their mean and their standard deviation.

    The standard deviation is that of a sample (divided by n - 1).

    Args:
        values: One value a seed; None for a seed without a value.

    Returns:
        `seeds`, the values; `mean`, None unless every seed has a value; `std`, None
        unless there are also at least two seeds.

    >>> seed_statistics([1.0, 3.0])["mean"]
    2.0
    """
    known = [value for value in values if value is not None]
    is_known = bool(known) and len(known) == len(values)
    return {
        "seeds": list(values),
        "mean": float(np.mean(known)) if is_known else None,
        "std": float(np.std(known, ddof=1)) if is_known and len(known) > 1 else None,
    }


def mean_and_deviation(
    values: Mapping[str, Any], form: str, *, unit: float = 1.0
) -> str:
    """Formats mean and standard deviation; returns a dash if there is no mean.

    Args:
        values: Result of `seed_statistics`.
        form: Format of each number, such as "{:.2f}".
        unit: Value that the text shows as 1: 0.01 for percent.

    >>> mean_and_deviation(seed_statistics([0.5, 0.7]), "{:.0f}", unit=0.01)
    '60 ± 14'
    """
    numbers = [values[name] for name in ("mean", "std") if values[name] is not None]
    return " ± ".join(form.format(number / unit) for number in numbers) or "-"
