"""Trained models, evaluated from their folder."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from data.idx_files import write_idx_folder
from ml_collections import ConfigDict
from training import numpy_mlp
from training.tiny_runs import (
    Complete,
    final_state,
    parts_of,
    tiny_config,
    with_settings,
)

from bn_jax.data.idx import load_idx_folder
from bn_jax.errors import UserError
from bn_jax.training.evaluation.evaluate import describe_statistics, evaluate
from bn_jax.training.parts import trace_init
from bn_jax.workdir.files import claim_workdir


def float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def test_population_statistics_give_the_last_evaluation_of_training(
    bn: Complete,
) -> None:
    evaluation = evaluate(bn.workdir, statistics="population")
    for name, value in evaluation.metrics.items():
        np.testing.assert_allclose(value, bn.metrics[name][-1], rtol=1e-6)
    assert (evaluation.step, evaluation.num_examples) == (60, 97)


def test_moving_statistics_are_those_of_the_checkpoint(
    bn: Complete, idx_dir: Path
) -> None:
    state, data = final_state(bn.config, bn.workdir), load_idx_folder(idx_dir)
    images = data.test.images > 127
    _, logits = numpy_mlp.predict(
        float64(state.params), float64(state.batch_stats), images
    )
    evaluation = evaluate(bn.workdir, statistics="moving")
    expected = numpy_mlp.cross_entropy(logits, data.test.labels)
    np.testing.assert_allclose(evaluation.metrics["test_loss"], expected, rtol=1e-5)


def test_batch_statistics_are_those_of_each_test_batch(
    bn: Complete, idx_dir: Path
) -> None:
    state, data = final_state(bn.config, bn.workdir), load_idx_folder(idx_dir)
    params, losses = float64(state.params), []
    # 97 images in batches of 40, the last one of 17 without anything to fill it up.
    for first in (0, 40, 80):
        images = data.test.images[first : first + 40] > 127
        labels = data.test.labels[first : first + 40]
        statistics = numpy_mlp.population_statistics(params, [images])
        for layer in statistics.values():
            layer["var"] = layer["var"] * (1 - 1 / len(images))
        _, logits = numpy_mlp.predict(params, statistics, images)
        losses.append(len(labels) * numpy_mlp.cross_entropy(logits, labels))
    evaluation = evaluate(bn.workdir, statistics="batch")
    expected = sum(losses) / 97
    np.testing.assert_allclose(evaluation.metrics["test_loss"], expected, rtol=1e-5)
    assert evaluation.num_examples == 97


@pytest.mark.parametrize("statistics", ["moving", "population", "batch"])
def test_without_normalization_all_statistics_are_alike(
    baseline: Complete, statistics: str
) -> None:
    evaluation = evaluate(baseline.workdir, statistics=statistics)
    np.testing.assert_allclose(
        evaluation.metrics["test_loss"], baseline.metrics["test_loss"][-1], rtol=1e-5
    )


def test_nothing_in_the_folder_is_changed(bn: Complete) -> None:
    before = {path: path.stat().st_mtime_ns for path in bn.workdir.rglob("*")}
    evaluate(bn.workdir, statistics="moving")
    assert {path: path.stat().st_mtime_ns for path in bn.workdir.rglob("*")} == before


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path, idx_dir: Path) -> None:
    claim_workdir(tmp_path, json.loads(tiny_config(idx_dir).to_json()))
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        evaluate(tmp_path, statistics="moving")


@pytest.mark.parametrize("crops", [0, 2, 143, -144])
def test_other_numbers_of_crops_are_refused(bn: Complete, crops: int) -> None:
    with pytest.raises(UserError, match=rf"--crops must be 1 or 144, but is {crops}"):
        evaluate(bn.workdir, statistics="moving", crops=crops)


def test_images_of_one_size_have_no_crops(bn: Complete) -> None:
    expected = r"--crops: 144 crops need images of varying size.* all 28x28"
    with pytest.raises(UserError, match=expected):
        evaluate(bn.workdir, statistics="moving", crops=144)


def test_crops_are_not_normalized_by_themselves(bn: Complete) -> None:
    expected = r"--statistics=batch: .* With --crops=144 use moving or population"
    with pytest.raises(UserError, match=expected):
        evaluate(bn.workdir, statistics="batch", crops=144)


def test_unknown_statistics_are_refused(bn: Complete) -> None:
    with pytest.raises(UserError, match=r"moving, population, batch.*'running'"):
        evaluate(bn.workdir, statistics="running")


def test_a_checkpoint_of_another_model_is_refused_by_the_leaf(
    bn: Complete, tmp_path: Path
) -> None:
    workdir = with_settings(bn, tmp_path / "run", model__hidden_features=[8, 6])
    with pytest.raises(UserError, match=r"params/hidden1/kernel is float32\[8, 7\]"):
        evaluate(workdir, statistics="moving")


@pytest.mark.parametrize("num_classes", [9, 13])
def test_data_of_other_classes_are_named_when_they_are_refused(
    bn: Complete, tmp_path: Path, num_classes: int
) -> None:
    letters = write_idx_folder(tmp_path / "letters", num_classes=num_classes)
    expected = rf"letters, of {num_classes} classes, .* is float32\[10\] in the"
    with pytest.raises(UserError, match=expected) as refused:
        evaluate(bn.workdir, dataset={"idx_dir": str(letters)}, statistics="moving")
    # Another folder would be no way out.
    assert "--workdir" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "statistics", "expected"),
    [
        ({}, "population", "population statistics"),
        ({}, "moving", "running statistics"),
        ({}, "batch", "batch statistics"),
        ({"norm__frozen": True}, "population", "running statistics"),
        ({"norm__frozen": True}, "batch", "running statistics"),
        ({"arm": "baseline"}, "population", "no statistics"),
    ],
)
def test_an_evaluation_says_which_statistics_it_has_used(
    idx_dir: Path, settings: dict, statistics: str, expected: str
) -> None:
    parts = parts_of(tiny_config(idx_dir, **settings))
    variables = trace_init(parts).shapes.variables
    assert describe_statistics(parts, variables, statistics) == expected


def test_layers_of_flax_keep_running_statistics_in_an_evaluation(
    idx_dir: Path, own_folder: Path
) -> None:
    config = tiny_config(idx_dir, module_dir=str(own_folder))
    with config.unlocked():
        config.model = ConfigDict({"name": "own_models.linen:Net"})
    parts = parts_of(config)
    variables = trace_init(parts).shapes.variables
    described = describe_statistics(parts, variables, "population")
    assert described == "population statistics; running statistics of 1 layer"
