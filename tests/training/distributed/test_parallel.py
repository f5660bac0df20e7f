"""One result on any number of devices, in every mode; and what is refused."""

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from training.tiny_runs import grouped, parts_of, tiny_config

from bn_jax.errors import UserError
from bn_jax.training.build import build_train_step
from bn_jax.training.distributed.parallel import (
    MODES,
    compile_stretch,
    make_parallel,
    put_sharded,
)
from bn_jax.training.parts import build_initial_state, read_batches
from bn_jax.training.step.state import TrainState

STEPS = 20
# Microbatches, the mode and devices; all but some of them are slow together.
_QUICK = [(1, "jit", 4), (1, "shard_map", 4), (1, "pmap", 4), (2, "shard_map", 2)]
PLACES = [
    pytest.param(*place, marks=() if place in _QUICK else pytest.mark.slow)
    for place in product((1, 2), MODES, (1, 2, 4, 8))
]
_QUICK_UNSYNCED = [(2, "shard_map")]
UNSYNCED = [
    pytest.param(*place, marks=() if place in _QUICK_UNSYNCED else pytest.mark.slow)
    for place in product((1, 2), MODES)
]


class Trained(NamedTuple):
    """Loss of each step, and the state before the first and after the last."""

    losses: np.ndarray
    before: TrainState
    after: TrainState


class Stretch(NamedTuple):
    """A compiled stretch of steps, which returns their losses, and its arguments."""

    steps: Callable[[Any, Any], tuple[TrainState, Any]]
    state: TrainState
    batches: Any


def stretch(config: ConfigDict, *, num_steps: int) -> Stretch:
    parts = parts_of(config)
    step = build_train_step(grouped(config), parts)
    steps = compile_stretch(
        parts.parallel, lambda state, batches: jax.lax.scan(step, state, batches)
    )
    batches = read_batches(parts, 0, num_steps)
    return Stretch(steps, build_initial_state(parts), batches)


@cache
def train(
    idx_dir: Path,
    mode: str,
    num_devices: int,
    *,
    group_size: int | None = None,
    **settings: Any,
) -> Trained:
    config = tiny_config(
        idx_dir,
        batch_size=48,
        optimizer__learning_rate=0.5,
        norm__momentum=0.9,
        parallel__mode=mode,
        parallel__num_devices=num_devices,
        **settings,
    )
    if group_size is not None:
        with config.unlocked():
            config.norm.group_size = group_size
    steps, state, batches = stretch(config, num_steps=STEPS)
    after, losses = steps(state, batches)
    return Trained(np.asarray(losses), state, after)


def assert_same_training(found: Trained, expected: Trained) -> None:
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(
        *(jax.device_get(of.after[1:3]) for of in (found, expected)),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(("num_microbatches", "mode", "num_devices"), PLACES)
def test_every_mode_on_any_number_of_devices_trains_the_same(
    idx_dir: Path, num_microbatches: int, mode: str, num_devices: int
) -> None:
    expected = train(idx_dir, "jit", 1, accumulation_steps=num_microbatches)
    found = train(idx_dir, mode, num_devices, accumulation_steps=num_microbatches)
    assert_same_training(found, expected)


@pytest.mark.parametrize(("num_microbatches", "mode"), UNSYNCED)
def test_statistics_of_each_device_are_those_of_groups_on_one(
    idx_dir: Path, num_microbatches: int, mode: str
) -> None:
    accumulation = {"accumulation_steps": num_microbatches}
    size = 12 // num_microbatches
    expected = train(idx_dir, "jit", 1, group_size=size, **accumulation)
    found = train(idx_dir, mode, 4, norm__sync=False, **accumulation)
    assert_same_training(found, expected)


def test_statistics_of_each_device_are_not_those_of_all(idx_dir: Path) -> None:
    # The results that the test above compares would also agree if `sync` did nothing.
    expected = train(idx_dir, "jit", 1, accumulation_steps=2)
    found = train(idx_dir, "shard_map", 4, norm__sync=False, accumulation_steps=2)
    assert np.abs(found.losses - expected.losses).max() > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_the_state_is_the_same_on_every_device(idx_dir: Path, mode: str) -> None:
    state = train(idx_dir, mode, 4, accumulation_steps=1).after
    for leaf in jax.tree.leaves((state.params, state.batch_stats, state.tally)):
        assert leaf.is_fully_replicated
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 4
        chex.assert_trees_all_equal(*copies)


@pytest.mark.parametrize("mode", MODES)
def test_the_state_that_is_passed_in_is_donated(idx_dir: Path, mode: str) -> None:
    state = train(idx_dir, mode, 4, accumulation_steps=1).before
    assert state.params["hidden0"]["kernel"].is_deleted()


def test_each_device_reads_its_own_examples() -> None:
    parallel = make_parallel("jit", num_devices=4)
    asked = []

    def read(indices: np.ndarray) -> np.ndarray:
        asked.append(indices.shape)
        return np.stack([indices, -indices], axis=-1)

    indices = np.arange(24).reshape(3, 8)
    array = put_sharded(parallel, read, indices)
    np.testing.assert_array_equal(array, np.stack([indices, -indices], axis=-1))
    assert asked == [(3, 2)] * 4
    for number, shard in enumerate(array.addressable_shards):
        part = indices[:, 2 * number : 2 * number + 2]
        np.testing.assert_array_equal(shard.data[..., 0], part)


def test_the_first_devices_are_taken() -> None:
    parallel = make_parallel("jit", num_devices=3)
    assert list(parallel.mesh.devices) == jax.devices()[:3]
    assert make_parallel("pmap").num_devices == 8


def test_devices_may_be_chosen() -> None:
    chosen = jax.devices()[5:7]
    assert list(make_parallel("jit", devices=chosen).mesh.devices) == chosen


@pytest.mark.parametrize(("num_devices", "waits"), [(1, False), (2, True)])
def test_several_devices_of_a_cpu_take_one_program_at_a_time(
    num_devices: int, waits: bool
) -> None:
    assert make_parallel("jit", num_devices=num_devices).must_wait == waits


def test_an_unknown_mode_is_refused() -> None:
    expected = "must be one of jit, shard_map, pmap, but is 'xmap'"
    with pytest.raises(UserError, match=expected):
        make_parallel("xmap")


@pytest.mark.parametrize("num_devices", [-1, 0, 9])
def test_devices_that_are_not_there_are_refused(num_devices: int) -> None:
    expected = f"num_devices must lie in 1 to 8, .* but is {num_devices}"
    with pytest.raises(UserError, match=expected):
        make_parallel("jit", num_devices=num_devices)


def test_several_processes_use_all_of_their_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    expected = r"num_devices must be 8 or None .* use all devices, but is 4"
    with pytest.raises(UserError, match=expected):
        make_parallel("jit", num_devices=4)


@pytest.mark.parametrize(
    ("num_devices", "accumulation_steps", "parts"),
    [(4, 1, "4, which is 4 devices"), (1, 4, "4, .* 1 d"), (2, 5, "10, .* 2 d")],
)
def test_a_batch_that_cannot_be_divided_is_refused(
    idx_dir: Path, num_devices: int, accumulation_steps: int, parts: str
) -> None:
    config = tiny_config(
        idx_dir,
        parallel__num_devices=num_devices,
        accumulation_steps=accumulation_steps,
    )
    expected = f"batch_size=25 must be divisible by {parts}"
    with pytest.raises(UserError, match=expected):
        parts_of(config)
