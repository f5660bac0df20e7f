"""Non-finite steps: undone completely, counted, and reported with the bad value."""

from functools import cache, partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training.odd_model import Odd
from training.tiny_runs import plain

from bn_jax.models import make_model, make_norm
from bn_jax.training.step.nonfinite import first_nonfinite, name_of_value
from bn_jax.training.step.state import TrainState, init_state, resume_tally
from bn_jax.training.step.train_step import Examples, make_train_step

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 255, (1, 12, 6, 5, 1), dtype=np.uint8)
LABELS = RNG.integers(0, 4, (1, 12)).astype(np.int32)
GOOD = Examples(IMAGES, LABELS)
# `preprocess` turns the value 255 of one pixel into NaN.
BAD = Examples(np.where(np.arange(360).reshape(IMAGES.shape) == 7, 255, IMAGES), LABELS)


def preprocess(images: jax.Array) -> jax.Array:
    return jnp.where(images == 255, jnp.nan, images / 255)


@cache
def model_and_state(tx: optax.GradientTransformation) -> tuple[nn.Module, TrainState]:
    """Returns a network that has all kinds of state, and its initial state."""
    norm = make_norm("batch_norm", momentum=0.9)
    model = make_model("mlp", num_classes=4, norm=norm, hidden_features=(5,))
    example = preprocess(IMAGES[0, :1])
    init = partial(init_state, model, tx, example=example, keep_ema=True)
    return model, jax.jit(init)(key=jax.random.key(0))


ADAM = optax.adam(0.1)


class Trainer:
    """A training step of a network that has all kinds of state."""

    def __init__(
        self, *, limit: int = 3, tx: optax.GradientTransformation = ADAM
    ) -> None:
        model, self.state = model_and_state(tx)
        self.step = jax.jit(
            make_train_step(
                model,
                tx,
                preprocess=preprocess,
                ema_decay=0.9,
                max_nonfinite_steps=limit,
            )
        )

    def after(self, *batches: Examples) -> TrainState:
        state = self.state
        for batch in batches:
            state, _ = self.step(state, batch)
        return state


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer()


def changed_by_a_step(state: TrainState) -> Any:
    return state.params, state.batch_stats, state.opt_state, state.ema_params


def test_a_step_that_is_not_finite_is_undone_as_a_whole(trainer: Trainer) -> None:
    before = trainer.after(GOOD)
    after = trainer.after(GOOD, BAD)
    chex.assert_trees_all_equal(changed_by_a_step(after), changed_by_a_step(before))


def test_a_step_that_is_undone_still_is_a_step(trainer: Trainer) -> None:
    state = trainer.after(GOOD, BAD)
    assert int(state.step) == 2
    tally = state.tally
    assert (int(tally.num_skipped), int(tally.skipped_in_a_row)) == (1, 1)
    assert (int(tally.num_losses), int(tally.num_steps)) == (1, 2)
    assert (int(tally.bad_value), int(tally.is_over)) == (0, 0)


def test_its_loss_is_not_in_the_mean(trainer: Trainer) -> None:
    tally, expected = trainer.after(GOOD, BAD).tally, trainer.after(GOOD).tally
    assert tally.loss_sum == expected.loss_sum
    assert int(tally.num_losses) == 1


def test_training_goes_on_after_it(trainer: Trainer) -> None:
    after = trainer.after(BAD, GOOD)
    expected = trainer.after(GOOD)
    # The values that a step changes do not depend on its number.
    chex.assert_trees_all_equal(changed_by_a_step(after), changed_by_a_step(expected))
    assert int(after.tally.skipped_in_a_row) == 0
    assert int(after.tally.bad_value) == -1


def test_only_steps_in_a_row_end_a_run(trainer: Trainer) -> None:
    tally = trainer.after(BAD, BAD, GOOD, BAD, BAD).tally
    assert (int(tally.num_skipped), int(tally.is_over)) == (4, 0)


def test_the_last_of_too_many_in_a_row_leaves_the_state_before_it(
    trainer: Trainer,
) -> None:
    before = trainer.after(GOOD, BAD, BAD)
    after = trainer.after(GOOD, BAD, BAD, BAD)
    assert int(after.tally.is_over) == 1
    assert int(after.tally.num_skipped) == 2
    assert int(after.step) == 3
    chex.assert_trees_all_equal(changed_by_a_step(after), changed_by_a_step(before))


def test_a_run_that_is_over_takes_no_step(trainer: Trainer) -> None:
    over = trainer.after(GOOD, BAD, BAD, BAD)
    after = trainer.after(GOOD, BAD, BAD, BAD, GOOD, BAD)
    chex.assert_trees_all_equal(plain(after), plain(over))


def test_a_run_that_was_given_up_goes_on_like_the_one_before_it(
    trainer: Trainer,
) -> None:
    over = trainer.after(GOOD, BAD, BAD, BAD)
    resumed = over._replace(tally=resume_tally(over.tally))
    after, _ = trainer.step(resumed, GOOD)
    expected = trainer.after(GOOD, BAD, BAD, GOOD)
    chex.assert_trees_all_equal(plain(after), plain(expected))


def test_a_limit_of_one_undoes_the_first_and_takes_no_other() -> None:
    trainer = Trainer(limit=1)
    after = trainer.after(GOOD, BAD, GOOD)
    expected = trainer.after(GOOD)
    chex.assert_trees_all_equal(changed_by_a_step(after), changed_by_a_step(expected))
    assert (int(after.step), int(after.tally.is_over)) == (1, 1)
    assert int(after.tally.num_skipped) == 0


def test_a_gradient_that_is_not_finite_is_named_by_its_path() -> None:
    tx = optax.sgd(0.1)
    state = init_state(Odd(), tx, key=jax.random.key(0), example=IMAGES[0, :1] / 255)
    step = jax.jit(make_train_step(Odd(), tx, preprocess=preprocess))
    after, loss = step(state, GOOD)
    assert np.isfinite(loss)
    name = name_of_value(int(after.tally.bad_value), state)
    assert name == "the gradient of odd/shift"


@pytest.mark.parametrize(
    "tx",
    [
        # The gradients are finite, but the weights overflow.
        optax.chain(optax.scale(3e38), optax.scale(-3e38)),
        # Adam divides 0 by 0 where a gradient is 0.
        optax.adam(0.1, eps=0.0),
    ],
)
def test_a_step_whose_result_is_not_finite_is_undone_and_named(
    tx: optax.GradientTransformation,
) -> None:
    trainer = Trainer(limit=1, tx=tx)
    is_black = np.arange(5)[:, None] == 2
    after = trainer.after(GOOD._replace(images=np.where(is_black, 0, IMAGES)))
    chex.assert_trees_all_equal(
        changed_by_a_step(after), changed_by_a_step(trainer.state)
    )
    name = name_of_value(int(after.tally.bad_value), trainer.state)
    assert name == "the parameter hidden0/kernel"


VALUES = [
    ("loss", "the loss"),
    ("grads", "the gradient of dense/kernel"),
    ("params", "the parameter dense/kernel"),
    ("batch_stats", "the statistic norm/mean"),
    ("opt_state", "the optimizer's trace/dense/kernel"),
]


_first_nonfinite = jax.jit(first_nonfinite)


def values() -> dict[str, Any]:
    kernel = {"dense": {"bias": jnp.full(3, 3e38), "kernel": jnp.ones((2, 3))}}
    return {
        "loss": jnp.zeros(()),
        "grads": {**kernel, "none": jnp.zeros(0)},
        "params": {**kernel, "none": jnp.zeros(0)},
        "batch_stats": {"norm": {"mean": jnp.zeros(3), "var": jnp.ones(3)}},
        "opt_state": {"count": jnp.zeros((), int), "trace": kernel},
    }


def found(values: dict[str, Any]) -> tuple[int, TrainState]:
    names = ("params", "batch_stats", "opt_state")
    _, state = model_and_state(ADAM)
    new = state._replace(**{name: values[name] for name in names})
    return int(_first_nonfinite(values["loss"], values["grads"], new)), new


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("place", "name"), VALUES)
def test_the_first_value_that_is_not_finite_is_named(
    bad: float, place: str, name: str
) -> None:
    changed = values()
    last = changed["opt_state"]["trace"]["dense"]
    changed["opt_state"]["trace"] = {"dense": {**last, "kernel": last["kernel"] * bad}}
    path = name.split()[-1].split("/")
    if place == "loss":
        changed["loss"] = jnp.full((), bad)
    elif place != "opt_state":
        module, leaf = path
        old = changed[place][module]
        changed[place] = {**changed[place], module: {**old, leaf: old[leaf] + bad}}
    index, state = found(changed)
    assert name_of_value(index, state) == name


def test_where_all_is_finite_nothing_is_found() -> None:
    assert found(values())[0] == -1
