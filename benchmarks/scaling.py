"""Time per step of a training run on 1, 2, 4 and 8 devices, and in 2 processes.

    python benchmarks/scaling.py

`train.py` trains the convolutional MNIST network with 128 examples per step, for any
number of devices. The devices of a CPU share its cores, so the benchmark shows what
sharding costs, not what it gains. The time is that of the steps alone, without start,
compilation and evaluation.

Writes `results/scaling.json`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

import bn_jax
from bn_jax.machine import describe_machine

_ROOT = Path(__file__).parent.parent


class _Setting(NamedTuple):
    mode: str
    processes: int
    devices: int


_SETTINGS = [
    *(_Setting(mode, 1, n) for mode in ("jit", "shard_map") for n in (1, 2, 4, 8)),
    _Setting("pmap", 1, 8),
    _Setting("jit", 2, 1),
    _Setting("shard_map", 2, 1),
]


def main() -> None:
    """Runs all settings in turn, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=240, help="steps of each run")
    options = parser.parse_args()
    times: dict[_Setting, list[float]] = {setting: [] for setting in _SETTINGS}
    for _ in range(options.rounds):
        for setting in _SETTINGS:
            times[setting].append(_seconds_a_step(setting, options.steps))
    rows = [
        {
            **setting._asdict(),
            "seconds_a_step": statistics.median(values),
            "rounds": values,
        }
        for setting, values in times.items()
    ]
    one = rows[0]["seconds_a_step"]
    print("mode        processes  devices each  ms / step  over one device")
    for row in rows:
        seconds = row["seconds_a_step"]
        print(
            f"{row['mode']:10}  {row['processes']:9}  {row['devices']:12}  "
            f"{1e3 * seconds:9.1f}  {seconds / one:15.2f}"
        )
    result = {
        "command": "python benchmarks/scaling.py",
        "machine": describe_machine(),
        "versions": {"jax": jax.__version__, "bn_jax": bn_jax.__version__},
        "examples_a_step": 128,
        "settings": rows,
    }
    path = _ROOT / "results" / "scaling.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


def _seconds_a_step(setting: _Setting, num_steps: int) -> float:
    """Returns the seconds of a step; the first and the last 20 steps do not count."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [
            *_launcher(setting),
            *(sys.executable, str(_ROOT / "train.py")),
            f"--config={_ROOT / 'configs' / 'mnist_cnn.py'}:bn",
            f"--workdir={workdir}",
            f"--config.num_steps={num_steps}",
            f"--config.parallel.mode={setting.mode}",
            "--config.schedule.warmup_steps=10",
            "--config.evaluation.population_batches=1",
            "--config.evaluation.schedule.early_until_step=0",
            f"--config.evaluation.schedule.every_steps={num_steps}",
            f"--config.checkpoint.every_steps={num_steps}",
        ]
        flag = f"--xla_force_host_platform_device_count={setting.devices}"
        subprocess.run(
            command,
            env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
            check=True,
            capture_output=True,
            timeout=600,
        )
        summary = json.loads((workdir / "summary.json").read_text())
    return 1 / summary["steps_per_second"]


def _launcher(setting: _Setting) -> Sequence[str]:
    if setting.processes == 1:
        return []
    program = str(Path(sys.executable).with_name("bn-jax"))
    return [program, "launch", f"--num_processes={setting.processes}", "--"]


if __name__ == "__main__":
    main()
