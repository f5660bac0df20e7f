"""Results of a run, read from its workdir."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bn_jax.errors import UserError
from bn_jax.workdir.files import read_metrics, read_summary


class Run(NamedTuple):
    """Configuration and results of one run.

    Attributes:
        config: The configuration.
        summary: Content of `summary.json`; empty if the run has diverged.
        metrics: Arrays by name, including `step`, with one entry an evaluation.
    """

    config: dict[str, Any]
    summary: dict[str, Any]
    metrics: dict[str, np.ndarray]

    def steps_to(self, accuracy: float) -> int | None:
        """Returns the first evaluated step that reaches a test accuracy, or None.

        Args:
            accuracy: Test accuracy to reach, in [0, 1].
        """
        reached = self.metrics["step"][self.metrics["test_accuracy"] >= accuracy]
        return int(reached[0]) if len(reached) else None


def load_run(workdir: Path, *, has_diverged: bool = False) -> Run:
    """Reads the results of a run from its workdir.

    Args:
        workdir: Path of the workdir.
        has_diverged: True if the run ended early because a value was not finite. Such a
            run has no summary, and may have no evaluation.

    Raises:
        UserError: If the run is not complete, or evaluated a validation split.
    """
    summary = read_summary(workdir)
    if summary is None and not has_diverged:
        raise UserError(f"workdir {workdir}: the run is not complete; train it first.")
    lines = read_metrics(workdir)
    if lines and "test_accuracy" not in lines[0]:
        raise UserError(
            f"workdir {workdir}: its evaluations used the validation split, but "
            "figures show those of the test split. Train without a validation split."
        )
    names = lines[0] if lines else ("step", "test_accuracy")
    return Run(
        config=json.loads((workdir / "config.json").read_text()),
        summary=summary or {},
        metrics={name: np.array([line[name] for line in lines]) for name in names},
    )
