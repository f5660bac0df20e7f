"""The test set in pieces: each example is read once, when it is needed."""

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
# Number of devices, and a batch of 40 rounded up to a multiple of it.
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


def joined(pieces: list[PaddedBatches]) -> tuple[np.ndarray, ...]:
    """Returns the images and labels without padding, in their order."""
    found = []
    for piece in pieces:
        is_example = np.asarray(piece.is_example)
        found.append([np.asarray(leaf)[is_example] for leaf in piece.examples])
    return tuple(np.concatenate(leaves) for leaves in zip(*found, strict=True))


def sums(piece: PaddedBatches) -> dict[str, jax.Array]:
    is_example = piece.is_example
    values = jnp.mean(piece.examples.images, axis=(2, 3, 4))
    return {
        "mean": jnp.sum(values, where=is_example),
        "label": jnp.sum(piece.examples.labels, where=is_example),
        "number": jnp.sum(is_example),
    }


@pytest.mark.parametrize("split", [IN_MEMORY, OnDisk()], ids=["memory", "disk"])
@pytest.mark.parametrize(("num_devices", "batch"), DEVICES)
def test_the_test_set_is_there_once(split: Any, num_devices: int, batch: int) -> None:
    parallel = make_parallel("jit", num_devices=num_devices)
    pieces = list(make_test_reader(parallel, split, batch_size=40)())
    assert sum(len(piece.is_example) for piece in pieces) == 3
    assert {piece.is_example.shape[1] for piece in pieces} == {batch}
    images, labels = joined(pieces)
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
    pieces = iter(make_test_reader(parallel, split, batch_size=40)())
    assert split.asked == []
    for number in (1, 2, 3):
        next(pieces)
        # Each device reads half of the batch.
        assert split.asked == [20, 20] * number


def test_several_batches_of_the_disk_are_read_at_once_where_one_is_small() -> None:
    split = OnDisk()
    read = make_test_reader(
        make_parallel("jit", num_devices=2), split, batch_size=20, batches_at_once=3
    )
    pieces = list(read())
    assert [piece.is_example.shape for piece in pieces] == [(3, 20), (2, 20)]
    # Each device reads half of the piece.
    assert split.asked == [30, 30, 20, 20]
    images, labels = joined(pieces)
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


def test_a_piece_is_read_while_the_last_is_worked_on_and_the_one_before_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []

    def pieces() -> Iterator[Any]:
        for number in range(3):
            events.append(f"read {number}")
            yield number

    def dispatch(piece: Any) -> jax.Array:
        events.append(f"dispatch {piece}")
        return jnp.asarray(piece)

    def wait(total: jax.Array | None) -> None:
        events.append("wait" if total is None else f"wait for {int(total)}")

    monkeypatch.setattr(jax, "block_until_ready", wait)
    assert int(add_up(dispatch, pieces())) == 3
    assert events == [
        *("read 0", "dispatch 0", "wait"),
        *("read 1", "dispatch 1", "wait for 0"),
        *("read 2", "dispatch 2", "wait for 1"),
    ]


def test_nothing_more_is_read_once_somebody_asks_to_stop() -> None:
    answers, seen = iter([0, 15, 0]), []

    def pieces() -> Iterator[Any]:
        for number in range(5):
            seen.append(number)
            yield number

    found = add_up(jnp.asarray, pieces(), should_stop=lambda: next(answers))
    assert found is None
    # `add_up` waits for the second answer before it dispatches the third piece.
    assert seen == [0, 1, 2]
    assert next(answers) == 0
