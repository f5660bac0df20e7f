"""A loss or gradient that is not finite: named, undone; the last good state kept."""

from pathlib import Path

import numpy as np
from faults.conftest import Train
from faults.programs import saved_state, steps

# Parameters so large that a sum over them overflows.
HUGE = {"optimizer__name": "sgd", "optimizer__learning_rate": 1e38}


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_state_saved(
    train: Train, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    (program,) = train(workdir, **HUGE)
    assert program.wait() == 1, program.output
    (said,) = [s for s in program.output.splitlines() if s.startswith("train.py: ")]
    (last_good,) = steps(workdir)
    assert f"is not finite at step {last_good + 1}" in said
    assert "train.py: the loss" in said or "train.py: the gradient of " in said
    state = saved_state(workdir, last_good)
    assert all(np.isfinite(state[name]).all() for name in state)
    # The run resumes from it, and these settings make it fail once more.
    (program,) = train(workdir, **HUGE)
    assert program.wait() == 1
    assert f"resumes after step {last_good}." in program.output
    assert said in program.output


def test_steps_that_are_not_finite_are_counted_until_there_are_too_many(
    train: Train, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    skip = {"on_nonfinite": "skip", "max_nonfinite_steps": 4}
    (program,) = train(workdir, **HUGE, **skip)
    assert program.wait() == 1, program.output
    (said,) = [s for s in program.output.splitlines() if s.startswith("train.py: ")]
    assert ", 4 steps in a row." in said
    last_good = steps(workdir)[-1]
    # The fourth is the one that the state lies before.
    assert saved_state(workdir, last_good)["['tally']['num_skipped']"] == 3


def test_two_processes_name_the_same_step_and_leaf(
    train: Train, tmp_path: Path
) -> None:
    programs = train(tmp_path / "run", num_processes=2, **HUGE)
    assert [program.wait() for program in programs] == [1, 1], programs[1].output
    said = [
        [line for line in p.output.splitlines() if line.startswith("train.py: ")]
        for p in programs
    ]
    assert said[0] == said[1]
    assert "is not finite at step" in said[0][0]
