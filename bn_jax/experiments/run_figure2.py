"""Figures 2 and 3 of the paper at a small size: a search, seven arms, their claims."""

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from bn_jax.data import load_dataset
from bn_jax.data.dataset import Dataset
from bn_jax.errors import UserError
from bn_jax.experiments.configs import load_config
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
from bn_jax.reporting.spread import spread
from bn_jax.training.build import Settings
from bn_jax.training.config_checks import check_config
from bn_jax.workdir.lock import locked

_CONFIG = "inception_small.py"
# Those that the paper tells in words stand behind those of its figure.
_ARMS = (*PUBLISHED["arms"], "inception_x5", "inception_sigmoid")
# Each twice the one before. No seed is one that the arms are compared with.
_RATES = (0.005, 0.01, 0.02, 0.04, 0.08)
_SEARCH_SEEDS = (100, 101, 102)
# Images, of which ImageNet has 50,000 to validate on.
_READ_AT_ONCE = 1000


def figure2(
    workdir: Path,
    *,
    seeds: int = 3,
    search: bool = False,
    overrides: Mapping[str, str] | None = None,
) -> str:
    """Trains what is not trained yet, and writes `figure2.{svg,png,json}`.

    Args:
        workdir: Folder of the figure; each run has one in it, `<arm>/seed<n>`.
        seeds: How many seeds each arm is trained with, from 0.
        search: Whether to train Inception without normalization at several learning
            rates first, three times each, and to take the one with which it reaches
            the highest validation accuracy on average as the rate that the arms have
            1, 5 and 30 times. By default it is the one that this gave with the default
            settings.
        overrides: Settings of `configs/inception_small.py` to change, as text, in
            all arms.

    Returns:
        Where the picture lies, and the table of Figure 3.

    Raises:
        UserError: If there is no seed, another command is using the folder, or as for
            training.
    """
    if seeds < 1:
        raise UserError(f"figure2: --seeds must be at least 1, and is {seeds}.")
    # Before hours of training.
    configs = {arm: load_config(_CONFIG, arm, overrides=overrides) for arm in _ARMS}
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
            arm: [_job(config, seed, workdir / arm) for seed in range(seeds)]
            for arm, config in configs.items()
        }
        diverged_after = _run(jobs)
        arms = {arm: _load(jobs[arm], diverged_after[arm]) for arm in _ARMS}
        record = {
            "machine": describe_machine(),
            "search": found,
            **figure2_record(arms, diverged_after=diverged_after, data=_size(data)),
        }
        picture = workdir / "figure2.png"
        draw_figure2(record, [picture, workdir / "figure2.svg"])
        (workdir / "figure2.json").write_text(json.dumps(record) + "\n")
    return f"{figure2_table(record)}\n\nThe figure: {picture}"


def _check_overrides(overrides: Mapping[str, str]) -> None:
    """Refuses settings by which the arms would no longer be what they are called."""
    arms = [load_config(_CONFIG, arm).to_dict() for arm in _ARMS]
    for name in overrides:
        values = [reduce(dict.__getitem__, name.split("."), arm) for arm in arms]
        if name == "seed" or any(value != values[0] for value in values):
            raise UserError(
                f"figure2: its runs differ in --config.{name}, which cannot be set for "
                "all; leave it out. --seeds says how many seeds, and --search finds a "
                "rate."
            )


def _size(data: Dataset) -> DataSize:
    image, _ = data.test.read(np.zeros((), int), np.zeros((), int))
    num_held_out, present = len(data.test), set()
    # Images of varying size are read with their labels.
    for start in range(0, num_held_out, _READ_AT_ONCE):
        part = np.arange(start, min(start + _READ_AT_ONCE, num_held_out))
        present.update(data.test.read(part, part)[1].tolist())
    return DataSize(data.name, image.shape, len(present), num_held_out)


def _search(workdir: Path, config: Settings) -> dict[str, Any]:
    """The rates that Inception was trained with, and the best of them."""
    jobs: dict[float, list[Job]] = {}
    for rate in _RATES:
        one = config.copy_and_resolve_references()
        one.optimizer.learning_rate = rate
        folder = workdir / f"rate{rate:g}"
        jobs[rate] = [_job(one, seed, folder) for seed in _SEARCH_SEEDS]
    ends = _run(jobs)
    tried = [
        {
            "learning_rate": rate,
            "max_accuracy": spread(
                [
                    max(run.metrics["test_accuracy"].tolist(), default=0.0)
                    for run in _load(jobs[rate], ends[rate])
                ]
            ),
            "diverged_after": ends[rate],
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


def _job(config: Settings, seed: int, folder: Path) -> Job:
    config = config.copy_and_resolve_references()
    config.seed = seed
    return Job(config, folder / f"seed{seed}", may_diverge=True)


def _run(jobs: Mapping[Any, Sequence[Job]]) -> dict[Any, list[int | None]]:
    """Trains groups of as many jobs, and gives what `run_jobs` does of each.

    The first of all groups come before the second ones, so that a part of what is
    trained is a whole comparison.
    """
    ends = run_jobs(
        [job for of_one in zip(*jobs.values(), strict=True) for job in of_one]
    )
    return {name: ends[i :: len(jobs)] for i, name in enumerate(jobs)}


def _load(jobs: Sequence[Job], ends: Sequence[int | None]) -> list[Run]:
    return [
        load_run(job.workdir, has_diverged=end is not None)
        for job, end in zip(jobs, ends, strict=True)
    ]
