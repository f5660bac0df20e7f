"""The comparison's links, rows and recorded results are complete."""

import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs

_ROOT = Path(__file__).parents[2]
_COMPARISON = _ROOT / "docs" / "comparison.md"


def _links() -> list[tuple[str, str]]:
    return re.findall(r"\[([^\]]+)\]\(([^)]+)\)", _COMPARISON.read_text())


def _rows() -> tuple[list[str], list[list[str]]]:
    lines = _COMPARISON.read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return rows[0], rows[1:]


@pytest.mark.parametrize("path", sorted({path for _, path in _links()}))
def test_every_file_that_the_comparison_links_to_is_there(path: str) -> None:
    assert (_COMPARISON.parent / path).is_file()


def test_every_test_that_the_comparison_names_is_in_the_file_it_links_to() -> None:
    missing = [
        (name, path)
        for name, path in _links()
        if f"def {name}(" not in (_COMPARISON.parent / path).read_text()
    ]
    assert missing == []


def test_every_row_of_the_comparison_has_a_mark_for_every_library() -> None:
    header, rows = _rows()
    assert len(rows) > 30
    assert [row for row in rows if len(row) != len(header)] == []


def test_whatever_the_comparison_claims_for_bn_jax_is_tested() -> None:
    _, rows = _rows()
    assert [row for row in rows if row[-1] != "no" and "](" not in row[-1]] == []


def test_what_passed_on_a_gpu_is_what_was_recorded() -> None:
    path = _ROOT / "results" / "conformance-nvidia-h200.json"
    record = json.loads(path.read_text())
    text = " ".join((_ROOT / "docs" / "comparison.md").read_text().split())
    assert (
        f"with jax {record['versions']['jax']}, {record['passed']} passed and none"
        in text
    )
    assert record["failed"] == 0
    assert f"{record['skipped']} were skipped" in text
