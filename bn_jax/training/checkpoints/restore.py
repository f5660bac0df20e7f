"""The newest checkpoint of a run, restored from its workdir."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from bn_jax.errors import UserError
from bn_jax.training.build import Settings, build_parts
from bn_jax.training.checkpoints.checkpoint import Checkpoints
from bn_jax.training.checkpoints.same_tree import CheckpointMismatchError
from bn_jax.training.distributed.parallel import make_parallel
from bn_jax.training.parts import Parts, build_init
from bn_jax.training.state import TrainState
from bn_jax.workdir.files import read_config


def restore(config: Settings, workdir: Path) -> tuple[Parts, TrainState]:
    """Returns the parts of a run and its newest state, on one device.

    One device is enough: if `config.norm.sync` is True, results do not depend on the
    number of devices.

    Args:
        config: Configuration of the run, perhaps with another `dataset`.
        workdir: Workdir of the run; nothing in it is changed.

    Raises:
        UserError: If there is no checkpoint, or the data do not suit the model.
    """
    parallel = make_parallel("jit", num_devices=1, devices=jax.local_devices())
    parts = build_parts(config, parallel)
    like = build_init(parts).shapes
    folder = workdir / "checkpoints"
    state = None
    if folder.is_dir():
        with (
            Checkpoints(folder, keep=config.checkpoint.keep) as checkpoints,
            _errors_naming_data(config, parts, workdir),
        ):
            state = checkpoints.restore_latest(like)
    if state is None:
        raise UserError(f"workdir {workdir}: holds no checkpoint yet; train first.")
    return parts, state


@contextmanager
def _errors_naming_data(
    config: Settings, parts: Parts, workdir: Path
) -> Iterator[None]:
    """Explains a checkpoint that does not fit by the data, if those are other data."""
    try:
        yield
    except CheckpointMismatchError as error:
        if json.loads(config.to_json())["dataset"] == read_config(workdir)["dataset"]:
            raise
        data = parts.data
        raise UserError(
            f"{data.name}, of {data.num_classes} classes, does not suit the network, "
            f"which was trained on other data ({error.differences}). Choose data with "
            "the same number of classes and images of the same size; for IDX files the "
            "number of classes is the highest label plus 1."
        ) from error
