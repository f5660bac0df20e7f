"""Runs whose numbers a test knows, as records and as folders."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bn_jax.reporting.load import Run
from bn_jax.workdir.files import claim_workdir, write_summary

VERSIONS = {"jax": "1.2.3", "flax": "4.5.6", "bn_jax": "7.8.9"}


def synthetic_run(
    accuracies: Sequence[float], *, seed: int = 0, steps_per_second: float = 1000.0
) -> Run:
    """A run evaluated every 10 steps, with percentiles one apart."""
    steps = 10 * np.arange(1, len(accuracies) + 1)
    return Run(
        config={"seed": seed, "num_steps": int(steps[-1])},
        summary={
            "final_test_accuracy": accuracies[-1],
            "steps_per_second": steps_per_second,
            "versions": VERSIONS,
        },
        metrics={
            "step": steps,
            "test_accuracy": np.array(accuracies),
            "percentiles": steps[:, None] / 10 + np.array([-1.0, 0.0, 1.0]) + seed,
        },
    )


def write_run(workdir: Path, run: Run) -> Path:
    """Writes what a complete run leaves in its folder."""
    claim_workdir(workdir, run.config)
    names, columns = run.metrics.keys(), [v.tolist() for v in run.metrics.values()]
    lines = [
        json.dumps(dict(zip(names, values, strict=True)))
        for values in zip(*columns, strict=True)
    ]
    (workdir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    write_summary(workdir, run.summary)
    return workdir
