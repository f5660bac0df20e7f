"""Shapes and dtypes of the operator, without computing anything."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest

from bn_jax.core.batch_norm import batch_norm
from bn_jax.core.collectives import Devices
from bn_jax.core.moments import batch_moments

pytestmark = [
    pytest.mark.shapes,
    pytest.mark.usefixtures("standard_promotion"),
]

SHAPES = [(7,), (7, 3), (7, 5, 3), (7, 5, 4, 3), (7, 5, 4, 2, 3)]
DTYPES = [jnp.float32, jnp.float16, jnp.bfloat16, jnp.complex64]
# Covers all shapes in one dtype, and all dtypes in one shape.
SHAPES_AND_DTYPES = [
    *((shape, jnp.float32) for shape in SHAPES),
    *(((7, 5, 3), dtype) for dtype in DTYPES[1:]),
]


def features_of(shape, axis):
    axes = (axis,) if isinstance(axis, int) else axis
    return tuple(shape[a] for a in sorted({a % len(shape) for a in axes}))


def shapes_of(shape, dtype=jnp.float32, *, axis=-1, mask=None, training=True):
    """Returns the shapes of y and statistics; parameters and statistics are float32."""
    features = jax.ShapeDtypeStruct(features_of(shape, axis), jnp.float32)

    def operator(x, scale, bias, mean, var, mask):
        return batch_norm(
            x,
            scale,
            bias,
            {"mean": mean, "var": var},
            axis=axis,
            mask=mask,
            use_running_average=not training,
        )

    mask = None if mask is None else jax.ShapeDtypeStruct(mask, bool)
    x = jax.ShapeDtypeStruct(shape, dtype)
    return jax.eval_shape(operator, x, *[features] * 4, mask)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "dtype"), SHAPES_AND_DTYPES)
def test_the_result_has_the_shape_and_dtype_of_the_input(shape, dtype, training):
    y, stats = shapes_of(shape, dtype, training=training)
    chex.assert_shape(y, shape)
    chex.assert_type(y, dtype)
    chex.assert_shape([stats["mean"], stats["var"]], shape[-1:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_running_statistics_keep_float32(dtype):
    _, stats = shapes_of((7, 3), dtype)
    is_complex = dtype == jnp.complex64
    chex.assert_type(stats["mean"], jnp.complex64 if is_complex else jnp.float32)
    chex.assert_type(stats["var"], jnp.float32)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((7,), 0), ((7,), -1), *(((7, 5, 4, 3), axis) for axis in range(-4, 4))],
)
def test_any_axis_may_hold_the_features(shape, axis):
    y, stats = shapes_of(shape, axis=axis)
    chex.assert_shape(y, shape)
    chex.assert_shape([stats["mean"], stats["var"]], (shape[axis],))


@pytest.mark.parametrize(
    "axis", [(0, 1), (-1, 1), (3, 1), (1, 2, 3), (-1, -2, -3), (2, 0), (0, 1, 2, 3), ()]
)
def test_several_axes_stand_in_the_order_of_the_array(axis):
    shape = (7, 5, 4, 3)
    y, stats = shapes_of(shape, axis=axis)
    chex.assert_shape(y, shape)
    chex.assert_shape([stats["mean"], stats["var"]], features_of(shape, axis))


@pytest.mark.parametrize("batch", [0, 1, 61])
@pytest.mark.parametrize("rest", [(1,), (4, 4, 3)])
def test_any_batch_size_will_do(batch, rest):
    # A single value a feature needs the running statistics.
    training = (batch, len(rest)) != (1, 1)
    y, stats = shapes_of((batch, *rest), training=training)
    chex.assert_shape(y, (batch, *rest))
    chex.assert_shape([stats["mean"], stats["var"]], rest[-1:])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "mask", [(), (3,), (1, 1, 1), (7, 1, 1), (7, 5, 1), (1, 5, 1), (5, 1), (7, 5, 3)]
)
def test_any_mask_that_broadcasts_will_do(mask, training):
    y, stats = shapes_of((7, 5, 3), mask=mask, training=training)
    chex.assert_shape(y, (7, 5, 3))
    chex.assert_shape([stats["mean"], stats["var"]], (3,))


@pytest.mark.parametrize(("shape", "dtype"), SHAPES_AND_DTYPES)
def test_moments_are_one_value_a_feature_in_float32(shape, dtype):
    axes = (len(shape) - 1,)
    function = partial(batch_moments, feature_axes=axes, devices=Devices())
    moments = jax.eval_shape(function, jax.ShapeDtypeStruct(shape, dtype))
    mean_dtype = jnp.complex64 if dtype == jnp.complex64 else jnp.float32
    chex.assert_shape(list(moments), shape[-1:])
    dtypes = [jnp.float32, mean_dtype, mean_dtype, jnp.float32]
    chex.assert_type(list(moments), dtypes)


@pytest.mark.parametrize(("shape", "dtype"), SHAPES_AND_DTYPES[:-1])
def test_gradients_have_the_shapes_and_dtypes_of_their_arguments(shape, dtype):
    features = jnp.ones(shape[-1:])

    def loss(x, scale, bias):
        stats = {"mean": features, "var": features}
        return jnp.sum(batch_norm(x, scale, bias, stats)[0]).astype(jnp.float32)

    x = jax.ShapeDtypeStruct(shape, dtype)
    gradients = jax.eval_shape(jax.grad(loss, (0, 1, 2)), x, features, features)
    chex.assert_shape(gradients, [shape, shape[-1:], shape[-1:]])
    chex.assert_type(gradients, [dtype, jnp.float32, jnp.float32])
