"""When a run stops to evaluate, and how it is cut into stretches."""

from hypothesis import given
from hypothesis import strategies as st

from bn_jax.training.step_schedule import (
    Steps,
    checkpoint_steps,
    evaluation_steps,
    stretches,
)

STEPS = st.integers(1, 60)


def test_evaluations_are_dense_at_first_and_rare_later() -> None:
    steps = evaluation_steps(
        50_000, early_every_steps=50, early_until_step=5000, every_steps=500
    )
    expected = {*range(50, 5001, 50), *range(5500, 50_001, 500)}
    assert steps.until(50_000) == sorted(expected)


@given(STEPS, STEPS, st.integers(0, 60), STEPS)
def test_the_last_step_is_evaluated_and_none_after_it(
    num_steps: int, early_every: int, early_until: int, every: int
) -> None:
    steps = evaluation_steps(
        num_steps,
        early_every_steps=early_every,
        early_until_step=early_until,
        every_steps=every,
    )
    assert num_steps in steps
    assert steps.after(num_steps) is None
    assert steps.after(0) == min(steps.until(num_steps))


def test_without_an_early_phase_only_the_late_distance_counts() -> None:
    steps = evaluation_steps(10, early_every_steps=1, early_until_step=0, every_steps=4)
    assert steps.until(10) == [4, 8, 10]


def test_a_run_shorter_than_the_first_distance_is_evaluated_at_its_end() -> None:
    steps = evaluation_steps(
        7, early_every_steps=50, early_until_step=5000, every_steps=500
    )
    assert steps.until(7) == [7]


@given(st.integers(0, 60), STEPS, st.sets(st.integers(0, 70)), STEPS)
def test_stretches_follow_each_other_from_the_first_step_to_the_last(
    first_step: int, num_steps: int, stops: set[int], max_steps: int
) -> None:
    first_step = min(first_step, num_steps)
    pieces = list(
        stretches(first_step, num_steps, stops=_single(stops), max_steps=max_steps)
    )
    taken = [step for start, end in pieces for step in range(start, end)]
    assert taken == list(range(first_step, num_steps))


@given(STEPS, st.sets(STEPS), STEPS)
def test_a_stretch_is_short_enough_and_passes_no_stop(
    num_steps: int, stops: set[int], max_steps: int
) -> None:
    pieces = stretches(0, num_steps, stops=_single(stops), max_steps=max_steps)
    for start, end in pieces:
        assert 0 < end - start <= max_steps
        assert end <= num_steps
        assert not any(start < stop < end for stop in stops)


def test_a_complete_run_has_no_stretch_left() -> None:
    assert list(stretches(10, 10, stops=_single({5, 10}), max_steps=3)) == []


def _single(steps: set[int]) -> Steps:
    return Steps(*(range(step, step + 1) for step in steps))


ROWS = st.lists(st.builds(range, STEPS, st.integers(1, 90), STEPS), max_size=3)


@given(ROWS, ROWS, STEPS)
def test_rows_of_steps_are_the_set_of_their_steps(
    some: list[range], others: list[range], step: int
) -> None:
    steps = Steps(*some) | Steps(*others)
    expected = {number for row in some + others for number in row}
    assert steps.until(90) == sorted(expected)
    assert steps.until(step) == sorted(n for n in expected if n <= step)
    assert steps.after(step) == min((n for n in expected if n > step), default=None)
    assert (step in steps) == (step in expected)


def test_a_checkpoint_is_written_at_the_end_and_at_equal_distances_before() -> None:
    assert checkpoint_steps(50, every_steps=25).until(50) == [25, 50]
    assert checkpoint_steps(7, every_steps=25).until(7) == [7]


def test_a_run_of_any_length_is_planned_at_once() -> None:
    num_steps = 10**15
    saved = checkpoint_steps(num_steps, every_steps=3)
    evaluated = evaluation_steps(
        num_steps, early_every_steps=1, early_until_step=num_steps - 9, every_steps=5
    )
    pieces = stretches(0, num_steps, stops=saved | evaluated, max_steps=10)
    assert next(pieces) == (0, 1)
    assert num_steps - 9 in evaluated
    assert num_steps - 8 not in evaluated
