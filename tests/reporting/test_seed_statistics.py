"""Values of several seeds, as numbers and as text."""

import pytest

from bn_jax.reporting.seed_statistics import mean_and_deviation, seed_statistics


def test_the_deviation_is_that_of_a_sample() -> None:
    values = seed_statistics([1.0, 2.0, 6.0])
    assert values["seeds"] == [1.0, 2.0, 6.0]
    assert values["mean"] == 3.0
    assert values["std"] == pytest.approx(7**0.5)


@pytest.mark.parametrize("values", [[1.0, None], [None], []])
def test_where_a_seed_has_no_value_there_is_no_mean(values: list[float | None]) -> None:
    assert seed_statistics(values) == {"seeds": values, "mean": None, "std": None}
    assert mean_and_deviation(seed_statistics(values), "{:.0f}") == "-"


def test_a_single_seed_is_written_without_a_deviation() -> None:
    assert mean_and_deviation(seed_statistics([0.125]), "{:.1f}", unit=0.01) == "12.5"
