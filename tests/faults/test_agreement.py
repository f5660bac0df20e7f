"""Agreement of runs on different devices: equal metrics, and no deadlock."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.conftest import Train
from faults.programs import wait_for_all

from bn_jax.training.distributed.parallel import MODES

# Evaluated at every step; plain gradient descent, which enlarges no last bit.
CLOSELY = {
    "optimizer__name": "sgd",
    "optimizer__learning_rate": 0.1,
    "evaluation__schedule__early_every_steps": 1,
    "evaluation__schedule__early_until_step": 40,
    "checkpoint__every_steps": 20,
}
DEVICES = {
    "one_process": {},
    "one_process_with_two_devices": {"local_devices": 2},
    "one_process_with_four_devices": {"local_devices": 4},
    "two_of_four_devices": {"local_devices": 4, "parallel__num_devices": 2},
    "two_processes": {"num_processes": 2},
}


@pytest.fixture(scope="session")
def looked_at_closely(
    session_train: Train, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Folder of a run on the devices of that name."""
    folders: dict[str, Path] = {}

    def looked_at_closely(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name) / "run"
            programs = session_train(folders[name], **DEVICES[name], **CLOSELY)
            assert not any(wait_for_all(programs)), programs[0].output
        return folders[name]

    return looked_at_closely


def _losses(workdir: Path) -> dict[int, tuple[float, float]]:
    lines = [
        json.loads(s) for s in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    return {line["step"]: (line["train_loss"], line["test_loss"]) for line in lines}


def _assert_same_losses(workdir: Path, other: Path, *, after: int = 0) -> None:
    here, there = _losses(workdir), _losses(other)
    assert list(here) == list(there) == list(range(1, 41))
    for step in range(after + 1, after + 21):
        assert here[step] == pytest.approx(there[step], abs=1e-5, rel=0)


@pytest.mark.parametrize("name", ["one_process_with_two_devices", "two_processes"])
def test_the_losses_are_those_of_one_device(
    looked_at_closely: Callable[[str], Path], name: str
) -> None:
    _assert_same_losses(looked_at_closely(name), looked_at_closely("one_process"))


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("one_process", "two_processes"),
        ("two_processes", "one_process"),
        ("one_process", "one_process_with_four_devices"),
        ("two_of_four_devices", "one_process_with_four_devices"),
    ],
)
def test_a_run_goes_on_with_other_devices(
    train: Train,
    looked_at_closely: Callable[[str], Path],
    tmp_path: Path,
    first: str,
    then: str,
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(looked_at_closely(first), workdir)
    (workdir / "summary.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "40")
    programs = train(workdir, **DEVICES[then], **CLOSELY)
    assert not any(wait_for_all(programs)), programs[0].output
    assert "resumes after step 20." in programs[0].output
    _assert_same_losses(workdir, looked_at_closely(first), after=20)


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_of_two_devices_each_do_not_wait_for_each_other_for_ever(
    train: Train, tmp_path: Path, mode: str
) -> None:
    programs = train(
        tmp_path / "run",
        num_processes=2,
        local_devices=2,
        num_steps=300,
        parallel__mode=mode,
        max_steps_per_dispatch=2,
        evaluation__schedule__every_steps=100,
        checkpoint__every_steps=100,
    )
    assert wait_for_all(programs) == [0, 0], programs[0].output
    assert "on 4 devices" in programs[0].output
