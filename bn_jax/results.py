"""Results of evaluations, and descriptions of a model's layers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bn_jax.analysis.drift import Drift


class Evaluation(NamedTuple):
    """Test results of one model.

    Attributes:
        step: Number of steps that the model was trained.
        data: Name of the data set.
        num_examples: Number of test examples.
        metrics: `test_loss` in nats, `test_accuracy` in [0, 1] and, if there are more
            than five classes, `test_top5_accuracy`. If the run keeps averaged
            parameters, also their metrics, with the prefix `ema_`.
        statistics: Statistics that the layers normalized with, in words.
    """

    step: int
    data: str
    num_examples: int
    metrics: Mapping[str, float]
    statistics: str


class Member(NamedTuple):
    """Test results of one model of an ensemble, evaluated alone.

    Attributes:
        name: Name of the model.
        step: Number of steps that the model was trained.
        is_averaged: True if the model uses averaged parameters.
        metrics: `test_loss` in nats, `test_accuracy` and `test_top5_accuracy` in
            [0, 1], as in `Evaluation`.
    """

    name: str
    step: int
    is_averaged: bool
    metrics: Mapping[str, float]


class EnsembleEvaluation(NamedTuple):
    """Test results of an ensemble and of each of its models.

    Attributes:
        data: Name of the data set.
        num_examples: Number of test examples.
        members: Results of each model.
        metrics: Metrics of the arithmetic mean of the models' probabilities, with the
            names and units of `Evaluation`.
        statistics: Statistics that the layers normalized with, in words.
    """

    data: str
    num_examples: int
    members: Sequence[Member]
    metrics: Mapping[str, float]
    statistics: str


class Layer(NamedTuple):
    """One layer of a trained model.

    Attributes:
        path: Path of the layer in the model.
        shapes: Shape of each parameter, by name.
        num_parameters: Total number of values in these parameters.
        batch_stats: Running `mean` and `var`; None if the layer has none.
        drift: Distance of the next training batch's statistics from the running
            statistics; None if the layer has none, or gives no moments of a batch.
    """

    path: str
    shapes: Mapping[str, tuple[int, ...]]
    num_parameters: int
    batch_stats: Mapping[str, np.ndarray] | None
    drift: Drift | None
