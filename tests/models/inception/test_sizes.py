"""Counts of BN-Inception's layers, channels, parameters and multiply-adds."""

import math
from functools import cache, partial

import jax
import jax.extend.core
import jax.numpy as jnp
import pytest

from bn_jax.models import make_model, make_norm
from bn_jax.models.inception.network import multiply_adds
from bn_jax.models.inception.sizes import (
    network_sizes,
    output_size,
    padding,
    smallest_size,
)
from bn_jax.models.inception.table import FIGURE_5, Convolution, Pool, stages

KEY = jax.random.key(0)
IMAGE = (224, 224, 3)


@cache
def inception(*, norm="batch_norm", **fields):
    return make_model("inception", num_classes=1000, norm=make_norm(norm), **fields)


@cache
def variables_of(model, image_shape=IMAGE):
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    return jax.eval_shape(partial(model.init, train=False), KEY, images)


def num_values(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("fields", "num_params"),
    [
        ({}, 11_278_528),
        ({"separable": False}, 11_285_224),
        # The network that PyTorch's users exchange.
        ({"separable": False, "use_bias": True}, 11_295_240),
        ({"variant": "slim"}, 11_188_288),
        # A bias instead of scale and bias, for each of 10,016 channels.
        ({"norm": None}, 11_278_528 - 10_016),
        # Scale and bias at each of the 7 x 7 positions of 1,632 channels.
        ({"per_activation_modules": ("5b",)}, 11_278_528 + 2 * 1632 * (7 * 7 - 1)),
    ],
)
def test_the_network_has_its_number_of_parameters(fields, num_params):
    assert num_values(variables_of(inception(**fields))["params"]) == num_params


def test_the_slim_weights_of_convolutions_are_as_many_as_published():
    params = variables_of(inception(variant="slim"))["params"]
    kernels = [
        layer["kernel"]
        for name, layer in params.items()
        if "kernel" in layer and name != "logits"
    ]
    assert num_values(kernels) == 10_143_384


@pytest.mark.parametrize(
    ("variant", "channels"), [("paper_rows", 10_016), ("slim", 9952)]
)
def test_each_channel_has_a_mean_and_a_variance(variant, channels):
    statistics = variables_of(inception(variant=variant))["batch_stats"]
    assert len(statistics) == 69
    assert num_values(statistics) == 2 * channels


@pytest.mark.parametrize(
    ("variant", "channels"),
    [
        ("paper_rows", [192, 256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024]),
        ("slim", [192, 256, 320, 576, 576, 576, 576, 576, 1024, 1024, 1024]),
    ],
)
@pytest.mark.parametrize(
    ("stem", "image"), [("imagenet", IMAGE), ("small", (28, 28, 1))]
)
def test_modules_give_the_channels_and_sizes_of_the_paper(
    stem, image, variant, channels
):
    result = network_sizes(stages(variant=variant, stem=stem), image)
    assert list(result.channels.values()) == channels
    sizes = [28] * 3 + [14] * 5 + [7] * 3
    assert list(result.sizes.values()) == [(size, size) for size in sizes]
    assert list(result.channels) == ["stem", *(row.name for row in FIGURE_5)]


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("separable", [True, False])
def test_the_walk_knows_every_kernel_of_the_model(separable, stem):
    model = inception(separable=separable, stem=stem, width=0.5)
    params = variables_of(model, (64, 48, 3))["params"]
    kernels = {
        name: layer["kernel"].shape
        for name, layer in params.items()
        if "kernel" in layer and name != "logits"
    }
    expected = {}
    for sized in network_sizes(model.network, (64, 48, 3)).convolutions:
        name = sized.convolution.name
        names = [f"{name}_depthwise", name][-len(sized.kernel_shapes) :]
        expected |= dict(zip(names, sized.kernel_shapes, strict=True))
    assert kernels == expected


def multiply_adds_of_jaxpr(model, image_shape):
    """Counts the multiply-adds of the traced program's convolutions and products."""
    variables = variables_of(model, image_shape)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    program = jax.make_jaxpr(partial(model.apply, train=False))(variables, images)
    total, programs = 0, [program.jaxpr]
    while programs:
        for equation in programs.pop().eqns:
            programs.extend(jax.extend.core.jaxprs_in_params(equation.params))
            outputs = math.prod(equation.outvars[0].aval.shape)
            if equation.primitive.name == "conv_general_dilated":
                total += outputs * math.prod(equation.invars[1].aval.shape[:3])
            if equation.primitive.name == "dot_general":
                total += outputs * equation.invars[1].aval.shape[0]
    return total


@pytest.mark.parametrize(
    ("fields", "image_shape"),
    [
        ({}, IMAGE),
        ({"separable": False}, IMAGE),
        ({"variant": "slim", "width": 0.3}, (65, 90, 3)),
        ({"stem": "small", "width": 0.125}, (28, 28, 1)),
    ],
)
def test_multiply_adds_are_those_of_the_traced_program(fields, image_shape):
    model = inception(**fields)
    expected = multiply_adds_of_jaxpr(model, image_shape)
    assert multiply_adds(model, image_shape) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 1_948_605_440),
        ({"separable": False}, 2_032_600_064),
        ({"variant": "slim"}, 1_934_857_216),
    ],
)
def test_the_network_has_its_number_of_multiply_adds(fields, expected):
    assert multiply_adds(inception(**fields), IMAGE) == expected


@pytest.mark.parametrize("image_shape", [(10, 10, 3), (224, 224), (224, 224, 0)])
def test_images_that_the_network_refuses_have_no_multiply_adds(image_shape):
    with pytest.raises(ValueError, match="Inception: "):
        multiply_adds(inception(), image_shape)


def test_multiply_adds_are_nearly_the_published_ones():
    # 2,048.06 million are published for the dense stem with biases; they count
    # more than convolutions, by a rule that is not.
    dense = multiply_adds(inception(separable=False), IMAGE)
    assert 0.99 < dense / 2_048.06e6 < 1


@pytest.mark.parametrize("layer", [Pool("max", 1), Pool("avg", 1), Pool("max", 2)])
def test_a_pooling_gives_what_a_convolution_beside_it_gives(layer):
    convolution = Convolution("3a", 1, 3, layer.stride)
    for size in range(2, 12):
        assert output_size(layer, size) == output_size(convolution, size)


@pytest.mark.parametrize(
    ("layer", "size", "expected"),
    [
        (Convolution("conv", 1, 7, 2), 224, (3, 3)),
        (Convolution("conv", 1, 3, 2), 28, (1, 1)),
        (Convolution("conv", 1, 1), 28, (0, 0)),
        (Pool("avg", 1), 28, (1, 1)),
        # PyTorch's ceil_mode without padding.
        (Pool("max", 2), 28, (0, 1)),
        (Pool("max", 2, rounds_up=False), 28, (0, 1)),
        (Pool("max", 2, rounds_up=False), 29, (0, 0)),
        (Pool("max", 2), 29, (1, 1)),
    ],
)
def test_padding_is_that_of_the_peers(layer, size, expected):
    assert padding(layer, size) == expected


@pytest.mark.parametrize(("stem", "size"), [("imagenet", 23), ("small", 3)])
def test_the_smallest_image_leaves_each_module_two_pixels_to_halve(stem, size):
    network = stages(stem=stem)
    assert smallest_size(network) == size
    assert network_sizes(network, (size, size, 3)).sizes["4d"] == (2, 2)


@pytest.mark.parametrize(("width", "first"), [(0.125, 8), (0.01, 1), (2.0, 128)])
def test_the_width_multiplies_all_channels(width, first):
    result = network_sizes(stages(width=width), IMAGE)
    assert result.convolutions[0].convolution.features == first
    for sized, of_paper in zip(
        result.convolutions, network_sizes(stages(), IMAGE).convolutions, strict=True
    ):
        features = of_paper.convolution.features * width
        assert sized.convolution.features == max(1, round(features))
