"""Probes: measurements of a network other than loss and accuracy."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_jax.errors import UserError
from bn_jax.models import make_model, make_norm
from bn_jax.training.evaluation.probes import make_probes

INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(41, 6)), jnp.float32)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    norm = make_norm("batch_norm")
    return make_model("mlp", num_classes=3, norm=norm, hidden_features=(5, 4))


@pytest.fixture(scope="module")
def variables(model: nn.Module) -> Any:
    """A network of which the unit with the lower median spread is number 2."""
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), INPUTS)
    for unit, factor in enumerate((1.0, 100.0, 10.0, 1000.0)):
        variables = scaled(variables, unit, factor)
    return variables


def last_hidden_inputs(model: nn.Module, variables: Any) -> np.ndarray:
    apply = jax.jit(partial(model.apply, train=False, mutable="intermediates"))
    _, sown = apply(variables, INPUTS)
    return np.asarray(sown["intermediates"]["hidden1_input"][0], np.float64)


def scaled(variables: Any, unit: int, factor: float) -> Any:
    """Returns variables with a multiplied input to one unit of the last layer."""
    scale = variables["params"]["norm1"]["scale"].at[unit].mul(factor)
    norm1 = {**variables["params"]["norm1"], "scale": scale}
    return {**variables, "params": {**variables["params"], "norm1": norm1}}


def test_percentiles_are_those_of_the_unit_with_the_median_spread(
    model: nn.Module, variables: Any
) -> None:
    probe = make_probes(
        ["percentiles"],
        model=model,
        initial_variables=lambda: variables,
        read_inputs=lambda: INPUTS,
        running_layers=list,
    )
    values = np.percentile(last_hidden_inputs(model, variables), (15, 50, 85), axis=0)
    measured = jax.jit(probe)(variables, variables["batch_stats"])["percentiles"]
    np.testing.assert_allclose(measured, values[:, 2], rtol=1e-5)


def test_the_unit_stays_the_one_that_was_typical_before_training(
    model: nn.Module, variables: Any
) -> None:
    probe = make_probes(
        ["percentiles"],
        model=model,
        initial_variables=lambda: variables,
        read_inputs=lambda: INPUTS,
        running_layers=list,
    )
    stats = variables["batch_stats"]
    before = probe(variables, stats)["percentiles"]
    # The spread of the unit is now the largest, and it still is the one looked at.
    after = probe(scaled(variables, 2, 1000.0), stats)["percentiles"]
    np.testing.assert_allclose(after, 1000 * before, rtol=1e-5)


@pytest.mark.shapes
def test_percentiles_are_three_numbers_in_rising_order(
    model: nn.Module, variables: Any
) -> None:
    probe = make_probes(
        ["percentiles"],
        model=model,
        initial_variables=lambda: variables,
        read_inputs=lambda: INPUTS,
        running_layers=list,
    )
    percentiles = jax.jit(probe)(variables, variables["batch_stats"])["percentiles"]
    assert percentiles.shape == (3,)
    assert (jnp.diff(percentiles) > 0).all()


def test_no_probe_measures_nothing(model: nn.Module, variables: Any) -> None:
    probe = make_probes(
        [],
        model=model,
        initial_variables=lambda: variables,
        read_inputs=lambda: INPUTS,
        running_layers=pytest.fail,
    )
    assert probe(variables, variables["batch_stats"]) == {}


@pytest.mark.parametrize("names", [[], ["batch_norm"]])
def test_nothing_is_read_where_no_probe_uses_it(
    model: nn.Module, names: list[str]
) -> None:
    make_probes(
        names,
        model=model,
        initial_variables=pytest.fail,
        read_inputs=pytest.fail,
        running_layers=list,
    )


def test_an_unknown_probe_is_refused(model: nn.Module, variables: Any) -> None:
    with pytest.raises(UserError, match=r"must be from perc.*, but has 'median'"):
        make_probes(
            ["median"],
            model=model,
            initial_variables=lambda: variables,
            read_inputs=lambda: INPUTS,
            running_layers=list,
        )


def test_a_model_without_a_hidden_layer_to_look_at_is_refused() -> None:
    with pytest.raises(UserError, match="last_hidden_input, but Dense does not"):
        make_probes(
            ["percentiles"],
            model=nn.Dense(3),
            initial_variables=dict,
            read_inputs=lambda: INPUTS,
            running_layers=list,
        )


def test_each_norm_is_measured_against_its_moving_averages(
    model: nn.Module, variables: Any
) -> None:
    probe = make_probes(
        ["batch_norm"],
        model=model,
        initial_variables=lambda: variables,
        read_inputs=lambda: INPUTS,
        running_layers=list,
    )
    population = {
        layer: {"mean": jnp.zeros(size), "var": jnp.arange(4.0, 4 + size)}
        for layer, size in (("norm0", 5), ("norm1", 4))
    }
    # One standard deviation away, and twice as wide.
    moving = {
        layer: {"mean": jnp.sqrt(stats["var"]), "var": 4 * stats["var"]}
        for layer, stats in population.items()
    }
    measured = probe({**variables, "batch_stats": population}, moving)
    for layer in ("norm0", "norm1"):
        # The epsilon beside a variance of 4 and more.
        close = {"rtol": 1e-5}
        np.testing.assert_allclose(measured[f"min_var/{layer}"], 4.0, **close)
        np.testing.assert_allclose(measured[f"mean_drift/{layer}"], 1.0, **close)
        drift = measured[f"log_std_drift/{layer}"]
        np.testing.assert_allclose(drift, np.log(2.0), **close)
    assert len(measured) == 6


def test_a_norm_without_moments_is_left_out(model: nn.Module, variables: Any) -> None:
    probe = make_probes(
        ["batch_norm"],
        model=model,
        initial_variables=dict,
        read_inputs=lambda: INPUTS,
        running_layers=lambda: ["norm0"],
    )
    measured = probe(variables, variables["batch_stats"])
    expected = {f"{what}/norm1" for what in ("min_var", "mean_drift", "log_std_drift")}
    assert set(measured) == expected
