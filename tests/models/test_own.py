"""Models of a user's class: what they are given, and how they are called."""

from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bn_jax
from bn_jax.errors import UserError
from bn_jax.models import make_model, make_norm

NORM = make_norm("batch_norm", momentum=0.8)
X = jax.random.normal(jax.random.key(1), (5, 784))
KEY = jax.random.key(0)


def make(folder: Path, name: str, **fields: Any) -> nn.Module:
    fields = {"norm": NORM, "num_classes": 3, **fields}
    return make_model(f"own_models.{name}", module_dir=str(folder), **fields)


def test_a_linen_class_gets_the_fields_that_it_has(own_folder: Path) -> None:
    model: Any = make(
        own_folder, "linen:Net", axis_name="batch", width=7, dtype="float32"
    )
    assert (model.num_classes, model.axis_name, model.width) == (3, "batch", 7)
    assert model.norm is NORM
    assert make(own_folder, "linen:Plain").classes == 10


def test_an_nnx_class_gets_layers_of_nnx_with_the_same_settings(
    own_folder: Path,
) -> None:
    model: Any = make(own_folder, "of_nnx:Net", width=7)
    layer = model.norm(7, rngs=nnx.Rngs(0))
    assert isinstance(layer, bn_jax.nnx.BatchNorm)
    assert layer.momentum == 0.8


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("linen:Net", {"widht": 3}, "Net must be one of .* 'widht'; did you mean 'wid"),
        ("of_nnx:Net", {"widht": 3}, "Net must be one of .* 'widht'; did you mean"),
        ("linen:Nett", {}, r"linen\.py defines no Nett"),
        ("liner:Net", {}, r"there is no module own_models\.liner"),
        ("linen:function", {}, "must be a class of flax.linen.Module or flax.nnx.Mod"),
        ("linen:bn_jax", {}, "must be a class of flax.linen.Module or flax.nnx.Mod"),
        ("linen:NoTrain", {}, r"__call__ must take the keyword train.*takes \(self, x"),
        ("of_nnx:Block", {}, "Block cannot be made: missing a required argument: 'wi"),
        ("linen:Plain", {"dtype": "bfloat16"}, "config.dtype=bfloat16 needs a class"),
        ("linen:Net", {"norm": "batch_norm"}, "norm must be a factory of"),
        ("linen:Net", {"num_classes": 0}, "num_classes must be at least 1"),
    ],
)
def test_a_class_that_cannot_be_used_is_refused_in_a_line(
    own_folder: Path, name: str, fields: dict, expected: str
) -> None:
    with pytest.raises(UserError, match=expected) as refusal:
        make(own_folder, name, **fields)
    assert "\n" not in str(refusal.value)


def variables_of(model: nn.Module) -> Any:
    init = jax.jit(partial(model.init, train=False))
    return init({"params": KEY, "default": KEY}, X)


@pytest.mark.parametrize("name", ["Net", "WithTrain"])
def test_an_nnx_class_is_random_in_training_only(own_folder: Path, name: str) -> None:
    model = make(own_folder, f"of_nnx:{name}")
    variables = variables_of(model)

    @jax.jit
    def trained(seed: int) -> Any:
        rngs = {"dropout": jax.random.key(seed), "default": jax.random.key(seed)}
        mutable = ["batch_stats", "Ema"]
        return model.apply(variables, X, train=True, rngs=rngs, mutable=mutable)[0]

    evaluated = jax.jit(lambda: model.apply(variables, X, train=False))
    np.testing.assert_array_equal(evaluated(), evaluated())
    np.testing.assert_array_equal(trained(0), trained(0))
    assert not np.array_equal(trained(0), trained(1))


@pytest.mark.parametrize("is_frozen", [False, True])
def test_an_nnx_class_gives_its_module_back(own_folder: Path, is_frozen: bool) -> None:
    model: Any = make(own_folder, "of_nnx:Net")
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables_of(model))
    model = bn_jax.frozen(model) if is_frozen else model
    module = model.nnx_module(variables)
    assert type(module).__name__ == "Net"
    expected = model.apply(variables, X, train=False)
    np.testing.assert_array_equal(module(X), expected)


def test_an_nnx_class_gives_moments_and_updates_its_variables(own_folder: Path) -> None:
    model = make(own_folder, "of_nnx:Net")
    variables = variables_of(model)
    _, updates = model.apply(
        variables,
        X,
        train=True,
        rngs={"default": KEY},
        mutable=["batch_stats", "batch_moments", "Ema"],
    )
    moments = updates["batch_moments"]["blocks"]["0"]["norm"]["moments"][0]
    stats = updates["batch_stats"]["blocks"]["0"]["norm"]
    np.testing.assert_allclose(stats["mean"], 0.2 * moments.mean, rtol=1e-6)
    assert updates["Ema"]["steps"] == variables["Ema"]["steps"] + 1
    assert "batch_moments" not in variables
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))
    assert jnp.isfinite(moments.var).all()


def test_flax_has_the_private_parts_of_the_bridge_that_nnx_models_build_on() -> None:
    made, stored = [], []

    class Recording(nnx.bridge.ToLinen):
        @nn.nowrap
        def put_variable(self, col: str, name: str, value: Any) -> None:
            stored.append((col, name))
            super().put_variable(col, name, value)

        @property
        def variables(self) -> Any:
            return {"params": {"kernel": jnp.ones((784, 2)), "bias": jnp.ones(2)}}

    def make(*args: Any, rngs: nnx.Rngs) -> nnx.Module:
        made.append(args)
        return nnx.Linear(*args, rngs=rngs)

    model = Recording(nnx.Linear, (784, 2), metadata_fn=None)
    # `frozen` replaces the class, which Linen reads in each call.
    object.__setattr__(model, "nnx_class", make)
    variables = model.init(KEY, X)
    assert stored == [("params", "bias"), ("params", "kernel")]
    y = model.apply(variables, X, nnx_method=lambda module, x: module(x))
    np.testing.assert_allclose(y, X.sum(1, keepdims=True).repeat(2, 1) + 1, rtol=1e-3)
    assert made == [(784, 2)] * 2
