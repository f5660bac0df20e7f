"""SIGTERM and SIGINT: all processes save the same step and end; the run resumes."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.conftest import Train
from faults.programs import Program, assert_same_end, steps, until, wait_for_all

Record = Callable[[str, object], None]

# From the signal to the end: what is being computed, a checkpoint and a farewell.
SECONDS_TO_SAVE = 30.0

MOMENTS: dict[str, Callable[[Program, Path], object]] = {
    "at_once": lambda program, workdir: True,
    "while_the_first_steps_are_compiled": lambda program, workdir: (
        "normalization batch" in program.output
    ),
    "in_the_middle": lambda program, workdir: steps(workdir),
}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_one_process_saves_one_step_in_all_and_the_run_goes_on(
    train: Train,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    record_property: Record,
    name: str,
) -> None:
    expected = undisturbed(2)
    programs = train(tmp_path / "run", num_processes=2)
    assert until(lambda: steps(tmp_path / "run"))
    number = signal.Signals[name]
    programs[1].send(number)
    sent = time.monotonic()
    codes = [program.wait(SECONDS_TO_SAVE) for program in programs]
    record_property(f"from {name} to the end of both", time.monotonic() - sent)
    assert codes == [128 + number] * 2, [program.output for program in programs]
    saved = steps(tmp_path / "run")[-1]
    for program in programs:
        assert f"Saved after step {saved}; stopped by a signal." in program.output
    programs = train(tmp_path / "run", num_processes=2)
    assert wait_for_all(programs) == [0, 0], programs[0].output
    assert f"resumes after step {saved}." in programs[0].output
    assert_same_end(tmp_path / "run", expected)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_of_one_process_that_is_stopped_at_any_moment_goes_on(
    train: Train,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    record_property: Record,
    moment: str,
) -> None:
    expected = undisturbed(1)
    (program,) = train(tmp_path / "run")
    assert until(lambda: MOMENTS[moment](program, tmp_path / "run"))
    program.send(signal.SIGTERM)
    sent = time.monotonic()
    code = program.wait(SECONDS_TO_SAVE)
    record_property("from SIGTERM to the end", time.monotonic() - sent)
    assert code == 128 + signal.SIGTERM, program.output
    assert "Traceback" not in program.output
    (program,) = train(tmp_path / "run")
    assert program.wait() == 0, program.output
    assert_same_end(tmp_path / "run", expected)


def test_ctrl_c_before_the_run_begins_ends_it_without_a_traceback(
    train: Train, tmp_path: Path
) -> None:
    # One of two that waits for the other, which does not come.
    program, missing = train(tmp_path / "run", num_processes=2)
    missing.send(signal.SIGSTOP)
    assert until(lambda: _waits_for_another(program))
    program.send(signal.SIGINT)
    assert program.wait(5) == 128 + signal.SIGINT
    assert "Traceback" not in program.output


def test_a_second_signal_ends_a_process_at_once(
    train: Train, tmp_path: Path, record_property: Record
) -> None:
    (program,) = train(tmp_path / "run", model__hidden_features=(9, 9, 9))
    # XLA compiles now, during which Python handles no signal.
    assert until(lambda: "normalization batch" in program.output)
    program.send(signal.SIGTERM)
    program.send(signal.SIGINT)
    sent = time.monotonic()
    assert program.wait(5) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    record_property("from a second signal to the end", time.monotonic() - sent)
    assert "Saved" not in program.output


def _waits_for_another(program: Program) -> bool:
    # The runtime's threads are there once it listens for the other processes.
    return len(list(Path(f"/proc/{program.pid}/task").iterdir())) > 4
