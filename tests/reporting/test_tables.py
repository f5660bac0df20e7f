"""Tables for people: every number stands in its row."""

import numpy as np

from bn_jax.analysis.drift import Drift
from bn_jax.reporting.tables import ensemble_table, evaluation_table, layer_table
from bn_jax.results import EnsembleEvaluation, Evaluation, Layer, Member

DENSE = Layer("dense", {"bias": (3,), "kernel": (4, 3)}, 15, None, None)
NORM = Layer(
    "block/norm",
    {"scale": (3,)},
    3,
    {"mean": np.array([-1.5, 0, 2]), "var": np.array([0.25, 1, 4])},
    Drift(np.float32(0.125), np.float32(0.5)),
)


def row(table: str, layer: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(layer)]
    return line.split()


def test_a_layer_shows_its_shapes_and_how_many_parameters_it_has() -> None:
    table = layer_table([DENSE, NORM], step=7)
    assert row(table, "dense") == ["dense", "bias", "3,", "kernel", "4x3", "15"]
    assert "After step 7" in table


def test_a_normalization_layer_shows_ranges_and_drift() -> None:
    cells = row(layer_table([DENSE, NORM], step=7), "block/norm")
    assert cells[-8:] == ["-1.5", "to", "2", "0.25", "to", "4", "0.125", "0.500"]


def test_the_last_row_is_the_sum_of_all_parameters() -> None:
    many = DENSE._replace(num_parameters=12_345)
    assert row(layer_table([many, NORM], step=7), "all") == ["all", "12,348"]


def test_an_evaluation_says_of_what_it_is() -> None:
    evaluation = Evaluation(
        60, "digits", 97, {"test_loss": 0.5, "test_accuracy": 0.9}, "running statistics"
    )
    table = evaluation_table(evaluation, crops=1)
    assert table.splitlines() == [
        "after step 60, 97 test examples of digits, running statistics",
        "test_loss     0.5000",
        "test_accuracy 0.9000",
    ]


def test_an_evaluation_of_crops_says_so() -> None:
    evaluation = Evaluation(60, "imagenet2012", 12, {"test_loss": 0.5}, "no statistics")
    table = evaluation_table(evaluation, crops=144)
    assert table.splitlines()[0] == (
        "after step 60, 12 test examples of imagenet2012, 144 crops of each, "
        "no statistics"
    )


ONE = {"test_loss": 1.25, "test_accuracy": 0.748, "test_top5_accuracy": 0.9218}
ALL = {"test_loss": 1.0, "test_accuracy": 0.799, "test_top5_accuracy": 0.951}


def test_an_ensemble_shows_each_network_and_all_together() -> None:
    members = [Member("runs/one", 600, False, ONE), Member("runs/2", 50, True, ONE)]
    evaluation = EnsembleEvaluation(
        "imagenet2012", 12, members, ALL, "batch statistics"
    )
    table = ensemble_table(evaluation, crops=144)
    assert table.splitlines() == [
        "12 test examples of imagenet2012, 144 crops of each, batch statistics; "
        "rates in %, loss in nats",
        "",
        "network   parameters  step  top-1  error  top-5  top-5 error    loss",
        "runs/one  last         600  74.80  25.20  92.18         7.82  1.2500",
        "runs/2    averaged      50  74.80  25.20  92.18         7.82  1.2500",
        "ensemble                    79.90  20.10  95.10         4.90  1.0000",
    ]


def test_with_few_classes_an_ensemble_has_no_top_five() -> None:
    few = {"test_loss": 0.5, "test_accuracy": 0.9}
    members = [Member(name, 5, False, few) for name in "ab"]
    table = ensemble_table(
        EnsembleEvaluation("digits", 97, members, few, "batch statistics"), crops=1
    )
    assert row(table, "a ") == ["a", "last", "5", "90.00", "10.00", "0.5000"]
