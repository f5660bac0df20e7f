import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal

from bn_jax.analysis.distributions import PERCENTILES, typical_unit, unit_percentiles


@pytest.mark.parametrize("num_examples", [1, 2, 500, 501])
def test_percentiles_are_those_of_each_unit_by_itself(num_examples):
    inputs = normal(num_examples, 3) * np.array([1, 10, 0.1], np.float32)
    actual = unit_percentiles(inputs)
    expected = np.percentile(np.float64(inputs), PERCENTILES, axis=0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_the_percentiles_are_those_of_the_papers_figure():
    assert PERCENTILES == (15, 50, 85)


def test_percentiles_come_in_the_order_asked_for():
    inputs = jnp.arange(101.0)[:, None]
    rows = unit_percentiles(inputs, (90, 10.5, 0, 100))
    np.testing.assert_allclose(rows[:, 0], [90, 10.5, 0, 100], rtol=1e-6)


def test_units_may_have_any_shape():
    chex.assert_shape(unit_percentiles(normal(7, 4, 5)), (3, 4, 5))


def test_percentiles_can_be_compiled():
    inputs = normal(50, 3)
    compiled = jax.jit(unit_percentiles)(inputs)
    np.testing.assert_allclose(compiled, unit_percentiles(inputs), atol=1e-6)


def with_spreads(*spreads):
    """Percentiles of units whose outer ones lie that far apart, around any median."""
    spreads = jnp.array(spreads)
    return jnp.stack([5 - spreads, 100 * spreads, 5 + 0 * spreads])


@pytest.mark.parametrize(
    ("spreads", "unit"),
    [
        ((3.0,), 0),
        ((9.0, 1.0, 5.0), 2),
        ((1.0, 2.0, 3.0, 4.0, 5.0), 2),
        ((0.0, 0.0, 7.0), 1),
    ],
)
def test_the_typical_unit_has_the_median_spread(spreads, unit):
    assert typical_unit(with_spreads(*spreads)).item() == unit


def test_of_an_even_number_of_units_the_lower_median_is_taken():
    assert typical_unit(with_spreads(4.0, 1.0, 3.0, 2.0)).item() == 3


def test_the_typical_unit_can_be_compiled():
    unit = jax.jit(typical_unit)(with_spreads(9.0, 1.0, 5.0))
    chex.assert_shape(unit, ())
    assert unit.item() == 2
