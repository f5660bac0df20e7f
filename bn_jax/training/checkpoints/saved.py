"""Content of a checkpoint, read without the network that it belongs to."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from bn_jax.errors import UserError

FORMAT_VERSION = 1


class Saved(NamedTuple):
    """Content of a checkpoint, read without the network that it belongs to.

    Attributes:
        step: Steps that the run had taken.
        num_classes: Number of scores of the network; None in a checkpoint of version
            0.1.
        arrays: Fields of the `TrainState`, on one device. Tuples are lists.
    """

    step: int
    num_classes: int | None
    arrays: dict[str, Any]


def read_saved(manager: ocp.CheckpointManager, folder: Path, step: int) -> Saved:
    """Returns what a checkpoint holds.

    Args:
        manager: Orbax's view of the folder.
        folder: Folder of the checkpoints, for messages.
        step: Name of the checkpoint, which must be intact.

    Raises:
        UserError: If the checkpoint is of a newer version of this library.
    """
    run_info = read_run_info(manager, folder, step)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        manager.item_metadata(step)["state"],
    )
    arrays: Any = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
    )["state"]
    return Saved(step, run_info.get("num_classes"), arrays)


def read_run_info(
    manager: ocp.CheckpointManager, folder: Path, step: int
) -> dict[str, Any]:
    """Returns what a checkpoint says about its run.

    Args:
        manager: Orbax's view of the folder.
        folder: Folder of the checkpoints, for messages.
        step: Name of the checkpoint, which must be intact.

    Raises:
        UserError: If the checkpoint is of a newer version of this library.
    """
    run_info: Any = manager.restore(
        step, args=ocp.args.Composite(run=ocp.args.JsonRestore())
    )["run"]
    if run_info["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{folder}: checkpoint {step} has format "
            f"{run_info['format_version']}, but this version of bn_jax reads at "
            f"most format {FORMAT_VERSION}. Install a newer version of bn_jax."
        )
    return run_info
