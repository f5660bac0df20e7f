"""The paper's experiment made tiny: 60 steps of a small network on few images."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bn_jax.experiments.configs import load_config
from bn_jax.models import make_model, make_norm
from bn_jax.training.checkpoint import Checkpoints
from bn_jax.training.optim import make_optimizer
from bn_jax.training.state import TrainState, init_state

# Stretches are 10 or 5 steps long, so that little is compiled; the batches divide
# neither the training set nor the test set.
TINY = {
    "num_steps": 60,
    "batch_size": 25,
    "model.hidden_features": (8, 7),
    "optimizer.learning_rate": 2.0,
    "evaluation.schedule.early_every_steps": 10,
    "evaluation.schedule.early_until_step": 30,
    "evaluation.schedule.every_steps": 20,
    "evaluation.batch_size": 40,
    "evaluation.population_batches": 4,
    "evaluation.probe_examples": 50,
    "checkpoint.every_steps": 25,
    "max_steps_per_dispatch": 10,
}
# Checkpoints, of which there is one after steps 25 and 50, are evaluated too.
EVALUATED = [10, 20, 25, 30, 40, 50, 60]

# What is left of them when whole programs are started: 10 steps, all in one way.
SHORT = {
    **TINY,
    "num_steps": 10,
    "model.hidden_features": (8,),
    "evaluation.schedule.early_every_steps": 5,
    "max_steps_per_dispatch": 5,
}


def tiny_config(idx_dir: Path, *, arm: str = "bn", **settings: Any) -> ConfigDict:
    """The configuration of one arm, on the images of a folder.

    Args:
        idx_dir: As `write_idx_folder` writes it.
        arm: "bn" or "baseline".
        **settings: Further settings, with `__` for each dot.
    """
    config = load_config("mnist_mlp.py", arm)
    further = {key.replace("__", "."): value for key, value in settings.items()}
    values = {"dataset.idx_dir": str(idx_dir), **TINY, **further}
    config.update_from_flattened_dict(values)
    return config


def final_state(config: ConfigDict, workdir: Path) -> TrainState:
    """The newest state that a run has saved."""
    like = initial_state(config)
    with Checkpoints(workdir / "checkpoints", keep=1) as checkpoints:
        state = checkpoints.restore_latest(like)
    assert state is not None
    return state


def initial_state(config: ConfigDict) -> TrainState:
    """The state of a configuration before its first step."""
    model = make_model(num_classes=10, norm=make_norm(**config.norm), **config.model)
    tx = make_optimizer(**config.optimizer)
    example = jnp.zeros((1, 28, 28, 1))
    init = jax.jit(partial(init_state, model, tx))
    return init(key=jax.random.key(config.seed), example=example)
