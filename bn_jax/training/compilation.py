"""Compiled programs that are kept between runs."""

import os
from pathlib import Path

import jax
from absl import logging


def keep_compiled_code(folder: str | None = None) -> None:
    """Lets JAX keep what it compiles, so that the next run starts sooner.

    A folder that JAX itself was told of, by JAX_COMPILATION_CACHE_DIR, stays as it is.

    Args:
        folder: Where; made if it is not there. The user's own cache by default; empty
            for nowhere.
    """
    if folder == "" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    if folder is None:
        caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = f"{caches}/bn_jax/compiled"
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.warning("%s: compiled programs are not kept (%s).", path, error)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    # By default only what takes a second to compile.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
