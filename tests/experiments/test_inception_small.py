"""The paper's arms at a small size: what they differ in, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from experiments.flat_settings import flat_settings

from bn_jax.training.base_config import complete
from bn_jax.training.config_checks import check_config
from bn_jax.training.config_files import load_config
from bn_jax.workdir.differences import differences

ARMS = ("inception", "bn_baseline", "bn_x5", "bn_x30", "bn_x5_sigmoid")
ARMS_TOLD = ("inception_x5", "inception_sigmoid")
RATE = "optimizer.learning_rate"


def settings(arm: str) -> dict[str, Any]:
    return flat_settings(load_config(f"inception_small:{arm}"))


def differing(arm: str, other: str) -> set[str]:
    first, second = settings(arm), settings(other)
    assert first.keys() == second.keys()
    return {key for key in first if first[key] != second[key]}


def test_the_committed_figure_is_of_these_settings() -> None:
    path = Path(__file__).parents[2] / "results" / "figure2.json"
    record = json.loads(path.read_text())["config"]
    config = json.loads(load_config("inception_small:inception").to_json())
    # The batch size of an evaluation changes no result.
    may_differ = ["format_version", "evaluation.batch_size", "log_every"]
    may_differ.append("report_steps_to")
    places = ("in the record", "now")
    found = differences(complete(record), config, places=places, may_differ=may_differ)
    assert found == []


@pytest.mark.parametrize("arm", ARMS + ARMS_TOLD)
def test_every_arm_is_locked_and_passes_the_checks(arm: str) -> None:
    config = load_config(f"inception_small:{arm}")
    assert config.is_locked
    check_config(config)


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ("inception", "bn_baseline", {"norm.name"}),
        (
            "bn_baseline",
            "bn_x5",
            {
                RATE,
                "optimizer.weight_decay",
                "schedule.decay_every_steps",
                "model.dropout_rate",
            },
        ),
        ("bn_x5", "bn_x30", {RATE}),
        ("bn_x5", "bn_x5_sigmoid", {"model.nonlinearity"}),
        ("inception", "inception_x5", {RATE}),
        ("inception", "inception_sigmoid", {"model.nonlinearity"}),
    ],
)
def test_two_arms_differ_in_what_they_compare(
    one: str, other: str, names: set[str]
) -> None:
    assert differing(one, other) == names


@pytest.mark.parametrize(
    ("arm", "factor"),
    [
        ("bn_baseline", 1),
        ("bn_x5", 5),
        ("bn_x30", 30),
        ("bn_x5_sigmoid", 5),
        ("inception_x5", 5),
        ("inception_sigmoid", 1),
    ],
)
def test_the_rates_are_the_papers_multiples(arm: str, factor: int) -> None:
    ratio = settings(arm)[RATE] / settings("inception")[RATE]
    assert ratio == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("arm", ["bn_x5", "bn_x30", "bn_x5_sigmoid"])
def test_the_modifications_of_section_421(arm: str) -> None:
    changed, inception = settings(arm), settings("inception")
    name = "schedule.decay_every_steps"
    # Whole steps.
    assert inception[name] / changed[name] == pytest.approx(6, rel=0.02)
    name = "optimizer.weight_decay"
    assert inception[name] / changed[name] == pytest.approx(5, rel=1e-12)
    assert (inception["model.dropout_rate"], changed["model.dropout_rate"]) == (0.4, 0)


@pytest.mark.parametrize(("arm", "halvings"), [("inception", 1), ("bn_x5", 6)])
def test_a_run_of_other_length_halves_the_rate_as_often(
    arm: str, halvings: int
) -> None:
    config: Any = load_config(f"inception_small:{arm}")
    config.num_steps = 1200
    assert config.schedule.decay_every_steps == 1200 // halvings


def test_what_is_compared_is_the_validation_images() -> None:
    config = settings("inception")
    assert config["dataset.train_split"] == "train[:-2000]"
    assert config["dataset.test_split"] == "train[-2000:]"


def test_an_unknown_arm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of inception, .*, but is 'x30'"):
        load_config("inception_small:x30")
