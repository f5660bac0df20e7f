"""Figure 1 of Ioffe & Szegedy (2015) from runs with and without normalization."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from bn_jax.reporting.load import Run
from bn_jax.reporting.seed_statistics import mean_and_deviation, seed_statistics

# Colours that colour-blind readers can tell apart, and that also differ in grey.
_LOOKS: Mapping[str, dict[str, Any]] = {
    "bn": {"label": "with BN", "color": "#0b6fb8", "linestyle": "-"},
    "baseline": {"label": "without BN", "color": "#d1580e", "linestyle": "--"},
}
_ACCURACIES = {"steps_to_90_percent": 0.90, "steps_to_95_percent": 0.95}


def draw_figure1(arms: Mapping[str, Sequence[Run]], paths: Sequence[Path]) -> None:
    """Draws test accuracy, and percentiles of the input to one sigmoid.

    Panel (a) shows test accuracy against training steps: the mean over seeds, with a
    band from the worst seed to the best. Panels (b), without BN, and (c), with BN, show
    the {15, 50, 85}th percentiles of the first seed.

    Args:
        arms: Runs of the arms "bn" and "baseline", one a seed. All runs must be
            evaluated at the same steps.
        paths: Files to write; the suffix of each selects its format.
    """
    # With a fixed salt Matplotlib writes the same ids into every SVG file.
    with matplotlib.rc_context({"svg.hashsalt": "bn_jax"}):
        _draw(arms, paths)


def _draw(arms: Mapping[str, Sequence[Run]], paths: Sequence[Path]) -> None:
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    curves, *panels = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    _draw_accuracy(curves, arms)
    limit = max(
        float(np.abs(runs[0].metrics["percentiles"]).max()) for runs in arms.values()
    )
    titles = {"baseline": "(b) Without BN", "bn": "(c) With BN"}
    for axes, (arm, title) in zip(panels, titles.items(), strict=True):
        _draw_percentiles(axes, arms[arm][0], _LOOKS[arm]["color"])
        axes.set_title(title)
        axes.set_ylim(-1.05 * limit, 1.05 * limit)
    panels[0].set_ylabel("input to one sigmoid")
    for axes in (curves, *panels):
        axes.set_xlabel("training steps")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.spines[["top", "right"]].set_visible(False)
    for path in paths:
        # Leave out the date, so that equal runs give equal files.
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=160, metadata=metadata)


def figure1_record(arms: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Returns a JSON-ready record: the results of each seed, and all curves.

    Args:
        arms: Runs of the arms "bn" and "baseline", one a seed.
    """
    record: dict[str, Any] = {"arms": {}}
    for arm, runs in arms.items():
        values: dict[str, list[float | None]] = {
            name: [run.steps_to(accuracy) for run in runs]
            for name, accuracy in _ACCURACIES.items()
        }
        for name in ("final_test_accuracy", "steps_per_second"):
            values[name] = [run.summary[name] for run in runs]
        record["arms"][arm] = {
            "seeds": [run.config["seed"] for run in runs],
            **{name: seed_statistics(seeds) for name, seeds in values.items()},
            "curves": {
                "step": runs[0].metrics["step"].tolist(),
                "test_accuracy": [r.metrics["test_accuracy"].tolist() for r in runs],
                "percentiles": [r.metrics["percentiles"].tolist() for r in runs],
            },
        }
    means = [
        record["arms"][a]["steps_to_90_percent"]["mean"] for a in ("baseline", "bn")
    ]
    record["steps_to_90_percent_baseline_over_bn"] = (
        None if None in means else means[0] / means[1]
    )
    record["versions"] = arms["bn"][0].summary["versions"]
    record["config"] = arms["bn"][0].config
    return record


def figure1_table(record: Mapping[str, Any]) -> str:
    """Returns a table with mean and standard deviation over seeds of both arms.

    Args:
        record: Result of `figure1_record`.
    """
    lines = [f"{'':12}{'steps to 90 %':>16}{'steps to 95 %':>16}{'final accuracy':>18}"]
    for arm in ("baseline", "bn"):
        values = record["arms"][arm]
        ninety = mean_and_deviation(values["steps_to_90_percent"], "{:.0f}")
        ninety_five = mean_and_deviation(values["steps_to_95_percent"], "{:.0f}")
        accuracy = values["final_test_accuracy"]
        final = mean_and_deviation(accuracy, "{:.2f}", unit=0.01) + " %"
        label = _LOOKS[arm]["label"]
        lines.append(f"{label:12}{ninety:>16}{ninety_five:>16}{final:>18}")
    ratio = record["steps_to_90_percent_baseline_over_bn"]
    if ratio is not None:
        lines.append(f"Without BN it takes {ratio:.1f} times the steps to 90 %.")
    seeds = len(record["arms"]["bn"]["seeds"])
    lines.append(f"Mean ± standard deviation; seeds: {seeds}; - where never reached.")
    return "\n".join(lines)


def _draw_accuracy(axes: Axes, arms: Mapping[str, Sequence[Run]]) -> None:
    for arm in ("bn", "baseline"):
        steps = arms[arm][0].metrics["step"]
        accuracy = np.stack([run.metrics["test_accuracy"] for run in arms[arm]])
        axes.plot(steps, accuracy.mean(axis=0), **_LOOKS[arm])
        band = (accuracy.min(axis=0), accuracy.max(axis=0))
        axes.fill_between(steps, *band, color=_LOOKS[arm]["color"], alpha=0.25, lw=0)
    axes.set_title("(a) Test accuracy")
    axes.set_ylim(0.7, 1.0)
    axes.set_ylabel("fraction of test images")
    axes.legend(loc="lower right", frameon=False)


def _draw_percentiles(axes: Axes, run: Run, color: str) -> None:
    low, median, high = run.metrics["percentiles"].T
    for values, width in ((low, 1.0), (median, 1.8), (high, 1.0)):
        axes.plot(run.metrics["step"], values, color=color, lw=width)
    for values, name in ((high, "85th"), (median, "50th"), (low, "15th")):
        axes.annotate(
            name,
            (run.metrics["step"][-1], values[-1]),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
