"""Scripts that start training on clusters, as far as they run without one."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bn_jax.training.config_files import load_config

_SCRIPTS = Path(__file__).parents[1] / "scripts"
_NEEDS_BASH = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

RunJob = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def run_job(tmp_path: Path) -> RunJob:
    """Runs slurm.sh; gives its code, and the commands that SLURM would have got."""

    def run_job(*arguments: str, code: int = 0):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        for name, status in (("srun", code), ("scontrol", 0)):
            path = tmp_path / name
            path.write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\nexit {status}\n')
            path.chmod(0o755)
        environment = {
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": "17",
        }
        command = ["bash", str(_SCRIPTS / "slurm.sh"), *arguments]
        job = subprocess.run(command, env=environment, cwd=tmp_path, timeout=20)
        return job.returncode, log.read_text().splitlines()

    return run_job


@pytest.fixture(scope="module")
def jobset() -> Any:
    return yaml.safe_load((_SCRIPTS / "jobset.yaml").read_text())


@_NEEDS_BASH
def test_the_slurm_script_is_valid_bash() -> None:
    subprocess.run(["bash", "-n", str(_SCRIPTS / "slurm.sh")], check=True, timeout=20)


def test_slurm_reads_all_of_the_scripts_options() -> None:
    lines = (_SCRIPTS / "slurm.sh").read_text().splitlines()
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH --")]
    # SLURM stops reading options at the first line that is a command.
    first_command = next(i for i, x in enumerate(lines) if x and not x.startswith("#"))
    assert len(options) > 5
    assert max(options) < first_command


@_NEEDS_BASH
def test_the_slurm_job_trains_with_the_words_of_its_command_line(
    run_job: RunJob,
) -> None:
    _, (step,) = run_job("--config=file.py:bn", "--workdir=runs/bn")
    assert step.endswith(" python train.py --config=file.py:bn --workdir=runs/bn")


@_NEEDS_BASH
@pytest.mark.parametrize("code", [3, 134, 137, 143])
def test_a_slurm_job_that_can_go_on_is_queued_again(run_job: RunJob, code: int) -> None:
    status, commands = run_job(code=code)
    assert status == code
    assert commands[1:] == ["scontrol requeue 17"]


@_NEEDS_BASH
@pytest.mark.parametrize("code", [0, 1, 130])
def test_a_slurm_job_that_is_over_is_not_queued_again(
    run_job: RunJob, code: int
) -> None:
    status, commands = run_job(code=code)
    assert status == code
    assert len(commands) == 1


@_NEEDS_BASH
def test_a_slurm_job_is_queued_again_after_five_deaths_and_any_number_of_time_limits(
    run_job: RunJob,
) -> None:
    codes = [143, 3, 143, 134, 137, 3, 143, 143, 3, 143, 3, 143]
    queued = [len(run_job(code=code)[1]) == 2 for code in codes]
    assert queued == [True] * 10 + [False, True]


@pytest.mark.parametrize(
    "path", ["scripts/slurm.sh", "scripts/jobset.yaml", "docs/distributed.md"]
)
def test_the_runs_that_are_shown_can_share_their_batch_among_eight_devices(
    path: str,
) -> None:
    text = (_SCRIPTS.parent / path).read_text()
    shown = set(re.findall(r"--config=(?:configs/)?(\w+)(?:\.py)?:(\w+)", text))
    assert shown
    assert [run for run in shown if load_config(":".join(run)).batch_size % 8] == []


def test_the_jobset_has_as_many_pods_as_processes(jobset: Any) -> None:
    (replicated_job,) = jobset["spec"]["replicatedJobs"]
    job = replicated_job["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    assert f"--num_processes={job['completions']} " in container["command"][-1]
    assert '--process_id="$JOB_COMPLETION_INDEX"' in container["command"][-1]


def test_the_jobsets_coordinator_is_its_first_pod(jobset: Any) -> None:
    name = jobset["metadata"]["name"]
    (replicated_job,) = jobset["spec"]["replicatedJobs"]
    pod_spec = replicated_job["template"]["spec"]["template"]["spec"]
    (container,) = pod_spec["containers"]
    (port,) = container["ports"]
    host = f"{name}-{replicated_job['name']}-0-0.{name}:{port['containerPort']}"
    assert f"--coordinator_address={host} " in container["command"][-1]


def test_the_jobsets_workdir_lies_on_the_volume_that_pods_share(jobset: Any) -> None:
    (replicated_job,) = jobset["spec"]["replicatedJobs"]
    pod_spec = replicated_job["template"]["spec"]["template"]["spec"]
    (container,), (volume,) = pod_spec["containers"], pod_spec["volumes"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert f"--workdir={mount['mountPath']}/" in container["command"][-1]
