"""Checkpoints of everything that a run needs to go on, by Orbax, with checksums."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from bn_jax.errors import UserError
from bn_jax.training.checkpoints.manifest import damaged_files, write_manifest
from bn_jax.training.checkpoints.same_tree import check_same_leaves
from bn_jax.training.distributed.processes import LostProcessError
from bn_jax.training.state import TrainState

FORMAT_VERSION = 1
_TEMPORARY = "*.orbax-checkpoint-tmp*"


class Checkpoints(AbstractContextManager):
    """The checkpoints of one run, in a folder of their own.

    They are written in the background and appear whole or not at all; leaving the
    context waits for the last. Each has a manifest of checksums, without which a
    flipped bit would be restored as if nothing were wrong.
    """

    def __init__(
        self, folder: Path, *, keep: int, config: Mapping[str, Any] | None = None
    ) -> None:
        """Opens the folder, and makes it if it is not there.

        Args:
            folder: Where the checkpoints lie.
            keep: How many of the newest are kept.
            config: Configuration of the run, JSON-ready, saved with each; None to
                read only.

        Raises:
            UserError: If it is a file.
        """
        self._folder = folder.absolute()
        self._config = config
        self._keep = keep
        self._manager = self._open()

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Waits until everything is on disk."""
        if error is None:
            self.wait()
            self._manager.close()
            return
        try:
            self._manager.close()
        except Exception as second:
            # Orbax passes on whatever its threads have raised. What has ended the run
            # is to be told, and a second error would hide it.
            logging.error("%s: the last checkpoint is lost: %s", self._folder, second)

    def save(self, state: TrainState, *, step: int) -> None:
        """Begins to write the state, unless that step is there already.

        Args:
            state: State after `step` steps; it may be given away once this returns.
            step: Names the checkpoint.

        Raises:
            UserError: If the one before could not be written.
            LostProcessError: If the processes did not complete it together.
        """
        if step in self._manager.all_steps():
            return
        # Copied, because the next step overwrites the state while it is written.
        tree = jax.tree.map(lambda leaf: leaf.copy(), _as_arrays(state))
        about = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "config": self._config,
        }
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree), run=ocp.args.JsonSave(about)
                ),
            )
        except (OSError, ValueError) as error:
            raise self._not_written(error) from error

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
            UserError: If the last checkpoint could not be written.
            LostProcessError: If the processes did not complete it together.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._not_written(error) from error

    def restore_latest(self, like: TrainState) -> TrainState | None:
        """The newest state that is intact, or None when there is no checkpoint.

        Newer ones that are damaged are named in a warning and moved aside, to
        `damaged/` beside the folder, when the checkpoints are not only read.

        Args:
            like: A state of the shapes, dtypes and devices to restore to, which
                needs no values.

        Raises:
            UserError: If there are checkpoints and none is intact, one is of another
                model, or of a newer version of this library.
        """
        # A step that is being written has no manifest yet.
        self.wait()
        steps = sorted(self._manager.all_steps(), reverse=True)
        damage: dict[int, str] = {}
        for step in steps:
            wrong = self._what_is_wrong(step)
            if not wrong:
                if damage:
                    self._move_aside(damage)
                return self._restore(step, like)
            damage[step] = wrong
            logging.warning(
                "%s: checkpoint %d is damaged: %s.", self._folder, step, wrong
            )
        if damage:
            raise UserError(
                f"{self._folder}: none of the checkpoints {sorted(damage)} is intact; "
                f"the newest: {damage[steps[0]]}. Bring one back from a copy, or train "
                "anew in another --workdir."
            )
        return None

    def _open(self) -> ocp.CheckpointManager:
        # Orbax would not say so before the first checkpoint is to be written.
        if self._folder.exists() and not self._folder.is_dir():
            raise UserError(
                f"{self._folder}: it must be the folder of the checkpoints, and is a "
                "file. Move it away, or choose another --workdir."
            )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            create=self._config is not None,
            async_options=ocp.options.AsyncOptions(
                timeout_secs=120,
                # Called by the first process, when the files are complete and the
                # folder still has its temporary name: the manifest is part of what
                # appears at once.
                post_finalization_callback=self._write_manifest,
            ),
        )
        return ocp.CheckpointManager(
            self._folder,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "run": ocp.JsonCheckpointHandler(),
            },
            options=options,
        )

    def _write_manifest(self) -> None:
        for folder in self._folder.glob(_TEMPORARY):
            write_manifest(folder)

    def _what_is_wrong(self, step: int) -> str:
        """In words, and in those of the first process; empty if the step is intact."""
        is_damaged, wrong = False, ""
        if jax.process_index() == 0:
            wrong = "; ".join(damaged_files(self._folder / str(step)))
            is_damaged = bool(wrong)
        if jax.process_count() > 1:
            is_damaged = bool(
                multihost_utils.broadcast_one_to_all(np.asarray(is_damaged))
            )
        return wrong or ("the first process says which files" if is_damaged else "")

    def _move_aside(self, damaged: Mapping[int, str]) -> None:
        if self._config is None:
            return
        self._manager.close()
        if jax.process_index() == 0:
            aside = self._folder.with_name("damaged")
            aside.mkdir(exist_ok=True)
            for step in damaged:
                target = aside / str(step)
                number = 1
                while target.exists():
                    number += 1
                    target = aside / f"{step}-{number}"
                (self._folder / str(step)).rename(target)
                logging.warning("Checkpoint %d now lies in %s.", step, target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("bn_jax: damaged checkpoints aside")
        self._manager = self._open()

    def _restore(self, step: int, like: TrainState) -> TrainState:
        about: Any = self._manager.restore(
            step, args=ocp.args.Composite(run=ocp.args.JsonRestore())
        )["run"]
        if about["format_version"] > FORMAT_VERSION:
            raise UserError(
                f"{self._folder}: checkpoint {step} has format "
                f"{about['format_version']}, and this version of bn_jax reads up to "
                f"{FORMAT_VERSION}; install a newer one."
            )
        target = jax.tree.map(
            lambda shape, leaf: shape.update(sharding=leaf.sharding),
            jax.eval_shape(_as_arrays, like),
            like._asdict(),
        )
        saved = self._manager.item_metadata(step)["state"]
        check_same_leaves(f"{self._folder}: checkpoint {step}", saved, target)
        arrays: Any = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
        )["state"]
        key = jax.random.wrap_key_data(arrays.pop("key"))
        return TrainState(**arrays, key=key)

    def _not_written(self, error: Exception) -> Exception:
        if jax.process_count() > 1 and not _is_of_a_file(error):
            return LostProcessError(
                f"{self._folder}: the processes did not complete a checkpoint "
                f"together ({error})."
            )
        return UserError(
            f"{self._folder}: a checkpoint could not be written ({error}). Earlier "
            "ones are as they were; make room, or choose another --workdir."
        )


def _is_of_a_file(error: Exception) -> bool:
    """Whether a file could not be written, rather than another process be reached.

    Orbax raises a ValueError for both; where it is a file's, it names it.
    """
    if isinstance(error, OSError):
        return not isinstance(error, ConnectionError | TimeoutError)
    return "local file" in str(error)


def _as_arrays(state: TrainState) -> dict[str, Any]:
    return {**state._asdict(), "key": jax.random.key_data(state.key)}
