"""Checks of the settings of a run, made before anything is read or compiled."""

import math
from collections.abc import Sequence
from typing import Any

from bn_jax.errors import UserError
from bn_jax.training.optim.schedules import check_decay


def check_config(config: Any) -> None:
    """Raises for a setting that is out of range.

    Args:
        config: Configuration, as the files in `configs/` return it.

    Raises:
        UserError: With the setting's name, its range and its value.
    """
    check_batch_size(config)
    schedule = config.evaluation.schedule
    at_least_one = {
        "num_steps": config.num_steps,
        "accumulation_steps": config.accumulation_steps,
        "max_steps_per_dispatch": config.max_steps_per_dispatch,
        "max_nonfinite_steps": config.max_nonfinite_steps,
        "log_every": config.log_every,
        "evaluation.batch_size": config.evaluation.batch_size,
        "evaluation.population_batches": config.evaluation.population_batches,
        "evaluation.probe_examples": config.evaluation.probe_examples,
        "evaluation.schedule.early_every_steps": schedule.early_every_steps,
        # None stands for an epoch.
        "evaluation.schedule.every_steps": schedule.every_steps,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "checkpoint.keep": config.checkpoint.keep,
    }
    for name, value in at_least_one.items():
        if value is not None and value < 1:
            raise UserError(f"config.{name} must be at least 1, but is {value}.")
    check_decay(
        config.schedule.name,
        decay_every_steps=config.schedule.decay_every_steps,
        decay_factor=config.schedule.decay_factor,
    )
    if not all(0 < accuracy <= 1 for accuracy in config.report_steps_to):
        raise UserError(
            "config.report_steps_to must be accuracies in (0, 1], such as (0.9, 0.95), "
            f"but is {tuple(config.report_steps_to)}."
        )
    if config.seed < 0:
        raise UserError(f"config.seed must not be negative, but is {config.seed}.")
    _check_pixels(**config.pixels)
    if config.on_nonfinite not in ("raise", "skip"):
        raise UserError(
            "config.on_nonfinite must be 'raise' or 'skip', but is "
            f"{config.on_nonfinite!r}."
        )
    if not 0 <= config.label_smoothing < 1:
        raise UserError(
            "config.label_smoothing is the part of a label that is divided among all "
            "classes; it must lie in [0, 1), with 0 for no smoothing, but is "
            f"{config.label_smoothing}."
        )
    if config.ema_decay is not None and not 0 <= config.ema_decay < 1:
        raise UserError(
            "config.ema_decay is the fraction of the average that a step keeps; it "
            f"must lie in [0, 1), but is {config.ema_decay}."
        )


def check_batch_size(config: Any) -> None:
    """Checks the batch size, by which a setting that is computed later may divide.

    Args:
        config: Configuration, of which only `config.batch_size` is read.

    Raises:
        UserError: If `config.batch_size` is below 1.
    """
    if config.batch_size < 1:
        raise UserError(
            f"config.batch_size must be at least 1, but is {config.batch_size}."
        )


def _check_pixels(
    *, binarize_threshold: Any, mean: Sequence[Any], std: Sequence[Any]
) -> None:
    is_integer = isinstance(binarize_threshold, int)
    if binarize_threshold is not None and not (
        is_integer and 0 <= binarize_threshold <= 254
    ):
        raise UserError(
            "config.pixels.binarize_threshold must lie in 0 to 254, so that both "
            f"values can occur, but is {binarize_threshold!r}."
        )
    if not all(_is_finite(value) for value in mean):
        raise UserError(
            f"config.pixels.mean must be finite numbers, but is {tuple(mean)}."
        )
    if not all(_is_finite(value) and value > 0 for value in std):
        raise UserError(
            "config.pixels.std divides the pixels; it must be positive numbers, but is "
            f"{tuple(std)}."
        )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
