"""Progress of a run: a bar on a terminal, and lines elsewhere."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from absl import logging
from tqdm import tqdm

from bn_jax.progress import format_duration, format_rate, lines_above_bars

# Columns that the bar itself keeps, so that it can be seen to grow.
_BAR_WIDTH = 15


class Display(AbstractContextManager):
    """Progress of a run: a bar on a terminal, and lines elsewhere.

    Lines are logged at each evaluation, and between evaluations every `log_every`
    steps.
    """

    def __init__(
        self,
        first_step: int,
        num_steps: int,
        *,
        log_every: int | None,
        show_progress: bool,
    ) -> None:
        """Shows the bar if the standard error stream is a terminal.

        Args:
            first_step: Steps taken before; 0 for a new run.
            num_steps: Steps of the whole run.
            log_every: Steps between lines; None for lines at evaluations only.
            show_progress: False to show nothing.
        """
        self._num_steps = num_steps
        self._log_every = log_every
        self._logged_at = first_step
        self._evaluated: dict[str, float] = {}
        self._open = ExitStack()
        self._bar = self._open.enter_context(
            _Bar(
                initial=first_step,
                total=num_steps,
                # None shows the bar only on a terminal.
                disable=None if show_progress else True,
                dynamic_ncols=True,
                miniters=1,
            )
        )
        self._shows_lines = show_progress and self._bar.disable
        if not self._bar.disable:
            self._open.enter_context(lines_above_bars())

    def __exit__(self, *_: object) -> None:
        """Leaves the bar as it is, and starts a new line."""
        self._open.close()

    def advance(
        self,
        step: int,
        train_loss: float | None,
        *,
        evaluated: Mapping[str, float] | None,
        steps_per_second: float | None,
    ) -> None:
        """Shows the end of a stretch.

        Args:
            step: Steps taken.
            train_loss: Mean loss since the last evaluation; None if there is none.
            evaluated: Results of an evaluation at this step; None without one.
            steps_per_second: Rate so far; None if it is not known yet.
        """
        values = {} if train_loss is None else {"train_loss": train_loss}
        rate = []
        if steps_per_second:
            rate = [f"{format_rate(steps_per_second)} steps/s"]
            if step < self._num_steps:
                seconds = (self._num_steps - step) / steps_per_second
                rate.insert(0, f"{format_duration(seconds)} left")
        if evaluated is not None:
            self._evaluated = _of_interest(evaluated)
        self._describe(self._evaluated | values, rate)
        self._bar.update(step - self._bar.n)
        is_due = evaluated is not None or (
            self._log_every is not None
            and step // self._log_every > self._logged_at // self._log_every
        )
        if self._shows_lines and is_due:
            self._logged_at = step
            # An earlier evaluation says nothing about this step.
            values |= self._evaluated if evaluated is not None else {}
            words = [_phrase(name, value) for name, value in values.items()]
            start = f"step {step} of {self._num_steps}"
            logging.info("%s", ", ".join([start, *words, *reversed(rate)]))

    def _describe(self, values: Mapping[str, float], rate: Sequence[str]) -> None:
        """Sets the details beside the bar."""
        first = ("train_loss", "test_accuracy", "validation_accuracy")
        head = {name: values[name] for name in first if name in values}
        self._bar.long = [*map(_phrase, head, head.values()), *rate]
        words = [name.split("_")[1] for name in head]
        self._bar.short = [*map(_phrase, words, head.values()), *rate]
        self._bar.rest = [_phrase(n, values[n]) for n in values if n not in head]


class _Bar(tqdm):
    """A bar with as many details beside it as fit into the line."""

    # In the order of their importance; the first ones in two wordings.
    long: Sequence[str] = ("compiling",)
    short: Sequence[str] = long
    rest: Sequence[str] = ()

    @property
    def format_dict(self) -> dict[str, Any]:
        """Values from which tqdm makes the line."""
        values = dict(super().format_dict)
        count = f"| {self.n}/{self.total}"
        room = (values["ncols"] or 80) - len("100%|") - _BAR_WIDTH - len(count)
        is_wide = room >= sum(len(detail) + 2 for detail in self.long)
        shown = []
        for detail in (*(self.long if is_wide else self.short), *self.rest):
            if room >= len(detail) + 2:
                room -= len(detail) + 2
                shown.append(detail)
        values["bar_format"] = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
        values["postfix"] = ", ".join(shown)
        return values


def _of_interest(evaluated: Mapping[str, Any]) -> dict[str, float]:
    """Returns losses, accuracies and skipped steps, without the results of probes."""
    ends = ("_loss", "_accuracy", "skipped_steps")
    return {
        name: value
        for name, value in evaluated.items()
        if name.endswith(ends) and value is not None
    }


def _phrase(name: str, value: float) -> str:
    number = str(value) if isinstance(value, int) else f"{value:.4f}"
    return f"{name.replace('_', ' ')} {number}"
