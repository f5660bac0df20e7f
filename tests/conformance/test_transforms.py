import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal as normal_of_dtype

import bn_jax

# Each test compiles programs of its own: together they take most of a minute.
pytestmark = pytest.mark.slow

# The hand-written derivative and autodiff of the formula, both in float64.
TOLERANCE = 1e-10
EPSILON = 1e-3
KEEP = 0.25


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def formula(x, scale, bias, stats, *, mask=None):
    """Algorithm 1 in two passes, for JAX to differentiate by itself."""
    counted = jnp.ones(x.shape) if mask is None else mask * jnp.ones(x.shape)
    num_samples = counted.sum(0)
    mean = (counted * x).sum(0) / num_samples
    deviation = x - mean
    squares = deviation.real**2 + deviation.imag**2
    var = (counted * squares).sum(0) / num_samples
    y = deviation / jnp.sqrt(var + EPSILON) * scale + bias
    new = {
        "mean": KEEP * stats["mean"] + (1 - KEEP) * mean,
        "var": KEEP * stats["var"] + (1 - KEEP) * var,
    }
    return counted * y, new


def operator(x, scale, bias, stats, **settings):
    return bn_jax.batch_norm(
        x, scale, bias, stats, epsilon=EPSILON, momentum=KEEP, **settings
    )


normal = partial(normal_of_dtype, mean=1, std=2, dtype=float)


def arguments(*shape, seed=0):
    features = shape[-1]
    stats = {"mean": normal(features, seed=seed + 3), "var": jnp.ones(features)}
    return (
        normal(*shape, seed=seed),
        normal(features, seed=seed + 1),
        normal(features, seed=seed + 2),
        stats,
    )


def weighted(results):
    """A loss of y and of both statistics, of odd and even degree."""
    y, stats = results
    weights = jnp.cos(jnp.arange(y.size)).reshape(y.shape)
    loss = jnp.sum(weights * (jnp.tanh(y.real) + jnp.sin(y.imag)))
    mean = stats["mean"]
    loss += jnp.sum(jnp.sin(mean.real) + mean.imag**3)
    return loss + jnp.sum(jnp.log(stats["var"]) * jnp.arange(1, mean.size + 1))


def loss_of(normalize):
    def loss(x, scale, bias, stats):
        return weighted(normalize(x, scale, bias, stats))

    return loss


def assert_like_the_formula(transform, *given, **settings):
    """Compares what a transformation makes of the operator and of the formula."""
    actual = jax.jit(transform(loss_of(partial(operator, **settings))))(*given)
    expected = jax.jit(transform(loss_of(partial(formula, **settings))))(*given)
    assert_trees_close(actual, expected)


def assert_trees_close(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, want in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.fixture(params=[False, True], ids=["full", "masked"])
def mask(request):
    return jnp.arange(6)[:, None] % 3 > 0 if request.param else None


def test_gradients_of_results_and_of_all_statistics_are_those_of_the_formula(mask):
    gradients = partial(jax.grad, argnums=(0, 1, 2, 3))
    assert_like_the_formula(gradients, *arguments(6, 3), mask=mask)


def test_tangents_are_those_of_the_formula(mask):
    tangents = arguments(6, 3, seed=7)

    def directional(loss):
        return lambda *primals: jax.jvp(loss, primals, tangents)

    assert_like_the_formula(directional, *arguments(6, 3), mask=mask)


def test_linearized_functions_are_those_of_the_formula():
    tangents = arguments(6, 3, seed=7)

    def linearized(loss):
        return lambda *primals: jax.linearize(loss, *primals)[1](*tangents)

    assert_like_the_formula(linearized, *arguments(6, 3))


def test_the_hessian_under_a_mask_is_that_of_the_formula():
    hessian = partial(jax.hessian, argnums=(0, 1))
    mask = jnp.arange(6)[:, None] % 3 > 0
    assert_like_the_formula(hessian, *arguments(6, 2), mask=mask)


@pytest.mark.parametrize(
    "second_order",
    [
        lambda f: jax.jacrev(jax.jacfwd(f)),
        lambda f: jax.jacfwd(jax.jacfwd(f)),
        lambda f: jax.jacrev(jax.jacrev(f)),
    ],
    ids=["jacrev_of_jacfwd", "jacfwd_of_jacfwd", "jacrev_of_jacrev"],
)
def test_second_derivatives_in_any_order_are_those_of_the_formula(second_order):
    assert_like_the_formula(second_order, *arguments(6, 2))


def test_the_jacobian_is_that_of_the_formula_forward_and_backward():
    x, *rest = arguments(6, 2)
    expected = jax.jit(jax.jacrev(lambda x: formula(x, *rest)))(x)
    for jacobian in (jax.jacfwd, jax.jacrev):
        actual = jax.jit(jacobian(lambda x: operator(x, *rest)))(x)
        assert_trees_close(actual, expected)


@pytest.mark.parametrize("in_axis", [0, 2])
def test_gradients_under_vmap_over_another_axis_are_those_of_the_formula(in_axis):
    _, scale, bias, stats = arguments(6, 3)
    x = jnp.moveaxis(normal(4, 6, 3), 0, in_axis)

    def each(loss):
        gradients = jax.grad(loss, argnums=(0, 1, 3))
        return jax.vmap(gradients, in_axes=(in_axis, None, None, None))

    assert_like_the_formula(each, x, scale, bias, stats)


def test_gradients_under_two_vmaps_are_those_of_the_formula():
    _, scale, bias, stats = arguments(6, 3)
    in_axes = (0, None, None, None)

    def each(loss):
        return jax.vmap(jax.vmap(jax.grad(loss), in_axes), in_axes)

    assert_like_the_formula(each, normal(2, 4, 6, 3), scale, bias, stats)


def over_named_axis(x, scale, bias, stats):
    """The operator on slices that share statistics; those of the first slice."""
    y, new = jax.vmap(
        lambda x: operator(x, scale, bias, stats, axis_name="slices"),
        axis_name="slices",
    )(x.reshape(3, -1, x.shape[-1]))
    return y.reshape(x.shape), jax.tree.map(lambda leaf: leaf[0], new)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: jax.grad(jax.jit(f), argnums=(0, 1, 2, 3)),
        pytest.param(
            lambda f: jax.grad(f, argnums=(0, 1, 2, 3)), marks=pytest.mark.slow
        ),
        lambda f: jax.grad(jax.checkpoint(jax.jit(f)), argnums=(0, 1, 2, 3)),
        lambda f: jax.hessian(jax.jit(f)),
    ],
    ids=["of_jit", "eager", "of_checkpoint", "hessian_of_jit"],
)
def test_derivatives_of_a_named_vmap_are_those_of_the_formula(transform):
    given = arguments(6, 2)
    expected = jax.jit(transform(loss_of(formula)))(*given)
    assert_trees_close(transform(loss_of(over_named_axis))(*given), expected)


def over_time(normalize):
    """Five steps of training, whose statistics go on from one to the next."""

    def loss(x, scale, bias, stats):
        def step(stats, x):
            y, stats = normalize(x, scale, bias, stats)
            return stats, weighted((y, stats))

        stats, losses = jax.lax.scan(step, stats, x)
        return jnp.sum(losses) + jnp.sum(stats["var"] ** 2)

    return loss


def test_gradients_through_the_statistics_of_a_scan_are_those_of_the_formula():
    _, *rest = arguments(6, 3)
    x = normal(5, 6, 3)
    actual, expected = (
        jax.jit(jax.grad(over_time(normalize), argnums=(0, 1, 2, 3)))(x, *rest)
        for normalize in (operator, formula)
    )
    assert_trees_close(actual, expected)


@pytest.mark.parametrize(
    "policy",
    [None, jax.checkpoint_policies.dots_saveable],
    ids=["nothing_saved", "dots_saved"],
)
def test_gradients_under_checkpoint_are_those_of_the_formula(policy):
    def rematerialized(loss):
        return jax.grad(jax.checkpoint(loss, policy=policy), argnums=(0, 1, 2, 3))

    assert_like_the_formula(rematerialized, *arguments(6, 3))


@pytest.mark.parametrize(
    "transform",
    [jax.grad, lambda f: lambda *of: jax.jvp(lambda x: f(x, *of[1:]), of[:1], of[:1])],
    ids=["grad", "jvp"],
)
def test_derivatives_of_complex_activations_are_those_of_the_formula(transform):
    x, scale, bias, stats = arguments(6, 3)
    stats["mean"] = stats["mean"] + 0j
    x = x + 1j * normal(6, 3, seed=9)
    assert_like_the_formula(transform, x, scale, bias, stats)


def residuals(shape, dtype, **settings):
    """Arrays that the backward pass of training keeps from the forward pass."""
    x, scale, bias, stats = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32), arguments(*shape)
    )

    def forward(x, scale, bias):
        return operator(x, scale, bias, stats, **settings)

    _, back = jax.vjp(forward, x.astype(dtype), scale, bias)
    return [leaf for leaf in jax.tree.leaves(back) if hasattr(leaf, "dtype")]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_backward_pass_saves_x_once_and_nothing_else_of_its_size(dtype):
    large = [leaf for leaf in residuals((64, 8), dtype) if leaf.size >= 64 * 8]
    assert [(leaf.shape, leaf.dtype) for leaf in large] == [((64, 8), dtype)]


def test_a_mask_adds_itself_alone_and_as_it_is_given_to_what_is_saved():
    mask = jnp.arange(64)[:, None] % 3 > 0
    saved = residuals((64, 8), jnp.bfloat16, mask=mask)
    large = [(leaf.shape, leaf.dtype.name) for leaf in saved if leaf.size >= 64]
    assert set(large) == {((64, 8), "bfloat16"), ((64, 1), "bool")}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads a CPU's fusions")
def test_the_compiled_gradient_makes_no_array_of_the_size_of_x_but_its_result():
    shape = (64, 6, 6, 16)
    x, scale, bias, stats = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32), arguments(*shape)
    )

    def gradients(x, stats, dy):
        def forward(*arguments):
            return operator(*arguments, stats)

        _, back, _ = jax.vjp(forward, x, scale, bias, has_aux=True)
        return back(dy)

    program = jax.jit(gradients).lower(x, stats, x).compile().as_text()
    entry = program[program.index("\nENTRY") :]
    made = re.findall(r"= f32\[64,6,6,16\]\S* (\S+?)\(", entry)
    # Not a broadcast or a difference either, which the sums would read again.
    assert sorted(made) == ["fusion", "parameter", "parameter"]
