"""Reproduction of Figure 1: trains both arms; writes the plot, the JSON and a table."""

import json
from collections.abc import Mapping
from pathlib import Path

from bn_jax.errors import UserError
from bn_jax.experiments.runs import Job, run_jobs
from bn_jax.machine import describe_machine
from bn_jax.reporting.figure1 import draw_figure1, figure1_record, figure1_table
from bn_jax.reporting.load import load_run
from bn_jax.training.config_files import load_config
from bn_jax.workdir.lock import locked

_ARMS = ("baseline", "bn")


def figure1(
    workdir: Path, *, seeds: int = 3, overrides: Mapping[str, str] | None = None
) -> str:
    """Trains the missing runs, and writes `figure1.{svg,png,json}`.

    Args:
        workdir: Folder of the figure. The workdir of each run is `<arm>/seed<n>` in it.
        seeds: Number of seeds per arm; the seeds count from 0.
        overrides: Settings of `configs/mnist_mlp.py` to change in both arms, as text.

    Returns:
        A table of the arms, and the path of the figure.

    Raises:
        UserError: If `seeds` is below 1, another command is using the folder, or a run
            cannot be trained.
    """
    if seeds < 1:
        raise UserError(f"figure1: --seeds must be at least 1, but is {seeds}.")
    if overrides and "seed" in overrides:
        raise UserError(
            "figure1: leave --config.seed out; the seeds are 0, 1, 2, ..., and --seeds "
            "sets their number."
        )
    jobs: dict[str, list[Job]] = {arm: [] for arm in _ARMS}
    for seed in range(seeds):
        for arm in _ARMS:
            config = load_config(f"mnist_mlp:{arm}", overrides=overrides)
            config.seed = seed
            jobs[arm].append(Job(config, workdir / arm / f"seed{seed}"))
    with locked(workdir):
        run_jobs([job for pair in zip(*jobs.values(), strict=True) for job in pair])
        arms = {arm: [load_run(job.workdir) for job in jobs[arm]] for arm in _ARMS}
        record = {"machine": describe_machine(), **figure1_record(arms)}
        picture = workdir / "figure1.png"
        draw_figure1(arms, [picture, workdir / "figure1.svg"])
        (workdir / "figure1.json").write_text(json.dumps(record) + "\n")
    return f"{figure1_table(record)}\n\nThe figure: {picture}"
