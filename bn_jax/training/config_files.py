"""Configurations, from a file or from a workdir, and changes to their settings."""

import ast
import runpy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

import bn_jax
from bn_jax.errors import UserError, did_you_mean
from bn_jax.training.base_config import (
    OPEN_GROUPS,
    base_config,
    check_setting_names,
    complete,
)
from bn_jax.user_code import describe_error, is_object_name, search_in
from bn_jax.workdir.files import read_config


def load_config(spec: str, *, overrides: Mapping[str, str] | None = None) -> Any:
    """Returns the configuration that a file describes, with some settings changed.

    The file is Python code, which this function runs.

    Args:
        spec: `FILE`, or `NAME` for a file in `configs/` without its ending, perhaps
            with `:ARG`, the argument of the file's `get_config`: "mnist_mlp:bn".
        overrides: Settings to change, as text: `{"optimizer.learning_rate": "1.0"}`.

    Returns:
        A locked ConfigDict.

    Raises:
        UserError: If the file is missing or has an error, if it names an unknown
            setting, or if an override does so or has a wrong type.
    """
    name, colon, argument = spec.partition(":")
    path = _find(name)
    config = _run(path, [argument] if colon else [])
    try:
        check_setting_names(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for key, text in (overrides or {}).items():
        override(config, key, text)
    names = (config.model.name, config.dataset.name)
    if config.module_dir is None and any(map(is_object_name, names)):
        config.module_dir = str(path.resolve().parent)
    return config.lock()


def saved_config(
    workdir: Path, dataset_settings: Mapping[str, str] | None = None
) -> Any:
    """Returns the configuration of a run, as its workdir holds it.

    Args:
        workdir: Workdir of the run.
        dataset_settings: Settings of `config.dataset` to change, as text.

    Returns:
        A locked ConfigDict, with the base's value for each setting that is newer than
        the run.

    Raises:
        UserError: If there is no run, or a setting is unknown or has a wrong type.
    """
    config: Any = ConfigDict(complete(read_config(workdir))).lock()
    for key, text in (dataset_settings or {}).items():
        # The JSON file does not record that these settings are strings or None, so
        # `override` cannot check their type.
        if key in ("idx_dir", "data_dir", "image_dir", "validation_split"):
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
    node: Any = config
    group: Any = {}
    for name in key.split("."):
        group = node if isinstance(node, ConfigDict) else {}
        if name not in group:
            raise UserError(_unknown_setting_message(option, key, name, group, text))
        node = group[name]
    last = key.rpartition(".")[2]
    if isinstance(node, ConfigDict):
        raise UserError(
            f"{option}={text}: this is a group of settings; set one of "
            f"{', '.join(f'{option}.{name}' for name in node)}."
        )
    kind = group.get_type(last)
    value = _parse_value(text, kind)
    try:
        if value is None and node is not None and not _is_optional(group, key):
            raise TypeError
        group[last] = value
    except TypeError as error:
        raise UserError(
            f"{option}={text}: the value must be of type {kind.__name__}, as "
            f"{node!r} is."
        ) from error


def shipped_configs() -> dict[str, Path]:
    """Returns the files of the configurations that bn_jax ships, by their names."""
    package = Path(bn_jax.__file__).parent
    # `configs` is inside an installed package, but beside the package in a checkout.
    folders = [package.parent / "configs", package / "configs"]
    files = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    return {path.stem: path for path in files}


def _find(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = shipped_configs()
    if name in shipped:
        return shipped[name]
    raise UserError(
        f"--config: there is no file {name}, and bn_jax ships no configuration of that "
        f"name; it ships {', '.join(shipped)}."
    )


def _run(path: Path, arguments: Sequence[str]) -> Any:
    """Runs a configuration file, and returns what its `get_config` returns."""
    search_in(str(path.parent))
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        config: Any = get_config and get_config(*arguments)
    except Exception as error:
        # The file is the user's own code, which may raise errors of any class.
        raise UserError(f"{path}: {describe_error(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{path}: must define a function `get_config` that returns a ConfigDict, "
            f"such as `base_config()` with changes, but returns {config!r}."
        )
    # Overrides change a frozen configuration too.
    is_frozen = isinstance(config, FrozenConfigDict)
    return config.as_configdict() if is_frozen else config


def _unknown_setting_message(
    option: str, key: str, name: str, group: Iterable[str], text: str
) -> str:
    """Returns a message with the nearest name, or with what to write into the file."""
    message = f"{option}: the configuration has no such setting"
    end = did_you_mean(name, group)
    if end == "." and key.partition(".")[0] in OPEN_GROUPS:
        end = f"; add it to the configuration file: config.{key} = {text}"
    return message + end


def _parse_value(text: str, kind: type) -> Any:
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    # A string setting takes 2024 as text.
    is_text = kind is str and not isinstance(value, str | None)
    return text if is_text else value


def _is_optional(node: ConfigDict, key: str) -> bool:
    """Returns True if a setting may be None.

    The base has None for it, or lacks it: None leaves out a field of a model or an
    argument of an optimizer.
    """
    base: Any = base_config()
    *parents, last = key.split(".")
    for parent in parents:
        base = base.get(parent, {})
    return node.get_type(last) is object or last not in base or base[last] is None
