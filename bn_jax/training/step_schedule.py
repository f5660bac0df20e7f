"""Steps at which a run stops to evaluate or to write a checkpoint."""

from bisect import bisect_right
from collections.abc import Iterator


class Steps:
    """Set of steps, stored as ranges, so that its cost does not grow with its size.

    >>> steps = Steps(range(10, 30, 10), range(20, 10**9, 20))
    >>> 40 in steps, steps.until(60), steps.after(60)
    (True, [10, 20, 40, 60], 80)
    """

    def __init__(self, *ranges: range) -> None:
        """Stores the ranges, which may share steps.

        Args:
            *ranges: Ranges of increasing steps.
        """
        self._ranges = ranges

    def __contains__(self, step: int) -> bool:
        """Returns True if a step is in the set."""
        return any(step in steps for steps in self._ranges)

    def __or__(self, other: "Steps") -> "Steps":
        """Returns the union of two sets."""
        return Steps(*self._ranges, *other._ranges)

    def until(self, last: int) -> list[int]:
        """Returns the steps up to and including `last`, in order.

        Args:
            last: Upper limit, which need not be in the set.
        """
        ranges = (steps[: bisect_right(steps, last)] for steps in self._ranges)
        return sorted({step for steps in ranges for step in steps})

    def after(self, step: int) -> int | None:
        """Returns the first step of the set after `step`; None if there is none.

        Args:
            step: Lower limit, which need not be in the set.
        """
        ranges = (steps[bisect_right(steps, step) :] for steps in self._ranges)
        return min((steps[0] for steps in ranges if steps), default=None)


def evaluation_steps(
    num_steps: int, *, early_every_steps: int, early_until_step: int, every_steps: int
) -> Steps:
    """Returns the steps after which the model is evaluated, the last step included.

    Args:
        num_steps: Steps of the whole run.
        early_every_steps: Steps between evaluations up to `early_until_step`.
        early_until_step: Last step of the early part of the run.
        every_steps: Steps between evaluations after `early_until_step`, at multiples
            of this number.

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
    """Returns the steps after which the state is saved, the last step included.

    Args:
        num_steps: Steps of the whole run.
        every_steps: Steps between checkpoints.

    >>> checkpoint_steps(60, every_steps=25).until(60)
    [25, 50, 60]
    """
    return Steps(
        range(every_steps, num_steps, every_steps), range(num_steps, num_steps + 1)
    )


def stretches(
    first_step: int, num_steps: int, *, stops: Steps, max_steps: int
) -> Iterator[tuple[int, int]]:
    """Yields a run's stretches, as pairs of the steps taken before and after each.

    A stretch is a sequence of training steps that one call of a compiled program runs.

    Args:
        first_step: Steps taken before the first stretch.
        num_steps: Steps of the whole run.
        stops: Steps after which a stretch must end.
        max_steps: Number of steps in the longest stretch.

    >>> list(stretches(0, 10, stops=Steps(range(4, 5)), max_steps=5))
    [(0, 4), (4, 9), (9, 10)]
    """
    start = first_step
    while start < num_steps:
        stop = stops.after(start)
        end = min(start + max_steps, num_steps, num_steps if stop is None else stop)
        yield start, end
        start = end
