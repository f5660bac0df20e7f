"""The newest checkpoint of a run, restored from its workdir."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bn_jax.errors import UserError
from bn_jax.training.base_config import complete
from bn_jax.training.build import (
    Settings,
    build_parts,
)
from bn_jax.training.checkpoints.checkpoint import Checkpoints
from bn_jax.training.checkpoints.same_tree import CheckpointMismatchError
from bn_jax.training.distributed.parallel import Parallel, make_local_parallel
from bn_jax.training.group_size import share_of_device, with_groups_of_the_run
from bn_jax.training.parts import Parts, build_init
from bn_jax.training.step.state import TrainState
from bn_jax.workdir.files import read_config


def local_devices(configs: Sequence[Settings], *, by_batch: bool = False) -> Parallel:
    """Returns the devices of this process that evaluate some runs together.

    These are as many as the microbatches of each run can be divided among. The result
    does not depend on them, except for rounding.

    Args:
        configs: Configurations of the runs; the first sets the evaluation batch.
        by_batch: True if layers normalize by each evaluation batch, whose size must
            not be rounded up to a multiple of the devices.
    """
    sizes = [share_of_device(config, 1) for config in configs]
    if by_batch:
        sizes.append(configs[0].evaluation.batch_size)
    return make_local_parallel(*sizes)


def restore(
    config: Settings, workdir: Path, parallel: Parallel, *, by_batch: bool = False
) -> tuple[Parts, TrainState]:
    """Returns the parts of a run and its newest state.

    Args:
        config: Configuration of the run, perhaps with another `dataset`.
        workdir: Workdir of the run; nothing in it is changed.
        parallel: Devices that hold the state.
        by_batch: True for a network that normalizes by whole evaluation batches, not
            by the groups of the run.

    Raises:
        UserError: If there is no checkpoint, or the data do not suit the model.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if by_batch:
            config.norm.update(sync=True, group_size=None)
    config = with_groups_of_the_run(config)
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
        saved = complete(read_config(workdir))
        if json.loads(config.to_json())["dataset"] == saved["dataset"]:
            raise
        data = parts.data
        raise UserError(
            f"{data.name}, of {data.num_classes} classes, does not suit the network, "
            f"which was trained on other data ({error.differences}). Choose data with "
            "the same number of classes and images of the same size; for IDX files the "
            "number of classes is the highest label plus 1."
        ) from error
