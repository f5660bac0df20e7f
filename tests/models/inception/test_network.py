"""BN-Inception against Figure 5 written out, and what it refuses."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.inception.by_hand import ByHand, max_from_the_edge

import bn_jax
from bn_jax.models import make_model, make_norm
from bn_jax.models.inception.network import Inception
from bn_jax.models.inception.table import FIGURE_5

KEY = jax.random.key(0)
NORM = make_norm("batch_norm", momentum=0.9)
# A small network: few channels, no stem to speak of.
SMALL = partial(Inception, num_classes=3, stem="small", width=1 / 32)


def images_of(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32)


def variables_for(model, images, seed=0):
    """Weights of He's spread, and other variables of which no two are alike."""
    rng = np.random.default_rng(seed)

    def values(path, leaf):
        if path[-1].key == "kernel":
            spread = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return jnp.asarray(rng.normal(0, spread, leaf.shape), leaf.dtype)
        start = {"scale": 0.8, "var": 0.5}.get(path[-1].key, -0.2)
        return jnp.asarray(rng.uniform(start, start + 0.4, leaf.shape), leaf.dtype)

    shapes = jax.eval_shape(partial(model.init, train=False), KEY, images)
    return jax.tree_util.tree_map_with_path(values, shapes)


def apply(model, variables, images, *, train, **more):
    collections = ["batch_stats", "intermediates"]
    run = jax.jit(partial(model.apply, train=train, mutable=collections, **more))
    logits, updates = run(variables, images)
    return logits, updates


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("norm", [None, NORM])
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_the_network_is_figure_5_written_out(stem, norm, train):
    size = 8 if stem == "small" else 64
    model = SMALL(norm=norm, stem=stem)
    images = images_of(3, size, size, 2)
    variables = variables_for(model, images)
    logits, updates = apply(model, variables, images, train=train)
    net = ByHand(variables, train=train)
    h = net.convolve("conv1_depthwise", np.float64(images), 2 - (size == 8), True)
    h = net("conv1", h)
    h = h if stem == "small" else max_from_the_edge(h)
    h = net("conv2", net("conv2_reduce", h))
    h = h if stem == "small" else max_from_the_edge(h)
    for row in FIGURE_5:
        h = net.module(row.name, h, stride=row.stride, pool=row.pool)
    scores = net.params["logits"]
    expected = h.mean((1, 2)) @ scores["kernel"] + scores["bias"]
    # Some twenty layers in float32.
    np.testing.assert_allclose(logits, expected, rtol=2e-3, atol=2e-3)
    assert len(net.inputs) == 69
    for name, inputs in net.inputs.items():
        (sown,) = updates["intermediates"][f"{name}_input"]
        scale = np.abs(inputs).max()
        np.testing.assert_allclose(sown / scale, inputs / scale, atol=1e-3)


@pytest.mark.slow
def test_a_step_of_training_lowers_the_loss_and_moves_the_statistics():
    model = SMALL(norm=NORM)
    images, labels = images_of(6, 12, 12, 1), jnp.arange(6) % 3
    variables = variables_for(model, images)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        logits, updates = model.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(6), labels]), updates

    (before, updates), gradients = loss(variables["params"])
    norms = [float(jnp.linalg.norm(g.ravel())) for g in jax.tree.leaves(gradients)]
    assert np.isfinite(norms).all()
    assert min(norms) > 0
    step = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradients)
    (after, _), _ = loss(step)
    assert after < before
    moved = jax.tree.map(
        lambda old, new: bool(np.all(old != new)),
        variables["batch_stats"],
        dict(updates)["batch_stats"],
    )
    assert all(jax.tree.leaves(moved))


def test_odd_sizes_are_rounded_up_alike_in_all_branches():
    model = SMALL()
    for size in (9, 10, 11):
        images = images_of(2, size, size, 1)
        logits, _ = jax.eval_shape(
            partial(model.init_with_output, train=False), KEY, images
        )
        chex.assert_shape(logits, (2, 3))


@pytest.mark.slow
def test_dropout_drops_averages_in_training_alone():
    images = images_of(4, 8, 8, 1)
    model = SMALL(dropout_rate=0.5, nonlinearity=jax.nn.sigmoid)
    variables = variables_for(model, images)
    plain = SMALL(nonlinearity=jax.nn.sigmoid).apply(variables, images, train=False)
    np.testing.assert_array_equal(model.apply(variables, images, train=False), plain)
    first, second = (
        model.apply(variables, images, train=True, rngs={"dropout": key})
        for key in jax.random.split(KEY)
    )
    assert np.all(first != second)
    assert np.all(first != plain)


def test_no_dropout_needs_no_key():
    images = images_of(2, 8, 8, 1)
    model = SMALL()
    variables = jax.eval_shape(partial(model.init, train=False), KEY, images)
    jax.eval_shape(partial(model.apply, train=True), variables, images)


@pytest.mark.slow
def test_per_activation_modules_have_statistics_of_every_position():
    model = SMALL(norm=NORM, per_activation_modules=("5b",))
    images = images_of(5, 8, 8, 1)
    variables = variables_for(model, images)
    for name, layer in variables["batch_stats"].items():
        rank = 3 if name.startswith("5b_") else 1
        chex.assert_rank(jax.tree.leaves(layer), rank)
    _, updates = apply(model, variables, images, train=True)
    (h,) = updates["intermediates"]["5b_1x1_input"]
    bias = variables["params"]["5b_1x1_norm"]["bias"]
    np.testing.assert_allclose(np.mean(h, axis=0), bias, atol=1e-5)


@pytest.mark.slow
def test_initial_weights_have_the_spread_of_he_times_the_gain():
    model = Inception(num_classes=3, width=0.125, kernel_gain=3.0)
    images = images_of(1, 23, 23, 3)
    # A generator that compiles in a moment.
    key = jax.random.key(0, impl="rbg")
    params = jax.jit(partial(model.init, train=False))(key, images)["params"]
    logits = params.pop("logits")
    assert np.std(logits["kernel"]) < 0.2
    for name, layer in params.items():
        fan_in = np.prod(layer["kernel"].shape[:-1])
        gain = 1 if name == "conv1_depthwise" else 2
        expected = 3 * np.sqrt(gain / fan_in)
        # The smallest kernels have 64 weights.
        np.testing.assert_allclose(np.std(layer["kernel"]), expected, rtol=0.3)
        assert not np.any(layer.get("bias", 0))


@pytest.mark.slow
def test_bfloat16_is_near_float32():
    images = images_of(4, 8, 8, 1)
    model = SMALL(norm=NORM)
    variables = variables_for(model, images)
    expected, _ = apply(model, variables, images, train=False)
    half, _ = apply(model.clone(dtype=jnp.bfloat16), variables, images, train=False)
    # bfloat16 keeps 8 bits, through some twenty layers.
    np.testing.assert_allclose(half, expected, rtol=0.1)
    assert np.any(half != expected)


def test_population_statistics_are_those_of_its_layers():
    model = SMALL(norm=NORM)
    images = images_of(4, 8, 8, 1)
    variables = jax.eval_shape(partial(model.init, train=False), KEY, images)
    mutable = ["batch_stats", "batch_moments"]
    apply = partial(model.apply, train=True, mutable=mutable)
    population_statistics = partial(bn_jax.population_statistics, apply)
    stats = jax.eval_shape(population_statistics, variables, [images])
    chex.assert_trees_all_equal_shapes(stats, variables["batch_stats"])


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"variant": "paper"}, (2, 8, 8, 1), "variant must be .* slim, but is 'paper'"),
        ({"stem": "tiny"}, (2, 8, 8, 1), "stem must be one of imagenet, small, .*tiny"),
        ({"width": 0.0}, (2, 8, 8, 1), "width must be a .* but is 0.0; 1.0 is the"),
        (
            {"dropout_rate": 1.0},
            (2, 8, 8, 1),
            r"dropout_rate must be .* but is 1\.0; 0",
        ),
        ({"kernel_gain": 0.0}, (2, 8, 8, 1), "kernel_gain must be .* is 0.0; 1.0 is"),
        (
            {},
            (2, 2, 28, 1),
            r"'small' .* at least 3 x 3 pixels, but the images have 2 x 28\.",
        ),
        (
            {"stem": "imagenet"},
            (2, 28, 22, 3),
            "at least 23 x 23 pixels, but .* have 28 x 22; stem='small' accepts 3 x 3",
        ),
        ({}, (2, 28, 28), r"must have the axes .* the shape \(2, 28, 28\)"),
        (
            {"per_activation_modules": ("5b", "5c")},
            (2, 8, 8, 1),
            "must be from 3a, .* 5b, but has '5c'",
        ),
        (
            {"per_activation_modules": "5b"},
            (2, 8, 8, 1),
            r"a sequence of module names, but is the string '5b'; write \('5b',\)",
        ),
        (
            {"per_activation_modules": ("5b",), "norm": None},
            (2, 8, 8, 1),
            r"=\('5b',\) needs a normalization, but norm is None; set norm or leave",
        ),
        (
            {"stem": "imagenet"},
            (2, 3, 224, 224),
            r"channels must come last, but .* \(2, 3, 224, 224\) seem to have",
        ),
        ({}, (2, 1, 28, 28), "channels must come last"),
    ],
)
def test_what_the_network_cannot_take_is_refused(fields, shape, message):
    model = SMALL(**fields)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(model.init, train=False), KEY, images)


def test_the_last_hidden_input_is_sown():
    model = make_model("inception", num_classes=2, stem="small", width=1 / 32)
    mutable = ["params", "intermediates"]
    _, sown = jax.eval_shape(
        partial(model.init_with_output, train=True, mutable=mutable),
        KEY,
        images_of(2, 8, 8, 1),
    )
    (hidden,) = sown["intermediates"][model.last_hidden_input]
    chex.assert_shape(hidden, (2, 2, 2, 7))
