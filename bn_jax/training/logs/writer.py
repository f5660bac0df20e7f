"""The writer of a run's metrics: to a file, to TensorBoard and to the terminal."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from bn_jax.training.logs.display import Display
from bn_jax.workdir.files import drop_metrics_after


class MetricsWriter(AbstractContextManager):
    """Writer of evaluations to `metrics.jsonl` and TensorBoard, which shows progress.

    `Display` describes the bar and the lines.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        num_steps: int,
        log_every: int | None,
        show_progress: bool,
        is_silent: bool = False,
    ) -> None:
        """Stores the settings; `start` opens the files.

        Args:
            workdir: The run's workdir.
            num_steps: Steps of the whole run.
            log_every: Steps between log lines; None for lines at evaluations only.
            show_progress: True to show a progress bar or log lines.
            is_silent: True to write and show nothing, because another process does.
        """
        self._workdir = workdir
        self._num_steps = num_steps
        self._log_every = log_every
        self._show_progress = show_progress
        self._is_silent = is_silent
        self._open = ExitStack()

    def start(self, first_step: int, *, evaluated_until: int) -> None:
        """Opens the files, and removes the metrics of steps after `evaluated_until`.

        Args:
            first_step: Steps taken before; 0 for a new run.
            evaluated_until: Step up to which all evaluations are written.
        """
        if self._is_silent:
            return
        self._evaluated: Mapping[str, Any] | None = None
        drop_metrics_after(self._workdir, evaluated_until)
        path = self._workdir / "metrics.jsonl"
        self._file = self._open.enter_context(path.open("a"))
        writer = SummaryWriter(str(self._workdir), purge_step=evaluated_until + 1)
        self._tensorboard = self._open.enter_context(closing(writer))
        self._display = self._open.enter_context(
            Display(
                first_step,
                self._num_steps,
                log_every=self._log_every,
                show_progress=self._show_progress,
            )
        )

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
        self._evaluated = values
        for name, value in values.items():
            if value is None:
                continue
            scalars = {name: value}
            if isinstance(value, Sequence):
                scalars = {f"{name}/{i}": single for i, single in enumerate(value)}
            for tag, scalar in scalars.items():
                self._tensorboard.add_scalar(tag, scalar, step)

    def advance(
        self, step: int, train_loss: float | None, *, steps_per_second: float | None
    ) -> None:
        """Shows the end of a stretch, with the evaluation that was written before.

        Args:
            step: Steps taken.
            train_loss: Mean loss since the last evaluation; None if there is none.
            steps_per_second: Rate so far; None if it is not known yet.
        """
        if self._is_silent:
            return
        self._display.advance(
            step,
            train_loss,
            evaluated=self._evaluated,
            steps_per_second=steps_per_second,
        )
        self._evaluated = None
