"""Any image classification set of tensorflow-datasets, without TensorFlow."""

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from bn_jax.data.dataset import ArrayDataset, Dataset, StreamedDataset, check_dataset
from bn_jax.data.imagenet.records import ImageSettings, RecordSplit
from bn_jax.errors import UserError

# A set is held in memory twice while it is stacked, and once on the device.
_MAX_BYTES = 4 * 2**30
_READ_AT_ONCE = 500
# What `bn-jax prepare` prepares, and its options for a folder.
_PREPARED_HERE: Mapping[str, str] = {
    "mnist": "--data_dir={}",
    "imagenet2012": "--manual_dir=TARS --data_dir={}, where TARS is the folder of the "
    "two official tar files",
}
# array_record pads its files to whole blocks, and an empty one has two.
_BLOCK_BYTES = 2**16
_MIN_BLOCKS = 2


def load_tfds(
    name: str,
    *,
    data_dir: str | None,
    train_split: str,
    test_split: str,
    settings: ImageSettings,
) -> Dataset:
    """A prepared data set: read into memory once if its images have one size.

    Others are read, cropped and resized when they are asked for.

    Args:
        name: Name of the data set, with `/config` and `:version` where needed.
        data_dir: Folder of prepared data sets; TFDS' own by default.
        train_split: Split to train on, slices like `train[:50%]` included.
        test_split: Split to test on.
        settings: What becomes of images whose size varies.

    Raises:
        UserError: If there is no such data set or split, it is not prepared, or not
            as array_record, or not whole, holds no images with class labels, is to be
            held in memory and larger than 4 GiB, or the settings do not fit it.
    """
    if data_dir is not None:
        data_dir = str(Path(data_dir).expanduser())
    builder = prepared_builder(name, data_dir)
    shape, num_classes = _check_features(name, builder)
    _check_split(name, builder, "train_split", train_split)
    _check_split(name, builder, "test_split", test_split)
    if shape is None:
        train, test = (
            RecordSplit(
                builder,
                split,
                settings=settings,
                is_training=is_training,
                recipe=_recipe(name, data_dir),
            )
            for split, is_training in ((train_split, True), (test_split, False))
        )
        return StreamedDataset(name, num_classes, train, test)
    settings.refuse(f"those of {name} are all {shape[0]}x{shape[1]}")
    splits = []
    for split in (train_split, test_split):
        source = builder.as_data_source(split)
        if len(source) * int(np.prod(shape)) > _MAX_BYTES:
            raise UserError(
                f"{name}: split {split!r} holds {len(source)} images of {shape}; this "
                f"experiment keeps its data in memory, at most {_MAX_BYTES >> 30} GiB. "
                f"A slice such as '{split}[:10%]' may do."
            )
        try:
            splits += _read(source)
        # What array_record raises for files that are missing or damaged.
        except (RuntimeError, ValueError, OSError, IndexError) as error:
            raise UserError(
                f"{name}: split {split!r} in {builder.data_dir} cannot be read "
                f"({error}). Remove that folder and prepare it again: "
                f"{_recipe(name, data_dir)}"
            ) from error
    return check_dataset(ArrayDataset(name, *splits, num_classes=num_classes))


def prepared_builder(name: str, data_dir: str | None) -> Any:
    """The builder of data that lie there as array_record.

    Args:
        name: Name of the data set.
        data_dir: Folder of prepared data sets; TFDS' own by default.

    Raises:
        UserError: If there is no such data set, or it is not prepared, not whole, or
            prepared in another format.
    """
    # TFDS takes most of a second to import, and the embedded MNIST needs none of it.
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    # A version or a configuration that does not exist is an AssertionError or a
    # ValueError, and so is a name that cannot be one.
    except (tfds.core.DatasetNotFoundError, AssertionError, ValueError) as error:
        raise UserError(
            f"dataset.name: tensorflow-datasets knows no {name!r}, and none is prepared"
            f" under {data_dir or 'its default folder'}. `python -c 'import "
            f"tensorflow_datasets as t; print(t.list_builders())'` lists the names."
        ) from error
    # A description of the data that is damaged, which their format raises for.
    except ParseError as error:
        raise UserError(
            f"{name}: what is in {data_dir or 'the default folder'} is damaged "
            f"({error}). Remove its folder and prepare it again: "
            f"{_recipe(name, data_dir)}"
        ) from error
    file_format = builder.info.file_format
    is_there = bool(builder.info.splits)
    if is_there and file_format is not None and file_format.value != "array_record":
        raise UserError(
            f"{name}: the data in {builder.data_dir} are prepared as "
            f"{file_format.value}, which only TensorFlow reads at random. Prepare them "
            f"as array_record in another folder: {_recipe(name, data_dir)}"
        )
    if not is_there:
        is_empty = Path(builder.data_dir).exists()
        remove = (
            "Remove that folder, which holds no whole data set. " if is_empty else ""
        )
        raise UserError(
            f"{name}: nothing is prepared in {builder.data_dir}. {remove}"
            f"Prepare it: {_recipe(name, data_dir)}"
        )
    for split in builder.info.splits.values():
        fault = _fault(split, is_imagenet=builder.name == "imagenet2012")
        if fault is not None:
            raise UserError(
                f"{name}: {builder.data_dir} is not whole; {fault}. Remove that folder "
                f"and prepare it again: {_recipe(name, data_dir)}"
            )
    return builder


def split_sizes(name: str, data_dir: str | None) -> dict[str, int]:
    """The number of examples of each split of prepared data, by name in order.

    Args:
        name: Name of the data set.
        data_dir: Folder of prepared data sets; TFDS' own by default.

    Raises:
        UserError: As for `prepared_builder`.
    """
    splits = prepared_builder(name, data_dir).info.splits
    return {split: splits[split].num_examples for split in sorted(splits)}


def _fault(split: Any, *, is_imagenet: bool) -> str | None:
    """What the sizes of a split's files tell of damage, before one of them is read."""
    total = 0
    for path in map(Path, split.filepaths):
        try:
            size = path.stat().st_size
        except OSError:
            return f"it lacks {path.name}"
        if size < _MIN_BLOCKS * _BLOCK_BYTES or size % _BLOCK_BYTES:
            return (
                f"{path.name} holds {size} bytes, where array_record writes whole "
                f"blocks of {_BLOCK_BYTES}, {_MIN_BLOCKS} at least"
            )
        total += size
    # `bn-jax prepare imagenet2012` notes how large its files are. Others note how large
    # records were before they were compressed, which is a number of whole blocks once
    # in 65,536 times.
    expected = int(split.num_bytes)
    is_exact = is_imagenet and expected % _BLOCK_BYTES == 0
    if is_exact and total != expected:
        return (
            f"the files of the split {split.name!r} hold {total} bytes, not the "
            f"{expected} that were written"
        )
    return None


def _check_split(name: str, builder: Any, setting: str, split: str) -> None:
    """Makes sure that a split exists and is not empty, slices included."""
    splits = builder.info.splits
    try:
        if split and splits[split].num_examples > 0:
            return
        cause = None
    except (ValueError, KeyError, AssertionError) as error:
        cause = error
    there = ", ".join(
        f"{name} with {splits[name].num_examples}" for name in sorted(splits)
    )
    raise UserError(
        f"{name}: there is no split {split!r} with examples; it has {there}, and "
        f"slices of them such as 'train[:10%]'. --config.dataset.{setting} chooses one."
    ) from cause


def _recipe(name: str, data_dir: str | None) -> str:
    """What to run so that the data are there."""
    import tensorflow_datasets as tfds

    folder = data_dir or str(Path("~/tensorflow_datasets").expanduser())
    stem, _, version = name.partition(":")
    note = ""
    if stem in _PREPARED_HERE:
        own = str(tfds.builder_cls(stem).VERSION)
        # A version may have wildcards.
        if fnmatch(own, version or "*"):
            return f"bn-jax prepare {stem} {_PREPARED_HERE[stem].format(folder)}"
        note = f"bn-jax prepares version {own} only; "
    return (
        f"{note}in an environment with TensorFlow (preparing needs it, reading does "
        f'not), python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{folder}', file_format='array_record')"
        f'.download_and_prepare()"'
    )


def _check_features(name: str, builder: Any) -> tuple[tuple[int, ...] | None, int]:
    """Shape of the images, None if it varies, and number of classes."""
    features = builder.info.features
    # A data set of another kind may have a single feature instead of a dictionary.
    names = set(getattr(features, "keys", tuple)())
    label = features["label"] if "label" in names else None
    num_classes = getattr(label, "num_classes", None)
    if "image" not in names or num_classes is None:
        raise UserError(
            f"{name}: expected the features 'image' and 'label' (a class); there are "
            f"{', '.join(sorted(names)) or features}."
        )
    image = features["image"]
    # `dtype` would import TensorFlow.
    if image.np_dtype != np.uint8:
        raise UserError(
            f"{name}: images must be uint8, pixels of 0 to 255, and are "
            f"{np.dtype(image.np_dtype).name}."
        )
    shape = image.shape
    return None if None in shape else shape, num_classes


def _read(source: Any) -> list[np.ndarray]:
    """All images, stacked, and all labels."""
    images, labels = [], []
    for start in range(0, len(source), _READ_AT_ONCE):
        indices = range(start, min(start + _READ_AT_ONCE, len(source)))
        for record in source.__getitems__(indices):
            images.append(record["image"])
            labels.append(record["label"])
    return [np.stack(images), np.asarray(labels, np.int32)]
