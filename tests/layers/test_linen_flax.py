"""Agreement with Flax's layer, in names and, where Flax is right, in results."""

import dataclasses
import inspect
import itertools
import pydoc
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal
from flax import nnx, serialization

import bn_jax

KEY = jax.random.key(0)
HALVES = (jnp.float16, jnp.bfloat16)


def perturbed(variables):
    """Returns variables that all differ from their initial values."""
    leaves, structure = jax.tree.flatten(variables)
    noise = np.random.default_rng(1)
    return structure.unflatten(
        [v + jnp.asarray(noise.uniform(0.1, 1, v.shape), v.dtype) for v in leaves]
    )


@pytest.mark.parametrize("attribute", ["name", "default", "kw_only", "init"])
def test_fields_are_those_of_flax_in_the_same_order(attribute):
    ours, theirs = (
        [
            getattr(field, attribute)
            for field in dataclasses.fields(layer)
            if field.name not in ("parent", "name")
        ]
        for layer in (bn_jax.BatchNorm, nn.BatchNorm)
    )
    # The fields that Flax lacks come last.
    assert ours[: len(theirs)] == theirs


def test_no_field_of_flax_is_inherited_and_ignored():
    inherited = {field.name for field in dataclasses.fields(nn.BatchNorm)}
    own = set(bn_jax.BatchNorm.__annotations__)
    assert inherited <= own


def test_help_says_what_is_ours_before_what_is_flax():
    text = pydoc.plain(pydoc.render_doc(bn_jax.BatchNorm))
    first, ours, flax = ("Drop-in replacement", "group_size: Number", "epsilon: Added")
    assert text.index(first) < text.index(ours) < text.index(flax)


def test_code_that_looks_for_layers_of_flax_finds_ours():
    assert isinstance(bn_jax.BatchNorm(), nn.BatchNorm)
    assert issubclass(bn_jax.nnx.BatchNorm, nnx.BatchNorm)


def test_the_call_has_the_parameters_of_flax():
    ours, theirs = (
        [
            (parameter.name, parameter.kind, parameter.default)
            for parameter in inspect.signature(layer.__call__).parameters.values()
        ]
        for layer in (bn_jax.BatchNorm, nn.BatchNorm)
    )
    assert ours == theirs


def test_the_class_has_the_name_of_flax():
    # Flax derives the names of submodules, and so checkpoint paths, from it.
    assert bn_jax.BatchNorm.__name__ == nn.BatchNorm.__name__


def assert_like_flax(x, rtol, **fields):
    """Compares initial variables, results of both modes and updated statistics."""

    def run(x, layer):
        initial = layer.init(KEY, x, use_running_average=True)
        variables = perturbed(initial)
        y, updates = layer.apply(
            variables, x, use_running_average=False, mutable=["batch_stats"]
        )
        inferred = layer.apply(variables, x, use_running_average=True)
        return (initial, updates), (y, inferred)

    (ours, y), (theirs, y_flax) = (
        jax.jit(run, static_argnames="layer")(x, layer=make(momentum=0.9, **fields))
        for make in (bn_jax.BatchNorm, nn.BatchNorm)
    )
    chex.assert_trees_all_equal_dtypes((ours, y), (theirs, y_flax))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(y, y_flax, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("axis", [1, (0, 2)], ids=str)
def test_results_on_any_axis_are_those_of_flax(axis):
    assert_like_flax(normal(4, 5, 3), 1e-5, axis=axis)


@pytest.mark.parametrize(("use_scale", "use_bias"), [(True, False), (False, True)])
def test_results_without_scale_or_bias_are_those_of_flax(use_scale, use_bias):
    fields = {"use_scale": use_scale, "use_bias": use_bias, "epsilon": 1e-3}
    assert_like_flax(normal(8, 3), 1e-5, **fields)


@pytest.mark.parametrize(
    ("dtype", "param_dtype"),
    [
        (None, jnp.float32),
        (None, jnp.bfloat16),
        (jnp.bfloat16, jnp.float32),
        (jnp.float16, jnp.bfloat16),
    ],
)
def test_results_of_any_dtype_are_those_of_flax(dtype, param_dtype):
    # Both layers round once, from float32 values that may differ in the last bit.
    rtol = 1e-5 if dtype not in HALVES else float(jnp.finfo(dtype).eps)
    assert_like_flax(normal(8, 3), rtol, dtype=dtype, param_dtype=param_dtype)


@pytest.mark.parametrize("dtype", [jnp.bfloat16])
def test_results_of_half_precision_inputs_are_those_of_flax(dtype):
    x = normal(8, 3).astype(dtype)
    assert_like_flax(x, float(jnp.finfo(dtype).eps), param_dtype=dtype)


def test_results_of_complex_inputs_are_those_of_flax():
    assert_like_flax(normal(8, 3) + 1j * normal(8, 3, seed=1), 1e-5)


DTYPES = (jnp.float32, jnp.bfloat16, jnp.complex64, jnp.int32)


@pytest.mark.parametrize(
    ("x_dtype", "dtype", "param_dtype"),
    list(itertools.product(DTYPES, (None, jnp.float16), (jnp.float32, jnp.bfloat16))),
)
def test_the_dtypes_of_results_and_statistics_are_those_of_flax(
    x_dtype, dtype, param_dtype
):
    if x_dtype == jnp.complex64 and dtype is not None:
        dtype = jnp.complex64
    x = jax.ShapeDtypeStruct((4, 3), x_dtype)

    def types_of(layer):
        variables = jax.eval_shape(layer.init, KEY, x)
        return jax.eval_shape(
            lambda v, x: layer.apply(v, x, mutable=["batch_stats"]), variables, x
        )

    ours, theirs = (
        types_of(make(use_running_average=False, dtype=dtype, param_dtype=param_dtype))
        for make in (bn_jax.BatchNorm, nn.BatchNorm)
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)


class Network(nn.Module):
    norm: type[nn.Module]

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(4)(x)
        x = self.norm(use_running_average=not train)(x)
        x = self.norm(use_running_average=not train, name="second")(nn.relu(x))
        return nn.Dense(2)(x)


# Flax restores NumPy arrays, which the annotations of the core do not allow.
@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("writer", "reader"),
    [(bn_jax.BatchNorm, nn.BatchNorm), (nn.BatchNorm, bn_jax.BatchNorm)],
)
def test_a_checkpoint_of_one_loads_into_the_other(writer, reader):
    x = normal(8, 3)
    init = partial(jax.jit, static_argnames="train")
    saved = perturbed(init(Network(writer).init)(KEY, x, train=False))
    template = init(Network(reader).init)(KEY, x, train=False)
    loaded = serialization.from_bytes(template, serialization.to_bytes(saved))
    chex.assert_trees_all_equal(loaded, saved)
    ours, theirs = (
        jax.jit(partial(Network(norm).apply, train=False))(loaded, x)
        for norm in (writer, reader)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_flax():
    x = normal(8, 3)
    init = jax.jit(partial(Network(nn.BatchNorm).init, train=False))
    variables = perturbed(init(KEY, x))

    def loss(params, norm):
        stats = {"batch_stats": variables["batch_stats"]}
        y, _ = Network(norm).apply(
            {"params": params, **stats}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.tanh(y))

    ours, theirs = (
        jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], norm)
        for norm in (bn_jax.BatchNorm, nn.BatchNorm)
    )
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_table_of_variables_is_that_of_flax():
    x = normal(8, 3)
    ours, theirs = (
        make(use_running_average=False).tabulate(KEY, x)
        for make in (bn_jax.BatchNorm, nn.BatchNorm)
    )
    assert ours == theirs


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.uint8, jnp.float32])
def test_a_mask_of_numbers_hides_where_it_is_zero_as_in_flax(dtype):
    x, valid = normal(6, 3), np.array([[1], [1], [0], [1], [0], [1]])
    mask = jnp.asarray(255 * valid, dtype)
    stats = []
    for make in (bn_jax.BatchNorm, nn.BatchNorm):
        layer = make(use_running_average=False)

        @jax.jit
        def run(x, layer=layer):
            variables = layer.init(KEY, x)
            return layer.apply(variables, x, mutable=["batch_stats"], mask=mask)[1]

        stats.append(run(x))
    chex.assert_trees_all_close(*stats, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("unchecked_types")
def test_a_numpy_integer_is_an_axis_as_in_flax():
    layer = bn_jax.BatchNorm(use_running_average=False, axis=np.int64(1))
    variables = layer.init(KEY, normal(4, 5, 3))
    chex.assert_shape(variables["batch_stats"]["mean"], (5,))
