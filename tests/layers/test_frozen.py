"""Frozen layers: results of inference, no updates, no gradients, in any module."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bn_jax

X = np.random.default_rng(0).normal(1.0, 2.0, size=(16, 4)).astype(np.float32)


class Block(nn.Module):
    """A linear layer and a norm."""

    norm: Any = nn.BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        x = nn.Dense(3)(x)
        return nn.relu(self.norm(use_running_average=not train, name="norm")(x))

    def twice(self, x: jax.Array) -> jax.Array:
        return 2 * self(x)


class Net(nn.Module):
    """Two blocks, perhaps of a transformed class, and a head."""

    norm: Any = nn.BatchNorm
    block: Any = Block

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        for name in ("block1", "block2"):
            x = self.block(self.norm, name=name)(x, train)
        return nn.Dense(2)(x)


def trained(model: nn.Module) -> Any:
    """Variables whose statistics, scales and biases are not the initial ones."""
    variables = model.init(jax.random.key(0), X)
    return jax.tree.map(lambda leaf: leaf + 0.1, variables)


def train(model: nn.Module, variables: Any) -> tuple[Any, Any, Any]:
    """Output, statistics and gradients of a training step, compiled."""

    def loss(params: Any) -> Any:
        y, updates = model.apply(
            {**variables, "params": params}, X, mutable=["batch_stats"]
        )
        return jnp.sum(y**2), (y, updates["batch_stats"])

    compute = jax.jit(jax.grad(loss, has_aux=True))
    grads, (y, batch_stats) = compute(variables["params"])
    return y, batch_stats, grads


@pytest.fixture(params=[nn.BatchNorm, bn_jax.BatchNorm], ids=["flax", "ours"])
def norm(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize(
    "block",
    [Block, nn.remat(Block, static_argnums=2), nn.jit(Block, static_argnums=2)],
    ids=["plain", "remat", "jit"],
)
def test_training_is_inference_and_leaves_the_norms_alone(
    norm: Any, block: Any
) -> None:
    model = Net(norm, block)
    variables = trained(model)
    model.apply(variables, X, mutable=["batch_stats"])
    frozen = bn_jax.frozen(model)
    np.testing.assert_array_equal(
        frozen.apply(variables, X), model.apply(variables, X, False)
    )
    _, batch_stats, grads = train(frozen, variables)
    chex.assert_trees_all_equal(batch_stats, variables["batch_stats"])
    for name in ("block1", "block2"):
        assert not np.any(grads[name]["norm"]["scale"])
        assert not np.any(grads[name]["norm"]["bias"])
        assert np.any(grads[name]["Dense_0"]["kernel"])


def test_gradients_of_other_parameters_are_those_of_inference(norm: Any) -> None:
    model = Net(norm)
    variables = trained(model)

    def loss(params: Any) -> Any:
        return jnp.sum(model.apply({**variables, "params": params}, X, False) ** 2)

    expected = jax.jit(jax.grad(loss))(variables["params"])
    _, _, grads = train(bn_jax.frozen(model), variables)
    dense = {name: grads[name]["Dense_0"] for name in ("block1", "block2")}
    for name, of_dense in dense.items():
        chex.assert_trees_all_equal(of_dense, expected[name]["Dense_0"])


def test_only_layers_whose_path_fits_are_frozen(norm: Any) -> None:
    model = Net(norm)
    variables = trained(model)
    _, batch_stats, grads = train(bn_jax.frozen(model, "block1/"), variables)
    old = variables["batch_stats"]
    chex.assert_trees_all_equal(batch_stats["block1"], old["block1"])
    assert not np.any(grads["block1"]["norm"]["scale"])
    assert np.any(
        batch_stats["block2"]["norm"]["mean"] != old["block2"]["norm"]["mean"]
    )
    assert np.any(grads["block2"]["norm"]["scale"])


def test_initialization_is_that_of_the_module(norm: Any) -> None:
    model = Net(norm)
    chex.assert_trees_all_equal(
        bn_jax.frozen(model).init(jax.random.key(0), X),
        model.init(jax.random.key(0), X),
    )


def test_the_result_is_of_the_module_s_class_and_the_module_unchanged() -> None:
    model = Net()
    frozen = bn_jax.frozen(model)
    assert isinstance(frozen, Net)
    assert type(model) is Net
    assert repr(frozen) == repr(model)
    assert frozen != model
    assert frozen == bn_jax.frozen(Net())
    assert frozen != bn_jax.frozen(Net(), "block1")


@pytest.mark.parametrize("method", ["twice", Block.twice])
def test_other_methods_run_frozen_layers_too(method: Any) -> None:
    model = Block()
    variables = trained(model)
    y, updates = bn_jax.frozen(model).apply(
        variables, X, mutable=["batch_stats"], method=method
    )
    np.testing.assert_array_equal(y, 2 * model.apply(variables, X, False))
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])


class Inline(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(2)(bn_jax.frozen(Block())(x))


class InSetup(nn.Module):
    def setup(self) -> None:
        self.Block_0 = bn_jax.frozen(Block())
        self.Dense_0 = nn.Dense(2)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.Dense_0(self.Block_0(x))


class AsField(nn.Module):
    Block_0: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(2)(self.Block_0(x))


@pytest.mark.parametrize(
    "model", [Inline(), InSetup(), AsField(bn_jax.frozen(Block()))]
)
def test_a_frozen_module_inside_of_another_keeps_its_name(model: nn.Module) -> None:
    variables = model.init(jax.random.key(0), X)
    assert sorted(variables["params"]) == ["Block_0", "Dense_0"]
    _, updates = model.apply(variables, X, mutable=["batch_stats"])
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])


class Body(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, None]:
        return nn.Dense(4)(Block(name="block")(x, train)), None


def test_layers_inside_of_a_scan_are_frozen_by_their_path() -> None:
    axes = {"params": 0, "batch_stats": 0}
    rngs = {"params": True}
    scanned = nn.scan(Body, axes, split_rngs=rngs, in_axes=nn.broadcast, length=2)
    model = scanned()
    variables = model.init(jax.random.key(0), X, True)
    (y, _), updates = bn_jax.frozen(model, "block/norm").apply(
        variables, X, True, mutable=["batch_stats"]
    )
    np.testing.assert_array_equal(y, model.apply(variables, X, False)[0])
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])


def test_a_single_layer_may_be_frozen_with_all_of_its_arguments() -> None:
    layer = bn_jax.BatchNorm(update_running_average=True)
    variables = layer.init(jax.random.key(0), X, use_running_average=True)
    mask = jnp.arange(16)[:, None] < 8
    y, updates = bn_jax.frozen(layer).apply(
        variables, X, False, mask=mask, mutable=["batch_stats", "batch_moments"]
    )
    assert "batch_moments" not in updates
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])
    np.testing.assert_allclose(y, np.where(mask, X, 0), rtol=1e-5)


def test_flax_has_the_private_parts_of_a_module_that_frozen_builds_on() -> None:
    called = []

    class Recording(Block):
        @nn.nowrap
        def _call_wrapped_method(self, method: Any, args: Any, kwargs: Any) -> Any:
            called.append((method.__name__, self.scope.has_flag("flag")))
            self.scope.flags = self.scope.flags.copy({"flag": True})
            return super()._call_wrapped_method(method, args, kwargs)

    Recording().init(jax.random.key(0), X, method="twice")
    assert called == [("twice", False), ("__call__", True)]


def test_a_match_that_fits_no_layer_is_refused_with_those_that_there_are() -> None:
    model = bn_jax.frozen(Net(), "blok")
    expected = "frozen: match='blok' must fit .*layers are block1/norm, block2/norm"
    with pytest.raises(ValueError, match=expected):
        model.init(jax.random.key(0), X)


def test_a_match_that_is_no_expression_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be a regular expression.*'\('"):
        bn_jax.frozen(Net(), "(")
