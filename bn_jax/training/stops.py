"""The steps at which a run stops to evaluate or to write a checkpoint."""

from collections.abc import Collection, Iterator


def evaluation_steps(
    num_steps: int, *, early_every_steps: int, early_until_step: int, every_steps: int
) -> frozenset[int]:
    """Steps after which the model is evaluated, the last one always among them.

    Args:
        num_steps: Steps of the whole run.
        early_every_steps: Distance between evaluations at first.
        early_until_step: Step up to which that holds.
        every_steps: Distance afterwards.

    >>> sorted(
    ...     evaluation_steps(
    ...         90, early_every_steps=10, early_until_step=20, every_steps=30
    ...     )
    ... )
    [10, 20, 30, 60, 90]
    """
    early = range(early_every_steps, early_until_step + 1, early_every_steps)
    late = range(every_steps, num_steps + 1, every_steps)
    return frozenset(
        [step for step in early if step <= num_steps]
        + [step for step in late if step > early_until_step]
        + [num_steps]
    )


def chunks(
    first_step: int, num_steps: int, *, stops: Collection[int], max_steps: int
) -> Iterator[tuple[int, int]]:
    """Stretches of steps that run without a stop, as pairs of first and last step.

    Args:
        first_step: Steps taken before.
        num_steps: Steps of the whole run.
        stops: Steps after which a stretch must end.
        max_steps: Longest stretch.

    >>> list(chunks(0, 10, stops=[4], max_steps=5))
    [(0, 4), (4, 9), (9, 10)]
    """
    start = first_step
    for stop in sorted({stop for stop in stops if first_step < stop} | {num_steps}):
        while start < stop:
            end = min(start + max_steps, stop)
            yield start, end
            start = end
