"""Prepared files that are missing, cut off or damaged are refused, most at once."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.imagenet_files import SYNSETS, encode, write_tars
from PIL import Image

from bn_jax.data import load_dataset
from bn_jax.data.preparation.imagenet import prepare_imagenet
from bn_jax.errors import UserError

BLOCK = 2**16


@pytest.fixture
def training_file(tmp_path: Path) -> Path:
    """A file of several blocks, of a data set that a test may damage."""
    rng = np.random.default_rng(0)
    images = {
        f"{SYNSETS[0]}_{i}.JPEG": encode(
            Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8))
        )
        for i in range(3)
    }
    tars = write_tars(tmp_path, {SYNSETS[0]: images})
    (path,) = prepare_imagenet(tars, tmp_path, is_subset=True).glob("*-train.*")
    return path


def load(training_file: Path) -> Any:
    data_dir = training_file.parent.parent.parent
    return load_dataset("imagenet2012", data_dir=str(data_dir), image_size=8)


def test_a_folder_that_lacks_a_file_is_refused(training_file: Path) -> None:
    training_file.unlink()
    with pytest.raises(
        UserError, match=r"incomplete or damaged; imagenet2012-train\S* is missing"
    ):
        load(training_file)


@pytest.mark.parametrize("num_bytes", [0, 1000, BLOCK, 2 * BLOCK - 1, 2 * BLOCK + 1])
def test_a_file_that_array_record_cannot_have_written_is_refused(
    training_file: Path, num_bytes: int
) -> None:
    os.truncate(training_file, num_bytes)
    expected = (
        rf"incomplete or damaged; imagenet2012-train.* has {num_bytes} bytes, but .*"
        r"Remove that folder and prepare it again: bn-jax prepare imagenet2012"
    )
    with pytest.raises(UserError, match=expected):
        load(training_file)


@pytest.mark.parametrize("change", [-BLOCK, BLOCK])
def test_files_that_lack_whole_blocks_or_have_more_are_refused(
    training_file: Path, change: int
) -> None:
    whole = training_file.stat().st_size
    os.truncate(training_file, whole + change)
    expected = rf"split 'train' have {whole + change} bytes in total, but {whole} were"
    with pytest.raises(UserError, match=expected):
        load(training_file)


def test_files_prepared_elsewhere_need_not_be_as_large_as_their_records(
    training_file: Path,
) -> None:
    info = training_file.with_name("dataset_info.json")
    content = json.loads(info.read_text())
    for split in content["splits"]:
        split["numBytes"] = str(int(split["numBytes"]) + 12345)
    info.write_text(json.dumps(content))
    assert len(load(training_file).train) == 3


def test_damage_within_a_file_is_refused_when_it_is_read(training_file: Path) -> None:
    training_file.write_bytes(training_file.stat().st_size * b"a")
    first = np.arange(3)
    with pytest.raises(UserError, match=r"split 'train' in .* cannot be read"):
        load(training_file).train.read(first, first)
