"""The numbers and paths of the README are those of the repository."""

import json
import re
from pathlib import Path

import pytest

from bn_jax.experiments.configs import load_config
from bn_jax.reporting.claims import ARM_NAMES
from bn_jax.reporting.seed_statistics import mean_and_deviation

_README = Path(__file__).parents[2] / "README.md"
# The small arms here, and by earlier versions on another machine.
_SAME_RUNS = ("figure2.json", "figure2-earlier.json", "figure2-again.json")


pytestmark = pytest.mark.docs


def test_every_file_that_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", _README.read_text())

    assert links
    assert [link for link in links if not (_README.parent / link).exists()] == []


def test_every_path_in_the_map_of_the_code_is_there() -> None:
    the_map = _README.read_text().partition("## What is where")[2]
    paths = re.findall(r"`([\w/.]+(?:/|\.py))`", the_map)

    assert "bn_jax/core/" in paths
    assert [path for path in paths if not (_README.parent / path).exists()] == []


def test_the_numbers_of_the_figure_are_those_of_its_committed_runs() -> None:
    record = json.loads((_README.parent / "results/figure1.json").read_text())
    text = _README.read_text()

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
    folder = _README.parent / "results"
    steps = json.loads((folder / "mnist_step.json").read_text())["arms"]
    layers = json.loads((folder / "batch_norm-cpu.json").read_text())
    text = _README.read_text()

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
    record = json.loads((_README.parent / "results/compile_cost.json").read_text())
    text = _README.read_text()
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
    record = json.loads((_README.parent / "results/mnist_cnn.json").read_text())
    text = " ".join(_README.read_text().split())
    for arm in ("bn", "baseline"):
        values = record["arms"][arm]
        mean, stdev = values["mean_test_accuracy"], values["stdev_test_accuracy"]
        assert f"{100 * mean:.2f} ± {100 * stdev:.2f} %" in text


def test_the_cost_of_the_loop_is_that_of_the_committed_benchmark() -> None:
    record = json.loads((_README.parent / "results/loop.json").read_text())
    ratios = record["loop_over_bare"]
    text = " ".join(_README.read_text().split())
    assert (
        f"takes {ratios['clock']:.2f} times the time and {ratios['processor']:.2f} "
        "times the CPU time of the compiled step alone. These are medians of "
        f"{len(record['seconds_a_step'])} rounds"
    ) in text
    assert max(ratios.values()) <= 1.02


def test_the_small_arms_are_those_of_their_committed_runs() -> None:
    record = json.loads((_README.parent / "results/figure2.json").read_text())
    text = _README.read_text()
    for arm, values in record["arms"].items():
        steps = mean_and_deviation(values["steps_to_target"], "{:.0f}")
        highest = mean_and_deviation(values["max_accuracy"], "{:.2f}", unit=0.01)
        cells = [ARM_NAMES[arm], f"{values['learning_rate']:g}", steps, f"{highest} %"]
        assert f"| {' | '.join(cells)} | " in text
    target = mean_and_deviation(record["target_accuracy"], "{:.2f}", unit=0.01)
    assert f"{target} % here" in text


def test_every_claim_of_the_small_arms_is_told_as_it_came_out() -> None:
    record = json.loads((_README.parent / "results/figure2.json").read_text())
    text = _README.read_text()
    for claim in record["claims"]:
        end = "holds" if claim["holds"] else "**does not hold**"
        cells = [claim["claim"], claim["criterion"], claim["measured"], end]
        assert f"| {' | '.join(cells)} |" in text


def test_the_rate_of_the_small_arms_is_the_one_that_the_search_found() -> None:
    record = json.loads((_README.parent / "results/figure2.json").read_text())
    tried = record["search"]["tried"]
    best = max(tried, key=lambda one: one["max_accuracy"]["mean"])
    assert record["search"]["learning_rate"] == best["learning_rate"]
    config = load_config("inception_small.py", "inception")
    assert config.optimizer.learning_rate == best["learning_rate"]
    accuracies = sorted(one["max_accuracy"]["mean"] for one in tried)
    assert f"({100 * accuracies[0]:.0f} to {100 * accuracies[-1]:.0f} %)" in (
        _README.read_text()
    )


def test_the_longer_runs_of_the_small_arms_came_to_what_is_said_of_them() -> None:
    record = json.loads((_README.parent / "results/figure2-400steps.json").read_text())
    assert record["config"]["num_steps"] == 400
    assert record["search"]["learning_rate"] == 0.01
    highest = {
        arm: mean_and_deviation(values["max_accuracy"], "{:.2f}", unit=0.01)
        for arm, values in record["arms"].items()
    }
    text = " ".join(_README.read_text().split())
    assert f"Inception reached {highest['inception']} %" in text
    assert f"BN-x30 reached {highest['bn_x30']} % and was the best of all" in text
    assert [c["claim"] for c in record["claims"] if not c["holds"]] == [
        "At five times its rate Inception without BN diverges or stalls"
    ]


@pytest.mark.parametrize("name", [*_SAME_RUNS, "figure2-400steps.json"])
def test_what_is_said_to_hold_in_all_runs_of_the_small_arms_does(name: str) -> None:
    arms = json.loads((_README.parent / "results" / name).read_text())["arms"]
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
        json.loads((_README.parent / "results" / name).read_text())
        for name in _SAME_RUNS
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
    text = " ".join(_README.read_text().split())
    assert f"there it was {said[0]} % and {said[1]} %." in text


def test_the_earlier_version_gives_the_present_curve_of_inception_here() -> None:
    folder = _README.parent / "results"
    record = json.loads((folder / "inception_small.json").read_text())
    here, _, again = (
        json.loads((folder / name).read_text())["arms"]["inception"]["curves"][0]
        for name in _SAME_RUNS
    )
    found = record["earlier_version_here"]["test_accuracy"]
    assert found == here["accuracy"] != again["accuracy"]


def test_the_time_of_the_small_arms_is_that_of_their_committed_runs() -> None:
    folder = _README.parent / "results"
    record = json.loads((folder / "inception_small.json").read_text())
    arms = json.loads((folder / "figure2.json").read_text())["arms"]
    assert record["wall_seconds"] == {
        arm: [round(value, 1) for value in values["wall_seconds"]]
        for arm, values in arms.items()
    }
    seconds = [value for arm in record["wall_seconds"].values() for value in arm]
    alone = [run["wall_seconds"] for run in record["alone"]["runs"]]
    text = " ".join(_README.read_text().split())
    assert f"A run took {min(seconds):.0f} to {max(seconds):.0f} seconds" in text
    assert f"four took {min(alone):.0f} to {max(alone):.0f}" in text
    assert len(alone) == 4
    assert max(*seconds, *alone) < 240
    assert "each takes less than four minutes." in text


def test_the_configuration_of_the_small_arms_says_what_they_came_to() -> None:
    record = json.loads((_README.parent / "results/figure2.json").read_text())
    text = (_README.parent / "configs/inception_small.py").read_text()
    for arm, values in record["arms"].items():
        highest = mean_and_deviation(values["max_accuracy"], "{:.2f}", unit=0.01)
        assert re.search(rf"\b{arm} +{highest.removesuffix(' ± 0.00')}", text)
