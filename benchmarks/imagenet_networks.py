"""Generated images, and BN-Inception with Flax's normalization, for the benchmarks."""

from functools import partial
from typing import Any

import flax.linen as nn
import numpy as np

from bn_jax.data.dataset import ArraySplit, Dataset
from bn_jax.training.parts import Parts

_NUM_CLASSES = 1000


def dataset_of(images: np.ndarray) -> Dataset[ArraySplit]:
    """Returns a dataset of the images, labeled with as many classes as ImageNet has.

    The images are used for both training and test.

    Args:
        images: uint8 pixels, `(images, height, width, 3)`.
    """
    labels = np.arange(len(images), dtype=np.int32) % _NUM_CLASSES
    split = ArraySplit(images, labels)
    return Dataset("made up", _NUM_CLASSES, train=split, test=split)


def with_flax(config: Any, parts: Parts) -> Parts:
    """Replaces the normalization of a network by `flax.linen.BatchNorm`.

    Args:
        config: Configuration that the parts were built from.
        parts: Parts of a run, with bn_jax's normalization.
    """
    norm = partial(
        nn.BatchNorm, momentum=config.norm.momentum, epsilon=config.norm.epsilon
    )
    mapped = partial(norm, axis_name=parts.parallel.axis_name)
    return parts._replace(
        model=parts.model.clone(norm=norm),
        mapped_model=parts.mapped_model.clone(norm=mapped),
    )
