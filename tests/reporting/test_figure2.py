"""Figures 2 and 3 from runs with known numbers: record, table, claims and picture."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from reporting.runs import VERSIONS
from reporting.small_arms import DATA, DIVERGED_AFTER, small_arms

from bn_jax.reporting.figure2 import (
    DataSize,
    describe_data,
    draw_figure2,
    figure2_record,
    figure2_table,
)


@pytest.fixture
def record() -> dict[str, Any]:
    return figure2_record(small_arms(), diverged_after=DIVERGED_AFTER, data=DATA)


def test_steps_are_counted_to_what_inception_with_that_seed_reaches_at_best(
    record: dict[str, Any],
) -> None:
    assert record["target_accuracy"]["seeds"] == [0.9, 0.92]
    steps = {a: v["steps_to_target"]["seeds"] for a, v in record["arms"].items()}
    assert steps["inception"] == [60, 50]
    assert steps["bn_baseline"] == [30, 20]
    assert steps["bn_x5"] == [20, 10]
    assert steps["bn_x5_sigmoid"] == [None, None]


def test_the_highest_accuracy_is_that_of_any_evaluation(record: dict[str, Any]) -> None:
    arms = record["arms"]
    assert arms["inception"]["max_accuracy"]["seeds"] == [0.9, 0.92]
    assert arms["bn_x30"]["max_accuracy"]["mean"] == pytest.approx(0.965)
    assert arms["inception_x5"]["max_accuracy"]["seeds"] == [None, 0.12]


def test_the_record_has_rates_curves_and_where_a_run_diverged(
    record: dict[str, Any],
) -> None:
    arm = record["arms"]["inception_x5"]
    assert arm["learning_rate"] == 0.05
    assert arm["diverged_after"] == [7, None]
    assert arm["curves"][0] == {"step": [], "accuracy": []}
    assert arm["curves"][1]["step"] == [10, 20, 30, 40, 50, 60]


def test_measured_and_published_numbers_each_name_their_source(
    record: dict[str, Any],
) -> None:
    assert record["source"] == (
        "these runs: mnist, 28x28 pixels, accuracy on 5,000 images, "
        "train[-5000:], after training on train[:-5000]; 0.125 of the channels, "
        "60 steps of 32 images"
    )
    assert "ImageNet" in record["published"]["source"]
    assert record["published"]["arms"]["bn_x30"] == {
        "steps": 2.7e6,
        "max_accuracy": 0.748,
    }


def test_the_data_have_their_own_name_size_and_number() -> None:
    config = small_arms()["bn_x5"][0].config
    letters = DataSize("letters", (32, 40, 3), num_classes=26, num_validation_images=9)
    expected = "letters, 32x40 pixels, accuracy on 9 images, "
    assert describe_data(config, letters).startswith(expected)


@pytest.mark.parametrize("arm", ["inception", "bn_x5"])
def test_any_run_may_diverge_before_its_first_evaluation(arm: str) -> None:
    arms = small_arms()
    arms[arm][0] = arms["inception_x5"][0]
    diverged_after = {**DIVERGED_AFTER, arm: [7, None]}
    record = figure2_record(arms, diverged_after=diverged_after, data=DATA)
    assert record["versions"] == VERSIONS
    assert not record["claims"][1]["holds"]
    lines = figure2_table(record).splitlines()
    assert sum(line.endswith("diverged after steps 7") for line in lines) == 2


def test_the_record_comes_back_from_json(record: dict[str, Any]) -> None:
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_the_table_has_ours_beside_the_papers(record: dict[str, Any]) -> None:
    lines = figure2_table(record).splitlines()
    rows = {line.split()[0]: line.split() for line in lines[4:11]}
    assert rows["BN-x5"][1:] == [
        *("0.05", "15", "±", "7", "95.50", "±", "0.71", "%", "2.1e6", "73.0%")
    ]
    assert rows["BN-x5-Sigmoid"][2] == "-"
    assert rows["BN-x5-Sigmoid"][-2:] == ["-", "69.8%"]
    # The paper gives no number for the arms that it tells in words.
    assert rows["Inception-Sigmoid"][-1] == "%"
    assert lines[9].endswith("diverged after steps 7")


def test_the_table_says_what_holds_and_what_does_not(record: dict[str, Any]) -> None:
    text = figure2_table(record)
    assert "DOES NOT HOLD BN-x30 reaches a higher accuracy than BN-x5" in text
    assert "holds         BN-x5 needs fewer steps to Inception's best" in text


def test_both_panels_are_drawn_and_say_who_diverged(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    draw_figure2(record, [tmp_path / "figure.svg", tmp_path / "figure.png"])
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG\r\n")
    svg = (tmp_path / "figure.svg").read_text()
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    for text in ("(a) The paper's five arms", "BN-x30", "Inception-x5 (diverged)"):
        assert svg.count(f"<!-- {text} -->") == 1
    assert svg.count("<!-- chance -->") == 2


def test_the_record_alone_gives_the_same_picture(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    draw_figure2(record, [tmp_path / "first.svg"])
    draw_figure2(json.loads(json.dumps(record)), [tmp_path / "second.svg"])
    first, second = (tmp_path / name for name in ("first.svg", "second.svg"))
    assert first.read_bytes() == second.read_bytes()
