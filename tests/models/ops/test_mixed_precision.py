"""Layers in half precision against float64, and in float32 against Flax."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.hlo import summed_dtypes
from bn_jax.models.ops.mixed_precision import (
    convolve,
    convolve_same,
    dot_general,
    promote_inputs,
)

CONV = {"padding": [(1, 1), (1, 1)], "conv_general_dilated": convolve}
# A layer of Flax, what makes it ours, and the shape of its inputs.
LAYERS = {
    "dense": (nn.Dense, {"dot_general": dot_general}, (64, 5)),
    "same": (
        partial(nn.Conv, kernel_size=(3, 3)),
        {"conv_general_dilated": convolve_same},
        (16, 6, 6, 4),
    ),
    "strided": (partial(nn.Conv, kernel_size=(3, 3), strides=2), CONV, (16, 6, 6, 4)),
    "depthwise": (
        partial(nn.Conv, kernel_size=(3, 3), strides=2, feature_group_count=4),
        CONV,
        (16, 6, 6, 4),
    ),
}
layers = pytest.mark.parametrize("name", LAYERS)
# Every layer in one of them, and one layer in the other.
half = pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, jnp.bfloat16) for name in LAYERS), ("same", jnp.float16)],
)


def make(name, *, is_ours=True, dtype=None, use_bias=True):
    """The layer, its parameters, inputs and the gradient of its result."""
    kind, ours, shape = LAYERS[name]
    fields = {k: v for k, v in ours.items() if is_ours or k == "padding"}
    if is_ours:
        fields["promote_dtype"] = promote_inputs
    layer = kind(8, dtype=dtype, use_bias=use_bias, **fields)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    y, shapes = jax.eval_shape(layer.init_with_output, jax.random.key(0), x)
    params, dy = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), (shapes, y)
    )
    return layer, params, x, dy


def gradients(layer, params, x, dy, *, dtype):
    """Result, and gradients of parameters and inputs, of a layer within a network."""

    def apply(params, x):
        return jnp.asarray(layer.apply(params, x), dtype)

    def both(params, x, dy):
        y, pull_back = jax.vjp(apply, params, x)
        return y, *pull_back(dy.astype(y.dtype))

    return jax.jit(both)(params, x, dy)


# The other one has gradients of its own, see test_convolution.py.
@pytest.mark.parametrize("name", ["dense", "strided", "depthwise"])
def test_in_float32_the_program_is_that_of_flax(name):
    programs = []
    for is_ours in (True, False):
        layer, *arguments = make(name, is_ours=is_ours)
        both = partial(gradients, layer, dtype=jnp.float32)
        programs.append(jax.jit(both).lower(*arguments).as_text())
    assert programs[0] == programs[1]


@half
def test_parameters_get_gradients_that_are_not_rounded(name, dtype):
    layer, params, x, dy = make(name, dtype=dtype)
    x, dy = (array.astype(dtype) for array in (x, dy))
    y, dparams, dx = gradients(layer, params, x, dy, dtype=dtype)
    assert y.dtype == dx.dtype == dtype
    wide = make(name, is_ours=False)[0]
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: np.float64(leaf), (params, x, dy))
        _, expected, _ = gradients(wide.clone(dtype="float64"), *exact, dtype=None)
    # Sums of some hundred products in float32; rounded to bfloat16 they would be
    # off by 4e-3.
    chex.assert_trees_all_close(dparams, expected, rtol=1e-5, atol=1e-4)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(dparams))


@half
def test_results_and_gradients_of_inputs_are_those_of_flax(name, dtype):
    both = []
    for is_ours in (True, False):
        made = make(name, is_ours=is_ours, dtype=dtype, use_bias=False)
        both.append(gradients(*made, dtype=dtype))
    (y, _, dx), (expected, _, expected_dx) = both
    np.testing.assert_array_equal(y, expected)
    # The dtype's own rounding, of sums that may be taken in another order.
    np.testing.assert_allclose(dx, expected_dx, rtol=0.01, atol=0.01)


@layers
def test_devices_sum_gradients_in_float32(name, make_mesh, tmp_path):
    layer, params, x, dy = make(name, dtype=jnp.bfloat16)
    mesh = make_mesh(batch=4)
    split = NamedSharding(mesh, PartitionSpec("batch"))
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    x, dy = jax.device_put((x.astype(jnp.bfloat16), dy), split)
    both = jax.jit(partial(gradients, layer, dtype=jnp.bfloat16))
    found = summed_dtypes(both.lower(params, x, dy), tmp_path)
    # That of the kernel and that of the bias.
    assert found == {"f32": 2}
