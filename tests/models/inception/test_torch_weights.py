"""Weights of PyTorch's BN-Inceptions, without PyTorch."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import bn_jax
from bn_jax.models import make_model, make_norm
from bn_jax.models.inception.torch_names import NAMINGS
from bn_jax.models.inception.torch_weights import (
    from_torch_state_dict,
    to_torch_state_dict,
)

KEY = jax.random.key(0)
NORM = make_norm("batch_norm", momentum=0.9, variance_correction=1)


def network(*, norm=NORM, width=1 / 32, **fields):
    fields = {"separable": False} | fields
    return make_model("inception", num_classes=5, norm=norm, width=width, **fields)


@cache
def variables_for(model, *, channels=3, seed=0):
    """Variables of random values; not to be changed."""
    rng = np.random.default_rng(seed)
    images = jax.ShapeDtypeStruct((2, 32, 32, channels), jnp.float32)
    shapes = jax.eval_shape(partial(model.init, train=False), KEY, images)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.1, 1, leaf.shape), leaf.dtype), shapes
    )


def state_dict_for(naming="pytorchcv", seed=0, **fields):
    """Returns a state dict as from PyTorch, with biases and numbers of batches."""
    model = network(use_bias=True, **fields)
    variables = variables_for(model, seed=seed)
    return to_torch_state_dict(variables, model, naming=naming)


@pytest.mark.parametrize(
    ("channels", "fields"),
    [
        (3, {}),
        (1, {"use_bias": True}),
        (3, {"norm": None}),
        (1, {"norm": None, "use_bias": False}),
    ],
)
@pytest.mark.parametrize("naming", NAMINGS)
def test_what_is_written_is_read_again_bit_for_bit(naming, channels, fields):
    model = network(**fields)
    variables = variables_for(model, channels=channels)
    state_dict = to_torch_state_dict(variables, model, naming=naming)
    chex.assert_trees_all_equal(from_torch_state_dict(state_dict, model), variables)


@pytest.mark.parametrize("naming", NAMINGS)
def test_what_is_read_is_written_again_bit_for_bit(naming):
    state_dict = state_dict_for(naming)
    for index, key in enumerate(state_dict):
        if key.endswith("num_batches_tracked"):
            state_dict[key] = np.int64(index)
    model = network(use_bias=True)
    variables = from_torch_state_dict(state_dict, model, with_count=True)
    again = to_torch_state_dict(variables, model, naming=naming)
    assert list(again) == list(state_dict)
    for key, value in state_dict.items():
        np.testing.assert_array_equal(again[key], value)
        assert again[key].dtype == value.dtype
        assert again[key].flags.c_contiguous
        assert again[key].flags.writeable


@pytest.mark.parametrize(
    ("naming", "keys"),
    [
        (
            "pytorchcv",
            {
                "features.init_block.conv1.conv": ("conv1", (2, 3, 7, 7)),
                "features.init_block.conv2.conv1.conv": ("conv2_reduce", (2, 2, 1, 1)),
                "features.init_block.conv2.conv2.conv": ("conv2", (6, 2, 3, 3)),
                "features.stage1.unit1.branches.branch1.conv": (
                    "3a_1x1",
                    (2, 6, 1, 1),
                ),
                "features.stage2.unit1.branches.branch1.conv2.conv": (
                    "3c_3x3",
                    (5, 4, 3, 3),
                ),
                "features.stage3.unit3.branches.branch3.conv3.conv": (
                    "5b_double_3x3_2",
                    (7, 7, 3, 3),
                ),
                "features.stage3.unit3.branches.branch4.conv.conv": (
                    "5b_pool_projection",
                    (4, 32, 1, 1),
                ),
                "output": ("logits", (5, 32)),
            },
        ),
        (
            "cadene",
            {
                "conv1_7x7_s2": ("conv1", (2, 3, 7, 7)),
                "conv2_3x3_reduce": ("conv2_reduce", (2, 2, 1, 1)),
                "conv2_3x3": ("conv2", (6, 2, 3, 3)),
                "inception_3a_1x1": ("3a_1x1", (2, 6, 1, 1)),
                "inception_3c_3x3": ("3c_3x3", (5, 4, 3, 3)),
                "inception_5b_double_3x3_2": ("5b_double_3x3_2", (7, 7, 3, 3)),
                "inception_5b_pool_proj": ("5b_pool_projection", (4, 32, 1, 1)),
                "last_linear": ("logits", (5, 32)),
            },
        ),
    ],
)
def test_weights_have_their_names_and_pytorchs_order_of_axes(naming, keys):
    model = network()
    variables = variables_for(model)
    state_dict = to_torch_state_dict(variables, model, naming=naming)
    assert len(state_dict) == 69 * 7 + 2
    for key, (name, shape) in keys.items():
        weight = state_dict[f"{key}.weight"]
        chex.assert_shape(weight, shape)
        kernel = np.asarray(variables["params"][name]["kernel"])
        for first, second in ((0, 1), (1, 0), (-1, -2)):
            theirs = weight[first, second]
            np.testing.assert_array_equal(theirs, kernel[..., second, first])


def test_the_first_layer_is_what_pytorch_computes_written_out():
    state_dict = state_dict_for("cadene")
    model = network()
    variables = from_torch_state_dict(state_dict, model)
    images = np.random.default_rng(1).normal(size=(2, 3, 24, 26))
    apply = partial(model.apply, train=False, mutable=["intermediates"])
    # XLA removes the rest of the network, because its results are not used.
    first = jax.jit(lambda *args: apply(*args)[1]["intermediates"]["conv1_input"][0])
    inputs = first(variables, jnp.asarray(images.transpose(0, 2, 3, 1), jnp.float32))
    padded = np.pad(images, ((0, 0), (0, 0), (3, 3), (3, 3)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), (2, 3))
    weight = np.float64(state_dict["conv1_7x7_s2.weight"])
    h = np.einsum("bchwij,ocij->bhwo", windows[:, :, ::2, ::2], weight)
    h = h + state_dict["conv1_7x7_s2.bias"]
    names = ("weight", "bias", "running_mean", "running_var")
    h = oracles.inference(h, *(state_dict[f"conv1_7x7_s2_bn.{n}"] for n in names))
    np.testing.assert_allclose(inputs, h, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_bias_is_folded_without_any_change():
    state_dict = state_dict_for()
    results = []
    images = jnp.asarray(np.random.default_rng(1).random((4, 32, 32, 3)), jnp.float32)
    for use_bias in (True, False):
        model = network(use_bias=use_bias)
        variables = from_torch_state_dict(state_dict, model)
        apply = partial(model.apply, variables, images)
        logits = jax.jit(partial(apply, train=False))()
        updates = jax.jit(partial(apply, train=True, mutable=["batch_stats"]))()
        results.append((variables["params"], logits, *updates))
    (params, *kept), (_, *folded) = results
    # Training normalizes by the variances of few values.
    for ours, theirs in zip(folded[:2], kept[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    for name, stats in folded[2]["batch_stats"].items():
        bias = params[name.removesuffix("_norm")]["bias"]
        theirs = kept[2]["batch_stats"][name]
        np.testing.assert_allclose(stats["mean"] + bias, theirs["mean"], rtol=1e-3)
        np.testing.assert_allclose(stats["var"], theirs["var"], rtol=1e-3)


def test_numbers_of_batches_may_be_missing():
    state_dict = {
        key: value
        for key, value in state_dict_for().items()
        if not key.endswith("num_batches_tracked")
    }
    model = network()
    assert "count" not in from_torch_state_dict(state_dict, model)["batch_stats"]
    stats = from_torch_state_dict(state_dict, model, with_count=True)["batch_stats"]
    assert {float(layer["count"]) for layer in stats.values()} == {0.0}


def without(key):
    state_dict = state_dict_for()
    del state_dict[key]
    return state_dict


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: without("features.stage1.unit1.branches.branch1.bn.bias"),
            "1 of .* 'features.stage1.unit1.branches.branch1.bn.bias' is missing",
        ),
        (
            lambda: state_dict_for() | {"extra": 1.0, "other": np.ones(3)},
            "2 of .* 'extra' is unknown; 'other' is unknown",
        ),
        (
            lambda: state_dict_for("cadene") | {"last_linear.bias": np.zeros(7)},
            r"'last_linear.bias' has the shape \(7,\) and not \(5,\)",
        ),
        (
            lambda: state_dict_for("cadene") | {"conv2_3x3.weight": np.zeros(7)},
            r"'conv2_3x3.weight' has the shape \(7,\) and not \(6, 2, 3, 3\)",
        ),
        (
            lambda: {"module.conv1_7x7_s2.weight": np.zeros(1)},
            "must have the key .* 1 keys start with 'module.conv1_7x7.*; .* prefix",
        ),
        (dict, "state_dict is empty"),
        (
            lambda: state_dict_for(width=1 / 16),
            r"has the shape \(4, 3, 7, 7\) and not \(2, 3,",
        ),
    ],
)
def test_a_state_dict_of_another_network_is_refused(make, message):
    state_dict = make()
    with pytest.raises(ValueError, match=message):
        from_torch_state_dict(state_dict, network())


def test_a_bias_that_no_mean_can_take_is_refused():
    state_dict = state_dict_for("cadene", norm=None)
    with pytest.raises(ValueError, match=r"'conv1_7x7_s2\.bias' is unknown"):
        from_torch_state_dict(state_dict, network(norm=None, use_bias=False))


def test_variables_of_another_network_are_refused():
    variables = variables_for(network())
    with pytest.raises(ValueError, match=r"has the shape \(32, 5\) and not \(64, 5\)"):
        to_torch_state_dict(variables, network(width=1 / 16))
    with pytest.raises(ValueError, match="'params/3a_1x1/bias' is missing"):
        to_torch_state_dict(variables, network(use_bias=True))
    with pytest.raises(ValueError, match="'batch_stats/3a_1x1_norm/var' is unknown"):
        to_torch_state_dict(variables, network(norm=None))


@pytest.mark.parametrize(
    "fields",
    [{"separable": True}, {"stem": "small"}, {"per_activation_modules": ("5b",)}],
)
def test_a_model_that_pytorch_has_not_is_refused(fields):
    model = network(**fields)
    with pytest.raises(ValueError, match=r"from_torch.*: .* must have separable=False"):
        from_torch_state_dict(state_dict_for(), model)
    with pytest.raises(ValueError, match=r"to_torch.*: .* must have separable=False"):
        to_torch_state_dict({}, model)


def test_a_model_of_another_kind_is_refused():
    model = make_model("cnn", num_classes=5, norm=None)
    with pytest.raises(ValueError, match="must be an Inception, but is a C"):
        from_torch_state_dict(state_dict_for(), model)
    with pytest.raises(ValueError, match="must be an Inception, but is a C"):
        to_torch_state_dict({}, model)


@pytest.mark.parametrize("field", ["use_scale", "use_bias"])
def test_a_normalization_without_scale_or_bias_is_refused(field):
    norm = make_norm("batch_norm", **{field: False})
    model = make_model("inception", num_classes=5, norm=norm, separable=False)
    with pytest.raises(ValueError, match=f"the model's norm has {field}=False"):
        to_torch_state_dict({}, model)


def test_a_norm_may_be_any_function_that_makes_a_layer():
    def norm(use_running_average, name):
        return bn_jax.BatchNorm(use_running_average=use_running_average, name=name)

    variables = variables_for(network(norm=norm))
    written = to_torch_state_dict(variables, network(norm=norm))
    assert written.keys() == to_torch_state_dict(variables, network()).keys()


def test_an_unknown_naming_is_refused():
    with pytest.raises(ValueError, match="one of pytorchcv, cadene, but is 'timm'"):
        to_torch_state_dict({}, network(), naming="timm")
