"""A small set of images to train on, and compiled code that is kept for a session."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import pytest
from data.idx_files import write_idx_folder
from data.imagenet_files import write_tars
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from training.tiny_imagenet import tiny_imagenet_config
from training.tiny_runs import Complete, complete_run, tiny_config

from bn_jax.data.preparation.imagenet import prepare_imagenet

_CACHE_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(scope="session")
def idx_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of IDX files, 210 training and 97 test images that can be learned."""
    return write_idx_folder(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what the tests of a session have compiled."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def bn(
    tmp_path_factory: pytest.TempPathFactory, idx_dir: Path, compilation_cache: Path
) -> Complete:
    """A run with Batch Normalization."""
    workdir = tmp_path_factory.mktemp("runs") / "bn"
    with cached_programs(compilation_cache):
        return complete_run(tiny_config(idx_dir), workdir)


@pytest.fixture(scope="session")
def baseline(
    tmp_path_factory: pytest.TempPathFactory, idx_dir: Path, compilation_cache: Path
) -> Complete:
    """A run without it."""
    workdir = tmp_path_factory.mktemp("runs") / "baseline"
    with cached_programs(compilation_cache):
        return complete_run(tiny_config(idx_dir, arm="baseline"), workdir)


@pytest.fixture(scope="session")
def imagenet_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder in which a tiny ImageNet is prepared."""
    folder = tmp_path_factory.mktemp("imagenet")
    prepare_imagenet(write_tars(folder), folder, is_subset=True)
    return str(folder)


@pytest.fixture(scope="session")
def imagenet(
    tmp_path_factory: pytest.TempPathFactory,
    imagenet_dir: str,
    compilation_cache: Path,
) -> Complete:
    """A run on images that are read from the disk, with averaged parameters."""
    workdir = tmp_path_factory.mktemp("runs") / "imagenet"
    with cached_programs(compilation_cache):
        config = tiny_imagenet_config(imagenet_dir, ema_decay=0.5)
        return complete_run(config, workdir)


@pytest.fixture(scope="module", autouse=True)
def reuse_compiled_programs(compilation_cache: Path) -> Iterator[None]:
    """Compiles the same program once, because every run compiles its own."""
    with cached_programs(compilation_cache):
        yield


@contextmanager
def cached_programs(folder: Path) -> Iterator[None]:
    """Lets JAX look in the folder for what it compiles, and put it there."""
    before = [getattr(jax.config, name) for name in _CACHE_SETTINGS]
    _configure_cache([str(folder), 0.0, -1])
    try:
        yield
    finally:
        _configure_cache(before)


def _configure_cache(values: Sequence[object]) -> None:
    for name, value in zip(_CACHE_SETTINGS, values, strict=True):
        jax.config.update(name, value)
    # The folder is looked at once, at the first compilation.
    reset_cache()
