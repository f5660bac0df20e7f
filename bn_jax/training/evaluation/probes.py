"""Probes: measurements that a configuration lists, taken at each evaluation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bn_jax.analysis.distributions import typical_unit, unit_percentiles
from bn_jax.analysis.drift import statistics_drift
from bn_jax.errors import UserError
from bn_jax.stats.collections import layers_with_statistics

# Function of the variables that a model is evaluated with, and of its running
# statistics. Each value that it returns goes into the metrics under its name.
Probe = Callable[[PyTree, PyTree], Mapping[str, Array]]


def make_probes(
    names: Sequence[str],
    *,
    model: nn.Module,
    initial_variables: Callable[[], PyTree],
    read_inputs: Callable[[], Float[Array, "examples ..."]],
    running_layers: Callable[[], Sequence[str]],
) -> Probe:
    """Returns one probe that takes all probes that a configuration lists.

    Args:
        names: Names of probes, from "percentiles" and "batch_norm"; may be empty.
        model: Called as `model.apply(variables, x, train=...)`.
        initial_variables: Returns the model's variables before training, with
            population statistics. Called only if a listed probe needs them.
        read_inputs: Returns model inputs. Called only if a listed probe needs them.
        running_layers: Returns the layers that give no moments, and therefore have no
            drift. Called only if a listed probe needs them.

    Raises:
        UserError: If a probe does not exist or does not suit the model.
    """
    factories: Mapping[str, Callable[[], Probe]] = {
        "percentiles": lambda: _percentiles_probe(
            model, initial_variables, read_inputs
        ),
        "batch_norm": lambda: _batch_norm_probe(running_layers()),
    }
    for name in names:
        if name not in factories:
            raise UserError(
                f"config.probes must be from {', '.join(factories)}, but has {name!r}."
            )
    probes = [factories[name]() for name in names]

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
    """Returns a probe of the 15th, 50th and 85th percentiles of one unit's inputs.

    The unit is the one of the last hidden layer whose spread before training is the
    median of its layer. This rule picks it before any result of training is known.
    """
    layer = getattr(model, "last_hidden_input", None)
    if layer is None:
        raise UserError(
            "config.probes: 'percentiles' needs a model that names its "
            f"last_hidden_input, but {type(model).__name__} does not. Leave it out."
        )

    inputs = read_inputs()

    def layer_inputs(variables: PyTree) -> Float[Array, "examples units"]:
        _, sown = model.apply(variables, inputs, train=False, mutable=["intermediates"])
        return sown["intermediates"][layer][0]

    unit = typical_unit(unit_percentiles(layer_inputs(initial_variables())))

    def probe(variables: PyTree, _: PyTree) -> Mapping[str, Array]:
        return {"percentiles": unit_percentiles(layer_inputs(variables)[:, unit])}

    return probe


def _batch_norm_probe(running_layers: Sequence[str]) -> Probe:
    """Returns a probe of each normalization layer: its smallest variance and its drift.

    The drift is the difference between running and population statistics. Layers
    without population statistics of their own are left out.
    """

    def probe(variables: PyTree, batch_stats: PyTree) -> Mapping[str, Array]:
        measured = {}
        running = dict(layers_with_statistics(batch_stats))
        for layer, population in layers_with_statistics(variables["batch_stats"]):
            if layer in running_layers:
                continue
            drift = statistics_drift(running[layer], population)
            measured[f"min_var/{layer}"] = jnp.min(population["var"])
            measured[f"mean_drift/{layer}"] = drift.mean
            measured[f"log_std_drift/{layer}"] = drift.log_std
        return measured

    return probe
