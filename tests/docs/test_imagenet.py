"""The numbers of docs/imagenet.md follow from committed results and its assumptions."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from bn_jax.data.imagenet.crops import NUM_CROPS
from bn_jax.training.config_files import load_config

pytestmark = pytest.mark.docs

_ROOT = Path(__file__).parents[2]
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
    assert _rows("What the compiler says")[name] == [
        f"{program['chips']} x {program['batch_size'] // program['chips']}",
        f"{program['flops'] / 1e9:.1f}",
        f"{program['bytes_accessed'] / 1e9:.2f}",
        f"{program['estimated_cycles'] / 1e6:.1f}",
        f"{program['peak_memory_bytes'] / 2**30:.2f}",
        str(program["all_reduces"]),
    ]


def test_each_program_names_the_commit_that_it_was_compiled_at() -> None:
    commits = [program["commit"] for program in _programs()]
    # Files beside the package may have differed from it.
    assert all(re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", one) for one in commits)


def test_the_page_has_no_program_beside_them() -> None:
    names = [name for name in _rows("What the compiler says") if ": " in name]
    programs = ["{arm}, {dtype}: {norm}".format(**program) for program in _programs()]
    assert names == programs


@pytest.mark.parametrize("arm", _ARMS)
def test_hours_and_cost_follow_from_the_programs(arm: str) -> None:
    config: Any = load_config(f"imagenet_inception:{arm}")
    like = "modern" if arm == "modern" else "bn_x30"
    (program,) = [
        one
        for one in _programs()
        if (one["arm"], one["dtype"]) == (like, config.dtype)
        and one["norm"] == "bn_jax"
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


def test_the_hours_of_an_ensemble_follow_from_the_programs() -> None:
    ours, _ = _both("bn_x30", "float32")
    forward = _seconds(ours) / ours["batch_size"] / 3
    hours = 6 * 50_000 * NUM_CROPS * forward / 3600
    text = " ".join(_PAGE.read_text().split())
    assert f"the paper's ensemble of six networks takes {hours:.1f} hours" in text


def test_the_page_compares_with_flax_as_the_compiler_does() -> None:
    text = " ".join(_PAGE.read_text().split())
    pairs = [
        _both(*of)
        for of in (
            ("bn_x30", "bfloat16"),
            ("bn_x30", "float32"),
            ("modern", "bfloat16"),
        )
    ]

    def stated(measure: str) -> str:
        more = [100 * (ours[measure] / flax[measure] - 1) for ours, flax in pairs]
        one, two, modern = (
            f"{abs(by):.1f} % {'more' if by >= 0 else 'less'}" for by in more
        )
        where = f"on one chip in bfloat16, {two} in float32, and {modern} in `modern`"
        return (
            f"{one} than Flax's {where}" if "accessed" in measure else f"{one} {where}"
        )

    assert f"A step accesses {stated('bytes_accessed')}" in text
    assert f"The compiler estimates {stated('estimated_cycles')}" in text
    assert f"The peak is {stated('peak_memory_bytes')}" in text
    ours, flax = pairs[-1]
    assert f"`modern` has {ours['all_reduces']}, three for each" in text
    assert f"Flax's step has {flax['all_reduces']}, two for each" in text
    num_norms = (flax["all_reduces"] - 1) // 2
    assert ours["all_reduces"] == 1 + 3 * num_norms


def _both(arm: str, dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
    programs = {(p["arm"], p["dtype"], p["norm"]): p for p in _programs()}
    return programs[arm, dtype, "bn_jax"], programs[arm, dtype, "flax"]


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
    crop = _read("input.json")["arms"]["crop"]["images_per_second"]["bn_jax"]
    per_core = crop["median"] / 2
    cores = record["libraries"]["bn_jax"]["images_per_second"] / per_core
    text = " ".join(_PAGE.read_text().split())
    assert f"{math.ceil(cores)} cores decode them, at {per_core:.0f} a second" in text
