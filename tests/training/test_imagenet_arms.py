"""Each arm of the ImageNet experiment takes steps on a tiny ImageNet, made tiny."""

from functools import partial
from typing import Any

import chex
import jax
import numpy as np
import pytest
from data.imagenet_files import write_tars

from bn_jax.data.prepare_imagenet import prepare_imagenet
from bn_jax.experiments.configs import load_config
from bn_jax.models import inception_table
from bn_jax.training.build import (
    Parts,
    build_initial_state,
    build_parts,
    build_train_step,
    read_batches,
)
from bn_jax.training.parallel import compile_chunk, make_parallel
from bn_jax.training.state import init_state
from bn_jax.training.steps import make_train_chunk

ARMS = ("inception", "bn_baseline", "bn_x5", "bn_x30", "bn_x5_sigmoid", "modern")
# 43 training images; the stem needs 23 pixels.
TINY = {
    "batch_size": 8,
    "model.width": 1 / 64,
    "dataset.image_size": 32,
    "parallel.num_devices": 1,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("imagenet")
    prepare_imagenet(write_tars(folder), folder, is_subset=True)
    return str(folder)


def tiny(arm: str, data_dir: str) -> tuple[Any, Parts]:
    config = load_config("imagenet_inception.py", arm)
    config.update_from_flattened_dict({"dataset.data_dir": data_dir, **TINY})
    return config, build_parts(config, make_parallel(**config.parallel))


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_the_whole_network_of_an_arm_is_built(arm: str, data_dir: str) -> None:
    config, parts = tiny(arm, data_dir)
    one = jax.tree.map(lambda leaf: leaf[0], read_batches(config, parts, 0, 1))
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
    # All ten take minutes to compile.
    rows = [row for row in inception_table.FIGURE_5 if row.name in ("3c", "4d")]
    monkeypatch.setattr(inception_table, "FIGURE_5", tuple(rows))
    config, parts = tiny(arm, data_dir)
    with jax.default_prng_impl("rbg"):
        state = build_initial_state(config, parts)
    before = np.asarray(state.params["logits"]["bias"])
    chunk = make_train_chunk(build_train_step(config, parts))
    # Two: the first one of a warm-up has a rate of 0.
    batches = read_batches(config, parts, 0, 2)
    state, tally = compile_chunk(parts.parallel, chunk)(state, batches)
    chex.assert_tree_all_finite(state.params)
    assert (int(state.step), int(tally.num_losses)) == (2, 2)
    # The scores of the 1,000 classes lie near each other at first.
    assert float(tally.loss_sum) / 2 == pytest.approx(np.log(1000), rel=0.3)
    # Others may belong to a unit that is 0 for all of eight images.
    assert (np.asarray(state.params["logits"]["bias"]) != before).all()
