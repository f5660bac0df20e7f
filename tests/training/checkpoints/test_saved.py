"""Checkpoints that are read without the network that they belong to."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from jax.random import key

from bn_jax.errors import UserError
from bn_jax.models import make_model, make_norm
from bn_jax.training.checkpoints.checkpoint import Checkpoints
from bn_jax.training.checkpoints.saved import Saved
from bn_jax.training.optim.optimizers import make_optimizer
from bn_jax.training.step.state import init_state

CONFIG = {"seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints after 2 and 5 steps; a bias says which."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = make_model(
        "mlp", num_classes=3, norm=make_norm("batch_norm"), hidden_features=(5,)
    )
    tx = make_optimizer(
        "adam",
        learning_rate=0.1,
        weight_decay=0.0,
        decay_scale_and_bias=False,
        clip_norm=None,
    )
    state = init_state(model, tx, key=key(0), example=jnp.zeros((1, 4)))
    with Checkpoints(folder, keep=3, config=CONFIG, num_classes=3) as checkpoints:
        for step in (2, 5):
            state.params["logits"]["bias"] = jnp.full(3, float(step))
            checkpoints.save(state, step=step)
    return folder


def read(folder: Path, step: int | None = None) -> Saved | None:
    with Checkpoints(folder, keep=3) as checkpoints:
        return checkpoints.read(step)


@pytest.mark.parametrize(("step", "expected"), [(None, 5), (2, 2), (5, 5)])
def test_the_newest_or_the_named_step_is_read(
    folder: Path, step: int | None, expected: int
) -> None:
    saved = read(folder, step)
    assert saved is not None
    assert (saved.step, saved.num_classes) == (expected, 3)
    bias = saved.arrays["params"]["logits"]["bias"]
    np.testing.assert_array_equal(bias, np.full(3, expected))
    assert saved.arrays["batch_stats"]["norm0"]["mean"].shape == (5,)


def test_a_step_without_a_checkpoint_is_refused_with_those_there_are(
    folder: Path,
) -> None:
    with pytest.raises(UserError, match="of step 4, but holds those of 2, 5"):
        read(folder, 4)


def test_an_empty_folder_has_nothing_to_read(tmp_path: Path) -> None:
    assert read(tmp_path) is None


def test_a_damaged_step_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    next((copy / "2").glob("manifest*")).unlink()
    with pytest.raises(UserError, match=r"checkpoint 2 is damaged .* another step"):
        read(copy, 2)
