"""Parts of a data set in memory, by the names that tensorflow-datasets has for them."""

import numpy as np

from bn_jax.data.dataset import ArrayDataset, ArraySplit, check_dataset
from bn_jax.errors import UserError


def choose_splits(
    data: ArrayDataset, *, train_split: str, test_split: str
) -> ArrayDataset:
    """The same images, other parts of them to train and to test on.

    Args:
        data: The data set with its own two parts, "train" and "test".
        train_split: What to train on: one of them, a slice of one such as
            `train[:-5000]` or `train[:90%]`, or several, joined by `+`.
        test_split: What to test on, likewise.

    Raises:
        UserError: If a name is not one of these, or what it names holds no image.

    >>> images, labels = np.zeros((5, 28, 28, 1), np.uint8), np.arange(5)
    >>> data = ArrayDataset("five", images, labels, images[:1], labels[:1], 10)
    >>> held_out = dict(train_split="train[:-2]", test_split="train[-2:]")
    >>> choose_splits(data, **held_out).test_labels
    array([3, 4])
    """
    if (train_split, test_split) == ("train", "test"):
        return data
    train = _part(data, "train_split", train_split)
    test = _part(data, "test_split", test_split)
    return check_dataset(
        data._replace(
            train_images=train.images,
            train_labels=train.labels,
            test_images=test.images,
            test_labels=test.labels,
        )
    )


def _part(data: ArrayDataset, setting: str, name: str) -> ArraySplit:
    # TFDS takes most of a second to import.
    import tensorflow_datasets as tfds

    splits = {"train": data.train, "test": data.test}
    sizes = {
        split: tfds.core.SplitInfo(
            name=split, shard_lengths=[len(examples)], num_bytes=0
        )
        for split, examples in splits.items()
    }
    try:
        parts = tfds.core.ReadInstruction.from_spec(name).to_absolute(sizes)
        cause = None
    except (ValueError, AssertionError) as error:
        parts, cause = [], error
    chosen = [(splits[part.splitname], slice(part.from_, part.to)) for part in parts]
    if not any(len(split.labels[part]) for split, part in chosen):
        raise UserError(
            f"{data.name}: there is no split {name!r} with images; it has 'train' with "
            f"{len(data.train)} and 'test' with {len(data.test)}, and slices of them "
            f"such as 'train[:90%]'. --config.dataset.{setting} chooses one."
        ) from cause
    return ArraySplit(
        np.concatenate([split.images[part] for split, part in chosen]),
        np.concatenate([split.labels[part] for split, part in chosen]),
    )
