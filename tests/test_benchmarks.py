"""Benchmarks that lack what they need say so in a line, before any work."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
_PEERS = ("grain", "torch", "torchvision")


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
    assert text.startswith("benchmarks/aot.py: programs must be among modern-bfloat16-")
    assert text.endswith(", and modern-float16-flax is not.\n")


def test_steps_of_one_gpu_need_one() -> None:
    expected = "benchmarks/imagenet_step.py: needs a GPU, and JAX sees none.\n"
    assert refusal("imagenet_step.py") == expected


@pytest.mark.skipif(all(map(find_spec, _PEERS)), reason="all peers are here")
def test_images_are_not_written_where_their_readers_are_not() -> None:
    (line,) = refusal("input.py").splitlines()
    assert line.startswith("benchmarks/input.py: needs cv2, grain, psutil, torch, ")
    assert line.endswith("; pip install -e '.[benchmark,imagenet]'")
