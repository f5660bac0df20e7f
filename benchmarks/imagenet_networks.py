"""BN-Inception with another library's normalization, around images made up."""

from functools import partial
from typing import Any

import flax.linen as nn
import numpy as np

from bn_jax.data.dataset import ArrayDataset
from bn_jax.training.build import Parts

_NUM_CLASSES = 1000


def dataset_of(images: np.ndarray) -> ArrayDataset:
    """Images with labels of ImageNet's number, to train and to test on.

    Args:
        images: Bytes, `(images, height, width, 3)`.
    """
    labels = np.arange(len(images), dtype=np.int32) % _NUM_CLASSES
    return ArrayDataset("made up", images, labels, images, labels, _NUM_CLASSES)


def with_flax(config: Any, parts: Parts) -> Parts:
    """The same network with `flax.linen.BatchNorm`.

    Args:
        config: What the parts were made from.
        parts: Those with bn_jax's normalization.
    """
    norm = partial(
        nn.BatchNorm, momentum=config.norm.momentum, epsilon=config.norm.epsilon
    )
    mapped = partial(norm, axis_name=parts.parallel.axis_name)
    return parts._replace(
        model=parts.model.clone(norm=norm),
        mapped_model=parts.mapped_model.clone(norm=mapped),
    )
