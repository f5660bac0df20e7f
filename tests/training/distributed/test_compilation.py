"""Compiled programs are kept where it was asked for, and compiled beside tracing."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from training.fixtures import cached_programs

from bn_jax.training.distributed.compilation import (
    cache_compiled_programs,
    compile_ahead,
)


@pytest.fixture(autouse=True)
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder that was set before; settings are as they were after each test."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    folder = tmp_path / "before"
    with cached_programs(folder):
        yield str(folder)


def test_a_folder_gets_what_is_compiled(tmp_path: Path) -> None:
    cache_compiled_programs(str(tmp_path / "new" / "folder"))
    # Nothing so small takes long enough.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    reset_cache()
    jax.jit(lambda x: jnp.sin(x) + 17)(1.0)
    assert list((tmp_path / "new" / "folder").iterdir())


def test_the_home_folder_may_be_written_as_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cache_compiled_programs("~/compiled")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")


def test_a_folder_that_cannot_be_made_is_only_a_warning(
    tmp_path: Path, before: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache_compiled_programs(str(tmp_path / "file" / "folder"))
    assert "compiled programs are not kept (" in caplog.text
    assert jax.config.jax_compilation_cache_dir == before


def test_an_empty_name_is_none() -> None:
    cache_compiled_programs("")
    assert jax.config.jax_compilation_cache_dir is None


def test_what_jax_itself_was_told_stays(
    before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", before)
    cache_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == before


def test_a_folder_that_is_asked_for_wins_over_the_environments(
    tmp_path: Path, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", before)
    cache_compiled_programs(str(tmp_path / "folder"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "folder")


def test_what_is_compiled_ahead_gives_what_the_function_gives() -> None:
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    doubled = compile_ahead(jax.jit(lambda tree: {"y": 2 * tree["x"]}), {"x": shape})
    assert doubled({"x": jnp.arange(3.0)})["y"].tolist() == [0.0, 2.0, 4.0]


def test_what_was_not_expected_is_compiled_when_it_comes() -> None:
    doubled = compile_ahead(jax.jit(lambda x: 2 * x), jnp.zeros(3))
    assert doubled(jnp.arange(2)).tolist() == [0, 2]


def test_where_nothing_is_to_be_compiled_nothing_is() -> None:
    values = []
    with jax.disable_jit():
        keep = compile_ahead(jax.jit(lambda x: values.append(float(x))), 1.0)
        keep(3.0)
    assert values == [3.0]


def test_what_is_not_a_number_is_named_where_that_was_asked_for() -> None:
    with jax.debug_nans(True):
        logarithm = compile_ahead(jax.jit(jnp.log), 1.0)
        with pytest.raises(FloatingPointError, match="encountered in log"):
            logarithm(-1.0)


def test_what_tracing_refuses_is_refused_at_once() -> None:
    def refuse(_: jax.Array) -> None:
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        compile_ahead(jax.jit(refuse), 1.0)


def test_what_the_compiler_refuses_is_refused_by_the_call() -> None:
    unknown = jax.jit(lambda x: 2 * x, compiler_options={"xla_no_such_option": 1})
    doubled = compile_ahead(unknown, 1.0)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        doubled(1.0)
