"""Runs that start from the parameters and statistics of another run."""

import logging
import shutil
from pathlib import Path
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from training.tiny_runs import (
    Complete,
    complete_run,
    final_state,
    initial_state,
    interrupt,
    tiny_config,
)

from bn_jax.errors import UserError
from bn_jax.training.checkpoints.checkpoint import Checkpoints
from bn_jax.training.checkpoints.start_from import find_other_run, start_from

# Weight decay and Adam's moments would move all parameters.
TUNING = {
    "num_steps": 20,
    "checkpoint__every_steps": 10,
    "norm__frozen": True,
    "optimizer__freeze": ("hidden0/",),
    "optimizer__name": "adamw",
    "optimizer__learning_rate": 0.01,
    "optimizer__weight_decay": 0.1,
    "optimizer__decay_scale_and_bias": True,
}


@pytest.fixture(scope="module")
def trained(bn: Complete) -> Any:
    return final_state(bn.config, bn.workdir)


def with_classes(config: ConfigDict, num_classes: int) -> ConfigDict:
    """The configuration with another head."""
    with config.unlocked():
        config.model.num_classes = num_classes
    return config


def messages(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(caplog.messages)


def test_parameters_and_statistics_are_those_of_the_other_run(
    bn: Complete, idx_dir: Path, trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="absl")
    new = initial_state(tiny_config(idx_dir, seed=1, ema_decay=0.9))
    state = start_from(bn.workdir, new)
    chex.assert_trees_all_equal(state.variables, trained.variables)
    chex.assert_trees_all_equal(state.ema_params, trained.params)
    chex.assert_trees_all_equal(state.opt_state, new.opt_state)
    assert int(state.step) == 0
    assert (
        f"{bn.workdir}: starts from step 60; 12 of 12 variables are taken."
    ) in messages(caplog)


def test_a_new_head_keeps_its_initial_values_and_is_named(
    bn: Complete, idx_dir: Path, trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="absl")
    new = initial_state(with_classes(tiny_config(idx_dir), 12))
    state = start_from(bn.workdir, new)
    chex.assert_trees_all_equal(state.params["logits"], new.params["logits"])
    chex.assert_trees_all_equal(state.params["norm1"], trained.params["norm1"])
    shape = list(trained.params["logits"]["kernel"].shape)
    assert "10 of 12 variables are taken, and not" in messages(caplog)
    assert f"logits/kernel [7, 12] ({shape} there)" in messages(caplog)


def test_a_network_without_norms_takes_the_kernels(
    bn: Complete, idx_dir: Path, trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="absl")
    new = initial_state(tiny_config(idx_dir, arm="baseline"))
    state = start_from(bn.workdir, new)
    np.testing.assert_array_equal(
        state.params["hidden0"]["kernel"], trained.params["hidden0"]["kernel"]
    )
    assert "hidden0/bias [8] (missing there)" in messages(caplog)


def test_other_collections_are_taken_by_path_and_shape(
    idx_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="absl")
    new = initial_state(tiny_config(idx_dir))
    old = new._replace(collections={"ema": {"mean": jnp.ones(3), "size": jnp.ones(2)}})
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(old, step=1)
    new = new._replace(
        collections={"ema": {"mean": jnp.zeros(3), "size": jnp.zeros(4)}}
    )
    collections = start_from(tmp_path, new).collections
    np.testing.assert_array_equal(collections["ema"]["mean"], np.ones(3))
    np.testing.assert_array_equal(collections["ema"]["size"], np.zeros(4))
    assert "not ema/size [4] ([2] there)" in messages(caplog)


def test_a_network_that_shares_nothing_is_refused(bn: Complete, idx_dir: Path) -> None:
    config = tiny_config(idx_dir, model__hidden_features=(5, 4))
    new = initial_state(with_classes(config, 12))
    with pytest.raises(UserError, match=r"no variable agrees .*hidden0/kernel"):
        start_from(bn.workdir, new)


@pytest.mark.parametrize(
    ("other", "message"),
    [("absent", "holds no run"), ("started", "no checkpoint"), ("own", "of this run")],
)
def test_a_folder_without_a_run_to_start_from_is_refused(
    tmp_path: Path, other: str, message: str
) -> None:
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"config.init_from=.*{other}.*{message}"):
        find_other_run(str(tmp_path / other), tmp_path / "own")


def test_the_other_folder_may_lie_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "other" / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "other" / "config.json").write_text("{}")
    assert find_other_run("~/other", tmp_path / "own") == tmp_path / "other"


def test_a_refused_run_leaves_its_workdir_free(
    bn: Complete, idx_dir: Path, tmp_path: Path
) -> None:
    fields = {"init_from": str(bn.workdir), "model__hidden_features": (5, 4)}
    config = tiny_config(idx_dir, **fields)
    with pytest.raises(UserError, match="no variable agrees"):
        complete_run(with_classes(config, 12), tmp_path / "new")
    assert not (tmp_path / "new" / "config.json").exists()


@pytest.fixture(scope="module")
def tuned(
    bn: Complete, idx_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Complete:
    """A run that is fine-tuned from `bn`, with frozen norms and a frozen layer."""
    config = tiny_config(idx_dir, init_from=str(bn.workdir), **TUNING)
    return complete_run(config, tmp_path_factory.mktemp("runs") / "tuned")


def assert_frozen_parts_stay(state: Any, trained: Any) -> None:
    chex.assert_trees_all_equal(state.batch_stats, trained.batch_stats)
    for frozen in ("hidden0", "norm0", "norm1"):
        chex.assert_trees_all_equal(state.params[frozen], trained.params[frozen])
    for name in ("hidden1", "logits"):
        new, old = (np.asarray(one.params[name]["kernel"]) for one in (state, trained))
        assert np.all(new != old)


def test_frozen_parts_of_a_fine_tuned_run_stay_bit_for_bit(
    tuned: Complete, trained: Any
) -> None:
    assert_frozen_parts_stay(final_state(tuned.config, tuned.workdir), trained)


def test_a_resumed_run_does_not_read_the_other_run_again(
    bn: Complete, idx_dir: Path, tuned: Complete, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(bn.workdir, other)
    config = tiny_config(idx_dir, init_from=str(other), **TUNING)
    interrupt(config, tmp_path / "new", step=20)
    shutil.rmtree(other)
    complete_run(config, tmp_path / "new")
    chex.assert_trees_all_equal(
        final_state(config, tmp_path / "new").variables,
        final_state(tuned.config, tuned.workdir).variables,
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["jit", "shard_map", "pmap"])
def test_frozen_parts_stay_on_several_devices(
    bn: Complete, idx_dir: Path, trained: Any, tmp_path: Path, mode: str
) -> None:
    devices = {"batch_size": 24, "parallel__mode": mode, "parallel__num_devices": 4}
    config = tiny_config(idx_dir, init_from=str(bn.workdir), **(TUNING | devices))
    complete_run(config, tmp_path)
    assert_frozen_parts_stay(final_state(config, tmp_path), trained)
