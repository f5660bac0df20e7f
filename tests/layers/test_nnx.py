"""The NNX layer, compared with Flax's and with the Linen layer."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from flax import nnx
from layers.nnx_model import make

import bn_jax

KEY = jax.random.key(0)


OPTIONS = [
    {"debias": True},
    {"momentum": None},
    {"variance_correction": 1},
    {"skip_nonfinite": True},
    {"group_size": 2},
]


run = nnx.jit(lambda layer, x, **call: layer(x, **call))


def stats_of(layer):
    state = nnx.state(layer, nnx.BatchStat)
    return {name: variable[...] for name, variable in state.items()}


def assert_one_step(layer, *batches):
    """Compares running statistics with one step of the oracle on each batch."""
    mean, var = np.zeros(3), np.ones(3)
    for x in batches:
        _, batch_mean, batch_var = oracles.moments(x)
        mean = oracles.moving_average(mean, batch_mean, 0.5)
        var = oracles.moving_average(var, batch_var, 0.5)
    np.testing.assert_allclose(layer.mean[...], mean, rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], var, rtol=1e-5)


def assert_like_linen(x, mask=None, num_features=3, **settings):
    """Compares results and statistics of both modes with the Linen layer's."""
    ours, linen = (
        make(num_features, **settings),
        bn_jax.BatchNorm(**({"momentum": 0.5} | settings)),
    )

    @jax.jit
    def run_linen(x):
        variables = linen.init(KEY, x, use_running_average=True)
        y, updates = linen.apply(
            variables, x, use_running_average=False, mask=mask, mutable=["batch_stats"]
        )
        inferred = linen.apply(variables | updates, x, use_running_average=True)
        return y, updates["batch_stats"], inferred

    @nnx.jit
    def run_ours(layer, x):
        return layer(x, mask=mask), stats_of(layer), layer(x, True)

    chex.assert_trees_all_close(run_ours(ours, x), run_linen(x), rtol=1e-5, atol=1e-6)


def test_arguments_are_those_of_flax_and_ours_come_behind():
    ours, theirs = (
        [(p.name, p.kind, p.default) for p in inspect.signature(of).parameters.values()]
        for of in (bn_jax.nnx.BatchNorm.__init__, nnx.BatchNorm.__init__)
    )
    assert ours[: len(theirs)] == theirs


@pytest.mark.parametrize("fields", [{}, {"use_bias": False}, {"use_scale": False}])
def test_results_and_state_are_those_of_flax(fields):
    x, results = normal(60, 3), []
    init = {
        "scale_init": nnx.initializers.normal(),
        "bias_init": nnx.initializers.normal(),
    }
    for of in (bn_jax.nnx.BatchNorm, nnx.BatchNorm):
        layer = make(layer=of, **init, **fields)
        run = nnx.jit(lambda layer, x: (layer(x), layer(x, use_running_average=True)))
        results.append((run(layer, x), nnx.to_pure_dict(nnx.state(layer))))
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dtype", [None, jnp.float16])
@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_dtypes_of_the_result_are_those_of_flax(x_dtype, dtype, param_dtype):
    def shapes(of):
        layer = make(layer=of, dtype=dtype, param_dtype=param_dtype)
        return layer(jnp.ones((4, 3), x_dtype)), layer.mean[...], layer.var[...]

    ours, theirs = (
        nnx.eval_shape(lambda of=of: shapes(of))
        for of in (bn_jax.nnx.BatchNorm, nnx.BatchNorm)
    )
    assert ours[0].dtype == theirs[0].dtype
    chex.assert_type(ours[1:], jnp.float32)


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
def test_options_do_what_they_do_in_linen(options):
    assert_like_linen(normal(6, 3), **options)


@pytest.mark.parametrize(
    ("axis", "num_features"), [(1, 3), ((1, 3), (3, 5)), ([-1, 1], (3, 5))]
)
def test_features_may_lie_on_any_axes(axis, num_features):
    axis_for_linen = tuple(axis) if isinstance(axis, list) else axis
    x = normal(6, 3, 4, 5)
    y = run(make(num_features, axis=axis), x)
    expected = oracles.batch_norm(x, axis=axis)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert_like_linen(x, num_features=num_features, axis=axis_for_linen)


def test_masks_hide_positions():
    x = normal(10, 3)
    mask = jnp.asarray(np.random.default_rng(1).random((10, 1)) < 0.6)
    assert_like_linen(jnp.where(mask, x, jnp.nan), mask=mask)


def test_train_and_eval_and_view_switch_the_mode():
    x, layer = normal(6, 3), make()
    layer.eval()
    np.testing.assert_allclose(layer(x), x / np.sqrt(1 + 1e-5), rtol=1e-5)
    chex.assert_trees_all_equal(stats_of(layer), stats_of(make()))
    viewed = nnx.view(layer, use_running_average=False)
    assert (layer.use_running_average, viewed.use_running_average) == (True, False)
    layer.train()
    np.testing.assert_allclose(layer(x), oracles.batch_norm(x), rtol=1e-5, atol=1e-5)
    assert_one_step(layer, x)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_a_dtype_of_half_precision_rounds_the_result_only(dtype):
    x = normal(64, 3, mean=50)
    layer = make(dtype=dtype, momentum=0.0)
    half_unit = 0.501 * float(jnp.finfo(dtype).eps)
    expected = oracles.batch_norm(x)
    for y in (layer(x), layer(x, use_running_average=True)):
        np.testing.assert_allclose(np.float64(y), expected, rtol=half_unit, atol=2e-5)
    _, mean, var = oracles.moments(x)
    np.testing.assert_allclose(layer.mean[...], mean, rtol=1e-6)
    np.testing.assert_allclose(layer.var[...], var, rtol=1e-5)


def test_split_and_merge_keep_everything():
    x, layer = (
        normal(6, 3),
        make(debias=True, axis_index_groups=[[0, 1]], axis_name="a"),
    )
    layer.axis_name = layer.axis_index_groups = None
    layer(x)
    graphdef, state = nnx.split(layer)
    copy = nnx.merge(graphdef, state)
    chex.assert_trees_all_equal(stats_of(copy), stats_of(layer))
    # In inference, the result depends on the copied statistics.
    chex.assert_trees_all_equal(copy(x, True), layer(x, True))
    assert hash(graphdef) == hash(nnx.graphdef(layer))


def test_an_abstract_layer_has_shapes_only():
    layer = nnx.eval_shape(lambda: make((3, 5), axis=(1, 2), momentum=None))
    shapes = jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(layer)))
    assert shapes.pop("count") == ()
    assert shapes == dict.fromkeys(("mean", "var", "scale", "bias"), (3, 5))


@pytest.mark.parametrize("options", [{}, {"debias": True}], ids=str)
def test_a_state_of_flax_loads(options):
    x, theirs, ours = normal(60, 3), make(layer=nnx.BatchNorm), make(**options)
    theirs(x)
    nnx.update(ours, nnx.state(theirs))
    expected = theirs(x, use_running_average=True)
    actual = ours(x, use_running_average=True)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("update", [True, False])
@pytest.mark.parametrize("use", [True, False])
def test_use_and_update_are_independent(use, update):
    x = normal(6, 3)
    layer = make(use_running_average=use, update_running_average=update)
    y = layer(x)
    expected = x / np.sqrt(1 + 1e-5) if use else oracles.batch_norm(x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert_one_step(layer, *([x] if update else []))


def test_a_traced_flag_chooses_the_mode():
    x, layer = normal(6, 3), make()
    apply = nnx.jit(lambda layer, x, flag: layer(x, flag))
    np.testing.assert_allclose(apply(layer, x, True), x, rtol=1e-4)
    y = apply(layer, x, False)
    np.testing.assert_allclose(y, oracles.batch_norm(x), rtol=1e-5, atol=1e-5)
    assert_one_step(layer, x)


def test_metadata_reaches_the_parameters():
    metadata = {"scale_metadata": {"tag": "s"}, "bias_metadata": {"tag": "b"}}
    layer = make(**metadata)
    assert (layer.scale.tag, layer.bias.tag) == ("s", "b")


def test_view_info_names_what_a_view_may_change():
    text = nnx.view_info(bn_jax.nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    assert "use_running_average: bool | None = None" in text
    assert "update_running_average: bool | None = None" in text


def test_one_value_a_feature_gives_the_bias_as_in_flax_and_warns():
    x, init = jnp.full((1, 3), 7.0), {"bias_init": nnx.initializers.normal()}
    ours, theirs = (
        make(layer=of, **init) for of in (bn_jax.nnx.BatchNorm, nnx.BatchNorm)
    )
    with pytest.warns(UserWarning, match=r"^BatchNorm: x of .* one value") as warned:
        y = ours(x)
    np.testing.assert_array_equal(y, theirs(x))
    states = (nnx.to_pure_dict(nnx.state(layer)) for layer in (ours, theirs))
    chex.assert_trees_all_close(*states, rtol=1e-6)
    # The warning points at the line that calls the layer.
    assert [warning.filename for warning in warned] == [__file__]


def test_one_example_is_enough_to_see_the_shapes():
    layer, x = make(), jnp.ones((1, 3))
    with pytest.warns(UserWarning, match="one value per feature"):
        assert nnx.eval_shape(lambda layer, x: layer(x), layer, x).shape == (1, 3)
    with pytest.warns(UserWarning, match="one value per feature"):
        assert "BatchNorm" in nnx.tabulate(layer, x)


def test_a_count_of_infinity_is_kept_as_a_finite_one():
    layer = make(debias=True)
    layer.count[...] = jnp.asarray(jnp.inf)
    layer(normal(6, 3))
    assert layer.count[...] == 2**24


def test_running_statistics_on_a_mesh_are_closed_over_in_shard_map(make_mesh):
    mesh, x = make_mesh(devices=2), normal(6, 3)
    layer = make(axis_name="devices", update_running_average=False)
    replicated = jax.NamedSharding(mesh, jax.P())
    nnx.update(layer, jax.device_put(nnx.state(layer), replicated))
    mapped = jax.shard_map(
        lambda x: layer(x) ** 3,
        mesh=mesh,
        in_specs=jax.P("devices"),
        out_specs=jax.P("devices"),
    )
    found = jax.jit(jax.grad(lambda x: jnp.sum(mapped(x))))(x)
    alone = make(update_running_average=False)
    expected = jax.jit(jax.grad(lambda x: jnp.sum(alone(x) ** 3)))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
