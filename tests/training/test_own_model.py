"""Checks of a user's model before it is compiled."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict
from training.tiny_runs import parts_of, tiny_config

from bn_jax.errors import UserError
from bn_jax.training import own_model
from bn_jax.training.build import describe_normalization
from bn_jax.training.parts import build_init
from bn_jax.training.resuming import claim
from bn_jax.workdir.files import read_config


@pytest.fixture(autouse=True)
def _on_the_path(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(own_folder))


def own_config(
    idx_dir: Path, name: str, *, fields: dict[str, Any] | None = None, **settings: Any
) -> ConfigDict:
    """The tiny experiment, with a model of the user's package."""
    settings = {"batch_size": 24, "probes": (), **settings}
    config = tiny_config(idx_dir, **settings)
    with config.unlocked():
        config.model = ConfigDict({"name": f"own_models.{name}", **(fields or {})})
    return config


def check(config: ConfigDict) -> Any:
    return build_init(parts_of(config)).shapes


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"classes": 5},
            r"scores.*\(24, 10\), but returns \(24, 5\) for .* \(24, 28, 28, 1\)\.$",
        ),
        ({"kind": "pair"}, r"but returns \(\(24, 10\), \(24, 10\)\)"),
        (
            {"kind": "growing"},
            r"kept/x is float32\[1, 5\] before and .*\[25, 5\]",
        ),
        ({"kind": "broken"}, r"TypeError: .*own_models/linen\.py, line 5\d\)"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_in_a_line(
    idx_dir: Path, fields: dict, expected: str
) -> None:
    expected = f"^config.model.name=own_models.linen:Plain.*{expected}"
    with pytest.raises(UserError, match=expected) as refusal:
        check(own_config(idx_dir, "linen:Plain", fields=fields))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["linen:Net", "of_nnx:Net"])
def test_a_class_that_calls_a_norm_of_none_is_told_so(idx_dir: Path, name: str) -> None:
    config = own_config(idx_dir, name, norm__name=None)
    with pytest.raises(UserError, match=r"norm=None, as config.norm.name is None\.$"):
        check(config)


def test_settings_of_the_norm_are_checked_before_the_class(idx_dir: Path) -> None:
    config = own_config(idx_dir, "linen:Net", norm__momentum=2.0)
    with pytest.raises(UserError, match=r"^config.norm.momentum must .* is 2.0; "):
        parts_of(config)


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("flax", "batch_stats/BatchNorm_0/mean"),
        ("ours", "and 1 more"),
        ("average", "kept/x"),
    ],
)
def test_what_would_differ_between_devices_is_refused(
    idx_dir: Path, mode: str, kind: str, what: str
) -> None:
    config = own_config(
        idx_dir,
        "linen:Plain",
        fields={"kind": kind},
        parallel__mode=mode,
        parallel__num_devices=4,
    )
    with pytest.raises(UserError, match=f"in mode {mode}.*{what}.*own examples alone"):
        check(config)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("linen:Plain", {"mode": "jit", "num_devices": 4}),
        ("linen:Plain", {"mode": "shard_map", "num_devices": 1}),
        ("linen:Net", {"mode": "shard_map", "num_devices": 4}),
        ("linen:Net", {"mode": "shard_map", "num_devices": 4, "sync": False}),
        ("of_nnx:Net", {"mode": "pmap", "num_devices": 4}),
    ],
)
def test_what_is_equal_on_all_devices_is_accepted(
    idx_dir: Path, name: str, settings: dict
) -> None:
    groups = {"sync": "norm__sync"}
    settings = {groups.get(k, f"parallel__{k}"): v for k, v in settings.items()}
    check(own_config(idx_dir, name, **settings))


def test_collections_are_kept_in_the_state_without_what_is_sown(idx_dir: Path) -> None:
    assert sorted(check(own_config(idx_dir, "linen:Net")).collections) == ["ema"]
    assert sorted(check(own_config(idx_dir, "of_nnx:Net")).collections) == ["Ema"]
    assert check(tiny_config(idx_dir)).collections == {}


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("linen:Plain", {}, ["running statistics of BatchNorm_0: only layers of bn"]),
        ("linen:Net", {}, ["of flax, and population statistics in the others: only"]),
        ("linen:Plain", {"fields": {"kind": "none"}}, []),
        ("of_nnx:Net", {}, []),
        ("linen:Net", {"norm__frozen": True}, []),
    ],
)
def test_layers_that_are_evaluated_with_running_statistics_are_logged_once(
    idx_dir: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    settings: dict,
    expected: list[str],
) -> None:
    own_model._warn_once.cache_clear()
    config = own_config(idx_dir, name, **settings)
    with caplog.at_level(logging.WARNING, logger="absl"):
        check(config)
        check(config)
    assert len(caplog.messages) == len(expected)
    for message, part in zip(caplog.messages, expected, strict=True):
        assert part in message


@pytest.mark.parametrize(
    ("name", "value"), [("momentum", 0.5), ("group_size", 4), ("sync", False)]
)
def test_a_norm_setting_that_the_class_does_not_use_is_refused(
    idx_dir: Path, name: str, value: Any
) -> None:
    config = own_config(idx_dir, "linen:Plain", **{f"norm__{name}": value})
    with pytest.raises(UserError, match=rf"norm.{name}={value} has no effect, because"):
        parts_of(config)


def test_a_class_that_makes_its_norms_takes_frozen_and_no_name(idx_dir: Path) -> None:
    frozen = own_config(idx_dir, "linen:Plain", norm__frozen=True)
    described = describe_normalization(frozen, parts_of(frozen))
    assert described == "running statistics, frozen (config.norm.frozen)"
    parts_of(own_config(idx_dir, "linen:Plain", norm__name=None, norm__sync=False))


def test_the_workdir_records_the_folder_of_the_model(
    own_folder: Path, idx_dir: Path, tmp_path: Path
) -> None:
    config = own_config(idx_dir, "linen:Plain", num_steps=10)
    parts = parts_of(config)
    settings = json.loads(config.to_json())
    claim(tmp_path, settings, None, evaluated=parts.run.evaluated)
    assert settings["module_dir"] is None
    assert read_config(tmp_path)["module_dir"] == str(own_folder)


def test_a_norm_that_a_class_makes_itself_is_not_described(idx_dir: Path) -> None:
    config = own_config(idx_dir, "linen:Plain")
    described = describe_normalization(config, parts_of(config))
    assert described == "as the network makes it"
