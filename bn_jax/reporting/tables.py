"""Plain-text tables of trained models."""

from collections.abc import Mapping, Sequence

from bn_jax.results import EnsembleEvaluation, Evaluation, Layer


def evaluation_table(evaluation: Evaluation, *, crops: int) -> str:
    """Returns a heading and one line a metric.

    Args:
        evaluation: Test results of the model.
        crops: Number of crops of each image.
    """
    width = max(len(name) for name in evaluation.metrics)
    lines = [f"after step {evaluation.step}, " + _describe(evaluation, crops)]
    lines += [
        f"{name:{width}} {value:.4f}" for name, value in evaluation.metrics.items()
    ]
    return "\n".join(lines)


def ensemble_table(evaluation: EnsembleEvaluation, *, crops: int) -> str:
    """Returns a heading, one line a network, and one line for the ensemble.

    Args:
        evaluation: Test results of the ensemble and of its networks.
        crops: Number of crops of each image.
    """
    rows: list[tuple[str, ...]] = [("network", "parameters", "step", *_RATES, "loss")]
    for member in evaluation.members:
        kind = "averaged" if member.is_averaged else "last"
        rows.append((member.name, kind, str(member.step), *_rates(member.metrics)))
    rows.append(("ensemble", "", "", *_rates(evaluation.metrics)))
    heading = _describe(evaluation, crops)
    return "\n".join([f"{heading}; rates in %, loss in nats", "", *_aligned(rows)])


def layer_table(layers: Sequence[Layer], *, step: int) -> str:
    """Returns an explanation of the columns, and one row a layer.

    Args:
        layers: Layers in the order of the model.
        step: Number of steps that the model was trained.
    """
    header = ("layer", "parameters", "number", "mean", "var", "drift", "log std")
    rows = [header, *(_row(layer) for layer in layers)]
    total = sum(layer.num_parameters for layer in layers)
    rows.append(("all", "", f"{total:,}", "", "", "", ""))
    return "\n".join(
        [
            f"After step {step}. mean and var: smallest and largest of the running",
            "statistics. drift: distance of the next training batch's mean from the",
            "running mean, in running standard deviations. log std: natural logarithm",
            "of the ratio of that batch's standard deviation to the running one. drift",
            "and log std are root mean squares over features.",
            "",
            *_aligned(rows),
        ]
    )


_RATES = ("top-1", "error", "top-5", "top-5 error")


def _describe(evaluation: Evaluation | EnsembleEvaluation, crops: int) -> str:
    """Returns the number of examples, the data set and the evaluation method."""
    of_each = "" if crops == 1 else f", {crops} crops of each"
    return (
        f"{evaluation.num_examples} test examples of {evaluation.data}{of_each}, "
        f"{evaluation.statistics}"
    )


def _rates(metrics: Mapping[str, float]) -> tuple[str, ...]:
    """Returns the cells of accuracies and error rates in percent, and of the loss."""
    cells = []
    for name in ("test_accuracy", "test_top5_accuracy"):
        rate = metrics.get(name)
        if rate is None:
            cells += ["", ""]
        else:
            cells += [f"{100 * rate:.2f}", f"{100 * (1 - rate):.2f}"]
    return (*cells, f"{metrics['test_loss']:.4f}")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns lines of columns: two left-aligned, the remaining ones right-aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _row(layer: Layer) -> tuple[str, ...]:
    shapes = ", ".join(f"{name} {_shape(s)}" for name, s in layer.shapes.items())
    cells = (layer.path, shapes, f"{layer.num_parameters:,}")
    stats, drift = layer.batch_stats, layer.drift
    if stats is None:
        return (*cells, "", "", "", "")
    ranges = [f"{x.min():.3g} to {x.max():.3g}" for x in (stats["mean"], stats["var"])]
    if drift is None:
        return (*cells, *ranges, "", "")
    return (*cells, *ranges, f"{float(drift.mean):.3f}", f"{float(drift.log_std):.3f}")


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)
