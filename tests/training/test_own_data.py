"""Runs on data of a user's own: a function, objects, and a folder of images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.imagenet_files import encode, picture
from ml_collections import ConfigDict
from training.tiny_runs import Complete, complete_run

from bn_jax.errors import UserError
from bn_jax.results import Evaluation
from bn_jax.training import base_config
from bn_jax.training.evaluation.ensemble import ensemble
from bn_jax.training.evaluation.evaluate import evaluate
from bn_jax.training.evaluation.inspect import inspect


def own_config(name: str, **dataset: Any) -> ConfigDict:
    """A configuration that trains in seconds on data of three classes."""
    config = base_config()
    config.num_steps = 6
    config.batch_size = 15
    config.model.name = "mlp"
    config.model.hidden_features = (4,)
    config.optimizer.learning_rate = 0.05
    config.parallel.num_devices = 1
    config.evaluation.schedule.every_steps = 3
    config.evaluation.batch_size = 8
    config.evaluation.population_batches = 2
    config.checkpoint.every_steps = 3
    config.max_steps_per_dispatch = 3
    config.dataset.name = name
    config.dataset.update(dataset)
    return config


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Complete:
    """A run on arrays, with a validation split of 17 and a test split of 20."""
    workdir = tmp_path_factory.mktemp("own") / "run"
    return complete_run(own_config("data.own_data:in_memory"), workdir)


def evaluated(run: Complete, **dataset: str) -> Evaluation:
    return evaluate(run.workdir, dataset=dataset)


def test_evaluations_in_training_use_the_validation_split(own: Complete) -> None:
    expected = {"step", "train_loss", "validation_loss", "validation_accuracy"}
    assert own.metrics.keys() == expected
    accuracy = own.metrics["validation_accuracy"][-1]
    assert own.summary["final_validation_accuracy"] == accuracy
    assert (accuracy * 17).is_integer()
    again = evaluated(own, test_split="validation")
    assert again.num_examples == 17
    loss = own.metrics["validation_loss"][-1]
    assert again.metrics["test_loss"] == pytest.approx(loss, rel=1e-6)


def test_the_test_split_is_for_the_evaluation_of_a_run(own: Complete) -> None:
    found = evaluated(own)
    assert found.data == "data.own_data:in_memory"
    assert found.num_examples == 20
    assert found.metrics.keys() == {"test_loss", "test_accuracy"}


def test_without_a_validation_split_the_test_split_is_used(tmp_path: Path) -> None:
    run = complete_run(own_config("data.own_data:without_validation"), tmp_path)
    assert run.metrics.keys() == {"step", "train_loss", "test_loss", "test_accuracy"}


def test_objects_give_the_run_that_arrays_give(own: Complete, tmp_path: Path) -> None:
    run = complete_run(own_config("data.own_data:on_request"), tmp_path / "run")
    np.testing.assert_equal(run.metrics, own.metrics)


def test_a_run_on_own_data_is_inspected_and_joins_an_ensemble(
    own: Complete, tmp_path: Path
) -> None:
    step, layers = inspect(own.workdir)
    assert step == 6
    assert [layer.path for layer in layers] == ["hidden0", "logits", "norm0"]
    config = own_config("data.own_data:in_memory")
    config.seed = 1
    other = complete_run(config, tmp_path / "run")
    runs = [own, other]
    found = ensemble(
        [run.workdir for run in runs],
        statistics="moving",
    )
    assert (len(found.members), found.num_examples) == (2, 20)


def test_runs_on_two_functions_are_no_ensemble(own: Complete, tmp_path: Path) -> None:
    config = own_config("data.own_data:without_validation")
    other = complete_run(config, tmp_path / "run")
    dataset = {"name": "data.own_data:in_memory"}
    expected = r"was trained on data\.own_data:in_memory, .* on data\.own_data:without"
    with pytest.raises(UserError, match=expected):
        ensemble([own.workdir, other.workdir], dataset=dataset)


def test_a_folder_of_images_trains_and_evaluates(tmp_path: Path) -> None:
    for split, count in {"train": 9, "val": 3, "test": 2}.items():
        for label in range(3):
            folder = tmp_path / "images" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                content = encode(picture(10 * label + number))
                (folder / f"{number}.jpg").write_bytes(content)
    folder = str(tmp_path / "images")
    config = own_config("mnist", image_dir=folder, image_size=8)
    run = complete_run(config, tmp_path / "run")
    assert "validation_accuracy" in run.metrics
    assert evaluated(run).num_examples == 6
