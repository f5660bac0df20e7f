"""Processes that are killed: the others end, nothing saved is lost, the run resumes."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.conftest import Train
from faults.programs import (
    LOST_A_PROCESS,
    SECONDS_TO_NOTICE,
    assert_same_end,
    steps,
    until,
    wait_for_all,
)


@pytest.mark.parametrize(
    ("num_processes", "victim"), [(2, 1), (4, 2), (2, 0), (4, 0)], ids=str
)
def test_the_others_end_when_a_process_is_killed_and_the_run_goes_on(
    train: Train,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    num_processes: int,
    victim: int,
) -> None:
    expected = undisturbed(num_processes)
    programs = train(tmp_path / "run", num_processes=num_processes)
    assert until(lambda: steps(tmp_path / "run"))
    programs[victim].send(signal.SIGKILL)
    killed = time.monotonic()
    others = [p for i, p in enumerate(programs) if i != victim]
    codes = [other.wait(SECONDS_TO_NOTICE) for other in others]
    record_property("from SIGKILL to the end of all", time.monotonic() - killed)
    assert programs[victim].wait() == 128 + signal.SIGKILL
    assert set(codes) <= set(LOST_A_PROCESS), [other.output for other in others]
    for other, code in zip(others, codes, strict=True):
        # JAX's runtime aborts with a trace of its own, of the service or of what a
        # thread was doing.
        aborts = ("CoordinationService", "Fatal Python error", "terminate called")
        reasons = ["another process may have ended"] if code == 3 else aborts
        assert any(reason in other.output for reason in reasons), other.output
    assert not (tmp_path / "run" / "summary.json").exists()
    programs = train(tmp_path / "run", num_processes=num_processes)
    assert wait_for_all(programs) == [0] * num_processes, programs[0].output
    assert "resumes after step" in programs[0].output
    assert_same_end(tmp_path / "run", expected)
