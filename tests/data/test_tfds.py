"""Data sets of tensorflow-datasets, prepared and read without TensorFlow."""

import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from bn_jax.data import ArrayDataset, load_dataset
from bn_jax.data.mnist import load_mnist
from bn_jax.errors import UserError

SHAPE = (4, 5, 3)
FEATURES = {
    "image": tfds.features.Image(shape=SHAPE),
    "label": tfds.features.ClassLabel(num_classes=3),
}
RNG = np.random.default_rng(0)
TRAIN_IMAGES = RNG.integers(0, 256, (7, *SHAPE), dtype=np.uint8)
TEST_IMAGES = RNG.integers(0, 256, (5, *SHAPE), dtype=np.uint8)

PREPARE = "from bn_jax.cli import main; main(sys.argv[1:])"

Prepare = Callable[..., str]


class Prepared(NamedTuple):
    """MNIST as `bn-jax prepare mnist` left it."""

    data_dir: str
    output: str


def run_without_tensorflow(program: str, *arguments: str) -> str:
    """Runs a program that fails if it imports TensorFlow, and returns its output."""
    program = f"import sys; {program}; assert 'tensorflow' not in sys.modules"
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    data_dir = str(tmp_path_factory.mktemp("tfds"))
    data_dir_flag = f"--data_dir={data_dir}"
    output = run_without_tensorflow(PREPARE, "prepare", "mnist", data_dir_flag)
    return Prepared(data_dir, output)


@pytest.fixture(scope="module")
def read_back(prepared: Prepared) -> ArrayDataset:
    return load_dataset("mnist", data_dir=prepared.data_dir)


@pytest.fixture(scope="module")
def mnist() -> ArrayDataset:
    return load_mnist()


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Prepares examples as the data set "tiny", and gives back its data_dir."""

    def prepare_examples(
        train: Iterable[Any], test: Iterable[Any], features: Mapping[str, Any]
    ) -> str:
        class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            name = "tiny"
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = code_path = None

            def _info(self) -> Any:
                dictionary = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, features=dictionary)

            def _split_generators(self, dl_manager: Any) -> Any:
                del dl_manager
                return {"train": enumerate(train), "test": enumerate(test)}

            def _generate_examples(self) -> Any:
                raise NotImplementedError

        Tiny(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
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


def examples(images: Iterable[np.ndarray], labels: Iterable[int]) -> Counter:
    pairs = zip(images, labels, strict=True)
    return Counter((image.tobytes(), int(label)) for image, label in pairs)


@pytest.mark.slow
def test_prepared_mnist_has_the_order_of_the_stock_preparation(
    read_back: ArrayDataset,
) -> None:
    assert read_back.train_labels[:8].tolist() == [4, 1, 0, 7, 8, 1, 2, 7]


@pytest.mark.slow
def test_prepared_mnist_holds_the_embedded_images_and_labels(
    read_back: ArrayDataset, mnist: ArrayDataset
) -> None:
    for split in ("train", "test"):
        images, labels = f"{split}_images", f"{split}_labels"
        assert examples(
            getattr(read_back, images), getattr(read_back, labels)
        ) == examples(getattr(mnist, images), getattr(mnist, labels))


@pytest.mark.slow
def test_prepared_mnist_differs_from_the_embedded_one_in_order_only(
    read_back: ArrayDataset, mnist: ArrayDataset
) -> None:
    for read, embedded in zip(read_back, mnist, strict=True):
        assert np.shape(read) == np.shape(embedded)
        assert getattr(read, "dtype", None) == getattr(embedded, "dtype", None)
    assert (read_back.name, read_back.num_classes) == ("mnist", 10)


@pytest.mark.slow
def test_plain_tfds_finds_the_prepared_mnist(
    prepared: Prepared, mnist: ArrayDataset
) -> None:
    source = tfds.data_source("mnist", data_dir=prepared.data_dir, split="test")
    records = source.__getitems__(range(len(source)))
    images, labels = ([record[key] for record in records] for key in FEATURES)
    assert examples(images, labels) == examples(mnist.test_images, mnist.test_labels)


@pytest.mark.slow
def test_prepare_says_how_to_read_what_it_wrote(prepared: Prepared) -> None:
    data_dir = prepared.data_dir
    assert prepared.output.splitlines()[-1] == (
        f"{Path(data_dir, 'mnist', '3.0.1')}: read it with "
        f'tfds.data_source("mnist", data_dir="{data_dir}").'
    )


@pytest.mark.slow
def test_preparing_again_keeps_what_is_there(prepared: Prepared) -> None:
    data_dir_flag = f"--data_dir={prepared.data_dir}"
    again = run_without_tensorflow(PREPARE, "prepare", "mnist", data_dir_flag)
    assert again.splitlines()[-1] == prepared.output.splitlines()[-1]


def test_a_small_set_comes_back_as_it_was_prepared(tiny: str) -> None:
    data = load_dataset("tiny", data_dir=tiny)
    assert (data.name, data.num_classes) == ("tiny", 3)
    labels = np.arange(7) % 3
    assert examples(data.train_images, data.train_labels) == examples(
        TRAIN_IMAGES, labels
    )
    assert examples(data.test_images, data.test_labels) == examples(
        TEST_IMAGES, labels[:5]
    )


@pytest.mark.shapes
def test_images_are_uint8_and_labels_int32(tiny: str) -> None:
    data = load_dataset("tiny", data_dir=tiny)
    assert data.train_images.shape == (7, *SHAPE)
    assert data.train_images.dtype == np.uint8
    assert data.train_labels.dtype == np.int32


def test_reading_never_imports_tensorflow(tiny: str) -> None:
    program = (
        "from bn_jax.data import load_dataset; "
        "data = load_dataset('tiny', data_dir=sys.argv[1]); "
        "print(len(data.train_labels))"
    )
    assert run_without_tensorflow(program, tiny) == "7\n"


def test_a_split_may_be_a_slice(tiny: str) -> None:
    data = load_dataset(
        "tiny", data_dir=tiny, train_split="train[:4]", test_split="train[4:]"
    )
    assert (len(data.train_labels), len(data.test_labels)) == (4, 3)


def test_a_tilde_in_data_dir_is_the_home_folder(
    tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(Path(tiny).parent))
    data = load_dataset("tiny", data_dir=f"~/{Path(tiny).name}")
    assert len(data.train_labels) == 7


@pytest.mark.parametrize(
    "split", ["validation", "train[:x]", "", "train[:0]", "train[5:2]"]
)
def test_an_impossible_split_is_refused(tiny: str, split: str) -> None:
    with pytest.raises(UserError, match=r"tiny: there is no split .* has test, train"):
        load_dataset("tiny", data_dir=tiny, train_split=split)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    expected = f"knows no 'minst', and none is prepared under {tmp_path}"
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
    with pytest.raises(UserError, match=r"'train' holds 99999999 .* at most 4 GiB"):
        load_dataset("tiny", data_dir=tiny)


def test_a_size_is_asked_for_where_images_vary_in_size(prepare: Prepare) -> None:
    images = labelled(TEST_IMAGES)
    data_dir = prepare(images, images, {**FEATURES, "image": tfds.features.Image()})
    with pytest.raises(UserError, match=r"image_size: the images of tiny vary in size"):
        load_dataset("tiny", data_dir=data_dir)
    data = load_dataset("tiny", data_dir=data_dir, image_size=3)
    images, _ = data.test.read(np.arange(5), np.arange(5))
    assert images.shape == (5, 3, 3, 3)


def test_a_size_for_images_of_one_size_is_refused(tiny: str) -> None:
    with pytest.raises(UserError, match=r"image_size: 8 .* those of tiny are all 4x5"):
        load_dataset("tiny", data_dir=tiny, image_size=8)


def test_grey_images_of_varying_size_are_refused(prepare: Prepare) -> None:
    images = labelled(TEST_IMAGES[..., 0])
    grey = tfds.features.Image(shape=(None, None, 1))
    data_dir = prepare(images, images, {**FEATURES, "image": grey})
    with pytest.raises(UserError, match=r"must be in colour; .* \(None, None, 1\)"):
        load_dataset("tiny", data_dir=data_dir, image_size=3)


def test_a_set_without_labels_is_refused(prepare: Prepare) -> None:
    images = [{"image": png(image)} for image in TEST_IMAGES]
    data_dir = prepare(images, images, {"image": FEATURES["image"]})
    expected = r"tiny: expected the features 'image' and 'label' .*; there are image\."
    with pytest.raises(UserError, match=expected):
        load_dataset("tiny", data_dir=data_dir)


def test_labels_that_are_no_classes_are_refused(prepare: Prepare) -> None:
    images = labelled(TEST_IMAGES)
    number = tfds.features.Scalar(np.int64)
    data_dir = prepare(images, images, {**FEATURES, "label": number})
    with pytest.raises(UserError, match=r"'label' \(a class\); there are image, label"):
        load_dataset("tiny", data_dir=data_dir)


def test_unlabelled_examples_are_refused(prepare: Prepare) -> None:
    images = [{**example, "label": -1} for example in labelled(TEST_IMAGES)]
    with pytest.raises(UserError, match=r"test split must lie in 0 to 2, .* -1 to -1"):
        load_dataset("tiny", data_dir=prepare(labelled(TRAIN_IMAGES), images, FEATURES))


def test_unlabelled_images_of_varying_size_are_refused(prepare: Prepare) -> None:
    images = [{**example, "label": -1} for example in labelled(TEST_IMAGES)]
    features = {**FEATURES, "image": tfds.features.Image()}
    data = load_dataset(
        "tiny", data_dir=prepare(images, images, features), image_size=3
    )
    with pytest.raises(UserError, match=r"0 to 2, and lie in -1 to -1; is it a split"):
        data.test.read(np.arange(5), np.arange(5))


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
