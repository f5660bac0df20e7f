"""Optimizers by the names that configurations give them."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bn_jax.errors import UserError
from bn_jax.training.optim import make_optimizer


def first_update(tx: optax.GradientTransformation, gradient: float) -> float:
    params = jnp.zeros(())
    update, _ = tx.update(jnp.float32(gradient), tx.init(params), params)
    return float(update)


def test_sgd_goes_down_the_gradient() -> None:
    tx = make_optimizer("sgd", learning_rate=0.1)
    assert first_update(tx, 3.0) == pytest.approx(-0.3)


def test_fields_reach_the_optimizer() -> None:
    tx = make_optimizer("sgd", learning_rate=0.1, momentum=0.9)
    params, state = jnp.zeros(()), tx.init(jnp.zeros(()))
    for expected in (-0.1, -0.19):
        update, state = tx.update(jnp.ones(()), state, params)
        np.testing.assert_allclose(update, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "adagrad"])
def test_optimizers_of_optax_are_found_by_name(name: str) -> None:
    assert first_update(make_optimizer(name, learning_rate=0.1), 1.0) < 0


# The last three are in Optax, and are no optimizers.
@pytest.mark.parametrize("name", ["sdg", "", "clip", "EmptyState", "__version__"])
def test_a_name_that_is_no_optimizer_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"optax has no optimizer '{name}'; sgd, adam"):
        make_optimizer(name, learning_rate=0.1)


def test_an_unknown_field_is_refused_with_those_that_there_are() -> None:
    expected = r"optax.sgd has no argument \['momentun'\]; it has .*momentum"
    with pytest.raises(UserError, match=expected):
        make_optimizer("sgd", learning_rate=0.1, momentun=0.9)
