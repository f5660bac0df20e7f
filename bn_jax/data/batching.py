"""Which examples make up a training step, and a data set cut into batches."""

from functools import lru_cache

import numpy as np


def batch_indices(
    num_examples: int,
    batch_size: int,
    *,
    seed: int,
    first_step: int,
    num_steps: int,
) -> np.ndarray:
    """Indices of the examples of each step, every example once an epoch.

    Each epoch is a permutation of its own. Steps follow each other through the
    epochs without a gap: where an epoch is no multiple of the batch size, a batch
    takes the last examples of one and the first of the next.

    Args:
        num_examples: Examples in the training set.
        batch_size: Examples of each step.
        seed: Chooses the permutations.
        first_step: Steps before the first one asked for.
        num_steps: Steps asked for.

    Returns:
        int32 array `(num_steps, batch_size)`, the same however a run is cut up.

    >>> whole = batch_indices(5, 2, seed=0, first_step=0, num_steps=5)
    >>> sorted(whole.reshape(2, 5)[0].tolist())
    [0, 1, 2, 3, 4]
    >>> last = batch_indices(5, 2, seed=0, first_step=3, num_steps=2)
    >>> (last == whole[3:]).all()
    np.True_
    """
    first = first_step * batch_size
    count = num_steps * batch_size
    epochs = range(first // num_examples, (first + count - 1) // num_examples + 1)
    order = np.concatenate([_epoch_order(num_examples, seed, e) for e in epochs])
    start = first % num_examples
    return order[start : start + count].astype(np.int32).reshape(num_steps, batch_size)


def padded_batches(
    num_examples: int, batch_size: int, *, multiple_of: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of all examples in batches of one size, the last one filled up.

    Args:
        num_examples: Examples of the data set.
        batch_size: Examples a batch; fewer when there are not that many.
        multiple_of: The size of a batch is rounded up to a multiple of this.

    Returns:
        Indices `(batches, batch)` and booleans of that shape, False where a repeated
        example only fills up the last batch.

    >>> padded_batches(3, 2)[0].tolist()
    [[0, 1], [2, 2]]
    """
    batch_size = -(-min(batch_size, num_examples) // multiple_of) * multiple_of
    num_batches = -(-num_examples // batch_size)
    index = np.arange(num_batches * batch_size).reshape(num_batches, batch_size)
    return np.minimum(index, num_examples - 1), index < num_examples


# Many calls ask for parts of the same epoch.
@lru_cache(maxsize=4)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng((seed, epoch)).permutation(num_examples)
    order.flags.writeable = False
    return order
