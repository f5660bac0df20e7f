"""Tables for people: every figure stands in its row."""

import numpy as np

from bn_jax.analysis.drift import Drift
from bn_jax.analysis.trained import Evaluation, Layer
from bn_jax.reporting.tables import evaluation_table, layer_table

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
    evaluation = Evaluation(60, "digits", 97, {"test_loss": 0.5, "test_accuracy": 0.9})
    assert evaluation_table(evaluation, statistics="moving").splitlines() == [
        "after step 60, 97 test examples of digits, moving statistics",
        "test_loss            0.5000",
        "test_accuracy        0.9000",
    ]
