"""Configurations, from `configs/` or from a workdir, and changes to their settings."""

import ast
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import bn_jax
from bn_jax.errors import UserError
from bn_jax.workdir.files import read_config


def load_config(
    name: str, arm: str, *, overrides: Mapping[str, str] | None = None
) -> Any:
    """Returns the configuration of one arm of an experiment.

    Args:
        name: Name of the file in `configs/`, such as "mnist_mlp.py".
        arm: Name of the arm, the argument of the file's `get_config`.
        overrides: Settings to change, as text: `{"optimizer.learning_rate": "1.0"}`.

    Returns:
        A locked ConfigDict.

    Raises:
        UserError: If an override names an unknown setting, or has a wrong type.
    """
    package = Path(bn_jax.__file__).parent
    # `configs` is inside an installed package, but beside the package in a checkout.
    folders = [package / "configs", package.parent / "configs"]
    path = next(folder / name for folder in folders if (folder / name).is_file())
    config = runpy.run_path(str(path))["get_config"](arm)
    for key, text in (overrides or {}).items():
        override(config, key, text)
    return config


def saved_config(
    workdir: Path, dataset_settings: Mapping[str, str] | None = None
) -> Any:
    """Returns the configuration of a run, as its workdir holds it.

    Args:
        workdir: Workdir of the run.
        dataset_settings: Settings of `config.dataset` to change, as text.

    Returns:
        A locked ConfigDict.

    Raises:
        UserError: If there is no run, or a setting is unknown or has a wrong type.
    """
    config: Any = ConfigDict(read_config(workdir)).lock()
    for key, text in (dataset_settings or {}).items():
        # The JSON file does not record that these two settings are strings or None, so
        # `override` cannot check their type.
        if key in ("idx_dir", "data_dir") and key in config.dataset:
            config.dataset[key] = None if text == "None" else text
            continue
        override(config, f"dataset.{key}", text, option=f"--dataset.{key}")
    return config


def override(
    config: ConfigDict, key: str, text: str, *, option: str | None = None
) -> None:
    """Changes one setting of a configuration in place.

    Args:
        config: The configuration.
        key: Name of the setting, with a dot between levels.
        text: New value as a Python literal. A string setting also accepts text without
            quotes.
        option: Name of the setting in error messages, by default `--config.<key>`.

    Raises:
        UserError: If the setting does not exist, or the value has a wrong type.
    """
    option = option or f"--config.{key}"
    *parents, last = key.split(".")
    try:
        node: Any = config
        for parent in parents:
            node = node[parent]
        # For an unknown name ConfigDict raises an error that suggests a similar name.
        is_unset_string = node[last] is None and node.get_type(last) is str
        if is_unset_string and text == "None":
            return
        node[last] = text if is_unset_string else _parse_value(text)
    except KeyError as error:
        hint = str(error.args[0]).replace("\n", " ")
        raise UserError(
            f"{option}: the configuration has no such setting ({hint})"
        ) from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{option}={text}: {error}") from error


def _parse_value(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    if value is None:
        raise TypeError("this setting cannot be None.")
    return value
