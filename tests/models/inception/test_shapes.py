"""Shapes and dtypes of BN-Inception, without computing anything."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import pytest

from bn_jax.models import make_model, make_norm
from bn_jax.models.inception.sizes import network_sizes

pytestmark = pytest.mark.shapes

KEY = jax.random.key(0)
NORMS = [None, "batch_norm"]
SOWN = "intermediates"


@cache
def variables_of(channels, norm, dtype, **fields):
    """The model and shapes of its variables, which no size of the images changes."""
    model = make_model(
        "inception", num_classes=10, norm=make_norm(norm), dtype=dtype, **fields
    )
    images = jax.ShapeDtypeStruct((2, 64, 64, channels), jnp.float32)
    return model, jax.eval_shape(partial(model.init, train=False), KEY, images)


@cache
def shapes_of(
    shape, *, norm=None, train=True, dtype=None, image_dtype=jnp.float32, **fields
):
    """The model, and shapes of its variables, scores and what it sows; not changed."""
    model, variables = variables_of(shape[-1], norm, dtype, **fields)
    images = jax.ShapeDtypeStruct(shape, image_dtype)
    mutable = ["batch_stats", "batch_moments", SOWN]
    logits, updates = jax.eval_shape(
        partial(model.apply, train=train, mutable=mutable), variables, images
    )
    return model, variables, logits, updates


@pytest.mark.parametrize(
    ("stem", "size", "channels", "norm"),
    [
        ("imagenet", (224, 224), 3, "batch_norm"),
        ("imagenet", (23, 301), 3, None),
        ("imagenet", (299, 299), 1, None),
        ("small", (28, 28), 1, "batch_norm"),
        ("small", (33, 64), 3, None),
    ],
)
def test_every_convolution_sows_what_the_walk_expects(stem, size, channels, norm):
    shape = (7, *size, channels)
    model, _, logits, updates = shapes_of(shape, norm=norm, stem=stem)
    chex.assert_shape(logits, (7, 10))
    result = network_sizes(model.network, (*size, channels))
    assert len(updates[SOWN]) == len(result.convolutions) == 69
    for sized in result.convolutions:
        name, features = sized.convolution.name, sized.convolution.features
        (inputs,) = updates[SOWN][f"{name}_input"]
        chex.assert_shape(inputs, (7, *sized.size, features))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("batch", [1, 7])
def test_scores_are_one_row_an_image(batch, train):
    _, _, logits, _ = shapes_of((batch, 28, 28, 1), stem="small", train=train)
    chex.assert_shape(logits, (batch, 10))
    chex.assert_type(logits, jnp.float32)


def test_statistics_and_moments_are_one_value_a_channel():
    fields = {"norm": "batch_norm", "stem": "small"}
    model, variables, _, updates = shapes_of((7, 28, 28, 1), **fields)
    for sized in network_sizes(model.network, (28, 28, 1)).convolutions:
        layer = f"{sized.convolution.name}_norm"
        statistics = jax.tree.leaves(variables["batch_stats"][layer])
        (moments,) = updates["batch_moments"][layer]["moments"]
        chex.assert_shape([*statistics, *moments], (sized.convolution.features,))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.uint8])
def test_scores_are_float32_for_any_image(dtype):
    fields = {"stem": "small", "image_dtype": dtype}
    _, _, logits, _ = shapes_of((7, 28, 28, 1), **fields)
    chex.assert_type(logits, jnp.float32)


@pytest.mark.parametrize(
    ("dtype", "norm"),
    [("float32", None), ("bfloat16", "batch_norm"), ("float16", None)],
)
def test_convolutions_compute_in_the_dtype_and_nothing_else_is_in_it(dtype, norm):
    fields = {"stem": "small", "norm": norm, "dtype": dtype}
    _, variables, logits, updates = shapes_of((7, 28, 28, 1), **fields)
    others = {name: shapes for name, shapes in updates.items() if name != SOWN}
    chex.assert_type(jax.tree.leaves(updates[SOWN]), getattr(jnp, dtype))
    chex.assert_type([logits, *jax.tree.leaves((variables, others))], jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_gradients_have_the_shapes_of_the_parameters(dtype, stem, norm):
    fields = {"stem": stem, "norm": norm, "dtype": dtype, "width": 0.25}
    model, variables, _, _ = shapes_of((7, 64, 64, 3), **fields)

    def loss(params, variables, images):
        logits, _ = model.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(logits)

    images = jax.ShapeDtypeStruct((7, 64, 64, 3), jnp.float32)
    gradients = jax.eval_shape(jax.grad(loss), variables["params"], variables, images)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, variables["params"])
