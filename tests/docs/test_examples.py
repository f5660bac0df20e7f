"""The code blocks of the README and of the pages run as they stand."""

import doctest
import re
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def _code_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_quickstart_runs_and_its_model_learns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names: dict[str, Any] = {}
    for block in _code_blocks(_ROOT / "README.md"):
        exec(compile(block, "README.md", "exec"), names)
    loss = float(re.search(r"loss in step 50: ([\d.]+)", capsys.readouterr().out)[1])
    assert loss < 1.5
    assert names["logits"].shape == (32, 10)


def test_the_networks_of_the_page_on_inception_compute_scores() -> None:
    block, *_ = _code_blocks(_ROOT / "docs" / "inception.md")
    names: dict[str, Any] = {}
    exec(compile(block, "inception.md", "exec"), names)
    assert names["logits"].shape == (2, 10)
    count = names["multiply_adds"](names["model"], (224, 224, 3))
    assert f"multiply_adds(model, (224, 224, 3))  # {count}\n" in block


def test_the_examples_of_the_page_on_the_layer_run() -> None:
    failed, attempted = doctest.testfile(
        str(_ROOT / "docs" / "layer.md"),
        module_relative=False,
        optionflags=doctest.NORMALIZE_WHITESPACE,
    )
    assert attempted > 15
    assert failed == 0
