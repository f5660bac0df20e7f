"""The test set in batches: kept on the devices, or read from the disk each time."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from bn_jax.data.batching import padded_batches
from bn_jax.data.dataset import Split
from bn_jax.training.distributed.parallel import Parallel, put_split
from bn_jax.training.evaluation.predict import PaddedBatches
from bn_jax.training.steps import Examples


def make_test_reader(
    parallel: Parallel, split: Split, *, batch_size: int, batches_at_once: int = 1
) -> Callable[[], Iterable[PaddedBatches]]:
    """A function that gives every example of a split, in parts to be read in turn.

    A split in memory is one part, on the devices from now on. Of another one each part
    is a batch or a few, read when it is its turn: ImageNet's validation images are
    7.5 GB.

    Args:
        parallel: The devices, over which each batch is split.
        split: The examples.
        batch_size: Examples at once, on all devices together; rounded up to a multiple
            of their number.
        batches_at_once: Of what is not in memory, how many batches a part has. A
            device's examples of all of them are read by as many threads as there are.
    """
    indices, is_example = padded_batches(
        len(split), batch_size, multiple_of=parallel.num_devices
    )

    def read(places: np.ndarray) -> tuple[np.ndarray, ...]:
        chosen = indices.reshape(-1)[places]
        return (*split.read(chosen, chosen), is_example.reshape(-1)[places])

    def put(batches: slice) -> PaddedBatches:
        places = np.arange(indices.size).reshape(indices.shape)[batches]
        images, labels, is_real = put_split(parallel, read, places)
        return PaddedBatches(Examples(images, labels), is_real)

    if split.is_in_memory:
        whole = put(slice(None))
        return lambda: [whole]
    starts = range(0, len(indices), batches_at_once)
    return lambda: (put(slice(start, start + batches_at_once)) for start in starts)


def add_up(
    sums: Callable[[PaddedBatches], PyTree],
    parts: Iterable[PaddedBatches],
    *,
    should_stop: Callable[[], ArrayLike] | None = None,
) -> Any:
    """Sums over all parts of a test set.

    The next part is read while the devices work on the last one, and not before they
    are through with the one before it: two parts at most take their memory.

    Args:
        sums: Dispatches what gives the sums of a part.
        parts: One at least.
        should_stop: Dispatches the question whether to give up, once a part; the
            answer is waited for before the next.

    Returns:
        A tree as `sums` gives it, still on the devices; None if it was given up.
    """
    total, stop = None, None
    for part in parts:
        if stop is not None and bool(stop):
            return None
        stop = None if should_stop is None else should_stop()
        of_part = sums(part)
        jax.block_until_ready(total)
        total = of_part if total is None else jax.tree.map(jnp.add, total, of_part)
    return total
