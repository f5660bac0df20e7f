"""Detection of the other processes of a run."""

import os
import socket
from collections.abc import Iterator
from typing import Any

import jax
import pytest

from bn_jax.errors import UserError
from bn_jax.training.distributed import processes
from bn_jax.training.distributed.parallel import make_parallel
from bn_jax.training.distributed.processes import (
    HEARTBEAT_TIMEOUT,
    LostProcessError,
    gather_texts,
    is_primary,
    join_processes,
    make_max_over_processes,
    wait_for_all,
)

LAUNCHERS = ("SLURM", "OMPI", "TPU", "KUBERNETES", "JOB_COMPLETION")
JOB = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Arguments of JAX's initialization, which does nothing; and no launcher."""
    calls: list[Any] = []

    def initialize(*arguments: Any, **keywords: Any) -> None:
        calls.append((*arguments, keywords))

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)
    before = jax.config.jax_enable_preemption_service
    yield calls
    jax.config.update("jax_enable_preemption_service", before)


def test_a_process_alone_joins_nobody(calls: list[Any]) -> None:
    join_processes(None, None, None)
    assert calls == []


def test_processes_that_are_named_are_joined(calls: list[Any]) -> None:
    join_processes("host:1234", 4, 3)
    ((address, number, index, keywords),) = calls
    assert (address, number, index) == ("host:1234", 4, 3)
    assert keywords["heartbeat_timeout_seconds"] == HEARTBEAT_TIMEOUT


def test_signals_are_left_to_the_training_loop(calls: list[Any]) -> None:
    join_processes("host:1234", 2, 1)
    assert not jax.config.jax_enable_preemption_service


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_STEP_NUM_TASKS": "4"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"TPU_PROCESS_ADDRESSES": "a:1,b:1,c:1"},
        JOB,
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_one_of_several_that_a_launcher_started_joins_the_others(
    monkeypatch: pytest.MonkeyPatch, calls: list[Any], environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    join_processes(None, None, None)
    assert [call[:3] for call in calls] == [(None, None, None)]


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": ""},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"TPU_WORKER_HOSTNAMES": ""},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {"JOB_COMPLETION_INDEX": "0"},
    ],
    ids=lambda environment: "_".join(*environment.items()),
)
def test_a_single_process_of_a_launcher_joins_nobody(
    monkeypatch: pytest.MonkeyPatch, calls: list[Any], environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    join_processes(None, None, None)
    assert calls == []


@pytest.mark.parametrize(
    ("is_installed", "environment", "method"),
    [
        (True, {}, "mpi4py"),
        (True, {"OMPI_MCA_orte_hnp_uri": "1234.0;tcp://10.0.0.1:1"}, None),
        (False, {}, None),
    ],
    ids=["version_5", "before_5", "without_mpi4py"],
)
def test_processes_of_open_mpi_5_are_found_by_mpi4py(
    monkeypatch: pytest.MonkeyPatch,
    calls: list[Any],
    is_installed: bool,
    environment: dict[str, str],
    method: str | None,
) -> None:
    for name, value in {"OMPI_COMM_WORLD_SIZE": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "find_spec", lambda _: is_installed or None)
    join_processes(None, None, None)
    ((*_, keywords),) = calls
    assert keywords["cluster_detection_method"] == method


def test_a_process_alone_hears_itself() -> None:
    assert gather_texts("größer") == ["größer"]


@pytest.mark.parametrize("process_id", [0, 1])
@pytest.mark.parametrize("address", ["host", "host:", ":1234", "host:ssh", "h:65536"])
def test_an_address_that_is_none_is_refused(
    calls: list[Any], address: str, process_id: int
) -> None:
    with pytest.raises(UserError, match=f"must be host:port, .* but is '{address}'"):
        join_processes(address, 2, process_id)
    assert calls == []


@pytest.mark.parametrize(
    "arguments",
    [("host:1", None, None), (None, 2, None), (None, None, 0), ("host:1", 2, None)],
)
def test_only_some_of_the_flags_are_refused(
    calls: list[Any], arguments: tuple[Any, ...]
) -> None:
    expected = "must be set together, but are {}, {} and {}".format(*arguments)
    with pytest.raises(UserError, match=expected):
        join_processes(*arguments)
    assert calls == []


def test_a_port_that_is_taken_is_refused(calls: list[Any]) -> None:
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"{address}: another program listens"):
            join_processes(address, 2, 0)
    assert calls == []


@pytest.mark.parametrize("process_id", [-1, 2, 7])
def test_a_process_id_outside_the_range_is_refused(
    calls: list[Any], process_id: int
) -> None:
    expected = f"--process_id must lie in 0 to 1, but is {process_id}"
    with pytest.raises(UserError, match=expected):
        join_processes("host:1234", 2, process_id)
    assert calls == []


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (ValueError, UserError, r"cannot be joined \(no coordinator\)\. Set --co"),
        (RuntimeError, LostProcessError, r"not connect to each other \(no coordinator"),
    ],
)
def test_what_jax_cannot_join_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
    expected: type[Exception],
    message: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error("no coordinator")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(expected, match=message):
        join_processes("host:1234", 2, 1)


def test_a_process_alone_writes_and_waits_for_nobody() -> None:
    assert is_primary()
    wait_for_all("here")


@pytest.mark.parametrize("flag", [0, 15])
def test_a_process_alone_is_asked_only_for_its_own_flag(flag: int) -> None:
    assert int(make_max_over_processes(make_parallel("jit"))(flag)) == flag


@pytest.mark.parametrize("num_devices", [1, 2])
def test_the_flag_of_all_is_waited_for_where_devices_share_threads(
    monkeypatch: pytest.MonkeyPatch, num_devices: int
) -> None:
    max_flag = make_max_over_processes(make_parallel("jit", num_devices=num_devices))
    waited_for: list[Any] = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        jax, "block_until_ready", lambda value: waited_for.append(value) or value
    )
    assert int(max_flag(15)) == 15
    assert [int(value) for value in waited_for] == [15] * (num_devices - 1)
