"""A complete run, as its folder holds it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bn_jax.errors import UserError
from bn_jax.workdir import read_metrics, read_summary


class Run(NamedTuple):
    """One run.

    Attributes:
        config: Its configuration.
        summary: What it came to.
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


def load_run(workdir: Path) -> Run:
    """Reads a run's folder.

    Args:
        workdir: The folder.

    Raises:
        UserError: If the run is not complete.
    """
    summary = read_summary(workdir)
    if summary is None:
        raise UserError(f"{workdir}: this run is not complete; train it first.")
    lines = read_metrics(workdir)
    return Run(
        config=json.loads((workdir / "config.json").read_text()),
        summary=summary,
        metrics={name: np.array([line[name] for line in lines]) for name in lines[0]},
    )
