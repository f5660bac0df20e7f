"""What there is to know of a trained model: how well it does, and its layers."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bn_jax.analysis.drift import Drift


class Evaluation(NamedTuple):
    """How well a model does.

    Attributes:
        step: Steps that it was trained.
        data: Name of the data set.
        num_examples: Test examples that were evaluated.
        metrics: `test_loss` in nats and `test_accuracy` in [0, 1]; with `ema_` in
            front those of the averaged parameters, where the run keeps them.
    """

    step: int
    data: str
    num_examples: int
    metrics: Mapping[str, float]


class Layer(NamedTuple):
    """One layer of a trained model.

    Attributes:
        path: Its place in the model.
        shapes: Shape of each of its parameters, by name.
        num_parameters: How many numbers those are.
        batch_stats: Its running `mean` and `var`; None if it has none.
        drift: How far the next training batch's statistics lie from them.
    """

    path: str
    shapes: Mapping[str, tuple[int, ...]]
    num_parameters: int
    batch_stats: Mapping[str, np.ndarray] | None
    drift: Drift | None
