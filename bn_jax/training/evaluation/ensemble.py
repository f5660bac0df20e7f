"""Accuracy of several trained models together, from their workdirs."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from bn_jax.data.idx import load_idx_folder
from bn_jax.data.imagenet.folder import image_classes
from bn_jax.errors import UserError
from bn_jax.results import EnsembleEvaluation, Member
from bn_jax.training.build import Settings
from bn_jax.training.checkpoints.restore import local_devices, restore
from bn_jax.training.config_files import saved_config
from bn_jax.training.evaluation.eval_batches import add_up
from bn_jax.training.evaluation.evaluate import (
    check_choices,
    choose_predict,
    describe_statistics,
    read_test_set,
    with_statistics,
)
from bn_jax.training.evaluation.predict import (
    EnsembleSums,
    PaddedBatches,
    Predict,
    make_ensemble_step,
)
from bn_jax.training.parts import Parts, errors_naming_config
from bn_jax.training.step.metrics import mean_metrics
from bn_jax.training.step.state import TrainState
from bn_jax.user_code import is_object_name
from bn_jax.workdir.differences import differences
from bn_jax.workdir.files import read_config

# Settings that change no test image.
_ENSEMBLE_MAY_DIFFER = (
    "dataset.distortion",
    "dataset.augmentation_seed",
    "dataset.read_threads",
    "dataset.validation_split",
)
# Settings of `config.dataset` that are paths.
_FOLDERS = ("data_dir", "idx_dir", "image_dir")


def ensemble(
    workdirs: Sequence[Path | str],
    *,
    dataset: Mapping[str, str] | None = None,
    statistics: str = "population",
    crops: int = 1,
) -> EnsembleEvaluation:
    """Evaluates the averaged probabilities of several runs' newest checkpoints.

    A run with averaged parameters takes part with those. Each image is read once for
    all networks. Source: Ioffe & Szegedy (2015), section 4.2.3.

    Args:
        workdirs: Workdirs of the runs; nothing in them is changed. The configuration
            in the first sets the batch size.
        dataset: Settings of `config.dataset` to change in all runs, as text.
        statistics: Statistics that layers normalize by, one of
            `bn_jax.training.evaluation.evaluate.STATISTICS`.
        crops: Crops of each image, 1 or 144; the probabilities of all crops by all
            networks are averaged.

    Raises:
        UserError: If there are fewer than two runs, a run is given twice or has no
            checkpoint, a setting is unknown, the runs differ in their data or classes,
            or the data do not suit the models or the crops.
    """
    check_choices(statistics, crops)
    folders = [Path(workdir) for workdir in workdirs]
    _check_folders(folders)
    configs = [saved_config(folder, dataset) for folder in folders]
    _check_same_data(configs, folders)
    _check_same_label_spaces(folders)
    # A generator, so that memory holds the training images of one run at a time.
    by_batch = statistics == "batch"
    parallel = local_devices(configs, by_batch=by_batch)
    restored = (
        restore(config, folder, parallel, by_batch=by_batch)
        for config, folder in zip(configs, folders, strict=True)
    )
    parts, state = next(restored)
    name = parts.data.name
    read_test = read_test_set(parts, statistics=statistics, crops=crops)
    networks = [
        _network(parts, state, statistics=statistics, crops=crops)
        for parts, state in chain([(parts, state)], restored)
    ]
    _check_same_classes(networks, folders)
    step = jax.jit(
        make_ensemble_step([network.predict for network in networks]),
        out_shardings=parallel.replicated,
    )

    def sums_of(piece: PaddedBatches) -> EnsembleSums:
        with errors_naming_config():
            variables = [network.variables for network in networks]
            return parallel.wait_if_needed(step(variables, piece))

    sums = add_up(sums_of, read_test())
    return EnsembleEvaluation(
        data=name,
        num_examples=int(sums.ensemble.num_examples),
        members=[
            Member(str(folder), network.step, network.is_averaged, mean_metrics(one))
            for folder, network, one in zip(
                folders, networks, sums.members, strict=True
            )
        ],
        metrics=mean_metrics(sums.ensemble),
        statistics=" and ".join(dict.fromkeys(one.statistics for one in networks)),
    )


class _Network(NamedTuple):
    step: int
    is_averaged: bool
    num_classes: int
    predict: Predict
    variables: PyTree
    statistics: str


def _network(
    parts: Parts, state: TrainState, *, statistics: str, crops: int
) -> _Network:
    """Returns the network of a run, without the run's data."""
    # The averaged parameters come last, if the run keeps them.
    prefix, variables = list(state.networks.items())[-1]
    step = int(state.step)
    ready = with_statistics(
        parts, {prefix: variables}, step=step, statistics=statistics
    )
    return _Network(
        step=step,
        is_averaged=bool(prefix),
        num_classes=parts.num_classes,
        predict=choose_predict(parts, statistics=statistics, crops=crops),
        variables=ready[prefix],
        statistics=describe_statistics(parts, variables, statistics),
    )


def _check_folders(workdirs: Sequence[Path]) -> None:
    if len(workdirs) < 2:
        raise UserError(
            f"an ensemble needs two runs or more, but got {len(workdirs)}; use "
            "`bn-jax evaluate DIR` for one run."
        )
    folders = [workdir.resolve() for workdir in workdirs]
    for place, folder in enumerate(folders):
        first = folders.index(folder)
        if first < place:
            raise UserError(
                f"workdirs {workdirs[first]} and {workdirs[place]} are one folder; its "
                "run would count twice. Name each run once."
            )


def _check_same_data(configs: Sequence[Settings], workdirs: Sequence[Path]) -> None:
    first, *others = [_data_settings(config) for config in configs]
    for workdir, other in zip(workdirs[1:], others, strict=True):
        places = (f"in {workdirs[0]}", f"in {workdir}")
        differing = differences(
            first, other, places=places, may_differ=_ENSEMBLE_MAY_DIFFER
        )
        if differing:
            raise UserError(
                "the runs of an ensemble must have been trained on the same data; "
                f"{'; '.join(differing)}. Leave one of them out, or set the same value "
                "for all by --dataset.KEY=VALUE."
            )


def _data_settings(config: Settings) -> dict[str, Any]:
    """Returns the settings of the data, with absolute paths of folders."""
    data = {
        key: str(Path(value).expanduser().resolve())
        if value and key in _FOLDERS
        else value
        for key, value in config.dataset.items()
    }
    return {"dataset": data}


def _check_same_classes(networks: Sequence[_Network], workdirs: Sequence[Path]) -> None:
    first = networks[0].num_classes
    for network, workdir in zip(networks, workdirs, strict=True):
        if network.num_classes != first:
            raise UserError(
                "the networks of an ensemble must have the same classes; the one in "
                f"{workdirs[0]} has {first} classes, and the one in {workdir} has "
                f"{network.num_classes}. Leave one of them out."
            )


def _check_same_label_spaces(workdirs: Sequence[Path]) -> None:
    first, *others = [_training_data_of(workdir) for workdir in workdirs]
    for workdir, other in zip(workdirs[1:], others, strict=True):
        if not _may_be_same_data(first, other):
            raise UserError(
                "the networks of an ensemble must have the same classes; the one in "
                f"{workdirs[0]} was trained on {first}, and the one in {workdir} on "
                f"{other}. Leave one of them out."
            )


def _training_data_of(workdir: Path) -> str | Path:
    """Returns name or folder of the data that a run was trained on."""
    data = read_config(workdir)["dataset"]
    folder = data.get("idx_dir") or data.get("image_dir")
    if folder:
        return Path(folder).expanduser().resolve()
    name = data["name"]
    return name if is_object_name(name) else name.split(":")[0]


def _may_be_same_data(first: str | Path, other: str | Path) -> bool:
    """Returns True if two data sets have one name, and equal labels where known.

    A folder of data may have been copied since. Its path does not count, only its own
    name; labels are compared if both folders still exist.
    """
    if Path(first).name != Path(other).name:
        return False
    folders = [data for data in (first, other) if isinstance(data, Path)]
    if first == other or len(folders) < 2 or not all(map(Path.is_dir, folders)):
        return True
    labels = [_labels(folder) for folder in folders]
    return labels[0] == labels[1]


def _labels(folder: Path) -> list[Any]:
    """Returns the labels of IDX files, or the classes of a folder of images."""
    if any(folder.glob("train-images*")):
        return load_idx_folder(folder).train.labels.tolist()
    return image_classes(folder)
