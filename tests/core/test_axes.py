import chex
import jax.numpy as jnp
import pytest

from bn_jax.core.axes import canonical_axes, expand_to_rank, other_axes


def test_negative_axes_count_from_the_end():
    assert canonical_axes(4, -1) == (3,)
    assert canonical_axes(4, (-4, -2)) == (0, 2)


def test_axes_come_back_sorted():
    assert canonical_axes(10, (9, 1, 8)) == (1, 8, 9)


def test_an_axis_named_twice_counts_once():
    assert canonical_axes(3, (2, -1, 0)) == (0, 2)


@pytest.mark.parametrize("axis", [2, -3, (0, 2), (-3, 1)])
def test_an_axis_outside_the_array_is_refused(axis):
    with pytest.raises(ValueError, match="does not exist in an array of 2 dimensions"):
        canonical_axes(2, axis)


def test_a_scalar_has_no_axis():
    with pytest.raises(ValueError, match="x must have a feature axis, but is a single"):
        canonical_axes(0, -1)


@pytest.mark.parametrize(
    ("axes", "others"), [((3,), (0, 1, 2)), ((0, 2), (1, 3)), ((0, 1, 2, 3), ())]
)
def test_axes_and_other_axes_make_up_the_array(axes, others):
    assert other_axes(4, axes) == others


def test_features_expand_to_broadcast_against_the_array():
    values = jnp.arange(6.0).reshape(2, 3)
    expanded = expand_to_rank(values, (1, 3), 4)
    chex.assert_shape(expanded, (1, 2, 1, 3))
    chex.assert_trees_all_equal(expanded[0, :, 0, :], values)
