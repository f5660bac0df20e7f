"""A complete run, as its folder holds it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bn_jax.errors import UserError
from bn_jax.workdir.files import read_metrics, read_summary


class Run(NamedTuple):
    """One run.

    Attributes:
        config: Its configuration.
        summary: What it came to; empty if it has diverged.
        metrics: Arrays by name, one entry an evaluation; `step` among them.
    """

    config: dict[str, Any]
    summary: dict[str, Any]
    metrics: dict[str, np.ndarray]

    def steps_to(self, accuracy: float) -> int | None:
        """The first evaluated step with at least that test accuracy, if any.

        Args:
            accuracy: In [0, 1].
        """
        reached = self.metrics["step"][self.metrics["test_accuracy"] >= accuracy]
        return int(reached[0]) if len(reached) else None


def load_run(workdir: Path, *, has_diverged: bool = False) -> Run:
    """Reads a run's folder.

    Args:
        workdir: The folder.
        has_diverged: Whether the run has ended early because something was not finite:
            it has no summary then, and perhaps no evaluation.

    Raises:
        UserError: If the run is not complete.
    """
    summary = read_summary(workdir)
    if summary is None and not has_diverged:
        raise UserError(f"{workdir}: this run is not complete; train it first.")
    lines = read_metrics(workdir)
    names = lines[0] if lines else ("step", "test_accuracy")
    return Run(
        config=json.loads((workdir / "config.json").read_text()),
        summary=summary or {},
        metrics={name: np.array([line[name] for line in lines]) for name in names},
    )
