"""Runs of the seven arms with known accuracies."""

from collections.abc import Sequence

from reporting.runs import synthetic_run

from bn_jax.reporting.figure2 import DataSize
from bn_jax.reporting.load import Run

# Two seeds an arm, evaluated after 10, 20, 30, 40, 50 and 60 steps.
ACCURACIES: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "inception": ([0.1, 0.2, 0.5, 0.7, 0.8, 0.9], [0.1, 0.3, 0.6, 0.7, 0.92, 0.91]),
    "bn_baseline": (
        [0.2, 0.8, 0.9, 0.91, 0.92, 0.92],
        [0.3, 0.92, 0.9, 0.93, 0.9, 0.9],
    ),
    "bn_x5": ([0.5, 0.90, 0.93, 0.94, 0.95, 0.95], [0.92, 0.9, 0.93, 0.94, 0.95, 0.96]),
    "bn_x30": ([0.4, 0.7, 0.95, 0.95, 0.96, 0.97], [0.4, 0.7, 0.95, 0.95, 0.96, 0.95]),
    "bn_x5_sigmoid": ([0.1, 0.2, 0.5, 0.7, 0.8, 0.88], [0.1, 0.3, 0.6, 0.7, 0.8, 0.85]),
    "inception_x5": ([], [0.1, 0.12, 0.11, 0.1, 0.1, 0.1]),
    "inception_sigmoid": ([0.1] * 6, [0.11, 0.1, 0.13, 0.1, 0.1, 0.1]),
}
DATA = DataSize("mnist", (28, 28, 1), num_classes=10, num_validation_images=5000)
RATES = {"bn_x5": 0.05, "bn_x30": 0.3, "bn_x5_sigmoid": 0.05, "inception_x5": 0.05}
# The first seed of one arm, before its first evaluation.
DIVERGED_AFTER: dict[str, list[int | None]] = {
    arm: [7 if arm == "inception_x5" else None, None] for arm in ACCURACIES
}


def small_arms() -> dict[str, list[Run]]:
    """The runs, of which one has diverged."""
    arms = {}
    for arm, seeds in ACCURACIES.items():
        arms[arm] = []
        for seed, accuracies in enumerate(seeds):
            run = synthetic_run(accuracies or [0.0], seed=seed)
            if not accuracies:
                empty = {name: values[:0] for name, values in run.metrics.items()}
                run = run._replace(metrics=empty, summary={})
            config = {
                "seed": seed,
                "num_steps": 60,
                "batch_size": 32,
                "optimizer": {"learning_rate": RATES.get(arm, 0.01)},
                "dataset": {
                    "name": "mnist",
                    "idx_dir": None,
                    "train_split": "train[:-5000]",
                    "test_split": "train[-5000:]",
                },
                "model": {"width": 0.125},
            }
            arms[arm].append(run._replace(config=config))
    return arms
