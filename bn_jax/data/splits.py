"""Splits of a data set in memory, in the notation of tensorflow-datasets."""

import numpy as np

from bn_jax.data.dataset import ArrayDataset, ArraySplit, check_dataset
from bn_jax.errors import UserError
from bn_jax.extras import require_train_extra


def choose_splits(
    data: ArrayDataset, *, train_split: str, test_split: str
) -> ArrayDataset:
    """Returns the data set with other splits for training and testing.

    A split is "train" or "test", a slice of one such as `train[:-5000]` or
    `train[:90%]`, or several of these joined by `+`.

    Args:
        data: The data set with its original splits.
        train_split: Split for training.
        test_split: Split for testing.

    Raises:
        UserError: If a split does not have this form, or contains no images.

    >>> images, labels = np.zeros((5, 28, 28, 1), np.uint8), np.arange(5)
    >>> data = ArrayDataset("five", images, labels, images[:1], labels[:1], 10)
    >>> validation = dict(train_split="train[:-2]", test_split="train[-2:]")
    >>> choose_splits(data, **validation).test_labels
    array([3, 4])
    """
    if (train_split, test_split) == ("train", "test"):
        return data
    train = _select(data, "train_split", train_split)
    test = _select(data, "test_split", test_split)
    return check_dataset(
        data._replace(
            train_images=train.images,
            train_labels=train.labels,
            test_images=test.images,
            test_labels=test.labels,
        )
    )


def _select(data: ArrayDataset, setting: str, name: str) -> ArraySplit:
    require_train_extra(f"dataset.{setting}")
    # Imported here, because the import takes most of a second.
    import tensorflow_datasets as tfds

    splits = {"train": data.train, "test": data.test}
    sizes = {
        split: tfds.core.SplitInfo(
            name=split, shard_lengths=[len(examples)], num_bytes=0
        )
        for split, examples in splits.items()
    }
    try:
        slices = tfds.core.ReadInstruction.from_spec(name).to_absolute(sizes)
        cause = None
    except (ValueError, AssertionError) as error:
        slices, cause = [], error
    chosen = [(splits[one.splitname], slice(one.from_, one.to)) for one in slices]
    if not any(len(split.labels[indices]) for split, indices in chosen):
        raise UserError(
            f"{data.name}: split {name!r} does not exist or contains no images; set "
            f"--config.dataset.{setting} to 'train' (with {len(data.train)} images), "
            f"'test' (with {len(data.test)} images), or a slice such as 'train[:90%]'."
        ) from cause
    return ArraySplit(
        np.concatenate([split.images[indices] for split, indices in chosen]),
        np.concatenate([split.labels[indices] for split, indices in chosen]),
    )
