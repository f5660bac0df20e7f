"""The README is short, and its paths, output and numbers are right."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

_README = Path(__file__).parents[2] / "README.md"
_COMPARISON = _README.parent / "docs" / "comparison.md"
_BLOCKS = re.findall(r"```python\n(.*?)```", _README.read_text(), re.DOTALL)


def _text() -> str:
    return " ".join(_README.read_text().split())


def _rows(path: Path) -> dict[str, list[str]]:
    rows = re.findall(r"^\| (\S.*) \|$", path.read_text(), re.M)
    cells = [row.split(" | ") for row in rows]
    return {row[0]: row[1:] for row in cells}


@pytest.mark.docs
def test_the_readme_has_at_most_150_lines_and_900_words() -> None:
    assert len(_README.read_text().splitlines()) <= 150
    assert len(_README.read_text().split()) <= 900


@pytest.mark.docs
def test_every_file_that_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", _README.read_text())
    links += re.findall(r"\]\((?!https?://)([^)#]+)#", _README.read_text())
    assert links
    assert [link for link in links if not (_README.parent / link).exists()] == []


@pytest.mark.docs
def test_the_table_against_flax_and_pytorch_is_that_of_the_comparison() -> None:
    compared = _rows(_COMPARISON)
    rows = {name: row for name, row in _rows(_README).items() if name in compared}
    assert len(rows) == 8
    for name, (ours, flax, torch) in rows.items():
        linen, *_, pytorch, bn_jax = compared[name]
        marks = [re.sub(r" \(\w\)$", "", mark) for mark in (linen, pytorch)]
        assert [ours, flax, torch] == [bn_jax.partition(":")[0], *marks]


@pytest.mark.docs
def test_the_readme_counts_the_rows_of_the_comparison() -> None:
    count = sum(
        "](" in row[-1] or row[-1] == "no" for row in _rows(_COMPARISON).values()
    )
    assert f"has {count} rows" in _text()


@pytest.mark.docs
def test_the_numbers_of_the_readme_are_those_of_the_committed_runs() -> None:
    folder = _README.parent / "results"
    figure1 = json.loads((folder / "figure1.json").read_text())
    layers = json.loads((folder / "batch_norm-cpu.json").read_text())["float32"]
    compile_cost = json.loads((folder / "compile_cost.json").read_text())
    ratios = layers["bn_jax_over_all_means"]
    ours, flax = (
        compile_cost["layer"][of]["stablehlo_operations"] for of in ("bn_jax", "flax")
    )
    seconds = compile_cost["resnet18_step"]["cpu_seconds_over_flax"]
    ratio = figure1["steps_to_90_percent_baseline_over_bn"]
    for claim in (
        f"takes {ratio:.1f} times the steps to 90 %",
        f"compiles in {seconds:.2f} times the CPU time",
        f"has {ours} operations instead of {flax}",
        f"takes {ratios['forward']['geometric_mean']:.2f} times as long",
        f"together {ratios['forward+backward']['geometric_mean']:.2f},",
    ):
        assert claim in _text()


@pytest.mark.slow
def test_the_first_block_prints_what_the_readme_shows() -> None:
    shown = re.search(r"```text\n(.*?)```", _README.read_text(), re.DOTALL)[1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(_BLOCKS[0], "README.md", "exec"), {})
    assert printed.getvalue() == shown


@pytest.mark.slow
@pytest.mark.parametrize("block", _BLOCKS[1:], ids=["linen", "nnx"])
def test_each_quickstart_runs_alone_and_its_model_learns(block: str) -> None:
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["loss"] < 0.5
    assert (names["logits"].argmax(-1) == names["labels"]).mean() > 0.9
