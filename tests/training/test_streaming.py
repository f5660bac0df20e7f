"""Evaluations whose images are read from the disk, crops of them included."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from training.tiny_imagenet import tiny_imagenet_config
from training.tiny_runs import (
    Complete,
    assert_same_result,
    compile_tiny_run,
    complete_run,
    final_state,
    interrupt,
    parts_of,
    with_settings,
)

import bn_jax.progress
from bn_jax.data import load_dataset
from bn_jax.data.imagenet.cropped import CroppedSplit
from bn_jax.data.imagenet.crops import NUM_CROPS
from bn_jax.training.checkpoints.checkpoint import Checkpoints
from bn_jax.training.evaluation.evaluate import evaluate
from bn_jax.training.loop import train
from bn_jax.training.step.metrics import mean_metrics


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of test images in each read."""
    sizes: list[int] = []
    read = CroppedSplit.read

    def spy(self: Any, indices: np.ndarray, positions: np.ndarray) -> Any:
        if len(self) == 12:
            sizes.append(indices.size)
        return read(self, indices, positions)

    monkeypatch.setattr(CroppedSplit, "read", spy)
    return sizes


def probabilities(run: Complete, images: np.ndarray, prefix: str = "") -> np.ndarray:
    """Of each image, by moving averages, in float64 from the scores on."""
    variables = final_state(run.config, run.workdir).networks[prefix]
    inputs = images.astype(np.float32) / 255
    apply = jax.jit(partial(parts_of(run.config).model.apply, train=False))
    logits = apply(variables, inputs)
    p = np.exp(np.asarray(logits, np.float64))
    return p / p.sum(axis=-1, keepdims=True)


def expected_metrics(p: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    five = np.argsort(-p, axis=-1)[:, :5]
    return {
        "test_loss": float(-np.log(p[np.arange(len(p)), labels]).mean()),
        "test_accuracy": float((five[:, 0] == labels).mean()),
        "test_top5_accuracy": float((five == labels[:, None]).any(axis=1).mean()),
    }


def assert_metrics(found: Any, expected: dict[str, float], prefix: str = "") -> None:
    assert len(expected) == 3
    for name, value in expected.items():
        # The network computes in float32.
        assert found[f"{prefix}{name}"] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("batch_size", [5, 1000])
def test_every_image_counts_once_whatever_is_read_at_once(
    imagenet: Complete, imagenet_dir: str, tmp_path: Path, batch_size: int
) -> None:
    workdir = with_settings(
        imagenet, tmp_path / "run", evaluation__batch_size=batch_size
    )
    evaluation = evaluate(workdir, statistics="moving")
    split = load_dataset("imagenet2012", data_dir=imagenet_dir, image_size=16).test
    images, labels = split.read(np.arange(12), np.arange(12))
    for prefix in ("", "ema_"):
        expected = expected_metrics(probabilities(imagenet, images, prefix), labels)
        assert_metrics(evaluation.metrics, expected, prefix)
    assert evaluation.num_examples == 12


def test_population_statistics_give_the_evaluation_of_training(
    imagenet: Complete,
) -> None:
    evaluation = evaluate(imagenet.workdir, statistics="population")
    assert len(evaluation.metrics) == 6
    for name, value in evaluation.metrics.items():
        assert value == pytest.approx(imagenet.metrics[name][-1], rel=1e-6)


def test_training_reads_a_batch_at_a_time_and_once_for_the_averaged_network_too(
    imagenet_dir: str, asked: list[int]
) -> None:
    config = tiny_imagenet_config(imagenet_dir, ema_decay=0.5)
    run = compile_tiny_run(config)
    # For its shape, which evaluations are compiled for.
    assert asked == [5]
    run.evaluate(run.initial_state, 0, lambda: 0)
    assert asked == [5, 5, 5, 5]


@pytest.mark.slow
def test_a_run_that_goes_on_sees_the_same_images_as_one_that_was_not_interrupted(
    imagenet_dir: str, tmp_path: Path
) -> None:
    # Into the second epoch, whose order is another one.
    config = tiny_imagenet_config(
        imagenet_dir,
        num_steps=8,
        max_steps_per_dispatch=1,
        checkpoint__every_steps=3,
    )
    expected = complete_run(config, tmp_path / "whole")
    interrupt(config, tmp_path / "cut", where=Checkpoints, method="save", step=6)
    train(config, tmp_path / "cut", show_progress=False)
    assert_same_result(tmp_path / "cut", expected)


def test_the_sums_of_four_devices_are_those_of_one(imagenet_dir: str) -> None:
    metrics = []
    for count in (1, 4):
        config = tiny_imagenet_config(imagenet_dir, parallel__num_devices=count)
        run = compile_tiny_run(config)
        sums = jax.device_get(run.evaluate(run.initial_state, 0, lambda: 0).sums[""])
        assert sums.num_examples == 12
        metrics.append(mean_metrics(sums))
    assert_metrics(metrics[1], metrics[0])


def test_the_probabilities_of_all_crops_of_each_image_are_averaged(
    imagenet: Complete, imagenet_dir: str
) -> None:
    data = load_dataset("imagenet2012", data_dir=imagenet_dir, image_size=16)
    crops, labels = data.test.all_crops().read(np.arange(12), np.arange(12))
    evaluation = evaluate(imagenet.workdir, statistics="moving", crops=144)
    for prefix in ("", "ema_"):
        p = probabilities(imagenet, crops.reshape(-1, *crops.shape[2:]), prefix)
        expected = expected_metrics(p.reshape(12, NUM_CROPS, -1).mean(axis=1), labels)
        assert_metrics(evaluation.metrics, expected, prefix)
    assert evaluation.num_examples == 12


@pytest.mark.parametrize(("batch_size", "images"), [(5, 1), (300, 2)])
def test_as_many_images_are_cropped_at_once_as_fit_into_a_batch(
    imagenet: Complete,
    tmp_path: Path,
    asked: list[int],
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    images: int,
) -> None:
    one_device = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one_device)
    workdir = with_settings(
        imagenet,
        tmp_path / "run",
        evaluation__batch_size=batch_size,
        dataset__read_threads=2,
    )
    found = evaluate(workdir, statistics="moving", crops=NUM_CROPS)
    assert found.num_examples == 12
    # The last batch is filled up. One for each thread is read at once.
    batches = -(-12 // images)
    assert asked == [2 * images] * (batches // 2) + [images] * (batches % 2)


@pytest.mark.parametrize("statistics", ["moving", "batch"])
def test_an_evaluation_that_reads_the_disk_shows_how_far_it_is(
    imagenet: Complete,
    tmp_path: Path,
    statistics: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bn_jax.progress, "_SECONDS_BETWEEN_LINES", 0)
    workdir = with_settings(imagenet, tmp_path / "run", evaluation__batch_size=5)
    evaluate(workdir, statistics=statistics)
    assert "evaluated: 12 of 12, 00:00 left\n" in capfd.readouterr().err


def test_an_evaluation_in_memory_shows_none(
    bn: Complete, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluate(bn.workdir, statistics="moving")
    assert "evaluated" not in capfd.readouterr().err
