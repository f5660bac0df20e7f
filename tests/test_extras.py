"""Parts of bn_jax in an environment without the packages of the extra `train`."""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from bn_jax.extras import _TRAIN

ROOT = Path(__file__).parents[1]

# Commands and statements, each with the part that its message names.
COMMANDS = {
    "figure1 runs": "bn-jax figure1: bn_jax.experiments",
    "figure2 runs": "bn-jax figure2: bn_jax.experiments",
    "prepare mnist": "bn-jax prepare: bn_jax.data.preparation",
    "evaluate runs": "bn-jax evaluate: bn_jax.experiments",
    "ensemble runs runs": "bn-jax ensemble: bn_jax.experiments",
    "inspect runs": "bn-jax inspect: bn_jax.experiments",
    "train.py --workdir=runs": "train.py: bn_jax.training",
}
IMPORTS = {
    "from bn_jax.training.loop import train": "bn_jax.training",
    "from bn_jax.reporting import figure1": "bn_jax.reporting",
    "from bn_jax.data import load_dataset; load_dataset('cifar10')": (
        "dataset.name: 'cifar10'"
    ),
}

# Hides two packages of the extra, and prints how each command and statement ends.
END_OF_ALL = """
import json, runpy, sys
sys.modules["ml_collections"] = sys.modules["tensorboardX"] = None
from bn_jax.cli import main
commands, statements, script = json.load(sys.stdin)
def run(command):
    program, *words = command.split()
    if program != "train.py":
        return main([program, *words])
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")
ends = {}
for action, lines in ((run, commands), (exec, statements)):
    for line in lines:
        try:
            action(line)
        except (ModuleNotFoundError, SystemExit) as end:
            ends[line] = f"{end}"
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def ends() -> dict[str, str]:
    """The message with which each command and statement ends."""
    done = subprocess.run(
        [sys.executable, "-c", END_OF_ALL],
        input=json.dumps([[*COMMANDS], [*IMPORTS], str(ROOT / "train.py")]),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(("line", "part"), (COMMANDS | IMPORTS).items())
def test_a_line_says_how_to_install_an_absent_extra(
    ends: dict[str, str], line: str, part: str
) -> None:
    assert ends[line] == (
        f"{part} needs packages that are not installed (ml_collections, tensorboardX). "
        "Install them: pip install 'bn-jax[train]'"
    )


def test_the_extra_brings_the_packages_that_are_checked() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        requirement.split(">")[0].replace("_", "-").lower()
        for requirement in extras["optional-dependencies"]["train"]
    }
    packages = packages_distributions()
    checked = {
        name.replace("_", "-").lower() for module in _TRAIN for name in packages[module]
    }
    # Several packages of Orbax share the module `orbax`.
    assert declared <= checked
    assert {name for name in checked if not name.startswith("orbax")} <= declared
