"""The package as a whole: what it imports, and what a type checker sees of it."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import bn_jax

ROOT = Path(bn_jax.__file__).parents[1]


def test_the_public_names_are_the_names_in_all() -> None:
    from_modules = {
        name
        for name, value in vars(bn_jax).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert from_modules | {"nnx"} == set(bn_jax.__all__)


def test_importing_the_package_loads_flax_and_two_small_packages() -> None:
    program = (
        "import sys, flax, flax.linen, flax.nnx; before = set(sys.modules); "
        "import bn_jax; new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(*sorted(new - sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == ["bn_jax", "jaxtyping", "wadler_lindig"]
