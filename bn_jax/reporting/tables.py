"""Plain-text tables of trained models."""

from collections.abc import Mapping, Sequence

from bn_jax.results import EnsembleEvaluation, Evaluation, Layer


def evaluation_table(evaluation: Evaluation, *, statistics: str, crops: int) -> str:
    """What was evaluated, and one line a metric.

    Args:
        evaluation: The result.
        statistics: What layers normalized by.
        crops: Of each image.
    """
    width = max(len(name) for name in evaluation.metrics)
    lines = [
        f"after step {evaluation.step}, "
        + _what(evaluation, statistics=statistics, crops=crops)
    ]
    lines += [
        f"{name:{width}} {value:.4f}" for name, value in evaluation.metrics.items()
    ]
    return "\n".join(lines)


def ensemble_table(
    evaluation: EnsembleEvaluation, *, statistics: str, crops: int
) -> str:
    """What was evaluated, one line a network, and one of all together.

    Args:
        evaluation: The result.
        statistics: What layers normalized by.
        crops: Of each image.
    """
    rows: list[tuple[str, ...]] = [("network", "parameters", "step", *_RATES, "loss")]
    for member in evaluation.members:
        kind = "averaged" if member.is_averaged else "last"
        rows.append((member.name, kind, str(member.step), *_rates(member.metrics)))
    rows.append(("ensemble", "", "", *_rates(evaluation.metrics)))
    what = _what(evaluation, statistics=statistics, crops=crops)
    return "\n".join([f"{what}; rates in %, loss in nats", "", *_aligned(rows)])


def layer_table(layers: Sequence[Layer], *, step: int) -> str:
    """One row a layer, and what the columns mean.

    Args:
        layers: In the model's order.
        step: Steps that the model was trained.
    """
    header = ("layer", "parameters", "number", "mean", "var", "drift", "log std")
    rows = [header, *(_row(layer) for layer in layers)]
    total = sum(layer.num_parameters for layer in layers)
    rows.append(("all", "", f"{total:,}", "", "", "", ""))
    return "\n".join(
        [
            f"After step {step}. mean and var: smallest and largest of the running",
            "statistics. drift and log std: how far the next training batch's mean (in",
            "running standard deviations) and standard deviation (natural logarithm of",
            "the ratio) lie from them, root mean square over features.",
            "",
            *_aligned(rows),
        ]
    )


_RATES = ("top-1", "error", "top-5", "top-5 error")


def _what(
    evaluation: Evaluation | EnsembleEvaluation, *, statistics: str, crops: int
) -> str:
    """The data in words, and how they were evaluated."""
    of_each = "" if crops == 1 else f", {crops} crops of each"
    return (
        f"{evaluation.num_examples} test examples of {evaluation.data}{of_each}, "
        f"{statistics} statistics"
    )


def _rates(metrics: Mapping[str, float]) -> tuple[str, ...]:
    """Cells of right and wrong classes in percent, and of the loss."""
    cells = []
    for name in ("test_accuracy", "test_top5_accuracy"):
        rate = metrics.get(name)
        if rate is None:
            cells += ["", ""]
        else:
            cells += [f"{100 * rate:.2f}", f"{100 * (1 - rate):.2f}"]
    return (*cells, f"{metrics['test_loss']:.4f}")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns, the first two aligned on the left, the others on the right."""
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
    if stats is None or drift is None:
        return (*cells, "", "", "", "")
    ranges = (f"{x.min():.3g} to {x.max():.3g}" for x in (stats["mean"], stats["var"]))
    return (*cells, *ranges, f"{float(drift.mean):.3f}", f"{float(drift.log_std):.3f}")


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)
