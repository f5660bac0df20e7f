"""Members of an ensemble must be of the same data and classes."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from training.tiny_imagenet import tiny_imagenet_config
from training.tiny_runs import Complete, complete_run, tiny_config

from bn_jax.errors import UserError
from bn_jax.results import EnsembleEvaluation
from bn_jax.training.evaluation.ensemble import ensemble
from bn_jax.workdir.files import claim_workdir


def together(*runs: Complete) -> EnsembleEvaluation:
    return ensemble([run.workdir for run in runs], statistics="moving")


def together_on(idx_dir: Path, workdirs: Sequence[Path]) -> EnsembleEvaluation:
    """Evaluates on the images of one folder, whatever the runs were trained on."""
    dataset = {"name": "mnist", "idx_dir": str(idx_dir)}
    return ensemble(workdirs, dataset=dataset, statistics="moving")


def trained_on(
    datasets: Sequence[dict[str, str]], runs: Sequence[Complete], folder: Path
) -> list[Path]:
    """Copies of runs whose configurations say what data they were trained on."""
    workdirs = []
    for number, (run, dataset) in enumerate(zip(runs, datasets, strict=True)):
        workdirs.append(folder / str(number))
        shutil.copytree(run.workdir, workdirs[-1])
        path = workdirs[-1] / "config.json"
        config = json.loads(path.read_text())
        config["dataset"] |= {"idx_dir": None, **dataset}
        path.write_text(json.dumps(config))
    return workdirs


def test_runs_on_other_data_are_refused_with_what_differs(
    bn: Complete, tmp_path: Path
) -> None:
    config = tiny_imagenet_config("prepared")
    claim_workdir(tmp_path, json.loads(config.to_json()))
    expected = (
        rf"on the same data; dataset\.data_dir is None in {bn.workdir} and '.*' in "
        rf"{tmp_path}; dataset\.idx_dir is '.*' in .* and None in .*; "
        r"dataset\.image_size is None in .* and 16 in .*; dataset\.name is 'mnist'.*"
        r"Leave one of them out, or set .* by --dataset\.KEY=VALUE"
    )
    with pytest.raises(UserError, match=expected):
        together(bn, Complete(config, tmp_path, {}))


@pytest.mark.slow
def test_networks_of_other_classes_are_refused(
    bn: Complete, idx_dir: Path, tmp_path: Path
) -> None:
    config = tiny_config(idx_dir, num_steps=5, max_steps_per_dispatch=5)
    with config.unlocked():
        config.model.num_classes = 12
    other = complete_run(config, tmp_path / "run")
    expected = rf"{bn.workdir} has 10 classes, and the one in {other.workdir} has 12"
    with pytest.raises(UserError, match=expected):
        together(bn, other)


@pytest.mark.parametrize(
    "datasets",
    [
        ({"name": "mnist"}, {"name": "fashion_mnist:3.0.1"}),
        ({"name": "mnist"}, {"name": "mnist", "idx_dir": "/idx/fashion_mnist"}),
        (
            {"name": "mnist", "idx_dir": "/a/mnist/"},
            {"name": "mnist", "idx_dir": "fashion_mnist"},
        ),
    ],
    ids=["of TFDS", "one of IDX files", "both of IDX files"],
)
def test_networks_trained_on_other_data_are_refused_whatever_they_are_tested_on(
    bn: Complete,
    baseline: Complete,
    idx_dir: Path,
    tmp_path: Path,
    datasets: tuple[dict[str, str], dict[str, str]],
) -> None:
    workdirs = trained_on(datasets, (bn, baseline), tmp_path)
    # The refusal comes before the checkpoints are read: without them it is unchanged.
    for workdir in workdirs:
        shutil.rmtree(workdir / "checkpoints")
    expected = rf"{workdirs[0]} was trained on .*mnist, .* {workdirs[1]} on .*fashion"
    with pytest.raises(UserError, match=expected):
        together_on(idx_dir, workdirs)


def test_folders_of_one_name_with_other_labels_are_other_data(
    bn: Complete, baseline: Complete, idx_dir: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / idx_dir.name
    shutil.copytree(idx_dir, other)
    labels = other / "train-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[8:11] = bytes((label + 1) % 10 for label in content[8:11])
    labels.write_bytes(content)
    datasets = {"idx_dir": str(idx_dir)}, {"idx_dir": str(other)}
    workdirs = trained_on(datasets, (bn, baseline), tmp_path)
    expected = (
        rf"was trained on {idx_dir}, and the one in {workdirs[1]} on {other}\. Leave"
    )
    with pytest.raises(UserError, match=expected):
        together_on(idx_dir, workdirs)


@pytest.mark.parametrize("folder", ["as it was", "gone"])
def test_copies_of_a_folder_are_one_set(
    bn: Complete, baseline: Complete, idx_dir: Path, tmp_path: Path, folder: str
) -> None:
    copied = tmp_path / "copied" / idx_dir.name
    if folder == "as it was":
        shutil.copytree(idx_dir, copied)
    datasets = {"idx_dir": str(idx_dir)}, {"idx_dir": str(copied)}
    workdirs = trained_on(datasets, (bn, baseline), tmp_path)
    assert len(together_on(idx_dir, workdirs).members) == 2


def test_a_set_of_tfds_may_be_trained_on_in_another_version_or_a_folder_of_its_name(
    bn: Complete, baseline: Complete, idx_dir: Path, tmp_path: Path
) -> None:
    datasets = {"name": "mnist:3.0.1"}, {"name": "mnist", "idx_dir": "/copied/mnist"}
    workdirs = trained_on(datasets, (bn, baseline), tmp_path)
    assert len(together_on(idx_dir, workdirs).members) == 2


def test_a_folder_of_data_may_be_spelled_in_several_ways(
    bn: Complete,
    baseline: Complete,
    idx_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(idx_dir.parent)
    datasets = {"idx_dir": str(idx_dir)}, {"idx_dir": idx_dir.name}
    workdirs = trained_on(datasets, (bn, baseline), tmp_path)
    assert len(ensemble(workdirs, statistics="moving").members) == 2
