"""ImageNet prepared without TensorFlow: what comes out, again and out of bad files."""

import fcntl
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data.imagenet_files import (
    CMYK,
    GREY,
    PNG,
    SYNSETS,
    encode,
    picture,
    training_files,
    validation_files,
    write_tars,
)
from PIL import Image
from tensorflow_datasets.core.utils.shard_utils import ShardConfig

from bn_jax.data import load_dataset, prepare_imagenet
from bn_jax.data.prepare_imagenet import prepare_imagenet as prepare
from bn_jax.data.rgb_jpeg import rgb_jpeg
from bn_jax.errors import UserError

# The classes of the first validation images, from tensorflow-datasets' own list.
VALIDATION_LABELS = [65, 970, 230, 809, 516, 57, 334, 415, 674, 332]
ODD = (CMYK, PNG)
JPEG = encode(picture(0))
VALIDATION_TAR = "ILSVRC2012_img_val.tar"
TRAIN_TAR = "ILSVRC2012_img_train.tar"

Records = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tars(tmp_path_factory.mktemp("tars"))


@pytest.fixture(scope="module")
def data_dir(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_dir = tmp_path_factory.mktemp("prepared")
    prepare(tars, data_dir, is_subset=True)
    return data_dir


@pytest.fixture
def many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes files of a split as small as they can be: there are several."""
    monkeypatch.setattr(ShardConfig, "min_shard_size", 1)


def source(data_dir: Path, split: str, **options: Any) -> Any:
    return tfds.data_source(
        "imagenet2012", data_dir=str(data_dir), split=split, **options
    )


def in_order(data_dir: Path, split: str) -> list[tuple[Any, ...]]:
    """What the records hold, in their order; the order in a record is any."""
    encoded = {"image": tfds.decode.SkipDecoding()}
    found = source(data_dir, split, decoders=encoded)
    return [(one["file_name"], int(one["label"]), one["image"]) for one in found]


def records(data_dir: Path, split: str) -> Records:
    """Each image's record, by its name."""
    keys = ("file_name", "label", "image")
    return {
        values[0].decode(): dict(zip(keys, values, strict=True))
        for values in in_order(data_dir, split)
    }


def prepare_by_tfds(data_dir: Path, training: Records, validation: Records) -> None:
    """The same records, sorted and written by tensorflow-datasets itself."""

    class Imagenet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "imagenet2012"
        VERSION = tfds.core.Version("5.1.0")
        pkg_dir_path = code_path = None

        def _info(self) -> Any:
            features = tfds.builder("imagenet2012").info.features
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: Any) -> Any:
            del dl_manager
            return {"train": training.items(), "validation": validation.items()}

        def _generate_examples(self) -> Any:
            raise NotImplementedError

    Imagenet(data_dir=str(data_dir), file_format="array_record").download_and_prepare()


def flat(training: dict[str, dict[str, bytes]]) -> dict[str, bytes]:
    return {name: data for files in training.values() for name, data in files.items()}


@pytest.mark.usefixtures("many_files")
def test_files_and_their_records_are_those_of_tensorflow_datasets(
    tars: Path, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    folder = prepare(tars, ours, is_subset=True)
    prepare_by_tfds(theirs, records(ours, "train"), records(ours, "validation"))
    names = sorted(path.name for path in folder.glob("*array_record*"))
    assert len(names) == 32 + 8
    expected = theirs / "imagenet2012" / "5.1.0"
    assert names == sorted(path.name for path in expected.glob("*array_record*"))
    for split in ("train", "validation"):
        assert in_order(ours, split) == in_order(theirs, split)


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


def interrupted(
    monkeypatch: pytest.MonkeyPatch, tars: Path, data_dir: Path, *, after: int
) -> Path:
    """A preparation that ends after some images; gives back what it leaves."""
    names: list[str] = []

    def check(content: bytes, *, name: str) -> bytes:
        names.append(name)
        if len(names) > after:
            raise KeyboardInterrupt
        return rgb_jpeg(content, name=name)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_imagenet, "rgb_jpeg", check)
        with pytest.raises(KeyboardInterrupt):
            prepare(tars, data_dir, is_subset=True)
    (folder,) = (data_dir / "imagenet2012").iterdir()
    return folder


def finished(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("imagenet2012-*")}


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("after", [0, 7, 30, 54])
def test_a_preparation_goes_on_where_it_was_interrupted(
    monkeypatch: pytest.MonkeyPatch, tars: Path, tmp_path: Path, after: int
) -> None:
    folder = interrupted(monkeypatch, tars, tmp_path / "twice", after=after)
    before = finished(folder)
    assert bool(before) == (after > 0)
    again = finished(prepare(tars, tmp_path / "twice", is_subset=True))
    assert before.items() <= again.items()
    prepare(tars, tmp_path / "once", is_subset=True)
    for split in ("train", "validation"):
        assert in_order(tmp_path / "twice", split) == in_order(tmp_path / "once", split)


_KILLED = """
import os, sys
from pathlib import Path
from tensorflow_datasets.core.utils.shard_utils import ShardConfig
from bn_jax.data import prepare_imagenet
ShardConfig.min_shard_size = 1
before, names = prepare_imagenet.rgb_jpeg, []
def check(content, *, name):
    names.append(name)
    if len(names) == 30:
        os.kill(os.getpid(), 9)
    return before(content, name=name)
prepare_imagenet.rgb_jpeg = check
prepare_imagenet.prepare_imagenet(*map(Path, sys.argv[1:]), is_subset=True)
"""


@pytest.mark.usefixtures("many_files")
def test_a_preparation_that_was_killed_goes_on(tars: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(tars), str(tmp_path / "twice")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "twice" / "imagenet2012").iterdir()
    before = finished(folder)
    again = finished(prepare(tars, tmp_path / "twice", is_subset=True))
    assert len(before) > 8
    assert before.items() <= again.items()
    prepare(tars, tmp_path / "once", is_subset=True)
    for split in ("train", "validation"):
        twice, once = (in_order(tmp_path / name, split) for name in ("twice", "once"))
        assert twice == once


@pytest.mark.usefixtures("many_files")
def test_an_interrupted_preparation_is_not_taken_for_a_data_set(
    monkeypatch: pytest.MonkeyPatch, tars: Path, tmp_path: Path
) -> None:
    interrupted(monkeypatch, tars, tmp_path, after=30)
    with pytest.raises(UserError, match=r"nothing is prepared .*bn-jax prepare image"):
        load_dataset("imagenet2012", data_dir=str(tmp_path), image_size=8)


@pytest.mark.usefixtures("many_files")
def test_files_of_other_tars_are_not_taken_over(
    monkeypatch: pytest.MonkeyPatch, tars: Path, tmp_path: Path
) -> None:
    interrupted(monkeypatch, tars, tmp_path / "data", after=30)
    other = write_tars(tmp_path / "tars", {SYNSETS[3]: {f"{SYNSETS[3]}_1.JPEG": JPEG}})
    prepare(other, tmp_path / "data", is_subset=True)
    assert list(records(tmp_path / "data", "train")) == [f"{SYNSETS[3]}_1.JPEG"]


def test_two_preparations_at_once_are_refused(tars: Path, tmp_path: Path) -> None:
    folder = tmp_path / "imagenet2012" / "incomplete.bn_jax_5.1.0"
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is preparing it now"):
        prepare(tars, tmp_path, is_subset=True)
    os.close(descriptor)


@pytest.mark.parametrize("tar", [TRAIN_TAR, VALIDATION_TAR])
def test_a_missing_tar_is_named(tmp_path: Path, tar: str) -> None:
    folder = write_tars(tmp_path)
    (folder / tar).unlink()
    with pytest.raises(UserError, match=f"manual_dir: there is no {tar} in {folder}"):
        prepare(folder, tmp_path / "data", is_subset=True)


@pytest.mark.parametrize(("tar", "number"), [(VALIDATION_TAR, 12), (TRAIN_TAR, 43)])
def test_fewer_images_than_the_official_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch, tars: Path, tmp_path: Path, tar: str, number: int
) -> None:
    if tar == TRAIN_TAR:
        counts = {**prepare_imagenet._NUM_IMAGES, "validation": 12}
        monkeypatch.setattr(prepare_imagenet, "_NUM_IMAGES", counts)
    with pytest.raises(UserError, match=rf"{tar}: expected \d+ images, .* {number};"):
        prepare(tars, tmp_path)


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    folder = write_tars(tmp_path)
    (folder / TRAIN_TAR).write_bytes(b"<html>" * 500)
    with pytest.raises(UserError, match=rf"{TRAIN_TAR}: it is no tar file"):
        prepare(folder, tmp_path / "data", is_subset=True)


@pytest.mark.parametrize("tar", [TRAIN_TAR, VALIDATION_TAR])
@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_a_tar_that_is_cut_off_is_refused(
    tmp_path: Path, tar: str, fraction: float
) -> None:
    path = write_tars(tmp_path) / tar
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(UserError, match=rf"{tar}.*Download it again"):
        prepare(tmp_path, tmp_path / "data", is_subset=True)


def test_an_empty_tar_is_refused(tmp_path: Path) -> None:
    folder = write_tars(tmp_path, training={})
    with pytest.raises(UserError, match=r"expected 1281167 images, and found 0"):
        prepare(folder, tmp_path / "data", is_subset=True)


@pytest.mark.parametrize(
    ("synset", "name", "expected"),
    [
        ("n00000000", "n00000000_1.JPEG", r"one tar file a class .* n00000000\.tar"),
        (SYNSETS[0], f"{SYNSETS[1]}_1.JPEG", rf"{SYNSETS[0]}_<number>.JPEG, each once"),
        (SYNSETS[0], f"{SYNSETS[0]}_1.png", rf"{SYNSETS[0]}_<number>.JPEG, each once"),
    ],
)
def test_a_training_tar_with_anything_else_is_refused(
    tmp_path: Path, synset: str, name: str, expected: str
) -> None:
    folder = write_tars(tmp_path, training={synset: {name: JPEG}})
    with pytest.raises(UserError, match=expected):
        prepare(folder, tmp_path / "data", is_subset=True)


def test_the_tars_under_each_others_names_are_refused(tmp_path: Path) -> None:
    folder = write_tars(tmp_path)
    content = (folder / TRAIN_TAR).read_bytes()
    (folder / TRAIN_TAR).write_bytes((folder / VALIDATION_TAR).read_bytes())
    with pytest.raises(UserError, match=rf"{TRAIN_TAR}: .*ILSVRC2012_val_"):
        prepare(folder, tmp_path / "data", is_subset=True)
    (folder / VALIDATION_TAR).write_bytes(content)
    with pytest.raises(UserError, match=rf"{VALIDATION_TAR}: .*found n01440764.tar"):
        prepare(folder, tmp_path / "data", is_subset=True)


@pytest.mark.parametrize("missing", [1, 5])
def test_validation_images_with_a_gap_are_refused(tmp_path: Path, missing: int) -> None:
    files = validation_files()
    del files[f"ILSVRC2012_val_{missing:08d}.JPEG"]
    folder = write_tars(tmp_path, validation=files)
    expected = rf"without a gap \(here: ILSVRC2012_val_{missing:08d}.JPEG\), and found"
    with pytest.raises(UserError, match=expected):
        prepare(folder, tmp_path / "data", is_subset=True)


def test_a_folder_in_a_tar_is_refused(tmp_path: Path) -> None:
    folder = write_tars(tmp_path)
    # The type of a tar's first member stands at byte 156.
    content = bytearray((folder / TRAIN_TAR).read_bytes())
    header = content[:512]
    header[156:157] = b"5"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (folder / TRAIN_TAR).write_bytes(bytes(header + content[512:]))
    with pytest.raises(UserError, match=r"expected files only; n01440764.tar is none"):
        prepare(folder, tmp_path / "data", is_subset=True)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(JPEG[: len(JPEG) // 2], id="cut off"),
        pytest.param(b"", id="empty"),
        pytest.param(encode(picture(0), "GIF"), id="neither JPEG nor PNG"),
    ],
)
def test_a_damaged_image_is_named(tmp_path: Path, content: bytes) -> None:
    name = f"{SYNSETS[0]}_1.JPEG"
    folder = write_tars(tmp_path, training={SYNSETS[0]: {name: content}})
    with pytest.raises(UserError, match=rf"{TRAIN_TAR}: {name}: .* cannot be decoded"):
        prepare(folder, tmp_path / "data", is_subset=True)


def test_a_disk_that_is_too_small_is_refused(
    monkeypatch: pytest.MonkeyPatch, tars: Path, tmp_path: Path
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(
        UserError, match=r"GB are to be written, and only 0 GB are free"
    ):
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
    with pytest.raises(UserError, match=r"is not whole; it lacks imagenet2012-train"):
        prepare(tars, tmp_path, is_subset=True)
