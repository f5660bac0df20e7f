"""Splits of images of varying size, which are read and cropped on request.

bn_jax does not use Grain. A `grain.MapDataset` has random access, but reads in the
thread of the caller. Grain's threads belong to its iterators, which shuffle, shard and
prefetch in their own order and have a position that a checkpoint must save. In bn_jax
the order is a function of the step, so a run that resumes needs no saved position, and
each process reads the examples of its own devices only.
"""

import resource
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cached_property
from numbers import Integral, Real
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from bn_jax.data.imagenet.crops import NUM_CROPS, all_crops, center_crop, random_crop
from bn_jax.data.imagenet.distortion import distort
from bn_jax.data.imagenet.opencv import decode_rgb, opencv
from bn_jax.errors import UserError
from bn_jax.machine import number_of_cores

# Generous estimate of the files that JAX, checkpoints and event files keep open.
_OTHER_FILES = 200


class ImageSettings(NamedTuple):
    """Settings for images of varying size.

    Attributes:
        image_size: Height and width of the crops, in pixels; None if not set.
        distortion: Strength of random colour changes, in [0, 1].
        seed: Seed of crops, flips and colour changes.
        num_threads: Number of threads that read and decode; None for one for each core.
    """

    image_size: int | None
    distortion: float = 0.0
    seed: int = 0
    num_threads: int | None = None

    def check_unset(self, why: str) -> None:
        """Checks that the settings do not resize or distort images of one size.

        Args:
            why: Clause for the error that says the size of the images.

        Raises:
            UserError: If `image_size` is set or `distortion` is not 0.
        """
        changes = {"image_size": self.image_size, "distortion": self.distortion or None}
        for name, value in changes.items():
            if value is not None:
                raise UserError(
                    f"dataset.{name}={value} needs images of varying size, but {why}. "
                    "Leave the setting out."
                )


class RecordSplit:
    """A `Split` that reads its images from disk when a caller needs them.

    Training images are random crops, mirrored half of the time, with distorted colours.
    The random choices depend on the seed and the position of the image only. Test
    images are central crops, or all 144 crops.
    """

    is_in_memory = False

    def __init__(
        self,
        builder: Any,
        split: str,
        *,
        settings: ImageSettings,
        is_training: bool,
        recipe: str,
    ) -> None:
        """Opens a split.

        Args:
            builder: TFDS builder of data that are prepared as array_record.
            split: Name of the split, or a slice of one.
            settings: Settings for its images.
            is_training: True for random crops, False for central crops.
            recipe: Command that prepares the data, for errors.

        Raises:
            UserError: If a setting is invalid, the images are not in colour, or OpenCV
                is not installed.
        """
        # Imported here, because the import takes most of a second.
        import tensorflow_datasets as tfds
        from tensorflow_datasets.proto import tf_example_pb2

        self._size = _checked_size(builder.info.name, settings.image_size)
        _check_settings(settings)
        self.num_threads = settings.num_threads or number_of_cores()
        opencv()
        features = builder.info.features
        if features["image"].shape[-1] != 3:
            raise UserError(
                f"{builder.info.name}: images of varying size must be in colour, with "
                f"3 channels, but have the shape {features['image'].shape}. Choose "
                "another data set."
            )
        self._num_classes = features["label"].num_classes
        self._settings = settings
        self._is_training = is_training
        # Axes of the result before the axes of an image; `all_crops` adds one.
        self._crop_axes: tuple[int, ...] = ()
        self._where = f"{builder.info.name}: split {split!r} in {builder.data_dir}"
        self._recipe = recipe
        # Parsed by protobuf, because TFDS' own parser takes as long as reading does.
        # `Any`, because type checkers cannot look into modules that protobuf creates.
        protos: Any = tf_example_pb2
        self._parse = protos.Example.FromString
        _allow_open_files(len(builder.info.splits[split].filenames))
        self._source: Sequence[bytes] = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._source)

    def read(
        self, indices: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images and labels of some examples.

        Raises:
            UserError: If a record or an image cannot be read.
        """
        shape = (indices.size, *self._crop_axes, self._size, self._size, 3)
        images, labels = np.empty(shape, np.uint8), np.empty(indices.size, np.int32)
        # `tolist` converts NumPy's integers to Python's.
        pairs = zip(indices.ravel().tolist(), positions.ravel().tolist(), strict=True)
        queue, lock = enumerate(pairs), Lock()

        def read_until_empty() -> None:
            while True:
                with lock:
                    place, example = next(queue, (None, None))
                if example is None:
                    return
                labels[place] = self._read_example(*example, out=images[place])

        # One task for each thread, not for each image, because submitting takes time.
        tasks = [self._pool.submit(read_until_empty) for _ in range(self.num_threads)]
        for task in tasks:
            task.result()
        if labels.size and not 0 <= labels.min() <= labels.max() < self._num_classes:
            raise UserError(
                f"{self._where}: labels must be from 0 to {self._num_classes - 1}, but "
                f"are from {labels.min()} to {labels.max()}. Is it a split without "
                "labels?"
            )
        return (
            images.reshape(*indices.shape, *shape[1:]),
            labels.reshape(indices.shape),
        )

    def all_crops(self) -> "RecordSplit":
        """Returns a split that reads 144 crops of each image instead of the image."""
        split = copy(self)
        split._crop_axes = (NUM_CROPS,)
        return split

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        # Threads help, because decoding releases Python's global interpreter lock.
        return ThreadPoolExecutor(self.num_threads)

    def _read_example(self, index: int, position: int, *, out: np.ndarray) -> int:
        """Writes the image of an example into `out`, and returns its label."""
        record = self._read_record(index)
        image = decode_rgb(record["image"].bytes_list.value[0])
        if image is None:
            names = record["file_name"].bytes_list.value
            name = names[0].decode() if names else f"number {index}"
            raise UserError(
                f"{self._where}: the image {name} cannot be decoded. Remove that "
                f"folder and prepare it again: {self._recipe}"
            )
        if self._crop_axes:
            out[:] = all_crops(image, self._size)
        elif self._is_training:
            rng = np.random.default_rng((self._settings.seed, position))
            crop = random_crop(image, rng, self._size, out=out)
            if self._settings.distortion:
                out[:] = distort(crop, rng, strength=self._settings.distortion)
        else:
            out[:] = center_crop(image, self._size)
        return record["label"].int64_list.value[0]

    def _read_record(self, index: int) -> Any:
        """Returns the features of an example; the image is still encoded."""
        try:
            record = self._parse(self._source[index]).features.feature
            # A truncated file may yield empty records.
            if record["image"].bytes_list.value and record["label"].int64_list.value:
                return record
            cause = f"record {index} is empty"
        # array_record raises these errors for missing or damaged files.
        except (RuntimeError, ValueError, OSError, IndexError) as error:
            cause = str(error)
        raise UserError(
            f"{self._where} cannot be read ({cause}). Remove that folder and prepare "
            f"it again: {self._recipe}"
        )


def _allow_open_files(num_files: int) -> None:
    """Increases the limit of open files by the number of files of a split.

    Each file is opened when it is first read, and stays open. The limit is often 1,024,
    but ImageNet has 1,088 files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # `RLIM_INFINITY` (no limit) is negative, so the sum below would be wrong.
    if soft == resource.RLIM_INFINITY:
        return
    wanted = soft + num_files
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
        if hard < num_files + _OTHER_FILES:
            logging.warning(
                "The data set has %d files, but at most %d files can be open at a time "
                "(`ulimit -Hn`); reading may fail.",
                num_files,
                hard,
            )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _checked_size(name: str, size: int | None) -> int:
    """Returns the size of images after checking it."""
    if size is None or not _is_integer(size, minimum=1):
        raise UserError(
            f"dataset.image_size: the images of {name} vary in size, so the setting "
            "must be the height and width of the crops in pixels, such as 224, but is "
            f"{size!r}."
        )
    return int(size)


def _check_settings(settings: ImageSettings) -> None:
    strength, threads = settings.distortion, settings.num_threads
    is_number = isinstance(strength, Real) and not isinstance(strength, bool)
    if not (is_number and 0 <= strength <= 1):
        raise UserError(
            "dataset.distortion: the strength must be a number between 0 (none) and 1, "
            f"but is {strength!r}."
        )
    if threads is not None and not _is_integer(threads, minimum=1):
        raise UserError(
            "dataset.read_threads must be an integer of at least 1, but is "
            f"{threads!r}."
        )
    if not _is_integer(settings.seed, minimum=0):
        raise UserError(
            "dataset.augmentation_seed must be an integer of at least 0, but is "
            f"{settings.seed!r}."
        )


def _is_integer(value: Any, *, minimum: int) -> bool:
    # A bool is an Integral too.
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    return is_integer and int(value) >= minimum
