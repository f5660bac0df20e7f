"""Trained networks that are loaded for use in Python."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from training.tiny_runs import Complete, complete_run, final_state, tiny_config

from bn_jax.data.idx import load_idx_folder
from bn_jax.errors import UserError
from bn_jax.training import load
from bn_jax.training.step.metrics import cross_entropy


def test_a_loaded_network_is_that_of_the_checkpoint(
    bn: Complete, idx_dir: Path
) -> None:
    trained = load(bn.workdir)
    state = final_state(bn.config, bn.workdir)
    jax.tree.map(np.testing.assert_array_equal, trained.variables, state.variables)
    assert (trained.step, trained.num_classes) == (60, 10)
    assert trained.config.optimizer.learning_rate == 2.0
    assert trained.averaged_variables is None
    images = trained.preprocess(load_idx_folder(idx_dir).test.images)
    scores = trained.model.apply(trained.variables, images, train=False)
    assert scores.shape == (97, 10)
    assert len(jax.tree.leaves(trained.variables)[0].devices()) == 1


def test_a_network_shows_its_name_and_steps_and_is_no_nnx_module(bn: Complete) -> None:
    trained = load(bn.workdir)
    assert repr(trained) == "Trained(step=60, 'mlp', num_classes=10)"
    with pytest.raises(UserError, match=r"nnx_model: .* MLP, is a Linen module; call"):
        trained.nnx_model()


def test_a_network_without_norms_scores_as_in_training(
    baseline: Complete, idx_dir: Path
) -> None:
    trained, data = load(str(baseline.workdir)), load_idx_folder(idx_dir)
    images = trained.preprocess(data.test.images)
    scores = trained.model.apply(trained.variables, images, train=False)
    loss = np.mean(cross_entropy(scores, data.test.labels))
    assert loss == pytest.approx(baseline.metrics["test_loss"][-1], rel=1e-5)


def test_data_and_other_steps_are_not_needed(tmp_path: Path, idx_dir: Path) -> None:
    data = shutil.copytree(idx_dir, tmp_path / "data")
    config = tiny_config(
        data, num_steps=10, ema_decay=0.5, checkpoint__every_steps=5, checkpoint__keep=2
    )
    complete_run(config, tmp_path / "run")
    shutil.rmtree(data)
    first, last = load(tmp_path / "run", step=5), load(tmp_path / "run")
    assert (first.step, last.step) == (5, 10)
    assert last.averaged_variables is not None
    averaged = last.averaged_variables["params"]["logits"]["bias"]
    assert np.any(averaged != last.variables["params"]["logits"]["bias"])
    with pytest.raises(UserError, match="of step 7, but holds those of 5, 10"):
        load(tmp_path / "run", step=7)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        load(tmp_path)
