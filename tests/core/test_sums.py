import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_jax.core.sums import abs_squared, sums_around, sums_around_guess

X = np.random.default_rng(0).normal(1.0, 2.0, (64, 3)).astype(np.float32)
MASK = np.arange(64)[:, None] % 3 > 0
AXES = {"feature_axes": (1,)}


def expected_sums(x, shift, mask):
    """In float64: of `x - shift`, of its square, and of the mask."""
    deviation = (np.asarray(x, float) - shift) * mask
    return [
        np.sum(deviation, 0),
        np.sum(deviation**2, 0),
        np.sum(np.broadcast_to(mask, x.shape), 0),
    ]


@pytest.mark.parametrize("sums", [sums_around, sums_around_guess])
@pytest.mark.parametrize("shift", [[0.0, 0.0, 0.0], [0.0, 1.5, 0.0], [9.0, -3.0, 1.0]])
@pytest.mark.parametrize("masked", [False, True])
def test_sums_match_those_of_float64_whether_features_have_a_shift(sums, shift, masked):
    mask = jnp.asarray(MASK) if masked else None
    found = jax.jit(partial(sums, **AXES, mask=mask))(X, jnp.array(shift))
    expected = expected_sums(X, shift, MASK if masked else np.ones_like(MASK))
    assert len(found) == (3 if masked else 2)
    for value, of_oracle in zip(found, expected, strict=False):
        np.testing.assert_allclose(value, of_oracle, rtol=1e-5, atol=1e-4)


def test_a_unit_is_squared_in_both_sums():
    plain = sums_around(jnp.asarray(X), jnp.ones(3), **AXES, mask=None)
    scaled = sums_around(jnp.asarray(X), jnp.ones(3), **AXES, mask=None, unit=0.25)
    np.testing.assert_array_equal(np.array(scaled), np.array(plain) / 16)


@pytest.mark.parametrize(("platform", "chooses"), [("cpu", True), ("tpu", False)])
def test_only_a_cpu_chooses_between_sums_with_and_without_a_shift(platform, chooses):
    sums = jax.jit(partial(sums_around_guess, **AXES, mask=None))
    lowered = sums.trace(X, jnp.zeros(3)).lower(lowering_platforms=(platform,))
    # The choice of a platform is a branch by a constant.
    assert ("stablehlo.compare" in lowered.as_text()) == chooses


def conditionals(jaxpr):
    """Branches of the conditionals of a program, those within branches last."""
    for equation in jaxpr.eqns:
        inner = [equation.params["jaxpr"].jaxpr] if "jaxpr" in equation.params else []
        if equation.primitive.name == "cond":
            inner = [branch.jaxpr for branch in equation.params["branches"]]
            yield inner
        for body in inner:
            yield from conditionals(body)


def test_without_a_shift_a_cpu_subtracts_nothing():
    sums = partial(sums_around_guess, **AXES, mask=None)
    *_, by_shift = conditionals(jax.make_jaxpr(sums)(X, jnp.zeros(3)).jaxpr)
    with_shift, without = map(str, by_shift)
    assert " sub " in with_shift
    assert not re.search(r" (sub|neg|add) ", without)


@pytest.mark.parametrize("x", [np.array([-2.0, 3.0]), np.array([1.0 - 2.0j, 3.0j])])
def test_the_square_of_the_absolute_value_is_real(x):
    found = abs_squared(jnp.asarray(x, jnp.complex64 if np.iscomplexobj(x) else None))
    np.testing.assert_allclose(found, np.abs(x) ** 2, rtol=1e-6)
    assert found.dtype == jnp.float32
