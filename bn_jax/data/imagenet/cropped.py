"""Splits of images of varying size, which are read and cropped on request.

bn_jax does not use Grain. A `grain.MapDataset` has random access, but reads in the
thread of the caller. Grain's threads belong to its iterators, which shuffle, shard and
prefetch in their own order and have a position that a checkpoint must save. In bn_jax
the order is a function of the step, so a run that resumes needs no saved position, and
each process reads the examples of its own devices only.
"""

from copy import copy
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol

import numpy as np

from bn_jax.data.imagenet.crops import NUM_CROPS, all_crops, center_crop, random_crop
from bn_jax.data.imagenet.distortion import distort
from bn_jax.data.imagenet.opencv import UndecodableImageError, decode_rgb, opencv
from bn_jax.data.threads import Threads
from bn_jax.errors import UserError
from bn_jax.machine import number_of_cores


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


class EncodedImage(NamedTuple):
    """An image as it is stored.

    Attributes:
        content: JPEG or PNG.
        label: Class of the image.
        name: Name of the image, for errors.
    """

    content: bytes
    label: int
    name: str


class ImageSource(Protocol):
    """Encoded images of one split, with random access from several threads."""

    @property
    def name(self) -> str:
        """Name of the data set."""
        ...

    @property
    def where(self) -> str:
        """Data set, split and folder, for errors."""
        ...

    @property
    def remedy(self) -> str:
        """Sentence that says what to do about an image that cannot be decoded."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def read(self, index: int) -> EncodedImage:
        """Returns one image.

        Raises:
            UserError: If the image cannot be read.
        """
        ...


class CroppedSplit:
    """A `Split` that reads its images from disk when a caller needs them.

    Training images are random crops, mirrored half of the time, with distorted colours.
    The random choices depend on the seed and the position of the image only. Test
    images are central crops, or all 144 crops.
    """

    is_in_memory = False

    def __init__(
        self, source: ImageSource, *, settings: ImageSettings, is_training: bool
    ) -> None:
        """Checks the settings.

        Args:
            source: Encoded images.
            settings: Settings for the images.
            is_training: True for random crops, False for central crops.

        Raises:
            UserError: If a setting is invalid, or OpenCV is not installed.
        """
        self._size = _checked_size(source.name, settings.image_size)
        _check_settings(settings)
        self.num_threads = settings.num_threads or number_of_cores()
        opencv()
        self._source = source
        self._settings = settings
        self._is_training = is_training
        self._threads = Threads(self.num_threads)
        # Axes of the result before the axes of an image; `all_crops` adds one.
        self._crop_axes: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._source)

    def read(
        self, indices: np.ndarray, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images and labels of some examples.

        Raises:
            UserError: If an image cannot be read.
        """
        shape = (indices.size, *self._crop_axes, self._size, self._size, 3)
        images, labels = np.empty(shape, np.uint8), np.empty(indices.size, np.int32)

        def read_one(place: int, index: int, position: int) -> None:
            labels[place] = self._read_example(index, position, out=images[place])

        # `tolist` converts NumPy's integers to Python's.
        numbers = (indices.ravel().tolist(), positions.ravel().tolist())
        self._threads.for_each(
            read_one, zip(range(indices.size), *numbers, strict=True)
        )
        num_classes = self._source.num_classes
        if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
            raise UserError(
                f"{self._source.where}: labels must be from 0 to {num_classes - 1}, "
                f"but are from {labels.min()} to {labels.max()}. Is it a split without "
                "labels?"
            )
        return (
            images.reshape(*indices.shape, *shape[1:]),
            labels.reshape(indices.shape),
        )

    def all_crops(self) -> "CroppedSplit":
        """Returns a split that reads 144 crops of each image instead of the image."""
        split = copy(self)
        split._crop_axes = (NUM_CROPS,)
        return split

    def _read_example(self, index: int, position: int, *, out: np.ndarray) -> int:
        """Writes the image of an example into `out`, and returns its label."""
        encoded = self._source.read(index)
        try:
            image = decode_rgb(encoded.content)
        except UndecodableImageError as error:
            raise UserError(
                f"{self._source.where}: the image {encoded.name} cannot be decoded "
                f"({error}). {self._source.remedy}"
            ) from error
        if self._crop_axes:
            out[:] = all_crops(image, self._size)
        elif self._is_training:
            rng = np.random.default_rng((self._settings.seed, position))
            crop = random_crop(image, rng, self._size, out=out)
            if self._settings.distortion:
                out[:] = distort(crop, rng, strength=self._settings.distortion)
        else:
            out[:] = center_crop(image, self._size)
        return encoded.label


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
