"""Figures 2 and 3 of Ioffe & Szegedy (2015), section 4.2, from small runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bn_jax.reporting.claims import ARM_NAMES, check_claims
from bn_jax.reporting.load import Run
from bn_jax.reporting.seed_statistics import mean_and_deviation, seed_statistics

# Steps to an accuracy of 72.2 %, and highest accuracy, in the paper.
PUBLISHED: Mapping[str, Any] = {
    "source": "Ioffe & Szegedy (2015), Figure 3: ImageNet, 224x224 pixels, one crop",
    "arms": {
        "inception": {"steps": 31.0e6, "max_accuracy": 0.722},
        "bn_baseline": {"steps": 13.3e6, "max_accuracy": 0.727},
        "bn_x5": {"steps": 2.1e6, "max_accuracy": 0.730},
        "bn_x30": {"steps": 2.7e6, "max_accuracy": 0.748},
        "bn_x5_sigmoid": {"steps": None, "max_accuracy": 0.698},
    },
}
# Colours that colour-blind readers can tell apart; line styles that differ in grey.
_LOOKS: Mapping[str, dict[str, Any]] = {
    "inception": {"color": "#333333", "ls": "--"},
    "bn_baseline": {"color": "#d1580e", "ls": ":"},
    "bn_x5": {"color": "#0b6fb8", "ls": "-"},
    "bn_x30": {"color": "#1b8a5a", "ls": "-."},
    "bn_x5_sigmoid": {"color": "#b0468e", "ls": "-"},
    "inception_x5": {"color": "#8a6d1b", "ls": "-."},
    "inception_sigmoid": {"color": "#777777", "ls": ":"},
}
_PANELS = {
    "(a) The paper's five arms": tuple(PUBLISHED["arms"]),
    "(b) Without BN, and sigmoids with it": (
        "bn_x5_sigmoid",
        "inception_x5",
        "inception_sigmoid",
    ),
}


class DataSize(NamedTuple):
    """Name and sizes of a data set.

    Attributes:
        name: Name of the data set.
        image_shape: Height and width in pixels, and channels, of an image.
        num_classes: Number of classes in the validation split, which may be fewer than
            those of the whole data set.
        num_validation_images: Number of images in the validation split, on which
            accuracy is evaluated.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    num_validation_images: int


def figure2_record(
    arms: Mapping[str, Sequence[Run]],
    *,
    diverged_after: Mapping[str, Sequence[int | None]],
    data: DataSize,
) -> dict[str, Any]:
    """Returns a JSON-ready record: measured values, the paper's, and checked claims.

    `steps_to_target` counts the steps until a run reaches the highest accuracy of the
    Inception run with the same seed.

    Args:
        arms: Runs of each arm, one a seed. All arms must have the same seeds.
        diverged_after: The last finite step of each run; None if it did not diverge.
        data: Name and sizes of the data set.
    """
    targets = [_max_accuracy(run) or 0.0 for run in arms["inception"]]
    measured: dict[str, Any] = {}
    for arm, runs in arms.items():
        steps = [run.steps_to(t) for run, t in zip(runs, targets, strict=True)]
        measured[arm] = {
            "learning_rate": runs[0].config["optimizer"]["learning_rate"],
            "seeds": [run.config["seed"] for run in runs],
            "diverged_after": list(diverged_after[arm]),
            "steps_to_target": seed_statistics(steps),
            "max_accuracy": seed_statistics([_max_accuracy(run) for run in runs]),
            "wall_seconds": [run.summary.get("wall_seconds") for run in runs],
            "curves": [
                {
                    "step": run.metrics["step"].tolist(),
                    "accuracy": run.metrics["test_accuracy"].tolist(),
                }
                for run in runs
            ],
        }
    config = arms["inception"][0].config
    record: dict[str, Any] = {
        "source": f"these runs: {describe_data(config, data)}",
        "num_classes": data.num_classes,
        "target_accuracy": seed_statistics(targets),
        "arms": measured,
        "published": PUBLISHED,
        "versions": _versions(arms),
        "config": config,
    }
    claims = check_claims(measured, num_classes=data.num_classes)
    record["claims"] = [claim._asdict() for claim in claims]
    return record


def describe_data(config: Mapping[str, Any], data: DataSize) -> str:
    """Describes the images, the number of channels and the number of steps.

    Args:
        config: Configuration of a run.
        data: Name and sizes of the data set.
    """
    height, width, _ = data.image_shape
    num_images = data.num_validation_images
    splits = config["dataset"]
    return (
        f"{data.name}, {height}x{width} pixels, accuracy on {num_images:,} "
        f"images, {splits['test_split']}, after training on {splits['train_split']}; "
        f"{config['model']['width']:g} of the channels, {config['num_steps']} steps of "
        f"{config['batch_size']} images"
    )


def figure2_table(record: Mapping[str, Any]) -> str:
    """Returns Figure 3 as a table, beside the paper's numbers, with the claims.

    Args:
        record: Result of `figure2_record`.
    """
    target = mean_and_deviation(record["target_accuracy"], "{:.2f}", unit=0.01)
    num_seeds = len(record["target_accuracy"]["seeds"])
    published = record["published"]
    lines = [
        f"ours:  {record['source']}",
        f"paper: {published['source']}",
        "",
        f"{'':18}{'rate':>8}{'ours: steps':>15}{'highest':>18}"
        f"{'paper: steps':>15}{'highest':>10}",
    ]
    for arm, values in record["arms"].items():
        highest = mean_and_deviation(values["max_accuracy"], "{:.2f}", unit=0.01)
        steps = mean_and_deviation(values["steps_to_target"], "{:.0f}")
        line = f"{ARM_NAMES[arm]:18}{values['learning_rate']:>8.3g}"
        line += f"{steps:>15}{highest + ' %':>18}"
        theirs = published["arms"].get(arm)
        if theirs is not None:
            count = f"{theirs['steps'] / 1e6:.1f}e6" if theirs["steps"] else "-"
            line += f"{count:>15}{theirs['max_accuracy']:>10.1%}"
        ended = [step for step in values["diverged_after"] if step is not None]
        if ended:
            line += f"  diverged after steps {', '.join(map(str, ended))}"
        lines.append(line)
    lines += [
        "",
        f"steps: number of steps to Inception's highest accuracy: ours {target} %, the "
        "paper's 72.2 %.",
        f"Mean ± standard deviation; seeds: {num_seeds}; - if not all have a value.",
        "",
    ]
    lines += [
        f"{'holds' if claim['holds'] else 'DOES NOT HOLD':14}{claim['claim']}: "
        f"{claim['criterion']} ({claim['measured']})"
        for claim in record["claims"]
    ]
    return "\n".join(lines)


def draw_figure2(record: Mapping[str, Any], paths: Sequence[Path]) -> None:
    """Draws validation accuracy against training steps.

    Each line is the mean over seeds, with a band from the worst seed to the best. A
    line ends at the last step that all seeds of the arm have reached.

    Args:
        record: Result of `figure2_record`.
        paths: Files to write; the suffix of each selects its format.
    """
    # With a fixed salt Matplotlib writes the same ids into every SVG file.
    with matplotlib.rc_context({"svg.hashsalt": "bn_jax"}):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        panels = figure.subplots(1, 2)
        for axes, (title, names) in zip(panels, _PANELS.items(), strict=True):
            axes.set_title(title)
            chance = 1 / record["num_classes"]
            axes.axhline(chance, label="chance", color="#333333", lw=0.7)
            _draw_curves(axes, {name: record["arms"][name] for name in names})
        panels[0].set_ylabel("accuracy on the validation images")
        description = record["source"].removeprefix("these runs: ")
        figure.supxlabel(f"training steps  ({description})", fontsize="small")
        for path in paths:
            # Leave out the date, so that equal runs give equal files.
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(path, dpi=160, metadata=metadata)


def _draw_curves(axes: Axes, arms: Mapping[str, Any]) -> None:
    for arm, values in arms.items():
        curves = values["curves"]
        length = min(len(curve["step"]) for curve in curves)
        steps = curves[0]["step"][:length]
        accuracy = np.array([curve["accuracy"][:length] for curve in curves])
        label = ARM_NAMES[arm]
        if any(step is not None for step in values["diverged_after"]):
            label += " (diverged)"
        axes.plot(steps, accuracy.mean(axis=0), label=label, **_LOOKS[arm])
        band = (accuracy.min(axis=0), accuracy.max(axis=0))
        axes.fill_between(steps, *band, color=_LOOKS[arm]["color"], alpha=0.2, lw=0)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    # The legend is below the axes, because curves may cover any place inside.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, frameon=False)


def _versions(arms: Mapping[str, Sequence[Run]]) -> dict[str, str] | None:
    """Returns the versions of a complete run; None if all runs have diverged."""
    complete = (run.summary for runs in arms.values() for run in runs if run.summary)
    return next((summary["versions"] for summary in complete), None)


def _max_accuracy(run: Run) -> float | None:
    accuracy = run.metrics["test_accuracy"]
    return float(accuracy.max()) if accuracy.size else None
