"""Local processes: their output, their ends, their signals, and none left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import bn_jax.launch
from bn_jax.errors import UserError
from bn_jax.launch import launch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs sigtimedwait")

# What every child begins with: its number, and a way to wait for all others.
_PRELUDE = """
import os, signal, sys, time
from pathlib import Path

words = dict(word[2:].split("=") for word in sys.argv[1:] if word.startswith("--"))
index, size = int(words["process_id"]), int(words["num_processes"])
folder = Path(__file__).parent

def meet():
    (folder / f"begun{index}").write_text(str(os.getpid()))
    (folder / f"begun{index}").rename(folder / f"ready{index}")
    for _ in range(1000):
        if all((folder / f"ready{i}").exists() for i in range(size)):
            return
        time.sleep(0.01)
    sys.exit("the others are missing")

def hold(*numbers):
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

def wait_for(*numbers):
    got = signal.sigtimedwait(numbers, 20)
    return got.si_signo if got else 0
"""

# Says which signals it gets, and ends as a program does that saves first.
_COUNT_SIGNALS = """
hold(signal.SIGINT, signal.SIGTERM)
meet()
begin()
first = wait_for(signal.SIGINT, signal.SIGTERM)
second = signal.sigtimedwait([signal.SIGINT, signal.SIGTERM], 0.3)
print(f"signal {first}, then {second}")
sys.exit(128 + first)
"""

_LAUNCHER = """
import sys
from bn_jax.launch import launch
sys.exit(launch(sys.argv[1:], num_processes=2))
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], list[str]]:
    """The command that runs the given lines as a program."""

    def program(text: str) -> list[str]:
        path = tmp_path / "program.py"
        path.write_text(_PRELUDE + text)
        return [sys.executable, str(path)]

    return program


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets late processes be ended after a moment."""
    for name in ("SECONDS_TO_END", "SECONDS_TO_SAVE", "SECONDS_TO_DIE"):
        monkeypatch.setattr(bn_jax.launch, name, 0.2)


Program = Callable[[str], list[str]]
Capture = pytest.CaptureFixture[str]


def _until(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_so()


def _is_alive(pid: int) -> bool:
    try:
        # A zombie has ended; whoever inherited it may not have looked yet.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in sorted(folder.glob("ready*"))]


def test_every_process_learns_who_it_is_and_where_the_others_are(
    program: Program, capfd: Capture
) -> None:
    command = program("print(words)")
    assert launch(command, num_processes=3) == 0
    lines = sorted(capfd.readouterr().out.splitlines())
    assert [line[:3] for line in lines] == ["[0]", "[1]", "[2]"]
    children = [eval(line[4:]) for line in lines]
    assert [child["process_id"] for child in children] == ["0", "1", "2"]
    assert {child["num_processes"] for child in children} == {"3"}
    (address,) = {child["coordinator_address"] for child in children}
    assert address.startswith("127.0.0.1:")


def test_the_coordinator_listens_to_this_machine_only(
    program: Program, capfd: Capture
) -> None:
    name = "JAX_COORDINATOR_BIND_ADDRESS"
    same = f"os.environ[{name!r}] == words['coordinator_address']"
    assert launch(program(f"print({same})"), num_processes=1) == 0
    assert capfd.readouterr().out == "[0] True\n"


def test_lines_of_several_processes_stay_whole(
    program: Program, capfd: Capture
) -> None:
    text = """
meet()
for _ in range(200):
    for part in (str(index) * 50, str(index) * 50, "\\n"):
        os.write(1, part.encode())
"""
    assert launch(program(text), num_processes=3) == 0
    lines = capfd.readouterr().out.splitlines()
    assert sorted(lines) == [
        f"[{i}] " + str(i) * 100 for i in range(3) for _ in "." * 200
    ]


def test_each_stream_goes_where_the_launchers_own_goes(
    program: Program, capfd: Capture
) -> None:
    text = "print('result'); print('remark', file=sys.stderr, end='')"
    assert launch(program(text), num_processes=1) == 0
    assert capfd.readouterr() == ("[0] result\n", "[0] remark\n")


def test_a_progress_bar_is_drawn_in_place(
    program: Program, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    text = """
for part in (b"\\r 10%", b"\\r 20%", b"\\r", b"\\ndone\\r", b"\\n", b"\\xff"):
    os.write(2, part)
"""
    assert launch(program(text), num_processes=1) == 0
    err = capfdbinary.readouterr().err
    assert err == b"[0]  10%\r[0]  20%\r\n[0] done\r\n[0] \xff\n"


def test_the_code_is_that_of_the_first_to_fail(
    program: Program, capfd: Capture
) -> None:
    text = """
meet()
if index == 1:
    sys.exit(7)
first = folder / "ready1"
while Path(f"/proc/{first.read_text()}").exists():
    time.sleep(0.01)
sys.exit(3)
"""
    assert launch(program(text), num_processes=3) == 7
    assert capfd.readouterr().err == "[launch] process 1 ended with code 7.\n"


@pytest.mark.usefixtures("short_waits")
def test_whoever_outlives_a_failure_is_terminated(
    program: Program, capfd: Capture, tmp_path: Path
) -> None:
    text = """
hold(signal.SIGTERM)
meet()
if index == 0:
    sys.exit(1)
wait_for(signal.SIGTERM)
print("terminated")
"""
    assert launch(program(text), num_processes=2) == 1
    out, err = capfd.readouterr()
    assert out == "[1] terminated\n"
    assert "process 0 ended with code 1." in err
    assert "process 1 is still running: SIGTERM." in err
    assert not any(map(_is_alive, _pids(tmp_path)))


def test_a_process_that_is_killed_gives_the_code_of_its_signal(
    program: Program, capfd: Capture
) -> None:
    text = """
meet()
if index == 1:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert launch(program(text), num_processes=2) == 137
    expected = "[launch] process 1 was killed by SIGKILL (code 137).\n"
    assert capfd.readouterr().err == expected


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_reaches_each_process_exactly_once(
    program: Program, capfd: Capture, name: str
) -> None:
    number = int(signal.Signals[name])
    text = f"def begin(): index or os.kill(os.getppid(), {number})\n"
    code = launch(program(text + _COUNT_SIGNALS), num_processes=2)
    assert code == 128 + number
    out, err = capfd.readouterr()
    expected = [f"[{i}] signal {number}, then None" for i in range(2)]
    assert sorted(out.splitlines()) == expected
    assert err == f"[launch] {name} is passed on to all processes.\n"


def test_a_second_signal_is_passed_on_as_well(program: Program, capfd: Capture) -> None:
    text = """
hold(signal.SIGINT)
meet()
os.kill(os.getppid(), signal.SIGINT)
wait_for(signal.SIGINT)
os.kill(os.getppid(), signal.SIGINT)
print(wait_for(signal.SIGINT))
sys.exit(130)
"""
    assert launch(program(text), num_processes=1) == 130
    assert capfd.readouterr().out == "[0] 2\n"


@pytest.mark.usefixtures("short_waits")
def test_a_process_that_ignores_sigterm_is_killed(
    program: Program, capfd: Capture, tmp_path: Path
) -> None:
    text = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
meet()
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""
    assert launch(program(text), num_processes=1) == 143
    assert "process 0 is still running: SIGKILL." in capfd.readouterr().err
    assert not any(map(_is_alive, _pids(tmp_path)))


def test_what_a_process_started_ends_with_it(
    program: Program, capfd: Capture, tmp_path: Path
) -> None:
    text = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(folder / "ready").write_text(str(child.pid))
"""
    assert launch(program(text), num_processes=1) == 0
    pids = _pids(tmp_path)
    assert len(pids) == 1
    assert _until(lambda: not any(map(_is_alive, pids)))


def test_the_launcher_leaves_signals_as_it_found_them(program: Program) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    assert launch(program(""), num_processes=1) == 0
    assert [signal.getsignal(number) for number in numbers] == before


def test_ctrl_c_reaches_each_process_exactly_once(
    program: Program, tmp_path: Path
) -> None:
    command = program("def begin(): pass\n" + _COUNT_SIGNALS)
    with subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as launcher:
        assert _until(lambda: len(_pids(tmp_path)) == 2)
        # A terminal sends it to its whole foreground group.
        os.killpg(launcher.pid, signal.SIGINT)
        out, _ = launcher.communicate(timeout=20)
    assert launcher.returncode == 130
    assert sorted(out.splitlines()) == [f"[{i}] signal 2, then None" for i in (0, 1)]


def test_no_process_outlives_a_launcher_that_is_killed(
    program: Program, tmp_path: Path
) -> None:
    command = program("meet(); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", _LAUNCHER, *command]) as launcher:
        assert _until(lambda: len(_pids(tmp_path)) == 2)
        pids = _pids(tmp_path)
        assert all(map(_is_alive, pids))
        launcher.kill()
    assert _until(lambda: not any(map(_is_alive, pids)))


def test_a_process_whose_launcher_has_died_before_it_began_does_not_begin(
    capfd: Capture,
) -> None:
    shim = [sys.executable, "-c", bn_jax.launch._DIE_WITH_THE_LAUNCHER]
    # This process is its parent, and the first one of the machine is not.
    assert subprocess.run([*shim, "1", "/bin/echo", "echo", "begun"]).returncode == 1
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("command", "num_processes", "message"),
    [
        (["true"], 0, "--num_processes must be at least 1, and is 0"),
        ([], 2, "the command to run is missing"),
        (["no-such-program"], 2, "'no-such-program' is no program"),
        (["./setup.txt"], 2, "is no program"),
        (["true", "--process_id=0"], 2, "leave --process_id=0 out"),
        (["true", "-process_id", "0"], 2, "leave -process_id out"),
        (["true", "--num_processes=2"], 2, "it adds --num_processes itself"),
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
