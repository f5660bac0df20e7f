"""ImageNet prepared without TensorFlow: what comes out, and where nothing can."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from data.imagenet_files import CMYK, GREY, PNG, training_files, validation_files
from data.imagenet_records import in_order, records
from data.tfds_files import prepare_by_tfds
from PIL import Image

import bn_jax.progress
from bn_jax.data.preparation.imagenet import prepare_imagenet as prepare
from bn_jax.data.preparation.rgb_jpeg import rgb_jpeg
from bn_jax.errors import UserError

# The classes of the first validation images, from tensorflow-datasets' own list.
VALIDATION_LABELS = [65, 970, 230, 809, 516, 57, 334, 415, 674, 332]
ODD = (CMYK, PNG)


@pytest.fixture(scope="module")
def data_dir(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("prepared")
    prepare(tars, data_dir, is_subset=True)
    return data_dir


def flat(training: dict[str, dict[str, bytes]]) -> dict[str, bytes]:
    return {name: data for files in training.values() for name, data in files.items()}


@pytest.mark.usefixtures("many_files")
def test_files_and_their_records_are_those_of_tensorflow_datasets(
    tars: Path, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    folder = prepare(tars, ours, is_subset=True)
    prepare_by_tfds(
        theirs,
        dataset="imagenet2012",
        version="5.1.0",
        features=tfds.builder("imagenet2012").info.features,
        splits={s: records(ours, s).items() for s in ("train", "validation")},
    )
    names = sorted(path.name for path in folder.glob("*array_record*"))
    assert len(names) == 32 + 8
    expected = theirs / "imagenet2012" / "5.1.0"
    assert names == sorted(path.name for path in expected.glob("*array_record*"))
    for split in ("train", "validation"):
        assert in_order(ours, split) == in_order(theirs, split)


def test_a_batch_job_is_told_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch,
    tars: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bn_jax.progress, "_SECONDS_BETWEEN_LINES", 0)
    prepare(tars, tmp_path, is_subset=True)
    told = capfd.readouterr().err
    assert "find images in ILSVRC2012_img_train.tar: " in told
    assert re.search(r"prepare imagenet2012: (\d+) of \1, 00:00 left\n", told)


def test_every_record_can_be_read_by_itself(data_dir: Path) -> None:
    for path in data_dir.glob("imagenet2012/5.1.0/*array_record*"):
        options = ArrayRecordReader(str(path)).writer_options_string()
        assert "group_size:1," in options


def test_every_training_image_is_there_with_its_class(data_dir: Path) -> None:
    found, files = records(data_dir, "train"), flat(training_files())
    names = tfds.builder("imagenet2012").info.features["label"].names
    assert found.keys() == files.keys()
    for name, record in found.items():
        assert names[record["label"]] == name.split("_")[0]
        assert record["image"] == files[name] or name in ODD


def test_validation_images_have_the_classes_of_their_numbers(data_dir: Path) -> None:
    found, files = records(data_dir, "validation"), validation_files()
    assert {name: record["image"] for name, record in found.items()} == files
    labels = [found[name]["label"] for name in sorted(found)]
    assert labels[:10] == VALIDATION_LABELS


@pytest.mark.parametrize("name", ODD)
def test_an_odd_image_becomes_a_jpeg_in_rgb(data_dir: Path, name: str) -> None:
    image = Image.open(io.BytesIO(records(data_dir, "train")[name]["image"]))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    original = Image.open(io.BytesIO(flat(training_files())[name])).convert("RGB")
    difference = np.asarray(image, int) - np.asarray(original, int)
    # Quality 100 still rounds.
    assert abs(difference).mean() < 2


def test_a_grey_image_stays_as_it_is() -> None:
    grey = training_files()["n01440764"][GREY]
    assert rgb_jpeg(grey, name=GREY) is grey


def test_a_data_set_that_is_there_is_left_alone(tars: Path, data_dir: Path) -> None:
    folder = data_dir / "imagenet2012" / "5.1.0"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare(tars, data_dir, is_subset=True) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_disk_that_is_too_small_is_refused(
    monkeypatch: pytest.MonkeyPatch, tars: Path, tmp_path: Path
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"needs 0 GB, but only 0 GB are free"):
        prepare(tars, tmp_path, is_subset=True)


def test_data_prepared_as_tfrecord_are_left_alone(tars: Path, tmp_path: Path) -> None:
    folder = prepare(tars, tmp_path, is_subset=True)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"are prepared as tfrecord"):
        prepare(tars, tmp_path, is_subset=True)


def test_a_folder_that_lacks_files_is_not_taken_for_a_data_set(
    tars: Path, tmp_path: Path
) -> None:
    folder = prepare(tars, tmp_path, is_subset=True)
    next(folder.glob("*-train.array_record*")).unlink()
    with pytest.raises(
        UserError, match=r"incomplete or damaged; imagenet2012-train\S* is missing"
    ):
        prepare(tars, tmp_path, is_subset=True)


def test_a_subset_does_not_pass_for_all_images(tars: Path, data_dir: Path) -> None:
    expected = r"must contain all images, .*'train': 43.* Pass --subset"
    with pytest.raises(UserError, match=expected):
        prepare(tars, data_dir)


@pytest.mark.parametrize("description", [None, "{"])
def test_a_folder_whose_description_is_damaged_is_to_be_removed(
    tars: Path, tmp_path: Path, description: str | None
) -> None:
    info = prepare(tars, tmp_path, is_subset=True) / "dataset_info.json"
    if description is None:
        info.unlink()
    else:
        info.write_text(description)
    with pytest.raises(UserError, match=r"Remove .* folder.* [Pp]repare it"):
        prepare(tars, tmp_path, is_subset=True)


def test_a_disk_that_fills_meanwhile_is_said(
    monkeypatch: pytest.MonkeyPatch, tars: Path, tmp_path: Path
) -> None:
    class Full(ArrayRecordWriter):
        def write(self, content: bytes) -> None:
            raise RuntimeError("write() failed: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(array_record_module, "ArrayRecordWriter", Full)
        with pytest.raises(
            UserError, match=r"No space left .* keeps the complete files"
        ):
            prepare(tars, tmp_path, is_subset=True)
    assert prepare(tars, tmp_path, is_subset=True).is_dir()


def test_an_image_of_excessive_size_is_refused_with_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=f"{GREY}: Pillow cannot decode the image"):
        rgb_jpeg(training_files()["n01440764"][GREY], name=GREY)
