"""Summary of a complete run, from its metrics."""

from pathlib import Path

import flax
import jax

import bn_jax
from bn_jax.workdir.files import read_metrics, write_summary


def summarize(workdir: Path, steps_per_second: float, wall_seconds: float) -> None:
    """Writes `summary.json`, which marks the run as complete.

    Args:
        workdir: Workdir of the run, with all of its metrics.
        steps_per_second: Steps per second, compilation excluded.
        wall_seconds: Seconds since the run started or resumed.
    """
    metrics = read_metrics(workdir)
    split = "validation" if "validation_accuracy" in metrics[-1] else "test"
    accuracy = f"{split}_accuracy"
    reached = [line["step"] for line in metrics if line[accuracy] >= 0.9]
    summary = {
        f"final_{accuracy}": metrics[-1][accuracy],
        "steps_to_90_percent": reached[0] if reached else None,
        "steps_per_second": steps_per_second,
        "wall_seconds": wall_seconds,
        "device": jax.devices()[0].device_kind,
        "versions": {
            "jax": jax.__version__,
            "flax": flax.__version__,
            "bn_jax": bn_jax.__version__,
        },
    }
    write_summary(workdir, summary)
