"""Training from a configuration into a workdir: the file to read first.

The functions follow the order of a run. Experiments differ in their configurations.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
from jaxtyping import Array
from ml_collections import ConfigDict

from bn_jax.progress import our_log_lines
from bn_jax.training.base_config import check_setting_names
from bn_jax.training.build import (
    build_parts,
    build_train_step,
    describe_normalization,
)
from bn_jax.training.checkpoints.checkpoint import Checkpoints
from bn_jax.training.checkpoints.start_from import find_other_run, start_from
from bn_jax.training.config_checks import check_batch_size, check_config
from bn_jax.training.distributed.parallel import make_parallel
from bn_jax.training.distributed.processes import (
    errors_in_all_processes,
    is_primary,
    wait_for_all,
)
from bn_jax.training.distributed.same_settings import check_same_settings
from bn_jax.training.giving_up import give_up
from bn_jax.training.group_size import with_groups_of_devices
from bn_jax.training.logs.first_lines import log_inputs, log_network
from bn_jax.training.logs.profile import Profile
from bn_jax.training.logs.reports import Pace, Reports, TooManyNonfiniteStepsError
from bn_jax.training.logs.summary import log_results, summarize
from bn_jax.training.logs.writer import MetricsWriter
from bn_jax.training.parts import RunSettings
from bn_jax.training.resuming import (
    check_resumable,
    claim,
    with_recorded_group_size,
)
from bn_jax.training.run import Run, compile_run
from bn_jax.training.shutdown.signals import StoppedBySignalError, StopSignals
from bn_jax.training.step.state import TrainState
from bn_jax.training.step_schedule import Steps, stretches
from bn_jax.workdir.files import check_metrics, read_summary
from bn_jax.workdir.lock import locked


def train(
    config: ConfigDict,
    workdir: Path | str,
    *,
    show_progress: bool = True,
    profile_steps: tuple[int, int] | None = None,
    devices: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Trains from a configuration, or resumes the run in a workdir.

    Every process of a run calls `train` with equal arguments, and must see the workdir.

    Args:
        config: Configuration: `base_config()` with changes.
        workdir: Folder of this run, and of no other.
        show_progress: True shows the first and last lines, and between them a progress
            bar on a terminal and log lines elsewhere; False shows nothing.
        profile_steps: Numbers of completed steps at which a trace starts and ends, in
            `profile/`, for TensorBoard or Perfetto; None for no trace.
        devices: Devices to choose from; by default all devices of all processes.

    Returns:
        The content of `summary.json`: `final_test_accuracy` in [0, 1] (with a
        validation split `final_validation_accuracy` instead), `steps_to_accuracy` (a
        step for each of `config.report_steps_to`, by its text; None if never reached),
        `steps_per_second` (evaluations included, compilation excluded; None if less
        than 2 seconds were measured), `wall_seconds` of this call, `device` and
        `versions`.

    Raises:
        UserError: If the configuration, the data or the workdir cannot be used.
        DivergedError: If the loss, a gradient or an evaluation becomes non-finite.
        LostProcessError: If another process ended while a checkpoint was written.
        StoppedBySignalError: After SIGTERM or SIGINT, when the state is saved.
    """
    started = time.monotonic()
    workdir = Path(workdir)
    check_setting_names(config)
    check_batch_size(config)
    settings = json.loads(config.to_json())
    profile = Profile(workdir, profile_steps)
    with StopSignals() as signals, ExitStack() as context:
        if show_progress:
            context.enter_context(our_log_lines())
        with errors_in_all_processes():
            if is_primary():
                context.enter_context(locked(workdir))
        check_same_settings(settings, workdir)
        with errors_in_all_processes():
            config = with_recorded_group_size(config, workdir)
            settings = json.loads(config.to_json())
            old_num_steps = check_resumable(workdir, settings)
            summary = read_summary(workdir) if old_num_steps is None else None
        if summary is not None:
            logging.info("%s: this run is already complete.", workdir)
            log_results(workdir, summary, report_steps_to=settings["report_steps_to"])
            return summary
        with errors_in_all_processes():
            check_config(config)
            parallel = make_parallel(**settings["parallel"], devices=devices)
            config = with_groups_of_devices(config, parallel.num_devices)
            settings = json.loads(config.to_json())
            other_run = find_other_run(settings["init_from"], workdir)
            parts = build_parts(config, parallel)
        log_inputs(parallel, parts.data)
        run = compile_run(parts, build_train_step(config, parts))
        if other_run is not None:
            run = run._replace(initial_state=start_from(other_run, run.initial_state))
        log_network(
            settings["model"]["name"],
            run.initial_state.params,
            is_frozen=parts.is_frozen,
            normalization=describe_normalization(config, parts),
            workdir=workdir,
        )
        steps_per_second = _run_steps(
            parts.run,
            run,
            workdir,
            config=settings,
            old_num_steps=old_num_steps,
            num_classes=parts.num_classes,
            signals=signals,
            profile=profile,
            started=started,
            show_progress=show_progress,
        )
        if is_primary():
            summarize(
                workdir,
                steps_per_second=steps_per_second,
                wall_seconds=time.monotonic() - started,
                report_steps_to=settings["report_steps_to"],
            )
        wait_for_all("the run is complete")
    return read_summary(workdir) or {}


def _run_steps(
    settings: RunSettings,
    run: Run,
    workdir: Path,
    *,
    config: Mapping[str, Any],
    old_num_steps: int | None,
    num_classes: int,
    signals: StopSignals,
    profile: Profile,
    started: float,
    show_progress: bool,
) -> float | None:
    """Restores the newest state, takes the remaining steps, and returns their rate."""
    with (
        Checkpoints(
            workdir / "checkpoints",
            keep=settings.kept_checkpoints,
            config=config,
            num_classes=num_classes,
        ) as checkpoints,
        MetricsWriter(
            workdir,
            num_steps=settings.num_steps,
            log_every=settings.log_every,
            show_progress=show_progress,
            is_silent=not is_primary(),
        ) as writer,
        profile,
    ):
        start = _restore(run, checkpoints, settings.evaluated, workdir)
        # A run that cannot be restored stays as it is.
        with errors_in_all_processes():
            if is_primary():
                claim(workdir, config, old_num_steps, evaluated=settings.evaluated)
        writer.start(start.step, evaluated_until=start.evaluated_until)
        pace = Pace(start.step, started=started)
        _take_steps(
            settings,
            run,
            start,
            signals=signals,
            checkpoints=checkpoints,
            profile=profile,
            reports=Reports(writer, pace, profile),
        )
    return pace.steps_per_second


class _Start(NamedTuple):
    """State to start from, and what is still to be done at its step.

    Attributes:
        state: State after `step` steps.
        step: Steps taken so far; 0 in a new run.
        is_evaluation_due: True if a signal interrupted the evaluation at `step`.
    """

    state: TrainState
    step: int
    is_evaluation_due: bool

    @property
    def evaluated_until(self) -> int:
        """Step up to which the metrics of all evaluations are written."""
        return self.step - 1 if self.is_evaluation_due else self.step


def _restore(
    run: Run, checkpoints: Checkpoints, evaluated: Steps, workdir: Path
) -> _Start:
    """Restores the newest checkpoint, and checks that the metrics reach up to it."""
    state = checkpoints.restore_latest(run.initial_state) or run.initial_state
    step = int(state.step)
    # An evaluation resets `tally.num_steps`: if the count is above 0 at a step with an
    # evaluation, a signal interrupted that evaluation and it must be repeated.
    start = _Start(state, step, step in evaluated and int(state.tally.num_steps) > 0)
    with errors_in_all_processes():
        if is_primary():
            check_metrics(workdir, evaluated.until(start.evaluated_until))
    if step:
        logging.info("%s: resumes after step %d.", workdir, step)
    return start


def _take_steps(
    settings: RunSettings,
    run: Run,
    start: _Start,
    *,
    signals: StopSignals,
    checkpoints: Checkpoints,
    profile: Profile,
    reports: Reports,
) -> None:
    """Takes the remaining steps, one stretch after the other.

    The next stretch is dispatched before the results of the last one are fetched. Thus
    the device does not wait for Python, except for a checkpoint, for compilation and if
    `run.must_wait` is set.
    """
    evaluated, saved = settings.evaluated, settings.saved
    remaining = stretches(
        start.step,
        settings.num_steps,
        stops=saved | evaluated,
        max_steps=settings.max_steps_per_dispatch,
    )
    state = start.state
    due = [(start.step, start.step)] if start.is_evaluation_due else []

    def poll_signal() -> Array:
        return run.max_over_processes(signals.received)

    try:
        for first, end in chain(due, remaining):
            profile.advance(first, end)
            compiles = reports.begin(end - first, is_evaluated=end in evaluated)
            tally = state.tally
            if first < end:
                state, tally = run.train_steps(state, first, end)
                signals.has_something_to_save = True
            measured = None
            if end in evaluated:
                measured = run.evaluate(state, end, poll_signal)
            is_interrupted = end in evaluated and measured is None
            # A longer run is not evaluated at the last step of this one, unless that
            # is a step of the schedule; this run may be continued as the longer one.
            if measured is not None and end in settings.cleared:
                state = state._replace(tally=run.clear_losses(state.tally))
            reports.add(end, tally, measured, stop_flag=poll_signal())
            # Metrics are written before a checkpoint: a resumed run requires those of
            # each evaluation before it.
            must_wait = compiles or end in saved or is_interrupted or run.must_wait
            signal_number = reports.write(all_but=0 if must_wait else 1)
            if end in saved:
                checkpoints.save(state, step=end)
            if signal_number:
                reports.write()
                checkpoints.save(state, step=end)
                checkpoints.wait()
                logging.info("Saved after step %d; stopped by a signal.", end)
                raise StoppedBySignalError(signal_number)
    except TooManyNonfiniteStepsError:
        give_up(settings, state, checkpoints)
