"""What is noted of the machine that timings come from."""

import os
import platform
from pathlib import Path
from typing import Any

import pytest

from bn_jax.machine import describe_machine


def test_the_machine_is_described_by_processor_cores_and_python() -> None:
    machine = describe_machine()
    assert machine.keys() == {"cpu", "cores", "python"}
    assert machine["cores"] == os.cpu_count()
    assert machine["python"] == platform.python_version()


def test_the_processor_is_named_as_linux_does(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor : 0\nmodel name : Fast CPU @ 3 GHz\nmodel name : Other\n"
    monkeypatch.setattr(Path, "read_text", lambda _: text)
    assert describe_machine()["cpu"] == "Fast CPU @ 3 GHz"


def test_without_the_list_of_linux_there_still_is_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert describe_machine()["cpu"] in (platform.processor(), platform.machine())


def test_a_list_without_names_gives_the_architecture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: "processor : 0\n")
    assert describe_machine()["cpu"] == platform.machine()
