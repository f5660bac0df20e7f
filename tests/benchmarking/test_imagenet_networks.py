"""The benchmark's Flax network, which differs from bn_jax's in the norm alone."""

from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.imagenet_networks import dataset_of, with_flax
from bn_jax.training.build import build_parts_for_data
from bn_jax.training.config_files import load_config
from bn_jax.training.distributed.parallel import make_parallel
from bn_jax.training.parts import Parts


@pytest.fixture(scope="module")
def both() -> tuple[Parts, Parts]:
    """A benchmark's parts with bn_jax's normalization, and with Flax's."""
    config: Any = load_config("imagenet_inception:modern")
    images = np.broadcast_to(np.zeros((), np.uint8), (config.batch_size, 224, 224, 3))
    parallel = make_parallel("shard_map", num_devices=2)
    parts = build_parts_for_data(dataset_of(images), config, parallel)
    return parts, with_flax(config, parts)


def test_flax_takes_the_place_of_the_norm_and_of_nothing_else(
    both: tuple[Parts, Parts],
) -> None:
    ours, theirs = both
    for name in ("model", "mapped_model"):
        model, other = getattr(ours, name), getattr(theirs, name)
        assert other.norm.func is nn.BatchNorm
        assert other.clone(norm=None) == model.clone(norm=None)
    models = {"model": ours.model, "mapped_model": ours.mapped_model}
    assert theirs._replace(**models) == ours


def test_flax_normalizes_with_the_same_settings(both: tuple[Parts, Parts]) -> None:
    for name, axis_name in (("model", None), ("mapped_model", "batch")):
        ours, theirs = (getattr(parts, name).norm.keywords for parts in both)
        assert theirs["epsilon"] == ours["epsilon"]
        assert theirs["momentum"] == ours["momentum"]
        assert theirs.get("axis_name") == ours.get("axis_name") == axis_name


def test_both_networks_have_the_same_variables_and_convolutions(
    both: tuple[Parts, Parts],
) -> None:
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    numbers, shapes = [], []
    for parts in both:
        init = partial(parts.model.init, jax.random.key(0), train=False)
        program, variables = jax.make_jaxpr(init, return_shape=True)(image)
        numbers.append(str(program).count("conv_general_dilated["))
        shapes.append(variables)
    assert set(shapes[0]) == {"params", "batch_stats"}
    chex.assert_trees_all_equal_shapes_and_dtypes(*shapes)
    assert numbers[0] == numbers[1] > 0
