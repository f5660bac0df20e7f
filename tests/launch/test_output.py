"""Output of local processes: whole, numbered lines, each on its own stream."""

import sys
from pathlib import Path

import pytest
from launched import program

from bn_jax.launch.launcher import launch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs sigtimedwait")


def test_lines_of_several_processes_stay_whole(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = """
meet()
for _ in range(200):
    for part in (str(index) * 50, str(index) * 50, "\\n"):
        os.write(1, part.encode())
"""
    assert launch(program(tmp_path, text), num_processes=3) == 0
    lines = capfd.readouterr().out.splitlines()
    assert sorted(lines) == [
        f"[{i}] " + str(i) * 100 for i in range(3) for _ in "." * 200
    ]


def test_each_stream_goes_where_the_launchers_own_goes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "print('result'); print('remark', file=sys.stderr, end='')"
    assert launch(program(tmp_path, text), num_processes=1) == 0
    assert capfd.readouterr() == ("[0] result\n", "[0] remark\n")


def test_a_progress_bar_is_drawn_in_place(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    text = """
for part in (b"\\r 10%", b"\\r 20%", b"\\r", b"\\ndone\\r", b"\\n", b"\\xff"):
    os.write(2, part)
"""
    assert launch(program(tmp_path, text), num_processes=1) == 0
    err = capfdbinary.readouterr().err
    assert err == b"[0]  10%\r[0]  20%\r\n[0] done\r\n[0] \xff\n"
