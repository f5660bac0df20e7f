"""The numbers of the page on the experiments are those of their committed runs."""

import json
import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "experiments.md"

pytestmark = pytest.mark.docs


def test_the_numbers_of_the_figure_are_those_of_its_committed_runs() -> None:
    record = json.loads((_ROOT / "results/figure1.json").read_text())
    text = _PAGE.read_text()

    for arm, label in (("baseline", "without BN"), ("bn", "with BN")):
        values = record["arms"][arm]
        ninety, final = values["steps_to_90_percent"], values["final_test_accuracy"]
        row = re.search(rf"^\| {label} \| (.*) \|$", text, re.M)[1].split(" | ")
        assert row[0] == f"{ninety['mean']:.0f} ± {ninety['std']:.0f}"
        assert row[2] == f"{100 * final['mean']:.2f} ± {100 * final['std']:.2f} %"
    ratio = record["steps_to_90_percent_baseline_over_bn"]
    assert f"takes {ratio:.1f} times the steps" in text
    assert ratio >= 3


def test_the_ratios_of_speed_are_those_of_the_committed_benchmarks() -> None:
    folder = _ROOT / "results"
    steps = json.loads((folder / "mnist_step.json").read_text())["arms"]
    layers = json.loads((folder / "batch_norm-cpu.json").read_text())
    text = _PAGE.read_text()

    def cells(of):
        return " | ".join(f"{of(dtype):.2f}" for dtype in ("float32", "bfloat16"))

    def over_all_means(what, measure="geometric_mean"):
        return lambda dtype: layers[dtype]["bn_jax_over_all_means"][what][measure]

    for row, comparison in {
        "one run at a time": "one run, all cores",
        "two runs at a time, one on each core": "two runs, one a core",
    }.items():
        ratios = [
            f"{steps[arm]['steps_per_second_over_torch'][comparison]:.2f}"
            for arm in ("bn", "baseline")
        ]
        assert f"| {row} | {' | '.join(ratios)} |" in text
    both, forward = "forward+backward", "forward"
    largest = over_all_means(both, "largest_of_large_shapes")
    passes = {both: "forward and backward pass", forward: "forward pass"}
    for what, name in passes.items():
        assert f"| bn_jax, {name} | {cells(over_all_means(what))} |" in text
        peer = cells(
            lambda dtype, w=what: layers[dtype]["geometric_mean"][w]["pytorch"]
        )
        assert f"| PyTorch, {name} | {peer} |" in text
    assert f"| bn_jax, {passes[both]}, largest ratio | {cells(largest)} |" in text
    for dtype in ("float32", "bfloat16"):
        # The aims: no longer with the gradient, and in no shape by more than a third.
        assert over_all_means(both)(dtype) <= 1.05
        assert largest(dtype) <= 1.35


def test_the_cost_of_compilation_is_that_of_the_committed_benchmark() -> None:
    record = json.loads((_ROOT / "results/compile_cost.json").read_text())
    text = _PAGE.read_text()
    layer, step = record["layer"], record["resnet18_step"]
    ours, flax = (layer[of]["stablehlo_operations"] for of in ("bn_jax", "flax"))
    assert f"in training | {ours} | {flax} |" in text
    lines = f"{step['lines_over_flax']:.2f}"
    assert f"step of ResNet-18, relative to Flax | {lines} | 1 |" in text
    seconds = f"{step['cpu_seconds_over_flax']:.2f}"
    assert f"CPU time to compile that step, relative to Flax | {seconds} | 1 |" in text
    assert ours <= 115
    assert step["lines_over_flax"] <= 1.6
    assert step["cpu_seconds_over_flax"] <= 1.25


def test_the_metrics_of_the_convolutional_network_are_those_of_its_committed_runs() -> (
    None
):
    record = json.loads((_ROOT / "results/mnist_cnn.json").read_text())
    text = " ".join(_PAGE.read_text().split())
    for arm in ("bn", "baseline"):
        values = record["arms"][arm]
        mean, stdev = values["mean_test_accuracy"], values["stdev_test_accuracy"]
        assert f"{100 * mean:.2f} ± {100 * stdev:.2f} %" in text


def test_the_cost_of_the_loop_is_that_of_the_committed_benchmark() -> None:
    record = json.loads((_ROOT / "results/loop.json").read_text())
    ratios = record["loop_over_bare"]
    text = " ".join(_PAGE.read_text().split())
    assert (
        f"takes {ratios['clock']:.2f} times the time and {ratios['processor']:.2f} "
        "times the CPU time of the compiled step alone. These are medians of "
        f"{len(record['seconds_a_step'])} rounds"
    ) in text
    assert max(ratios.values()) <= 1.02
