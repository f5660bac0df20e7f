"""Each arm of the ImageNet experiment takes steps on a tiny ImageNet, made tiny."""

from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from data.imagenet_files import write_tars
from training.tiny_runs import interrupt

from bn_jax.data.imagenet.crops import NUM_CROPS
from bn_jax.data.preparation.imagenet import prepare_imagenet
from bn_jax.models.inception import table
from bn_jax.training.build import build_parts, build_train_step
from bn_jax.training.checkpoints.checkpoint import Checkpoints
from bn_jax.training.config_files import load_config
from bn_jax.training.distributed.parallel import compile_stretch, make_parallel
from bn_jax.training.evaluation.ensemble import ensemble
from bn_jax.training.evaluation.evaluate import evaluate
from bn_jax.training.loop import train
from bn_jax.training.parts import (
    Parts,
    build_initial_state,
    read_batches,
)
from bn_jax.training.step.state import init_state
from bn_jax.training.step.train_step import make_train_stretch
from bn_jax.workdir.files import read_metrics

ARMS = ("inception", "bn_baseline", "bn_x5", "bn_x30", "bn_x5_sigmoid", "modern")
# 43 training images; the stem needs 23 pixels.
TINY = {
    "batch_size": 8,
    "model.width": 1 / 64,
    "dataset.image_size": 32,
    "parallel.num_devices": 1,
}
# Settings of some networks of the paper's ensemble, for two steps.
ENSEMBLE_MEMBER = {
    "model.dropout_rate": 0.05,
    "model.per_activation_modules": ("5b",),
    "model.kernel_gain": 1.5,
    "num_steps": 2,
    "max_steps_per_dispatch": 1,
    "evaluation.schedule.every_steps": 1,
    "evaluation.batch_size": 12,
    "evaluation.population_batches": 1,
    "checkpoint.every_steps": 1,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("imagenet")
    prepare_imagenet(write_tars(folder), folder, is_subset=True)
    return str(folder)


def tiny(arm: str, data_dir: str) -> tuple[Any, Parts]:
    config = load_config(f"imagenet_inception:{arm}")
    config.update_from_flattened_dict({"dataset.data_dir": data_dir, **TINY})
    return config, build_parts(config, make_parallel(**config.parallel))


def leave_modules(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Makes the network one of these modules: all ten take minutes to compile."""
    rows = [row for row in table.FIGURE_5 if row.name in names]
    monkeypatch.setattr(table, "FIGURE_5", tuple(rows))


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_the_whole_network_of_an_arm_is_built(arm: str, data_dir: str) -> None:
    config, parts = tiny(arm, data_dir)
    one = jax.tree.map(lambda leaf: leaf[0], read_batches(parts, 0, 1))
    init = partial(init_state, parts.model, parts.tx, key=jax.random.key(0))
    state = jax.eval_shape(init, example=parts.preprocess(one.images[0]))
    # A mapped step has no axis here.
    parts = parts._replace(mapped_model=parts.model, parallel=make_parallel("jit"))
    new_state, loss = jax.eval_shape(build_train_step(config, parts), state, one)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
    chex.assert_shape(loss, ())
    assert len(new_state.batch_stats) == (0 if arm == "inception" else 69)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_with_two_modules_takes_steps(
    arm: str, data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_modules(monkeypatch, "3c", "4d")
    config, parts = tiny(arm, data_dir)
    state = build_initial_state(parts)
    before = np.asarray(state.params["logits"]["bias"])
    chunk = make_train_stretch(build_train_step(config, parts))
    # Two: the first one of a warm-up has a rate of 0.
    batches = read_batches(parts, 0, 2)
    state, tally = compile_stretch(parts.parallel, chunk)(state, batches)
    chex.assert_tree_all_finite(state.params)
    assert (int(state.step), int(tally.num_losses)) == (2, 2)
    # The scores of the 1,000 classes lie near each other at first.
    assert float(tally.loss_sum) / 2 == pytest.approx(np.log(1000), rel=0.3)
    # Others may belong to a unit that is 0 for all of eight images.
    assert (np.asarray(state.params["logits"]["bias"]) != before).all()


@pytest.mark.slow
def test_members_of_an_ensemble_are_trained_go_on_and_are_averaged_over_all_crops(
    data_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_modules(monkeypatch, "4d", "5b")
    config = load_config("imagenet_inception:bn_x30")
    config.update_from_flattened_dict(
        {"dataset.data_dir": data_dir, **TINY, **ENSEMBLE_MEMBER}
    )
    workdirs = [tmp_path / name for name in ("first", "second")]
    for seed, workdir in enumerate(workdirs):
        config.seed = seed
        interrupt(config, workdir, where=Checkpoints, method="save", step=2)
        train(config, workdir, show_progress=False)
        assert [line["step"] for line in read_metrics(workdir)] == [1, 2]
    found = ensemble(workdirs, statistics="population", crops=NUM_CROPS)
    assert found.num_examples == 12
    for workdir, member in zip(workdirs, found.members, strict=True):
        alone = evaluate(workdir, statistics="population", crops=NUM_CROPS)
        assert alone.step == 2
        assert member.metrics == pytest.approx(alone.metrics, rel=1e-5)
    # The mean of probabilities has no higher loss than the members have on average.
    losses = [member.metrics["test_loss"] for member in found.members]
    assert losses[0] != losses[1]
    assert found.metrics["test_loss"] <= np.mean(losses)
