"""The parts of a run: which examples each step gets, and what shares statistics."""

from functools import partial
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from training.tiny_runs import grouped, initial_state, parts_of, tiny_config

from bn_jax.data.batching import batch_indices
from bn_jax.data.idx import load_idx_folder
from bn_jax.errors import UserError
from bn_jax.training.build import build_train_step, describe_normalization
from bn_jax.training.parts import (
    errors_naming_config,
    read_batches,
)
from bn_jax.training.step.state import init_state


def refuse() -> None:
    with errors_naming_config():
        raise ValueError("group_size=48 must divide the batch of 128.")


@pytest.mark.parametrize(("num_devices", "microbatches"), [(1, 1), (1, 5), (4, 2)])
def test_each_step_gets_its_examples_in_microbatches(
    idx_dir: Path, num_devices: int, microbatches: int
) -> None:
    batch_size = 25 if num_devices == 1 else 24
    config = tiny_config(
        idx_dir,
        batch_size=batch_size,
        accumulation_steps=microbatches,
        parallel__num_devices=num_devices,
    )
    batches = read_batches(parts_of(config), 7, 3)
    data = load_idx_folder(idx_dir)
    order = batch_indices(210, batch_size, seed=0, first_step=7, num_steps=3)
    order = order.reshape(3, microbatches, -1)
    np.testing.assert_array_equal(batches.images, data.train.images[order])
    np.testing.assert_array_equal(batches.labels, data.train.labels[order])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "24 of 24 examples"),
        ({"accumulation_steps": 3}, "8 of 24 examples"),
        (
            {"parallel__num_devices": 4},
            "24 of 24 examples on 4 devices",
        ),
        (
            {"parallel__num_devices": 4, "norm__sync": False},
            "6 of 24 examples, separately on each of 4 devices",
        ),
        (
            {"parallel__num_devices": 2, "norm__sync": False, "accumulation_steps": 3},
            "4 of 24 examples, separately on each of 2 devices",
        ),
    ],
)
def test_what_shares_statistics_is_said_in_words(
    idx_dir: Path, settings: dict, expected: str
) -> None:
    config = grouped(tiny_config(idx_dir, batch_size=24, **settings))
    assert describe_normalization(config, parts_of(config)) == expected


def test_a_network_without_norms_says_so(idx_dir: Path) -> None:
    config = tiny_config(idx_dir, arm="baseline")
    description = describe_normalization(config, parts_of(config))
    assert description == "none"


def test_frozen_norms_say_that_no_batch_counts(idx_dir: Path) -> None:
    config = tiny_config(idx_dir, norm__frozen=True)
    description = describe_normalization(config, parts_of(config))
    assert description == "running statistics, frozen (config.norm.frozen)"


def test_a_network_of_fewer_classes_than_the_data_is_refused(idx_dir: Path) -> None:
    config = tiny_config(idx_dir)
    with config.unlocked():
        config.model.num_classes = 9
    expected = r"config\.model\.num_classes=9 .* the 10 classes of digits"
    with pytest.raises(UserError, match=expected):
        parts_of(config)


@pytest.mark.slow
def test_labels_are_smoothed_as_the_configuration_says(idx_dir: Path) -> None:
    losses = {}
    for smoothing in (0.0, 0.5):
        config = tiny_config(idx_dir, label_smoothing=smoothing)
        parts, state = parts_of(config), initial_state(config)
        one = jax.tree.map(lambda leaf: leaf[0], read_batches(parts, 0, 1))
        losses[smoothing] = float(build_train_step(config, parts)(state, one)[1])
    # Every score is near 0 at first, and so is all that smoothing changes.
    assert losses[0.0] != losses[0.5]
    assert losses[0.0] == pytest.approx(losses[0.5], rel=0.2)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_an_average_of_the_parameters_is_kept_where_it_is_wanted(
    idx_dir: Path, ema_decay: float | None
) -> None:
    state = initial_state(tiny_config(idx_dir, ema_decay=ema_decay))
    wanted = {} if ema_decay is None else state.params
    assert jax.tree.structure(state.ema_params) == jax.tree.structure(wanted)


def test_what_a_layer_refuses_is_an_error_of_the_configuration() -> None:
    with pytest.raises(UserError, match=r"^config: group_size=48 must divide"):
        refuse()


# Programs without XLA's optimizations differ in the last bits.
@pytest.mark.slow
def test_initial_weights_are_those_that_any_program_draws(idx_dir: Path) -> None:
    config = tiny_config(idx_dir)
    parts = parts_of(config)
    init = partial(init_state, parts.model, parts.tx)
    image, _ = parts.data.train.read(np.zeros(1, int), np.zeros(1, int))
    expected = jax.jit(init)(key=jax.random.key(0), example=parts.preprocess(image))
    chex.assert_trees_all_equal(initial_state(config).params, expected.params)
