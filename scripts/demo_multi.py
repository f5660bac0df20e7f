"""Demonstration of a run in two processes that resumes after one is killed.

    python scripts/demo_multi.py --workdir=runs/demo_multi

Trains the convolutional network for one epoch on the MNIST in the package. Needs Linux,
because it reads process IDs from /proc.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = [
    "--config.num_steps=469",
    "--config.checkpoint.every_steps=100",
    "--config.evaluation.schedule.every_steps=100",
    "--config.evaluation.schedule.early_every_steps=100",
]
KILL_AFTER_STEP = 200
SECONDS_TO_BEGIN = 1800.0


def main() -> None:
    """Starts the run, kills one of its processes, and starts the run again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--workdir", type=Path, required=True, help="folder that does not exist yet"
    )
    workdir = parser.parse_args().workdir
    if workdir.exists():
        sys.exit(
            f"demo_multi: --workdir={workdir} must not exist yet, but does; remove it "
            "or use another folder: make demo-multi DEMO_WORKDIR=runs/another"
        )
    command = [
        *(sys.executable, "-m", "bn_jax.cli", "launch", "--num_processes=2", "--"),
        *(sys.executable, str(ROOT / "train.py")),
        f"--config={ROOT / 'configs' / 'mnist_cnn.py'}:bn",
        f"--workdir={workdir}",
        *SETTINGS,
    ]
    _say(f"train in two processes until step {KILL_AFTER_STEP} is saved")
    with subprocess.Popen(command) as launcher:
        _wait_for(workdir / "checkpoints" / str(KILL_AFTER_STEP), launcher)
        victim = _child_with_argument(launcher, "--process_id=1")
        _say(f"send SIGKILL to process 1 (process ID {victim})")
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        code = launcher.wait()
    seconds = time.monotonic() - killed
    _say(f"all processes ended after {seconds:.1f} s with exit code {code}")
    _say("run the command again, which resumes from the last checkpoint")
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(f"demo_multi: the second command failed with exit code {code}.")
    accuracy = json.loads((workdir / "summary.json").read_text())["final_test_accuracy"]
    _say(f"the run is complete: {accuracy:.2%} test accuracy after 469 steps")


def _wait_for(path: Path, launcher: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS_TO_BEGIN
    while not path.exists():
        if launcher.poll() is not None or time.monotonic() > deadline:
            launcher.terminate()
            sys.exit(
                f"demo_multi: the run must write {path}, but ended or took more than "
                f"{SECONDS_TO_BEGIN:.0f} s before it did."
            )
        time.sleep(0.05)


def _child_with_argument(launcher: subprocess.Popen[bytes], argument: str) -> int:
    """Returns the ID of the launcher's child that has this argument."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    for child in children.split():
        if argument in Path(f"/proc/{child}/cmdline").read_text().split("\0"):
            return int(child)
    sys.exit(f"demo_multi: a process must have the argument {argument}, but none has.")


def _say(message: str) -> None:
    print(f"[demo] {message}", flush=True)


if __name__ == "__main__":
    main()
