"""Each claim of the paper against numbers that decide it, one way and the other."""

from copy import deepcopy
from typing import Any

import pytest
from reporting.small_arms import DATA, DIVERGED_AFTER, small_arms

from bn_jax.reporting.claims import check_claims
from bn_jax.reporting.figure2 import figure2_record

FEWER_BASELINE, FEWER_X5, X30, X5, RELU, DIVERGES, CHANCE, LEARNS = range(8)


@pytest.fixture
def arms() -> dict[str, Any]:
    record = figure2_record(small_arms(), diverged_after=DIVERGED_AFTER, data=DATA)
    return deepcopy(record["arms"])


def holds(arms: dict[str, Any]) -> list[bool]:
    return [claim.holds for claim in check_claims(arms, num_classes=10)]


def test_what_these_numbers_show_holds_and_nothing_else(arms: dict[str, Any]) -> None:
    # One of two seeds of BN-x30 is no better than BN-x5.
    assert holds(arms) == [True, True, False, True, True, True, True, True]


@pytest.mark.parametrize(
    ("claim", "arm", "name", "values"),
    [
        (FEWER_BASELINE, "bn_baseline", "steps_to_target", [31, 20]),
        (FEWER_BASELINE, "bn_baseline", "steps_to_target", [None, 20]),
        (FEWER_X5, "bn_x5", "steps_to_target", [20, 17]),
        (FEWER_X5, "inception", "steps_to_target", [None, 50]),
        (X5, "bn_x5", "max_accuracy", [0.95, 0.92]),
        (RELU, "bn_x5_sigmoid", "max_accuracy", [0.5, 0.97]),
        (DIVERGES, "inception_x5", "max_accuracy", [0.5, 0.14]),
        (CHANCE, "inception_sigmoid", "max_accuracy", [0.1, 0.131]),
        (LEARNS, "bn_x5_sigmoid", "max_accuracy", [0.8, 0.9]),
    ],
)
def test_one_seed_that_fails_refutes_a_claim(
    arms: dict[str, Any], claim: int, arm: str, name: str, values: list[float | None]
) -> None:
    assert holds(arms)[claim]
    arms[arm][name]["seeds"] = values
    assert not holds(arms)[claim]


@pytest.mark.parametrize(("num_classes", "expected"), [(2, True), (10, False)])
def test_chance_depends_on_the_number_of_classes(
    arms: dict[str, Any], num_classes: int, expected: bool
) -> None:
    arms["inception_sigmoid"]["max_accuracy"]["seeds"] = [0.5, 0.52]
    assert check_claims(arms, num_classes=num_classes)[CHANCE].holds is expected


def test_a_claim_that_fails_can_hold(arms: dict[str, Any]) -> None:
    arms["bn_x30"]["max_accuracy"]["seeds"] = [0.97, 0.97]
    assert holds(arms)[X30]


def test_a_run_that_diverges_is_told_with_its_step(arms: dict[str, Any]) -> None:
    claim = check_claims(arms, num_classes=10)[DIVERGES]
    assert claim.measured == "0.00 %, diverged after step 7, 12.00 %"


def test_a_run_that_diverges_after_it_has_learned_has_diverged(
    arms: dict[str, Any],
) -> None:
    arms["inception_x5"]["max_accuracy"]["seeds"] = [0.9, 0.12]
    assert holds(arms)[DIVERGES]
