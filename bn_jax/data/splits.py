"""Splits of a data set and slices of them, in the notation of tensorflow-datasets."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bn_jax.data.dataset import ArrayDataset, ArraySplit, join_splits
from bn_jax.errors import UserError


class SplitNames(NamedTuple):
    """Splits of a run, each named after its entry in `config.dataset`.

    A split is a name such as "train", a slice such as `train[:-5000]` or `train[:90%]`,
    or several of these joined by `+`.

    Attributes:
        train_split: Split for training.
        test_split: Split for testing.
        validation_split: Split for evaluations during training; None for "validation"
            if the data set has such a split, else the test split.
    """

    train_split: str = "train"
    test_split: str = "test"
    validation_split: str | None = None


class Slice(NamedTuple):
    """Consecutive examples of one split.

    Attributes:
        split: Name of the split.
        examples: Indices of the examples.
    """

    split: str
    examples: range


class Joined(Sequence[Any]):
    """Sequence of slices of other sequences, whose items are read on request.

    >>> joined = Joined([("abc", range(1, 3)), ("xyz", range(1))])
    >>> list(joined)
    ['b', 'c', 'x']
    """

    def __init__(self, slices: Sequence[tuple[Any, range]]) -> None:
        """Stores the slices.

        Args:
            slices: Sequences, and the indices of the items to take from each.
        """
        self._slices = slices
        self._ends = np.cumsum([len(indices) for _, indices in slices])

    def __len__(self) -> int:
        """Returns the number of items."""
        return int(self._ends[-1])

    def __getitem__(self, index: Any) -> Any:
        """Returns one item."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = int(np.searchsorted(self._ends, index, side="right"))
        sequence, indices = self._slices[place]
        return sequence[indices[index - int(self._ends[place])]]


def choose_splits(data: ArrayDataset, names: SplitNames) -> ArrayDataset:
    """Returns the data set with other splits.

    Args:
        data: The data set with its original splits.
        names: Splits to choose.

    Raises:
        UserError: If a split does not have the notation, or contains no images.

    >>> images, labels = np.zeros((5, 28, 28, 1), np.uint8), np.arange(5)
    >>> data = ArrayDataset("five", images, labels, images[:1], labels[:1], 10)
    >>> choose_splits(data, SplitNames("train[:-2]", "train[-2:]")).test_labels
    array([3, 4])
    """
    splits = {"train": data.train, "test": data.test}
    if data.validation is not None:
        splits["validation"] = data.validation
    sizes = {name: len(split) for name, split in splits.items()}
    chosen = {
        use: join_arrays([(splits[one.split], one.examples) for one in slices])
        for use, slices in chosen_slices(data.name, sizes, names).items()
    }
    return join_splits(data.name, data.num_classes, chosen)


def chosen_slices(
    data: str, sizes: Mapping[str, int], names: SplitNames
) -> Mapping[str, Sequence[Slice]]:
    """Returns the slices for "train", "test" and, if there is one, "validation".

    Args:
        data: Name of the data set, for errors.
        sizes: Number of examples of each split that the data set has.
        names: Splits to choose.

    Raises:
        UserError: If a split does not have the notation, or contains no images.
    """
    chosen = names._asdict()
    if names.validation_split is None:
        chosen["validation_split"] = "validation" if "validation" in sizes else None
    return {
        setting.removesuffix("_split"): _slices(data, sizes, setting, name)
        for setting, name in chosen.items()
        if name is not None
    }


def join_arrays(slices: Sequence[tuple[ArraySplit, range]]) -> ArraySplit:
    """Returns slices of arrays as one split; a single slice is not copied.

    Args:
        slices: Splits, and the indices of consecutive examples of each.
    """
    pieces = [
        ArraySplit(*(x[i.start : i.stop] for x in (split.images, split.labels)))
        for split, i in slices
    ]
    if len(pieces) == 1:
        return pieces[0]
    return ArraySplit(
        np.concatenate([piece.images for piece in pieces]),
        np.concatenate([piece.labels for piece in pieces]),
    )


def _slices(
    data: str, sizes: Mapping[str, int], setting: str, name: str
) -> list[Slice]:
    cause = None
    slices = [Slice(name, range(sizes[name]))] if name in sizes else []
    if not slices:
        # Imported here, because the import takes most of a second.
        import tensorflow_datasets as tfds

        infos = {
            split: tfds.core.SplitInfo(name=split, shard_lengths=[size], num_bytes=0)
            for split, size in sizes.items()
        }
        try:
            found = tfds.core.ReadInstruction.from_spec(name).to_absolute(infos)
            slices = [
                Slice(one.splitname, range(sizes[one.splitname])[one.from_ : one.to])
                for one in found
            ]
        except (ValueError, AssertionError) as error:
            cause = error
    if not any(len(one.examples) for one in slices):
        choices = ", ".join(f"{n!r} (with {size} images)" for n, size in sizes.items())
        raise UserError(
            f"{data}: split {name!r} does not exist or contains no images; set "
            f"--config.dataset.{setting} to {choices}, or a slice such as "
            "'train[:90%]'."
        ) from cause
    return [one for one in slices if one.examples]
