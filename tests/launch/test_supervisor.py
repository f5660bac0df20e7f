"""Ends of local processes: whose code counts, what signals do, and who is killed."""

import signal
import sys
from pathlib import Path

import pytest
from launched import COUNT_SIGNALS, is_alive, pids_of, program, until

import bn_jax.launch.supervisor
from bn_jax.launch.launcher import launch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs sigtimedwait")

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets late processes be ended after a moment."""
    for name in ("SECONDS_TO_END", "SECONDS_TO_SAVE", "SECONDS_TO_DIE"):
        monkeypatch.setattr(bn_jax.launch.supervisor, name, 0.2)


def test_the_code_is_that_of_the_first_to_fail(tmp_path: Path, capfd: Capture) -> None:
    text = """
meet()
if index == 1:
    sys.exit(7)
first = folder / "ready1"
while Path(f"/proc/{first.read_text()}").exists():
    time.sleep(0.01)
sys.exit(3)
"""
    assert launch(program(tmp_path, text), num_processes=3) == 7
    assert capfd.readouterr().err == "[launch] process 1 ended with code 7.\n"


@pytest.mark.usefixtures("short_waits")
def test_whoever_outlives_a_failure_is_terminated(
    tmp_path: Path, capfd: Capture
) -> None:
    text = """
hold(signal.SIGTERM)
meet()
if index == 0:
    sys.exit(1)
wait_for(signal.SIGTERM)
print("terminated")
"""
    assert launch(program(tmp_path, text), num_processes=2) == 1
    out, err = capfd.readouterr()
    assert out == "[1] terminated\n"
    assert "process 0 ended with code 1." in err
    assert "process 1 is still running; sending SIGTERM." in err
    assert not any(map(is_alive, pids_of(tmp_path)))


def test_a_process_that_is_killed_gives_the_code_of_its_signal(
    tmp_path: Path, capfd: Capture
) -> None:
    text = """
meet()
if index == 1:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert launch(program(tmp_path, text), num_processes=2) == 137
    expected = "[launch] process 1 was killed by SIGKILL (code 137).\n"
    assert capfd.readouterr().err == expected


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_reaches_each_process_exactly_once(
    tmp_path: Path, capfd: Capture, name: str
) -> None:
    number = int(signal.Signals[name])
    text = f"def begin(): index or os.kill(os.getppid(), {number})\n"
    code = launch(program(tmp_path, text + COUNT_SIGNALS), num_processes=2)
    assert code == 128 + number
    out, err = capfd.readouterr()
    expected = [f"[{i}] signal {number}, then None" for i in range(2)]
    assert sorted(out.splitlines()) == expected
    assert err == f"[launch] forwarding {name} to all processes.\n"


def test_a_second_signal_is_passed_on_as_well(tmp_path: Path, capfd: Capture) -> None:
    text = """
hold(signal.SIGINT)
meet()
os.kill(os.getppid(), signal.SIGINT)
wait_for(signal.SIGINT)
os.kill(os.getppid(), signal.SIGINT)
print(wait_for(signal.SIGINT))
sys.exit(130)
"""
    assert launch(program(tmp_path, text), num_processes=1) == 130
    assert capfd.readouterr().out == "[0] 2\n"


@pytest.mark.usefixtures("short_waits")
def test_a_process_that_ignores_sigterm_is_killed(
    tmp_path: Path, capfd: Capture
) -> None:
    text = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
meet()
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""
    assert launch(program(tmp_path, text), num_processes=1) == 143
    assert "process 0 is still running; sending SIGKILL." in capfd.readouterr().err
    assert not any(map(is_alive, pids_of(tmp_path)))


def test_what_a_process_started_ends_with_it(tmp_path: Path, capfd: Capture) -> None:
    text = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(folder / "ready").write_text(str(child.pid))
"""
    assert launch(program(tmp_path, text), num_processes=1) == 0
    pids = pids_of(tmp_path)
    assert len(pids) == 1
    assert until(lambda: not any(map(is_alive, pids)))
