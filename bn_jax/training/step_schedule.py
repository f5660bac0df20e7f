"""The steps at which a run stops to evaluate or to write a checkpoint."""

from bisect import bisect_right
from collections.abc import Iterator


class Steps:
    """Steps in rows of equal distances, however many, at the cost of the rows alone.

    >>> steps = Steps(range(10, 30, 10), range(20, 10**9, 20))
    >>> 40 in steps, steps.until(60), steps.after(60)
    (True, [10, 20, 40, 60], 80)
    """

    def __init__(self, *rows: range) -> None:
        """Joins rows, which may share steps.

        Args:
            *rows: Each in rising order.
        """
        self._rows = rows

    def __contains__(self, step: int) -> bool:
        """Whether a step is in any of the rows."""
        return any(step in row for row in self._rows)

    def __or__(self, other: "Steps") -> "Steps":
        """The steps of both."""
        return Steps(*self._rows, *other._rows)

    def until(self, last: int) -> list[int]:
        """All steps up to one, which is among them if it is one of them, in order.

        Args:
            last: That step.
        """
        rows = (row[: bisect_right(row, last)] for row in self._rows)
        return sorted({step for row in rows for step in row})

    def after(self, step: int) -> int | None:
        """The first one after a step, or None where there is none.

        Args:
            step: That step, one of them or not.
        """
        rows = (row[bisect_right(row, step) :] for row in self._rows)
        return min((row[0] for row in rows if row), default=None)


def evaluation_steps(
    num_steps: int, *, early_every_steps: int, early_until_step: int, every_steps: int
) -> Steps:
    """Steps after which the model is evaluated, the last one always among them.

    Args:
        num_steps: Steps of the whole run.
        early_every_steps: Distance between evaluations at first.
        early_until_step: Step up to which that holds.
        every_steps: Distance afterwards.

    >>> evaluation_steps(
    ...     90, early_every_steps=10, early_until_step=20, every_steps=30
    ... ).until(90)
    [10, 20, 30, 60, 90]
    """
    last_early = min(early_until_step, num_steps)
    first_late = (early_until_step // every_steps + 1) * every_steps
    return Steps(
        range(early_every_steps, last_early + 1, early_every_steps),
        range(first_late, num_steps, every_steps),
        range(num_steps, num_steps + 1),
    )


def checkpoint_steps(num_steps: int, *, every_steps: int) -> Steps:
    """Steps after which the state is saved, the last one always among them.

    Args:
        num_steps: Steps of the whole run.
        every_steps: Distance between checkpoints.

    >>> checkpoint_steps(60, every_steps=25).until(60)
    [25, 50, 60]
    """
    return Steps(
        range(every_steps, num_steps, every_steps), range(num_steps, num_steps + 1)
    )


def chunks(
    first_step: int, num_steps: int, *, stops: Steps, max_steps: int
) -> Iterator[tuple[int, int]]:
    """Stretches of steps that run without a stop, as pairs of first and last step.

    Args:
        first_step: Steps taken before.
        num_steps: Steps of the whole run.
        stops: Steps after which a stretch must end.
        max_steps: Longest stretch.

    >>> list(chunks(0, 10, stops=Steps(range(4, 5)), max_steps=5))
    [(0, 4), (4, 9), (9, 10)]
    """
    start = first_step
    while start < num_steps:
        stop = stops.after(start)
        end = min(start + max_steps, num_steps, num_steps if stop is None else stop)
        yield start, end
        start = end
