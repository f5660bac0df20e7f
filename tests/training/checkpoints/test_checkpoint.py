"""Checkpoints come back bit for bit, and only the newest are kept."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training.tiny_runs import plain

from bn_jax.errors import UserError
from bn_jax.models import make_model, make_norm
from bn_jax.training.checkpoints.checkpoint import Checkpoints
from bn_jax.training.optim.optimizers import make_optimizer
from bn_jax.training.step.state import TrainState, init_state

CONFIG = {"seed": 3, "norm": {"name": "batch_norm"}}
PLAIN = {"weight_decay": 0.0, "decay_scale_and_bias": False, "clip_norm": None}

MakeState = Callable[[int], TrainState]


@pytest.fixture(scope="module", params=["batch_norm", None])
def make_state(request: pytest.FixtureRequest) -> MakeState:
    """States of random numbers, those of both arms and of an optimizer with moments."""
    norm = make_norm(request.param)
    model = make_model("mlp", num_classes=3, norm=norm, hidden_features=(5,))
    tx = make_optimizer("adam", learning_rate=0.1, **PLAIN)
    example = jnp.zeros((1, 4))
    init = partial(init_state, model, tx, example=example)
    template = jax.eval_shape(init, key=jax.random.key(0))

    def state_of(seed: int) -> TrainState:
        leaves, structure = jax.tree.flatten(template._replace(key=()))
        rng = np.random.default_rng(seed)
        random = [
            jnp.asarray(100 * rng.normal(size=leaf.shape), leaf.dtype)
            for leaf in leaves
        ]
        return jax.tree.unflatten(structure, random)._replace(key=jax.random.key(seed))

    return state_of


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


def test_a_state_comes_back_bit_for_bit(tmp_path: Path, make_state: MakeState) -> None:
    with Checkpoints(tmp_path, keep=1, config=CONFIG) as checkpoints:
        checkpoints.save(make_state(1), step=7)
    with Checkpoints(tmp_path, keep=1, config=CONFIG) as checkpoints:
        restored = checkpoints.restore_latest(make_state(2))
    chex.assert_trees_all_equal(plain(restored), plain(make_state(1)))


@pytest.mark.shapes
@pytest.mark.parametrize("has_values", [True, False])
def test_a_restored_state_has_types_and_devices_of_the_one_it_is_to_be_like(
    tmp_path: Path, make_state: MakeState, has_values: bool
) -> None:
    like = jax.device_put(make_state(2), jax.devices()[1])
    if not has_values:
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
    with Checkpoints(tmp_path, keep=1, config=CONFIG) as checkpoints:
        checkpoints.save(make_state(1), step=7)
        restored = checkpoints.restore_latest(like)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, like)
    assert jax.tree.structure(restored) == jax.tree.structure(like)
    leaves = zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True)
    assert all(leaf.sharding == other.sharding for leaf, other in leaves)


def test_without_a_checkpoint_there_is_nothing_to_restore(
    tmp_path: Path, make_state: MakeState
) -> None:
    with Checkpoints(tmp_path / "new" / "folder", keep=1, config=CONFIG) as checkpoints:
        assert checkpoints.restore_latest(make_state(0)) is None


@pytest.mark.parametrize("config", [CONFIG, None], ids=["to_write", "to_read"])
def test_a_file_in_the_place_of_the_checkpoints_is_refused(
    tmp_path: Path, config: dict[str, Any] | None
) -> None:
    (tmp_path / "checkpoints").write_text("a note")
    with pytest.raises(UserError, match=r"checkpoints: must be .* a file\."):
        Checkpoints(tmp_path / "checkpoints", keep=1, config=config)
    assert (tmp_path / "checkpoints").read_text() == "a note"


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_newest_are_kept(
    tmp_path: Path, make_state: MakeState, keep: int
) -> None:
    with Checkpoints(tmp_path, keep=keep, config=CONFIG) as checkpoints:
        for step in (5, 10, 15):
            checkpoints.save(make_state(step), step=step)
        restored = checkpoints.restore_latest(make_state(0))
    assert saved_steps(tmp_path) == [5, 10, 15][-keep:]
    chex.assert_trees_all_equal(plain(restored), plain(make_state(15)))


def test_a_step_that_is_there_already_is_not_written_again(
    tmp_path: Path, make_state: MakeState
) -> None:
    for seed in (1, 2):
        with Checkpoints(tmp_path, keep=1, config=CONFIG) as checkpoints:
            checkpoints.save(make_state(seed), step=7)
            restored = checkpoints.restore_latest(make_state(0))
    chex.assert_trees_all_equal(plain(restored), plain(make_state(1)))


def test_a_checkpoint_is_complete_when_an_error_leaves_the_context(
    tmp_path: Path, make_state: MakeState
) -> None:
    def save_and_fail() -> None:
        with Checkpoints(tmp_path, keep=1, config=CONFIG) as checkpoints:
            checkpoints.save(make_state(1), step=7)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_and_fail()
    assert saved_steps(tmp_path) == [7]


def test_a_relative_folder_is_one_below_the_working_directory(
    tmp_path: Path, make_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Checkpoints(Path("here"), keep=1, config=CONFIG) as checkpoints:
        checkpoints.save(make_state(1), step=7)
    assert saved_steps(tmp_path / "here") == [7]
