"""Reproduction of Figures 2 and 3 at a small size.

Searches for a learning rate if asked, trains seven arms, then writes the plot and the
JSON record with the checked claims.
"""

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from bn_jax.data import load_dataset
from bn_jax.data.dataset import Dataset
from bn_jax.errors import UserError
from bn_jax.experiments.runs import Job, run_jobs
from bn_jax.machine import describe_machine
from bn_jax.reporting.figure2 import (
    PUBLISHED,
    DataSize,
    draw_figure2,
    figure2_record,
    figure2_table,
)
from bn_jax.reporting.load import Run, load_run
from bn_jax.reporting.seed_statistics import seed_statistics
from bn_jax.training.build import Settings
from bn_jax.training.config_checks import check_config
from bn_jax.training.config_files import load_config
from bn_jax.workdir.lock import locked

# The arms in the paper's figure, then two arms that only its text describes.
_ARMS = (*PUBLISHED["arms"], "inception_x5", "inception_sigmoid")
_RATES = (0.005, 0.01, 0.02, 0.04, 0.08)
# The search must not use a seed with which the arms are compared.
_SEARCH_SEEDS = (100, 101, 102)
# Number of images. A validation split can be large: ImageNet's has 50,000 images.
_READ_AT_ONCE = 1000


def figure2(
    workdir: Path,
    *,
    seeds: int = 3,
    search: bool = False,
    overrides: Mapping[str, str] | None = None,
) -> str:
    """Trains the missing runs, and writes `figure2.{svg,png,json}`.

    The learning rates of the arms are 1, 5 and 30 times a base rate.

    Args:
        workdir: Folder of the figure. The workdir of each run is `<arm>/seed<n>` in it.
        seeds: Number of seeds per arm; the seeds count from 0.
        search: True to search for the base rate first. The search trains Inception
            without normalization three times at each of several rates, and takes the
            rate with the highest mean validation accuracy. By default the base rate is
            the result of this search with the default settings.
        overrides: Settings of `configs/inception_small.py` to change in all arms, as
            text.

    Returns:
        The table of Figure 3, and the path of the figure.

    Raises:
        UserError: If `seeds` is below 1, another command is using the folder, or a run
            cannot be trained.
    """
    if seeds < 1:
        raise UserError(f"figure2: --seeds must be at least 1, but is {seeds}.")
    # Find errors in all settings before hours of training.
    configs = {
        arm: load_config(f"inception_small:{arm}", overrides=overrides) for arm in _ARMS
    }
    _check_overrides(overrides or {})
    for config in configs.values():
        check_config(config)
    data = load_dataset(**configs["inception"].dataset)
    with locked(workdir):
        found = None
        if search:
            inception = configs["inception"]
            found = _search(workdir / "search", inception)
            factor = found["learning_rate"] / inception.optimizer.learning_rate
            for config in configs.values():
                config.optimizer.learning_rate *= factor
        jobs = {
            arm: [_make_job(config, seed, workdir / arm) for seed in range(seeds)]
            for arm, config in configs.items()
        }
        diverged_after = _train_groups(jobs)
        arms = {arm: _load_runs(jobs[arm], diverged_after[arm]) for arm in _ARMS}
        size = _data_size(data)
        record = {
            "machine": describe_machine(),
            "search": found,
            **figure2_record(arms, diverged_after=diverged_after, data=size),
        }
        picture = workdir / "figure2.png"
        draw_figure2(record, [picture, workdir / "figure2.svg"])
        (workdir / "figure2.json").write_text(json.dumps(record) + "\n")
    return f"{figure2_table(record)}\n\nThe figure: {picture}"


def _check_overrides(overrides: Mapping[str, str]) -> None:
    """Raises if an override changes a setting in which the runs differ.

    Such a setting defines an arm or a seed, whose name would then be wrong.
    """
    arms = [load_config(f"inception_small:{arm}").to_dict() for arm in _ARMS]
    for name in overrides:
        values = [reduce(dict.__getitem__, name.split("."), arm) for arm in arms]
        if name == "seed" or any(value != values[0] for value in values):
            raise UserError(
                f"figure2: leave --config.{name} out; the runs differ in this setting. "
                "--seeds sets the number of seeds, and --search finds a learning rate."
            )


def _data_size(data: Dataset) -> DataSize:
    # The settings name the validation split `test_split`.
    validation = data.test
    image, _ = validation.read(np.zeros((), int), np.zeros((), int))
    num_images, classes = len(validation), set()
    # A streamed split reads images together with labels, so limit how many at once.
    for start in range(0, num_images, _READ_AT_ONCE):
        examples = np.arange(start, min(start + _READ_AT_ONCE, num_images))
        classes.update(validation.read(examples, examples)[1].tolist())
    return DataSize(data.name, image.shape, len(classes), num_images)


def _search(workdir: Path, config: Settings) -> dict[str, Any]:
    """Trains Inception at several learning rates, and returns all and the best."""
    jobs: dict[float, list[Job]] = {}
    for rate in _RATES:
        one = config.copy_and_resolve_references()
        one.optimizer.learning_rate = rate
        folder = workdir / f"rate{rate:g}"
        jobs[rate] = [_make_job(one, seed, folder) for seed in _SEARCH_SEEDS]
    diverged_after = _train_groups(jobs)
    tried = [
        {
            "learning_rate": rate,
            "max_accuracy": seed_statistics(
                [
                    max(run.metrics["test_accuracy"].tolist(), default=0.0)
                    for run in _load_runs(jobs[rate], diverged_after[rate])
                ]
            ),
            "diverged_after": diverged_after[rate],
        }
        for rate in _RATES
    ]
    best = max(tried, key=lambda one: one["max_accuracy"]["mean"])
    return {
        "criterion": "highest validation accuracy of Inception without normalization, "
        "mean over seeds",
        "seeds": _SEARCH_SEEDS,
        "tried": tried,
        "learning_rate": best["learning_rate"],
    }


def _make_job(config: Settings, seed: int, folder: Path) -> Job:
    config = config.copy_and_resolve_references()
    config.seed = seed
    return Job(config, folder / f"seed{seed}", may_diverge=True)


def _train_groups(jobs: Mapping[Any, Sequence[Job]]) -> dict[Any, list[int | None]]:
    """Trains groups of equally many jobs; returns the result of `run_jobs` by group.

    The first job of every group comes before the second jobs. An interrupted command
    has then completed a comparison of all groups with fewer seeds.
    """
    diverged_after = run_jobs(
        [job for of_one_seed in zip(*jobs.values(), strict=True) for job in of_one_seed]
    )
    return {name: diverged_after[i :: len(jobs)] for i, name in enumerate(jobs)}


def _load_runs(jobs: Sequence[Job], diverged_after: Sequence[int | None]) -> list[Run]:
    return [
        load_run(job.workdir, has_diverged=step is not None)
        for job, step in zip(jobs, diverged_after, strict=True)
    ]
