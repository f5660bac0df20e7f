"""Tar files of a tiny ImageNet, and small files of what is prepared from them."""

from pathlib import Path

import pytest
from data.imagenet_files import write_tars


@pytest.fixture(scope="session")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tars(tmp_path_factory.mktemp("tars"))


@pytest.fixture
def many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes files of a split as small as they can be: there are several."""
    monkeypatch.setattr(
        "tensorflow_datasets.core.utils.shard_utils.ShardConfig.min_shard_size", 1
    )
