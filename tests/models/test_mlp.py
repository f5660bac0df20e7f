from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import bn_jax
from bn_jax.models.mlp import MLP

KEY = jax.random.key(0)
NORM = partial(bn_jax.BatchNorm, momentum=0.9)


def images_of(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32)


def init(model, images, *, train):
    return jax.jit(model.init, static_argnames="train")(KEY, images, train=train)


def num_values(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("norm", "num_params"),
    [
        (None, 784 * 100 + 100 + 2 * (100 * 100 + 100) + 100 * 10 + 10),
        # Two parameters an activation, and no bias in front of them.
        (NORM, 784 * 100 + 2 * 100 * 100 + 3 * 2 * 100 + 100 * 10 + 10),
    ],
)
def test_the_paper_network_has_its_number_of_parameters(norm, num_params):
    model = MLP(num_classes=10, norm=norm)
    images = jax.ShapeDtypeStruct((60, 28, 28, 1), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=True), KEY, images)
    assert num_values(variables["params"]) == num_params
    assert num_values(variables.get("batch_stats", {})) == (600 if norm else 0)


@pytest.mark.parametrize("norm", [None, NORM])
def test_only_layers_without_a_norm_have_a_bias(norm):
    model = MLP(num_classes=10, hidden_features=(4, 3), norm=norm)
    images = jax.ShapeDtypeStruct((2, 5), jnp.float32)
    params = jax.eval_shape(partial(model.init, train=True), KEY, images)["params"]
    for layer in ("hidden0", "hidden1"):
        assert ("bias" in params[layer]) == (norm is None)
    assert "bias" in params["logits"]
    assert {name for name in params if name.startswith("norm")} == (
        {"norm0", "norm1"} if norm else set()
    )


def by_hand(variables, images, *, train):
    """The inputs of the nonlinearities and the scores, in float64."""
    params = jax.tree.map(np.float64, variables["params"])
    stats = variables.get("batch_stats", {})
    h, inputs = np.float64(images).reshape(len(images), -1), []
    for i in range(2):
        h = h @ params[f"hidden{i}"]["kernel"] + params[f"hidden{i}"].get("bias", 0)
        if f"norm{i}" in params:
            scale, bias = (params[f"norm{i}"][name] for name in ("scale", "bias"))
            if train:
                h = oracles.batch_norm(h, scale, bias)
            else:
                mean, var = (stats[f"norm{i}"][name] for name in ("mean", "var"))
                h = oracles.inference(h, scale, bias, mean, var)
        inputs.append(h)
        h = np.tanh(h)
    return inputs, h @ params["logits"]["kernel"] + params["logits"]["bias"]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("norm", [None, NORM])
def test_the_network_is_the_papers_written_out(norm, train):
    model = MLP(num_classes=3, hidden_features=(7, 5), nonlinearity=jnp.tanh, norm=norm)
    images = images_of(8, 4, 3, 1)
    variables = init(model, images, train=True)
    variables = jax.tree.map(lambda v: v + 0.3, variables)
    mutable = ["batch_stats", "intermediates"]
    apply = jax.jit(partial(model.apply, train=train, mutable=mutable))
    logits, updates = apply(variables, images)
    inputs, expected = by_hand(variables, images, train=train)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    for i, hidden in enumerate(inputs):
        (sown,) = updates["intermediates"][f"hidden{i}_input"]
        np.testing.assert_allclose(sown, hidden, rtol=1e-5, atol=1e-5)


def test_training_moves_the_statistics_of_every_layer_and_inference_none():
    model = MLP(num_classes=3, hidden_features=(7, 5), norm=NORM)
    images = images_of(8, 12)
    variables = init(model, images, train=True)
    for train in (True, False):
        _, updates = model.apply(
            variables, images, train=train, mutable=["batch_stats"]
        )
        before = jax.tree.leaves(variables["batch_stats"])
        after = jax.tree.leaves(updates["batch_stats"])
        moved = [bool(np.any(a != b)) for a, b in zip(before, after, strict=True)]
        assert moved == [train] * 4


def test_inputs_are_only_sown_where_they_are_asked_for():
    model = MLP(num_classes=3, hidden_features=(7,))
    variables = init(model, images_of(2, 4), train=True)
    logits = model.apply(variables, images_of(2, 4), train=True)
    chex.assert_shape(logits, (2, 3))


def test_weights_are_normal_with_the_given_deviation():
    model = MLP(num_classes=2, hidden_features=(100,), kernel_stddev=0.02)
    params = init(model, images_of(1, 784), train=True)["params"]
    kernel = np.asarray(params["hidden0"]["kernel"])
    # Five standard errors of 78,400 values.
    np.testing.assert_allclose(kernel.mean(), 0, atol=5 * 0.02 / 280)
    np.testing.assert_allclose(kernel.std(), 0.02, rtol=5 / 280 / np.sqrt(2))


def test_the_norm_is_made_from_its_factory_for_each_layer():
    made = []

    def factory(**keywords):
        made.append(keywords)
        return nn.LayerNorm(name=keywords["name"])

    model = MLP(num_classes=3, hidden_features=(7, 5), norm=factory)
    init(model, images_of(2, 4), train=False)
    assert made == [
        {"use_running_average": True, "name": "norm0"},
        {"use_running_average": True, "name": "norm1"},
    ]


@pytest.mark.parametrize("hidden_features", [(7,), (7, 5), (7, 5, 4, 3)])
def test_the_last_hidden_input_is_named(hidden_features):
    model = MLP(num_classes=2, hidden_features=hidden_features)
    assert model.last_hidden_input == f"hidden{len(hidden_features) - 1}_input"
    _, sown = jax.eval_shape(
        partial(
            model.init_with_output, train=True, mutable=["params", "intermediates"]
        ),
        KEY,
        images_of(2, 4),
    )
    (hidden,) = sown["intermediates"][model.last_hidden_input]
    chex.assert_shape(hidden, (2, hidden_features[-1]))


@pytest.mark.parametrize("norm", [None, NORM])
def test_float32_by_name_is_float32_by_default_to_the_last_bit(norm):
    model = MLP(num_classes=3, hidden_features=(7, 5), norm=norm)
    named = model.clone(dtype=jnp.float32)
    images = images_of(8, 12)
    variables = init(model, images, train=True)
    chex.assert_trees_all_equal(init(named, images, train=True), variables)
    for train in (True, False):
        outputs = [
            jax.jit(partial(m.apply, train=train, mutable=["batch_stats"]))(
                variables, images
            )
            for m in (model, named)
        ]
        chex.assert_trees_all_equal(*outputs)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_near_float32(dtype):
    model = MLP(num_classes=3, hidden_features=(7, 5), norm=NORM)
    images = images_of(8, 12)
    variables = init(model, images, train=True)
    expected = model.apply(variables, images, train=False)
    half = model.clone(dtype=dtype).apply(variables, images, train=False)
    # bfloat16 keeps 8 bits.
    np.testing.assert_allclose(half, expected, rtol=0.03, atol=0.03)
    assert np.any(half != expected)
