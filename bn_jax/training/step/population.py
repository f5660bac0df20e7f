"""Population statistics of a network in training (Algorithm 2 of the paper)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, PyTree

from bn_jax.stats.collections import layers_with_moments, layers_with_statistics
from bn_jax.stats.precise import average_moments
from bn_jax.training.step.train_step import Examples, make_rngs, mutable_collections


def make_population_step(
    model: nn.Module, *, preprocess: Callable[[Array], Array]
) -> Callable[[PyTree, Examples], PyTree]:
    """Returns a function that computes the variables to evaluate with.

    These are the parameters, and population statistics in place of the running
    statistics, computed from training batches.
    Source: Ioffe & Szegedy (2015), Algorithm 2, lines 7 to 10.

    Args:
        model: Called as `model.apply(variables, x, train=...)`.
        preprocess: Turns stored pixels into the model's input.

    Returns:
        Function of the variables and of training batches, `(steps, microbatches,
        examples, ...)`. Each microbatch is one batch of Algorithm 2, as in training.
        Layers that sow no `batch_moments` keep their running statistics. For a model
        without statistics it returns the variables unchanged.
    """

    def population_step(variables: PyTree, batches: Examples) -> PyTree:
        if not variables["batch_stats"]:
            return variables

        def moments(images: Array) -> PyTree:
            return _moments(model, variables, preprocess(images))

        images = batches.images.reshape(-1, *batches.images.shape[2:])
        sown = jax.lax.map(moments, images)
        batch_stats = average_moments(sown, variables["batch_stats"])
        return {**variables, "batch_stats": batch_stats}

    return population_step


def layers_without_moments(
    model: nn.Module, variables: Mapping[str, PyTree], inputs: jax.ShapeDtypeStruct
) -> list[str]:
    """Returns the paths of the layers that keep their running statistics.

    These are layers of Flax, and frozen layers.

    Args:
        model: Called as `model.apply(variables, x, train=...)`.
        variables: Its variables, or their shapes.
        inputs: Shape of a batch of its inputs.
    """
    moments = jax.eval_shape(partial(_moments, model), variables, inputs)
    sowing = {path for path, _ in layers_with_moments(moments)}
    layers = layers_with_statistics(variables["batch_stats"])
    return [path for path, _ in layers if path not in sowing]


def _moments(model: nn.Module, variables: PyTree, inputs: Array) -> Any:
    _, updates = model.apply(
        variables,
        inputs,
        train=True,
        mutable=mutable_collections(variables),
        # A fixed key, so that Dropout draws the same noise at each evaluation.
        rngs=make_rngs(jax.random.key(0)),
    )
    return updates.get("batch_moments", {})
