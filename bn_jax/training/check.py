"""Settings that no run can have, refused before anything is read or compiled."""

import math
from typing import Any

from bn_jax.errors import UserError


def check_config(config: Any) -> None:
    """Raises for settings that lie outside their range.

    Args:
        config: As the files in `configs/` make it.

    Raises:
        UserError: With the setting's name, what it may be and what it is.
    """
    schedule = config.evaluation.schedule
    at_least_one = {
        "num_steps": config.num_steps,
        "batch_size": config.batch_size,
        "accumulation_steps": config.accumulation_steps,
        "max_steps_per_dispatch": config.max_steps_per_dispatch,
        "max_nonfinite_steps": config.max_nonfinite_steps,
        "log_every": config.log_every,
        "evaluation.batch_size": config.evaluation.batch_size,
        "evaluation.population_batches": config.evaluation.population_batches,
        "evaluation.probe_examples": config.evaluation.probe_examples,
        "evaluation.schedule.early_every_steps": schedule.early_every_steps,
        "evaluation.schedule.every_steps": schedule.every_steps,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "checkpoint.keep": config.checkpoint.keep,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise UserError(f"config.{name} must be at least 1, and is {value}.")
    if config.seed < 0:
        raise UserError(f"config.seed must not be negative, and is {config.seed}.")
    threshold = config.pixels.binarize_threshold
    if threshold is not None and not 0 <= threshold <= 254:
        raise UserError(
            "config.pixels.binarize_threshold must lie in 0 to 254, so that both "
            f"values can come up, and is {threshold}."
        )
    if not all(0 < value < math.inf for value in config.pixels.std):
        raise UserError(
            "config.pixels.std divides pixels; its values must be positive, and are "
            f"{config.pixels.std}."
        )
    if not all(map(math.isfinite, config.pixels.mean)):
        raise UserError(
            f"config.pixels.mean must be finite, and is {config.pixels.mean}."
        )
    if config.on_nonfinite not in ("raise", "skip"):
        raise UserError(
            "config.on_nonfinite must be 'raise' or 'skip', and is "
            f"{config.on_nonfinite!r}."
        )
    if not 0 <= config.label_smoothing < 1:
        raise UserError(
            "config.label_smoothing is the part of a label that is divided among all "
            "classes; it must lie in [0, 1), 0 for none, and is "
            f"{config.label_smoothing}."
        )
    if config.ema_decay is not None and not 0 <= config.ema_decay < 1:
        raise UserError(
            "config.ema_decay is the fraction of the average that a step keeps; it "
            f"must lie in [0, 1), and is {config.ema_decay}."
        )
