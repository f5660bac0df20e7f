"""Whole runs with steps that are not finite: left out, or ended and gone on with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from training.odd_model import Odd
from training.tiny_runs import (
    EVALUATED,
    Complete,
    assert_same_result,
    complete_run,
    final_state,
    initial_state,
    plain,
    tiny_config,
)

from bn_jax.data.batching import batch_indices
from bn_jax.data.idx import load_idx_folder
from bn_jax.errors import DivergedError, UserError
from bn_jax.training import build
from bn_jax.training.loop import train
from bn_jax.training.step import train_step as steps
from bn_jax.training.step.metrics import smoothed_cross_entropy
from bn_jax.training.step.state import TrainState
from bn_jax.workdir.files import read_metrics

Poison = Callable[[Sequence[int]], None]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch, idx_dir: Path) -> Poison:
    """Makes the losses of these steps no numbers; they are known by their labels."""
    labels = load_idx_folder(idx_dir).train.labels

    def poison(chosen: Sequence[int]) -> None:
        order = batch_indices(len(labels), 25, seed=0, first_step=0, num_steps=60)
        bad = jnp.asarray(labels[order[list(chosen)]])

        def poisoned(
            logits: jax.Array, labels: jax.Array, **settings: float
        ) -> jax.Array:
            is_bad = jnp.any(jnp.all(bad == labels, axis=1))
            losses = smoothed_cross_entropy(logits, labels, **settings)
            return losses * jnp.where(is_bad, jnp.nan, 1.0)

        monkeypatch.setattr(steps, "smoothed_cross_entropy", poisoned)

    return poison


def learned(state: TrainState) -> Any:
    return state.params, state.batch_stats, state.opt_state, state.ema_params


def state_after(idx_dir: Path, tmp_path: Path, num_steps: int) -> TrainState:
    """Returns the final state of an undisturbed run."""
    config = tiny_config(idx_dir, num_steps=num_steps)
    workdir = tmp_path / "undisturbed"
    complete_run(config, workdir)
    return final_state(config, workdir)


def skipping(idx_dir: Path, limit: int) -> ConfigDict:
    return tiny_config(idx_dir, on_nonfinite="skip", max_nonfinite_steps=limit)


@pytest.mark.slow
def test_steps_that_are_left_out_are_counted_in_the_metrics(
    tmp_path: Path, idx_dir: Path, poison: Poison
) -> None:
    poison([3, 17, 18])
    run = complete_run(skipping(idx_dir, 3), tmp_path)
    lines = read_metrics(tmp_path)
    assert [line["skipped_steps"] for line in lines] == [1, *[3] * 4]
    assert np.isfinite(run.metrics["train_loss"]).all()
    assert int(final_state(run.config, tmp_path).step) == 60


def test_a_run_that_leaves_none_out_says_nothing_of_them(bn: Complete) -> None:
    assert not any("skipped_steps" in line for line in read_metrics(bn.workdir))


@pytest.mark.slow
@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_the_last_good_state_is_saved_and_the_step_is_named(
    tmp_path: Path, idx_dir: Path, poison: Poison, on_nonfinite: str
) -> None:
    poison([13, 14, 15])
    config = tiny_config(
        idx_dir, num_steps=20, on_nonfinite=on_nonfinite, max_nonfinite_steps=3
    )
    step, times = (14, "") if on_nonfinite == "raise" else (16, ", 3 steps in a row")
    expected = (
        f"the loss is not finite at step {step}{times}. "
        f"The state after step {step - 1} is saved."
    )
    with pytest.raises(DivergedError, match=expected) as caught:
        train(config, tmp_path / "run", show_progress=False)
    state = final_state(config, tmp_path / "run")
    assert caught.value.step == int(state.step) == step - 1
    good = state_after(idx_dir, tmp_path, 13)
    chex.assert_trees_all_equal(learned(state), learned(good))


@pytest.mark.slow
@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_a_run_that_was_given_up_can_go_on(
    tmp_path: Path,
    idx_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    poison: Poison,
    on_nonfinite: str,
) -> None:
    poison([33, 34, 35])
    config = tiny_config(idx_dir, on_nonfinite=on_nonfinite, max_nonfinite_steps=2)
    for _ in range(2):
        # The loss is still not finite when the run resumes for the first time.
        with pytest.raises(UserError, match="the loss is not finite at step 3"):
            train(config, tmp_path, show_progress=False)
    monkeypatch.undo()
    train(config, tmp_path, show_progress=False)
    assert [line["step"] for line in read_metrics(tmp_path)] == EVALUATED
    assert int(final_state(config, tmp_path).step) == 60


@pytest.mark.slow
def test_the_advice_to_leave_such_steps_out_can_be_taken_in_the_same_folder(
    tmp_path: Path, idx_dir: Path, poison: Poison
) -> None:
    poison([13])
    with pytest.raises(DivergedError, match=r"\. --config\.on_nonfinite=skip"):
        train(tiny_config(idx_dir, num_steps=20), tmp_path / "run", show_progress=False)
    skips = tiny_config(idx_dir, num_steps=20, on_nonfinite="skip")
    train(skips, tmp_path / "run", show_progress=False)
    assert read_metrics(tmp_path / "run")[-1]["skipped_steps"] == 1
    # The evaluation of step 20 was dispatched before it was known that all was over.
    assert_same_result(tmp_path / "run", complete_run(skips, tmp_path / "undisturbed"))


def test_a_line_has_no_loss_where_every_step_was_left_out(
    tmp_path: Path, idx_dir: Path, poison: Poison
) -> None:
    poison(range(10, 20))
    config = tiny_config(
        idx_dir, num_steps=20, on_nonfinite="skip", max_nonfinite_steps=11
    )
    complete_run(config, tmp_path)
    losses = [line["train_loss"] for line in read_metrics(tmp_path)]
    assert losses[0] > 0
    assert losses[1:] == [None]


@pytest.mark.slow
def test_raising_and_going_on_comes_to_the_same_bits(
    bn: Complete,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    poison: Poison,
) -> None:
    poison([33])
    with pytest.raises(UserError, match="at step 34"):
        train(bn.config, tmp_path, show_progress=False)
    monkeypatch.undo()
    train(bn.config, tmp_path, show_progress=False)
    found, expected = (final_state(bn.config, w) for w in (tmp_path, bn.workdir))
    chex.assert_trees_all_equal(plain(found), plain(expected))


def test_a_gradient_that_is_not_finite_is_named_in_the_error(
    tmp_path: Path, idx_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "make_model", lambda **_: Odd(num_classes=10))
    config = tiny_config(idx_dir, probes=())
    expected = "the gradient of odd/shift is not finite at step 1. The state after st"
    with pytest.raises(UserError, match=expected):
        train(config, tmp_path, show_progress=False)
    state, first = final_state(config, tmp_path), initial_state(config)
    chex.assert_trees_all_equal(plain(state), plain(first))


def test_a_loss_that_stops_being_finite_ends_the_run(
    tmp_path: Path, idx_dir: Path
) -> None:
    config = tiny_config(idx_dir, optimizer__learning_rate=3e38)
    expected = "is not finite at step 2. The state after step 1 is saved. A lower lea"
    with pytest.raises(UserError, match=expected):
        train(config, tmp_path, show_progress=False)
    assert read_metrics(tmp_path) == []
    assert int(final_state(config, tmp_path).step) == 1


def test_a_test_loss_that_is_not_finite_ends_the_run(
    tmp_path: Path, idx_dir: Path
) -> None:
    # The loss before the first step is finite, and nothing after it is.
    config = tiny_config(idx_dir, optimizer__learning_rate=3e38, num_steps=1)
    match = r"loss is (nan|inf) .* 1\. A lower learning"
    with pytest.raises(DivergedError, match=match) as caught:
        train(config, tmp_path, show_progress=False)
    assert caught.value.step == 1
