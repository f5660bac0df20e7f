"""Local processes: who they are, whose children, and what cannot be launched."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launched import COUNT_SIGNALS, is_alive, pids_of, program, until

import bn_jax.launch.launcher
from bn_jax.errors import UserError
from bn_jax.launch.launcher import launch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs sigtimedwait")

LAUNCHER = """
import sys
from bn_jax.launch.launcher import launch
sys.exit(launch(sys.argv[1:], num_processes=2))
"""

Capture = pytest.CaptureFixture[str]


def test_every_process_learns_who_it_is_and_where_the_others_are(
    tmp_path: Path, capfd: Capture
) -> None:
    command = program(tmp_path, "print(words)")
    assert launch(command, num_processes=3) == 0
    lines = sorted(capfd.readouterr().out.splitlines())
    assert [line[:3] for line in lines] == ["[0]", "[1]", "[2]"]
    children = [eval(line[4:]) for line in lines]
    assert [child["process_id"] for child in children] == ["0", "1", "2"]
    assert {child["num_processes"] for child in children} == {"3"}
    (address,) = {child["coordinator_address"] for child in children}
    assert address.startswith("127.0.0.1:")


def test_the_coordinator_listens_to_this_machine_only(
    tmp_path: Path, capfd: Capture
) -> None:
    name = "JAX_COORDINATOR_BIND_ADDRESS"
    same = f"os.environ[{name!r}] == words['coordinator_address']"
    assert launch(program(tmp_path, f"print({same})"), num_processes=1) == 0
    assert capfd.readouterr().out == "[0] True\n"


def test_the_launcher_leaves_signals_as_it_found_them(tmp_path: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    assert launch(program(tmp_path, ""), num_processes=1) == 0
    assert [signal.getsignal(number) for number in numbers] == before


def test_ctrl_c_reaches_each_process_exactly_once(tmp_path: Path) -> None:
    command = program(tmp_path, "def begin(): pass\n" + COUNT_SIGNALS)
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as launcher:
        assert until(lambda: len(pids_of(tmp_path)) == 2)
        # A terminal sends it to its whole foreground group.
        os.killpg(launcher.pid, signal.SIGINT)
        out, _ = launcher.communicate(timeout=20)
    assert launcher.returncode == 130
    assert sorted(out.splitlines()) == [f"[{i}] signal 2, then None" for i in (0, 1)]


def test_no_process_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    command = program(tmp_path, "meet(); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", LAUNCHER, *command]) as launcher:
        assert until(lambda: len(pids_of(tmp_path)) == 2)
        pids = pids_of(tmp_path)
        assert all(map(is_alive, pids))
        launcher.kill()
    assert until(lambda: not any(map(is_alive, pids)))


def test_a_process_whose_launcher_has_died_before_it_began_does_not_begin(
    capfd: Capture,
) -> None:
    shim = [sys.executable, "-c", bn_jax.launch.launcher._DIE_WITH_THE_LAUNCHER]
    # This process is its parent, and the first one of the machine is not.
    assert subprocess.run([*shim, "1", "/bin/echo", "echo", "begun"]).returncode == 1
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("command", "num_processes", "message"),
    [
        (["true"], 0, "--num_processes must be at least 1, but is 0"),
        ([], 2, "the command to run is missing"),
        (["no-such-program"], 2, "command not found: 'no-such-program'"),
        (["./setup.txt"], 2, "command not found: './setup.txt'"),
        (["true", "--process_id=0"], 2, "leave --process_id=0 out"),
        (["true", "-process_id", "0"], 2, "leave -process_id out"),
        (["true", "--num_processes=2"], 2, "launch adds --num_processes itself"),
    ],
)
def test_what_cannot_be_launched_is_refused(
    command: list[str], num_processes: int, message: str
) -> None:
    with pytest.raises(UserError, match=f"launch: .*{message}"):
        launch(command, num_processes=num_processes)


def test_a_program_without_an_interpreter_says_so(
    tmp_path: Path, capfd: Capture
) -> None:
    path = tmp_path / "program"
    path.write_text("text")
    path.chmod(0o755)
    assert launch([str(path)], num_processes=1) == 1
    assert f"[0] {path}: Exec format error" in capfd.readouterr().err
