"""The verbs of `bn-jax` that look at trained models, and what they are given."""

import json
from pathlib import Path
from typing import Any

import pytest

import bn_jax.training.evaluation.ensemble
import bn_jax.training.evaluation.evaluate
from bn_jax.cli import main
from bn_jax.results import EnsembleEvaluation, Evaluation
from bn_jax.training.config_files import saved_config


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Folders of two runs, of which nothing but the configurations is there."""
    workdirs = [tmp_path / "one", tmp_path / "two"]
    for workdir in workdirs:
        workdir.mkdir()
        dataset = {"name": "mnist", "idx_dir": "digits", "data_dir": None}
        config = {"format_version": 2, "dataset": dataset}
        (workdir / "config.json").write_text(json.dumps(config))
    return workdirs


@pytest.mark.parametrize(
    ("verb", "folders"),
    [("evaluate", ["one"]), ("inspect", ["one"]), ("ensemble", ["one", "two"])],
)
def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, folders: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"one: holds no run \(config.json is missing"):
        main([verb, *folders])


@pytest.mark.parametrize("words", [["evaluate", "run"], ["ensemble", "run"]])
def test_evaluations_take_settings_of_the_data_alone(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--config.seed=1"])
    assert "unknown argument --config.seed=1" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["evaluate", "run"], ["ensemble", "run"]])
def test_other_numbers_of_crops_are_refused(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--crops=10"])
    assert "invalid choice: 10 (choose from 1, 144)" in capsys.readouterr().err


def test_evaluate_has_one_crop_of_each_image_unless_told_otherwise(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ways: list[Any] = []

    def evaluate(workdir: Path, **way: Any) -> Evaluation:
        ways.append((workdir, way))
        return Evaluation(5, "digits", 9, {"test_loss": 0.5}, "some statistics")

    monkeypatch.setattr(bn_jax.training.evaluation.evaluate, "evaluate", evaluate)
    main(["evaluate", str(runs[0])])
    main(["evaluate", "--crops=144", "--statistics=moving", f"--workdir={runs[1]}"])
    assert ways == [
        (runs[0], {"dataset": {}, "statistics": "population", "crops": 1}),
        (runs[1], {"dataset": {}, "statistics": "moving", "crops": 144}),
    ]
    assert "digits, 144 crops of each, some" in capsys.readouterr().out


def test_ensemble_gets_every_run_with_the_same_change_of_its_data(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    calls: list[Any] = []

    def ensemble(workdirs: Any, **way: Any) -> EnsembleEvaluation:
        calls.append((workdirs, way))
        return EnsembleEvaluation(
            "digits", 9, [], {"test_loss": 0, "test_accuracy": 1}, "some statistics"
        )

    monkeypatch.setattr(bn_jax.training.evaluation.ensemble, "ensemble", ensemble)
    main(["ensemble", *map(str, runs), "--dataset.name=other", "--crops=144"])
    way = {"dataset": {"name": "other"}, "statistics": "population", "crops": 144}
    assert calls == [(runs, way)]
    assert "ensemble" in capsys.readouterr().out


def test_a_folder_of_the_run_can_be_left_out_for_another(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def evaluate(workdir: Path, *, dataset: dict, **_: Any) -> Evaluation:
        given.append(saved_config(workdir, dataset).dataset)
        return Evaluation(5, "digits", 9, {"test_loss": 0.5}, "some statistics")

    monkeypatch.setattr(bn_jax.training.evaluation.evaluate, "evaluate", evaluate)
    change = ["--dataset.idx_dir=None", "--dataset.data_dir=prepared"]
    main(["evaluate", str(runs[0]), *change])
    chosen = {key: given[0][key] for key in ("name", "idx_dir", "data_dir")}
    assert chosen == {"name": "mnist", "idx_dir": None, "data_dir": "prepared"}


@pytest.mark.parametrize("change", ["--dataset.nam=a", "--dataset.distortion=much"])
def test_a_change_that_cannot_be_made_is_called_as_it_was_written(
    runs: list[Path], change: str
) -> None:
    with pytest.raises(SystemExit, match=f"bn-jax evaluate: {change.split('=')[0]}"):
        main(["evaluate", str(runs[0]), change])


def test_an_ensemble_of_one_run_is_refused(runs: list[Path]) -> None:
    with pytest.raises(SystemExit, match=r"bn-jax ensemble: .* needs two runs or more"):
        main(["ensemble", str(runs[0])])
