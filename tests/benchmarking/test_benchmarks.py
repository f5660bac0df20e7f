"""Benchmarks that lack what they need say so in a line, before any work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def refusal(name: str, *arguments: str) -> str:
    """All that a benchmark writes that ends with 1, without an accelerator."""
    completed = subprocess.run(
        [sys.executable, str(_BENCHMARKS / name), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert completed.returncode == 1
    return completed.stdout + completed.stderr


def test_programs_that_there_are_not_are_not_compiled() -> None:
    text = refusal("aot.py", "modern-bfloat16-flax", "modern-float16-flax")
    assert text.startswith("benchmarks/aot.py: programs must be from modern-bfloat16-")
    assert text.endswith(", but include modern-float16-flax.\n")


@pytest.mark.slow
def test_steps_of_one_gpu_need_one() -> None:
    expected = "benchmarks/imagenet_step.py: needs a GPU, and JAX sees none.\n"
    assert refusal("imagenet_step.py") == expected


@pytest.mark.slow
def test_images_are_not_written_where_one_of_their_readers_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text("import sys; sys.modules['grain'] = None")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (line,) = refusal("input.py").splitlines()
    assert line.startswith("benchmarks/input.py: needs cv2, grain, psutil, torch, ")
    assert "no grain" in line
    assert line.endswith("; run pip install -e '.[benchmark,imagenet]'")
