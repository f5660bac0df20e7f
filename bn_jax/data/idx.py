"""Reader of IDX files, the format of MNIST and of data sets like it."""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from bn_jax.data.dataset import ArrayDataset, check_dataset
from bn_jax.errors import UserError

_UNSIGNED_BYTES = 8


def read_idx(path: Path) -> np.ndarray:
    """Returns the array of unsigned bytes in an IDX file.

    Args:
        path: The file, plain or compressed with gzip. The content decides which, not
            the name.

    Returns:
        uint8 array of the shape in the file's header.

    Raises:
        UserError: If the file cannot be read or decompressed, is not an IDX file of
            unsigned bytes, or is shorter or longer than its header says.
    """
    content = _read(path)
    if len(content) < 4:
        raise UserError(
            f"{path}: too short for an IDX file ({len(content)} bytes). Copy it again."
        )
    zeros, kind, rank = struct.unpack_from(">HBB", content)
    if zeros != 0 or kind != _UNSIGNED_BYTES:
        raise UserError(
            f"{path}: expected an IDX file of unsigned bytes, which begins with 00 00 "
            f"08; this one begins with {content[:3].hex(' ')}."
        )
    start = 4 + 4 * rank
    if len(content) < start:
        raise UserError(
            f"{path}: the header of {rank} dimensions is cut off. Copy it again."
        )
    shape = struct.unpack_from(f">{rank}I", content, 4)
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise UserError(
            f"{path}: the header says {'x'.join(map(str, shape))} values, so the file "
            f"must have {expected} bytes, but has {len(content)}. Copy it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def load_idx_folder(folder: Path) -> ArrayDataset:
    """Returns the MNIST-like data set of the four IDX files in a folder.

    The number of classes is 1 plus the highest label of both splits.

    Args:
        folder: Contains `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
            `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, plain or with `.gz`.
            A dot before `idx` is accepted too. Images must be grey, of 28x28 pixels.

    Raises:
        UserError: If the folder or a file is missing or damaged, images and labels do
            not fit together, or the images are not 28x28.
    """
    if not folder.is_dir():
        raise UserError(
            f"idx_dir: there is no folder {folder}. Set config.dataset.idx_dir."
        )
    arrays = []
    for prefix in ("train", "t10k"):
        images = read_idx(_find(folder, f"{prefix}-images", "idx3-ubyte"))
        labels = read_idx(_find(folder, f"{prefix}-labels", "idx1-ubyte"))
        if images.shape[1:] != (28, 28):
            raise UserError(
                f"{folder}: {prefix}-images must contain images of 28x28 pixels, but "
                f"has the shape {images.shape}. Is it a file in MNIST's format?"
            )
        if labels.ndim != 1:
            raise UserError(
                f"{folder}: {prefix}-labels must contain one number for each label, "
                f"but has the shape {labels.shape}. Is it a file of images?"
            )
        arrays += [images[..., np.newaxis], labels.astype(np.int32)]
    present = np.unique(np.concatenate(arrays[1::2]))
    num_classes = 1 + int(present.max(initial=0))
    if len(present) < num_classes:
        missing = sorted(set(range(num_classes)) - set(present.tolist()))
        logging.warning(
            "%s: labels are from 0 to %d, but %d of these classes have no image: %s.",
            folder,
            num_classes - 1,
            len(missing),
            ", ".join(map(str, missing[:5])) + (", ..." if missing[5:] else ""),
        )
    name = folder.resolve().name
    return check_dataset(ArrayDataset(name, *arrays, num_classes=num_classes))


def _find(folder: Path, stem: str, ending: str) -> Path:
    names: Sequence[str] = [
        f"{stem}{joint}{ending}{suffix}" for joint in "-." for suffix in (".gz", "")
    ]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder}: there is no {names[1]} or {names[0]} in this folder. Copy it there."
    )


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: the file is damaged or cannot be read ({error}). Copy it again."
        ) from error
