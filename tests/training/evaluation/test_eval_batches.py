"""The test set in parts: each example once, read when it is its turn."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_jax.data.dataset import ArraySplit
from bn_jax.training.distributed.parallel import make_parallel
from bn_jax.training.evaluation.eval_batches import add_up, make_test_reader
from bn_jax.training.evaluation.predict import PaddedBatches

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (97, 4, 3, 1), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 97).astype(np.int32)
IN_MEMORY = ArraySplit(IMAGES, LABELS)
# Devices, and the batch of 40 that is divided among them.
DEVICES = [(1, 40), (8, 40), (3, 42)]


class OnDisk:
    """A split that acts like one on disk and records the size of each read."""

    is_in_memory = False

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(IN_MEMORY)

    def read(self, indices: np.ndarray, positions: np.ndarray) -> Any:
        self.asked.append(indices.size)
        return IN_MEMORY.read(indices, positions)


def joined(parts: list[PaddedBatches]) -> tuple[np.ndarray, ...]:
    """All that is no filling, in its order."""
    found = []
    for part in parts:
        is_example = np.asarray(part.is_example)
        found.append([np.asarray(leaf)[is_example] for leaf in part.examples])
    return tuple(np.concatenate(leaves) for leaves in zip(*found, strict=True))


def sums(part: PaddedBatches) -> dict[str, jax.Array]:
    is_example = part.is_example
    values = jnp.mean(part.examples.images, axis=(2, 3, 4))
    return {
        "mean": jnp.sum(values, where=is_example),
        "label": jnp.sum(part.examples.labels, where=is_example),
        "number": jnp.sum(is_example),
    }


@pytest.mark.parametrize("split", [IN_MEMORY, OnDisk()], ids=["memory", "disk"])
@pytest.mark.parametrize(("num_devices", "batch"), DEVICES)
def test_the_test_set_is_there_once(split: Any, num_devices: int, batch: int) -> None:
    parallel = make_parallel("jit", num_devices=num_devices)
    parts = list(make_test_reader(parallel, split, batch_size=40)())
    assert sum(len(part.is_example) for part in parts) == 3
    assert {part.is_example.shape[1] for part in parts} == {batch}
    images, labels = joined(parts)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_what_is_in_memory_goes_to_the_devices_once() -> None:
    read = make_test_reader(make_parallel("jit"), IN_MEMORY, batch_size=40)
    (first,), (second,) = read(), read()
    assert first is second
    assert first.is_example.shape == (3, 40)


def test_a_batch_of_the_disk_is_read_when_it_is_its_turn() -> None:
    split = OnDisk()
    parallel = make_parallel("jit", num_devices=2)
    parts = iter(make_test_reader(parallel, split, batch_size=40)())
    assert split.asked == []
    for number in (1, 2, 3):
        next(parts)
        # Each device its half.
        assert split.asked == [20, 20] * number


def test_several_batches_of_the_disk_are_read_at_once_where_one_is_small() -> None:
    split = OnDisk()
    read = make_test_reader(
        make_parallel("jit", num_devices=2), split, batch_size=20, batches_at_once=3
    )
    parts = list(read())
    assert [part.is_example.shape for part in parts] == [(3, 20), (2, 20)]
    # Each device its half.
    assert split.asked == [30, 30, 20, 20]
    images, labels = joined(parts)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_the_disk_is_read_again_each_time() -> None:
    split = OnDisk()
    parallel = make_parallel("jit", num_devices=1)
    read = make_test_reader(parallel, split, batch_size=97)
    for number in (1, 2):
        joined(list(read()))
        assert split.asked == [97] * number


@pytest.mark.parametrize("batch_size", [1, 10, 96, 97, 1000])
@pytest.mark.parametrize("num_devices", [1, 4])
def test_sums_are_the_same_whatever_is_read_at_once(
    num_devices: int, batch_size: int
) -> None:
    parallel = make_parallel("jit", num_devices=num_devices)
    expected = {
        "mean": IMAGES.mean(axis=(1, 2, 3), dtype=np.float64).sum(),
        "label": LABELS.sum(),
        "number": 97,
    }
    for split in (IN_MEMORY, OnDisk()):
        read = make_test_reader(parallel, split, batch_size=batch_size)
        found = add_up(jax.jit(sums), read())
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(value, rel=1e-5)


def test_a_part_is_read_while_the_last_is_worked_on_and_the_one_before_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []

    def parts() -> Iterator[Any]:
        for number in range(3):
            events.append(f"read {number}")
            yield number

    def dispatch(part: Any) -> jax.Array:
        events.append(f"dispatch {part}")
        return jnp.asarray(part)

    def wait(total: jax.Array | None) -> None:
        events.append("wait" if total is None else f"wait for {int(total)}")

    monkeypatch.setattr(jax, "block_until_ready", wait)
    assert int(add_up(dispatch, parts())) == 3
    assert events == [
        *("read 0", "dispatch 0", "wait"),
        *("read 1", "dispatch 1", "wait for 0"),
        *("read 2", "dispatch 2", "wait for 1"),
    ]


def test_nothing_more_is_read_once_somebody_asks_to_stop() -> None:
    answers, seen = iter([0, 15, 0]), []

    def parts() -> Iterator[Any]:
        for number in range(5):
            seen.append(number)
            yield number

    found = add_up(jnp.asarray, parts(), should_stop=lambda: next(answers))
    assert found is None
    # The answer to the second question is read before the third part is worked on.
    assert seen == [0, 1, 2]
    assert next(answers) == 0
