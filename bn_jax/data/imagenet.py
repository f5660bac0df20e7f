"""Images of varying size, read and cropped when they are asked for.

Grain is not used. Its datasets are iterators that decide the order of the examples,
prefetch along it and keep a position to be saved. Here the order is a function of the
step already, so a run that goes on needs no saved position, and each process asks for
the examples of its own devices. What is left, a list of records to be worked on by
threads, is `ThreadPoolExecutor.map`.
"""

import os
import resource
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from bn_jax.data.crops import center_crop, random_crop
from bn_jax.data.distortion import distort
from bn_jax.data.opencv import decode_rgb, opencv
from bn_jax.errors import UserError


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


class RecordSplit:
    """A split that lies on the disk; see `Split`.

    Training images are random crops, flipped and distorted; what is random depends on
    the seed and an image's position alone. Others are the middle of the image.
    """

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
        self._size = _check_settings(builder.info.name, settings)
        opencv()
        features = builder.info.features
        if features["image"].shape[-1] != 3:
            raise UserError(
                f"{builder.info.name}: images of varying size must be in colour; the "
                f"shape of these is {features['image'].shape}."
            )
        self._settings = settings
        self._is_training = is_training
        self._where = f"{builder.info.name}: split {split!r} in {builder.data_dir}"
        self._recipe = recipe
        import tensorflow_datasets as tfds

        # What else a record holds is not worth its decoding.
        wanted = {"image", "label", "file_name"} & set(features.keys())
        self._features = tfds.features.FeaturesDict(
            {name: features[name] for name in wanted}
        )
        self._decoders = {"image": tfds.decode.SkipDecoding()}
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
        size = self._size
        images = np.empty((indices.size, size, size, 3), np.uint8)
        labels = np.empty(indices.size, np.int32)

        def fill(place: int, index: int, position: int) -> None:
            images[place], labels[place] = self._example(index, position)

        # Python's own integers.
        pairs = indices.ravel().tolist(), positions.ravel().tolist()
        for _ in self._pool.map(fill, range(indices.size), *pairs):
            pass
        return (
            images.reshape(*indices.shape, *images.shape[1:]),
            labels.reshape(indices.shape),
        )

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        # Decoding lets go of Python's lock.
        return ThreadPoolExecutor(self._settings.num_threads or os.cpu_count())

    def _example(self, index: int, position: int) -> tuple[np.ndarray, int]:
        record = self._record(index)
        image = decode_rgb(record["image"])
        if image is None:
            name = record.get("file_name", b"").decode() or f"number {index}"
            raise UserError(
                f"{self._where}: the image {name} cannot be decoded. Remove that "
                f"folder and prepare it again: {self._recipe}"
            )
        if self._is_training:
            rng = np.random.default_rng((self._settings.seed, position))
            image = random_crop(image, rng, self._size)
            image = distort(image, rng, strength=self._settings.distortion)
        else:
            image = center_crop(image, self._size)
        return image, int(record["label"])

    def _record(self, index: int) -> Any:
        try:
            return self._features.deserialize_example_np(
                self._source[index], decoders=self._decoders
            )
        # What array_record raises for files that are missing or damaged.
        except (RuntimeError, ValueError, OSError, IndexError) as error:
            raise UserError(
                f"{self._where} cannot be read ({error}). Remove that folder and "
                f"prepare it again: {self._recipe}"
            ) from error


def _allow_open_files(num_files: int) -> None:
    """Raises the limit of open files, which often is 1,024: ImageNet has 1,088.

    Every file is opened when it is first read, and stays open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + num_files
    if hard != resource.RLIM_INFINITY and wanted > hard:
        wanted = hard
        logging.warning(
            "At most %d files can be open, and %d are to be read; `ulimit -n` says so.",
            hard,
            num_files,
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _check_settings(name: str, settings: ImageSettings) -> int:
    """The size of images, once all settings are as they must be."""
    size, threads = settings.image_size, settings.num_threads
    if size is None or size < 1:
        raise UserError(
            f"dataset.image_size: the images of {name} vary in size; give the height "
            f"and width that they are to have in pixels, such as 224, not {size}."
        )
    if not 0 <= settings.distortion <= 1:
        raise UserError(
            "dataset.distortion: the strength must lie between 0 (none) and 1, and is "
            f"{settings.distortion}."
        )
    if threads is not None and threads < 1:
        raise UserError(f"dataset.read_threads: must be at least 1, and is {threads}.")
    if settings.seed < 0:
        raise UserError(
            f"dataset.augmentation_seed: must not be negative, and is {settings.seed}."
        )
    return size
