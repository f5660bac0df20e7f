"""Parameters that stay as they are, whatever the optimizer does to the others."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from bn_jax.errors import UserError
from bn_jax.training.optim.freeze import (
    frozen_parameters,
    leave_alone,
    stop_gradients,
)

PARAMS = {
    "hidden0": {"kernel": 1.0, "bias": 2.0},
    "norm0": {"scale": 3.0, "bias": 4.0},
    "layer": {"scale": 5.0},
    "logits": {"kernel": 6.0},
}
VARIABLES = {"params": PARAMS, "batch_stats": {"norm0": {"mean": 0.0, "var": 1.0}}}


def chosen(*patterns: str, freezes_norms: bool = False) -> list[str]:
    """Paths of the parameters that stay as they are."""
    mask = frozen_parameters(VARIABLES, patterns=patterns, freezes_norms=freezes_norms)
    leaves = jax.tree_util.tree_flatten_with_path(mask)[0]
    return [
        "/".join(key.key for key in path) for path, is_frozen in leaves if is_frozen
    ]


@pytest.mark.parametrize(
    ("patterns", "paths"),
    [
        (["hidden0"], ["hidden0/bias", "hidden0/kernel"]),
        (["kernel$"], ["hidden0/kernel", "logits/kernel"]),
        (["^hidden.*/k", "logits"], ["hidden0/kernel", "logits/kernel"]),
    ],
)
def test_a_pattern_is_searched_in_each_path(
    patterns: list[str], paths: list[str]
) -> None:
    assert chosen(*patterns) == paths


def test_frozen_norms_are_those_with_statistics() -> None:
    assert chosen(freezes_norms=True) == ["norm0/bias", "norm0/scale"]


def test_frozen_parameters_neither_decay_nor_move_nor_count_in_the_norm() -> None:
    params = jax.tree.map(jnp.float32, PARAMS)
    grads = jax.tree.map(lambda _: jnp.float32(3.0), params)
    grads["logits"]["kernel"] = jnp.float32(4.0)
    mask = frozen_parameters(VARIABLES, patterns=["hid|layer"], freezes_norms=True)
    tx = leave_alone(
        optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.add_decayed_weights(0.5),
            optax.sgd(0.1, momentum=0.9),
        ),
        mask,
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    # The gradient of 4 alone is clipped to 1; the decay adds a half of 6.
    expected: Any = jax.tree.map(lambda _: 0.0, PARAMS)
    expected["logits"]["kernel"] = -0.1 * (1.0 + 3.0)
    chex.assert_trees_all_close(updates, expected)


def test_frozen_parameters_are_constants_of_the_loss() -> None:
    mask = frozen_parameters(VARIABLES, patterns=["hidden0"], freezes_norms=False)

    def loss(params: Any) -> Any:
        return sum(jax.tree.leaves(stop_gradients(mask, params)))

    grads = jax.grad(loss)(PARAMS)
    chex.assert_trees_all_equal(grads, jax.tree.map(lambda one: float(not one), mask))
    assert stop_gradients(None, PARAMS) is PARAMS


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("hiden0/kernel", r"'hiden0/kernel' must fit .* there are hidden0/kernel"),
        ("(", r"'\(' must be a regular expression"),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=f"config.optimizer.freeze: {message}"):
        chosen(pattern)


def test_a_run_with_nothing_left_to_train_is_refused() -> None:
    with pytest.raises(UserError, match=r"freeze all 6 parameters.* Freeze fewer"):
        chosen("hidden|logits|layer", freezes_norms=True)


@pytest.mark.parametrize("batch_stats", [{}, {"spectral": {"u": 1.0, "sigma": 1.0}}])
def test_frozen_norms_need_a_model_that_has_some(batch_stats: dict[str, Any]) -> None:
    variables = {"params": PARAMS, "batch_stats": batch_stats}
    with pytest.raises(UserError, match=r"config.norm.frozen=True needs a model with"):
        frozen_parameters(variables, patterns=(), freezes_norms=True)
