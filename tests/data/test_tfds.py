"""Data sets of tensorflow-datasets, read without TensorFlow."""

import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data.tfds_files import examples, prepare_by_tfds, run_without_tensorflow
from PIL import Image

from bn_jax.data import load_dataset
from bn_jax.errors import UserError

SHAPE = (4, 5, 3)
FEATURES = {
    "image": tfds.features.Image(shape=SHAPE),
    "label": tfds.features.ClassLabel(num_classes=3),
}
RNG = np.random.default_rng(0)
TRAIN_IMAGES = RNG.integers(0, 256, (7, *SHAPE), dtype=np.uint8)
TEST_IMAGES = RNG.integers(0, 256, (5, *SHAPE), dtype=np.uint8)

Prepare = Callable[..., str]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Prepares examples as the data set "tiny", and gives back its data_dir."""

    def prepare_examples(
        train: Iterable[Any], test: Iterable[Any], features: Mapping[str, Any]
    ) -> str:
        splits = {"train": enumerate(train), "test": enumerate(test)}
        prepare_by_tfds(
            tmp_path,
            dataset="tiny",
            version="1.0.0",
            features=tfds.features.FeaturesDict(features),
            splits=splits,
        )
        return str(tmp_path)

    return prepare_examples


@pytest.fixture
def tiny(prepare: Prepare) -> str:
    return prepare(labelled(TRAIN_IMAGES), labelled(TEST_IMAGES), FEATURES)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def labelled(images: Iterable[np.ndarray]) -> list[dict[str, Any]]:
    return [{"image": png(image), "label": i % 3} for i, image in enumerate(images)]


def edit_info(data_dir: str, edit: Callable[[dict[str, Any]], None]) -> None:
    path = Path(data_dir, "tiny", "1.0.0", "dataset_info.json")
    info = json.loads(path.read_text())
    edit(info)
    path.write_text(json.dumps(info))


def test_a_small_set_comes_back_as_it_was_prepared(tiny: str) -> None:
    data = load_dataset("tiny", data_dir=tiny)
    assert (data.name, data.num_classes) == ("tiny", 3)
    labels = np.arange(7) % 3
    assert examples(data.train.images, data.train.labels) == examples(
        TRAIN_IMAGES, labels
    )
    assert examples(data.test.images, data.test.labels) == examples(
        TEST_IMAGES, labels[:5]
    )


@pytest.mark.shapes
def test_images_are_uint8_and_labels_int32(tiny: str) -> None:
    data = load_dataset("tiny", data_dir=tiny)
    assert data.train.images.shape == (7, *SHAPE)
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == np.int32


def test_reading_never_imports_tensorflow(tiny: str) -> None:
    program = (
        "from bn_jax.data import load_dataset; "
        "data = load_dataset('tiny', data_dir=sys.argv[1]); "
        "print(len(data.train.labels))"
    )
    assert run_without_tensorflow(program, tiny) == "7\n"


def test_a_split_may_be_a_slice(tiny: str) -> None:
    data = load_dataset(
        "tiny", data_dir=tiny, train_split="train[:4]", test_split="train[4:]"
    )
    assert (len(data.train.labels), len(data.test.labels)) == (4, 3)


def test_a_validation_split_is_read_only_if_it_is_chosen(tiny: str) -> None:
    assert load_dataset("tiny", data_dir=tiny).validation is None
    data = load_dataset(
        "tiny", data_dir=tiny, train_split="train[:4]", validation_split="train[4:]"
    )
    whole = load_dataset("tiny", data_dir=tiny).train.images
    np.testing.assert_array_equal(data.validation.images, whole[4:])
    assert (len(data.train), len(data.test)) == (4, 5)


def test_a_validation_split_shares_no_images_with_training(tiny: str) -> None:
    expected = r"share 3 images. Set --config.dataset.train_split='train\[:-3\]'"
    with pytest.raises(UserError, match=expected):
        load_dataset("tiny", data_dir=tiny, validation_split="train[4:]")


def test_a_tilde_in_data_dir_is_the_home_folder(
    tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(Path(tiny).parent))
    data = load_dataset("tiny", data_dir=f"~/{Path(tiny).name}")
    assert len(data.train.labels) == 7


@pytest.mark.parametrize(
    "split", ["validation", "train[:x]", "", "train[:0]", "train[5:2]", "train[:-2000]"]
)
@pytest.mark.parametrize("setting", ["train_split", "test_split"])
def test_an_impossible_split_is_refused(tiny: str, setting: str, split: str) -> None:
    expected = (
        rf"tiny: split .* set --config\.dataset\.{setting} to 'test' \(with 5 images\)"
        r", 'train' \(with 7 images\), "
    )
    with pytest.raises(UserError, match=expected):
        load_dataset("tiny", data_dir=tiny, **{setting: split})


def test_pixels_that_are_not_bytes_are_refused(prepare: Prepare) -> None:
    images = [image[..., :1].astype(np.uint16) * 257 for image in TRAIN_IMAGES]
    wide = [{"image": png(image[..., 0]), "label": 0} for image in images]
    feature = tfds.features.Image(shape=(*SHAPE[:2], 1), dtype=np.uint16)
    data_dir = prepare(wide, wide, FEATURES | {"image": feature})
    with pytest.raises(UserError, match=r"tiny: images must be uint8, .* are uint16"):
        load_dataset("tiny", data_dir=data_dir)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    expected = f"does not know 'minst', and .* is prepared in {tmp_path}"
    with pytest.raises(UserError, match=expected):
        load_dataset("minst", data_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["mnist:9.9.9", "mnist/no_config", "no name", ""])
def test_a_name_that_means_nothing_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"dataset\.name: "):
        load_dataset(name, data_dir=str(tmp_path))


def test_mnist_that_is_not_prepared_comes_with_the_command_that_does(
    tmp_path: Path,
) -> None:
    expected = f"Prepare it: bn-jax prepare mnist --data_dir={tmp_path}"
    with pytest.raises(UserError, match=expected):
        load_dataset("mnist", data_dir=str(tmp_path))


def test_another_set_that_is_not_prepared_comes_with_its_recipe(tmp_path: Path) -> None:
    recipe = (
        rf"cifar10: nothing is prepared .*tfds.builder\('cifar10', "
        rf"data_dir='{tmp_path}', file_format='array_record'\)"
    )
    with pytest.raises(UserError, match=recipe):
        load_dataset("cifar10", data_dir=str(tmp_path))


def test_data_prepared_as_tfrecord_are_refused(tiny: str) -> None:
    edit_info(tiny, lambda info: info.update(fileFormat="tfrecord"))
    with pytest.raises(UserError, match=r"tiny: .* prepared as tfrecord, which only"):
        load_dataset("tiny", data_dir=tiny)


def test_a_set_that_memory_cannot_hold_is_refused(tiny: str) -> None:
    edit_info(tiny, lambda info: info["splits"][0].update(shardLengths=["99999999"]))
    with pytest.raises(UserError, match=r"'train' has 99999999 .* at most 4 GiB"):
        load_dataset("tiny", data_dir=tiny)


def test_a_size_is_asked_for_where_images_vary_in_size(prepare: Prepare) -> None:
    images = labelled(TEST_IMAGES)
    data_dir = prepare(images, images, {**FEATURES, "image": tfds.features.Image()})
    with pytest.raises(UserError, match=r"image_size: the images of tiny vary in size"):
        load_dataset("tiny", data_dir=data_dir)
    data = load_dataset("tiny", data_dir=data_dir, image_size=3)
    images, _ = data.test.read(np.arange(5), np.arange(5))
    assert images.shape == (5, 3, 3, 3)


@pytest.mark.parametrize(("name", "value"), [("image_size", 8), ("distortion", 0.5)])
def test_a_change_of_images_of_one_size_is_refused(
    tiny: str, name: str, value: Any
) -> None:
    expected = rf"{name}={value} .* the images of tiny are all 4x5"
    with pytest.raises(UserError, match=expected):
        load_dataset("tiny", data_dir=tiny, **{name: value})


def test_grey_images_of_varying_size_are_refused(prepare: Prepare) -> None:
    images = labelled(TEST_IMAGES[..., 0])
    grey = tfds.features.Image(shape=(None, None, 1))
    data_dir = prepare(images, images, {**FEATURES, "image": grey})
    with pytest.raises(UserError, match=r"must be in colour, .* \(None, None, 1\)"):
        load_dataset("tiny", data_dir=data_dir, image_size=3)


def test_a_set_without_labels_is_refused(prepare: Prepare) -> None:
    images = [{"image": png(image)} for image in TEST_IMAGES]
    data_dir = prepare(images, images, {"image": FEATURES["image"]})
    expected = r"tiny: .* must have the features 'image' and 'label' .* but has image\."
    with pytest.raises(UserError, match=expected):
        load_dataset("tiny", data_dir=data_dir)


def test_labels_that_are_no_classes_are_refused(prepare: Prepare) -> None:
    images = labelled(TEST_IMAGES)
    number = tfds.features.Scalar(np.int64)
    data_dir = prepare(images, images, {**FEATURES, "label": number})
    with pytest.raises(UserError, match=r"'label' \(a class\), but has image, label"):
        load_dataset("tiny", data_dir=data_dir)


def test_unlabelled_examples_are_refused(prepare: Prepare) -> None:
    images = [{**example, "label": -1} for example in labelled(TEST_IMAGES)]
    with pytest.raises(
        UserError, match=r"split 'test': labels must be from 0 to 2, .* -1 to -1"
    ):
        load_dataset("tiny", data_dir=prepare(labelled(TRAIN_IMAGES), images, FEATURES))


def test_unlabelled_images_of_varying_size_are_refused(prepare: Prepare) -> None:
    images = [{**example, "label": -1} for example in labelled(TEST_IMAGES)]
    features = {**FEATURES, "image": tfds.features.Image()}
    data = load_dataset(
        "tiny", data_dir=prepare(images, images, features), image_size=3
    )
    with pytest.raises(
        UserError, match=r"0 to 2, but are from -1 to -1. Is it a split"
    ):
        data.test.read(np.arange(5), np.arange(5))


def test_files_need_not_be_as_large_as_the_records_that_are_noted(tiny: str) -> None:
    edit_info(tiny, lambda info: info["splits"][0].update(numBytes=str(5 * 2**16)))
    assert len(load_dataset("tiny", data_dir=tiny).train) == 7


@pytest.mark.parametrize("kept_bytes", [None, 0, 1000])
def test_a_damaged_or_missing_file_is_refused(
    tiny: str, kept_bytes: int | None
) -> None:
    (path,) = Path(tiny).glob("tiny/1.0.0/*train*")
    if kept_bytes is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(UserError, match=r"^tiny: "):
        load_dataset("tiny", data_dir=tiny)
