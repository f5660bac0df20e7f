"""Shapes and dtypes of the Linen layer, without computing anything."""

import chex
import jax
import jax.numpy as jnp
import pytest

import bn_jax

pytestmark = pytest.mark.shapes

KEY = jax.random.key(0)
SHAPES = [(7,), (7, 3), (7, 5, 3), (7, 5, 4, 3), (7, 5, 4, 2, 3)]
DTYPES = [jnp.float32, jnp.float16, jnp.bfloat16]


def shapes_of(x, **fields):
    """Returns the shapes of initial variables, result and updated statistics."""
    layer = bn_jax.BatchNorm(**({"use_running_average": False} | fields))
    variables = jax.eval_shape(layer.init, KEY, x)

    def apply(variables, x):
        return layer.apply(variables, x, mutable=["batch_stats"])

    y, updates = jax.eval_shape(apply, variables, x)
    return variables, y, updates


@pytest.mark.parametrize("use_running_average", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_result_has_the_shape_of_the_input(shape, use_running_average):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables, y, updates = shapes_of(x, use_running_average=use_running_average)
    chex.assert_shape(y, shape)
    chex.assert_shape(jax.tree.leaves(variables), shape[-1:])
    chex.assert_trees_all_equal_shapes_and_dtypes(
        updates["batch_stats"], variables["batch_stats"]
    )


@pytest.mark.parametrize("param_dtype", DTYPES)
@pytest.mark.parametrize("dtype", [None, jnp.float16])
@pytest.mark.parametrize("x_dtype", DTYPES)
def test_dtypes_follow_the_fields(x_dtype, dtype, param_dtype):
    x = jax.ShapeDtypeStruct((7, 3), x_dtype)
    variables, y, updates = shapes_of(x, dtype=dtype, param_dtype=param_dtype)
    promoted = jnp.promote_types(x_dtype, param_dtype)
    chex.assert_type(y, promoted if dtype is None else dtype)
    chex.assert_type(jax.tree.leaves(variables["params"]), param_dtype)
    chex.assert_type(jax.tree.leaves(updates["batch_stats"]), jnp.float32)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((7,), 0), ((7,), -1), *(((7, 5, 4, 3), axis) for axis in range(-4, 4))],
)
def test_any_axis_may_hold_the_features(shape, axis):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables, y, _ = shapes_of(x, axis=axis)
    chex.assert_shape(y, shape)
    chex.assert_shape(jax.tree.leaves(variables), (shape[axis],))


@pytest.mark.parametrize(
    ("axis", "features"),
    [((1, 2), (5, 4)), ((2, 1), (5, 4)), ((-1, 0), (7, 3)), ((3, 1, 2), (5, 4, 3))],
)
def test_several_axes_stand_in_the_order_of_the_array(axis, features):
    x = jax.ShapeDtypeStruct((7, 5, 4, 3), jnp.float32)
    variables, y, _ = shapes_of(x, axis=axis)
    chex.assert_shape(y, (7, 5, 4, 3))
    chex.assert_shape(jax.tree.leaves(variables), features)


@pytest.mark.parametrize("batch", [0, 1, 61])
def test_any_batch_size_will_do(batch):
    x = jax.ShapeDtypeStruct((batch, 4, 4, 3), jnp.float32)
    variables, y, _ = shapes_of(x)
    chex.assert_shape(y, (batch, 4, 4, 3))
    chex.assert_shape(jax.tree.leaves(variables), (3,))


@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_parameters_are_those_asked_for(use_scale, use_bias):
    x = jax.ShapeDtypeStruct((7, 3), jnp.float32)
    variables, y, _ = shapes_of(x, use_scale=use_scale, use_bias=use_bias)
    wanted = {"scale"} if use_scale else set()
    wanted |= {"bias"} if use_bias else set()
    assert set(variables.get("params", {})) == wanted
    chex.assert_shape(y, (7, 3))
