"""The numbers of the page on Figures 2 and 3 are those of its committed runs."""

import json
import re
from pathlib import Path

import pytest

from bn_jax.reporting.claims import ARM_NAMES
from bn_jax.reporting.seed_statistics import mean_and_deviation
from bn_jax.training.config_files import load_config

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "figure2.md"
# The small arms here, and by earlier versions on another machine.
_SAME_RUNS = ("figure2.json", "figure2-earlier.json", "figure2-again.json")


pytestmark = pytest.mark.docs


def test_every_file_that_the_page_links_to_is_there() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", _PAGE.read_text())
    assert links
    assert [link for link in links if not (_PAGE.parent / link).exists()] == []


def test_the_page_on_experiments_counts_the_claims_that_hold() -> None:
    claims = json.loads((_ROOT / "results/figure2.json").read_text())["claims"]
    numbers = {6: "Six", 8: "eight"}
    holding = sum(claim["holds"] for claim in claims)
    text = " ".join((_ROOT / "docs/experiments.md").read_text().split())
    expected = f"{numbers[holding]} of {numbers[len(claims)]} claims of the paper hold."
    assert expected in text


def test_the_small_arms_are_those_of_their_committed_runs() -> None:
    record = json.loads((_ROOT / "results/figure2.json").read_text())
    text = _PAGE.read_text()
    for arm, values in record["arms"].items():
        steps = mean_and_deviation(values["steps_to_target"], "{:.0f}")
        highest = mean_and_deviation(values["max_accuracy"], "{:.2f}", unit=0.01)
        cells = [ARM_NAMES[arm], f"{values['learning_rate']:g}", steps, f"{highest} %"]
        assert f"| {' | '.join(cells)} | " in text
    target = mean_and_deviation(record["target_accuracy"], "{:.2f}", unit=0.01)
    assert f"{target} % here" in text


def test_every_claim_of_the_small_arms_is_told_as_it_came_out() -> None:
    record = json.loads((_ROOT / "results/figure2.json").read_text())
    text = _PAGE.read_text()
    for claim in record["claims"]:
        end = "holds" if claim["holds"] else "**does not hold**"
        cells = [claim["claim"], claim["criterion"], claim["measured"], end]
        assert f"| {' | '.join(cells)} |" in text


def test_the_rate_of_the_small_arms_is_the_one_that_the_search_found() -> None:
    record = json.loads((_ROOT / "results/figure2.json").read_text())
    tried = record["search"]["tried"]
    best = max(tried, key=lambda one: one["max_accuracy"]["mean"])
    assert record["search"]["learning_rate"] == best["learning_rate"]
    config = load_config("inception_small:inception")
    assert config.optimizer.learning_rate == best["learning_rate"]
    accuracies = sorted(one["max_accuracy"]["mean"] for one in tried)
    assert f"({100 * accuracies[0]:.0f} to {100 * accuracies[-1]:.0f} %)" in (
        _PAGE.read_text()
    )


def test_the_longer_runs_of_the_small_arms_came_to_what_is_said_of_them() -> None:
    record = json.loads((_ROOT / "results/figure2-400steps.json").read_text())
    assert record["config"]["num_steps"] == 400
    assert record["search"]["learning_rate"] == 0.01
    highest = {
        arm: mean_and_deviation(values["max_accuracy"], "{:.2f}", unit=0.01)
        for arm, values in record["arms"].items()
    }
    text = " ".join(_PAGE.read_text().split())
    assert f"Inception reached {highest['inception']} %" in text
    assert f"BN-x30 reached {highest['bn_x30']} % and was the best of all" in text
    assert [c["claim"] for c in record["claims"] if not c["holds"]] == [
        "At five times its rate Inception without BN diverges or stalls"
    ]


@pytest.mark.parametrize("name", [*_SAME_RUNS, "figure2-400steps.json"])
def test_what_is_said_to_hold_in_all_runs_of_the_small_arms_does(name: str) -> None:
    arms = json.loads((_ROOT / "results" / name).read_text())["arms"]
    inception = arms["inception"]["steps_to_target"]["seeds"]
    for arm in ("bn_baseline", "bn_x5"):
        steps = arms[arm]["steps_to_target"]["seeds"]
        assert all(own < base / 2 for own, base in zip(steps, inception, strict=True))
    highest = {arm: values["max_accuracy"]["seeds"] for arm, values in arms.items()}
    pairs = zip(highest["bn_x5"], highest["inception"], strict=True)
    assert all(with_bn > without for with_bn, without in pairs)
    assert min(highest["bn_x5_sigmoid"]) > 0.8
    assert max(highest["inception_sigmoid"]) < 0.13


def test_the_same_runs_elsewhere_came_to_what_is_said_of_them() -> None:
    here, *elsewhere = (
        json.loads((_ROOT / "results" / name).read_text()) for name in _SAME_RUNS
    )
    said = []
    for record in elsewhere:
        for one in (here, record):
            # Images at once, which the results do not depend on.
            one["config"]["evaluation"].pop("batch_size", None)
        assert here["config"] == record["config"]
        both = zip(here["claims"], record["claims"], strict=True)
        assert [new["claim"] for new, old in both if new["holds"] != old["holds"]] == [
            "BN-x5 reaches a higher accuracy than BN-x5-Sigmoid",
            "At five times its rate Inception without BN diverges or stalls",
        ]
        highest = record["arms"]["bn_x30"]["max_accuracy"]
        said.append(mean_and_deviation(highest, "{:.2f}", unit=0.01))
    text = " ".join(_PAGE.read_text().split())
    assert f"there it was {said[0]} % and {said[1]} %." in text


def test_the_earlier_version_gives_the_present_curve_of_inception_here() -> None:
    folder = _ROOT / "results"
    record = json.loads((folder / "inception_small.json").read_text())
    here, _, again = (
        json.loads((folder / name).read_text())["arms"]["inception"]["curves"][0]
        for name in _SAME_RUNS
    )
    found = record["earlier_version_here"]["test_accuracy"]
    assert found == here["accuracy"] != again["accuracy"]


def test_the_time_of_the_small_arms_is_that_of_their_committed_runs() -> None:
    folder = _ROOT / "results"
    record = json.loads((folder / "inception_small.json").read_text())
    arms = json.loads((folder / "figure2.json").read_text())["arms"]
    assert record["wall_seconds"] == {
        arm: [round(value, 1) for value in values["wall_seconds"]]
        for arm, values in arms.items()
    }
    seconds = [value for arm in record["wall_seconds"].values() for value in arm]
    alone = [run["wall_seconds"] for run in record["alone"]["runs"]]
    text = " ".join(_PAGE.read_text().split())
    assert f"A run took {min(seconds):.0f} to {max(seconds):.0f} seconds" in text
    assert f"four took {min(alone):.0f} to {max(alone):.0f}" in text
    assert len(alone) == 4
    assert max(*seconds, *alone) < 240
    assert "each takes less than four minutes." in text


def test_the_configuration_of_the_small_arms_says_what_they_came_to() -> None:
    record = json.loads((_ROOT / "results/figure2.json").read_text())
    text = (_ROOT / "configs/inception_small.py").read_text()
    for arm, values in record["arms"].items():
        highest = mean_and_deviation(values["max_accuracy"], "{:.2f}", unit=0.01)
        assert re.search(rf"\b{arm} +{highest.removesuffix(' ± 0.00')}", text)
