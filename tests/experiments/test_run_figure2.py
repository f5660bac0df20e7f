"""From one command to the small arms' figure: rates, runs, picture, record, table."""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from reporting.runs import synthetic_run, write_run
from reporting.small_arms import ACCURACIES, small_arms

from bn_jax.data.dataset import ArraySplit, Dataset
from bn_jax.errors import UserError
from bn_jax.experiments import run_figure2 as module
from bn_jax.experiments.run_figure2 import figure2
from bn_jax.experiments.runs import Job, run_on_devices
from bn_jax.models.inception import table
from bn_jax.reporting.load import load_run
from bn_jax.training.config_files import load_config
from bn_jax.workdir.lock import locked

# Two evaluations of few images.
SHORT = {
    "dataset.train_split": "train[:-50]",
    "dataset.test_split": "train[-50:]",
    "model.width": "0.0625",
    "num_steps": "12",
    "max_steps_per_dispatch": "6",
    "evaluation.schedule.early_until_step": "0",
    "evaluation.schedule.every_steps": "6",
    "evaluation.population_batches": "2",
    "evaluation.batch_size": "50",
    "evaluation.probe_examples": "50",
    "checkpoint.every_steps": "12",
}
# Accuracy that the stand-in of Inception reaches with each rate and the first seed. The
# other seeds reach less, or more with the third rate alone. The last rate diverges.
SEARCHED = {0.005: 0.5, 0.01: 0.6, 0.02: 0.8, 0.04: 0.85, 0.08: None}


@pytest.fixture
def drawn_jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that a figure asks for; each is complete, or has diverged, at once."""
    asked: list[Job] = []
    arms = small_arms()

    def end(job: Job) -> int | None:
        asked.append(job)
        config = json.loads(job.config.to_json())
        if job.workdir.parts[-3] == "search":
            accuracy = _searched(job.config.optimizer.learning_rate, job.config.seed)
            run = synthetic_run([accuracy or 0.1])
            has_diverged = accuracy is None
        else:
            run = arms[job.workdir.parent.name][job.config.seed]
            has_diverged = not run.summary
        write_run(job.workdir, run._replace(config=config))
        if has_diverged:
            (job.workdir / "summary.json").unlink()
        return 5 if has_diverged else None

    def complete(jobs: Sequence[Job]) -> list[int | None]:
        assert all(job.may_diverge for job in jobs)
        return [end(job) for job in jobs]

    monkeypatch.setattr(module, "run_jobs", complete)
    return asked


@pytest.fixture
def jobs(drawn_jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that a figure asks for, where its picture does not matter."""
    monkeypatch.setattr(module, "draw_figure2", lambda *_: None)
    return drawn_jobs


def _searched(rate: float, seed: int) -> float | None:
    first = SEARCHED[rate]
    if first is None or seed == 100:
        return first
    return first + (0.1 if rate == 0.02 else -0.1)


def record_of(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "figure2.json").read_text())


def test_every_arm_is_trained_with_every_seed(tmp_path: Path, jobs: list[Job]) -> None:
    figure2(tmp_path, seeds=2)
    assert [job.workdir for job in jobs] == [
        tmp_path / arm / f"seed{seed}" for seed in (0, 1) for arm in ACCURACIES
    ]
    assert [job.config.seed for job in jobs] == [0] * 7 + [1] * 7


def test_the_picture_the_record_and_the_table_are_there(
    tmp_path: Path, drawn_jobs: list[Job]
) -> None:
    text = figure2(tmp_path, seeds=2)
    assert text.splitlines()[-1] == f"The figure: {tmp_path / 'figure2.png'}"
    assert "paper: Ioffe & Szegedy (2015), Figure 3: ImageNet" in text
    assert (tmp_path / "figure2.png").exists()
    assert (tmp_path / "figure2.svg").exists()
    record = record_of(tmp_path)
    assert record["search"] is None
    assert record["machine"].keys() == {"cpu", "cores", "python"}
    assert record["arms"]["inception_x5"]["diverged_after"] == [5, None]


def test_a_search_takes_the_rate_with_the_highest_accuracy_on_average(
    tmp_path: Path, jobs: list[Job]
) -> None:
    figure2(tmp_path, seeds=1, search=True)
    searched, arms = jobs[: 3 * len(SEARCHED)], jobs[3 * len(SEARCHED) :]
    assert {job.config.norm.name for job in searched} == {None}
    # Not with a seed that the arms are compared with.
    asked = [(j.config.seed, j.config.optimizer.learning_rate) for j in searched]
    assert asked == list(product((100, 101, 102), SEARCHED))
    rates = {
        job.workdir.parent.name: job.config.optimizer.learning_rate for job in arms
    }
    assert rates == pytest.approx(
        {
            **dict.fromkeys(("inception", "bn_baseline", "inception_sigmoid"), 0.02),
            **dict.fromkeys(("bn_x5", "bn_x5_sigmoid", "inception_x5"), 0.1),
            "bn_x30": 0.6,
        },
        rel=1e-12,
    )


def test_the_record_has_all_that_was_searched(tmp_path: Path, jobs: list[Job]) -> None:
    figure2(tmp_path, seeds=1, search=True)
    search = record_of(tmp_path)["search"]
    assert search["learning_rate"] == 0.02
    tried = {one["learning_rate"]: one for one in search["tried"]}
    assert search["seeds"] == [100, 101, 102]
    assert {rate: one["diverged_after"] for rate, one in tried.items()} == {
        rate: [5 if accuracy is None else None] * 3
        for rate, accuracy in SEARCHED.items()
    }
    assert tried[0.01]["max_accuracy"]["seeds"] == pytest.approx([0.6, 0.5, 0.5])
    assert tried[0.02]["max_accuracy"]["mean"] == pytest.approx(26 / 30)


def test_a_search_that_finds_the_configured_rate_asks_for_the_configured_runs(
    tmp_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    config: Any = load_config("inception_small:inception")
    own = config.optimizer.learning_rate
    monkeypatch.setattr(module, "_RATES", (own,))
    monkeypatch.setitem(SEARCHED, own, 0.9)
    figure2(tmp_path, seeds=1, search=True)
    for job in jobs[3:]:
        arm = job.workdir.parent.name
        assert job.config.to_dict() == load_config(f"inception_small:{arm}").to_dict()


def test_changed_settings_reach_the_search_and_all_arms(
    tmp_path: Path, jobs: list[Job]
) -> None:
    figure2(tmp_path, seeds=1, search=True, overrides={"model.width": "0.5"})
    assert {job.config.model.width for job in jobs} == {0.5}


@pytest.mark.parametrize(
    "name",
    ["seed", "optimizer.learning_rate", "optimizer.weight_decay", "model.dropout_rate"],
)
def test_what_the_runs_differ_in_cannot_be_set(
    tmp_path: Path, jobs: list[Job], name: str
) -> None:
    with pytest.raises(
        UserError, match=rf"figure2: leave --config\.{name} out; the runs"
    ):
        figure2(tmp_path, overrides={name: "1"})
    assert jobs == []


@pytest.mark.parametrize(
    ("name", "value"), [("norm.name", "batch_norm"), ("model.nonlinearity", "tanh")]
)
def test_no_setting_may_give_an_arm_what_its_name_denies(
    tmp_path: Path, jobs: list[Job], name: str, value: str
) -> None:
    with pytest.raises(
        UserError, match=rf"leave --config\.{name} out; the runs differ"
    ):
        figure2(tmp_path, overrides={name: value})
    assert jobs == []


def test_settings_that_one_arm_cannot_have_are_refused_before_any_is_trained(
    tmp_path: Path, jobs: list[Job]
) -> None:
    # Six times faster than once in five steps.
    with pytest.raises(UserError, match=r"decay_every_steps .* take more steps"):
        figure2(tmp_path, overrides={"num_steps": "5"})
    assert jobs == []


@pytest.mark.parametrize("seeds", [0, -2])
def test_a_figure_without_seeds_is_refused(
    tmp_path: Path, jobs: list[Job], seeds: int
) -> None:
    with pytest.raises(UserError, match=f"figure2: --seeds .* is {seeds}"):
        figure2(tmp_path, seeds=seeds)
    assert jobs == []


def test_a_folder_that_another_command_is_using_is_refused_before_any_run(
    tmp_path: Path, jobs: list[Job]
) -> None:
    expected = f"workdir {tmp_path}: another run is using it"
    with locked(tmp_path), pytest.raises(UserError, match=expected):
        figure2(tmp_path, seeds=1, search=True)
    assert jobs == []


def test_chance_is_that_of_the_classes_that_there_are_images_of(
    tmp_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.array([3, 7, 7, 3, 9], np.int32)
    images = np.zeros((5, 28, 28, 1), np.uint8)
    split = ArraySplit(images, labels)
    few = Dataset("few", num_classes=1000, train=split, test=split)
    monkeypatch.setattr(module, "load_dataset", lambda **settings: few)
    # In parts, of which the last is a smaller one.
    monkeypatch.setattr(module, "_READ_AT_ONCE", 2)
    figure2(tmp_path, seeds=2)
    record = record_of(tmp_path)
    assert record["num_classes"] == 3
    assert "few, 28x28 pixels, accuracy on 5 images" in record["source"]


@pytest.mark.slow
def test_all_arms_train_on_a_folder_of_idx_files_and_are_drawn(
    tmp_path: Path, idx_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One module, as all ten take minutes to compile; in this process, which knows it.
    rows = [row for row in table.FIGURE_5 if row.name == "4d"]
    monkeypatch.setattr(table, "FIGURE_5", tuple(rows))

    def run_jobs(jobs: Sequence[Job]) -> list[int | None]:
        return run_on_devices(jobs, jax.devices()[:2])

    monkeypatch.setattr(module, "run_jobs", run_jobs)
    figure2(tmp_path, seeds=1, overrides={**SHORT, "dataset.idx_dir": str(idx_dir)})
    record = record_of(tmp_path)
    assert record["source"] == (
        "these runs: digits, 28x28 pixels, accuracy on 50 images, train[-50:], after "
        "training on train[:-50]; 0.0625 of the channels, 12 steps of 32 images"
    )
    for arm, measured in record["arms"].items():
        accuracy = load_run(tmp_path / arm / "seed0").metrics["test_accuracy"].tolist()
        assert measured["curves"] == [{"step": [6, 12], "accuracy": accuracy}]
    assert (tmp_path / "figure2.png").exists()
