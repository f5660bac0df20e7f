"""The writer of a run's metrics: to a file, to TensorBoard and to the terminal."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path

from absl import logging
from tensorboardX import SummaryWriter
from tqdm import tqdm

from bn_jax.workdir.files import drop_metrics_after


class MetricsWriter(AbstractContextManager):
    """Writer of evaluations to `metrics.jsonl` and TensorBoard, which shows progress.

    On a terminal it shows a progress bar with step, loss, accuracy, steps per second
    and time left. Elsewhere it logs a line every `log_every` steps.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        num_steps: int,
        log_every: int,
        show_progress: bool,
        is_silent: bool = False,
    ) -> None:
        """Stores the settings; `start` opens the files.

        Args:
            workdir: The run's workdir.
            num_steps: Steps of the whole run.
            log_every: Steps between log lines.
            show_progress: True to show a progress bar or log lines.
            is_silent: True to write and show nothing, because another process does.
        """
        self._workdir = workdir
        self._num_steps = num_steps
        self._log_every = log_every
        self._show_progress = show_progress
        self._is_silent = is_silent
        self._open = ExitStack()

    def start(self, first_step: int) -> None:
        """Opens the files, and removes the metrics of steps after `first_step`.

        Args:
            first_step: Steps taken before; 0 for a new run.
        """
        if self._is_silent:
            return
        self._started_at = self._logged_at = first_step
        self._started = time.monotonic()
        self._shown: dict[str, float] = {}
        drop_metrics_after(self._workdir, first_step)
        path = self._workdir / "metrics.jsonl"
        self._file = self._open.enter_context(path.open("a"))
        writer = SummaryWriter(str(self._workdir), purge_step=first_step + 1)
        self._tensorboard = self._open.enter_context(closing(writer))
        bar = tqdm(
            initial=first_step,
            total=self._num_steps,
            unit="step",
            # None shows the bar only on a terminal.
            disable=None if self._show_progress else True,
        )
        self._bar = self._open.enter_context(closing(bar))

    def __exit__(self, *_: object) -> None:
        """Closes the files and the progress bar."""
        self._open.close()

    def write(
        self, step: int, values: Mapping[str, float | Sequence[float] | None]
    ) -> None:
        """Writes one evaluation.

        Args:
            step: Steps taken before the evaluation.
            values: Measured values by name; None for a value that does not exist.
        """
        if self._is_silent:
            return
        line = json.dumps({"step": step, **values}, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()
        self._shown = {}
        for name, value in values.items():
            if value is None:
                continue
            if isinstance(value, Sequence):
                scalars = {f"{name}/{i}": single for i, single in enumerate(value)}
            else:
                scalars = {name: value}
                self._shown[name] = value
            for tag, scalar in scalars.items():
                self._tensorboard.add_scalar(tag, scalar, step)

    def advance(self, step: int, train_loss: float | None) -> None:
        """Shows the progress of the run.

        Args:
            step: Steps taken.
            train_loss: Mean loss since the last evaluation; None if there is none.
        """
        if self._is_silent:
            return
        shown = dict(self._shown)
        if train_loss is not None:
            shown["train_loss"] = train_loss
        self._bar.set_postfix({name: f"{v:.4f}" for name, v in shown.items()}, False)
        self._bar.update(step - self._bar.n)
        is_due = step // self._log_every > self._logged_at // self._log_every
        logs_lines = self._show_progress and self._bar.disable
        if not logs_lines or not (is_due or step == self._num_steps):
            return
        self._logged_at = step
        rate = (step - self._started_at) / (time.monotonic() - self._started)
        logging.info(
            "step %d of %d, %s, %.3g steps/s, %.0f s left",
            step,
            self._num_steps,
            ", ".join(f"{name} {value:.4f}" for name, value in shown.items()),
            rate,
            (self._num_steps - step) / rate,
        )
