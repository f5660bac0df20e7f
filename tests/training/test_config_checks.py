"""Each setting that lies outside its range is refused by its name."""

from typing import Any

import pytest
from ml_collections import ConfigDict

from bn_jax.errors import UserError
from bn_jax.training.config_checks import check_config
from bn_jax.training.config_files import load_config

AT_LEAST_ONE = [
    "num_steps",
    "batch_size",
    "accumulation_steps",
    "max_steps_per_dispatch",
    "max_nonfinite_steps",
    "log_every",
    "evaluation.batch_size",
    "evaluation.population_batches",
    "evaluation.probe_examples",
    "evaluation.schedule.early_every_steps",
    "evaluation.schedule.every_steps",
    "checkpoint.every_steps",
    "checkpoint.keep",
]


def config_with(name: str, value: Any) -> ConfigDict:
    config = load_config("mnist_mlp:bn")
    config.update_from_flattened_dict({name: value})
    return config


@pytest.mark.parametrize("arm", ["bn", "baseline"])
def test_the_papers_settings_pass(arm: str) -> None:
    check_config(load_config(f"mnist_mlp:{arm}"))


@pytest.mark.parametrize("name", AT_LEAST_ONE)
@pytest.mark.parametrize("value", [0, -3])
def test_a_number_below_one_is_refused(name: str, value: int) -> None:
    expected = rf"^config\.{name} must be at least 1, but is {value}\."
    with pytest.raises(UserError, match=expected):
        check_config(config_with(name, value))


@pytest.mark.parametrize("value", [(0.0,), (90, 95), (0.5, 1.01)])
def test_an_accuracy_to_report_that_is_none_is_refused(value: tuple) -> None:
    expected = r"^config\.report_steps_to must be accuracies in \(0, 1\]"
    with pytest.raises(UserError, match=expected):
        check_config(config_with("report_steps_to", value))


def test_a_run_too_short_for_its_decay_is_refused_where_the_rate_decays() -> None:
    config = config_with("schedule.decay_every_steps", 0)
    check_config(config)
    config.schedule.name = "exponential"
    expected = r"^schedule\.decay_every_steps .* at least 1, but is 0\..* more steps"
    with pytest.raises(UserError, match=expected):
        check_config(config)


@pytest.mark.parametrize("name", AT_LEAST_ONE)
def test_one_is_enough(name: str) -> None:
    check_config(config_with(name, 1))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("seed", -1, r"config\.seed must not be negative, but is -1"),
        (
            "pixels.binarize_threshold",
            -1,
            r"threshold must lie in 0 to 254, .* but is -1",
        ),
        (
            "pixels.binarize_threshold",
            255,
            r"threshold must lie in 0 to 254, .* but is 255",
        ),
        (
            "pixels.std",
            (1.0, 0.0),
            r"pixels\.std .* positive numbers, but is \(1\.0, 0\.0\)",
        ),
        ("pixels.std", (float("inf"),), r"must be positive numbers, but is \(inf,\)"),
        (
            "pixels.mean",
            (float("nan"),),
            r"pixels\.mean must be finite numbers, but is \(nan,",
        ),
        ("pixels.mean", ("nan",), r"must be finite numbers, but is \('nan',\)"),
        ("pixels.std", ((0.1,),), r"must be positive numbers, but is \(\(0\.1,\),\)"),
        ("pixels.binarize_threshold", 0.5, r"must lie in 0 to 254, .* but is 0\.5"),
        ("on_nonfinite", "ignore", r"must be 'raise' or 'skip', but is 'ignore'"),
        ("label_smoothing", -0.1, r"label_smoothing .* \[0, 1\), .* but is -0\.1"),
        ("label_smoothing", 1.0, r"label_smoothing .* \[0, 1\), .* but is 1\.0"),
        ("label_smoothing", float("nan"), r"label_smoothing .* but is nan"),
        ("ema_decay", 1.0, r"ema_decay .* must lie in \[0, 1\), but is 1\.0"),
        ("ema_decay", -0.1, r"ema_decay .* must lie in \[0, 1\), but is -0\.1"),
        ("ema_decay", float("nan"), r"ema_decay .* must lie in \[0, 1\), but is nan"),
    ],
)
def test_a_value_outside_its_range_is_refused(
    name: str, value: Any, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        check_config(config_with(name, value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 0),
        ("pixels.binarize_threshold", 0),
        ("pixels.binarize_threshold", 254),
        ("on_nonfinite", "skip"),
        ("label_smoothing", 0.0),
        ("label_smoothing", 0.99),
        ("ema_decay", 0.0),
        ("ema_decay", 0.999),
    ],
)
def test_a_value_at_the_end_of_its_range_passes(name: str, value: Any) -> None:
    check_config(config_with(name, value))
