"""Shapes and dtypes of the models, without computing anything."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import pytest

from bn_jax.models import make_model, make_norm

pytestmark = pytest.mark.shapes

KEY = jax.random.key(0)
NORMS = [None, "batch_norm"]


@cache
def shapes_of(
    image_shape,
    *,
    name="mlp",
    norm=None,
    train=True,
    image_dtype=jnp.float32,
    **fields,
):
    """Shapes of the variables, the scores and what the model sows; not changed."""
    model = make_model(name, num_classes=10, norm=make_norm(norm), **fields)
    images = jax.ShapeDtypeStruct(image_shape, image_dtype)
    variables = jax.eval_shape(partial(model.init, train=train), KEY, images)
    mutable = ["batch_stats", "batch_moments", "intermediates"]
    logits, updates = jax.eval_shape(
        partial(model.apply, train=train, mutable=mutable), variables, images
    )
    return variables, logits, updates


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_scores_are_one_row_an_image(name, batch, norm, train):
    # A batch of one has no variance to normalize by.
    train = train and (batch > 1 or norm is None)
    _, logits, _ = shapes_of((batch, 28, 28, 1), name=name, norm=norm, train=train)
    chex.assert_shape(logits, (batch, 10))
    chex.assert_type(logits, jnp.float32)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("image_shape", [(784,), (28, 28), (28, 28, 1), (7, 7, 4, 4)])
def test_images_of_any_rank_are_laid_flat(image_shape, norm):
    variables, logits, _ = shapes_of((7, *image_shape), norm=norm)
    chex.assert_shape(variables["params"]["hidden0"]["kernel"], (784, 100))
    chex.assert_shape(logits, (7, 10))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("hidden_features", [(1,), (5, 3), (7,) * 6])
def test_every_hidden_layer_sows_its_inputs(hidden_features, norm):
    fields = {"hidden_features": hidden_features}
    _, _, updates = shapes_of((61, 12), norm=norm, **fields)
    for i, features in enumerate(hidden_features):
        (hidden,) = updates["intermediates"][f"hidden{i}_input"]
        chex.assert_shape(hidden, (61, features))


def test_statistics_and_moments_are_one_value_a_unit():
    variables, _, updates = shapes_of((7, 12), norm="batch_norm")
    for i in range(3):
        chex.assert_shape(jax.tree.leaves(variables["batch_stats"][f"norm{i}"]), (100,))
        (moments,) = updates["batch_moments"][f"norm{i}"]["moments"]
        chex.assert_shape(list(moments), (100,))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.uint8])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_scores_are_float32_for_any_image(name, dtype):
    _, logits, _ = shapes_of(
        (7, 28, 28, 1), name=name, norm="batch_norm", image_dtype=dtype
    )
    chex.assert_type(logits, jnp.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_hidden_layers_compute_in_the_dtype_and_nothing_else_is_in_it(name, dtype):
    variables, logits, updates = shapes_of(
        (7, 28, 28, 1), name=name, norm="batch_norm", dtype=dtype
    )
    intermediates = jax.tree.leaves(updates["intermediates"])
    others = {k: v for k, v in updates.items() if k != "intermediates"}
    assert len(intermediates) == 3
    chex.assert_type(intermediates, getattr(jnp, dtype))
    chex.assert_type([logits, *jax.tree.leaves((variables, others))], jnp.float32)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [(28, 28), (29, 20), (8, 8)])
def test_every_block_halves_the_image_and_sows_its_inputs(size, norm):
    variables, _, updates = shapes_of((6, *size, 3), name="cnn", norm=norm)
    for i, features in enumerate((16, 32, 64)):
        (hidden,) = updates["intermediates"][f"hidden{i}_input"]
        chex.assert_shape(hidden, (6, size[0] // 2**i, size[1] // 2**i, features))
    left = (size[0] // 8) * (size[1] // 8) * 64
    chex.assert_shape(variables["params"]["logits"]["kernel"], (left, 10))


def test_statistics_and_moments_are_one_value_a_channel():
    variables, _, updates = shapes_of((7, 28, 28, 1), name="cnn", norm="batch_norm")
    for i, features in enumerate((16, 32, 64)):
        statistics = jax.tree.leaves(variables["batch_stats"][f"norm{i}"])
        (moments,) = updates["batch_moments"][f"norm{i}"]["moments"]
        chex.assert_shape([*statistics, *moments], (features,))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_gradients_have_the_shapes_of_the_parameters(name, dtype, norm):
    model = make_model(name, num_classes=10, norm=make_norm(norm), dtype=dtype)
    images = jax.ShapeDtypeStruct((7, 28, 28, 1), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=True), KEY, images)

    def loss(params, variables, images):
        logits, _ = model.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(logits)

    gradients = jax.eval_shape(jax.grad(loss), variables["params"], variables, images)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, variables["params"])
