"""Damaged checkpoints: found by all processes together, and moved aside."""

from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from bn_jax.training.checkpoints.manifest import damaged_files


def describe_damage(checkpoint: Path) -> str:
    """Returns a description of the damage to a checkpoint; empty if it is intact.

    The primary process reads the files and decides for all processes.

    Args:
        checkpoint: Folder of one checkpoint.
    """
    damage = ""
    if jax.process_index() == 0:
        damage = "; ".join(damaged_files(checkpoint))
    is_damaged = bool(damage)
    if jax.process_count() > 1:
        is_damaged = bool(multihost_utils.broadcast_one_to_all(np.asarray(is_damaged)))
    return damage or ("the primary process logs the files" if is_damaged else "")


def move_aside(folder: Path, steps: Iterable[int]) -> None:
    """Moves damaged checkpoints to `damaged/` beside their folder.

    The primary process moves them, and all processes wait for it. Nothing in
    `damaged/` is overwritten.

    Args:
        folder: Folder of all checkpoints.
        steps: Names of the damaged ones.
    """
    if jax.process_index() == 0:
        damaged = folder.with_name("damaged")
        damaged.mkdir(exist_ok=True)
        for step in steps:
            target = damaged / str(step)
            number = 1
            while target.exists():
                number += 1
                target = damaged / f"{step}-{number}"
            (folder / str(step)).rename(target)
            logging.warning("Checkpoint %d moved to %s.", step, target)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("bn_jax: damaged checkpoints aside")
