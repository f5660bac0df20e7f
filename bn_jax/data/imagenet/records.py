"""Images of varying size, read and cropped when they are asked for.

Grain is not used. A `grain.MapDataset` gives any example at any time, but in the thread
that asks; Grain's threads belong to iterators, which shuffle, shard and prefetch in an
order of their own and keep a position to be saved. Here the order is a function of the
step already, so a run that goes on needs no saved position, and each process asks for
the examples of its own devices.
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

# What JAX, checkpoints and event files have open, generously.
_OTHER_FILES = 200


class ImageSettings(NamedTuple):
    """What becomes of images whose size varies; see `load_dataset`.

    Attributes:
        image_size: Height and width of the result, in pixels.
        distortion: Strength of random changes of colour, in [0, 1].
        seed: Chooses crops, flips and colours.
        num_threads: Threads that read and decode; None for one a core.
    """

    image_size: int | None
    distortion: float = 0.0
    seed: int = 0
    num_threads: int | None = None

    def refuse(self, why: str) -> None:
        """Raises if they were to change images that all have one size.

        Args:
            why: What images there are, for the error.

        Raises:
            UserError: If there is a size or a distortion.
        """
        changes = {"image_size": self.image_size, "distortion": self.distortion or None}
        for name, value in changes.items():
            if value is not None:
                raise UserError(
                    f"dataset.{name}: {value} is for images of varying size; {why}. "
                    "Leave it out."
                )


class RecordSplit:
    """A split that lies on the disk; see `Split`.

    Training images are random crops, flipped and distorted; what is random depends on
    the seed and an image's position alone. Others are the middle of the image, or all
    of its crops.
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
            builder: Of tensorflow-datasets, with data prepared as array_record.
            split: Name of the split, slices included.
            settings: What becomes of its images.
            is_training: Crop at random, not in the middle.
            recipe: What to do if it cannot be read.

        Raises:
            UserError: If a setting is not as it must be, the images are not in colour,
                or OpenCV is not installed.
        """
        # TFDS takes most of a second to import.
        import tensorflow_datasets as tfds
        from tensorflow_datasets.proto import tf_example_pb2

        self._size = _checked_size(builder.info.name, settings.image_size)
        _check_settings(settings)
        self._num_threads = settings.num_threads or number_of_cores()
        opencv()
        features = builder.info.features
        if features["image"].shape[-1] != 3:
            raise UserError(
                f"{builder.info.name}: images of varying size must be in colour; the "
                f"shape of these is {features['image'].shape}."
            )
        self._num_classes = features["label"].num_classes
        self._settings = settings
        self._is_training = is_training
        # An axis in front of an image's own, where `all_crops` takes its place.
        self._crops: tuple[int, ...] = ()
        self._where = f"{builder.info.name}: split {split!r} in {builder.data_dir}"
        self._recipe = recipe
        # TFDS' own parsing takes as long again as reading. Type checkers do not see
        # what is in a module that protobuf makes.
        protos: Any = tf_example_pb2
        self._parse = protos.Example.FromString
        _allow_open_files(len(builder.info.splits[split].filenames))
        self._source: Sequence[bytes] = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._source)

    def read(
        self, indices: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of some examples; see `Split`.

        Raises:
            UserError: If a record or an image cannot be read.
        """
        shape = (indices.size, *self._crops, self._size, self._size, 3)
        images, labels = np.empty(shape, np.uint8), np.empty(indices.size, np.int32)
        # Python's own integers.
        asked = zip(indices.ravel().tolist(), positions.ravel().tolist(), strict=True)
        queue, lock = enumerate(asked), Lock()

        def take() -> None:
            while True:
                with lock:
                    place, example = next(queue, (None, None))
                if example is None:
                    return
                labels[place] = self._example(*example, out=images[place])

        # A task a thread, not one an image: handing one over takes time, too.
        tasks = [self._pool.submit(take) for _ in range(self._num_threads)]
        for task in tasks:
            task.result()
        if labels.size and not 0 <= labels.min() <= labels.max() < self._num_classes:
            raise UserError(
                f"{self._where}: labels must lie in 0 to {self._num_classes - 1}, and "
                f"lie in {labels.min()} to {labels.max()}; is it a split without any?"
            )
        return (
            images.reshape(*indices.shape, *shape[1:]),
            labels.reshape(indices.shape),
        )

    def all_crops(self) -> "RecordSplit":
        """The same examples, with all crops of each image in its place; see `Split`."""
        split = copy(self)
        split._crops = (NUM_CROPS,)
        return split

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        # Decoding lets go of Python's lock.
        return ThreadPoolExecutor(self._num_threads)

    def _example(self, index: int, position: int, *, out: np.ndarray) -> int:
        """Writes an image, and gives back its label."""
        record = self._record(index)
        image = decode_rgb(record["image"].bytes_list.value[0])
        if image is None:
            names = record["file_name"].bytes_list.value
            name = names[0].decode() if names else f"number {index}"
            raise UserError(
                f"{self._where}: the image {name} cannot be decoded. Remove that "
                f"folder and prepare it again: {self._recipe}"
            )
        if self._crops:
            out[:] = all_crops(image, self._size)
        elif self._is_training:
            rng = np.random.default_rng((self._settings.seed, position))
            crop = random_crop(image, rng, self._size, out=out)
            if self._settings.distortion:
                out[:] = distort(crop, rng, strength=self._settings.distortion)
        else:
            out[:] = center_crop(image, self._size)
        return record["label"].int64_list.value[0]

    def _record(self, index: int) -> Any:
        """The features of an example, still encoded."""
        try:
            record = self._parse(self._source[index]).features.feature
            # A file that is cut off may seem to hold empty records.
            if record["image"].bytes_list.value and record["label"].int64_list.value:
                return record
            cause = f"record {index} is empty"
        # What array_record raises for files that are missing or damaged.
        except (RuntimeError, ValueError, OSError, IndexError) as error:
            cause = str(error)
        raise UserError(
            f"{self._where} cannot be read ({cause}). Remove that folder and prepare "
            f"it again: {self._recipe}"
        )


def _allow_open_files(num_files: int) -> None:
    """Raises the limit of open files, which often is 1,024: ImageNet has 1,088.

    Every file is opened when it is first read, and stays open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # No limit is a negative number, to which nothing can be added.
    if soft == resource.RLIM_INFINITY:
        return
    wanted = soft + num_files
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
        if hard < num_files + _OTHER_FILES:
            logging.warning(
                "%d files are to be read, and at most %d can be open, says `ulimit -Hn`"
                "; reading may fail.",
                num_files,
                hard,
            )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _checked_size(name: str, size: int | None) -> int:
    """The size of images, once it is known to be one."""
    if size is None or not _is_integer(size, least=1):
        raise UserError(
            f"dataset.image_size: the images of {name} vary in size; give the height "
            f"and width that they are to have in pixels, such as 224, not {size!r}."
        )
    return int(size)


def _check_settings(settings: ImageSettings) -> None:
    strength, threads = settings.distortion, settings.num_threads
    is_number = isinstance(strength, Real) and not isinstance(strength, bool)
    if not (is_number and 0 <= strength <= 1):
        raise UserError(
            "dataset.distortion: the strength must be a number between 0 (none) and 1, "
            f"and is {strength!r}."
        )
    if threads is not None and not _is_integer(threads, least=1):
        raise UserError(
            "dataset.read_threads: must be an integer of at least 1, and is "
            f"{threads!r}."
        )
    if not _is_integer(settings.seed, least=0):
        raise UserError(
            "dataset.augmentation_seed: must be an integer of at least 0, and is "
            f"{settings.seed!r}."
        )


def _is_integer(value: Any, *, least: int) -> bool:
    # True and False are numbers to Python.
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    return is_integer and int(value) >= least
