"""The configurations that ship with the project, by the name of their file."""

import ast
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import bn_jax
from bn_jax.errors import UserError


def load_config(
    name: str, arm: str, *, overrides: Mapping[str, str] | None = None
) -> Any:
    """The configuration of one arm of an experiment.

    Args:
        name: Name of the file in `configs/`, such as "mnist_mlp.py".
        arm: Given to its `get_config`.
        overrides: Settings to change, as text: `{"optimizer.learning_rate": "1.0"}`.

    Returns:
        A locked ConfigDict.

    Raises:
        UserError: If an override names no setting, or has a wrong type.
    """
    package = Path(bn_jax.__file__).parent
    # Inside an installed package, or beside it in a checkout.
    folders = [package / "configs", package.parent / "configs"]
    path = next(folder / name for folder in folders if (folder / name).is_file())
    config = runpy.run_path(str(path))["get_config"](arm)
    for key, text in (overrides or {}).items():
        override(config, key, text)
    return config


def override(
    config: ConfigDict, key: str, text: str, *, option: str | None = None
) -> None:
    """Changes one setting.

    Args:
        config: The configuration.
        key: The setting's name, with a dot between levels.
        text: Its value as it would be written in Python; a word stands for itself
            where text is expected.
        option: What the command line calls it, `--config.<key>` by default.

    Raises:
        UserError: If there is no such setting, or its type is another.
    """
    option = option or f"--config.{key}"
    *parents, last = key.split(".")
    try:
        node: Any = config
        for parent in parents:
            node = node[parent]
        # The look-up raises for an unknown name, and says which one is near.
        is_unset_text = node[last] is None and node.get_type(last) is str
        if is_unset_text and text == "None":
            return
        node[last] = text if is_unset_text else _value(text)
    except KeyError as error:
        hint = str(error.args[0]).replace("\n", " ")
        raise UserError(f"{option}: there is no such setting: {hint}") from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{option}={text}: {error}") from error


def _value(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    if value is None:
        raise TypeError("None is no value for this setting.")
    return value
