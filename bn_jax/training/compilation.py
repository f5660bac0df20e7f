"""Compiled programs that are kept between runs."""

import os
from pathlib import Path

import jax
from absl import logging


def keep_compiled_code(folder: str | None = None) -> None:
    """Lets JAX keep what it compiles, so that the next run starts sooner.

    Args:
        folder: Where; made if it is not there; empty for nowhere. By default what JAX
            itself was told of by JAX_COMPILATION_CACHE_DIR, or the user's own cache.
    """
    if folder == "":
        jax.config.update("jax_compilation_cache_dir", None)
        return
    if folder is None:
        if "JAX_COMPILATION_CACHE_DIR" in os.environ:
            return
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
