"""Reader of IDX files, the format of MNIST and of data sets like it."""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from bn_jax.data.dataset import (
    MAX_BYTES_IN_MEMORY,
    ArraySplit,
    Dataset,
    check_dataset,
    count_classes,
)
from bn_jax.errors import UserError

_UNSIGNED_BYTES = 8
_BYTES_PER_READ = 2**20
_MAX_RANK = 8


def read_idx(path: Path) -> np.ndarray:
    """Returns the array of unsigned bytes in an IDX file.

    Args:
        path: The file, plain or compressed with gzip. The content decides which, not
            the name.

    Returns:
        uint8 array of the shape in the file's header.

    Raises:
        UserError: If the file cannot be read or decompressed, is not an IDX file of
            unsigned bytes, is shorter or longer than its header says, or is larger
            than 4 GiB.
    """
    try:
        with path.open("rb") as file:
            is_compressed = file.peek(2)[:2] == b"\x1f\x8b"
            content: BufferedIOBase = (
                gzip.GzipFile(fileobj=file) if is_compressed else file
            )
            return _read_array(content, path)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: the file is damaged or cannot be read ({error}). Copy it again."
        ) from error


def load_idx_folder(folder: Path) -> Dataset[ArraySplit]:
    """Returns the MNIST-like data set of the four IDX files in a folder.

    The number of classes is 1 plus the highest label of both splits.

    Args:
        folder: Contains `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
            `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, plain or with `.gz`.
            A dot before `idx` is accepted too. Images must be grey and all of one size,
            which the headers say.

    Raises:
        UserError: If the folder or a file is missing or damaged, or images and labels
            do not fit together.
    """
    if not folder.is_dir():
        raise UserError(
            f"idx_dir: there is no folder {folder}. Set config.dataset.idx_dir."
        )
    splits = []
    for prefix in ("train", "t10k"):
        images = read_idx(_find(folder, f"{prefix}-images", "idx3-ubyte"))
        labels = read_idx(_find(folder, f"{prefix}-labels", "idx1-ubyte"))
        if images.ndim != 3 or 0 in images.shape[1:]:
            raise UserError(
                f"{folder}: {prefix}-images must contain grey images, of the shape "
                f"(examples, height, width), but has the shape {images.shape}. Is it a "
                "file in MNIST's format?"
            )
        if labels.ndim != 1:
            raise UserError(
                f"{folder}: {prefix}-labels must contain one number for each label, "
                f"but has the shape {labels.shape}. Is it a file of images?"
            )
        splits.append(ArraySplit(images[..., np.newaxis], labels.astype(np.int32)))
    num_classes = count_classes(
        str(folder), np.concatenate([split.labels for split in splits])
    )
    name = folder.resolve().name
    return check_dataset(Dataset(name, num_classes, *splits))


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


def _read_array(file: BufferedIOBase, path: Path) -> np.ndarray:
    """Reads the header, and then at most one byte more than the header says.

    A small file can unpack to any number of bytes, and a header can say any size. So
    memory holds neither more than the header says nor more than the file contains.
    """
    start = file.read(4)
    if len(start) < 4:
        raise UserError(
            f"{path}: too short for an IDX file ({len(start)} bytes). Copy it again."
        )
    zeros, kind, rank = struct.unpack(">HBB", start)
    if zeros != 0 or kind != _UNSIGNED_BYTES:
        raise UserError(
            f"{path}: expected an IDX file of unsigned bytes, which begins with 00 00 "
            f"08; this one begins with {start[:3].hex(' ')}."
        )
    sizes = file.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise UserError(
            f"{path}: the header of {rank} dimensions is cut off. Copy it again."
        )
    shape = struct.unpack(f">{rank}I", sizes)
    expected = math.prod(shape)
    described = "x".join(map(str, shape))
    if rank > _MAX_RANK or expected > MAX_BYTES_IN_MEMORY:
        raise UserError(
            f"{path}: the header says {described} values, but an IDX file may have at "
            f"most {_MAX_RANK} dimensions and {MAX_BYTES_IN_MEMORY >> 30} GiB. Is it "
            "damaged?"
        )
    content = bytearray()
    while len(content) <= expected:
        piece = file.read(min(_BYTES_PER_READ, expected + 1 - len(content)))
        if not piece:
            break
        content += piece
    if len(content) != expected:
        found = "more" if len(content) > expected else f"{len(content)}"
        raise UserError(
            f"{path}: the header says {described} values, so {expected} bytes must "
            f"follow it, but there are {found}. Copy it again."
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
