"""Variables of another run, for a new run to start from."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import PyTree

from bn_jax.errors import UserError, shorten
from bn_jax.stats.collections import leaves_by_path
from bn_jax.training.checkpoints.checkpoint import Checkpoints
from bn_jax.training.distributed.processes import is_primary
from bn_jax.training.step.state import TrainState


def find_other_run(init_from: str | None, workdir: Path) -> Path | None:
    """Returns the workdir of the run to start from; None if there is nothing to do.

    A run that has saved a state resumes from it, so that the other run may be gone.

    Args:
        init_from: Workdir of the other run, or None.
        workdir: Workdir of this run.

    Raises:
        UserError: If `init_from` holds no run or no checkpoint, or is the workdir.
    """
    if init_from is None or _has_checkpoints(workdir):
        return None
    other, who = Path(init_from).expanduser(), f"config.init_from={init_from}"
    if other.resolve() == workdir.resolve():
        raise UserError(
            f"{who} must be the workdir of another run, but is that of this run. "
            "Choose another --workdir."
        )
    if not (other / "config.json").is_file():
        raise UserError(f"{who} must be the workdir of a run, but holds no run.")
    if not _has_checkpoints(other):
        raise UserError(f"{who} holds no checkpoint yet; train that run first.")
    return other


def start_from(other: Path, state: TrainState) -> TrainState:
    """Returns the state with the variables of another run.

    A value is taken wherever path and shape agree, in this state's dtype. The values
    are those after the last step, and not the averaged parameters, because the running
    statistics belong to them. One line of the log names the values that are not taken.

    Args:
        other: Workdir of the other run; its newest intact checkpoint is read.
        state: State before the first step.

    Raises:
        UserError: If no path and shape agree, or all checkpoints are damaged.
    """
    with Checkpoints(other / "checkpoints", keep=1) as checkpoints:
        saved = checkpoints.read()
    assert saved is not None
    taken, missing = 0, []

    def choose(part: str) -> PyTree:
        nonlocal taken
        there = leaves_by_path(saved.arrays.get(part, {}))
        tree = getattr(state, part)
        chosen = []
        for name, leaf in leaves_by_path(tree).items():
            value = there.get(name)
            if value is not None and value.shape == leaf.shape:
                taken += 1
                chosen.append(_put(value, like=leaf))
                continue
            here = "missing" if value is None else list(value.shape)
            missing.append(f"{name} {list(leaf.shape)} ({here} there)")
            chosen.append(leaf)
        return jax.tree.unflatten(jax.tree.structure(tree), chosen)

    parts = {part: choose(part) for part in ("params", "batch_stats", "collections")}
    if not taken:
        raise UserError(
            f"config.init_from={other}: no variable agrees in path and shape with "
            f"this network: {shorten(missing)}. Choose a run of a similar network."
        )
    logging.log_if(
        logging.INFO,
        "%s: starts from step %d; %d of %d variables are taken%s.",
        is_primary(),
        other,
        saved.step,
        taken,
        taken + len(missing),
        f", and not {shorten(missing)}" if missing else "",
    )
    # A copy, because a step's state is donated, and no buffer can be donated twice.
    averaged = jax.tree.map(jnp.copy, parts["params"]) if state.ema_params else {}
    return state._replace(**parts, ema_params=averaged)


def _has_checkpoints(workdir: Path) -> bool:
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(one.name.isdigit() for one in folder.iterdir())


def _put(value: Any, *, like: jax.Array) -> jax.Array:
    """Returns the value in the dtype and on the devices of another array."""
    host = np.asarray(value).astype(like.dtype)
    return jax.make_array_from_callback(
        like.shape, like.sharding, lambda index: host[index]
    )
