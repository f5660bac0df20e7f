"""Choice of the examples of each training step, and padded evaluation batches."""

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
    """Returns the indices of the examples of some steps.

    Each epoch is a random permutation of all examples. If the batch size does not
    divide the number of examples, a batch that crosses the end of an epoch takes the
    last examples of that epoch and the first examples of the next.

    Args:
        num_examples: Number of examples in the training set.
        batch_size: Number of examples in a step.
        seed: Seed of the permutations.
        first_step: Number of the first step to return, from 0.
        num_steps: Number of steps to return.

    Returns:
        int32 array `(num_steps, batch_size)`. The indices of a step do not depend on
        the step at which a call starts.

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
    """Returns the indices of all examples in batches of equal size.

    Repetitions of the last example pad the last batch.

    Args:
        num_examples: Number of examples in the data set.
        batch_size: Number of examples in a batch, or `num_examples` if that is smaller.
        multiple_of: The batch size is rounded up to a multiple of this number.

    Returns:
        Indices `(batches, batch)`, and booleans of this shape that are False where an
        example is padding.

    >>> padded_batches(3, 2)[0].tolist()
    [[0, 1], [2, 2]]
    """
    batch_size = -(-min(batch_size, num_examples) // multiple_of) * multiple_of
    num_batches = -(-num_examples // batch_size)
    index = np.arange(num_batches * batch_size).reshape(num_batches, batch_size)
    return np.minimum(index, num_examples - 1), index < num_examples


# Successive calls often need the same epoch.
@lru_cache(maxsize=4)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng((seed, epoch)).permutation(num_examples)
    order.flags.writeable = False
    return order
