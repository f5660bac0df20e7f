"""Folders of images by class, which are read and cropped like ImageNet."""

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import logging

from bn_jax.data.dataset import Dataset
from bn_jax.data.imagenet.cropped import CroppedSplit, EncodedImage, ImageSettings
from bn_jax.data.imagenet.opencv import MAX_IMAGE_BYTES
from bn_jax.data.splits import Slice, SplitNames, chosen_slices
from bn_jax.errors import UserError

# Folders of splits, and the names of these splits; "training" is only refused.
_SPLITS: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "test": "test",
    "val": "validation",
    "validation": "validation",
}
_SUFFIXES = (".jpg", ".jpeg", ".png")


def load_image_folder(
    folder: Path, *, splits: SplitNames, settings: ImageSettings
) -> Dataset:
    """Returns the data set of a folder with one folder of images for each class.

    The folders of classes lie in `train/`, `test/` and perhaps `val/` or `validation/`,
    or directly in `folder`, whose only split is then "train". The classes are the names
    of their folders, sorted. The images of a split are in the order of a hash of their
    paths, so that a slice such as `train[:90%]` holds images of all classes.

    Args:
        folder: The folder.
        splits: Splits to choose.
        settings: Settings for the images.

    Raises:
        UserError: If there are no such folders, there are folders of splits without
            `train/` or two of one split, a class has no training images, a split does
            not exist, or a setting is invalid.
    """
    if not folder.is_dir():
        raise UserError(
            f"image_dir: there is no folder {folder}. Set config.dataset.image_dir."
        )
    found = _list_splits(folder)
    classes = _classes(folder, found)
    images = {
        split: sorted(
            (
                _Image(path, label)
                for label, one in enumerate(classes)
                for path in by_class.get(one, [])
            ),
            key=lambda image: _hash(image.path, folder),
        )
        for split, by_class in found.items()
    }
    name = folder.resolve().name
    sizes = {split: len(of_split) for split, of_split in images.items()}

    def split_of(slices: Sequence[Slice], *, is_training: bool) -> CroppedSplit:
        chosen = [
            image
            for one in slices
            for image in images[one.split][one.examples.start : one.examples.stop]
        ]
        source = _FolderSource(name, str(folder), chosen, num_classes=len(classes))
        return CroppedSplit(source, settings=settings, is_training=is_training)

    return Dataset(
        name,
        len(classes),
        **{
            use: split_of(slices, is_training=use == "train")
            for use, slices in chosen_slices(name, sizes, splits).items()
        },
    )


def image_classes(folder: Path) -> list[str]:
    """Returns the names of the classes, whose places in the list are the labels.

    Args:
        folder: A folder that `load_image_folder` reads.

    Raises:
        UserError: As `load_image_folder` does.
    """
    return _classes(folder, _list_splits(folder))


class _Image(NamedTuple):
    path: str
    label: int


class _FolderSource:
    """An `ImageSource` of files."""

    remedy = "Replace or remove the file."

    def __init__(
        self, name: str, where: str, images: Sequence[_Image], *, num_classes: int
    ) -> None:
        self.name = name
        self.where = where
        self.num_classes = num_classes
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> EncodedImage:
        path, label = self._images[index]
        try:
            status = os.stat(path)
            # A pipe or a device might never end.
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_IMAGE_BYTES:
                raise OSError(f"it must be a file of at most {MAX_IMAGE_BYTES} bytes")
            return EncodedImage(Path(path).read_bytes(), label, path)
        except OSError as error:
            raise UserError(
                f"{path}: the image cannot be read ({error}). {self.remedy}"
            ) from error


def _list_splits(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Returns the paths of the images of each class of each split."""
    directories = [one for one in _SPLITS if (folder / one).is_dir()]
    splits = {_SPLITS[one] for one in directories}
    if len(splits) < len(directories) or (directories and "train" not in directories):
        raise UserError(
            f"{folder}: the folders of splits must be train/ and perhaps test/ and one "
            f"of val/ and validation/, but are {', '.join(directories)}. Rename or "
            "remove the others."
        )
    found = {_SPLITS[one]: _list_images(folder / one) for one in directories}
    return found or {"train": _list_images(folder)}


def _list_images(folder: Path) -> dict[str, list[str]]:
    """Returns the paths of the images of each class; hidden folders are no classes."""
    found: dict[str, list[str]] = {}
    num_ignored = 0
    for one in folder.iterdir():
        if not one.is_dir() or one.name.startswith("."):
            continue
        found[one.name] = []
        for place, _, names in os.walk(one):
            of_images = [n for n in names if n.lower().endswith(_SUFFIXES)]
            num_ignored += len(names) - len(of_images)
            found[one.name] += [os.path.join(place, n) for n in of_images]
    if num_ignored:
        logging.warning(
            "%s: %d files are ignored, because their names do not end in %s.",
            folder,
            num_ignored,
            ", ".join(_SUFFIXES),
        )
    return found


def _classes(folder: Path, found: Mapping[str, Mapping[str, list[str]]]) -> list[str]:
    """Returns the sorted names of the classes, which training images must show."""
    classes = sorted(found["train"])
    empty = [name for name in classes if not found["train"][name]]
    if not classes or empty:
        where = f"the class {empty[0]}" if empty else "any class"
        raise UserError(
            f"{folder}: there are no training images of {where}; expected one folder "
            "for each class, with JPEG or PNG images, in train/, test/ and perhaps "
            "val/, or directly in this folder."
        )
    for split, by_class in found.items():
        unknown = sorted(by_class.keys() - found["train"].keys())
        if unknown:
            raise UserError(
                f"{folder}: the {split} split has images of the class {unknown[0]}, of "
                "which there are no training images."
            )
    return classes


def _hash(path: str, folder: Path) -> bytes:
    relative = os.path.relpath(path, folder)
    return hashlib.blake2b(os.fsencode(relative), digest_size=8).digest()
