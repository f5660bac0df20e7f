"""Checkpoints of the training state, by Orbax."""

from pathlib import Path
from types import TracebackType

import jax
import orbax.checkpoint as ocp

from bn_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run, in a folder of their own.

    They are written in the background; leaving the context waits for the last.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        """Opens the folder, and makes it if it is not there.

        Args:
            folder: Where the checkpoints lie.
            keep: How many of the newest are kept.
        """
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits until everything is on disk."""
        self._manager.close()

    def save(self, state: TrainState, *, step: int) -> None:
        """Begins to write the state, unless that step is there already.

        Args:
            state: State after `step` steps.
            step: Names the checkpoint.
        """
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state._asdict()))

    def restore_latest(self, like: TrainState) -> TrainState | None:
        """The newest state, or None when there is no checkpoint.

        Args:
            like: A state of the shapes, dtypes and devices to restore to.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like._asdict())
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        return TrainState(**restored)
