"""Settings with which a command may resume the run in a workdir."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from bn_jax.errors import UserError
from bn_jax.training.base_config import complete
from bn_jax.training.group_size import Settings, with_group_size
from bn_jax.training.step_schedule import Steps
from bn_jax.user_code import folder_of_code
from bn_jax.workdir.files import (
    check_same_config,
    claim_workdir,
    differences,
    drop_metrics_after,
    holds_run,
    read_config,
)

# Settings that a resumed run may change. If all steps are finite, they change results
# by rounding at most.
_RESUME_MAY_DIFFER = (
    "parallel",
    "log_every",
    "checkpoint",
    "on_nonfinite",
    "max_nonfinite_steps",
    "dataset.data_dir",
    "dataset.read_threads",
    "module_dir",
    "report_steps_to",
)
_PLACES = ("in the workdir", "in this command")


def with_recorded_group_size(config: Settings, workdir: Path) -> Settings:
    """Returns the configuration with the group size that the run started with.

    Args:
        config: Configuration of the command.
        workdir: Workdir, which need not hold a run.

    Raises:
        UserError: If the configuration in the workdir cannot be read.
    """
    if not (workdir / "config.json").exists():
        return config
    group_size = complete(read_config(workdir))["norm"]["group_size"]
    return with_group_size(config, group_size) if group_size else config


def check_resumable(workdir: Path, settings: Mapping[str, Any]) -> int | None:
    """Checks that the workdir holds no run, or one that these settings resume.

    Args:
        workdir: Path of the workdir, which need not exist.
        settings: Configuration of the command, JSON-ready.

    Returns:
        Steps of the run in the workdir, if the command has more; otherwise None.

    Raises:
        UserError: If the run has another configuration, or its learning rate depends
            on the number of steps and this number is larger now.
    """
    if not holds_run(workdir):
        return None
    old, may_differ = complete(read_config(workdir)), _RESUME_MAY_DIFFER
    has_more = settings["num_steps"] > old["num_steps"]
    # The numbers of a schedule may be computed from num_steps, but not its name.
    if has_more and settings["schedule"]["name"] == old["schedule"]["name"]:
        may_differ = (*may_differ, "num_steps", "schedule")
    check_same_config(workdir, old, settings, may_differ=may_differ)
    if not has_more:
        return None
    _check_schedule(workdir, old, settings)
    return old["num_steps"]


def claim(
    workdir: Path,
    settings: Mapping[str, Any],
    old_num_steps: int | None,
    *,
    evaluated: Steps,
) -> None:
    """Writes the configuration into the workdir, and prepares it for more steps.

    A run that gets more steps is not complete any more. The line of its last evaluation
    is removed if a run of more steps would not have one, so that both runs have equal
    metrics. The old command still resumes the run if this function does not end.

    `module_dir` becomes the folder in which the model, or else the data function, was
    found, so that other commands find it from any folder.

    Args:
        workdir: Workdir of the run.
        settings: Configuration of the command, JSON-ready.
        old_num_steps: Steps that the run had until now; None if it gets no more steps.
        evaluated: Steps after which the run is evaluated.
    """
    if old_num_steps is not None:
        (workdir / "summary.json").unlink(missing_ok=True)
        if old_num_steps not in evaluated:
            drop_metrics_after(workdir, old_num_steps - 1)
        logging.info("%s: continues after its %d steps.", workdir, old_num_steps)
    code = folder_of_code(settings["model"]["name"], settings["dataset"]["name"])
    claim_workdir(workdir, {**settings, "module_dir": code or settings["module_dir"]})


def _check_schedule(
    workdir: Path, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
    found = differences(old["schedule"], new["schedule"], places=_PLACES)
    reason = "; ".join(f"schedule.{difference}" for difference in found)
    if found:
        reason += ", perhaps computed from num_steps"
    elif new["schedule"]["name"] == "cosine":
        reason = "schedule.name='cosine' ends at num_steps"
    if reason:
        raise UserError(
            f"config.num_steps={new['num_steps']}: the run in {workdir} has "
            f"{old['num_steps']} steps and cannot get more, because its schedule "
            f"depends on their number ({reason}). Train from the beginning in another "
            "--workdir."
        )
