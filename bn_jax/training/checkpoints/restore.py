"""A run's newest checkpoint, taken from its folder to work on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from bn_jax.errors import UserError
from bn_jax.training.build import Parts, Settings, build_init, build_parts
from bn_jax.training.checkpoints.checkpoint import Checkpoints
from bn_jax.training.checkpoints.same_tree import OtherModelError
from bn_jax.training.distributed.parallel import make_parallel
from bn_jax.training.state import TrainState
from bn_jax.workdir.files import read_config


def restore(config: Settings, workdir: Path) -> tuple[Parts, TrainState]:
    """What a run trains, and its newest state, on one device.

    What is computed of it does not depend on how many devices there are.

    Args:
        config: The run's configuration, perhaps with another `dataset`.
        workdir: The run's folder; nothing in it is changed.

    Raises:
        UserError: If there is no checkpoint, or the data do not suit the model.
    """
    parallel = make_parallel("jit", num_devices=1, devices=jax.local_devices())
    parts = build_parts(config, parallel)
    like = build_init(config, parts).shapes
    folder = workdir / "checkpoints"
    state = None
    if folder.is_dir():
        with (
            Checkpoints(folder, keep=config.checkpoint.keep) as checkpoints,
            _other_data_to_blame(config, parts, workdir),
        ):
            state = checkpoints.restore_latest(like)
    if state is None:
        raise UserError(f"workdir {workdir}: it holds no checkpoint yet.")
    return parts, state


@contextmanager
def _other_data_to_blame(
    config: Settings, parts: Parts, workdir: Path
) -> Iterator[None]:
    """A context in which a network that does not fit may be that of other data."""
    try:
        yield
    except OtherModelError as error:
        if json.loads(config.to_json())["dataset"] == read_config(workdir)["dataset"]:
            raise
        data = parts.data
        raise UserError(
            f"{data.name}, of {data.num_classes} classes, does not suit the network, "
            "which was trained on other data. Choose data of as many classes (the "
            f"highest label says how many) and of the same size; {error.differences}."
        ) from error
