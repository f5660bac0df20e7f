"""Feature axes, mapped axes and groups of devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from conformance.modes import AXIS, over_devices
from flax import nnx
from peers import formulas
from peers.calls import flax_layer, is_close, start, train

import bn_jax

GROUP_MODES = ("pmap", "shard_map", "shard_map_unchecked", "vmap", "jit")


def grouped(mode, x, **settings):
    body = over_devices(
        mode, 4, lambda axis, _, x: train(x, axis_name=axis, **settings)[0]
    )
    return np.reshape(jax.jit(body)({}, x), x.shape)


def flax_in_groups(x):
    """Flax's layer on four devices of a vmap, in two groups."""
    layer = nn.BatchNorm(
        use_running_average=False,
        use_bias=False,
        use_scale=False,
        axis_name=AXIS,
        axis_index_groups=[[0, 1], [2, 3]],
    )
    stats = {"batch_stats": start(x.shape[-1])}
    return over_devices(
        "vmap", 4, lambda _, __, x: layer.apply(stats, x, mutable=["batch_stats"])[0]
    )({}, x)


@pytest.mark.parametrize("group_size", [2, 4, 8])
@pytest.mark.parametrize("mode", GROUP_MODES)
def test_flax_groups_of_devices_mean_nothing_in_jit_and_vmap(mode, group_size):
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    groups = x.reshape(-1, group_size, 3)
    expected = np.concatenate([oracles.batch_norm(group) for group in groups])
    y = grouped(mode, jnp.asarray(x), group_size=group_size)
    assert is_close(y, expected, atol=1e-5)
    if mode == "jit":
        theirs = flax_layer(x, axis_index_groups=[[0, 1], [2, 3]])[0]
        assert not is_close(theirs, expected, atol=1e-5)
    if mode == "vmap":
        # JAX's own words: Flax hands the groups to a sum that vmap does not have.
        with pytest.raises(NotImplementedError, match="axis_index_groups not support"):
            flax_in_groups(jnp.asarray(x))


def test_flax_does_not_say_how_to_join_an_axis_of_vmap_and_one_of_a_mesh(make_mesh):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 3)), jnp.float32)
    axes, stats = ("devices", "slices"), start(3)
    layer = nn.BatchNorm(use_running_average=False, axis_name=axes)
    variables = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x)

    def mapped(function, **settings):
        return jax.shard_map(
            jax.vmap(function, axis_name="slices"),
            mesh=make_mesh(devices=2),
            in_specs=jax.P(None, "devices"),
            out_specs=jax.P(None, "devices"),
            **settings,
        )

    def theirs(x):
        return layer.apply(variables, x, mutable=["batch_stats"])[0]

    def ours(x):
        return bn_jax.batch_norm(x, None, None, stats, axis_name=axes)[0]

    with pytest.raises(ValueError, match="slices") as error:
        mapped(theirs)(x)
    assert "check_vma=False" not in str(error.value)
    with pytest.raises(ValueError, match=r"an axis of vmap .*check_vma=False"):
        mapped(ours)(x)
    y = mapped(ours, check_vma=False)(x)
    assert is_close(y, oracles.batch_norm(np.reshape(x, (16, 3))).reshape(x.shape))


def test_haiku_needs_the_axis_in_initialization():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    layer = bn_jax.BatchNorm(use_running_average=False, axis_name=AXIS)
    variables = layer.init(jax.random.key(0), x)

    def ours(axis, variables, x):
        return layer.apply(variables, x, mutable=["batch_stats"])[0]

    def theirs(axis, _, x):
        mean, var = formulas.haiku_synchronized_moments(x, axis)
        return formulas.standardize(x, mean, var)

    # Both are right where the axis is bound; the formula fails where it is not.
    for body in (ours, theirs):
        y = over_devices("vmap", 2, body)(variables, x)
        assert is_close(np.reshape(y, x.shape), oracles.batch_norm(x), atol=1e-5)
    with pytest.raises(NameError, match=AXIS):
        theirs(AXIS, None, x)


@pytest.mark.parametrize("axis", [(1, 2), (2, 1), (-1, -2)])
def test_nnx_refuses_several_feature_axes(axis):
    x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    layer = bn_jax.BatchNorm(use_running_average=False, axis=axis)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert variables["params"]["scale"].shape == (2, 3)
    assert is_close(y, oracles.batch_norm(x, axis=axis), atol=1e-5)
    with pytest.raises(ValueError, match=r"broadcast|reshape"):
        nnx.BatchNorm(6, axis=axis, rngs=nnx.Rngs(0))(x)


def test_flax_does_not_sort_feature_axes_from_eight_on():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, *[2] * 7, 3, 5)))
    shapes = {}
    for layer in (bn_jax.BatchNorm, nn.BatchNorm):
        model = layer(use_running_average=False, axis=(9, 1, 8))
        shapes[layer] = model.init(jax.random.key(0), x)["params"]["scale"].shape
    assert shapes[bn_jax.BatchNorm] == (2, 3, 5)
    assert shapes[nn.BatchNorm] != (2, 3, 5)
