"""IDX files for tests: any array, or a small set of images that can be learned."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np

from bn_jax.data.dataset import ArraySplit, Dataset


def idx_bytes(array: np.ndarray, *, magic: bytes = b"\0\0\x08") -> bytes:
    """Returns the content of an IDX file with these unsigned bytes."""
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return magic + bytes([array.ndim]) + shape + array.astype(np.uint8).tobytes()


def write_idx(path: Path, array: np.ndarray) -> Path:
    """Writes an IDX file, compressed if its name ends in .gz."""
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_idx_folder(
    folder: Path,
    *,
    num_train: int = 210,
    num_test: int = 97,
    num_classes: int = 10,
    suffix: str = "",
) -> Path:
    """Writes four files of noise in which a bright block of rows tells the class.

    The first image is of the last class.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for prefix, num_images in {"train": num_train, "t10k": num_test}.items():
        labels = rng.integers(0, num_classes, num_images)
        labels[:1] = num_classes - 1
        images = rng.integers(0, 200, (num_images, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 3] = 255
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    return folder


def contents(data: Dataset[ArraySplit]) -> list[Any]:
    """All that a data set holds, for `np.testing.assert_equal`."""
    return [data.name, data.num_classes, vars(data.train), vars(data.test)]
