"""Errors of the NNX layer, in its constructor and in its call."""

import jax.numpy as jnp
import pytest
from arrays import normal
from flax import nnx
from layers.nnx_model import make

import bn_jax


def test_a_flag_that_is_never_given_is_refused():
    with pytest.raises(ValueError, match=r"^BatchNorm: use_running_average must be"):
        make(use_running_average=None)(normal(6, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_features": 4}, "num_features=4 must be .* axis -1, which is 3"),
        ({"group_size": 4}, "group_size=4 must divide"),
    ],
)
def test_errors_begin_with_the_class(settings, message):
    with pytest.raises(ValueError, match=f"^BatchNorm: (?!batch_norm).*{message}"):
        make(**settings)(normal(6, 3))


def test_training_needs_the_mapped_axis():
    with pytest.raises(NameError, match=r"^BatchNorm: axis_name='batch' is not bound"):
        make(axis_name="batch")(normal(6, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"momentum": -0.1}, r"momentum must lie in \[0, 1\)"),
        ({"epsilon": -1e-5}, "epsilon must not be negative"),
        ({"group_size": 0}, "group_size must be a whole number"),
        ({"group_size": 2, "axis": 0}, "which is a feature axis"),
        ({"group_size": 2, "axis_index_groups": [[0]]}, "needs axis_name"),
        ({"axis_index_groups": [[0, 1]]}, "axis_index_groups needs axis_name"),
        ({"variance_correction": 2}, "variance_correction must be 0"),
        ({"momentum": None, "debias": True}, "Leave one of them out"),
    ],
)
def test_the_constructor_refuses_what_no_input_could_make_right(settings, message):
    with pytest.raises(ValueError, match=f"^BatchNorm: (?!batch_norm).*{message}"):
        bn_jax.nnx.BatchNorm(3, rngs=nnx.Rngs(0), **settings)


def test_the_message_of_the_constructor_is_that_of_the_operator():
    messages = []
    for call in (
        lambda: bn_jax.nnx.BatchNorm(3, momentum=1.5, rngs=nnx.Rngs(0)),
        lambda: bn_jax.batch_norm(
            jnp.ones((4, 3)),
            None,
            None,
            {"mean": jnp.zeros(3), "var": jnp.ones(3)},
            momentum=1.5,
        ),
    ):
        with pytest.raises(ValueError, match="momentum") as error:
            call()
        messages.append(str(error.value))
    of_layer, of_function = messages
    assert of_layer.split(": ", 1)[1] == of_function.split(": ", 1)[1]
