"""Plain-text tables of a trained model."""

from collections.abc import Sequence

from bn_jax.analysis.trained import Evaluation, Layer


def evaluation_table(evaluation: Evaluation, *, statistics: str) -> str:
    """What was evaluated, and one line a metric.

    Args:
        evaluation: The result.
        statistics: What layers normalized by.
    """
    lines = [
        f"after step {evaluation.step}, {evaluation.num_examples} test examples of "
        f"{evaluation.data}, {statistics} statistics"
    ]
    lines += [f"{name:20} {value:.4f}" for name, value in evaluation.metrics.items()]
    return "\n".join(lines)


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
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    table = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(
        [
            f"After step {step}. mean and var: smallest and largest of the running",
            "statistics. drift and log std: how far the next training batch's mean (in",
            "running standard deviations) and standard deviation (natural logarithm of",
            "the ratio) lie from them, root mean square over features.",
            "",
            *table,
        ]
    )


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
