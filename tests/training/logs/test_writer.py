"""Metrics in a file and in TensorBoard's events."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from training.logs.terminal import Terminal

from bn_jax.training.logs.writer import MetricsWriter
from bn_jax.workdir.files import read_metrics

VALUES = {"train_loss": 0.25, "test_accuracy": 0.875, "percentiles": [-1.0, 0.0, 2.0]}


@contextmanager
def open_writer(
    workdir: Path, *, first_step: int = 0, **changes: Any
) -> Iterator[MetricsWriter]:
    settings = {"num_steps": 100, "log_every": 10, "show_progress": False}
    with MetricsWriter(workdir, **{**settings, **changes}) as writer:
        writer.start(first_step, evaluated_until=first_step)
        yield writer


def events(workdir: Path) -> Iterator[Event]:
    """All events, from records of length, checksum, content and checksum."""
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_each_evaluation_is_a_line_of_json(tmp_path: Path) -> None:
    with open_writer(tmp_path) as writer:
        writer.write(10, VALUES)
        writer.write(20, {"train_loss": 0.125})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 10, **VALUES},
        {"step": 20, "train_loss": 0.125},
    ]


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with open_writer(tmp_path) as writer:
        writer.write(10, VALUES)
        assert read_metrics(tmp_path) == [{"step": 10, **VALUES}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_know_is_refused(
    tmp_path: Path, value: float
) -> None:
    with open_writer(tmp_path) as writer:
        writer.write(10, VALUES)
        with pytest.raises(ValueError, match="not JSON compliant"):
            writer.write(20, {"train_loss": value})
    assert [line["step"] for line in read_metrics(tmp_path)] == [10]


def test_lines_after_the_first_step_are_dropped(tmp_path: Path) -> None:
    with open_writer(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"train_loss": 0.5})
    with open_writer(tmp_path, first_step=20) as writer:
        writer.write(30, {"train_loss": 0.25})
    metrics = [(line["step"], line["train_loss"]) for line in read_metrics(tmp_path)]
    assert metrics == [(10, 0.5), (20, 0.5), (30, 0.25)]


def test_the_bar_starts_at_the_step_whose_evaluation_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    settings = {"num_steps": 100, "log_every": None, "show_progress": True}
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n')
    with MetricsWriter(tmp_path, **settings) as writer:
        writer.start(20, evaluated_until=19)
        assert "20/100, compiling" in terminal.bars[0]
    assert read_metrics(tmp_path) == [{"step": 10}]


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 2')
    with open_writer(tmp_path, first_step=20) as writer:
        writer.write(30, {"train_loss": 0.25})
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 30]


def test_tensorboard_gets_every_scalar_under_its_step(tmp_path: Path) -> None:
    with open_writer(tmp_path) as writer:
        writer.write(10, VALUES)
        writer.write(20, {"train_loss": 0.125})
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in events(tmp_path)
        for value in event.summary.value
    ]
    assert scalars == [
        (10, "train_loss", 0.25),
        (10, "test_accuracy", 0.875),
        (10, "percentiles/0", -1.0),
        (10, "percentiles/1", 0.0),
        (10, "percentiles/2", 2.0),
        (20, "train_loss", 0.125),
    ]


def test_tensorboard_is_told_to_forget_the_steps_that_are_taken_again(
    tmp_path: Path,
) -> None:
    with open_writer(tmp_path, first_step=20) as writer:
        writer.write(30, VALUES)
    starts = [e.step for e in events(tmp_path) if e.session_log.status]
    assert starts == [21]
    assert SessionLog.START == 1


def test_a_silent_writer_leaves_no_file_and_shows_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_writer(tmp_path, show_progress=True, is_silent=True) as writer:
        writer.write(100, VALUES)
        writer.advance(100, 0.25, steps_per_second=1.0)
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_touched_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n')
    settings = {"num_steps": 100, "log_every": 10, "show_progress": False}
    with MetricsWriter(tmp_path, **settings):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert read_metrics(tmp_path) == [{"step": 10}]
