from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal

import bn_jax
from bn_jax.core.collectives import Devices
from bn_jax.core.moments import batch_moments
from bn_jax.stats.precise import average_moments

KEY = jax.random.key(0)


class TwoLayers(nn.Module):
    norm: type[nn.Module] = bn_jax.BatchNorm

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(5, use_bias=False, name="first")(x)
        x = self.norm(use_running_average=not train, name="norm0")(x)
        x = nn.Dense(4, use_bias=False, name="second")(jnp.tanh(x))
        return self.norm(use_running_average=not train, name="norm1")(x)


def in_training(model, **keywords):
    mutable = ["batch_stats", "batch_moments"]
    return jax.jit(partial(model.apply, train=True, mutable=mutable, **keywords))


def init(model, x):
    return jax.jit(partial(model.init, train=True))(KEY, x)


def two_layers_by_hand(params, batches):
    """What each normalization receives from every batch, in training mode."""
    first, second = (
        np.asarray(params[name]["kernel"], np.float64) for name in ("first", "second")
    )
    inputs0 = [np.asarray(x, np.float64) @ first for x in batches]
    inputs1 = [np.tanh(oracles.batch_norm(h)) @ second for h in inputs0]
    return inputs0, inputs1


def assert_statistics(batch_stats, inputs, **keywords):
    mean, var = oracles.population_statistics(inputs, **keywords)
    np.testing.assert_allclose(batch_stats["mean"], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(batch_stats["var"], var, rtol=1e-5)


@pytest.fixture(scope="module")
def two_layers():
    """A model, its variables, batches, and the statistics computed from them."""
    model, batches = TwoLayers(), normal(6, 8, 3)
    variables = jax.jit(model.init, static_argnames="train")(
        KEY, batches[0], train=True
    )
    stats = bn_jax.population_statistics(in_training(model), variables, batches)
    return model, variables, batches, stats


def test_statistics_of_every_layer_are_those_of_algorithm_2(two_layers):
    _, variables, batches, batch_stats = two_layers
    inputs0, inputs1 = two_layers_by_hand(variables["params"], batches)
    assert_statistics(batch_stats["norm0"], inputs0)
    assert_statistics(batch_stats["norm1"], inputs1)


def test_inference_with_them_is_the_affine_map_of_the_paper(two_layers):
    model, variables, batches, batch_stats = two_layers
    x = normal(5, 3, seed=1)
    y = model.apply(variables | {"batch_stats": batch_stats}, x, train=False)
    first, second = (
        variables["params"][name]["kernel"] for name in ("first", "second")
    )
    inputs0, inputs1 = two_layers_by_hand(variables["params"], batches)
    h = np.float64(x) @ np.float64(first)
    h = oracles.inference(h, None, None, *oracles.population_statistics(inputs0))
    h = np.tanh(h) @ np.float64(second)
    h = oracles.inference(h, None, None, *oracles.population_statistics(inputs1))
    np.testing.assert_allclose(y, h, rtol=1e-5, atol=1e-5)


def test_the_statistics_have_the_form_of_the_running_ones(two_layers):
    _, variables, _, batch_stats = two_layers
    chex.assert_trees_all_equal_shapes_and_dtypes(batch_stats, variables["batch_stats"])


def test_the_running_statistics_do_not_matter(two_layers):
    model, variables, batches, batch_stats = two_layers
    running = jax.tree.map(lambda v: v + 7, variables["batch_stats"])
    other = variables | {"batch_stats": running}
    # They are the shift of the sums, and so reach the last bits alone.
    statistics = bn_jax.population_statistics(in_training(model), other, batches)
    chex.assert_trees_all_close(statistics, batch_stats, rtol=1e-5)


def test_the_variables_are_not_changed(two_layers):
    model, variables, batches, _ = two_layers
    before = jax.tree.map(np.array, variables)
    bn_jax.population_statistics(in_training(model), variables, batches)
    chex.assert_trees_all_equal(variables, before)


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return bn_jax.BatchNorm(use_running_average=not train)(x)


def test_a_convolution_is_corrected_by_its_number_of_pixels():
    # Algorithm 2 with m' = m * p * q in place of m: 2 * 3 * 3 / (2 * 3 * 3 - 1).
    model, batches = Convolutional(), normal(5, 2, 3, 3, 4)
    variables = init(model, batches[0])
    batch_stats = bn_jax.population_statistics(in_training(model), variables, batches)
    assert_statistics(batch_stats["BatchNorm_0"], batches)


def test_one_layer_alone_is_a_model_too():
    layer, batches = bn_jax.BatchNorm(use_running_average=False), normal(4, 6, 2)
    variables = layer.init(KEY, batches[0])
    mutable = ["batch_stats", "batch_moments"]
    batch_stats = bn_jax.population_statistics(
        partial(layer.apply, mutable=mutable), variables, batches
    )
    assert_statistics(batch_stats, batches)


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        norm = bn_jax.BatchNorm(use_running_average=not train, name="norm")
        return norm(x), norm(3 * x + 1)


def test_the_calls_of_a_shared_layer_count_as_batches():
    batches = normal(4, 6, 2)
    variables = init(Shared(), batches[0])
    batch_stats = bn_jax.population_statistics(
        in_training(Shared()), variables, batches
    )
    inputs = [call for x in batches for call in (x, 3 * x + 1)]
    assert_statistics(batch_stats["norm"], inputs)


class Confusing(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return bn_jax.BatchNorm(use_running_average=not train, name="moments")(x)


def test_a_layer_may_be_named_moments():
    batches = normal(4, 6, 2)
    variables = init(Confusing(), batches[0])
    batch_stats = bn_jax.population_statistics(
        in_training(Confusing()), variables, batches
    )
    assert_statistics(batch_stats["moments"], batches)


def test_batches_may_come_from_a_generator():
    model, batches = Convolutional(), normal(3, 6, 2)
    variables = init(model, batches[0])
    batch_stats = bn_jax.population_statistics(
        in_training(model), variables, (x for x in batches)
    )
    assert_statistics(batch_stats["BatchNorm_0"], batches)


@pytest.mark.parametrize("size", [2, 4, 32])
def test_the_variance_is_unbiased(size):
    x = normal(4000, size, 8)

    def of_batch(x):
        return batch_moments(x, feature_axes=(1,), devices=Devices()).rounded()

    moments = jax.jit(jax.vmap(of_batch))(x)
    stats = average_moments({"norm": {"moments": (moments,)}}, {"norm": {}})["norm"]
    # Five standard errors of 32,000 variances, each of which has 2 / (size - 1).
    tolerance = 5 * np.sqrt(2 / (size - 1) / 32_000)
    np.testing.assert_allclose(np.mean(stats["var"]), 1, atol=tolerance)
    assert np.mean(moments.var) < 1 - 0.9 / size


@pytest.mark.parametrize("used_up", [True, False])
def test_no_batch_is_refused(used_up):
    model, batches = Convolutional(), iter(normal(2, 6, 2))
    variables = init(model, next(batches))
    if used_up:
        next(batches)
    with pytest.raises(ValueError, match="at least one batch") as error:
        bn_jax.population_statistics(
            in_training(model), variables, batches if used_up else []
        )
    assert "used before" in str(error.value)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(2)(x)


@pytest.mark.parametrize(
    "model", [TwoLayers(nn.BatchNorm), Plain()], ids=["flax", "plain"]
)
def test_a_model_that_sows_no_moments_is_refused(model):
    batches = normal(2, 6, 3)
    variables = init(model, batches[0])
    with pytest.raises(ValueError, match=r"bn_jax\.BatchNorm for its layers"):
        bn_jax.population_statistics(in_training(model), variables, batches)


def test_a_model_in_inference_mode_is_refused(two_layers):
    model, variables, batches, _ = two_layers
    infer = partial(model.apply, train=False, mutable=["batch_stats", "batch_moments"])
    with pytest.raises(ValueError, match="run the model in training mode"):
        bn_jax.population_statistics(infer, variables, batches)


def test_a_function_that_returns_no_collections_is_refused(two_layers):
    model, variables, batches, _ = two_layers
    for result in (batches[0], (batches[0], batches[0]), [batches[0]]):
        with pytest.raises(ValueError, match="must return the model's output and the"):
            bn_jax.population_statistics(lambda *_, r=result: r, variables, batches)
    with pytest.raises(ValueError, match=r"collection 'batch_stats', .* \['params'\]"):
        bn_jax.population_statistics(
            in_training(model), {"params": variables["params"]}, batches
        )


def test_a_layer_that_sows_nothing_keeps_its_statistics():
    class HalfFrozen(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = bn_jax.BatchNorm(use_running_average=True, name="frozen")(x)
            return bn_jax.BatchNorm(use_running_average=False, name="live")(x)

    x = normal(6, 2, mean=3)
    model = HalfFrozen()
    variables = model.init(jax.random.key(0), x)
    in_training = partial(model.apply, mutable=["batch_stats", "batch_moments"])
    statistics = bn_jax.population_statistics(in_training, variables, [x])
    chex.assert_trees_all_equal(
        statistics["frozen"], variables["batch_stats"]["frozen"]
    )
    # The frozen layer divides by the root of 1 + 1e-5.
    np.testing.assert_allclose(statistics["live"]["mean"], x.mean(0), rtol=1e-4)


UNEQUAL = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [9.0], [7.0], [7.0]])]


class OneLayer(nn.Module):
    debias: bool = False

    @nn.compact
    def __call__(self, x, mask=None, *, train):
        norm = bn_jax.BatchNorm(debias=self.debias, name="norm")
        return norm(x, use_running_average=not train, mask=mask)


def statistics_of(batches, *, masks=None, **settings):
    model = OneLayer()
    variables = init(model, batches[0])
    run = in_training(model)

    def apply(variables, batch):
        return run(variables, *batch)

    pairs = zip(batches, masks or [None] * len(batches), strict=True)
    return bn_jax.population_statistics(apply, variables, pairs, **settings)["norm"]


def test_batches_that_differ_in_size_are_refused_with_the_way_out():
    with pytest.raises(
        ValueError, match=r"one size.* norm has 2 values .* first batch and 4 in ano"
    ) as error:
        statistics_of(UNEQUAL)
    assert "pooled=True" in str(error.value)


def test_pooled_statistics_are_those_of_all_values():
    stats = statistics_of(UNEQUAL, pooled=True)
    np.testing.assert_allclose(stats["mean"], [16 / 3], rtol=1e-6)
    np.testing.assert_allclose(stats["var"], [65 / 9], rtol=1e-6)


def test_batches_of_one_size_may_be_pooled_too():
    batches = [UNEQUAL[0], UNEQUAL[1][:2]]
    stats = statistics_of(batches, pooled=True)
    np.testing.assert_allclose([stats["mean"][0], stats["var"][0]], [4.5, 8.75])
    stats = statistics_of(batches)
    np.testing.assert_allclose([stats["mean"][0], stats["var"][0]], [4.5, 5.0])


def test_one_set_of_values_gives_the_same_pooled_statistics_however_it_is_cut():
    x = normal(64, 3)
    whole = statistics_of([x], pooled=True)
    cut = statistics_of(jnp.split(x, [2, 32]), pooled=True)
    chex.assert_trees_all_close(cut, whole, rtol=1e-5)


@pytest.mark.parametrize("pooled", [True, False])
def test_counts_under_a_mask_may_vary(pooled):
    batches = normal(3, 8, 2)
    masks = [jnp.arange(8)[:, None] < kept for kept in (8, 3, 0)]
    stats = statistics_of(batches, masks=masks, pooled=pooled)
    kept = [np.asarray(batches[0]), np.asarray(batches[1][:3])]
    if pooled:
        _, mean, var = oracles.moments(np.concatenate(kept))
    else:
        mean, var = oracles.population_statistics(kept)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)


def test_sharded_batches_of_other_sizes_are_pooled(make_mesh):
    sharding = jax.NamedSharding(make_mesh(devices=4), jax.P("devices"))
    batches = [normal(8, 2), normal(16, 2, seed=1)]
    sharded = jax.device_put(batches, sharding)
    expected = statistics_of(batches, pooled=True)
    chex.assert_trees_all_close(
        statistics_of(sharded, pooled=True), expected, rtol=1e-5
    )
    with pytest.raises(ValueError, match=r"8 values per feature in .* batch and 16"):
        statistics_of(sharded)


@pytest.mark.parametrize("pooled", [True, False])
def test_a_count_is_the_number_of_batches(pooled):
    model, batches = OneLayer(debias=True), normal(3, 6, 2)
    variables = init(model, batches[0])
    stats = bn_jax.population_statistics(
        in_training(model), variables, batches, pooled=pooled
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(stats, variables["batch_stats"])
    assert stats["norm"]["count"] == 3

    # A loop carries them on, because their structure is that of the layer.
    def step(stats, x):
        variables_now = {**variables, "batch_stats": stats}
        _, updates = in_training(model)(variables_now, x)
        return updates["batch_stats"], None

    carried, _ = jax.lax.scan(step, stats, batches)
    assert carried["norm"]["count"] == 6


def stack_of_layers(*collections, **fields):
    """Three layers, which keep what they sow in these collections."""
    stack = nn.vmap(
        bn_jax.BatchNorm,
        variable_axes=dict.fromkeys(("params", *collections), 0),
        split_rngs={"params": True},
    )(use_running_average=False, **fields)
    batches = normal(4, 3, 6, 2)
    variables = jax.jit(stack.init)(KEY, batches[0])
    mutable = ["batch_stats", "batch_moments"]
    return jax.jit(partial(stack.apply, mutable=mutable)), variables, batches


def test_layers_of_a_stack_have_a_count_each():
    run, variables, batches = stack_of_layers(
        "batch_stats", "batch_moments", debias=True
    )
    stats = bn_jax.population_statistics(run, variables, batches)
    np.testing.assert_array_equal(stats["count"], [4, 4, 4])
    pooled = bn_jax.population_statistics(run, variables, batches, pooled=True)
    np.testing.assert_allclose(pooled["mean"], batches.mean((0, 2)), rtol=1e-5)


def test_a_stack_that_drops_its_moments_is_told_what_to_name():
    run, variables, batches = stack_of_layers("batch_stats")
    with pytest.raises(ValueError, match=r"nn\.vmap .* variable_axes names 'batch_mom"):
        bn_jax.population_statistics(run, variables, batches)


class TwoSizes(nn.Module):
    """One layer that sees whole batches and parts of them, named as its moments are."""

    def setup(self):
        self.moments = bn_jax.BatchNorm(use_running_average=False)

    def __call__(self, x):
        return self.moments(x), self.moments(x[:2])


def test_a_shared_layer_may_see_several_sizes_in_each_batch():
    model, batches = TwoSizes(), normal(3, 4, 2)
    variables = jax.jit(model.init)(KEY, batches[0])
    run = jax.jit(partial(model.apply, mutable=["batch_stats", "batch_moments"]))
    stats = bn_jax.population_statistics(run, variables, batches)["moments"]
    calls = [np.asarray(call) for x in batches for call in (x, x[:2])]
    mean, var = oracles.population_statistics(calls)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
    unequal = [batches[0], batches[1][:3]]
    with pytest.raises(ValueError, match=r"moments has 4, 2 values .* and 3, 2 in ano"):
        bn_jax.population_statistics(run, variables, unequal)
    pooled = bn_jax.population_statistics(run, variables, unequal, pooled=True)
    values = np.concatenate([call for x in unequal for call in (x, x[:2])])
    np.testing.assert_allclose(pooled["moments"]["mean"], values.mean(0), rtol=1e-5)
