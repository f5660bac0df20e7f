"""JAX's cache of compiled programs, and compilation in the background."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from absl import logging


def cache_compiled_programs(folder: str | None = None) -> None:
    """Lets JAX keep compiled programs on disk, so that the next run starts sooner.

    Args:
        folder: Folder of the cache, created if it does not exist. An empty string
            turns the cache off. The default is the folder that the environment
            variable JAX_COMPILATION_CACHE_DIR names; without the variable it is
            `bn_jax/compiled` in the user's own cache.
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
    # By default JAX keeps only programs that take at least a second to compile.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def compile_ahead(function: jax.stages.Wrapped, *arguments: Any) -> Callable[..., Any]:
    """Compiles a function in the background, and returns a function that waits for it.

    XLA leaves cores idle while it compiles one program, so Python can trace the next
    one meanwhile. The process cannot end before the compilation has ended, except by
    `os._exit`.

    Args:
        function: Result of `jax.jit`. It is traced before `compile_ahead` returns.
        arguments: Arrays as in the later calls, or their shapes and shardings. A call
            with other shapes or shardings compiles again.

    Returns:
        Function that waits for the compilation, then calls `function`. Under
        `jax.disable_jit` it is `function` itself.
    """
    # JAX's type annotations do not list its settings.
    config: Any = jax.config
    if config.jax_disable_jit:
        return function
    executor = ThreadPoolExecutor(1)
    program = executor.submit(function.lower(*arguments).compile)
    executor.shutdown(wait=False)

    def wait_and_call(*arguments: Any) -> Any:
        program.result()
        # JAX now finds the compiled program in its cache. A direct call of the program
        # would not name the operation that makes a NaN under `jax.debug_nans`.
        return function(*arguments)

    return wait_and_call
