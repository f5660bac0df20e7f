"""Cores that a process may use, on systems that tell and on others."""

import os

import pytest

from bn_jax.machine import number_of_cores, own_cores


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
