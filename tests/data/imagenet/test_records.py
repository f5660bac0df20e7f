"""Images of varying size, read when they are asked for."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data.imagenet_files import CMYK, GREY, PNG, SYNSETS, encode, picture, write_tars
from PIL import Image

from bn_jax.data import load_dataset
from bn_jax.data.dataset import Split
from bn_jax.data.imagenet import opencv
from bn_jax.data.imagenet.crops import all_crops, center_crop, random_crop
from bn_jax.data.imagenet.distortion import distort
from bn_jax.data.preparation import imagenet
from bn_jax.errors import UserError

SIZE = 16
ALL = np.arange(43)

Contents = list[dict[str, Any]]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("imagenet")
    imagenet.prepare_imagenet(write_tars(folder), folder, is_subset=True)
    return str(folder)


@pytest.fixture(scope="module")
def contents(data_dir: str) -> Contents:
    """The records of the training split, images decoded by Pillow or OpenCV."""
    return list(tfds.data_source("imagenet2012", data_dir=data_dir, split="train"))


def load(data_dir: str | Path, **settings: Any) -> Any:
    return load_dataset(
        "imagenet2012", data_dir=str(data_dir), image_size=SIZE, **settings
    )


def read(split: Split, indices: np.ndarray, first: int = 0) -> np.ndarray:
    return split.read(indices, first + np.arange(len(indices)))[0]


def test_there_is_what_training_asks_for(data_dir: str) -> None:
    data = load(data_dir)
    assert (data.name, data.num_classes) == ("imagenet2012", 1000)
    assert (len(data.train), len(data.test)) == (43, 12)


def test_every_image_comes_with_its_own_label(
    data_dir: str, contents: Contents
) -> None:
    _, labels = load(data_dir).train.read(ALL[::-1], ALL)
    assert labels.tolist() == [record["label"] for record in contents[::-1]]


@pytest.mark.shapes
@pytest.mark.parametrize("shape", [(7,), (2, 3), (1, 2, 2), (0,)])
def test_the_axes_of_the_indices_come_first(
    data_dir: str, shape: tuple[int, ...]
) -> None:
    indices = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    for split in (load(data_dir).train, load(data_dir).test):
        images, labels = split.read(indices, indices)
        assert (images.shape, images.dtype) == ((*shape, SIZE, SIZE, 3), np.uint8)
        assert (labels.shape, labels.dtype) == (shape, np.int32)


@pytest.mark.parametrize("distortion", [0.0, 0.6])
def test_a_training_image_is_a_random_crop_with_other_colours(
    data_dir: str, contents: Contents, distortion: float
) -> None:
    split = load(data_dir, distortion=distortion, augmentation_seed=5).train
    images = read(split, ALL, first=1000)
    for image, record, position in zip(images, contents, 1000 + ALL, strict=True):
        rng = np.random.default_rng((5, position))
        crop = random_crop(record["image"], rng, SIZE)
        expected = distort(crop, rng, strength=distortion)
        np.testing.assert_array_equal(image, expected)


def test_a_test_image_is_the_middle(data_dir: str) -> None:
    source = tfds.data_source("imagenet2012", data_dir=data_dir, split="validation")
    images = read(load(data_dir).test, np.arange(12))
    for image, record in zip(images, source, strict=True):
        np.testing.assert_array_equal(image, center_crop(record["image"], SIZE))


def test_the_crops_of_each_image_take_its_place(data_dir: str) -> None:
    source = tfds.data_source("imagenet2012", data_dir=data_dir, split="validation")
    data = load(data_dir)
    indices = np.array([[3, 0], [11, 5]])
    crops, labels = data.test.all_crops().read(indices, indices)
    assert (crops.shape, crops.dtype) == ((2, 2, 144, SIZE, SIZE, 3), np.uint8)
    for place, index in np.ndenumerate(indices):
        expected = all_crops(source[int(index)]["image"], SIZE)
        np.testing.assert_array_equal(crops[place], expected)
    # The split itself is as it was.
    images, same = data.test.read(indices, indices)
    assert images.shape == (2, 2, SIZE, SIZE, 3)
    np.testing.assert_array_equal(labels, same)


def test_what_is_random_depends_on_the_seed_and_the_position_alone(
    data_dir: str,
) -> None:
    settings = {"distortion": 0.5, "augmentation_seed": 3}
    whole = read(load(data_dir, **settings, read_threads=1).train, ALL)
    # As if it were resumed, and shared by processes with other numbers of threads.
    for threads, part in ((2, ALL[20:]), (3, ALL[1::2]), (None, ALL[::-3])):
        split = load(data_dir, **settings, read_threads=threads).train
        np.testing.assert_array_equal(split.read(part, part)[0], whole[part])


@pytest.mark.parametrize("change", ["position", "seed"])
def test_another_position_or_seed_gives_another_image(
    data_dir: str, change: str
) -> None:
    images = read(load(data_dir).train, ALL)
    other = load(data_dir, augmentation_seed=int(change == "seed")).train
    others = read(other, ALL, first=int(change == "position") * 43)
    differ = (images != others).any((1, 2, 3))
    assert differ.mean() > 0.9


def test_test_images_do_not_depend_on_the_position(data_dir: str) -> None:
    split = load(data_dir, distortion=1.0).test
    indices = np.arange(12)
    np.testing.assert_array_equal(read(split, indices), read(split, indices, first=99))


@pytest.mark.parametrize("name", [CMYK, PNG, GREY])
def test_an_odd_image_is_read_in_colour(
    data_dir: str, contents: Contents, name: str
) -> None:
    names = [record["file_name"] for record in contents]
    index = np.array([names.index(name.encode())])
    data = load_dataset(
        "imagenet2012", data_dir=data_dir, image_size=SIZE, test_split="train"
    )
    seed = {CMYK: 101, PNG: 102, GREY: 103}[name]
    original = picture(seed).convert("L" if name == GREY else "RGB").convert("RGB")
    expected = center_crop(np.asarray(original), SIZE).astype(int)
    # CMYK and JPEG lose some precision.
    assert abs(read(data.test, index)[0] - expected).mean() < 4


def test_a_slice_is_a_split(data_dir: str) -> None:
    data = load(data_dir, train_split="train[:10]", test_split="train[10:]")
    assert (len(data.train), len(data.test)) == (10, 33)


def test_the_turn_that_exif_asks_for_is_left_out(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "image.jpg", exif=exif)
    pixels = opencv.decode_rgb((tmp_path / "image.jpg").read_bytes())
    assert pixels is not None
    assert pixels.shape == (20, 40, 3)


def test_decoding_gives_the_pixels_that_pillow_gives() -> None:
    image = picture(1)
    np.testing.assert_array_equal(
        opencv.decode_rgb(encode(image, "PNG")), np.asarray(image)
    )
    jpeg = opencv.decode_rgb(encode(image))
    assert jpeg is not None
    # Red comes first, and each decoder rounds for itself.
    assert abs(jpeg.astype(int) - np.asarray(image)).mean() < 4


def test_reading_imports_no_tensorflow(data_dir: str) -> None:
    program = (
        "import sys, numpy as np; from bn_jax.data import load_dataset; "
        "assert 'cv2' not in sys.modules; "
        "d = load_dataset('imagenet2012', data_dir=sys.argv[1], image_size=8); "
        "d.train.read(np.arange(3), np.arange(3)); "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, data_dir], check=True)


def test_without_opencv_the_error_says_how_to_install_it(
    data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opencv.opencv.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"pip install 'bn-jax\[imagenet\]'"):
        load(data_dir)


def test_enough_files_may_be_open(
    data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: limits.append(new))
    load(data_dir)
    assert limits == [(1025, 4096), (1025, 4096)]


def test_where_any_number_of_files_may_be_open_nothing_is_changed(
    data_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[tuple[int, int]] = []
    no_limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: no_limit)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: limits.append(new))
    load(data_dir)
    assert limits == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"image_size": 0}, r"image_size: .* in pixels, such as 224, but is 0"),
        ({"image_size": None}, r"image_size: the images of imagenet2012 vary in size"),
        ({"distortion": -0.1}, r"distortion: .* between 0 \(none\) and 1, but is -0.1"),
        ({"distortion": 1.5}, r"distortion: .* but is 1.5"),
        ({"distortion": float("nan")}, r"distortion: .* but is nan"),
        ({"read_threads": 0}, r"read_threads must .* of at least 1, but is 0"),
        ({"read_threads": "abc"}, r"read_threads must be an integer .* is 'abc'"),
        ({"read_threads": 1.5}, r"read_threads must be an integer .* is 1\.5"),
        ({"image_size": "224px"}, r"image_size: .* such as 224, but is '224px'"),
        ({"image_size": True}, r"image_size: .* such as 224, but is True"),
        ({"distortion": "a"}, r"distortion: .* but is 'a'"),
        ({"distortion": True}, r"distortion: .* but is True"),
        ({"read_threads": True}, r"read_threads must .* is True"),
        ({"augmentation_seed": -1}, r"augmentation_seed must .* at least 0, but is -1"),
        ({"augmentation_seed": 1.5}, r"augmentation_seed must .* integer .* is 1\.5"),
        ({"augmentation_seed": True}, r"augmentation_seed must .* but is True"),
        ({"augmentation_seed": None}, r"augmentation_seed must .* but is None"),
        (
            {"test_split": "test"},
            r"split 'test' .* 'train' .with 43 images., 'validation' .with",
        ),
    ],
)
def test_an_impossible_setting_is_refused(
    data_dir: str, settings: dict[str, Any], expected: str
) -> None:
    fields = {"image_size": SIZE, **settings}
    with pytest.raises(UserError, match=expected):
        load_dataset("imagenet2012", data_dir=data_dir, **fields)


def test_missing_data_come_with_the_command_that_prepares_them(tmp_path: Path) -> None:
    expected = (
        rf"nothing is prepared .*bn-jax prepare imagenet2012 --manual_dir=TARS "
        rf"--data_dir={tmp_path}"
    )
    with pytest.raises(UserError, match=expected):
        load(tmp_path)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("5.1.0", r"Prepare it: bn-jax prepare imagenet2012 --manual_dir"),
        ("5.*.*", r"Prepare it: bn-jax prepare imagenet2012 --manual_dir"),
        ("5.0.0", r"bn-jax prepares version 5\.1\.0 only; .*r\('imagenet2012:5\.0\.0'"),
    ],
)
def test_another_version_is_prepared_by_tensorflow_datasets(
    tmp_path: Path, version: str, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        load_dataset(f"imagenet2012:{version}", data_dir=str(tmp_path), image_size=8)


def test_a_damaged_image_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encode(picture(1))
    name = f"{SYNSETS[0]}_2.JPEG"
    files = {f"{SYNSETS[0]}_1.JPEG": whole, name: whole[: len(whole) // 2]}
    folder = write_tars(tmp_path, training={SYNSETS[0]: files})
    # As another program might prepare it.
    monkeypatch.setattr(imagenet, "rgb_jpeg", lambda content, name: content)
    imagenet.prepare_imagenet(folder, tmp_path, is_subset=True)
    with pytest.raises(UserError, match=rf"the image {name} cannot be decoded"):
        read(load(tmp_path).train, np.arange(2))
