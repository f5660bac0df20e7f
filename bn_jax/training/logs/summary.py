"""Summary of a complete run, from its metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax

import bn_jax
from bn_jax.progress import format_duration, format_rate
from bn_jax.training.logs.first_lines import log_rows
from bn_jax.workdir.files import read_metrics, write_summary


def summarize(
    workdir: Path,
    *,
    steps_per_second: float | None,
    wall_seconds: float,
    report_steps_to: Sequence[float],
) -> None:
    """Writes `summary.json`, which marks the run as complete, and logs its results.

    Args:
        workdir: Workdir of the run, with all of its metrics.
        steps_per_second: Steps per second, compilation excluded; None if unknown.
        wall_seconds: Seconds since the run started or resumed.
        report_steps_to: Accuracies in (0, 1] whose first evaluated step is reported.
    """
    metrics = read_metrics(workdir)
    name = _accuracy(metrics[-1])
    summary = {
        f"final_{name}": metrics[-1][name],
        "steps_to_accuracy": {
            str(accuracy): _first_step(metrics, accuracy)
            for accuracy in report_steps_to
        },
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
    log_results(workdir, summary, report_steps_to=report_steps_to)


def log_results(
    workdir: Path, summary: dict[str, Any], *, report_steps_to: Sequence[float]
) -> None:
    """Logs a table of what a complete run has reached, and where its results lie.

    Args:
        workdir: Workdir of the run.
        summary: Content of `summary.json`, of this version or of version 0.1.
        report_steps_to: Accuracies in (0, 1] whose first evaluated step is reported.
    """
    metrics = read_metrics(workdir)
    last = metrics[-1]
    reached = {
        name.replace("_", " "): f"{value:.4f}"
        for name, value in last.items()
        if name.endswith(("_loss", "_accuracy")) and value is not None
    }
    steps = {
        f"steps to {accuracy}": str(_first_step(metrics, accuracy) or "not reached")
        for accuracy in report_steps_to
    }
    if "skipped_steps" in last:
        steps["skipped steps"] = str(last["skipped_steps"])
    time = format_duration(summary["wall_seconds"])
    if summary["steps_per_second"]:
        time += f", {format_rate(summary['steps_per_second'])} steps/s"
    log_rows(
        {
            "complete": f"after {last['step']:,} steps",
            **reached,
            **steps,
            "time": f"{time} on {summary['device']}",
            "results": f"{workdir}/metrics.jsonl, {workdir}/summary.json",
            "checkpoints": f"{workdir}/checkpoints",
        }
    )


def _first_step(metrics: Sequence[dict[str, Any]], accuracy: float) -> int | None:
    """Returns the first evaluated step that reaches an accuracy; None without one."""
    name = _accuracy(metrics[-1])
    return next((line["step"] for line in metrics if line[name] >= accuracy), None)


def _accuracy(line: Mapping[str, Any]) -> str:
    """Returns the name of the accuracy that evaluations during training measure."""
    split = "validation" if "validation_accuracy" in line else "test"
    return f"{split}_accuracy"
