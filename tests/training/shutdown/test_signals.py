"""A signal ends a run with its state saved; it resumes with the same bits."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import chex
import pytest
from training.tiny_imagenet import tiny_imagenet_config
from training.tiny_runs import (
    EVALUATED,
    Complete,
    assert_same_result,
    complete_run,
    final_state,
    plain,
)

from bn_jax.errors import UserError
from bn_jax.training import loop
from bn_jax.training.loop import train
from bn_jax.training.run import Run
from bn_jax.training.shutdown.signals import StoppedBySignalError, StopSignals
from bn_jax.training.step.state import new_tally
from bn_jax.workdir.files import read_metrics, read_summary
from bn_jax.workdir.lock import locked

HANDLED = (signal.SIGTERM, signal.SIGINT)


def send_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Sends this process a signal when the stretch after that step begins."""

    def train_steps(run: Run, state: Any, first_step: int, last_step: int) -> Any:
        if first_step == step:
            os.kill(os.getpid(), number)
        return run.train_steps(state, first_step, last_step)

    _change(monkeypatch, train_steps=train_steps)


def send_in_evaluation(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Sends this process a signal when the evaluation after that step begins."""

    def evaluate(run: Run, state: Any, at_step: int, should_stop: Any) -> Any:
        if at_step == step:
            os.kill(os.getpid(), number)
        return run.evaluate(state, at_step, should_stop)

    _change(monkeypatch, evaluate=evaluate)


def _change(monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., Any]) -> None:
    """Gives runs other functions, which are given the run before their arguments."""
    original = loop.compile_run

    def compile_run(*arguments: Any) -> Any:
        run = original(*arguments)
        return run._replace(**{k: partial(f, run) for k, f in functions.items()})

    monkeypatch.setattr(loop, "compile_run", compile_run)


@pytest.mark.parametrize(
    ("step", "number", "code"),
    [
        (10, signal.SIGTERM, 143),
        pytest.param(30, signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    bn: Complete,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    number: int,
    code: int,
) -> None:
    with monkeypatch.context() as patch:
        send_at(patch, step, number)
        with pytest.raises(StoppedBySignalError) as stopped:
            train(bn.config, tmp_path, show_progress=False)
    assert stopped.value.code == code
    (saved,) = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    # One stretch may be under way already.
    assert step + 10 <= saved <= step + 20
    # Where it stopped at an evaluation, that was not begun.
    assert read_metrics(tmp_path)[-1]["step"] == max(n for n in EVALUATED if n < saved)
    assert read_summary(tmp_path) is None
    # The folder is free again.
    train(bn.config, tmp_path, show_progress=False)
    assert_same_result(tmp_path, bn)


@pytest.mark.parametrize("step", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_a_signal_cuts_an_evaluation_off_and_the_run_goes_on_with_it(
    imagenet_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    # Twelve images in batches of five.
    config = tiny_imagenet_config(
        imagenet_dir, num_steps=8, max_steps_per_dispatch=2, checkpoint__every_steps=3
    )
    expected = complete_run(config, tmp_path / "whole")
    assert list(expected.metrics["step"]) == [4, 8]
    with monkeypatch.context() as patch:
        send_in_evaluation(patch, step, signal.SIGTERM)
        with pytest.raises(StoppedBySignalError):
            train(config, tmp_path / "cut", show_progress=False)
    lines = read_metrics(tmp_path / "cut")
    assert lines == read_metrics(expected.workdir)[: step // 4 - 1]
    train(config, tmp_path / "cut", show_progress=False)
    assert read_metrics(tmp_path / "cut") == read_metrics(expected.workdir)
    ends = [
        plain(final_state(config, folder))._replace(tally=new_tally())
        for folder in (tmp_path / "cut", expected.workdir)
    ]
    chex.assert_trees_all_equal(*ends)


def test_a_second_run_in_the_same_folder_is_refused(
    bn: Complete, tmp_path: Path
) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="another run is using it"):
        train(bn.config, tmp_path, show_progress=False)


def test_the_first_signal_is_noted_and_what_comes_of_it_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="absl")
    with StopSignals() as signals:
        signals.has_something_to_save = True
        assert signals.received == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
    (message,) = caplog.messages
    assert message.startswith("SIGTERM: the state will be saved")


@pytest.mark.parametrize(("has_something_to_save", "code"), [(True, 130), (False, 143)])
def test_the_second_signal_ends_the_process_or_the_first_with_nothing_to_save(
    monkeypatch: pytest.MonkeyPatch, has_something_to_save: bool, code: int
) -> None:
    ended, codes = threading.Event(), []

    def exit_instead(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(os, "_exit", exit_instead)
    with StopSignals() as signals:
        signals.has_something_to_save = has_something_to_save
        for number in (signal.SIGTERM, signal.SIGINT)[: 1 + has_something_to_save]:
            os.kill(os.getpid(), number)
        assert ended.wait(timeout=60)
        assert signals.received == signal.SIGTERM
    assert codes == [code]


@pytest.mark.parametrize("error", [None, ValueError])
def test_handlers_are_given_back(error: type[Exception] | None) -> None:
    def use_and_fail() -> None:
        with StopSignals():
            assert all(signal.getsignal(n) != b for n, b in before.items())
            if error is not None:
                raise error

    before = {number: signal.getsignal(number) for number in HANDLED}
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    if error is None:
        use_and_fail()
    else:
        with pytest.raises(error):
            use_and_fail()
    assert {number: signal.getsignal(number) for number in HANDLED} == before
    assert signal.set_wakeup_fd(wakeup) == wakeup


def in_a_thread(function: Callable[[], None]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_outside_the_main_thread_no_handler_is_touched() -> None:
    before = {number: signal.getsignal(number) for number in HANDLED}
    seen = []

    def use() -> None:
        with StopSignals() as signals:
            seen.append({number: signal.getsignal(number) for number in HANDLED})
            assert signals.received == 0
        seen.append({number: signal.getsignal(number) for number in HANDLED})

    in_a_thread(use)
    assert seen == [before, before]


@pytest.mark.parametrize(("number", "code"), [(15, 143), (2, 130)])
def test_the_exit_code_is_that_of_shells(number: int, code: int) -> None:
    assert StoppedBySignalError(number).code == code
    assert isinstance(StoppedBySignalError(number), SystemExit)
