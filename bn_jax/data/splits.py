"""Splits of a data set and slices of them, in the notation of tensorflow-datasets."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from bn_jax.data.dataset import ArraySplit, Dataset
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


def choose_splits(data: Dataset[ArraySplit], names: SplitNames) -> Dataset[ArraySplit]:
    """Returns the data set with other splits.

    Args:
        data: The data set with its original splits.
        names: Splits to choose.

    Raises:
        UserError: If a split does not have the notation, or contains no images.

    >>> images, labels = np.zeros((5, 28, 28, 1), np.uint8), np.arange(5)
    >>> five = ArraySplit(images, labels)
    >>> data = Dataset("five", num_classes=10, train=five, test=five)
    >>> choose_splits(data, SplitNames("train[:-2]", "train[-2:]")).test.labels
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
    return Dataset(data.name, data.num_classes, **chosen)


def chosen_slices(
    data: str, sizes: Mapping[str, int], names: SplitNames
) -> Mapping[str, Sequence[Slice]]:
    """Returns the slices for "train", "test" and, if there is one, "validation".

    Args:
        data: Name of the data set, for errors.
        sizes: Number of examples of each split that the data set has.
        names: Splits to choose.

    Raises:
        UserError: As `find_slices` does.
    """
    if names.validation_split is None and "validation" in sizes:
        names = names._replace(validation_split="validation")
    return find_slices(data, sizes, names)


def find_slices(
    data: str,
    sizes: Mapping[str, int],
    names: SplitNames,
    *,
    infos: Mapping[str, Any] | None = None,
) -> Mapping[str, Sequence[Slice]]:
    """Returns the slices of the splits in `names` that are not None.

    A test split may share images with the training split, with a warning: the accuracy
    on training images is of interest too.

    Args:
        data: Name of the data set, for errors.
        sizes: Number of examples of each split that the data set has.
        names: Splits to choose.
        infos: Descriptions of the splits, `tfds.core.SplitInfo`, if they have shards.

    Raises:
        UserError: If a split does not have the notation, or contains no images, or if
            the training and validation splits share images.
    """
    found = {
        setting.removesuffix("_split"): _slices(data, sizes, setting, name, infos)
        for setting, name in names._asdict().items()
        if name is not None
    }
    train = found["train"]
    if num_shared := _num_shared(train, found["test"]):
        logging.warning(
            "%s: the run trains on %d of the images of test_split=%r.",
            data,
            num_shared,
            names.test_split,
        )
    held_out = found.get("validation", [])
    if num_shared := _num_shared(train, held_out):
        rest = _without(train, held_out)
        advice = (
            f"train_split={_spec(rest, sizes)!r}"
            if rest
            else "validation_split to images that the run does not train on"
        )
        raise UserError(
            f"{data}: images for validation must not be used for training, but "
            f"validation_split={names.validation_split!r} and "
            f"train_split={names.train_split!r} share {num_shared} images. Set "
            f"--config.dataset.{advice}."
        )
    return found


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
    data: str,
    sizes: Mapping[str, int],
    setting: str,
    name: str,
    infos: Mapping[str, Any] | None,
) -> list[Slice]:
    cause = None
    slices = [Slice(name, range(sizes[name]))] if name in sizes else []
    if not slices:
        # Imported here, because the import takes most of a second.
        import tensorflow_datasets as tfds

        infos = infos or {
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


def _num_shared(some: Sequence[Slice], others: Sequence[Slice]) -> int:
    return sum(
        len(range(max(a.start, b.start), min(a.stop, b.stop)))
        for (split, a), (other, b) in product(some, others)
        if split == other
    )


def _without(slices: Sequence[Slice], removed: Sequence[Slice]) -> list[Slice]:
    """Returns the examples of `slices` that are not in `removed`, as slices."""
    rest = list(slices)
    for split, cut in removed:
        rest = [
            Slice(one.split, part)
            for one in rest
            for part in (
                (
                    range(one.examples.start, min(one.examples.stop, cut.start)),
                    range(max(one.examples.start, cut.stop), one.examples.stop),
                )
                if one.split == split
                else (one.examples,)
            )
            if part
        ]
    return rest


def _spec(slices: Sequence[Slice], sizes: Mapping[str, int]) -> str:
    """Returns the notation of slices, such as "test+train[:-5000]"."""
    return "+".join(
        f"{split}[{part.start or ''}:{part.stop - sizes[split] or ''}]"
        for split, part in slices
    ).replace("[:]", "")
