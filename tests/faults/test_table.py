"""The table of faults: every test that it names is there, and names every test."""

import re
from pathlib import Path

TABLE = Path(__file__).parents[2] / "docs" / "faults.md"
LINKS = re.findall(r"\[(test_\w+)\]\(([^)]+)\)", TABLE.read_text())


def test_every_test_that_the_table_names_is_in_the_file_it_links_to() -> None:
    assert len(LINKS) > 20
    missing = [
        name
        for name, path in LINKS
        if f"def {name}(" not in (TABLE.parent / path).read_text()
    ]
    assert missing == []


def test_every_test_of_a_fault_is_in_the_table() -> None:
    here = Path(__file__)
    texts = [p.read_text() for p in here.parent.glob("test_*.py") if p != here]
    names = {name for text in texts for name in re.findall(r"def (test_\w+)", text)}
    assert names - {name for name, _ in LINKS} == set()
