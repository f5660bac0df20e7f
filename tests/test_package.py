"""The package as a whole: what it imports, and what a type checker sees of it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import yaml

import bn_jax

ROOT = Path(bn_jax.__file__).parents[1]


def test_the_public_names_are_the_names_in_all() -> None:
    from_modules = {
        name
        for name, value in vars(bn_jax).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert from_modules | {"nnx"} == set(bn_jax.__all__)


def test_the_changelog_and_the_citation_are_of_this_version() -> None:
    newest = re.search(
        r"^## \[(.*)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    stated = (citation["version"], str(citation["date-released"]))
    assert newest.groups() == stated
    assert stated[0] == bn_jax.__version__


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


USER_FILE = """
from typing import Any, reveal_type
import bn_jax

def of(model: Any, variables: dict[str, Any], moments: Any, batches: list[Any]):
    reveal_type(bn_jax.population_statistics(model, variables, batches))
    reveal_type(bn_jax.accumulate_batch_stats(variables, moments))
    reveal_type(bn_jax.merge_batch_stats(variables["batch_stats"]))
    reveal_type(bn_jax.with_counts(variables, variables, count=0))
    reveal_type(bn_jax.nnx.population_statistics(model, model, batches))
    reveal_type(bn_jax.nnx.accumulate_batch_stats(model, moments))
    reveal_type(bn_jax.nnx.with_counts(model, moments))
    reveal_type(bn_jax.BatchNorm(axis=(1, 2), momentum=None, axis_name=["x", "y"]))
"""


def test_a_type_checker_knows_what_the_functions_return(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER_FILE)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    checker = Path(sys.executable).with_name("basedpyright")
    done = subprocess.run(
        [checker, "--outputjson", "--pythonpath", sys.executable, "user.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    messages = json.loads(done.stdout)["generalDiagnostics"]
    assert [m for m in messages if m["severity"] != "information"] == []
    types = [message["message"].rpartition(" is ")[2] for message in messages]
    of_linen, of_nnx = ['"dict[str, Any]"'] * 4, ['"State[Any, Any]"'] * 3
    assert types == [*of_linen, *of_nnx, '"BatchNorm"']
