"""A run's folder becomes arrays."""

from pathlib import Path

import numpy as np
import pytest
from reporting.runs import synthetic_run, write_run

from bn_jax.errors import UserError
from bn_jax.reporting.load import load_run

RUN = synthetic_run([0.5, 0.9, 0.85, 0.95], seed=2)


def test_a_complete_run_comes_back(tmp_path: Path) -> None:
    loaded = load_run(write_run(tmp_path, RUN))
    np.testing.assert_equal(loaded.metrics, RUN.metrics)
    assert loaded.config == {"format_version": 2, **RUN.config}
    assert loaded.summary == {"format_version": 2, **RUN.summary}


@pytest.mark.shapes
def test_metrics_are_arrays_with_an_entry_an_evaluation(tmp_path: Path) -> None:
    metrics = load_run(write_run(tmp_path, RUN)).metrics
    shapes = {name: values.shape for name, values in metrics.items()}
    assert shapes == {"step": (4,), "test_accuracy": (4,), "percentiles": (4, 3)}


@pytest.mark.parametrize(
    ("accuracy", "step"), [(0.0, 10), (0.5, 10), (0.9, 20), (0.95, 40), (0.951, None)]
)
def test_steps_to_an_accuracy_are_those_of_the_first_evaluation_that_has_it(
    accuracy: float, step: int | None
) -> None:
    assert RUN.steps_to(accuracy) == step


def test_a_run_that_is_not_complete_is_refused(tmp_path: Path) -> None:
    (write_run(tmp_path, RUN) / "summary.json").unlink()
    with pytest.raises(UserError, match=f"{tmp_path}: the run is not complete; train"):
        load_run(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing: the run is not complete"):
        load_run(tmp_path / "nothing")


def test_a_run_that_has_diverged_has_metrics_and_no_summary(tmp_path: Path) -> None:
    (write_run(tmp_path, RUN) / "summary.json").unlink()
    run = load_run(tmp_path, has_diverged=True)
    assert run.summary == {}
    np.testing.assert_equal(run.metrics, RUN.metrics)


def test_a_run_that_has_diverged_may_have_no_evaluation(tmp_path: Path) -> None:
    (write_run(tmp_path, RUN) / "summary.json").unlink()
    (tmp_path / "metrics.jsonl").write_text("")
    run = load_run(tmp_path, has_diverged=True)
    assert run.metrics["test_accuracy"].shape == (0,)
    assert run.steps_to(0.5) is None
