"""Shards of a step's examples, disjoint and together complete."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from bn_jax.training.distributed.parallel import make_parallel, put_sharded

INDICES = np.random.default_rng(0).permutation(3 * 2 * 16).reshape(3, 2, 16)


@pytest.fixture
def reads() -> list[np.ndarray]:
    """Indices of the examples that were read, a device after the other."""
    return []


@pytest.fixture
def read(reads: list[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Reads examples of two pixels, each the example's own index."""

    def read(indices: np.ndarray) -> np.ndarray:
        if indices.size:
            reads.append(np.asarray(indices))
        return np.stack([indices, indices], axis=-1)

    return read


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_shards_of_a_step_are_disjoint_and_complete(
    reads: list[np.ndarray],
    read: Callable[[np.ndarray], np.ndarray],
    num_devices: int,
) -> None:
    put_sharded(make_parallel("jit", num_devices=num_devices), read, INDICES)
    assert [part.shape for part in reads] == [(3, 2, 16 // num_devices)] * num_devices
    for step in range(3):
        of_step = np.concatenate([part[step].reshape(-1) for part in reads])
        np.testing.assert_array_equal(np.sort(of_step), np.sort(INDICES[step].ravel()))


def test_a_device_holds_the_examples_that_were_read_for_it(
    read: Callable[[np.ndarray], np.ndarray],
) -> None:
    parallel = make_parallel("jit", num_devices=4)
    examples = put_sharded(parallel, read, INDICES)
    for i, shard in enumerate(examples.addressable_shards):
        mine = INDICES[:, :, 4 * i : 4 * (i + 1)]
        np.testing.assert_array_equal(shard.data[..., 0], mine)


def test_a_process_reads_only_for_its_own_devices(
    reads: list[np.ndarray],
    read: Callable[[np.ndarray], np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # JAX returns this in a process that has the third of four devices.
    def only_the_third(sharding: NamedSharding, shape: tuple[int, ...]) -> Any:
        places = list(sharding.devices_indices_map(shape).items())
        return dict(places[2:3])

    monkeypatch.setattr(
        NamedSharding, "addressable_devices_indices_map", only_the_third
    )
    monkeypatch.setattr(
        jax, "make_array_from_single_device_arrays", lambda *arguments: arguments
    )
    put_sharded(make_parallel("jit", num_devices=4), read, INDICES)
    (mine,) = reads
    np.testing.assert_array_equal(mine, INDICES[:, :, 8:12])
