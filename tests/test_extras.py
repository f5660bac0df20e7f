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

COMMANDS = [
    "train --workdir=runs",
    "figure1 runs",
    "figure2 runs",
    "prepare mnist",
    "evaluate runs",
    "ensemble runs runs",
    "inspect runs",
    "train.py --workdir=runs",
]
STATEMENTS = [
    "from bn_jax.training import base_config",
    "from bn_jax.training.loop import train",
    "from bn_jax.reporting import figure1",
    "from bn_jax.data.mnist import load_mnist",
]

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
        input=json.dumps([COMMANDS, STATEMENTS, str(ROOT / "train.py")]),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("line", COMMANDS + STATEMENTS)
def test_a_line_says_how_to_install_an_absent_extra(
    ends: dict[str, str], line: str
) -> None:
    message = ends[line]
    assert message.endswith(
        " is part of the extra `train`, of which packages are missing (ml_collections, "
        "tensorboardX). Install them: pip install 'bn-jax[train]'"
    )
    assert "\n" not in message
    if line in COMMANDS:
        verb = line.split()[0]
        program = verb if verb == "train.py" else f"bn-jax {verb}"
        assert message.startswith(f"{program}: ")


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
