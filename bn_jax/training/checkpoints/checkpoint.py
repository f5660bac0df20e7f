"""Checkpoints of everything that a run needs to resume, by Orbax, with checksums."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from bn_jax.errors import UserError
from bn_jax.training.checkpoints.damage import describe_damage, move_aside
from bn_jax.training.checkpoints.manifest import write_manifest
from bn_jax.training.checkpoints.same_tree import check_same_leaves
from bn_jax.training.checkpoints.saved import (
    FORMAT_VERSION,
    Saved,
    read_run_info,
    read_saved,
)
from bn_jax.training.distributed.processes import LostProcessError
from bn_jax.training.step.state import TrainState

_TEMPORARY = "*.orbax-checkpoint-tmp*"


class Checkpoints(AbstractContextManager):
    """The checkpoints of one run, in a folder of their own.

    Orbax writes a checkpoint in the background; it appears as a whole or not at all.
    Leaving the context waits for the last one. Each has a manifest of checksums:
    without it, a flipped bit would be restored without a warning.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        config: Mapping[str, Any] | None = None,
        num_classes: int | None = None,
    ) -> None:
        """Opens the folder, and creates it if it is missing.

        Args:
            folder: Folder of the checkpoints.
            keep: Number of the newest checkpoints to keep.
            config: JSON-ready configuration that is saved with each checkpoint; None
                to read only.
            num_classes: Number of scores of the network, which is saved as well.

        Raises:
            UserError: If `folder` is a file.
        """
        self._folder = folder.absolute()
        self._config = config
        self._num_classes = num_classes
        self._open = partial(
            _open, self._folder, keep=keep, is_read_only=config is None
        )
        self._manager = self._open()

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Waits for the last checkpoint.

        After an error, an error of Orbax is logged and not raised, so that the first
        error reaches the user.
        """
        if error is None:
            self.wait()
            self._manager.close()
            return
        try:
            self._manager.close()
        except Exception as second:
            # Orbax re-raises any error of its threads, of whatever class.
            logging.error("%s: the last checkpoint is lost: %s", self._folder, second)

    def save(self, state: TrainState, *, step: int) -> None:
        """Begins to write the state, unless a checkpoint of that step exists.

        Args:
            state: State after `step` steps; the caller may donate it afterwards.
            step: Name of the checkpoint.

        Raises:
            UserError: If the previous checkpoint could not be written.
            LostProcessError: If the processes did not complete the previous checkpoint
                together.
        """
        if step in self._manager.all_steps():
            return
        # Orbax writes a copy, because the next step overwrites the donated state.
        tree = jax.tree.map(lambda leaf: leaf.copy(), _as_arrays(state))
        run_info = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "config": self._config,
            "num_classes": self._num_classes,
        }
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree), run=ocp.args.JsonSave(run_info)
                ),
            )
        except (OSError, ValueError) as error:
            raise _write_error(self._folder, error) from error

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
            UserError: If the last checkpoint could not be written.
            LostProcessError: If the processes did not complete it together.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise _write_error(self._folder, error) from error

    def restore_latest(self, like: TrainState) -> TrainState | None:
        """Returns the newest intact state, or None if there is no checkpoint.

        A warning names each newer, damaged checkpoint. It moves to `damaged/` beside
        the folder, unless `config=None` opened the checkpoints for reading only.

        Args:
            like: State or shapes of a state, with the shapes, dtypes and shardings to
                restore to.

        Raises:
            UserError: If all checkpoints are damaged, or the newest intact one is of
                another model or of a newer version of this library.
        """
        step = self._newest_intact()
        if step is None:
            return None
        return _restore(self._manager, self._folder, step, like)

    def read(self, step: int | None = None) -> Saved | None:
        """Returns what a checkpoint holds, or None if there is no checkpoint.

        Args:
            step: Name of the checkpoint; None for the newest intact one.

        Raises:
            UserError: If there is no such checkpoint, it is damaged, or it is of a
                newer version of this library.
        """
        if step is None:
            step = self._newest_intact()
        elif step not in (steps := self._manager.all_steps()):
            raise UserError(
                f"{self._folder}: must hold a checkpoint of step {step}, but holds "
                f"those of {', '.join(map(str, sorted(steps))) or 'no step'}."
            )
        elif damage := describe_damage(self._folder / str(step)):
            raise UserError(
                f"{self._folder}: checkpoint {step} is damaged ({damage}). Name "
                "another step, or restore it from a backup."
            )
        return None if step is None else read_saved(self._manager, self._folder, step)

    def _newest_intact(self) -> int | None:
        # `all_steps` also lists a checkpoint that Orbax still writes, which has no
        # manifest yet.
        self.wait()
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged: dict[int, str] = {}
        for step in steps:
            damage = describe_damage(self._folder / str(step))
            if not damage:
                if damaged and self._config is not None:
                    self._move_aside(damaged)
                return step
            damaged[step] = damage
            logging.warning(
                "%s: checkpoint %d is damaged: %s.", self._folder, step, damage
            )
        if damaged:
            raise UserError(
                f"{self._folder}: all checkpoints are damaged ({sorted(damaged)}); the "
                f"newest one: {damaged[steps[0]]}. Restore one from a backup, or train "
                "from the beginning in another --workdir."
            )
        return None

    def _move_aside(self, damaged: Mapping[int, str]) -> None:
        # Orbax remembers the steps of a folder: it must open the folder again.
        self._manager.close()
        move_aside(self._folder, damaged)
        self._manager = self._open()


def _open(folder: Path, *, keep: int, is_read_only: bool) -> ocp.CheckpointManager:
    # Orbax would report a file in this place only at the first checkpoint.
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"{folder}: must be the folder of the checkpoints, but is a "
            "file. Move it away, or choose another --workdir."
        )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=not is_read_only,
        async_options=ocp.options.AsyncOptions(
            timeout_secs=120,
            # The primary process calls it when the files are complete and the
            # folder still has its temporary name. Thus the manifest appears
            # together with the files.
            post_finalization_callback=partial(_write_manifest, folder),
        ),
    )
    return ocp.CheckpointManager(
        folder,
        item_handlers={
            "state": ocp.StandardCheckpointHandler(),
            "run": ocp.JsonCheckpointHandler(),
        },
        options=options,
    )


def _write_manifest(folder: Path) -> None:
    for checkpoint in folder.glob(_TEMPORARY):
        write_manifest(checkpoint)


def _restore(
    manager: ocp.CheckpointManager, folder: Path, step: int, like: TrainState
) -> TrainState:
    read_run_info(manager, folder, step)
    target = jax.tree.map(
        lambda shape, leaf: shape.update(sharding=leaf.sharding),
        jax.eval_shape(_as_arrays, like),
        _as_dict(like),
    )
    saved = manager.item_metadata(step)["state"]
    check_same_leaves(f"{folder}: checkpoint {step}", saved, target)
    arrays: Any = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
    )["state"]
    key = jax.random.wrap_key_data(arrays.pop("key"))
    return TrainState(**{"collections": {}, **arrays}, key=key)


def _as_arrays(state: TrainState) -> dict[str, Any]:
    return {**_as_dict(state), "key": jax.random.key_data(state.key)}


def _as_dict(state: TrainState) -> dict[str, Any]:
    # Orbax stores that a dictionary is empty. Checkpoints of version 0.1 have no entry
    # for these fields, so that an empty one must not have any.
    later = ("collections", "loss_scale")
    fields = state._asdict()
    return {name: value for name, value in fields.items() if name not in later or value}


def _write_error(folder: Path, error: Exception) -> Exception:
    """Returns the error to raise when Orbax could not write a checkpoint."""
    if jax.process_count() > 1 and not _is_write_failure(error):
        return LostProcessError(
            f"{folder}: the processes did not complete a checkpoint together "
            f"({error}). Start all processes again; the run resumes from the last "
            "complete checkpoint."
        )
    return UserError(
        f"{folder}: a checkpoint could not be written ({error}). Earlier checkpoints "
        "are intact; free some space, or choose another --workdir."
    )


def _is_write_failure(error: Exception) -> bool:
    """Returns True if a file could not be written, False if a process is lost.

    Orbax raises ValueError for both a failed write and a lost process; only for a
    failed write does the message contain 'local file'.
    """
    if isinstance(error, OSError):
        return not isinstance(error, ConnectionError | TimeoutError)
    return "local file" in str(error)
