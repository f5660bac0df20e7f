"""Image classification data sets of tensorflow-datasets, without TensorFlow."""

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from bn_jax.data.dataset import (
    MAX_BYTES_IN_MEMORY,
    ArraySplit,
    Dataset,
    check_dataset,
)
from bn_jax.data.imagenet.cropped import CroppedSplit, ImageSettings
from bn_jax.data.imagenet.records import RecordSource
from bn_jax.data.splits import SplitNames, find_slices
from bn_jax.errors import UserError

_RECORDS_PER_READ = 500
# Data sets that `bn-jax prepare` writes, with its options; {} is the data folder.
_PREPARED_HERE: Mapping[str, str] = {
    "mnist": "--data_dir={}",
    "imagenet2012": "--manual_dir=TARS --data_dir={}, where TARS is the folder of the "
    "two official tar files",
}
# array_record pads its files to whole blocks; an empty file has two.
_BLOCK_BYTES = 2**16
_MIN_BLOCKS = 2


def load_tfds(
    name: str,
    *,
    data_dir: str | None,
    splits: SplitNames,
    settings: ImageSettings,
) -> Dataset:
    """Returns a prepared data set.

    Images of one size are read into memory once. Images of varying size are read,
    cropped and resized when a caller needs them.

    Args:
        name: Name of the data set, with `/config` and `:version` where needed.
        data_dir: Folder of prepared data sets; the default folder of TFDS if None.
        splits: Splits to choose; without a `validation_split` there is none.
        settings: Settings for images of varying size.

    Raises:
        UserError: If the data set or a split does not exist, is not prepared as
            array_record, is incomplete, or has no images with class labels; if images
            of one size take more than 4 GiB; if the training and validation splits
            share images; or if the settings do not fit.
    """
    if data_dir is not None:
        data_dir = str(Path(data_dir).expanduser())
    builder = prepared_builder(name, data_dir)
    shape, num_classes = _check_features(name, builder)
    chosen = {
        key: split for key, split in splits._asdict().items() if split is not None
    }
    find_slices(name, _sizes(builder), splits, infos=builder.info.splits)
    if shape is None:
        recipe = _prepare_command(name, data_dir)
        streamed = {
            setting.removesuffix("_split"): CroppedSplit(
                RecordSource(builder, split, recipe=recipe),
                settings=settings,
                is_training=setting == "train_split",
            )
            for setting, split in chosen.items()
        }
        return Dataset(name, num_classes, **streamed)
    settings.check_unset(f"the images of {name} are all {shape[0]}x{shape[1]}")
    in_memory = {
        setting.removesuffix("_split"): _read_split(
            name, builder, split, shape=shape, data_dir=data_dir
        )
        for setting, split in chosen.items()
    }
    return check_dataset(Dataset(name, num_classes, **in_memory))


def prepared_builder(name: str, data_dir: str | None) -> Any:
    """Returns the TFDS builder of a data set that is prepared as array_record.

    Args:
        name: Name of the data set.
        data_dir: Folder of prepared data sets; the default folder of TFDS if None.

    Raises:
        UserError: If the data set does not exist, is not prepared, is incomplete or
            damaged, or is prepared in another format.
    """
    # Imported here, because the import takes most of a second and the embedded MNIST
    # does not need it.
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    # TFDS raises an AssertionError or a ValueError for a version or configuration that
    # does not exist, and for a malformed name.
    except (tfds.core.DatasetNotFoundError, AssertionError, ValueError) as error:
        raise UserError(
            f"dataset.name: tensorflow-datasets does not know {name!r}, and no such "
            f"data set is prepared in {data_dir or 'its default folder'}. `python -c "
            "'import tensorflow_datasets as t; print(t.list_builders())'` lists the "
            "names; for your own data name a function, 'package.module:function'."
        ) from error
    # The JSON files that describe the data are damaged.
    except ParseError as error:
        raise UserError(
            f"{name}: the description of the data in {data_dir or 'the default folder'}"
            f" is damaged ({error}). Remove the folder of {name} and prepare it again: "
            f"{_prepare_command(name, data_dir)}"
        ) from error
    file_format = builder.info.file_format
    is_prepared = bool(builder.info.splits)
    if is_prepared and file_format is not None and file_format.value != "array_record":
        raise UserError(
            f"{name}: the data in {builder.data_dir} must be prepared as array_record, "
            f"but are prepared as {file_format.value}, which only TensorFlow can read "
            "in any order. Prepare them as array_record in another folder: "
            f"{_prepare_command(name, data_dir)}"
        )
    if not is_prepared:
        is_incomplete = Path(builder.data_dir).exists()
        remove = (
            "Remove that folder, which holds an incomplete data set. "
            if is_incomplete
            else ""
        )
        raise UserError(
            f"{name}: nothing is prepared in {builder.data_dir}. {remove}"
            f"Prepare it: {_prepare_command(name, data_dir)}"
        )
    for split in builder.info.splits.values():
        damage = _describe_damage(split, is_imagenet=builder.name == "imagenet2012")
        if damage is not None:
            raise UserError(
                f"{name}: the data set in {builder.data_dir} is incomplete or damaged; "
                f"{damage}. Remove that folder and prepare it again: "
                f"{_prepare_command(name, data_dir)}"
            )
    return builder


def split_sizes(name: str, data_dir: str | None) -> dict[str, int]:
    """Returns the number of examples of each split of prepared data, sorted by name.

    Args:
        name: Name of the data set.
        data_dir: Folder of prepared data sets; the default folder of TFDS if None.

    Raises:
        UserError: If the data set does not exist, is not prepared, is incomplete or
            damaged, or is prepared in another format.
    """
    return _sizes(prepared_builder(name, data_dir))


def _describe_damage(split: Any, *, is_imagenet: bool) -> str | None:
    """Describes damage that the sizes of a split's files show; None if there is none.

    The files are not read.
    """
    total = 0
    for path in map(Path, split.filepaths):
        try:
            size = path.stat().st_size
        except OSError:
            return f"{path.name} is missing"
        if size < _MIN_BLOCKS * _BLOCK_BYTES or size % _BLOCK_BYTES:
            return (
                f"{path.name} has {size} bytes, but array_record writes at least "
                f"{_MIN_BLOCKS} whole blocks of {_BLOCK_BYTES} bytes"
            )
        total += size
    # `bn-jax prepare imagenet2012` stores the size of its files in `num_bytes`. TFDS
    # stores the size of the records before compression there. That size is a multiple
    # of the block size only by chance, once in 65,536 times.
    expected = int(split.num_bytes)
    is_exact = is_imagenet and expected % _BLOCK_BYTES == 0
    if is_exact and total != expected:
        return (
            f"the files of the split {split.name!r} have {total} bytes in total, but "
            f"{expected} were written"
        )
    return None


def _sizes(builder: Any) -> dict[str, int]:
    splits = builder.info.splits
    return {split: splits[split].num_examples for split in sorted(splits)}


def _prepare_command(name: str, data_dir: str | None) -> str:
    """Returns the command that prepares a data set, for error messages."""
    import tensorflow_datasets as tfds

    folder = data_dir or str(Path("~/tensorflow_datasets").expanduser())
    stem, _, version = name.partition(":")
    note = ""
    if stem in _PREPARED_HERE:
        own = str(tfds.builder_cls(stem).VERSION)
        # The version that the caller asks for may contain wildcards.
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
    """Returns the shape of the images, None if it varies, and the number of classes."""
    features = builder.info.features
    # A data set of another kind may have a single feature instead of a dictionary.
    names = set(getattr(features, "keys", tuple)())
    label = features["label"] if "label" in names else None
    num_classes = getattr(label, "num_classes", None)
    if "image" not in names or num_classes is None:
        raise UserError(
            f"{name}: the data set must have the features 'image' and 'label' (a "
            f"class), but has {', '.join(sorted(names)) or features}. Choose another "
            "data set."
        )
    image = features["image"]
    # The property `dtype` would import TensorFlow.
    if image.np_dtype != np.uint8:
        raise UserError(
            f"{name}: images must be uint8, pixels from 0 to 255, but are "
            f"{np.dtype(image.np_dtype).name}. Choose another data set."
        )
    shape = image.shape
    return None if None in shape else shape, num_classes


def _read_split(
    name: str,
    builder: Any,
    split: str,
    *,
    shape: tuple[int, ...],
    data_dir: str | None,
) -> ArraySplit:
    """Reads all images of a split into memory."""
    source = builder.as_data_source(split)
    if len(source) * int(np.prod(shape)) > MAX_BYTES_IN_MEMORY:
        raise UserError(
            f"{name}: split {split!r} has {len(source)} images of shape {shape}; "
            "images of one size are kept in memory and may take at most "
            f"{MAX_BYTES_IN_MEMORY >> 30} GiB. Choose a slice such as '{split}[:10%]'."
        )
    try:
        return _read(source)
    # array_record raises these errors for missing or damaged files.
    except (RuntimeError, ValueError, OSError, IndexError) as error:
        raise UserError(
            f"{name}: split {split!r} in {builder.data_dir} cannot be read "
            f"({error}). Remove that folder and prepare it again: "
            f"{_prepare_command(name, data_dir)}"
        ) from error


def _read(source: Any) -> ArraySplit:
    """Returns all images, stacked, and all labels."""
    images, labels = [], []
    for start in range(0, len(source), _RECORDS_PER_READ):
        indices = range(start, min(start + _RECORDS_PER_READ, len(source)))
        for record in source.__getitems__(indices):
            images.append(record["image"])
            labels.append(record["label"])
    return ArraySplit(np.stack(images), np.asarray(labels, np.int32))
