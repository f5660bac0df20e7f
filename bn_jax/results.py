"""What there is to know of a trained model: how well it does, and its layers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bn_jax.analysis.drift import Drift


class Evaluation(NamedTuple):
    """How well a model does.

    Attributes:
        step: Steps that it was trained.
        data: Name of the data set.
        num_examples: Test examples that were evaluated.
        metrics: `test_loss` in nats, `test_accuracy` in [0, 1] and, where there are
            more than five classes, `test_top5_accuracy`; with `ema_` in front those of
            the averaged parameters, where the run keeps them.
    """

    step: int
    data: str
    num_examples: int
    metrics: Mapping[str, float]


class Member(NamedTuple):
    """How well a model of an ensemble does by itself.

    Attributes:
        name: What it is called.
        step: Steps that it was trained.
        is_averaged: Whether its parameters are a moving average of training's.
        metrics: See `Evaluation`.
    """

    name: str
    step: int
    is_averaged: bool
    metrics: Mapping[str, float]


class EnsembleEvaluation(NamedTuple):
    """How well several models do together.

    Attributes:
        data: Name of the data set.
        num_examples: Test examples that were evaluated.
        members: The models.
        metrics: See `Evaluation`; of the arithmetic means of their probabilities.
    """

    data: str
    num_examples: int
    members: Sequence[Member]
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
