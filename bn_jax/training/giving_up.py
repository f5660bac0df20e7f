"""The end of a run whose values are not finite."""

from typing import NoReturn

import jax
import numpy as np

from bn_jax.errors import DivergedError
from bn_jax.training.checkpoints.checkpoint import Checkpoints
from bn_jax.training.parts import RunSettings
from bn_jax.training.step.nonfinite import name_of_value
from bn_jax.training.step.state import TrainState, resume_tally


def give_up(
    settings: RunSettings, state: TrainState, checkpoints: Checkpoints
) -> NoReturn:
    """Saves the last good state, and raises an error that names the non-finite leaf.

    Args:
        settings: Settings of the run.
        state: State after the last good step.
        checkpoints: Checkpoints of the run.

    Raises:
        DivergedError: Always.
    """
    tally = jax.tree.map(np.asarray, state.tally)
    step = int(state.step)
    leaf = name_of_value(int(tally.bad_value), state)
    checkpoints.save(state._replace(tally=resume_tally(state.tally)), step=step)
    checkpoints.wait()
    skips = settings.skips_nonfinite
    times = f", {settings.max_nonfinite_steps} steps in a row" if skips else ""
    advice = " --config.on_nonfinite=skip resumes this run without such steps."
    raise DivergedError(
        f"{leaf} is not finite at step {step + 1}{times}. The state after step {step} "
        "is saved. A lower learning rate, a longer warm-up or "
        "config.optimizer.clip_norm may keep it finite; train from the beginning in "
        f"another --workdir.{'' if skips else advice}",
        step,
    )
