"""The figures of docs/imagenet.md follow from committed results and its assumptions."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from bn_jax.experiments.configs import load_config

_ROOT = Path(__file__).parents[1]
_PAGE = _ROOT / "docs" / "imagenet.md"
_ARMS = ("inception", "bn_baseline", "bn_x5", "bn_x30", "bn_x5_sigmoid", "modern")


def _read(name: str) -> Any:
    return json.loads((_ROOT / "results" / name).read_text())


def _assumption(pattern: str) -> float:
    return float(re.search(pattern, _PAGE.read_text())[1])


def _rows(heading: str) -> dict[str, list[str]]:
    """The cells of a table's rows, by the first, without its marks of code."""
    table = _PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [
        line.strip("| ").split(" | ")
        for line in table.splitlines()
        if line.startswith("| ")
    ]
    return {row[0].replace("`", ""): row[1:] for row in rows}


def _programs() -> list[dict[str, Any]]:
    return _read("aot.json")["programs"]


def _seconds(program: dict[str, Any]) -> float:
    """A step's, at the part of the chip's peaks that the page assumes."""
    flops = 1e12 * _assumption(r"([\d.]+) TFLOP/s")
    bandwidth = 1e9 * _assumption(r"([\d.]+) GB/s")
    least = max(program["flops"] / flops, program["bytes_accessed"] / bandwidth)
    return 100 / _assumption(r"(\d+) % of what") * least


@pytest.mark.parametrize("program", _programs(), ids=str)
def test_each_program_is_as_the_compiler_told(program: dict[str, Any]) -> None:
    name = "{arm}, {dtype}: {norm}".format(**program)
    reduced = str(program["all_reduces"])
    if program["all_reduces_in_branches"]:
        reduced += f" + {program['all_reduces_in_branches']}"
    assert _rows("What the compiler says")[name] == [
        f"{program['chips']} x {program['batch_size'] // program['chips']}",
        f"{program['flops'] / 1e9:.1f}",
        f"{program['bytes_accessed'] / 1e9:.2f}",
        f"{program['peak_memory_bytes'] / 2**30:.2f}",
        reduced,
    ]


@pytest.mark.parametrize("arm", _ARMS)
def test_hours_and_cost_follow_from_the_programs(arm: str) -> None:
    config: Any = load_config("imagenet_inception.py", arm)
    like = "modern" if arm == "modern" else "bn_x30"
    (program,) = [
        one
        for one in _programs()
        if (one["arm"], one["dtype"]) == (like, config.dtype)
        and one["norm"] == "bn_jax, one pass"
    ]
    seconds = _seconds(program)
    per_second = config.batch_size / seconds
    arms = _read("input.json")["arms"]
    way = "crop and colours" if config.dataset.distortion else "crop"
    per_core = arms[way]["images_per_second"]["bn_jax"]["median"] / 2
    hours = config.num_steps * seconds / 3600
    price = _assumption(r"([\d.]+) dollars")
    assert _rows("Time and cost")[arm] == [
        f"{config.num_steps:,}",
        str(program["chips"]),
        f"{1e3 * seconds:.1f}",
        f"{program['peak_memory_bytes'] / 2**30:.1f}",
        f"{per_second:,.0f}",
        str(math.ceil(per_second / per_core)),
        f"{hours:,.0f}",
        f"{hours * program['chips'] * price:,.0f}",
    ]


def test_the_second_pass_aside_a_step_costs_about_what_flax_costs() -> None:
    programs = {(p["arm"], p["dtype"], p["norm"]): p for p in _programs()}
    for (arm, dtype, norm), program in programs.items():
        if norm == "bn_jax, one pass":
            flax = programs[arm, dtype, "flax"]
            assert program["all_reduces"] <= flax["all_reduces"]
            # A gradient that is rounded once, and used twice, XLA stores.
            for key in ("bytes_accessed", "peak_memory_bytes"):
                assert program[key] <= 1.05 * flax[key]


def test_the_second_pass_as_counted_costs_what_the_page_says() -> None:
    programs = {(p["arm"], p["dtype"], p["norm"]): p for p in _programs()}
    text = " ".join(_PAGE.read_text().split())

    def more(arm: str, dtype: str, norm: str, key: str) -> float:
        ratio = programs[arm, dtype, norm][key] / programs[arm, dtype, "flax"][key]
        return 100 * (ratio - 1)

    moved, held = "bytes_accessed", "peak_memory_bytes"
    whole, once = "bn_jax", "bn_jax, one pass"
    small = [("bn_x30", "bfloat16"), ("bn_x30", "float32")]
    first, second = (more(*of, once, moved) for of in small)
    assert (
        f"{first:.1f} % more than Flax's in bfloat16, and {-second:.1f} % less" in text
    )
    first, second = (-more(*of, whole, moved) for of in small)
    assert f"whole program moves {first:.0f} and {second:.0f} % less" in text
    first, second = (more(*of, whole, held) for of in small)
    assert f"and holds {first:.0f} and {second:.0f} % more" in text
    large = ("modern", "bfloat16")
    first, second = (more(*large, norm, moved) for norm in (once, whole))
    counted = f"and with the branches, as counted, {second:.0f} %"
    assert f"it moves {first:.1f} % more, {counted}" in text
    first, second = (more(*large, norm, held) for norm in (once, whole))
    assert f"it holds {first:.1f} and {second:.1f} % more" in text


def test_every_file_that_the_page_links_to_is_there() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", _PAGE.read_text())
    assert links
    assert [link for link in links if not (_PAGE.parent / link).exists()] == []


def test_what_one_gpu_does_is_what_the_committed_benchmark_has_measured() -> None:
    record = _read("imagenet_step.json")
    rows = _rows("What one GPU does")
    names = {"bn_jax": "bn_jax", "flax": "flax", "PyTorch": "pytorch"}
    for name, library in names.items():
        values = record["libraries"][library]
        held = f"{values['peak_bytes'] / 2**30:.1f}"
        assert rows[name] == [f"{values['images_per_second']:.0f}", held]
    assert record["device"] in " ".join(_PAGE.read_text().split())
    hours = 90 * 1_281_167 / record["libraries"]["bn_jax"]["images_per_second"] / 3600
    assert 4.4 < hours < 4.6
