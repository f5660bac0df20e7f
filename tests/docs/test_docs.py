import json
import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_COMPARISON = _ROOT / "docs" / "comparison.md"


def _links():
    return re.findall(r"\[([^\]]+)\]\(([^)]+)\)", _COMPARISON.read_text())


def _rows():
    lines = _COMPARISON.read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return rows[0], rows[1:]


@pytest.mark.parametrize("path", sorted({path for _, path in _links()}))
def test_every_file_that_the_comparison_links_to_is_there(path):
    assert (_COMPARISON.parent / path).is_file()


def test_every_test_that_the_comparison_names_is_in_the_file_it_links_to():
    missing = [
        (name, path)
        for name, path in _links()
        if f"def {name}(" not in (_COMPARISON.parent / path).read_text()
    ]
    assert missing == []


def test_every_row_of_the_comparison_has_a_mark_for_every_library():
    header, rows = _rows()
    assert len(rows) > 30
    assert [row for row in rows if len(row) != len(header)] == []


def test_whatever_the_comparison_claims_for_bn_jax_is_tested():
    _, rows = _rows()
    assert [row for row in rows if row[-1] != "no" and "](" not in row[-1]] == []


def test_what_dividing_costs_is_what_the_committed_benchmark_has_measured():
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


def test_what_passed_on_a_gpu_is_what_was_recorded():
    path = _ROOT / "results" / "conformance-nvidia-h200.json"
    record = json.loads(path.read_text())
    text = " ".join((_ROOT / "docs" / "comparison.md").read_text().split())
    assert (
        f"with jax {record['versions']['jax']}, {record['passed']} passed and none"
        in text
    )
    assert record["failed"] == 0
    assert f"{record['skipped']} were skipped" in text


def test_how_long_ends_take_is_what_the_committed_benchmark_has_measured():
    seconds = json.loads((_ROOT / "results" / "faults.json").read_text())["seconds"]
    text = (_ROOT / "docs" / "faults.md").read_text()
    stated = dict(re.findall(r"^\| (from .*?) \| (.*) \|$", text, re.M))
    assert {name: cell.split(" to ") for name, cell in stated.items()} == {
        # One figure where the least and the greatest are printed alike.
        name: sorted({f"{of(values.values()):.1f}" for of in (min, max)}, key=float)
        for name, values in seconds.items()
    }
    # What the page promises for all of them.
    assert max(max(values.values()) for values in seconds.values()) < 30
