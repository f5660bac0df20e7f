import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from core.jitted import compiled

from bn_jax.core.batch_norm import batch_norm


@pytest.fixture
def compilations():
    """Seconds that each compilation took since the test began."""
    seconds = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seconds
    jax.monitoring.unregister_event_duration_listener(listen)


def test_jit_changes_nothing(initial_stats):
    arguments = (normal(8, 3), normal(3, seed=1), normal(3, seed=2), initial_stats(3))
    jitted = jax.jit(batch_norm)(*arguments)
    chex.assert_trees_all_close(jitted, batch_norm(*arguments), rtol=1e-6, atol=1e-6)


def test_new_values_do_not_compile_again(initial_stats):
    @jax.jit
    @chex.assert_max_traces(n=1)
    def train(x, stats):
        return batch_norm(x, None, None, stats)

    stats = initial_stats(3)
    for seed in range(3):
        _, stats = train(normal(8, 3, seed=seed), stats)


# Sizes that no other test compiles, so that the first call here compiles.
@pytest.mark.parametrize(
    ("transformed", "features"),
    [
        (lambda train, x: train(x), 211),
        (
            lambda train, x: jax.vmap(jax.grad(lambda x: jnp.sum(train(x))))(x[None]),
            212,
        ),
    ],
    ids=["as it is", "grad and vmap"],
)
def test_outside_of_jit_a_second_call_compiles_nothing(
    transformed, features, initial_stats, compilations
):
    def train(x):
        return batch_norm(x, None, None, initial_stats(features))[0] ** 3

    transformed(train, normal(8, features))
    assert compilations
    compilations.clear()
    transformed(train, normal(8, features, seed=1))
    assert compilations == []


def test_vmap_over_statistics_normalizes_by_each_of_them():
    stats = {"mean": normal(4, 3), "var": normal(4, 3, seed=1) ** 2}
    x = normal(8, 3, seed=2)

    def infer(stats):
        return compiled(x, None, None, stats, use_running_average=True)[0]

    y = jax.vmap(infer)(stats)
    expected = [
        oracles.inference(x, None, None, mean, var)
        for mean, var in zip(stats["mean"], stats["var"], strict=True)
    ]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_vmap_without_an_axis_name_normalizes_each_batch_by_itself(initial_stats):
    x = normal(4, 8, 3) + jnp.arange(4.0)[:, None, None]
    y, stats = jax.vmap(lambda x: compiled(x, None, None, initial_stats(3)))(x)
    chex.assert_shape(stats["mean"], (4, 3))
    expected = [oracles.batch_norm(batch) for batch in x]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_only_the_named_one_of_two_nested_vmaps_shares_statistics(initial_stats):
    x = normal(2, 4, 8, 3) + jnp.arange(2.0)[:, None, None, None]

    def train(x):
        return batch_norm(x, None, None, initial_stats(3), axis_name="inner")[0]

    mapped = jax.vmap(jax.vmap(train, axis_name="inner"), axis_name="outer")
    y = jax.jit(mapped)(x)
    expected = [oracles.batch_norm(x_outer) for x_outer in x]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_scan_carries_the_statistics_on(initial_stats):
    x = normal(5, 8, 3)

    def step(stats, x):
        return batch_norm(x, None, None, stats)[::-1]

    scanned, ys = jax.lax.scan(step, initial_stats(3), x)
    stats = initial_stats(3)
    for batch in x:
        y, stats = compiled(batch, None, None, stats)
    chex.assert_trees_all_close(scanned, stats, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_close(ys[-1], y, rtol=1e-5, atol=1e-6)


def test_remat_changes_neither_values_nor_gradients(initial_stats):
    def loss(x, scale):
        y, stats = batch_norm(x, scale, None, initial_stats(3))
        return jnp.sum(jnp.tanh(y)), stats

    arguments = (normal(8, 3), normal(3, seed=1))
    plain, rematted = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(*arguments)
        for f in (loss, jax.checkpoint(loss))
    )
    chex.assert_trees_all_close(plain, rematted, rtol=1e-6, atol=1e-7)


def test_forward_mode_and_reverse_mode_agree(initial_stats):
    x, dx, dy = normal(8, 3), normal(8, 3, seed=1), normal(8, 3, seed=2)

    def forward(x):
        return batch_norm(x, None, None, initial_stats(3))[0]

    _, tangent = jax.jit(lambda x, dx: jax.jvp(forward, (x,), (dx,)))(x, dx)
    (cotangent,) = jax.jit(lambda x, dy: jax.vjp(forward, x)[1](dy))(x, dy)
    np.testing.assert_allclose(
        jnp.vdot(tangent, dy), jnp.vdot(dx, cotangent), rtol=1e-5
    )


def test_statistics_may_be_donated(initial_stats):
    @jax.jit(donate_argnums=1)
    def train(x, stats):
        return batch_norm(x, None, None, stats)

    expected = compiled(normal(8, 3), None, None, initial_stats(3))
    donated = train(normal(8, 3), initial_stats(3))
    chex.assert_trees_all_close(donated, expected, rtol=1e-6, atol=1e-6)


def exported(function, *sizes):
    """Exports the function for float32 arrays of these symbolic sizes."""
    shapes = [
        jax.ShapeDtypeStruct(jax.export.symbolic_shape(size), jnp.float32)
        for size in sizes
    ]
    return jax.export.export(jax.jit(function))(*shapes)


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ("n, 3", {}),
        ("n, 20, 3", {}),
        ("4*k, 5, 3", {"group_size": 4}),
        ("4*k, 5, 3", {"group_size": 2}),
    ],
)
def test_training_is_exported_for_any_number_of_examples(
    sizes, settings, initial_stats
):
    def train(x):
        def loss(x):
            y, stats = batch_norm(x, None, None, initial_stats(3), **settings)
            return jnp.sum(jnp.sin(y)), (y, stats)

        return jax.grad(loss, has_aux=True)(x)

    program = exported(train, sizes)
    for examples in (8, 320):
        rows = tuple(int(size) for size in sizes.split(",")[1:])
        x = normal(examples, *rows, mean=100)
        expected = jax.jit(train)(x)
        chex.assert_trees_all_close(program.call(x), expected, rtol=1e-4, atol=1e-5)


def test_groups_of_an_open_batch_that_may_not_divide_it_are_refused(initial_stats):
    def train(x):
        return batch_norm(x, None, None, initial_stats(4), group_size=4)

    with pytest.raises(ValueError, match=r"group_size=4 must .* such as 4\*k"):
        exported(train, "n, 3, 4")


@pytest.mark.parametrize("use_running_average", [True, False])
def test_shapes_are_known_without_computing(use_running_average, initial_stats):
    x = jax.ShapeDtypeStruct((2**20, 2**10, 2**10), jnp.float32)
    y, stats = jax.eval_shape(
        lambda x: batch_norm(
            x,
            None,
            None,
            initial_stats(2**10),
            use_running_average=use_running_average,
        ),
        x,
    )
    chex.assert_shape(y, x.shape)
    chex.assert_shape(list(stats.values()), (2**10,))
