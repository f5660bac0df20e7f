"""Several runs at a time, on devices of this process or in processes of their own."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from faults.programs import until
from training.tiny_runs import SHORT, tiny_config

import bn_jax.progress
from bn_jax.errors import DivergedError, UserError
from bn_jax.experiments import runs
from bn_jax.experiments.runs import Job, run_jobs, run_on_devices
from bn_jax.training.loop import train
from bn_jax.workdir.files import read_metrics, read_summary


@pytest.fixture
def make_jobs(tmp_path: Path, idx_dir: Path) -> Callable[[int], list[Job]]:
    def make_jobs(num_jobs: int) -> list[Job]:
        jobs = []
        for seed in range(num_jobs):
            config = tiny_config(idx_dir, arm="baseline", seed=seed)
            config.update_from_flattened_dict(SHORT)
            jobs.append(Job(config, tmp_path / f"seed{seed}"))
        return jobs

    return make_jobs


def replace_train(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[Any, Path], None]
) -> None:
    def train_instead(
        config: Any, workdir: Path, *, show_progress: bool, devices: list[Any]
    ) -> None:
        assert not show_progress
        assert devices == [jnp.zeros(1).device]
        function(config, workdir)

    monkeypatch.setattr(runs, "train", train_instead)


def test_every_device_has_one_run_at_a_time(
    monkeypatch: pytest.MonkeyPatch, make_jobs: Callable[[int], list[Job]]
) -> None:
    # Nobody passes the barrier alone: two runs must be under way at once.
    both, used = threading.Barrier(2, timeout=60), []

    def note_device(_: Any, __: Path) -> None:
        both.wait()
        used.append(jnp.zeros(1).device)
        both.wait()

    replace_train(monkeypatch, note_device)
    devices = jax.devices()[2:4]
    run_on_devices(make_jobs(6), devices)
    assert sorted(used, key=lambda device: device.id) == [
        *(devices[0],) * 3,
        *(devices[1],) * 3,
    ]


@pytest.mark.slow
def test_runs_on_devices_are_those_that_train_alone(
    tmp_path: Path, make_jobs: Callable[[int], list[Job]]
) -> None:
    jobs = make_jobs(2)
    run_on_devices(jobs, jax.devices()[:2])
    for index, job in enumerate(jobs):
        alone = tmp_path / f"alone{index}"
        train(job.config, alone, show_progress=False)
        assert read_metrics(job.workdir) == read_metrics(alone)


def test_a_failing_run_raises_once_the_others_are_complete(
    monkeypatch: pytest.MonkeyPatch, make_jobs: Callable[[int], list[Job]]
) -> None:
    both, complete = threading.Barrier(2, timeout=60), []

    def fail_or_finish(config: Any, _: Path) -> None:
        both.wait()
        if config.seed == 0:
            raise UserError("config.seed must not be 0.")
        complete.append(config.seed)

    replace_train(monkeypatch, fail_or_finish)
    with pytest.raises(UserError, match=r"config\.seed must not be 0"):
        run_on_devices(make_jobs(2), jax.devices()[:2])
    assert complete == [1]


def test_a_run_that_may_diverge_gives_its_last_finite_step(
    monkeypatch: pytest.MonkeyPatch, make_jobs: Callable[[int], list[Job]]
) -> None:
    def diverge(config: Any, _: Path) -> None:
        if config.seed == 1:
            raise DivergedError("the loss is not finite.", 7)

    replace_train(monkeypatch, diverge)
    jobs = make_jobs(3)
    allowed = [job._replace(may_diverge=True) for job in jobs]
    assert run_on_devices(allowed, jax.devices()[:1]) == [None, 7, None]
    with pytest.raises(DivergedError, match=r"the loss is not finite\."):
        run_on_devices(jobs, jax.devices()[:1])


def test_a_device_is_free_again_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, make_jobs: Callable[[int], list[Job]]
) -> None:
    def fail(_: Any, __: Path) -> None:
        raise UserError("no.")

    replace_train(monkeypatch, fail)
    with pytest.raises(UserError, match=r"no\."):
        run_on_devices(make_jobs(5), jax.devices()[:1])


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_or_a_file_shows_the_steps_of_all_runs(
    monkeypatch: pytest.MonkeyPatch,
    make_jobs: Callable[[int], list[Job]],
    is_terminal: bool,
) -> None:
    def write_last_line(config: Any, workdir: Path) -> None:
        workdir.mkdir()
        line = json.dumps({"step": config.num_steps})
        (workdir / "metrics.jsonl").write_text(f"{line}\n")

    replace_train(monkeypatch, write_last_line)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(bn_jax.progress, "_SECONDS_BETWEEN_LINES", 0)
    run_on_devices(make_jobs(3), jax.devices()[:2])
    last = stream.getvalue().rstrip().splitlines()[-1]
    if is_terminal:
        assert last.startswith("3 runs: 100%")
        assert "30/30" in last
    else:
        assert last == "3 runs: 30 of 30, 00:00 left"


@pytest.mark.slow
def test_processes_complete_what_has_begun_and_say_what_failed(
    monkeypatch: pytest.MonkeyPatch,
    make_jobs: Callable[[int], list[Job]],
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    good, bad = make_jobs(2)
    bad.config.num_steps = 0
    with pytest.raises(UserError, match=r"config\.num_steps must be at least 1"):
        run_jobs([good, bad])
    assert read_summary(good.workdir) is not None
    assert not bad.workdir.exists()


_ENDLESS = """
import sys
from pathlib import Path
from training.tiny_runs import tiny_config
from bn_jax.experiments.runs import Job, run_jobs
if __name__ == "__main__":
    config = tiny_config(Path(sys.argv[1]), num_steps=10**9)
    run_jobs([Job(config, Path(sys.argv[2]))])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_runs_end_with_the_process_that_began_them(
    tmp_path: Path, idx_dir: Path
) -> None:
    (tmp_path / "endless.py").write_text(_ENDLESS)
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "endless.py", str(idx_dir), "run"]
    environment = {**os.environ, "PYTHONPATH": tests, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as program:
        try:
            assert until(lambda: read_metrics(tmp_path / "run"))
            children = _children(program.pid)
        finally:
            program.send_signal(signal.SIGKILL)
    assert len(children) > 0
    ended = until(lambda: not any(Path(f"/proc/{n}").exists() for n in children), 20)
    for number in children if not ended else []:
        os.kill(number, signal.SIGKILL)
    assert ended


def _children(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            # After the name, in parentheses: the state and the parent's number.
            about = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(about[1]) == pid:
                found.append(int(folder.name))
    return found
