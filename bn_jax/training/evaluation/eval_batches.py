"""Batches of the test set: kept on the devices, or read from the disk each time."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from bn_jax.data.batching import padded_batches
from bn_jax.data.dataset import Split
from bn_jax.training.distributed.parallel import Parallel, put_sharded
from bn_jax.training.evaluation.predict import PaddedBatches
from bn_jax.training.step.train_step import Examples


def make_test_reader(
    parallel: Parallel, split: Split, *, batch_size: int, batches_at_once: int = 1
) -> Callable[[], Iterable[PaddedBatches]]:
    """Returns a reader of a split; each call yields all examples, in pieces.

    A split in memory is one piece, which is put on the devices now and stays there. A
    split on disk may be too large for the memory: the validation images of ImageNet are
    7.5 GB. Its pieces are one or a few batches each, which are read one after another.

    Args:
        parallel: The devices, over which each batch is sharded.
        split: The examples.
        batch_size: Examples of a batch, on all devices together; rounded up to a
            multiple of the number of devices.
        batches_at_once: Batches of a piece, for a split on the disk. One call reads all
            examples of a piece for one device, so that more batches occupy more
            threads.
    """
    indices, is_example = padded_batches(
        len(split), batch_size, multiple_of=parallel.num_devices
    )

    def read(places: np.ndarray) -> tuple[np.ndarray, ...]:
        chosen = indices.reshape(-1)[places]
        return (*split.read(chosen, chosen), is_example.reshape(-1)[places])

    def put(batches: slice) -> PaddedBatches:
        places = np.arange(indices.size).reshape(indices.shape)[batches]
        images, labels, is_real = put_sharded(parallel, read, places)
        return PaddedBatches(Examples(images, labels), is_real)

    if split.is_in_memory:
        whole = put(slice(None))
        return lambda: [whole]
    starts = range(0, len(indices), batches_at_once)
    return lambda: (put(slice(start, start + batches_at_once)) for start in starts)


def add_up(
    sums: Callable[[PaddedBatches], PyTree],
    pieces: Iterable[PaddedBatches],
    *,
    should_stop: Callable[[], ArrayLike] | None = None,
) -> Any:
    """Returns the sums over all pieces of a test set.

    The next piece is read while the devices work on the current one, but not before
    they have completed the previous one. At most two pieces are in their memory.

    Args:
        sums: Dispatches the computation of a piece's sums.
        pieces: At least one piece.
        should_stop: Dispatches the question whether to stop early, once for each piece;
            `add_up` waits for the answer before the next piece.

    Returns:
        A tree like those that `sums` returns, still on the devices; None if the answer
        was to stop.
    """
    total, stop = None, None
    for piece in pieces:
        if stop is not None and bool(stop):
            return None
        stop = None if should_stop is None else should_stop()
        of_piece = sums(piece)
        jax.block_until_ready(total)
        total = of_piece if total is None else jax.tree.map(jnp.add, total, of_piece)
    return total
