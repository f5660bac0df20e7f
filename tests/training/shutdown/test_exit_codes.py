"""Last message and exit code of a program, for each kind of error."""

import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import pytest

from bn_jax.errors import DivergedError, UserError
from bn_jax.training.distributed.processes import LostProcessError
from bn_jax.training.shutdown.exit_codes import exiting_with_message

RuntimeFailure = jax.errors.JaxRuntimeError


class Ended(BaseException):
    """In place of the process's end, which no `except Exception` may catch."""


class End(NamedTuple):
    """Exit code and output of a program; None as code if it raised the error again."""

    code: int | None
    output: str


@pytest.fixture
def end_of(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., End]:
    def end_of(error: Exception, *, several: bool) -> End:
        def end(code: int) -> None:
            raise Ended(code)

        monkeypatch.setattr(os, "_exit", end)
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda: several)
        monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
        code = None
        try:
            with exiting_with_message("train.py", workdir="runs/bn"):
                raise error
        except Ended as ended:
            code = ended.args[0]
        except Exception as raised:
            if raised is not error:
                raise
        return End(code, capfd.readouterr().err)

    return end_of


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("config.seed must be 0."), "config.seed must be 0."),
        (DivergedError("the loss is nan.", 3), "the loss is nan."),
        (OSError(28, "No space"), "workdir runs/bn: the run has ended early: [Errno"),
        (RuntimeFailure("RESOURCE_EXHAUSTED: 9 GiB"), "a device is out of memory: RES"),
        (ValueError("RESOURCE_EXHAUSTED: 9 GiB"), "a device is out of memory: RES"),
    ],
    ids=["user", "diverged", "disk", "memory", "memory_by_dispatch"],
)
def test_what_can_be_mended_is_a_line_and_code_1(
    end_of: Callable[..., End], error: Exception, line: str, several: bool
) -> None:
    code, output = end_of(error, several=several)
    assert code == 1
    assert output.startswith(f"train.py: {line}")
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        LostProcessError("they did not meet"),
        ConnectionResetError("by peer"),
        TimeoutError("too long"),
        RuntimeFailure("INTERNAL: a barrier failed"),
        ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_process_that_is_lost_is_a_line_and_code_3(
    end_of: Callable[..., End], error: Exception
) -> None:
    code, output = end_of(error, several=True)
    assert code == 3
    assert output.startswith("train.py: another process may have ended")
    assert output.count("\n") == 1
    assert str(error) in output


def test_processes_that_never_met_are_lost_as_well(end_of: Callable[..., End]) -> None:
    code, output = end_of(LostProcessError("they did not meet"), several=False)
    assert code == 3
    assert output == "train.py: another process may have ended: they did not meet\n"


@pytest.mark.parametrize("error", [TypeError("a mistake"), ValueError("UNUSUAL: 1")])
def test_a_mistake_in_one_of_several_ends_it_with_its_traceback(
    end_of: Callable[..., End], error: Exception
) -> None:
    code, output = end_of(error, several=True)
    assert code == 3
    assert "Traceback" in output
    assert f"{type(error).__name__}: {error}\n" in output
    last = output.splitlines()[-1]
    assert last.startswith("train.py: one process of several has failed. Start all")


@pytest.mark.parametrize(
    "error", [TypeError("a mistake"), ValueError("one"), RuntimeFailure("INTERNAL: x")]
)
def test_a_mistake_in_the_only_process_is_raised(
    end_of: Callable[..., End], error: Exception
) -> None:
    assert end_of(error, several=False) == End(None, "")


def test_a_run_without_an_error_goes_on_behind_it() -> None:
    with exiting_with_message("train.py", workdir="runs/bn"):
        reached = True
    assert reached
