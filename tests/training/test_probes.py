"""What the loop measures of a network besides loss and accuracy."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_jax.errors import UserError
from bn_jax.models import make_model, make_norm
from bn_jax.training.probes import make_probes

INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(41, 6)), jnp.float32)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    norm = make_norm("batch_norm")
    return make_model("mlp", num_classes=3, norm=norm, hidden_features=(5, 4))


@pytest.fixture(scope="module")
def variables(model: nn.Module) -> Any:
    return model.init(jax.random.key(0), INPUTS, train=False)


def last_hidden_inputs(model: nn.Module, variables: Any) -> np.ndarray:
    _, sown = model.apply(variables, INPUTS, train=False, mutable="intermediates")
    return np.asarray(sown["intermediates"]["hidden1_input"][0], np.float64)


def scaled(variables: Any, unit: int, factor: float) -> Any:
    """The same network, with the input to one unit of the last layer multiplied."""
    scale = variables["params"]["norm1"]["scale"].at[unit].mul(factor)
    norm1 = {**variables["params"]["norm1"], "scale": scale}
    return {**variables, "params": {**variables["params"], "norm1": norm1}}


def test_percentiles_are_those_of_the_unit_with_the_median_spread(
    model: nn.Module, variables: Any
) -> None:
    probe = make_probes(
        ["percentiles"], model=model, initial_variables=variables, inputs=INPUTS
    )
    values = np.percentile(last_hidden_inputs(model, variables), (15, 50, 85), axis=0)
    unit = np.argsort(values[2] - values[0])[1]  # The lower median of four.
    measured = probe(variables)["percentiles"]
    np.testing.assert_allclose(measured, values[:, unit], rtol=1e-5, atol=1e-6)


def test_the_unit_stays_the_one_that_was_typical_before_training(
    model: nn.Module, variables: Any
) -> None:
    probe = make_probes(
        ["percentiles"], model=model, initial_variables=variables, inputs=INPUTS
    )
    before = probe(variables)["percentiles"]
    changed = [
        unit
        for unit in range(4)
        if (probe(scaled(variables, unit, 2.0))["percentiles"] != before).any()
    ]
    assert len(changed) == 1
    after = probe(scaled(variables, changed[0], 2.0))["percentiles"]
    np.testing.assert_allclose(after, 2 * before, rtol=1e-5)


@pytest.mark.shapes
def test_percentiles_are_three_numbers_in_rising_order(
    model: nn.Module, variables: Any
) -> None:
    probe = make_probes(
        ["percentiles"], model=model, initial_variables=variables, inputs=INPUTS
    )
    percentiles = jax.jit(probe)(variables)["percentiles"]
    assert percentiles.shape == (3,)
    assert (jnp.diff(percentiles) > 0).all()


def test_no_probe_measures_nothing(model: nn.Module, variables: Any) -> None:
    probe = make_probes([], model=model, initial_variables=variables, inputs=INPUTS)
    assert probe(variables) == {}


def test_an_unknown_probe_is_refused(model: nn.Module, variables: Any) -> None:
    with pytest.raises(UserError, match="unknown probe 'median'; there are percentile"):
        make_probes(["median"], model=model, initial_variables=variables, inputs=INPUTS)


def test_a_model_without_a_hidden_layer_to_look_at_is_refused() -> None:
    with pytest.raises(UserError, match="last_hidden_input; Dense does not"):
        make_probes(
            ["percentiles"], model=nn.Dense(3), initial_variables={}, inputs=INPUTS
        )
