"""The program train.py: one good command line, and many bad ones."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from data.idx_files import write_idx_folder
from training.tiny_runs import SHORT

import bn_jax
from bn_jax.workdir.files import claim_workdir, read_metrics, read_summary

ROOT = Path(bn_jax.__file__).parents[1]
SCRIPT = ROOT / "train.py"
CONFIG = f"--config={ROOT / 'configs' / 'mnist_mlp.py'}:bn"

# Imports what takes seconds once, and then is the program of each command line, in a
# process of its own that inherits what is imported. Its output goes to a file.
RUN_ALL = """
import json, os, runpy, sys
from absl import app, flags, logging
from ml_collections import config_flags
import bn_jax.training.loop
script = sys.argv[1]
for path, words in json.load(sys.stdin).items():
    pid = os.fork()
    if pid == 0:
        output = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = [script, *words]
        runpy.run_path(sys.argv[0], run_name="__main__")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


class End(NamedTuple):
    """Exit status and output of a command line."""

    status: int
    output: str


BAD = {
    "an_unknown_setting": [CONFIG, "--config.num_stps=5"],
    "an_unknown_nested_setting": [CONFIG, "--config.optimizer.learning_rte=5"],
    "a_value_of_another_type": [CONFIG, "--config.num_steps=many"],
    "an_impossible_value": [CONFIG, "--config.num_steps=0"],
    "an_impossible_momentum": [CONFIG, "--config.norm.momentum=1.5"],
    "an_unknown_optimizer": [CONFIG, "--config.optimizer.name=sdg"],
    "an_unknown_arm": [CONFIG.replace(":bn", ":bm")],
    "a_missing_file": ["--config=configs/mnist_mpl.py:bn"],
    "no_configuration": [],
    "an_empty_workdir": [CONFIG, "--workdir=", "--config.num_steps=1"],
    "a_missing_folder_of_data": [CONFIG, "--config.dataset.idx_dir=nothing"],
    "another_runs_workdir": [CONFIG, "--workdir=OTHER", "--config.seed=3"],
    "a_workdir_below_a_file": [CONFIG, "--workdir=OTHER/config.json/run"],
    "an_unknown_flag": [CONFIG, "--wrokdir=runs"],
    "a_word_too_many": [CONFIG, "--config.num_steps=1", "config.seed=3"],
    "steps_that_are_none": [CONFIG, "--profile_steps=5-7"],
    "steps_that_end_before_they_begin": [CONFIG, "--profile_steps=7:5"],
    "a_process_without_the_others": [CONFIG, "--process_id=1"],
    "a_batch_that_cannot_be_divided": [CONFIG, "--config.accumulation_steps=7"],
    "more_devices_than_there_are": [CONFIG, "--config.parallel.num_devices=99"],
    "an_unknown_mode": [CONFIG, "--config.parallel.mode=xmap"],
}
EXPECTED = {
    "an_unknown_setting": r"num_stps.*did you mean 'num_steps'",
    "an_unknown_nested_setting": r"learning_rte.*did you mean 'learning_rate'",
    "a_value_of_another_type": r"config\.num_steps=many",
    "an_impossible_value": r"train\.py: config\.num_steps must be at least 1",
    "an_impossible_momentum": r"train\.py: .*momentum must lie in \[0, 1\)",
    "an_unknown_optimizer": r"train\.py: optimizer\.name: optax has no .*'sdg'",
    "an_unknown_arm": r"the arm must be 'bn' or 'baseline', but is 'bm'",
    "a_missing_file": r"configs/mnist_mpl\.py",
    "no_configuration": r"train\.py: --config is missing: give the file",
    "an_empty_workdir": r"train\.py: --workdir is missing: give the folder of this",
    "a_missing_folder_of_data": r"train\.py: idx_dir: there is no folder nothing",
    "another_runs_workdir": r"another configuration: .*seed is 0 in the work",
    "a_workdir_below_a_file": r"train\.py: workdir .*: cannot be used",
    "an_unknown_flag": r"Unknown command line flag 'wrokdir'. Did you mean: workdir",
    "a_word_too_many": r"config\.seed=3",
    "steps_that_are_none": r"train\.py: --profile_steps must .* FIRST:LAST.* is '5-7'",
    "steps_that_end_before_they_begin": r"needs 0 <= FIRST < LAST, but is 7:5",
    "a_process_without_the_others": r"train\.py: --coordinator_address, .* together",
    "a_batch_that_cannot_be_divided": r"batch_size=60 must be divisible by 7",
    "more_devices_than_there_are": r"num_devices must lie in 1 to 1, .* but is 99",
    "an_unknown_mode": r"mode must be one of jit, shard_map, pmap, but is 'xmap'",
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, End]:
    """Exit status and output of each bad command line."""
    folder = tmp_path_factory.mktemp("train")
    claim_workdir(folder / "other", {"num_steps": 7})
    lines = {}
    for name, words in BAD.items():
        own_workdir = [f"--workdir={folder / name}"]
        words = [word.replace("OTHER", str(folder / "other")) for word in words]
        has_workdir = any(word.startswith("--workdir") for word in words)
        lines[str(folder / f"{name}.txt")] = words + own_workdir * (not has_workdir)
    result = run_python(
        *("-c", RUN_ALL, str(SCRIPT)), folder=folder, stdin=json.dumps(lines)
    )
    assert result.returncode == 0, result.stderr
    statuses = [int(status) for status in result.stdout.split()]
    outputs = [Path(path).read_text() for path in lines]
    return dict(zip(BAD, map(End, statuses, outputs), strict=True))


def run_python(
    *words: str, folder: Path, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        input=stdin,
        cwd=folder,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_a_bad_command_line_ends_with_a_message_and_no_traceback(
    ends: dict[str, End], name: str
) -> None:
    status, output = ends[name]
    assert status == 1, output
    assert re.search(EXPECTED[name], output), output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_good_command_line_trains_and_logs(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path / "digits")
    settings = {**SHORT, "dataset.idx_dir": folder}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    workdir = tmp_path / "run"
    result = run_python(
        *(str(SCRIPT), CONFIG, f"--workdir={workdir}", *flags), folder=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert [line["step"] for line in read_metrics(workdir)] == [5, 10]
    assert read_summary(workdir) is not None
    assert re.search(r"step 10 of 10, train loss \d", result.stderr)
