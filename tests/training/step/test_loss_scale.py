"""Training in float16 with a scaled loss."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training.step.test_nonfinite import BAD, GOOD, preprocess
from training.tiny_runs import (
    assert_same_result,
    complete_run,
    final_state,
    interrupt,
    tiny_config,
)

from bn_jax.models import make_model, make_norm
from bn_jax.stats.accumulate import accumulate_batch_stats
from bn_jax.training.distributed.parallel import compile_stretch, make_parallel
from bn_jax.training.evaluation.evaluate import evaluate
from bn_jax.training.loop import train
from bn_jax.training.step.loss_scale import LossScale, new_loss_scale, next_loss_scale
from bn_jax.training.step.state import TrainState, init_state
from bn_jax.training.step.train_step import (
    Examples,
    make_train_step,
    make_train_stretch,
)

TX = optax.sgd(0.5)
FIRST = 2.0**16


@cache
def network(name: str, dtype: str) -> tuple[Any, TrainState]:
    fields = {"mlp": {"hidden_features": (5,)}, "cnn": {"channels": (3, 4)}}[name]
    norm = make_norm("batch_norm", momentum=0.9)
    model = make_model(name, num_classes=4, norm=norm, dtype=dtype, **fields)
    state = init_state(
        model,
        TX,
        key=jax.random.key(0),
        example=preprocess(GOOD.images[0, :1]),
        scale_loss=dtype == "float16",
    )
    return model, state


def step(name: str, dtype: str, **settings: Any) -> Any:
    return make_train_step(
        network(name, dtype)[0],
        TX,
        preprocess=preprocess,
        accumulate=partial(accumulate_batch_stats, momentum=0.9),
        **settings,
    )


@pytest.fixture(scope="module")
def mlp_step() -> Any:
    """A step of a run that its first bad step ends, unless a scale caused it."""
    return jax.jit(step("mlp", "float16"))


def with_scale(scale: float, finite_steps: int = 0) -> TrainState:
    numbers = LossScale(jnp.float32(scale), jnp.int32(finite_steps))
    return network("mlp", "float16")[1]._replace(loss_scale=numbers)


def test_the_scale_doubles_after_two_thousand_finite_steps() -> None:
    after = jax.jit(partial(next_loss_scale, is_finite=jnp.array(True)))
    scale = LossScale(jnp.float32(8.0), jnp.int32(1998))
    assert after(scale) == (8.0, 1999)
    assert after(after(scale)) == (16.0, 0)


def test_the_scale_halves_down_to_one() -> None:
    after = jax.jit(partial(next_loss_scale, is_finite=jnp.array(False)))
    assert after(LossScale(jnp.float32(8.0), jnp.int32(7))) == (4.0, 0)
    assert after(LossScale(jnp.float32(1.0), jnp.int32(7))) == (1.0, 0)
    assert new_loss_scale() == (FIRST, 0)


@pytest.mark.parametrize("name", ["mlp", pytest.param("cnn", marks=pytest.mark.slow)])
def test_a_step_in_float16_is_that_in_float32_up_to_rounding(name: str) -> None:
    state, loss = jax.jit(step(name, "float16"))(network(name, "float16")[1], GOOD)
    exact, exact_loss = jax.jit(step(name, "float32"))(
        network(name, "float32")[1], GOOD
    )
    np.testing.assert_allclose(loss, exact_loss, rtol=2e-3)
    # A float16 has 11 digits of precision, which sums and differences reduce.
    for tree in ("params", "batch_stats"):
        found, expected = getattr(state, tree), getattr(exact, tree)
        chex.assert_trees_all_equal_dtypes(found, expected)
        chex.assert_trees_all_close(found, expected, rtol=5e-3, atol=5e-3)


def test_the_scale_does_not_change_the_step(mlp_step: Any) -> None:
    found, expected = (mlp_step(with_scale(scale), GOOD)[0] for scale in (FIRST, 256.0))
    chex.assert_trees_all_close(found.params, expected.params, rtol=1e-3, atol=1e-5)


def test_gradients_that_would_be_zero_in_float16_survive() -> None:
    # An eighth of the smallest float16, for the loss of one example.
    tiny = 2.0**-27
    model, state = network("mlp", "float16")

    class Faint:
        def apply(self, variables: Any, x: Any, **settings: Any) -> Any:
            scores, updates = model.apply(variables, x, **settings)
            return tiny * scores, updates

    one = make_train_step(Faint(), optax.sgd(1 / tiny), preprocess=preprocess)  # pyright: ignore[reportArgumentType]
    scaled, _ = jax.jit(one)(state, GOOD)
    unscaled, _ = jax.jit(one)(with_scale(1.0), GOOD)
    changed = [
        np.abs(after.params["hidden0"]["kernel"] - state.params["hidden0"]["kernel"])
        for after in (scaled, unscaled)
    ]
    assert changed[0].max() > 0
    assert changed[1].max() == 0


def test_an_overflow_is_skipped_and_counted_and_ends_no_run(mlp_step: Any) -> None:
    before = with_scale(2.0**40, finite_steps=3)
    after, _ = mlp_step(before, GOOD)
    chex.assert_trees_all_equal(after.params, before.params)
    assert after.loss_scale == (2.0**39, 0)
    tally = after.tally
    assert (int(tally.num_skipped), int(tally.skipped_in_a_row)) == (1, 0)
    assert (int(tally.is_over), int(after.step)) == (0, 1)


def test_a_loss_that_is_not_finite_ends_the_run(mlp_step: Any) -> None:
    after, _ = mlp_step(with_scale(FIRST), BAD)
    assert int(after.tally.is_over) == 1
    assert after.loss_scale == (FIRST, 0)


@pytest.mark.parametrize(
    ("mode", "num_microbatches"),
    [
        pytest.param("jit", 3, marks=pytest.mark.slow),
        ("shard_map", 1),
        pytest.param("pmap", 3, marks=pytest.mark.slow),
    ],
)
def test_every_mode_takes_the_same_steps(mode: str, num_microbatches: int) -> None:
    parallel = make_parallel(mode, num_devices=2)
    norm = make_norm("batch_norm", momentum=0.9, axis_name=parallel.axis_name)
    model, state = network("mlp", "float16")
    one = make_train_step(
        model.clone(norm=norm),
        TX,
        preprocess=preprocess,
        accumulate=partial(accumulate_batch_stats, momentum=0.9),
        axis_name=parallel.axis_name,
    )
    run = compile_stretch(parallel, make_train_stretch(one))
    batches = jax.tree.map(
        lambda leaf: leaf.reshape(1, num_microbatches, -1, *leaf.shape[2:]), GOOD
    )
    alone = step("mlp", "float16")
    expected, _ = jax.jit(alone)(state, Examples(batches.images[0], batches.labels[0]))
    start = jax.device_put(state, parallel.replicated)
    after, _ = run(jax.tree.map(jnp.copy, start), batches)
    assert jax.device_get(after.loss_scale) == (FIRST, 1)
    chex.assert_trees_all_close(
        jax.device_get(after.params), expected.params, rtol=2e-3, atol=2e-3
    )


@pytest.mark.slow
def test_a_run_in_float16_resumes_to_the_same_bits_and_is_evaluated(
    tmp_path: Path, idx_dir: Path
) -> None:
    config = tiny_config(idx_dir, dtype="float16", num_steps=30)
    complete = complete_run(config, tmp_path / "complete")
    interrupt(config, tmp_path / "run", step=30)
    train(config, tmp_path / "run", show_progress=False)
    assert_same_result(tmp_path / "run", complete)
    state = final_state(config, tmp_path / "run")
    assert state.loss_scale
    assert 30 - state.loss_scale.finite_steps == state.tally.num_skipped
    evaluation = evaluate(complete.workdir, statistics="population")
    loss = complete.metrics["test_loss"][-1]
    assert evaluation.metrics["test_loss"] == pytest.approx(loss, rel=1e-3)
