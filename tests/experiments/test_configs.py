"""The files in `configs/`, and settings that a command line changes in them."""

from typing import Any

import pytest
from experiments.flat_settings import flat_settings
from ml_collections import ConfigDict

from bn_jax.errors import UserError
from bn_jax.experiments.configs import load_config

# Configurations with one arm with normalization and one without.
NAMES = ("mnist_cnn.py", "mnist_mlp.py")


def load(key: str, text: str) -> ConfigDict:
    return load_config("mnist_mlp.py", "bn", overrides={key: text})


def settings(
    name: str, arm: str, *, overrides: dict[str, str] | None = None
) -> dict[str, Any]:
    return flat_settings(load_config(name, arm, overrides=overrides))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arm", ["bn", "baseline"])
def test_a_configuration_takes_no_setting_that_it_does_not_have(
    name: str, arm: str
) -> None:
    config = load_config(name, arm)
    for node in (config, config.optimizer, config.evaluation.schedule):
        assert node.is_locked
        with pytest.raises(AttributeError, match="locked"):
            node.new_setting = 1


@pytest.mark.parametrize("name", NAMES)
def test_the_arms_differ_in_their_normalization_alone(name: str) -> None:
    bn, baseline = settings(name, "bn"), settings(name, "baseline")
    assert bn.keys() == baseline.keys()
    assert [key for key in bn if bn[key] != baseline[key]] == ["norm.name"]
    assert (bn["norm.name"], baseline["norm.name"]) == ("batch_norm", None)


def test_the_papers_numbers_are_the_defaults() -> None:
    config = settings("mnist_mlp.py", "bn")
    expected = {
        "num_steps": 50_000,
        "batch_size": 60,
        "model.hidden_features": (100, 100, 100),
        "model.nonlinearity": "sigmoid",
        "optimizer.name": "sgd",
    }
    assert {key: config[key] for key in expected} == expected


def test_an_unknown_arm_is_refused() -> None:
    with pytest.raises(ValueError, match="must be 'bn' or 'baseline', but is 'bm'"):
        load_config("mnist_mlp.py", "bm")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("num_steps", "2000", 2000),
        ("optimizer.learning_rate", "1e-2", 0.01),
        ("optimizer.learning_rate", "1", 1.0),
        ("evaluation.schedule.every_steps", "7", 7),
        ("model.hidden_features", "(8, 8)", (8, 8)),
        ("model.nonlinearity", "relu", "relu"),
        ("dataset.idx_dir", "/some/folder", "/some/folder"),
        ("dataset.idx_dir", "None", None),
        ("dataset.idx_dir", "2024", "2024"),
        ("probes", "()", ()),
    ],
)
def test_a_setting_can_be_changed(key: str, text: str, value: Any) -> None:
    config = load(key, text)
    for part in key.split("."):
        config = config[part]
    assert (config, type(config)) == (value, type(value))


def test_several_settings_can_be_changed_and_no_other_one_is() -> None:
    overrides = {"seed": "3", "norm.epsilon": "0.5"}
    changed = settings("mnist_mlp.py", "bn", overrides=overrides)
    expected = {**settings("mnist_mlp.py", "bn"), "seed": 3, "norm.epsilon": 0.5}
    assert changed == expected


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("num_stps", "num_steps"),
        ("optimizer.learning_rte", "learning_rate"),
        ("optimiser.learning_rate", "optimizer"),
        ("evaluation.schedule.evry_steps", "every_steps"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_one(
    key: str, nearest: str
) -> None:
    expected = f'--config.{key}: .* has no such setting .*Did you mean "{nearest}"'
    with pytest.raises(UserError, match=expected):
        load(key, "1")


@pytest.mark.parametrize("key", ["", "xyz", "optimizer.xyz", "seed.x", "norm.name.x"])
def test_a_setting_with_nothing_near_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"^--config.{key}"):
        load(key, "1")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("num_steps", "many"),
        ("num_steps", "1.5"),
        ("num_steps", ""),
        ("num_steps", "None"),
        ("optimizer.learning_rate", "fast"),
        ("model.hidden_features", "8"),
        ("model.nonlinearity", "1"),
        ("optimizer", "sgd"),
    ],
)
def test_a_value_of_another_type_is_refused(key: str, text: str) -> None:
    with pytest.raises(UserError, match=f"^--config.{key}={text}: "):
        load(key, text)
