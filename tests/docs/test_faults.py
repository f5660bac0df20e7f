"""The table of faults names every test of a fault, and the recorded times."""

import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs

_ROOT = Path(__file__).parents[2]
_TABLE = _ROOT / "docs" / "faults.md"
_LINKS = re.findall(r"\[(test_\w+)\]\(([^)]+)\)", _TABLE.read_text())


def test_every_test_that_the_table_names_is_in_the_file_it_links_to() -> None:
    assert len(_LINKS) > 20
    missing = [
        name
        for name, path in _LINKS
        if f"def {name}(" not in (_TABLE.parent / path).read_text()
    ]
    assert missing == []


def test_every_test_of_a_fault_is_in_the_table() -> None:
    texts = [p.read_text() for p in (_ROOT / "tests" / "faults").glob("test_*.py")]
    names = {name for text in texts for name in re.findall(r"def (test_\w+)", text)}
    assert names - {name for name, _ in _LINKS} == set()


def test_how_long_ends_take_is_what_the_committed_benchmark_has_measured() -> None:
    seconds = json.loads((_ROOT / "results" / "faults.json").read_text())["seconds"]
    text = _TABLE.read_text()
    stated = dict(re.findall(r"^\| (from .*?) \| (.*) \|$", text, re.M))
    assert {name: cell.split(" to ") for name, cell in stated.items()} == {
        # One number where the least and the greatest are printed alike.
        name: sorted({f"{of(values.values()):.1f}" for of in (min, max)}, key=float)
        for name, values in seconds.items()
    }
    # The page promises that all of them end within 30 seconds.
    assert max(max(values.values()) for values in seconds.values()) < 30
