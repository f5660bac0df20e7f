"""Programs compiled while others are traced, and kept between runs."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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


def compile_ahead(function: jax.stages.Wrapped, *arguments: Any) -> Callable[..., Any]:
    """A function that is compiled while its caller goes on, and waited for when called.

    A program leaves cores idle while XLA compiles it, and Python is busy with another
    one's tracing. The process does not end before it is compiled, unless by `os._exit`.

    Args:
        function: As `jax.jit` makes it. It is traced before this returns.
        arguments: Arrays as it will be called with, or their shapes and shardings.
            With others it is compiled again.

    Returns:
        What calls it; the function itself under `jax.disable_jit`.
    """
    # Whose annotations know no setting.
    config: Any = jax.config
    if config.jax_disable_jit:
        return function
    executor = ThreadPoolExecutor(1)
    program = executor.submit(function.lower(*arguments).compile)
    executor.shutdown(wait=False)

    def wait_and_call(*arguments: Any) -> Any:
        program.result()
        # Which JAX has compiled now, and with its checks of NaN where they are on.
        return function(*arguments)

    return wait_and_call
