"""Several trained models together, against float64 NumPy; and what is no ensemble."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from training import numpy_mlp
from training.tiny_imagenet import tiny_imagenet_config
from training.tiny_runs import (
    Complete,
    complete_run,
    final_state,
    tiny_config,
)

from bn_jax.data.dataset import ArraySplit
from bn_jax.data.idx import load_idx_folder
from bn_jax.errors import UserError
from bn_jax.results import EnsembleEvaluation
from bn_jax.training.evaluation import ensemble as module
from bn_jax.training.evaluation.ensemble import ensemble
from bn_jax.training.evaluation.evaluate import STATISTICS, evaluate

# One evaluation and one checkpoint, after five steps.
SHORT = {"num_steps": 5, "max_steps_per_dispatch": 5, "evaluation__batch_size": 40}


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory, idx_dir: Path) -> Complete:
    """A run that keeps averaged parameters, of fewer layers than the others."""
    config = tiny_config(
        idx_dir, ema_decay=0.5, model__hidden_features=(6,), seed=2, **SHORT
    )
    return complete_run(config, tmp_path_factory.mktemp("runs") / "averaged")


def together(
    *runs: Complete, statistics: str = "moving", crops: int = 1
) -> EnsembleEvaluation:
    return ensemble(
        [run.workdir for run in runs],
        statistics=statistics,
        crops=crops,
    )


def probabilities(run: Complete, images: np.ndarray) -> np.ndarray:
    """By moving averages, in float64."""
    state = final_state(run.config, run.workdir)
    chosen = (state.ema_params or state.params, state.batch_stats)
    params, stats = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), chosen)
    p = np.exp(numpy_mlp.predict(params, stats, images > 127).logits)
    return p / p.sum(axis=-1, keepdims=True)


@pytest.mark.slow
def test_probabilities_are_averaged_over_networks_of_any_kind(
    bn: Complete, baseline: Complete, averaged: Complete, idx_dir: Path
) -> None:
    data = load_idx_folder(idx_dir)
    runs = (bn, baseline, averaged)
    p = np.mean([probabilities(run, data.test.images) for run in runs], axis=0)
    labels = data.test.labels
    metrics = together(*runs).metrics
    loss = -np.log(p[np.arange(97), labels]).mean()
    assert metrics["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["test_accuracy"] == (p.argmax(axis=-1) == labels).mean()
    five = np.argsort(-p, axis=-1)[:, :5]
    is_in = (five == labels[:, None]).any(axis=1)
    assert metrics["test_top5_accuracy"] == is_in.mean()


@pytest.mark.parametrize(
    "statistics",
    [
        "population",
        *(
            pytest.param(other, marks=pytest.mark.slow)
            for other in STATISTICS
            if other != "population"
        ),
    ],
)
def test_members_do_as_well_as_when_they_are_evaluated_alone(
    bn: Complete, averaged: Complete, statistics: str
) -> None:
    found = together(bn, averaged, statistics=statistics)
    assert (found.data, found.num_examples) == ("digits", 97)
    for run, member, prefix in zip(
        (bn, averaged), found.members, ("", "ema_"), strict=True
    ):
        alone = evaluate(run.workdir, statistics=statistics)
        assert (member.name, member.step) == (str(run.workdir), alone.step)
        assert member.is_averaged == bool(prefix)
        for name, value in member.metrics.items():
            assert value == pytest.approx(alone.metrics[f"{prefix}{name}"], rel=1e-5)


def test_test_images_are_read_once_for_all(
    bn: Complete, baseline: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, read = [], ArraySplit.read

    def spy(self: ArraySplit, indices: np.ndarray, positions: np.ndarray) -> Any:
        if len(self) == 97:
            sizes.append(indices.size)
        return read(self, indices, positions)

    monkeypatch.setattr(ArraySplit, "read", spy)
    together(bn, baseline)
    # Three batches of 40, the last one filled up; five devices take a fifth each.
    assert sizes == [24] * 5


def test_a_run_is_restored_when_the_one_before_it_is_ready(
    bn: Complete, baseline: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the training images of all would lie in memory at once.
    order = []

    def spy(called: Callable[..., Any], *args: Any, **options: Any) -> Any:
        order.append(called.__name__)
        return called(*args, **options)

    for name in ("restore", "_network"):
        monkeypatch.setattr(module, name, partial(spy, getattr(module, name)))
    together(bn, baseline)
    assert order == ["restore", "_network"] * 2


@pytest.mark.slow
def test_crops_are_averaged_over_crops_and_networks(
    imagenet: Complete, imagenet_dir: str, tmp_path: Path
) -> None:
    config = tiny_imagenet_config(
        imagenet_dir, seed=1, dataset__test_split="validation", model__channels=(3,)
    )
    with config.unlocked():
        # Training images may differ in their crops and colours.
        config.dataset.augmentation_seed = 7
    other = complete_run(config, tmp_path / "other")
    found = together(imagenet, other, crops=144)
    for run, member, prefix in zip(
        (imagenet, other), found.members, ("ema_", ""), strict=True
    ):
        alone = evaluate(run.workdir, statistics="moving", crops=144)
        loss = alone.metrics[f"{prefix}test_loss"]
        assert member.metrics["test_loss"] == pytest.approx(loss, rel=1e-5)
    # The logarithm is concave.
    losses = [member.metrics["test_loss"] for member in found.members]
    assert found.metrics["test_loss"] < np.mean(losses)
    assert found.num_examples == 12


def test_one_run_is_no_ensemble(bn: Complete) -> None:
    expected = r"needs two runs or more, but got 1; use `bn-jax evaluate DIR`"
    with pytest.raises(UserError, match=expected):
        together(bn)


def test_a_run_counts_once(bn: Complete, baseline: Complete, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bn.workdir)
    for workdir in (bn.workdir, tmp_path / "link", bn.workdir / ".." / "bn"):
        same = bn._replace(workdir=workdir)
        with pytest.raises(UserError, match="one folder; its run would count twice"):
            together(bn, baseline, same)


def test_a_member_without_a_checkpoint_is_refused(bn: Complete, tmp_path: Path) -> None:
    shutil.copy(bn.workdir / "config.json", tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path}: holds no checkpoint yet"):
        ensemble([bn.workdir, tmp_path])


@pytest.mark.parametrize(
    ("statistics", "crops", "expected"),
    [
        ("running", 1, r"moving, population, batch.*'running'"),
        ("moving", 10, r"--crops must be 1 or 144, but is 10"),
        ("moving", 144, r"144 crops need images of varying size"),
        ("batch", 144, r"With --crops=144 use moving or population"),
    ],
)
def test_what_evaluate_refuses_is_refused(
    bn: Complete, baseline: Complete, statistics: str, crops: int, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        together(bn, baseline, statistics=statistics, crops=crops)
