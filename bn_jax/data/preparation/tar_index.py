"""Positions of the images in the official ImageNet tar files, without unpacking."""

import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bn_jax.data.imagenet.opencv import MAX_IMAGE_BYTES
from bn_jax.errors import UserError
from bn_jax.progress import progress_bar

# Largest accepted number of zeros after the last file, in bytes. tar writes less than
# 10 KiB by default; more zeros than this limit may be damaged content.
_MAX_PADDING = 2**20
# Largest accepted header, in bytes. A header with a long name may say any size.
_MAX_HEADER = 2**16


class TarImage(NamedTuple):
    """An image in a tar file, or in a tar file inside it.

    Attributes:
        name: Name of the image file, such as `n01440764_18.JPEG`.
        label: Class of the image, such as `n01440764`.
        offset: Number of bytes before the image in the outermost file.
        num_bytes: Size of the image, in bytes.
    """

    name: str
    label: str
    offset: int
    num_bytes: int


def index_training_tar(path: Path, synsets: Sequence[str]) -> list[TarImage]:
    """Returns the images of a tar file that contains one tar file for each class.

    This function reads headers only. The tar files are not compressed, so an image can
    be read by its offset without unpacking.

    Args:
        path: `ILSVRC2012_img_train.tar`.
        synsets: Names of all classes.

    Raises:
        UserError: If the file is not a tar file, is truncated or damaged, contains
            anything but `<synset>.tar` files of `<synset>_<number>.JPEG` files,
            contains an image twice, or contains a class without images.
    """
    known, images, seen = set(synsets), [], set[str]()
    with progress_bar(
        iterable=_members(path),
        total=len(known),
        unit="class",
        desc=f"find images in {path.name}",
    ) as classes:
        for outer in classes:
            synset = outer.name.removesuffix(".tar")
            if synset not in known or not outer.name.endswith(".tar"):
                raise _unexpected_file_error(
                    path,
                    outer.name,
                    "one tar file for each class, such as n01440764.tar",
                )
            pattern = re.compile(rf"{synset}_\d+\.JPEG")
            before = len(images)
            for member in _members(path, inside=outer):
                if pattern.fullmatch(member.name) is None or member.name in seen:
                    place = f"{outer.name}: {member.name}"
                    raise _unexpected_file_error(
                        path, place, f"{synset}_<number>.JPEG, each once"
                    )
                seen.add(member.name)
                images.append(_image(path, member, synset))
            if len(images) == before:
                raise UserError(
                    f"{path}: expected images in {outer.name}, but found none. Is it "
                    "the official file, as downloaded?"
                )
    return images


def index_validation_tar(path: Path, labels: Sequence[str]) -> list[TarImage]:
    """Returns the images of the validation tar file, with labels from another list.

    Args:
        path: `ILSVRC2012_img_val.tar`.
        labels: The class of each image, counted from `ILSVRC2012_val_00000001.JPEG`.

    Raises:
        UserError: If the file is not a tar file, is truncated or damaged, or does not
            contain exactly the first images. The order of the images determines their
            labels, so a gap would shift the labels.
    """
    members = sorted(_members(path))
    for number, member in enumerate(members, 1):
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        if number > len(labels):
            wanted = f"at most {len(labels)} validation images"
            raise _unexpected_file_error(path, member.name, wanted)
        if member.name != name:
            wanted = f"the validation images from 1 on without a gap (next: {name})"
            raise _unexpected_file_error(path, member.name, wanted)
    pairs = zip(members, labels, strict=False)
    return [_image(path, member, label) for member, label in pairs]


class _Member(NamedTuple):
    """A file in a tar file: name, offset in the outermost file, size in bytes."""

    name: str
    offset: int
    num_bytes: int


def _image(path: Path, member: _Member, label: str) -> TarImage:
    if member.num_bytes > MAX_IMAGE_BYTES:
        raise UserError(
            f"{path}: {member.name} has {member.num_bytes} bytes; an image may have at "
            f"most {MAX_IMAGE_BYTES}. Download the tar file again."
        )
    return TarImage(member.name, label, member.offset, member.num_bytes)


def _members(path: Path, inside: _Member | None = None) -> Iterator[_Member]:
    """Yields the files of a tar file, or of the tar file `inside` it."""
    start = 0 if inside is None else inside.offset
    end = path.stat().st_size if inside is None else start + inside.num_bytes
    where = f"{path}" if inside is None else f"{path}: {inside.name}"
    try:
        with path.open("rb") as file:
            # tarfile assumes that the archive begins at the current position.
            file.seek(start)
            yield from _checked_members(file, end, where)
    except tarfile.TarError as error:
        raise UserError(
            f"{where}: the file is damaged or is not a tar file ({error}). Download it "
            "again."
        ) from error


class _Headers:
    """A tar file of which tarfile reads the headers, which must be small."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header says that it has {size} bytes")
        return self._file.read(size)


def _checked_members(file: BinaryIO, end: int, where: str) -> Iterator[_Member]:
    start = file.tell()
    headers: Any = _Headers(file)
    with tarfile.open(fileobj=headers, mode="r:") as tar:
        for member in tar:
            if member.offset_data > end:
                # The file belongs to the outer tar file: the inner one ended before it
                # without zeros.
                raise _bad_end_error(where, member.offset - start, "nothing")
            if not member.isfile() or member.issparse():
                raise UserError(
                    f"{where}: expected only files, but {_one_line(member.name)} is "
                    "not a file. Use the tar file as it was downloaded."
                )
            if member.offset_data + member.size > end:
                raise UserError(
                    f"{where}: the tar file ends within {member.name}, so it is "
                    "incomplete. Download it again."
                )
            yield _Member(member.name, member.offset_data, member.size)
        # tarfile takes anything that is not a header for the end, even damage. The end
        # is intact if only zeros follow.
        file.seek(tar.offset)
        rest = file.read(max(0, min(end - tar.offset, _MAX_PADDING + 1)))
        place = tar.offset - start
    if len(rest) < tarfile.BLOCKSIZE:
        raise _bad_end_error(where, place, "nothing")
    if any(rest):
        raise _bad_end_error(where, place, "other bytes")
    if len(rest) > _MAX_PADDING:
        raise _bad_end_error(where, place, f"more than {_MAX_PADDING} zeros")


def _bad_end_error(where: str, place: int, found: str) -> UserError:
    return UserError(
        f"{where}: expected another file or the final zeros at byte {place}, but found "
        f"{found}. The tar file is damaged or incomplete. Download it again."
    )


def _one_line(name: str) -> str:
    """Returns a name with escapes for line breaks and other control characters."""
    return ascii(name)[1:-1]


def _unexpected_file_error(path: Path, name: str, wanted: str) -> UserError:
    return UserError(
        f"{path}: expected {wanted}, but found {_one_line(name)}. Is it the official "
        "file, as downloaded?"
    )
