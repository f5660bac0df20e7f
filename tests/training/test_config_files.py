"""Configuration files, and settings that a command line changes in them."""

from pathlib import Path
from typing import Any

import pytest
from experiments.flat_settings import flat_settings
from ml_collections import ConfigDict

from bn_jax.errors import UserError
from bn_jax.training.config_files import load_config

# Configurations with one arm with normalization and one without.
NAMES = ("mnist_cnn", "mnist_mlp")


def load(key: str, text: str) -> ConfigDict:
    return load_config("mnist_mlp:bn", overrides={key: text})


def settings(
    name: str, arm: str, *, overrides: dict[str, str] | None = None
) -> dict[str, Any]:
    return flat_settings(load_config(f"{name}:{arm}", overrides=overrides))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arm", ["bn", "baseline"])
def test_a_configuration_takes_no_setting_that_it_does_not_have(
    name: str, arm: str
) -> None:
    config = load_config(f"{name}:{arm}")
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
    config = settings("mnist_mlp", "bn")
    expected = {
        "num_steps": 50_000,
        "batch_size": 60,
        "model.hidden_features": (100, 100, 100),
        "model.nonlinearity": "sigmoid",
        "optimizer.name": "sgd",
    }
    assert {key: config[key] for key in expected} == expected


def test_an_unknown_arm_is_refused() -> None:
    with pytest.raises(UserError, match=r"must be 'bn' or 'baseline', but is 'bm'"):
        load_config("mnist_mlp:bm")


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
        ("model.nonlinearity", "'relu'", "relu"),
        ("norm.sync", "false", False),
        ("norm.momentum", "None", None),
        ("norm.group_size", "20", 20),
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
    changed = settings("mnist_mlp", "bn", overrides=overrides)
    expected = {**settings("mnist_mlp", "bn"), "seed": 3, "norm.epsilon": 0.5}
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
    expected = rf"--config.{key}: .* has no such setting; did you mean '{nearest}'"
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
        ("optimizer", "sgd"),
    ],
)
def test_a_value_of_another_type_is_refused(key: str, text: str) -> None:
    with pytest.raises(UserError, match=f"^--config.{key}={text}: "):
        load(key, text)


def test_a_setting_for_the_file_says_so() -> None:
    expected = (
        r"--config\.optimizer\.b1: .* has no such setting; add it to the "
        r"configuration file: config\.optimizer\.b1 = 0\.8"
    )
    with pytest.raises(UserError, match=expected):
        load("optimizer.b1", "0.8")


def test_an_argument_of_the_optimizer_can_be_left_out() -> None:
    config: Any = load_config("mnist_cnn:bn", overrides={"optimizer.momentum": "None"})
    assert config.optimizer.momentum is None


def test_a_file_needs_to_state_only_what_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from bn_jax.training import base_config\n"
        "def get_config(size):\n"
        "    config = base_config()\n"
        "    config.batch_size = int(size)\n"
        "    return config\n"
    )
    config: Any = load_config(f"{path}:32", overrides={"seed": "3"})
    assert (config.batch_size, config.seed, config.is_locked) == (32, 3, True)
    assert config.module_dir is None


def test_the_folder_of_a_file_that_names_code_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from bn_jax.training import base_config\n"
        "def get_config():\n"
        "    config = base_config()\n"
        "    config.model.name = 'nets:Net'\n"
        "    return config\n"
    )
    assert load_config(str(path)).module_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("def get_config(:\n", r"mine\.py: SyntaxError: .*mine\.py, line 1"),
        ("x = 1\n", r"mine\.py: must define a function `get_config` .* returns None"),
        (
            "def get_config():\n    return 1 / 0\n",
            r"mine\.py: ZeroDivisionError: division by zero \(.*mine\.py, line 2\)",
        ),
        (
            "def get_config():\n    return 3\n",
            r"that returns a ConfigDict, .* but returns 3",
        ),
        ("import nothing_there\n", r"mine\.py: ModuleNotFoundError: .*nothing_there"),
        (
            "from bn_jax.training import base_config\n"
            "def get_config():\n"
            "    config = base_config()\n"
            "    config.num_stps = 3\n"
            "    return config\n",
            r"mine\.py: config\.num_stps: .* did you mean 'num_steps'\?",
        ),
    ],
)
def test_an_error_in_a_file_is_reported_with_its_place(
    tmp_path: Path, content: str, expected: str
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(UserError, match=expected) as caught:
        load_config(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_may_have_nested_groups_and_be_frozen(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from bn_jax.training import base_config\n"
        "from ml_collections import ConfigDict, FrozenConfigDict\n"
        "def get_config():\n"
        "    config = base_config()\n"
        "    config.model.block = ConfigDict({'width': 8})\n"
        "    return FrozenConfigDict(config)\n"
    )
    overrides = {"model.block.width": "None", "seed": "3", "init_from": "runs/one"}
    config: Any = load_config(str(path), overrides=overrides)
    assert config.model.block.width is None
    assert (config.seed, config.init_from) == (3, "runs/one")


def test_a_missing_file_is_called_missing() -> None:
    expected = r"there is no file mnist_mpl, .* ships .*mnist_cnn, mnist_mlp"
    with pytest.raises(UserError, match=expected):
        load_config("mnist_mpl:bn")
