"""The numbers of the pages on data, Inception and distributed training."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from bn_jax.models import make_model, make_norm
from bn_jax.models.inception import multiply_adds

pytestmark = pytest.mark.docs

_ROOT = Path(__file__).parents[2]
# Names of the benchmark's arms on the page.
_ARMS = {
    "crop": "crop, resize and flip; all return uint8",
    "crop and colours": "crop, resize, flip and change colours; all return uint8",
    "crop, PyTorch's in floats": (
        "crop, resize and flip; PyTorch returns normalized floats, as in its recipes"
    ),
}


def _rows(page: str) -> dict[str, list[str]]:
    """The cells of all tables' rows, by the first."""
    lines = (_ROOT / "docs" / page).read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("arm", _ARMS)
def test_the_speed_of_reading_is_that_of_the_committed_benchmark(arm: str) -> None:
    record = json.loads((_ROOT / "results" / "input.json").read_text())
    values = record["arms"][arm]
    rates = values["images_per_second"]
    # Below this ratio to PyTorch, our own reader would not be worth its code.
    assert values["bn_jax_over_torch"] >= 1.8
    assert _rows("data.md")[_ARMS[arm]] == [
        f"{rates['bn_jax']['median'] / record['cores']:.0f}",
        f"{rates['grain']['median'] / record['cores']:.0f}",
        f"{rates['torch']['median'] / record['cores']:.0f}",
        f"{values['bn_jax_over_torch']:.2f}",
        f"{values['torch_over_bn_jax_in_cpu_time']:.2f}",
    ]


@pytest.mark.parametrize(
    ("network", "fields"),
    [
        ("`paper_rows`", {}),
        ("`paper_rows`, `separable=False`", {"separable": False}),
        (
            "`paper_rows`, `separable=False`, `use_bias=True`",
            {"separable": False, "use_bias": True},
        ),
        ("`slim`", {"variant": "slim"}),
    ],
)
def test_the_counts_of_each_network_are_its_own(
    network: str, fields: dict[str, Any]
) -> None:
    norm = make_norm("batch_norm")
    model: Any = make_model("inception", num_classes=1000, norm=norm, **fields)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    init = partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), images)
    params, stats = (
        sum(leaf.size for leaf in jax.tree.leaves(shapes[name]))
        for name in ("params", "batch_stats")
    )
    # A mean and a variance for each channel.
    expected = [params, stats // 2, multiply_adds(model, (224, 224, 3))]
    assert _rows("inception.md")[network] == [f"{count:,}" for count in expected]


def test_what_dividing_costs_is_what_the_committed_benchmark_has_measured() -> None:
    record = json.loads((_ROOT / "results" / "scaling.json").read_text())
    text = (_ROOT / "docs" / "distributed.md").read_text()
    table = re.findall(r"^\| `(\w+)` \|(.*) \|$", text, re.M)
    # Processes, and devices of each.
    places = [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1)]
    stated = {
        (mode, *place): cell.strip()
        for mode, cells in table
        for place, cell in zip(places, cells.split("|"), strict=True)
        if cell.strip()
    }
    measured = {
        (s["mode"], s["processes"], s["devices"]): f"{1000 * s['seconds_a_step']:.1f}"
        for s in record["settings"]
    }
    assert stated == measured
    assert f"{record['examples_a_step']} examples a step" in text
