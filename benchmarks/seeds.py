"""Final accuracy of a configuration's arms over several seeds.

    python benchmarks/seeds.py --config=mnist_cnn.py --arms=bn,baseline --seeds=3

The runs follow one another, each on all devices, so that `wall_seconds` is the time
that a run takes alone on the machine. Writes `results/<configuration>.json`.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from bn_jax.machine import describe_machine
from bn_jax.training.config_files import load_config
from bn_jax.training.distributed.compilation import cache_compiled_programs
from bn_jax.training.loop import train


def main() -> None:
    """Trains all runs, prints a line for each and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="file in configs/")
    parser.add_argument("--arms", default="bn,baseline")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workdir", type=Path, default=Path("runs"))
    options = parser.parse_args()
    cache_compiled_programs()
    name = options.config.removesuffix(".py")
    arms = {
        arm: [_run(options, name, arm, seed) for seed in range(options.seeds)]
        for arm in options.arms.split(",")
    }
    result = {
        "command": f"python benchmarks/seeds.py --config={options.config} "
        f"--arms={options.arms} --seeds={options.seeds}",
        "machine": describe_machine(),
        "arms": {arm: _summary(runs) for arm, runs in arms.items()},
    }
    path = Path(__file__).parent.parent / "results" / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


def _run(options: argparse.Namespace, name: str, arm: str, seed: int) -> dict[str, Any]:
    config = load_config(f"{name}:{arm}", overrides={"seed": str(seed)})
    workdir = options.workdir / f"{name}-{arm}-{seed}"
    summary = train(config, workdir, show_progress=False)
    print(f"{arm} {seed}: {summary['final_test_accuracy']:.4f}", flush=True)
    return summary


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [run["final_test_accuracy"] for run in runs]
    return {
        "mean_test_accuracy": statistics.mean(accuracies),
        "stdev_test_accuracy": statistics.stdev(accuracies),
        "runs": runs,
    }


if __name__ == "__main__":
    main()
