"""Measurements that a configuration lists and the loop takes at every evaluation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bn_jax.analysis.distributions import typical_unit, unit_percentiles
from bn_jax.analysis.drift import statistics_drift
from bn_jax.errors import UserError
from bn_jax.stats.collections import layers_with_statistics

# A probe measures a model with the variables that it is evaluated with, and may compare
# them with its running statistics; each value goes into the metrics under its name.
Probe = Callable[[PyTree, PyTree], Mapping[str, Array]]


def make_probes(
    names: Sequence[str],
    *,
    model: nn.Module,
    initial_variables: Callable[[], PyTree],
    read_inputs: Callable[[], Float[Array, "examples ..."]],
) -> Probe:
    """All probes that a configuration lists, as one.

    Args:
        names: "percentiles", "batch_norm", or none.
        model: Called as `model.apply(variables, x, train=...)`.
        initial_variables: Gives what the model has before training, with population
            statistics.
        read_inputs: Gives the model inputs. Some probes use these two, and call them
            if they do.

    Raises:
        UserError: If there is no probe of a name, or the model does not suit it.
    """
    probes = []
    for name in names:
        if name not in _PROBES:
            raise UserError(
                f"probes: unknown probe {name!r}; there are {', '.join(_PROBES)}."
            )
        probes.append(_PROBES[name](model, initial_variables, read_inputs))

    def probe_all(variables: PyTree, batch_stats: PyTree) -> Mapping[str, Array]:
        measured: dict[str, Array] = {}
        for probe in probes:
            measured.update(probe(variables, batch_stats))
        return measured

    return probe_all


def _percentiles_probe(
    model: Any,
    initial_variables: Callable[[], PyTree],
    read_inputs: Callable[[], Array],
) -> Probe:
    """The {15, 50, 85}th percentiles of what one unit of the last hidden layer gets.

    The unit is the one whose spread before training is the median of its layer: a
    rule that can be applied before anything is known about how training goes.
    """
    layer = getattr(model, "last_hidden_input", None)
    if layer is None:
        raise UserError(
            f"probes: 'percentiles' needs a model that names its last_hidden_input; "
            f"{type(model).__name__} does not. Leave it out of config.probes."
        )

    inputs = read_inputs()

    def layer_inputs(variables: PyTree) -> Float[Array, "examples units"]:
        _, sown = model.apply(variables, inputs, train=False, mutable=["intermediates"])
        return sown["intermediates"][layer][0]

    unit = typical_unit(unit_percentiles(layer_inputs(initial_variables())))

    def probe(variables: PyTree, _: PyTree) -> Mapping[str, Array]:
        return {"percentiles": unit_percentiles(layer_inputs(variables)[:, unit])}

    return probe


def _batch_norm_probe(
    model: Any,
    initial_variables: Callable[[], PyTree],
    read_inputs: Callable[[], Array],
) -> Probe:
    """Smallest variance of each normalization layer, and how far its averages lag.

    The drift is that of the moving averages from the population statistics.
    """

    def probe(variables: PyTree, batch_stats: PyTree) -> Mapping[str, Array]:
        measured = {}
        moving = dict(layers_with_statistics(batch_stats))
        for layer, population in layers_with_statistics(variables["batch_stats"]):
            drift = statistics_drift(moving[layer], population)
            measured[f"min_var/{layer}"] = jnp.min(population["var"])
            measured[f"mean_drift/{layer}"] = drift.mean
            measured[f"log_std_drift/{layer}"] = drift.log_std
        return measured

    return probe


_PROBES: Mapping[
    str, Callable[[Any, Callable[[], PyTree], Callable[[], Array]], Probe]
] = {
    "percentiles": _percentiles_probe,
    "batch_norm": _batch_norm_probe,
}
