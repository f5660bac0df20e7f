"""The program `bn-jax`: what it makes of its command line, and how it refuses one."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import bn_jax.data.preparation.imagenet
import bn_jax.data.preparation.mnist
import bn_jax.data.tfds
import bn_jax.experiments.run_figure1
from bn_jax.cli import main
from bn_jax.errors import UserError

Calls = list[dict[str, Any]]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The requests for figures; no figure is made."""
    calls: Calls = []

    def figure1(workdir: Path, *, seeds: int, overrides: Mapping[str, str]) -> str:
        calls.append({"workdir": workdir, "seeds": seeds, "overrides": overrides})
        return "the table"

    monkeypatch.setattr(bn_jax.experiments.run_figure1, "figure1", figure1)
    return calls


def split_sizes(name: str, data_dir: str) -> dict[str, int]:
    assert name in ("mnist", "imagenet2012")
    assert not data_dir.startswith("~")
    return {"train": 12, "test": 1200}


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that MNIST is prepared in; nothing is written."""
    folders: list[Path] = []

    def prepare_mnist(data_dir: Path) -> Path:
        folders.append(data_dir)
        return data_dir / "mnist" / "3.0.1"

    monkeypatch.setattr(bn_jax.data.preparation.mnist, "prepare_mnist", prepare_mnist)
    monkeypatch.setattr(bn_jax.data.tfds, "split_sizes", split_sizes)
    return folders


def test_figure1_is_made_with_three_seeds_unless_told_otherwise(
    figures: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["figure1", "runs"])
    assert figures == [{"workdir": Path("runs"), "seeds": 3, "overrides": {}}]
    assert capsys.readouterr().out == "the table\n"


def test_settings_of_the_configuration_reach_figure1(figures: Calls) -> None:
    words = ["--config.seed=1", "--config.dataset.idx_dir=/a=b", "--seeds", "2"]
    main(["figure1", "runs", *words])
    assert figures[0]["overrides"] == {"seed": "1", "dataset.idx_dir": "/a=b"}
    assert figures[0]["seeds"] == 2


def test_a_value_of_a_setting_may_be_a_word_of_its_own(figures: Calls) -> None:
    main(["figure1", "--config.seed", "1", "runs/mnist"])
    assert figures[0]["overrides"] == {"seed": "1"}


@pytest.mark.parametrize("word", ["--config.seed", "--sedes=2"])
def test_an_unknown_word_is_refused_by_name(
    figures: Calls, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["figure1", "runs", word])
    assert (end.value.code, figures) == (2, [])
    assert f"unknown argument {word}" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["figure1", "figure2", "evaluate", "inspect"])
def test_a_missing_workdir_is_asked_for(verb: str) -> None:
    expected = f"bn-jax {verb}: a workdir is missing: bn-jax {verb} DIR"
    with pytest.raises(SystemExit, match=expected):
        main([verb])


@pytest.mark.parametrize("words", [["more"], ["--workdir=more"]])
def test_a_second_workdir_is_refused(figures: Calls, words: list[str]) -> None:
    with pytest.raises(SystemExit, match="takes one workdir, but got runs and more"):
        main(["figure1", "runs", *words])
    assert figures == []


@pytest.mark.parametrize(
    "words",
    [
        ["runs"],
        ["--seeds=2", "runs"],
        ["--workdir", "runs"],
        ["runs", "--workdir=runs"],
    ],
)
def test_a_workdir_is_a_plain_word_or_an_option(
    figures: Calls, words: list[str]
) -> None:
    main(["figure1", *words])
    assert figures[0]["workdir"] == Path("runs")


def test_a_users_mistake_ends_the_program_with_its_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise UserError("this cannot be.")

    monkeypatch.setattr(bn_jax.experiments.run_figure1, "figure1", refuse)
    with pytest.raises(SystemExit) as end:
        main(["figure1", "runs"])
    # A string is printed to stderr, and the exit status is 1.
    assert end.value.code == "bn-jax figure1: this cannot be."


def test_a_figure_without_seeds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"bn-jax figure1: .*--seeds must be at least"):
        main(["figure1", str(tmp_path), "--seeds=0"])


def test_an_unknown_setting_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    expected = "bn-jax figure1: --config.num_stps: .*; did you mean .num_steps."
    with pytest.raises(SystemExit, match=expected):
        main(["figure1", str(tmp_path), "--config.num_stps=1"])


def test_prepare_refuses_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit, match=f"--data_dir: {file} is a file; name the"):
        main(["prepare", "mnist", f"--data_dir={file}"])


def test_prepare_says_where_mnist_is_and_how_to_read_it(
    prepared: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["prepare", "mnist", "--data_dir=folder"])
    assert prepared == [Path("folder")]
    assert capsys.readouterr().out == (
        f"{Path('folder', 'mnist', '3.0.1')}: 12 train and 1,200 test images; read it "
        'with tfds.data_source("mnist", data_dir="folder").\n'
    )


@pytest.mark.parametrize("words", [[], ["--data_dir=~/tensorflow_datasets"]])
def test_mnist_is_prepared_in_the_home_folder_by_default(
    prepared: list[Path], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("HOME", "someone")
    main(["prepare", "mnist", *words])
    assert prepared == [Path("someone/tensorflow_datasets")]


@pytest.mark.parametrize(
    ("words", "manual_dir"),
    [
        ([], Path("folder/downloads/manual")),
        (["--manual_dir=tars", "--subset"], Path("tars")),
    ],
)
def test_imagenet_is_prepared_from_the_folder_of_its_tar_files(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    manual_dir: Path,
) -> None:
    given: list[Any] = []

    def prepare_imagenet(*folders: Path, is_subset: bool) -> Path:
        given.extend([*folders, is_subset])
        return Path("there")

    module = bn_jax.data.preparation.imagenet
    monkeypatch.setattr(module, "prepare_imagenet", prepare_imagenet)
    monkeypatch.setattr(bn_jax.data.tfds, "split_sizes", split_sizes)
    main(["prepare", "imagenet2012", "--data_dir=folder", *words])
    assert given == [manual_dir, Path("folder"), bool(words)]
    assert capsys.readouterr().out == (
        "there: 12 train and 1,200 test images; read it with "
        'tfds.data_source("imagenet2012", data_dir="folder").\n'
    )


@pytest.mark.parametrize("word", ["--manual_dir=tars", "--subset"])
def test_mnist_is_prepared_from_no_tar_files(prepared: list[Path], word: str) -> None:
    with pytest.raises(
        SystemExit, match="bn-jax prepare: --manual_dir and --subset are"
    ):
        main(["prepare", "mnist", word])
    assert prepared == []


def test_other_sets_cannot_be_prepared(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["prepare", "cifar10"])
    assert end.value.code == 2
    assert "invalid choice: 'cifar10'" in capsys.readouterr().err


def test_prepare_takes_no_settings(
    prepared: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "mnist", "--config.seed=1"])
    assert "prepare takes no --config settings" in capsys.readouterr().err
    assert prepared == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"bn-jax prepare: .*file"):
        main(["prepare", "mnist", f"--data_dir={tmp_path / 'file' / 'below'}"])


@pytest.mark.parametrize("words", [[], ["draw"]])
def test_without_a_known_verb_the_usage_is_shown(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert ",prepare,evaluate,ensemble,inspect,launch}" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"bn-jax {bn_jax.__version__}\n"


def test_words_are_those_of_the_process_by_default(
    figures: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bn-jax", "figure1", "runs"])
    main()
    assert figures[0]["workdir"] == Path("runs")


def test_launch_runs_the_command_after_two_dashes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["launch", "--num_processes=2", "--", "echo", "--config.seed=1"])
    assert end.value.code == 0
    lines = sorted(capfd.readouterr().out.splitlines())
    assert [line[:23] for line in lines] == [
        f"[{i}] --config.seed=1 --c" for i in (0, 1)
    ]


def test_launch_returns_the_code_of_what_it_ran() -> None:
    with pytest.raises(SystemExit) as end:
        main(["launch", "--num_processes=1", "--", "false"])
    assert end.value.code == 1


def test_only_launch_takes_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["inspect", "folder", "--", "echo"])
    assert "inspect takes no command" in capsys.readouterr().err
