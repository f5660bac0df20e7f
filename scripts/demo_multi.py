"""Trains in two processes, kills one of them, goes on, and says what came of it.

    python scripts/demo_multi.py --workdir=runs/demo_multi

One epoch of the convolutional network on the MNIST of the package. Needs Linux, for the
numbers of processes in /proc.
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
    """Two runs of one command, the first of which loses a process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="a new folder")
    workdir = parser.parse_args().workdir
    if workdir.exists():
        sys.exit(
            f"demo_multi: {workdir} is there already. Remove it, or take "
            "another folder: make demo-multi DEMO_WORKDIR=runs/another"
        )
    command = [
        *(sys.executable, "-m", "bn_jax.cli", "launch", "--num_processes=2", "--"),
        *(sys.executable, str(ROOT / "train.py")),
        f"--config={ROOT / 'configs' / 'mnist_cnn.py'}:bn",
        f"--workdir={workdir}",
        *SETTINGS,
    ]
    _say(f"two processes, until step {KILL_AFTER_STEP} is saved")
    with subprocess.Popen(command) as launcher:
        _wait_for(workdir / "checkpoints" / str(KILL_AFTER_STEP), launcher)
        victim = _process(launcher, "--process_id=1")
        _say(f"SIGKILL to process 1, which has the number {victim}")
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        code = launcher.wait()
    _say(f"all have ended after {time.monotonic() - killed:.1f} s, with code {code}")
    _say("the same command again")
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(f"demo_multi: the second run has ended with code {code}.")
    accuracy = json.loads((workdir / "summary.json").read_text())["final_test_accuracy"]
    _say(f"complete, with {accuracy:.2%} test accuracy after 469 steps")


def _wait_for(path: Path, launcher: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS_TO_BEGIN
    while not path.exists():
        if launcher.poll() is not None or time.monotonic() > deadline:
            launcher.terminate()
            sys.exit(f"demo_multi: there is no {path}.")
        time.sleep(0.05)


def _process(launcher: subprocess.Popen[bytes], word: str) -> int:
    """The child that has this word in its command line."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    for child in children.split():
        if word in Path(f"/proc/{child}/cmdline").read_text().split("\0"):
            return int(child)
    sys.exit(f"demo_multi: no process has {word}.")


def _say(what: str) -> None:
    print(f"[demo] {what}", flush=True)


if __name__ == "__main__":
    main()
