"""The paper's claims about its arms, with criteria that were set before any run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# Accuracies in [0, 1]. A model that always predicts MNIST's most frequent class has an
# accuracy of 1.2 points above chance, so "near chance" must include that.
_NEAR_CHANCE = 0.03
_LEARNED = 0.8

Arms = Mapping[str, Mapping[str, Any]]

# The first five names are those of the paper's Figure 3.
ARM_NAMES: Mapping[str, str] = {
    "inception": "Inception",
    "bn_baseline": "BN-Baseline",
    "bn_x5": "BN-x5",
    "bn_x30": "BN-x30",
    "bn_x5_sigmoid": "BN-x5-Sigmoid",
    "inception_x5": "Inception-x5",
    "inception_sigmoid": "Inception-Sigmoid",
}


class Claim(NamedTuple):
    """A claim of the paper, and the verdict of these runs.

    Attributes:
        claim: The claim, in words.
        source: Place in the paper, and the paper's numbers.
        criterion: Condition that every seed must fulfil for the claim to hold.
        holds: True if every seed fulfils the criterion.
        measured: The numbers of each seed that decide.
    """

    claim: str
    source: str
    criterion: str
    holds: bool
    measured: str


def check_claims(arms: Arms, *, num_classes: int) -> list[Claim]:
    """Checks every claim against the runs of the arms.

    Args:
        arms: Measurements of each arm, by name. `max_accuracy` (in [0, 1]) and
            `steps_to_target` (in steps) are results of `seed_statistics`;
            `diverged_after` (in steps) is a list with one entry a seed.
        num_classes: Number of classes in the evaluated images. All should be about
            equally frequent, because chance is taken to be 1 / num_classes.
    """
    near_chance = f"within {100 * _NEAR_CHANCE:.0f} points of chance"

    def is_near_chance(accuracy: float) -> bool:
        return accuracy <= 1 / num_classes + _NEAR_CHANCE

    return [
        _fewer_steps_claim(arms, "bn_baseline", 1 / 2, "13.3e6 of 31.0e6"),
        _fewer_steps_claim(arms, "bn_x5", 1 / 3, "2.1e6 of 31.0e6"),
        _higher_accuracy_claim(arms, "bn_x30", "bn_x5", "74.8 % above 73.0 %"),
        _higher_accuracy_claim(arms, "bn_x5", "inception", "73.0 % above 72.2 %"),
        _higher_accuracy_claim(arms, "bn_x5", "bn_x5_sigmoid", "73.0 % above 69.8 %"),
        _claim_for_each_seed(
            arms,
            "inception_x5",
            claim="At five times its rate Inception without BN diverges or stalls",
            source="section 4.2.2: it reached machine infinity",
            criterion=f"it diverges, or stays {near_chance}",
            passes=lambda accuracy, last_finite_step: (
                last_finite_step is not None or is_near_chance(accuracy)
            ),
        ),
        _claim_for_each_seed(
            arms,
            "inception_sigmoid",
            claim="With sigmoids Inception without BN stays at chance",
            source="section 4.2.2: never better than 1/1000",
            criterion=near_chance,
            passes=lambda accuracy, _: is_near_chance(accuracy),
        ),
        _claim_for_each_seed(
            arms,
            "bn_x5_sigmoid",
            claim="With sigmoids and BN it learns",
            source="Figure 3: 69.8 %",
            criterion=f"above {100 * _LEARNED:.0f} %",
            passes=lambda accuracy, _: accuracy > _LEARNED,
        ),
    ]


def _fewer_steps_claim(arms: Arms, arm: str, fraction: float, published: str) -> Claim:
    ours, theirs = (
        _values_by_seed(arms, a, "steps_to_target") for a in (arm, "inception")
    )
    pairs = list(zip(ours, theirs, strict=True))
    return Claim(
        claim=f"{ARM_NAMES[arm]} needs fewer steps to Inception's best accuracy",
        source=f"Figure 3: {published}",
        criterion=f"at most {100 * fraction:.0f} % of Inception's",
        # An Inception run that diverged before its first evaluation has no steps to
        # compare with.
        holds=all(
            own is not None and base is not None and own <= fraction * base
            for own, base in pairs
        ),
        measured=", ".join(
            f"{own or 'never'} of {base or 'none'}" for own, base in pairs
        ),
    )


def _higher_accuracy_claim(arms: Arms, arm: str, other: str, published: str) -> Claim:
    pairs = list(
        zip(
            *(_values_by_seed(arms, a, "max_accuracy") for a in (arm, other)),
            strict=True,
        )
    )
    return Claim(
        claim=f"{ARM_NAMES[arm]} reaches a higher accuracy than {ARM_NAMES[other]}",
        source=f"Figure 3: {published}",
        criterion="higher with the same seed",
        holds=all((one or 0) > (two or 0) for one, two in pairs),
        measured=", ".join(
            f"{_percent(one)} and {_percent(two)}" for one, two in pairs
        ),
    )


def _claim_for_each_seed(
    arms: Arms,
    arm: str,
    *,
    claim: str,
    source: str,
    criterion: str,
    passes: Callable[[float, int | None], bool],
) -> Claim:
    accuracies = [a or 0.0 for a in _values_by_seed(arms, arm, "max_accuracy")]
    last_finite_steps = arms[arm]["diverged_after"]
    seeds = list(zip(accuracies, last_finite_steps, strict=True))
    return Claim(
        claim=claim,
        source=source,
        criterion=criterion,
        holds=all(passes(accuracy, step) for accuracy, step in seeds),
        measured=", ".join(
            _percent(accuracy)
            + ("" if step is None else f", diverged after step {step}")
            for accuracy, step in seeds
        ),
    )


def _values_by_seed(arms: Arms, arm: str, name: str) -> Sequence[Any]:
    return arms[arm][name]["seeds"]


def _percent(accuracy: float | None) -> str:
    return f"{100 * (accuracy or 0):.2f} %"
