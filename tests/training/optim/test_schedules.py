"""Schedules against their formulas, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bn_jax.errors import UserError
from bn_jax.training.optim.schedules import make_schedule

SETTINGS = {
    "learning_rate": 0.4,
    "num_steps": 1000,
    "warmup_steps": 100,
    "decay_every_steps": 30,
    "decay_factor": 0.94,
    "final_fraction": 0.1,
}


def schedule(name: str, **changes: float) -> optax.Schedule:
    return make_schedule(name, **(SETTINGS | changes))


def expected(name: str, step: int, warmup_steps: int) -> float:
    if step < warmup_steps:
        return 0.4 * step / warmup_steps
    step = step - warmup_steps
    match name:
        case "constant":
            return 0.4
        case "step":
            return 0.4 * 0.94 ** (step // 30)
        case "exponential":
            return 0.4 * 0.94 ** (step / 30)
    half_cosine = (1 + np.cos(np.pi * step / (1000 - warmup_steps))) / 2
    return 0.4 * (0.1 + 0.9 * half_cosine)


# Ends of the warm-up and of stairs among them.
STEPS = [*range(5), 49, 99, 100, 101, *range(125, 135), 190, 500, 999, 1000]


@pytest.mark.parametrize("warmup_steps", [0, 1, 100])
@pytest.mark.parametrize("name", ["constant", "step", "exponential", "cosine"])
def test_the_rate_of_each_step_is_its_formulas(name: str, warmup_steps: int) -> None:
    rate = schedule(name, warmup_steps=warmup_steps)
    rates = [float(rate(step)) for step in STEPS]
    wanted = [expected(name, step, warmup_steps) for step in STEPS]
    np.testing.assert_allclose(rates, wanted, rtol=1e-5)


# A division by a constant may be compiled to a multiplication that just misses the
# whole number.
@pytest.mark.parametrize("every", [3, 7, 30, 49, 103, 469])
def test_every_stair_begins_at_its_step_when_compiled(every: int) -> None:
    rate = schedule("step", warmup_steps=0, decay_every_steps=every, decay_factor=0.99)
    steps = np.arange(1, 200)[:, None] * every + np.array([-1, 0])
    rates = jax.jit(lambda step: rate(step))(jnp.asarray(steps.ravel()))
    stairs = steps.ravel() // every
    np.testing.assert_allclose(rates, 0.4 * 0.99**stairs, rtol=1e-4)


def test_the_cosine_stays_at_its_final_fraction_after_the_end() -> None:
    np.testing.assert_allclose(schedule("cosine")(5000), 0.04, rtol=1e-6)
    assert schedule("cosine", final_fraction=0.0)(1000) == 0


def test_a_run_may_be_all_warm_up() -> None:
    rate = schedule("constant", warmup_steps=1000)
    np.testing.assert_allclose(rate(999), 0.3996, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "unused"),
    [
        ("constant", {"decay_every_steps": 0, "decay_factor": -1, "final_fraction": 7}),
        ("step", {"final_fraction": -1.0}),
        ("exponential", {"final_fraction": float("nan")}),
        ("cosine", {"decay_every_steps": -3, "decay_factor": 0.0}),
    ],
)
def test_settings_that_a_schedule_does_not_use_are_ignored(
    name: str, unused: dict[str, float]
) -> None:
    assert schedule(name, **unused)(321) == schedule(name)(321)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cosin", {}, "one of constant, step, exponential, cosine, but is 'cosin'"),
        ("constant", {"warmup_steps": -1}, "warmup_steps must lie in 0 .*is -1"),
        ("constant", {"warmup_steps": 1001}, "the 1000 steps of the run, but is 1001"),
        ("cosine", {"warmup_steps": 1000}, "leaves none for the cosine"),
        ("constant", {"learning_rate": 0.0}, "learning_rate must be .*is 0.0"),
        ("constant", {"learning_rate": float("nan")}, "learning_rate must be .*nan"),
        ("step", {"decay_every_steps": 0}, "at least 1, but is 0.* take more steps"),
        ("exponential", {"decay_every_steps": -5}, "at least 1, but is -5"),
        ("step", {"decay_factor": 0.0}, "decay_factor must lie above 0"),
        ("exponential", {"decay_factor": 1.5}, "at most 1, but is 1.5"),
        ("cosine", {"final_fraction": 1.1}, "final_fraction must lie in 0 to 1"),
        ("cosine", {"final_fraction": -0.1}, "final_fraction must lie in 0 to 1"),
    ],
)
def test_wrong_settings_are_refused(
    name: str, changes: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        schedule(name, **changes)
