"""Where the figures of a run go: a file, TensorBoard, and whoever watches."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from absl import logging
from tensorboardX import SummaryWriter
from tqdm import tqdm

from bn_jax.workdir import drop_metrics_after

_SECONDS_BETWEEN_LOG_LINES = 5.0


class MetricsWriter:
    """Writes each evaluation to `metrics.jsonl` and to TensorBoard, and shows it.

    On a terminal there is a progress bar with step, loss, accuracy, steps per second
    and time left; elsewhere a log line every few seconds.
    """

    def __init__(
        self, workdir: Path, *, first_step: int, num_steps: int, show_progress: bool
    ) -> None:
        """Opens the files; lines of steps after `first_step` are dropped.

        Args:
            workdir: The run's folder.
            first_step: Steps that were taken before; 0 for a new run.
            num_steps: Steps that the run takes in all.
            show_progress: Whether to show anything.
        """
        self._first_step = first_step
        self._num_steps = num_steps
        self._show_progress = show_progress
        drop_metrics_after(workdir, first_step)
        self._file = (workdir / "metrics.jsonl").open("a")
        self._tensorboard = SummaryWriter(str(workdir), purge_step=first_step + 1)
        self._bar = tqdm(
            initial=first_step,
            total=num_steps,
            unit="step",
            # None: only on a terminal.
            disable=None if show_progress else True,
        )
        self._started = self._logged = time.monotonic()

    def __enter__(self) -> "MetricsWriter":
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the files and the progress bar."""
        self._bar.close()
        self._tensorboard.close()
        self._file.close()

    def write(self, step: int, values: Mapping[str, float | Sequence[float]]) -> None:
        """Writes one evaluation.

        Args:
            step: Steps taken before it.
            values: What was measured, by name.
        """
        line = json.dumps({"step": step, **values}, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, Sequence):
                scalars = {f"{name}/{i}": single for i, single in enumerate(value)}
            else:
                scalars = {name: value}
            for tag, scalar in scalars.items():
                self._tensorboard.add_scalar(tag, scalar, step)
        shown = {name: v for name, v in values.items() if not isinstance(v, Sequence)}
        self._bar.set_postfix({name: f"{v:.4f}" for name, v in shown.items()}, False)
        self._log(step, shown)

    def advance(self, step: int) -> None:
        """Moves the progress bar.

        Args:
            step: Steps taken.
        """
        self._bar.update(step - self._bar.n)

    def _log(self, step: int, values: Mapping[str, float | Sequence[float]]) -> None:
        now = time.monotonic()
        is_due = now - self._logged >= _SECONDS_BETWEEN_LOG_LINES
        is_wanted = self._show_progress and self._bar.disable
        if not is_wanted or not (is_due or step == self._num_steps):
            return
        self._logged = now
        rate = (step - self._first_step) / (now - self._started)
        logging.info(
            "step %d of %d, %s, %.0f steps/s, %.0f s left",
            step,
            self._num_steps,
            ", ".join(f"{name} {value:.4f}" for name, value in values.items()),
            rate,
            (self._num_steps - step) / rate,
        )
