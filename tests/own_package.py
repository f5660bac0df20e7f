"""A user's package of models, written into a folder."""

from pathlib import Path

import pytest

_LINEN = '''
import bn_jax
import flax.linen as nn
import jax
import jax.numpy as jnp


class Net(nn.Module):
    """A norm of each kind, two random streams, two other collections, a sown loss."""

    num_classes: int
    norm: object
    axis_name: str | None = None
    width: int = 6

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(self.width)(x.reshape(len(x), -1))
        x = self.norm(use_running_average=not train, name="ours")(x)
        if train:
            x += 0.1 * jax.random.normal(self.make_rng("noise"), x.shape)
        average = self.variable("ema", "mean", jnp.zeros, (self.width,))
        if train and not self.is_initializing():
            mean = jax.lax.stop_gradient(x.mean(0))
            if self.axis_name is not None:
                mean = jax.lax.pmean(mean, self.axis_name)
            average.value = 0.5 * average.value + 0.5 * mean
        self.sow("losses", "square", jnp.mean(x**2))
        x = nn.SpectralNorm(nn.Dense(self.width))(x, update_stats=train)
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            axis_name=self.axis_name,
            name="flax",
        )(x)
        x = nn.Dropout(0.2, deterministic=not train)(nn.relu(x))
        return nn.Dense(self.num_classes)(x)


class Plain(nn.Module):
    """A class without a field that is offered, with a norm made by hand."""

    classes: int = 10
    kind: str = "flax"

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(5)(x.reshape(len(x), -1))
        kinds = {"flax": nn.BatchNorm, "ours": bn_jax.BatchNorm}
        if self.kind in kinds:
            x = kinds[self.kind](use_running_average=not train, momentum=0.9)(x)
        if self.kind in ("average", "growing"):
            kept = self.variable("kept", "x", jnp.zeros, (1, 5))
            if train and self.kind == "average":
                kept.value = x.mean(0, keepdims=True)
            elif train:
                kept.value = jnp.concatenate([kept.value, x])
        if self.kind == "broken":
            x = x @ jnp.zeros((3, 3))
        x = nn.Dense(self.classes)(x)
        return (x, x) if self.kind == "pair" else x


class NoTrain(nn.Module):
    def __call__(self, x):
        return x


def function(x):
    return x
'''

_NNX = '''
import jax
import jax.numpy as jnp
from flax import nnx


class Ema(nnx.Variable):
    """A type of variable of one's own."""


class Block(nnx.Module):
    def __init__(self, width, norm, *, rngs):
        self.linear = nnx.Linear(width, width, rngs=rngs)
        self.norm = norm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return self.dropout(nnx.relu(self.norm(self.linear(x))))


class Net(nnx.Module):
    """A network whose call does not take `train`."""

    def __init__(self, num_classes, norm, *, pixels=784, width=6, rngs):
        self.first = nnx.Linear(pixels, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, norm, rngs=rngs) for _ in range(2)])
        self.last = nnx.Linear(width, num_classes, rngs=rngs)
        self.steps = Ema(jnp.zeros(()))

    def __call__(self, x):
        self.steps[...] += 1
        x = self.first(x.reshape(len(x), -1))
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class WithTrain(nnx.Module):
    """A network whose call takes `train`, with random numbers of its own stream."""

    def __init__(self, num_classes, *, rngs):
        self.linear = nnx.Linear(784, num_classes, rngs=rngs)
        self.rngs = rngs

    def __call__(self, x, *, train):
        x = self.linear(x.reshape(len(x), -1))
        return x + jax.random.normal(self.rngs.noise(), x.shape) if train else x
'''


@pytest.fixture(scope="session")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user's package, `own_models`, for `config.module_dir`.

    There is one for all tests: NNX registers each type of variable by its name.
    """
    folder = tmp_path_factory.mktemp("user")
    package = folder / "own_models"
    package.mkdir()
    (package / "linen.py").write_text(_LINEN)
    (package / "of_nnx.py").write_text(_NNX)
    return folder
