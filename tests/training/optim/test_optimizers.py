"""Optimizers by the names that configurations give them."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bn_jax.errors import UserError
from bn_jax.training.optim.optimizers import make_optimizer

PLAIN = {"weight_decay": 0.0, "decay_scale_and_bias": False, "clip_norm": None}
PARAMS = {
    "hidden0": {"kernel": np.array([[1.0, -2.0], [3.0, 0.5]])},
    "norm0": {"scale": np.array([1.0, 2.0]), "bias": np.array([-1.0, 4.0])},
    "logits": {"kernel": np.array([[2.0], [-1.0]]), "bias": np.array([3.0])},
}
# Their norm is 5.
GRADS = {
    "hidden0": {"kernel": np.array([[0.0, 3.0], [0.0, 0.0]])},
    "norm0": {"scale": np.array([0.0, 0.0]), "bias": np.array([0.0, 0.0])},
    "logits": {"kernel": np.array([[0.0], [0.0]]), "bias": np.array([-4.0])},
}


def optimizer(name: str, **settings: Any) -> optax.GradientTransformation:
    return make_optimizer(name, **({"learning_rate": 0.1} | PLAIN | settings))


def first_update(tx: optax.GradientTransformation, gradient: float) -> float:
    params = jnp.zeros(())
    update, _ = jax.jit(tx.update)(jnp.float32(gradient), tx.init(params), params)
    return float(update)


def updates(tx: optax.GradientTransformation, *, steps: int = 1) -> Any:
    """The last of some updates by the same gradients, at parameters that stay."""
    params, grads = jax.tree.map(jnp.float32, (PARAMS, GRADS))
    state = tx.init(params)
    for _ in range(steps):
        update, state = jax.jit(tx.update)(grads, state, params)
    return update


def decays(params: Any) -> Any:
    """1 for the kernels of PARAMS, 0 for its scales and biases."""
    return {
        layer: {name: float(name == "kernel") for name in leaves}
        for layer, leaves in params.items()
    }


def test_sgd_goes_down_the_gradient() -> None:
    assert first_update(optimizer("sgd"), 3.0) == pytest.approx(-0.3)


def test_fields_reach_the_optimizer() -> None:
    tx = optimizer("sgd", momentum=0.9)
    params, state = jnp.zeros(()), tx.init(jnp.zeros(()))
    for expected in (-0.1, -0.19):
        update, state = tx.update(jnp.ones(()), state, params)
        np.testing.assert_allclose(update, expected, rtol=1e-6)


def test_the_rate_may_be_one_of_each_step() -> None:
    tx = optimizer("sgd", learning_rate=lambda step: 0.1 * (step + 1))
    params, state = jnp.zeros(()), tx.init(jnp.zeros(()))
    for expected in (-0.1, -0.2, -0.3):
        update, state = tx.update(jnp.ones(()), state, params)
        np.testing.assert_allclose(update, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "nadam", "rmsprop"])
def test_optimizers_of_optax_are_found_by_name(name: str) -> None:
    assert first_update(optimizer(name), 1.0) < 0


def test_sgd_with_weight_decay_descends_the_loss_with_its_penalty() -> None:
    update = updates(optimizer("sgd", weight_decay=0.5))
    expected = jax.tree.map(
        lambda w, g, m: -0.1 * (g + 0.5 * m * w), PARAMS, GRADS, decays(PARAMS)
    )
    chex.assert_trees_all_close(update, expected, rtol=1e-6)


def test_the_penalty_goes_through_the_momentum() -> None:
    update = updates(optimizer("sgd", momentum=0.9, weight_decay=0.5), steps=2)
    expected = jax.tree.map(
        lambda w, g, m: -0.1 * 1.9 * (g + 0.5 * m * w), PARAMS, GRADS, decays(PARAMS)
    )
    chex.assert_trees_all_close(update, expected, rtol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_adamw_decays_apart_from_the_gradient(weight_decay: float) -> None:
    update = updates(optimizer("adamw", weight_decay=weight_decay))
    # The first step of Adam is the gradient over its own size.
    expected = jax.tree.map(
        lambda w, g, m: -0.1 * (g / (np.abs(g) + 1e-8) + weight_decay * m * w),
        PARAMS,
        GRADS,
        decays(PARAMS),
    )
    # One of the updates is the small difference of two numbers near 0.1.
    chex.assert_trees_all_close(update, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "lars"])
def test_no_decay_leaves_parameters_without_a_gradient(name: str) -> None:
    # The defaults of adamw and lion are not 0.
    update = updates(optimizer(name))
    np.testing.assert_array_equal(update["logits"]["kernel"], 0)
    np.testing.assert_array_equal(update["norm0"]["scale"], 0)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lion", "lars"])
@pytest.mark.parametrize("decay_scale_and_bias", [True, False])
def test_scales_and_biases_decay_where_that_is_asked_for(
    name: str, decay_scale_and_bias: bool
) -> None:
    tx = optimizer(name, weight_decay=0.1, decay_scale_and_bias=decay_scale_and_bias)
    update = updates(tx)
    # The gradients are zero, so that a parameter changes only if it decays.
    assert np.all(update["logits"]["kernel"] != 0)
    assert np.all(update["norm0"]["scale"] != 0) == decay_scale_and_bias
    assert np.all(update["norm0"]["bias"] != 0) == decay_scale_and_bias


@pytest.mark.parametrize(("clip_norm", "factor"), [(1.0, 0.2), (5.5, 1.0)])
def test_long_gradients_are_scaled_to_the_norm(clip_norm: float, factor: float) -> None:
    update = updates(optimizer("sgd", clip_norm=clip_norm))
    expected = jax.tree.map(lambda g: -0.1 * factor * g, GRADS)
    chex.assert_trees_all_close(update, expected, rtol=1e-6)


def test_gradients_are_clipped_before_the_penalty() -> None:
    update = updates(optimizer("sgd", clip_norm=1.0, weight_decay=0.5))
    expected = jax.tree.map(
        lambda w, g, m: -0.1 * (g / 5 + 0.5 * m * w), PARAMS, GRADS, decays(PARAMS)
    )
    chex.assert_trees_all_close(update, expected, rtol=1e-6)


def test_a_single_array_decays() -> None:
    tx = optimizer("sgd", weight_decay=0.5)
    params = jnp.float32(2.0)
    update, _ = tx.update(jnp.float32(0.0), tx.init(params), params)
    assert float(update) == pytest.approx(-0.1)


# The last three are in Optax, and are no optimizers.
@pytest.mark.parametrize("name", ["sdg", "", "clip", "EmptyState", "__version__"])
def test_a_name_that_is_no_optimizer_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"optax has no optimizer '{name}'; sgd, adam"):
        optimizer(name)


# The loss itself is wanted by the first; the others know no schedule.
@pytest.mark.parametrize("name", ["lbfgs", "sm3", "rprop"])
def test_an_optimizer_that_no_step_could_use_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"optax.{name} cannot be used .*as sgd, adam"):
        optimizer(name, learning_rate=optax.constant_schedule(0.1))


def test_a_field_that_is_none_is_left_out() -> None:
    state = optimizer("adamw", momentum=None).init({"kernel": jnp.ones(2)})
    expected = optimizer("adamw").init({"kernel": jnp.ones(2)})
    chex.assert_trees_all_equal(state, expected)


def test_an_unknown_field_is_refused_with_those_that_there_are() -> None:
    expected = r"optax.sgd has no argument \['momentun'\]; it has .*momentum"
    with pytest.raises(UserError, match=expected):
        optimizer("sgd", momentun=0.9)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sgd", {"weight_decay": -1e-4}, "weight_decay must be .*is -0.0001"),
        ("adamw", {"weight_decay": float("nan")}, "weight_decay must be .*is nan"),
        ("sgd", {"clip_norm": 0.0}, "clip_norm must be .*is 0.0"),
        ("sgd", {"clip_norm": -1.0}, "clip_norm must be .*is -1.0"),
        ("sgd", {"clip_norm": float("inf")}, "clip_norm must be .*is inf"),
        ("adamw", {"mask": True}, "optimizer.mask: .*decay_scale_and_bias"),
        ("lars", {"weight_decay_mask": True}, "weight_decay_mask: .*decay_scale_and"),
    ],
)
def test_wrong_settings_are_refused(
    name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        optimizer(name, **settings)
