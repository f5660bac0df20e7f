"""The machine that timings come from, and the cores that a process may use."""

import os
import platform
from pathlib import Path
from typing import Any

import pytest

from bn_jax.machine import describe_machine, number_of_cores, own_cores


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


def test_cores_are_those_that_this_process_is_bound_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {6, 3, 5}, raising=False)
    assert own_cores() == [3, 5, 6]
    assert number_of_cores() == 3


def test_all_cores_count_where_that_is_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert own_cores() == []
    assert number_of_cores() == os.cpu_count()
