"""A value of every seed, with mean and deviation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """The values of all seeds; mean and sample deviation where all have one.

    Args:
        values: One a seed; None where there is none.

    >>> spread([1.0, 3.0])["mean"]
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
    """Both as text, or a dash where there is no mean.

    Args:
        values: As `spread` returns them.
        form: Format of each number, such as "{:.2f}".
        unit: What counts as 1 in the text: 0.01 for percent.

    >>> mean_and_deviation(spread([0.5, 0.7]), "{:.0f}", unit=0.01)
    '60 ± 14'
    """
    numbers = [values[name] for name in ("mean", "std") if values[name] is not None]
    return " ± ".join(form.format(number / unit) for number in numbers) or "-"
