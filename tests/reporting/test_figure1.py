"""Figure 1 from runs with known numbers: its record, its table and its picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from reporting.runs import VERSIONS, synthetic_run

from bn_jax.reporting.figure1 import draw_figure1, figure1_record, figure1_table
from bn_jax.reporting.load import Run

Arms = Mapping[str, Sequence[Run]]

# Steps to 90 %: 30 and 40 without BN, 10 and 20 with it.
ARMS: Arms = {
    "baseline": [
        synthetic_run([0.2, 0.5, 0.90, 0.91], seed=0, steps_per_second=2000.0),
        synthetic_run([0.2, 0.4, 0.80, 0.93], seed=1, steps_per_second=1000.0),
    ],
    "bn": [
        synthetic_run([0.90, 0.95, 0.96, 0.970], seed=0),
        synthetic_run([0.85, 0.90, 0.95, 0.972], seed=1),
    ],
}


@pytest.fixture
def never() -> Arms:
    """One seed an arm, of which the baseline never reaches 90 %."""
    return {"baseline": [synthetic_run([0.1, 0.2])], "bn": [synthetic_run([0.5, 0.9])]}


def draw(arms: Arms, path: Path) -> bytes:
    draw_figure1(arms, [path])
    return path.read_bytes()


def test_the_record_has_the_steps_of_every_seed_with_mean_and_deviation() -> None:
    arms = figure1_record(ARMS)["arms"]
    assert arms["baseline"]["steps_to_90_percent"] == {
        "seeds": [30, 40],
        "mean": 35.0,
        "std": pytest.approx(50**0.5),
    }
    assert arms["bn"]["steps_to_95_percent"]["seeds"] == [20, 30]


def test_the_record_has_the_final_accuracy_and_the_speed() -> None:
    arms = figure1_record(ARMS)["arms"]
    assert arms["bn"]["final_test_accuracy"]["seeds"] == [0.970, 0.972]
    assert arms["bn"]["final_test_accuracy"]["mean"] == pytest.approx(0.971)
    assert arms["baseline"]["steps_per_second"]["mean"] == 1500.0


def test_the_record_compares_the_mean_steps_to_90_percent() -> None:
    assert figure1_record(ARMS)["steps_to_90_percent_baseline_over_bn"] == 35 / 15


def test_the_record_has_all_curves() -> None:
    arm = figure1_record(ARMS)["arms"]["baseline"]
    assert arm["seeds"] == [0, 1]
    assert arm["curves"]["step"] == [10, 20, 30, 40]
    assert arm["curves"]["test_accuracy"][1] == [0.2, 0.4, 0.80, 0.93]
    assert arm["curves"]["percentiles"][1][0] == [1.0, 2.0, 3.0]


def test_the_record_says_what_it_was_made_with() -> None:
    record = figure1_record(ARMS)
    assert record["versions"] == VERSIONS
    assert record["config"] == {"seed": 0, "num_steps": 40}


def test_the_record_comes_back_from_json() -> None:
    record = figure1_record(ARMS)
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_an_arm_of_which_a_seed_never_reaches_an_accuracy_has_no_mean() -> None:
    mixed = {**ARMS, "baseline": [ARMS["baseline"][0], synthetic_run([0.1] * 4)]}
    record = figure1_record(mixed)
    steps = record["arms"]["baseline"]["steps_to_90_percent"]
    assert steps == {"seeds": [30, None], "mean": None, "std": None}
    assert record["steps_to_90_percent_baseline_over_bn"] is None


def test_a_single_seed_has_a_mean_and_no_deviation(never: Arms) -> None:
    steps = figure1_record(never)["arms"]["bn"]["steps_to_90_percent"]
    assert steps == {"seeds": [20], "mean": 20.0, "std": None}


def test_the_table_has_mean_and_deviation_of_both_arms() -> None:
    assert figure1_table(figure1_record(ARMS)).splitlines() == [
        "               steps to 90 %   steps to 95 %    final accuracy",
        "without BN            35 ± 7               -    92.00 ± 1.41 %",
        "with BN               15 ± 7          25 ± 7    97.10 ± 0.14 %",
        "Without BN it takes 2.3 times the steps to 90 %.",
        "Mean ± standard deviation; seeds: 2; - where never reached.",
    ]


def test_the_table_has_a_dash_where_an_accuracy_was_never_reached(never: Arms) -> None:
    lines = figure1_table(figure1_record(never)).splitlines()
    assert lines[1].split() == ["without", "BN", "-", "-", "20.00", "%"]
    assert lines[2].split() == ["with", "BN", "20", "-", "90.00", "%"]
    assert not any("times the steps" in line for line in lines)


def test_the_picture_is_written_in_the_format_of_every_ending(tmp_path: Path) -> None:
    draw_figure1(ARMS, [tmp_path / "figure.svg", tmp_path / "figure.png"])
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG\r\n")
    root = ElementTree.parse(tmp_path / "figure.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_the_picture_has_the_three_panels_of_the_paper(tmp_path: Path) -> None:
    svg = draw(ARMS, tmp_path / "figure.svg").decode()
    titles = ["(a) Test accuracy", "(b) Without BN", "(c) With BN"]
    # Letters are drawn as shapes; what they spell stands in comments.
    assert [svg.count(f"<!-- {title} -->") for title in titles] == [1, 1, 1]
    assert svg.count("<!-- training steps -->") == 3


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_same_runs_give_the_same_file(tmp_path: Path, ending: str) -> None:
    first = draw(ARMS, tmp_path / f"first.{ending}")
    assert draw(ARMS, tmp_path / f"second.{ending}") == first


def test_other_numbers_give_another_picture(tmp_path: Path, never: Arms) -> None:
    first = draw(ARMS, tmp_path / "first.png")
    assert draw({**ARMS, "bn": never["bn"]}, tmp_path / "second.png") != first


def test_arms_that_never_reach_90_percent_can_be_drawn(
    tmp_path: Path, never: Arms
) -> None:
    assert draw(never, tmp_path / "figure.png")
