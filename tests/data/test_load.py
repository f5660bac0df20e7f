"""Where a configuration's data come from."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.idx_files import contents, write_idx_folder

from bn_jax.data import load_dataset
from bn_jax.data.idx import load_idx_folder
from bn_jax.data.imagenet.cropped import ImageSettings
from bn_jax.data.splits import SplitNames
from bn_jax.errors import UserError


def test_mnist_without_a_folder_is_the_embedded_one() -> None:
    data = load_dataset("mnist")
    assert (data.name, len(data.train.labels)) == ("mnist", 60_000)


def test_a_folder_of_idx_files_goes_before_the_name(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path / "digits")
    data = load_dataset("mnist", idx_dir=str(folder))
    np.testing.assert_equal(contents(data), contents(load_idx_folder(folder)))


def test_a_tilde_in_idx_dir_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_idx_folder(tmp_path / "digits")
    assert load_dataset("mnist", idx_dir="~/digits").name == "digits"


def test_two_folders_at_once_are_refused() -> None:
    with pytest.raises(
        UserError, match="give one folder, not idx_dir=a and data_dir=b"
    ):
        load_dataset("mnist", idx_dir="a", data_dir="b")


def test_a_missing_idx_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="idx_dir: there is no folder"):
        load_dataset("mnist", idx_dir=str(tmp_path / "nothing"))


def test_mnist_with_data_dir_is_looked_for_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"mnist: nothing is prepared in {tmp_path}"):
        load_dataset("mnist", data_dir=str(tmp_path))


def test_splits_reach_tensorflow_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr(
        sys.modules["bn_jax.data.load"],
        "load_tfds",
        lambda name, **splits: given.update(splits, name=name),
    )
    load_dataset("cifar10", train_split="train[:9]", test_split="train[9:]")
    assert given == {
        "name": "cifar10",
        "data_dir": None,
        "splits": SplitNames("train[:9]", "train[9:]"),
        "settings": ImageSettings(None),
    }


@pytest.mark.parametrize(
    ("name", "split"), [("imagenet2012:5.1.0", "validation"), ("cifar10", "test")]
)
def test_imagenet_is_tested_on_its_validation_images(
    monkeypatch: pytest.MonkeyPatch, name: str, split: str
) -> None:
    given = {}
    module = sys.modules["bn_jax.data.load"]
    monkeypatch.setattr(module, "load_tfds", lambda name, **rest: given.update(rest))
    load_dataset(name, image_size=224, distortion=0.3, augmentation_seed=7)
    assert given["splits"].test_split == split
    assert given["settings"] == ImageSettings(224, distortion=0.3, seed=7)


@pytest.mark.parametrize(("name", "value"), [("image_size", 32), ("distortion", 0.5)])
def test_a_change_of_images_of_one_size_is_refused(
    tmp_path: Path, name: str, value: Any
) -> None:
    folder = write_idx_folder(tmp_path / "digits")
    for where in ({}, {"idx_dir": str(folder)}):
        with pytest.raises(UserError, match=rf"{name}={value} .* are all 28x28"):
            load_dataset("mnist", **{name: value}, **where)


def test_images_in_memory_are_split_by_the_same_names(tmp_path: Path) -> None:
    folder = str(write_idx_folder(tmp_path / "digits"))
    whole = load_idx_folder(Path(folder))
    data = load_dataset(
        "mnist", idx_dir=folder, train_split="train[:-2]", test_split="train[-2:]"
    )
    images, labels = data.test.read(np.arange(2), np.arange(2))
    np.testing.assert_array_equal(images, whole.train.images[-2:])
    np.testing.assert_array_equal(labels, whole.train.labels[-2:])
    assert len(data.train) == len(whole.train.labels) - 2
