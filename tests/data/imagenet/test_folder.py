"""Folders of images by class: what is read, and what is refused."""

import io
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.hostile_files import MiB, at_most, white_png
from data.imagenet_files import encode, picture
from PIL import Image

from bn_jax.data import load_dataset
from bn_jax.data.imagenet.crops import center_crop, random_crop
from bn_jax.data.imagenet.folder import image_classes
from bn_jax.errors import UserError

SIZE = 8
COLOURS = {"cat": (250, 20, 20), "dog": (20, 20, 250)}


def image_of(colour: tuple[int, int, int], kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 30), colour).save(file, kind)
    return file.getvalue()


def write_images(folder: Path, counts: dict[str, int]) -> Path:
    """Writes images of one colour a class, JPEG and PNG in turn."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            kind, suffix = (("JPEG", "JPG"), ("PNG", "png"))[number % 2]
            path = folder / name / f"{number}.{suffix}"
            path.write_bytes(image_of(COLOURS[name], kind))
    return folder


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder with three splits."""
    write_images(tmp_path / "pets" / "train", {"dog": 4, "cat": 6})
    write_images(tmp_path / "pets" / "val", {"dog": 2, "cat": 1})
    write_images(tmp_path / "pets" / "test", {"cat": 3})
    return tmp_path / "pets"


def load(folder: Path, **settings: Any) -> Any:
    return load_dataset("mnist", image_dir=str(folder), image_size=SIZE, **settings)


def read_all(split: Any) -> tuple[np.ndarray, np.ndarray]:
    indices = np.arange(len(split))
    return split.read(indices, indices)


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_labels_are_the_sorted_names_of_the_folders(
    pets: Path, validation: str
) -> None:
    (pets / "val").rename(pets / validation)
    data = load(pets)
    assert (data.name, data.num_classes) == ("pets", 2)
    assert image_classes(pets) == ["cat", "dog"]
    for split, counts in ("train", [6, 4]), ("validation", [1, 2]), ("test", [3]):
        images, labels = read_all(getattr(data, split))
        assert images.shape == (sum(counts), SIZE, SIZE, 3)
        assert np.bincount(labels).tolist() == counts
        # Red is more than blue in images of cats; JPEG changes colours a little.
        np.testing.assert_array_equal(images[..., 0].mean((1, 2)) < 128, labels)


def test_images_are_cropped_like_those_of_imagenet(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "one").mkdir(parents=True)
        path = tmp_path / split / "one" / "1.png"
        path.write_bytes(encode(picture(7), "PNG"))
    pixels = np.asarray(picture(7))
    data = load(tmp_path, augmentation_seed=5)
    images, _ = data.train.read(np.array([0]), np.array([3]))
    expected = random_crop(pixels, np.random.default_rng((5, 3)), SIZE)
    np.testing.assert_array_equal(images[0], expected)
    np.testing.assert_array_equal(read_all(data.test)[0][0], center_crop(pixels, SIZE))
    assert data.test.all_crops().read(np.array([0]), np.array([0]))[0].ndim == 5


def test_one_set_of_images_is_divided_by_slices_with_all_classes(
    tmp_path: Path,
) -> None:
    folder = write_images(tmp_path / "pets", {"cat": 40, "dog": 40})
    data = load(
        folder,
        train_split="train[:60%]",
        validation_split="train[60%:80%]",
        test_split="train[80%:]",
    )
    labels = [read_all(s)[1] for s in (data.train, data.validation, data.test)]
    assert [len(of_split) for of_split in labels] == [48, 16, 16]
    assert np.bincount(np.concatenate(labels)).tolist() == [40, 40]
    for of_split in labels:
        assert set(of_split.tolist()) == {0, 1}
    # The order does not depend on where the folder lies.
    moved = folder.rename(tmp_path / "moved")
    again = load(moved, train_split="train[:60%]", test_split="train[80%:]")
    np.testing.assert_array_equal(read_all(again.train)[1], labels[0])


def test_other_files_are_ignored_with_a_warning(
    pets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (pets / "train" / "cat" / "notes.txt").write_text("cats")
    (pets / "train" / ".hidden").mkdir()
    with caplog.at_level(logging.WARNING):
        assert len(load(pets).train) == 10
    assert "1 files are ignored" in caplog.text


def test_a_size_is_asked_for(pets: Path) -> None:
    with pytest.raises(UserError, match=r"image_size: the images of pets vary in size"):
        load_dataset("mnist", image_dir=str(pets))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"test_split": "tst"}, r"pets: split 'tst' .* 'train' \(with 10 images\)"),
        ({"idx_dir": "a"}, r"give one folder, not idx_dir=a and image_dir=.*pets"),
        ({"read_threads": 0}, r"read_threads must be an integer of at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    pets: Path, settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        load(pets, **settings)


def test_a_folder_without_test_images_says_which_splits_there_are(pets: Path) -> None:
    (pets / "test").rename(pets / "other")
    expected = r"'test' does not exist .* 'train' .* 'validation' \(with 3 images\)"
    with pytest.raises(UserError, match=expected):
        load(pets)
    assert len(load(pets, test_split="validation").test) == 3


def test_a_folder_that_is_missing_or_has_no_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image_dir: there is no folder .*nothing"):
        load(tmp_path / "nothing")
    (tmp_path / "image.png").write_bytes(encode(picture(1), "PNG"))
    with pytest.raises(UserError, match=r"no training images of any class; expected"):
        load(tmp_path)


def test_classes_that_training_does_not_show_are_refused(pets: Path) -> None:
    (pets / "train" / "bird").mkdir()
    with pytest.raises(UserError, match="no training images of the class bird"):
        load(pets)
    (pets / "train" / "bird").rmdir()
    (pets / "val" / "bird").mkdir()
    with pytest.raises(UserError, match=r"validation split has .* class bird"):
        load(pets)


def test_folders_of_splits_are_not_taken_for_classes(pets: Path) -> None:
    (pets / "train").rename(pets / "training")
    with pytest.raises(UserError, match=r"must be train/ .* are training, test, val\."):
        load(pets)


@pytest.mark.parametrize("second", ["training", "validation"])
def test_two_folders_of_one_split_are_refused(pets: Path, second: str) -> None:
    (pets / second).mkdir()
    with pytest.raises(UserError, match=f"one of val/ .* are train.* {second}"):
        load(pets)


def test_a_damaged_image_is_named_when_it_is_read(pets: Path) -> None:
    path = pets / "test" / "cat" / "0.JPG"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"the image {path} cannot be .* Replace or"):
        read_all(load(pets).test)


def test_an_image_of_absurd_size_fills_no_memory(pets: Path) -> None:
    (pets / "test" / "cat" / "0.JPG").write_bytes(white_png(20_000, 20_000))
    split = load(pets).test
    expected = r"0\.JPG cannot be decoded .*400000000 pixels"
    with at_most(16 * MiB), pytest.raises(UserError, match=expected):
        read_all(split)


def test_a_file_that_is_too_large_or_never_ends_is_refused(pets: Path) -> None:
    path = pets / "test" / "cat" / "0.JPG"
    with path.open("r+b") as file:
        # A hole, which needs no space on the disk.
        file.truncate(2**30)
    with at_most(16 * MiB), pytest.raises(UserError, match=r"0\.JPG: the image cannot"):
        read_all(load(pets).test)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="it must be a file of at most"):
        read_all(load(pets).test)
