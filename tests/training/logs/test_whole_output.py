"""Output of a run, from its first line to its table of results."""

import logging
import re
from pathlib import Path

import pytest
from training.tiny_runs import Complete, interrupt, tiny_config

from bn_jax.training.loop import train
from bn_jax.workdir.files import read_summary, write_summary


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="absl")
    return caplog


def rows(log: pytest.LogCaptureFixture) -> dict[str, str]:
    """The lines of tables, by their labels."""
    lines = [r.getMessage() for r in log.records if r.filename == "first_lines.py"]
    pairs = (re.split(" {2,}", line, maxsplit=1) for line in lines)
    return dict(pairs)


def test_a_run_says_what_it_is_then_each_evaluation_then_what_it_has_reached(
    bn: Complete, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    workdir = tmp_path / "my run"
    train(bn.config, workdir)
    table = rows(log)
    last = {name: values[-1] for name, values in bn.metrics.items()}
    steps = bn.summary["steps_to_accuracy"]
    assert re.fullmatch(r"\d+ s on cpu", table.pop("time"))
    assert table == {
        "devices": "1 x cpu",
        "data": "digits, 210 training, 97 test examples",
        "example": "28x28x1, 10 classes",
        # 784 * 8 + 8 * 7 weights, a scale and a bias for each of 15 features, and a
        # last layer of 7 * 10 weights with 10 biases.
        "network": "mlp, 6,438 parameters",
        "normalization batch": "25 of 25 examples",
        "workdir": str(workdir),
        "TensorBoard": f"tensorboard --logdir '{workdir}'  (pip install tensorboard)",
        "complete": "after 60 steps",
        "train loss": f"{last['train_loss']:.4f}",
        "test loss": f"{last['test_loss']:.4f}",
        "test accuracy": f"{last['test_accuracy']:.4f}",
        "test top5 accuracy": f"{last['test_top5_accuracy']:.4f}",
        "steps to 0.9": str(steps["0.9"]),
        "steps to 0.95": str(steps["0.95"]),
        "results": f"{workdir}/metrics.jsonl, {workdir}/summary.json",
        "checkpoints": f"{workdir}/checkpoints",
    }
    lines = [m for m in log.messages if m.startswith("step ")]
    assert [line.split(", ")[0] for line in lines] == [
        f"step {step} of 60" for step in bn.metrics["step"]
    ]


def test_a_program_without_logging_sees_the_lines_while_it_trains(
    bn: Complete, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    logger = logging.getLogger("absl")
    before = (logger.level, logger.filters[:])
    train(bn.config, bn.workdir, show_progress=False)
    assert capsys.readouterr().err == ""
    train(bn.config, bn.workdir)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"INFO:absl:{bn.workdir}: this run is already complete."
    assert sum(line.startswith("INFO:absl:complete  ") for line in lines) == 1
    assert (logger.level, logger.filters) == before


def test_a_resumed_run_may_report_other_accuracies(
    bn: Complete, tmp_path: Path, idx_dir: Path, log: pytest.LogCaptureFixture
) -> None:
    interrupt(bn.config, tmp_path)
    config = tiny_config(idx_dir, report_steps_to=(0.5, 1.0))
    summary = train(config, tmp_path, show_progress=False)
    accuracy = bn.metrics["test_accuracy"]
    first = int(bn.metrics["step"][accuracy >= 0.5][0])
    assert accuracy.max() < 1
    assert summary["steps_to_accuracy"] == {"0.5": first, "1.0": None}
    assert rows(log)["steps to 1.0"] == "not reached"


def test_a_complete_run_of_version_0_1_shows_what_it_has_reached(
    bn: Complete, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((bn.workdir / name).read_bytes())
    old = dict(bn.summary)
    old["steps_to_90_percent"] = old.pop("steps_to_accuracy")["0.9"]
    write_summary(tmp_path, old)
    assert train(bn.config, tmp_path) == read_summary(tmp_path)
    assert rows(log)["steps to 0.9"] == str(old["steps_to_90_percent"])
    assert f"{tmp_path}: this run is already complete." in log.messages
