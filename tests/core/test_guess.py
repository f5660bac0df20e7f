import jax.numpy as jnp
import numpy as np
import pytest

from bn_jax.core.guess import guess_from


def guess(means, variances, **dtypes):
    mean = jnp.asarray(means, dtypes.get("mean"))
    return guess_from({"mean": mean, "var": jnp.asarray(variances, dtypes.get("var"))})


@pytest.mark.parametrize(
    ("means", "variances", "is_near"),
    [
        ([1.9, -1.9], [4.0, 4.0], True),
        ([1.9, -2.1], [4.0, 4.0], False),
        ([0.0], [0.0], True),
        ([1e-3], [0.0], False),
        ([3e30], [1.0], False),
        ([np.nan], [4.0], False),
        ([-np.inf], [4.0], False),
        ([5.0], [np.nan], False),
        ([5.0], [np.inf], False),
        ([1.0 + 1.0j], [4.0], True),
        ([1.0 + 2.0j], [4.0], False),
    ],
)
def test_means_are_near_zero_if_all_lie_within_a_deviation(means, variances, is_near):
    found = guess(means, variances)
    assert found.is_near_zero.item() == is_near
    np.testing.assert_array_equal(found.mean, np.asarray(means, found.mean.dtype))


@pytest.mark.parametrize("mean", ["float32", "bfloat16"])
@pytest.mark.parametrize("var", ["float32", "bfloat16"])
def test_statistics_of_two_dtypes_are_compared(mean, var):
    assert guess([1.0], [4.0], mean=mean, var=var).is_near_zero.item()
    assert not guess([3.0], [4.0], mean=mean, var=var).is_near_zero.item()
