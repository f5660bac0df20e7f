"""Tries a wheel in an empty environment of each Python that is here.

    python scripts/try_wheel.py dist/bn_jax-0.2.0-py3-none-any.whl

The wheel alone must run the blocks of its README, and the trainer must say that its
extra is missing. With the extra it must train and draw Figure 1, for a few steps.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
VERSIONS = ("3.11", "3.12", "3.13")
# With pip and setuptools, as `pip list` counts them.
MOST_PACKAGES = 35

# The README is a part of the wheel.
RUN_README = """
import re
from importlib.metadata import metadata
readme = metadata("bn-jax").get_payload()
blocks = re.findall(r"^```python\\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
assert blocks
for block in blocks:
    exec(block, {})
"""
SHORT = ["--config.num_steps=20", "--config.evaluation.population_batches=2"]


def main() -> None:
    """Tries the wheel, and ends with 1 if a command fails or there is no Python."""
    (wheel,) = (Path(word).resolve() for word in sys.argv[1:])
    pythons = list(_pythons())
    if not pythons:
        sys.exit(f"try_wheel: expected Python {', '.join(VERSIONS)}; found none.")
    # Installing waits for the disk while another environment computes.
    with ThreadPoolExecutor(2) as pool:
        for line in pool.map(lambda python: _try(wheel, python), pythons):
            print(line, flush=True)


def _pythons() -> Iterator[str]:
    """Yields one program for each version, from the path or from pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for version in VERSIONS:
        name = f"python{version}"
        kept = sorted(pyenv.glob(f"versions/{version}*/bin/{name}"))
        for program in filter(None, [*map(str, kept), shutil.which(name)]):
            # A shim of pyenv may stand for no Python; Debian's may lack ensurepip.
            check = [program, "-c", "import ensurepip, venv"]
            if subprocess.run(check, capture_output=True).returncode == 0:
                yield program
                break


def _try(wheel: Path, python: str) -> str:
    """Runs all commands in one environment, and returns what it has seen."""
    with tempfile.TemporaryDirectory(prefix="try_wheel.") as name:
        folder = Path(name)
        _run([python, "-m", "venv", "env"], folder)
        bin_folder = folder / "env" / "bin"
        pip = [str(bin_folder / "python"), "-m", "pip"]
        install = [*pip, "install", "-q", "--no-compile", "-c", str(CONSTRAINTS)]
        bn_jax = str(bin_folder / "bn-jax")

        _run([*install, str(wheel)], folder)
        packages = _run([*pip, "list", "--format=freeze"], folder).splitlines()
        assert len(packages) <= MOST_PACKAGES, packages
        _run([str(bin_folder / "python"), "-c", RUN_README], folder)
        message = _run([bn_jax, "figure1", "figure1"], folder, code=1)
        assert message.count("\n") == 1, message
        assert message.endswith("pip install 'bn-jax[train]'\n"), message

        _run([*install, f"{wheel}[train]"], folder)
        _run([bn_jax, "train", "--config=mnist_mlp:bn", "--workdir=bn", *SHORT], folder)
        assert (folder / "bn" / "summary.json").is_file()
        _run([bn_jax, "figure1", "figure1", "--seeds=1", *SHORT], folder)
        assert (folder / "figure1" / "figure1.png").is_file()
    return f"{python}: {len(packages)} packages; README, train and figure1 run."


def _run(command: list[str], folder: Path, *, code: int = 0) -> str:
    """Runs a command and returns its output; ends the program if its code differs."""
    settings = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **settings, "PYTHONPATH": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    if done.returncode != code:
        sys.exit(
            f"try_wheel: {' '.join(command)} ended with {done.returncode}:\n"
            f"{done.stdout}"
        )
    return done.stdout


if __name__ == "__main__":
    main()
