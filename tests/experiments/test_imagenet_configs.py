"""The paper's arms on ImageNet: its numbers, and nothing else that differs."""

from typing import Any

import pytest
from experiments.flat_settings import flat_settings

from bn_jax.training.config_checks import check_config
from bn_jax.training.config_files import load_config

PAPER_ARMS = ("inception", "bn_baseline", "bn_x5", "bn_x30", "bn_x5_sigmoid")
ARMS = (*PAPER_ARMS, "modern")
ACCELERATED = ("bn_x5", "bn_x30", "bn_x5_sigmoid")


def config_of(arm: str) -> Any:
    return load_config(f"imagenet_inception:{arm}")


def differences(arm: str, other: str) -> set[str]:
    """Names of the settings that two arms have different values of."""
    first, second = (flat_settings(config_of(name)) for name in (arm, other))
    assert first.keys() == second.keys()
    return {key for key in first if first[key] != second[key]}


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_locked_and_passes_the_checks(arm: str) -> None:
    config = config_of(arm)
    assert config.is_locked
    check_config(config)


def test_a_batch_of_another_size_changes_what_follows_from_it() -> None:
    config = config_of("modern")
    steps = config.num_steps
    config.batch_size = 256
    assert config.optimizer.learning_rate == pytest.approx(0.1, rel=1e-12)
    assert config.num_steps == pytest.approx(4 * steps, rel=1e-3)
    assert config.num_steps / config.schedule.warmup_steps == 18


@pytest.mark.parametrize("arm", PAPER_ARMS)
def test_what_the_paper_states_of_all_arms(arm: str) -> None:
    config = config_of(arm)
    assert config.batch_size == 32
    assert (config.optimizer.name, config.optimizer.momentum > 0) == ("sgd", True)
    assert config.schedule.name == "exponential"
    assert config.schedule.warmup_steps == 0
    assert config.dataset.image_size == 224
    assert config.optimizer.weight_decay > 0
    assert (config.model.name, config.model.variant) == ("inception", "paper_rows")
    assert (config.model.separable, config.model.width) == (True, 1.0)
    assert (config.label_smoothing, config.ema_decay) == (0.0, None)


# Section 4.2.2.
@pytest.mark.parametrize(
    ("arm", "rate"),
    [
        ("inception", 0.0015),
        ("bn_baseline", 0.0015),
        ("bn_x5", 0.0075),
        ("bn_x30", 0.045),
        ("bn_x5_sigmoid", 0.0075),
    ],
)
def test_the_learning_rates_are_the_papers(arm: str, rate: float) -> None:
    assert config_of(arm).optimizer.learning_rate == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("arm", ARMS)
def test_all_but_inception_are_normalized(arm: str) -> None:
    expected = None if arm == "inception" else "batch_norm"
    assert config_of(arm).norm.name == expected


@pytest.mark.parametrize("arm", ARMS)
def test_one_arm_has_sigmoids(arm: str) -> None:
    expected = "sigmoid" if arm == "bn_x5_sigmoid" else "relu"
    assert config_of(arm).model.nonlinearity == expected


@pytest.mark.parametrize("arm", ["inception", "bn_baseline"])
def test_inception_and_the_baseline_drop_40_percent(arm: str) -> None:
    assert config_of(arm).model.dropout_rate == 0.4


@pytest.mark.parametrize("arm", ACCELERATED)
def test_the_modifications_of_section_421(arm: str) -> None:
    config, inception = config_of(arm), config_of("inception")
    slow, fast = (c.schedule.decay_every_steps for c in (inception, config))
    assert slow / fast == pytest.approx(6, rel=1e-4)
    ratio = inception.optimizer.weight_decay / config.optimizer.weight_decay
    assert ratio == pytest.approx(5, rel=1e-12)
    assert config.model.dropout_rate == 0
    assert 0 < config.dataset.distortion < inception.dataset.distortion


def test_the_arms_differ_in_nothing_else() -> None:
    assert differences("inception", "bn_baseline") == {"norm.name"}
    assert differences("bn_baseline", "bn_x5") == {
        "num_steps",
        "optimizer.learning_rate",
        "optimizer.weight_decay",
        "schedule.decay_every_steps",
        "model.dropout_rate",
        "dataset.distortion",
    }
    assert differences("bn_x5", "bn_x30") == {"optimizer.learning_rate"}
    assert differences("bn_x5", "bn_x5_sigmoid") == {"model.nonlinearity"}


def test_the_modern_arm_takes_90_epochs_of_large_batches() -> None:
    config = config_of("modern")
    assert config.dtype == "bfloat16"
    assert config.batch_size * config.num_steps / 1_281_167 == pytest.approx(90, 1e-2)
    assert config.optimizer.learning_rate == pytest.approx(0.4)
    assert config.schedule.name == "cosine"
    assert config.num_steps == 18 * config.schedule.warmup_steps
    assert config.label_smoothing == 0.1
    assert not config.optimizer.decay_scale_and_bias


def test_an_unknown_arm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of inception, .*, but is 'x30'"):
        config_of("x30")
