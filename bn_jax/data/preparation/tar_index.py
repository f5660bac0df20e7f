"""Where each image of the official ImageNet tar files lies, without unpacking them."""

import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bn_jax.errors import UserError
from bn_jax.progress import progress_bar

# Zeros behind the last member: tar writes less than 10 KiB unless it is told to write
# more, and what is larger may have been content.
_MOST_PADDING = 2**20


class TarImage(NamedTuple):
    """A file in a tar file, or in a tar file inside it.

    Attributes:
        name: Its own name, such as `n01440764_18.JPEG`.
        label: Its class, such as `n01440764`.
        offset: Bytes before its first one in the outermost file.
        num_bytes: Its size.
    """

    name: str
    label: str
    offset: int
    num_bytes: int


def index_training_tar(path: Path, synsets: Sequence[str]) -> list[TarImage]:
    """The images of a tar file that holds one tar file for each class.

    Only headers are read. Nothing has to be unpacked to read an image by its offset:
    the tar files are not compressed.

    Args:
        path: `ILSVRC2012_img_train.tar`.
        synsets: Names of all classes.

    Raises:
        UserError: If it is no tar file, is cut off or damaged, or holds anything but
            `<synset>.tar` of `<synset>_<number>.JPEG`, each once, or a class without
            images.
    """
    known, images, seen = set(synsets), [], set[str]()
    classes = progress_bar(
        iterable=_members(path),
        total=len(known),
        unit="class",
        desc=f"find images in {path.name}",
    )
    for outer in classes:
        synset = outer.name.removesuffix(".tar")
        if synset not in known or not outer.name.endswith(".tar"):
            raise _unexpected(path, outer.name, "one tar file a class (n01440764.tar)")
        pattern = re.compile(rf"{synset}_\d+\.JPEG")
        before = len(images)
        for member in _members(path, inside=outer):
            if pattern.fullmatch(member.name) is None or member.name in seen:
                place = f"{outer.name}: {member.name}"
                raise _unexpected(path, place, f"{synset}_<number>.JPEG, each once")
            seen.add(member.name)
            images.append(TarImage(member.name, synset, *member[1:]))
        if len(images) == before:
            raise UserError(
                f"{path}: expected images in {outer.name}, and found none. Is it the "
                "official file, as downloaded?"
            )
    return images


def index_validation_tar(path: Path, labels: Sequence[str]) -> list[TarImage]:
    """The images of a flat tar file whose labels are a list apart from it.

    Args:
        path: `ILSVRC2012_img_val.tar`.
        labels: The class of each image, counted from `ILSVRC2012_val_00000001.JPEG`.

    Raises:
        UserError: If it is no tar file, is cut off or damaged, or does not hold
            exactly the first images: labels are told by their place, and a gap would
            shift them.
    """
    members = sorted(_members(path))
    for number, member in enumerate(members, 1):
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        if number > len(labels):
            wanted = f"{len(labels)} validation images at most"
            raise _unexpected(path, member.name, wanted)
        if member.name != name:
            wanted = f"the validation images from 1 on without a gap (here: {name})"
            raise _unexpected(path, member.name, wanted)
    pairs = zip(members, labels, strict=False)
    return [TarImage(member.name, label, *member[1:]) for member, label in pairs]


class _Member(NamedTuple):
    """A file in a tar file: name, bytes before it in the outermost file, size."""

    name: str
    offset: int
    num_bytes: int


def _members(path: Path, inside: _Member | None = None) -> Iterator[_Member]:
    """The files of a tar file, or of one that lies inside it."""
    start = 0 if inside is None else inside.offset
    end = path.stat().st_size if inside is None else start + inside.num_bytes
    where = f"{path}" if inside is None else f"{path}: {inside.name}"
    try:
        with path.open("rb") as file:
            # tarfile takes its own beginning for the place where the file stands.
            file.seek(start)
            yield from _checked_members(file, end, where)
    except tarfile.TarError as error:
        raise UserError(
            f"{where}: it is no tar file, or is damaged ({error}). Download it again."
        ) from error


def _checked_members(file: BinaryIO, end: int, where: str) -> Iterator[_Member]:
    start = file.tell()
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.offset_data > end:
                # It is the outer file's: the inner one ends before, and without zeros.
                raise _no_end(where, member.offset - start, "nothing")
            if not member.isfile():
                raise UserError(
                    f"{where}: expected files only; {member.name} is none. Use the tar "
                    "file as it was downloaded."
                )
            if member.offset_data + member.size > end:
                raise UserError(
                    f"{where}: the file ends within {member.name}; it is not whole. "
                    "Download it again."
                )
            yield _Member(member.name, member.offset_data, member.size)
        # tarfile takes whatever is no header for the end, damage as well.
        file.seek(tar.offset)
        rest = file.read(max(0, min(end - tar.offset, _MOST_PADDING + 1)))
        place = tar.offset - start
    if len(rest) < tarfile.BLOCKSIZE:
        raise _no_end(where, place, "nothing")
    if any(rest):
        raise _no_end(where, place, "neither")
    if len(rest) > _MOST_PADDING:
        raise _no_end(where, place, f"more than {_MOST_PADDING} of them")


def _no_end(where: str, place: int, found: str) -> UserError:
    return UserError(
        f"{where}: expected a file or some last zeros at byte {place}, and found "
        f"{found}; it is damaged, or not whole. Download it again."
    )


def _unexpected(path: Path, name: str, wanted: str) -> UserError:
    return UserError(
        f"{path}: expected {wanted}, and found {name}. Is it the official file, as "
        "downloaded?"
    )
