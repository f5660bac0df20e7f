"""A small set of images to train on, and compiled code that is kept for a session."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from data.idx_files import write_idx_folder
from jax.experimental.compilation_cache.compilation_cache import reset_cache

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


@pytest.fixture(scope="module", autouse=True)
def reuse_compiled_code(compilation_cache: Path) -> Iterator[None]:
    """Compiles the same program once, because every run compiles its own."""
    values = (str(compilation_cache), 0.0, -1)
    before = [getattr(jax.config, name) for name in _CACHE_SETTINGS]
    _configure_cache(values)
    yield
    _configure_cache(before)


def _configure_cache(values: Iterator[object]) -> None:
    for name, value in zip(_CACHE_SETTINGS, values, strict=True):
        jax.config.update(name, value)
    # The folder is looked at once, at the first compilation.
    reset_cache()
