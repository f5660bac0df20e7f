"""Preparation of ImageNet for tensorflow-datasets, without TensorFlow.

tensorflow-datasets sorts images by a hash of their names. Its own preparation finds the
order by writing every image to one of a thousand temporary files, with TensorFlow. This
module first reads the names from the headers of the tar files, which gives the order.
It then writes one file of the result after the other, straight from the tar files. So
the disk needs no space for a second copy, and an interrupted preparation can continue
after its finished files.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from bn_jax.data.preparation.rgb_jpeg import rgb_jpeg
from bn_jax.data.preparation.tar_index import (
    TarImage,
    index_training_tar,
    index_validation_tar,
)
from bn_jax.data.tfds import split_sizes
from bn_jax.errors import UserError
from bn_jax.machine import number_of_cores
from bn_jax.progress import progress_bar

_NAME = "imagenet2012"
_TARS: Mapping[str, str] = {
    "validation": "ILSVRC2012_img_val.tar",
    "train": "ILSVRC2012_img_train.tar",
}
_NUM_IMAGES: Mapping[str, int] = {"validation": 50_000, "train": 1_281_167}
# Approximate bytes of a record besides its image: names and lengths.
_RECORD_BYTES = 150


def prepare_imagenet(
    manual_dir: Path, data_dir: Path, *, is_subset: bool = False
) -> Path:
    """Writes ImageNet to where `tfds.data_source("imagenet2012", ...)` finds it.

    Records, their order and their files equal those of tensorflow-datasets' own
    preparation, but Pillow encodes the 23 images that need a new encoding. Every image
    is decoded once, at an eighth of its size, to check that it is complete.

    An interrupted preparation leaves its finished files in a folder that TFDS does not
    take for a data set. The next call continues after these files.

    Args:
        manual_dir: Folder of `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar`.
        data_dir: Folder of prepared data sets, created if it does not exist.
        is_subset: Accept fewer images than the official ones, such as those of some
            classes. The validation images must still be the first ones.

    Returns:
        The folder of ImageNet in `data_dir`.

    Raises:
        UserError: If a tar file is missing, incomplete or not the official one, an
            image is damaged, the disk is too full, another process prepares the same
            folder, or the folder contains other data.
    """
    # Imported here, because the import takes most of a second.
    import tensorflow_datasets as tfds

    data_dir = data_dir.expanduser()
    folder = data_dir / _NAME / str(tfds.builder_cls(_NAME).VERSION)
    if folder.exists():
        _check_prepared(data_dir, folder, is_subset=is_subset)
        logging.info("%s is already prepared.", folder)
        return folder
    builder = tfds.builder(_NAME, data_dir=str(data_dir))
    builder.info.set_file_format("array_record", override=True)
    missing = [tar for tar in _TARS.values() if not (manual_dir / tar).is_file()]
    if missing:
        raise UserError(
            f"manual_dir: there is no {' and no '.join(missing)} in {manual_dir}. "
            "Register at https://image-net.org/download-images and download what is "
            "missing."
        )
    shards = _plan(builder, manual_dir, is_subset=is_subset)
    # TFDS and other programs that look for versions ignore a folder with this name.
    unfinished = folder.with_name(f"incomplete.bn_jax_{folder.name}")
    with _locked(unfinished):
        if folder.exists():
            # Another process finished the folder while this one read the tar files.
            with suppress(FileNotFoundError):
                unfinished.rmdir()
            return folder
        _discard_other_plan(unfinished, shards)
        _write_missing(builder.info.features, manual_dir, unfinished, shards)
        _write_info(builder.info, unfinished, shards)
        unfinished.rename(folder)
    (folder / "plan").unlink()
    return folder


def _check_prepared(data_dir: Path, folder: Path, *, is_subset: bool) -> None:
    found = split_sizes(_NAME, str(data_dir))
    if not is_subset and any(found.get(s) != n for s, n in _NUM_IMAGES.items()):
        raise UserError(
            f"{folder}: the data set must contain all images, but contains {found}. "
            "Pass --subset to keep it, or remove that folder to prepare all images."
        )


class _Shard(NamedTuple):
    """A file of the prepared data set, and its images in order."""

    split: str
    name: str
    images: Sequence[TarImage]


def _plan(builder: Any, manual_dir: Path, *, is_subset: bool) -> list[_Shard]:
    """Returns all files of the prepared data set."""
    from tensorflow_datasets.core.hashing import Hasher
    from tensorflow_datasets.core.utils import shard_utils

    shards = []
    for split, images in _images(builder, manual_dir).items():
        expected = _NUM_IMAGES[split]
        if not images or (len(images) != expected and not is_subset):
            wanted = "images" if is_subset else f"{expected} images"
            advice = "" if is_subset else " --subset accepts fewer."
            raise UserError(
                f"{manual_dir / _TARS[split]}: expected {wanted}, but found "
                f"{len(images) or 'none'}. Is it the complete official file?{advice}"
            )
        # TFDS salts the hash with the name of the split.
        hasher = Hasher(split)
        images = sorted(images, key=lambda image: hasher.hash_key(image.name))
        num_bytes = sum(image.num_bytes + _RECORD_BYTES for image in images)
        config = shard_utils.ShardConfig()
        num_shards = config.get_number_shards(num_bytes, len(images))
        ends = shard_utils.get_shard_boundaries(len(images), num_shards)
        starts = [0, *ends[:-1]]
        for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
            name = _template(split).sharded_filepath(
                shard_index=number, num_shards=num_shards
            )
            shards.append(_Shard(split, name.name, images[start:end]))
    return shards


def _images(builder: Any, manual_dir: Path) -> dict[str, list[TarImage]]:
    import tensorflow_datasets as tfds

    labels = tfds.core.tfds_path(f"datasets/{_NAME}/validation_labels.txt")
    validation, training = (manual_dir / tar for tar in _TARS.values())
    return {
        "validation": index_validation_tar(validation, labels.read_text().split()),
        "train": index_training_tar(training, builder.info.features["label"].names),
    }


def _template(split: str) -> Any:
    from etils import epath
    from tensorflow_datasets.core import ShardedFileTemplate

    return ShardedFileTemplate(
        data_dir=epath.Path(),
        dataset_name=_NAME,
        split=split,
        filetype_suffix="array_record",
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks the folder against other processes that prepare it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(
            f"{folder}: another process is preparing it now. Wait until it ends."
        ) from error
    finally:
        os.close(descriptor)


def _discard_other_plan(folder: Path, shards: Sequence[_Shard]) -> None:
    """Empties the folder unless its files belong to this plan of files and images."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(repr(shard).encode())
    plan = folder / "plan"
    if plan.exists() and plan.read_text() == digest.hexdigest():
        return
    for path in folder.iterdir():
        logging.warning("%s: removed, because it belongs to other tar files.", path)
        path.unlink()
    plan.write_text(digest.hexdigest())


def _write_missing(
    features: Any, manual_dir: Path, folder: Path, shards: Sequence[_Shard]
) -> None:
    """Writes the files that do not exist yet."""
    missing = [shard for shard in shards if not (folder / shard.name).exists()]
    num_images = sum(len(shard.images) for shard in shards)
    remaining = [image for shard in missing for image in shard.images]
    num_bytes = sum(image.num_bytes + _RECORD_BYTES for image in remaining)
    if num_bytes > shutil.disk_usage(folder).free:
        raise UserError(
            f"{folder}: the preparation needs {num_bytes / 1e9:.0f} GB, but only "
            f"{shutil.disk_usage(folder).free / 1e9:.0f} GB are free. Free some space, "
            "or choose another --data_dir."
        )
    # Decoding and reading release Python's global interpreter lock.
    with (
        ThreadPoolExecutor(number_of_cores()) as pool,
        progress_bar(
            total=num_images,
            initial=num_images - len(remaining),
            unit="image",
            desc=f"prepare {_NAME}",
        ) as bar,
    ):
        for shard in missing:
            _write_shard(features, manual_dir, folder / shard.name, shard, pool)
            bar.update(len(shard.images))


def _write_shard(
    features: Any,
    manual_dir: Path,
    path: Path,
    shard: _Shard,
    pool: ThreadPoolExecutor,
) -> None:
    """Writes one file under a temporary name, and renames it when it is complete."""
    from array_record.python.array_record_module import ArrayRecordWriter

    tar = manual_dir / _TARS[shard.split]
    unfinished = path.with_name(f"incomplete.{path.name}")
    with tar.open("rb") as file:

        def record(image: TarImage) -> bytes:
            content = os.pread(file.fileno(), image.num_bytes, image.offset)
            example = {
                "file_name": image.name,
                "image": rgb_jpeg(content, name=f"{tar}: {image.name}"),
                "label": image.label,
            }
            return features.serialize_example(example)

        # Each record is its own group, so a reader can read it alone. Grain needs that.
        writer = ArrayRecordWriter(str(unfinished), "group_size:1")
        try:
            for content in pool.map(record, shard.images):
                writer.write(content)
            writer.close()
        # array_record raises no other error.
        except RuntimeError as error:
            raise UserError(
                f"{unfinished} cannot be written ({error}). If the disk is full, free "
                "some space. Run the same command again: it keeps the complete files."
            ) from error
        finally:
            with suppress(RuntimeError):
                writer.close()
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.rename(path)


def _write_info(info: Any, folder: Path, shards: Sequence[_Shard]) -> None:
    """Writes the description that tells TFDS the splits and features."""
    from tensorflow_datasets.core.splits import SplitDict, SplitInfo

    splits = []
    for split in _TARS:
        own = [shard for shard in shards if shard.split == split]
        splits.append(
            SplitInfo(
                name=split,
                shard_lengths=[len(shard.images) for shard in own],
                num_bytes=sum((folder / shard.name).stat().st_size for shard in own),
                filename_template=_template(split),
            )
        )
    info.set_splits(SplitDict(splits))
    info.write_to_directory(folder)
