"""Further passes on TPUs read x in the order in which its memory has the axes."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from conformance.modes import MODES, over_devices, place

from bn_jax.core.batch_norm import batch_norm
from bn_jax.core.devices import Devices
from bn_jax.core.memory_order import in_memory_order
from bn_jax.core.moments import batch_moments
from bn_jax.core.types import Batch, Guess


def far_from_zero(shape):
    return np.random.default_rng(0).normal(1e4, 1, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "axis", "ordered", "new_axis"),
    [
        ((32, 28, 14, 64), 3, (28, 14, 32, 64), 3),
        # Examples fill rows of 128.
        ((128, 28, 14, 64), 3, (28, 14, 64, 128), 2),
        ((256, 28, 14, 192), 3, (28, 14, 192, 256), 2),
        # And so do features.
        ((128, 28, 14, 256), 3, (28, 14, 128, 256), 3),
        ((8, 2, 3, 4, 64), 4, (2, 3, 4, 8, 64), 4),
        # With features first the memory is the same.
        ((32, 64, 28, 14), 1, (28, 14, 32, 64), 3),
        ((128, 64, 28, 14), 1, (28, 14, 64, 128), 2),
        ((0, 2, 3, 64), 3, (2, 3, 64, 0), 2),
    ],
)
def test_examples_and_features_of_images_and_volumes_run_fastest(
    shape, axis, ordered, new_axis
):
    of_mask = [1 if place == axis else size for place, size in enumerate(shape)]
    batch = Batch(jnp.zeros(shape), (axis,), jnp.ones(of_mask, bool))
    x, feature_axes, mask = in_memory_order(batch)
    assert x.shape == ordered
    assert feature_axes == (new_axis,)
    masked = [1 if place == new_axis else size for place, size in enumerate(ordered)]
    assert mask.shape == tuple(masked)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((8, 3), (1,)),
        ((8, 5, 3), (2,)),
        ((3, 8, 5, 5), (0,)),
        ((2, 4, 5, 5, 3), (0, 4)),
    ],
)
def test_all_others_stay_as_they_are(shape, axes):
    batch = Batch(jnp.zeros(shape), axes, None)
    assert in_memory_order(batch) is batch


@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((8, 3, 5, 2), 3),
        ((8, 2, 3, 5), 1),
        ((128, 2, 3, 2), 3),
        ((4, 2, 3, 2, 3), 4),
        ((32, 3), 1),
    ],
)
@pytest.mark.usefixtures("as_on_tpus")
def test_moments_of_further_passes_are_those_of_float64(shape, axis, masked):
    x = far_from_zero(shape)
    of_mask = [1 if place == axis else size for place, size in enumerate(shape)]
    mask = np.random.default_rng(1).random(of_mask) < 0.7 if masked else None
    moments = jax.jit(
        lambda x: batch_moments(
            x,
            Guess(jnp.zeros(shape[axis])),
            feature_axes=(axis,),
            mask=None if mask is None else jnp.asarray(mask),
            devices=Devices(),
        ).rounded()
    )(x)
    flat = np.moveaxis(x, axis, -1).reshape(-1, shape[axis])
    flat_mask = None if mask is None else mask.reshape(-1, 1)
    num_samples, mean, var = oracles.moments(flat, mask=flat_mask)
    np.testing.assert_array_equal(moments.num_samples, num_samples)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-7)
    np.testing.assert_allclose(moments.var, var, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("as_on_tpus")
def test_devices_that_share_images_normalize_them_by_those_of_all(mode):
    x = far_from_zero((32, 3, 2, 3))
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    program = over_devices(
        mode, 8, lambda name, _, x: batch_norm(x, None, None, stats, axis_name=name)[0]
    )
    y = jax.jit(program)(*place(mode, 8, {}, x))
    expected = oracles.batch_norm(x.reshape(-1, 3)).reshape(x.shape)
    np.testing.assert_allclose(np.reshape(y, x.shape), expected, atol=1e-5)


def lowered(platform, shape):
    """The operator's program for a platform that need not be here."""

    def apply(x):
        stats = {"mean": jnp.zeros(shape[-1]), "var": jnp.ones(shape[-1])}
        return batch_norm(x, None, None, stats)

    traced = jax.jit(apply).trace(jnp.zeros(shape))
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_a_tpu_alone_is_given_another_order():
    shape = (8, 3, 5, 2)
    assert "tensor<3x5x8x2xf32>" in lowered("tpu", shape)
    for platform in ("cpu", "cuda"):
        assert "stablehlo.transpose" not in lowered(platform, shape)


def test_images_of_any_number_are_exported_for_tpus():
    (size,) = jax.export.symbolic_shape("size")
    shape = jax.ShapeDtypeStruct((size, 4, 4, 3), jnp.float32)

    def moments(x):
        layout = {"feature_axes": (3,), "devices": Devices()}
        return batch_moments(x, Guess(jnp.zeros(3)), **layout).rounded()

    exported = jax.export.export(jax.jit(moments), platforms=["tpu", "cpu"])(shape)
    x = far_from_zero((10, 4, 4, 3))
    _, mean, var = oracles.moments(x.reshape(-1, 3))
    found = exported.call(x)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-7)
    np.testing.assert_allclose(found.var, var, rtol=1e-5)
