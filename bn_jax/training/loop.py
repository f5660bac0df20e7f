"""Training from a configuration and into a folder: the file to read first.

Everything that experiments differ in stands in their configuration; the loop knows
nothing of any of them.
"""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from absl import logging
from jaxtyping import Array
from ml_collections import ConfigDict

import bn_jax
from bn_jax.errors import DivergedError
from bn_jax.training.build import (
    Parts,
    Settings,
    build_parts,
    describe_normalization,
)
from bn_jax.training.checkpoints.checkpoint import Checkpoints
from bn_jax.training.config_checks import check_batch_size, check_config
from bn_jax.training.distributed.parallel import make_parallel
from bn_jax.training.distributed.processes import (
    is_primary,
    refused_together,
    wait_for_all,
)
from bn_jax.training.distributed.same_settings import check_started_alike
from bn_jax.training.logs.profile import Profile
from bn_jax.training.logs.reports import GivenUpError, Pace, Reports
from bn_jax.training.logs.writer import MetricsWriter
from bn_jax.training.nonfinite import name_of_value
from bn_jax.training.run import Run, compile_run
from bn_jax.training.shutdown.signals import StoppedBySignalError, StopSignals
from bn_jax.training.state import TrainState, resume_tally
from bn_jax.training.step_schedule import checkpoint_steps, chunks, evaluation_steps
from bn_jax.workdir.files import (
    check_metrics,
    check_workdir,
    claim_workdir,
    read_metrics,
    read_summary,
    write_summary,
)
from bn_jax.workdir.lock import locked

# Settings on which no figure of a run depends: it goes on with others.
_MAY_DIFFER = (
    "parallel",
    "log_every",
    "checkpoint",
    "on_nonfinite",
    "max_nonfinite_steps",
    "dataset.data_dir",
    "dataset.read_threads",
)


def train(
    config: ConfigDict,
    workdir: Path | str,
    *,
    show_progress: bool = True,
    profile_steps: tuple[int, int] | None = None,
    devices: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Trains what the configuration describes, or goes on where it was left.

    Each of several processes calls it alike, with a folder that all of them see.

    Args:
        config: As the files in `configs/` make it.
        workdir: Folder of this run, and of no other.
        show_progress: Whether to show a progress bar, or log lines.
        profile_steps: First and last step that a trace is written of, to
            `profile/`, for TensorBoard or Perfetto.
        devices: Devices to choose from; by default all of all processes.

    Returns:
        What `summary.json` holds: `final_test_accuracy` in [0, 1],
        `steps_to_90_percent` (None if never), `steps_per_second` (evaluations
        included, compilation not), `wall_seconds` of this call, `device` and
        `versions`.

    Raises:
        UserError: If the configuration, the data or the folder is not as it must be.
        DivergedError: If the loss, a gradient or a measurement stops being finite.
        StoppedBySignalError: After SIGTERM or SIGINT, once the state is saved.
    """
    started = time.monotonic()
    workdir = Path(workdir)
    check_batch_size(config)
    settings = json.loads(config.to_json())
    profile = Profile(workdir, profile_steps)
    with StopSignals() as signals, ExitStack() as held:
        with refused_together():
            if is_primary():
                held.enter_context(locked(workdir))
        check_started_alike(settings, workdir)
        with refused_together():
            check_workdir(workdir, settings, may_differ=_MAY_DIFFER)
            summary = read_summary(workdir)
        if summary is not None:
            logging.info("%s: this run is complete already.", workdir)
            return summary
        with refused_together():
            parts = _parts(config, devices)
        run = compile_run(config, parts)
        with refused_together():
            if is_primary():
                claim_workdir(workdir, settings)
        logging.info("%s.", describe_normalization(config, parts.parallel))
        steps_per_second = _run_steps(
            config,
            run,
            workdir,
            signals=signals,
            profile=profile,
            started=started,
            show_progress=show_progress,
        )
        if is_primary():
            _summarize(workdir, steps_per_second, time.monotonic() - started)
        wait_for_all("the run is complete")
    return read_summary(workdir) or {}


def _parts(config: Settings, devices: Sequence[Any] | None) -> Parts:
    check_config(config)
    return build_parts(config, make_parallel(**config.parallel, devices=devices))


def _run_steps(
    config: Settings,
    run: Run,
    workdir: Path,
    *,
    signals: StopSignals,
    profile: Profile,
    started: float,
    show_progress: bool,
) -> float:
    """Takes the steps that are left, and returns how many of them a second took.

    A stretch of steps is one compiled call. The next one is dispatched before the
    figures of the last are fetched, so that the device never waits for Python.
    """
    saved = checkpoint_steps(
        config.num_steps, every_steps=config.checkpoint.every_steps
    )
    evaluated = evaluation_steps(config.num_steps, **config.evaluation.schedule)
    with (
        Checkpoints(
            workdir / "checkpoints",
            keep=config.checkpoint.keep,
            config=json.loads(config.to_json()),
        ) as checkpoints,
        MetricsWriter(
            workdir,
            num_steps=config.num_steps,
            log_every=config.log_every,
            show_progress=show_progress,
            is_silent=not is_primary(),
        ) as writer,
        profile,
    ):
        state = checkpoints.restore_latest(run.initial_state) or run.initial_state
        first_step = int(state.step)
        # An evaluation that a signal has cut off: its mean loss is still to be told.
        is_pending = first_step in evaluated and int(state.tally.num_steps) > 0
        last_line = first_step - is_pending
        with refused_together():
            if is_primary():
                check_metrics(workdir, evaluated.until(last_line))
        if first_step:
            logging.info("%s: goes on after step %d.", workdir, first_step)
        writer.start(last_line)
        pace = Pace(first_step, started=started)
        reports = Reports(writer, pace, profile)
        stretches = chunks(
            first_step,
            config.num_steps,
            stops=saved | evaluated,
            max_steps=config.max_steps_per_dispatch,
        )
        pending = [(first_step, first_step)] if is_pending else []

        def any_signal() -> Array:
            return run.any_process(signals.received)

        try:
            for start, end in chain(pending, stretches):
                profile.advance(start, end)
                tally = state.tally
                if start < end:
                    state, tally = run.train_steps(state, start, end)
                    signals.has_something_to_save = True
                measured = None
                if end in evaluated:
                    measured = run.evaluate(state, end, any_signal)
                is_cut_off = end in evaluated and measured is None
                if measured is not None:
                    state = state._replace(tally=run.clear_losses(state.tally))
                reports.add(end, tally, measured, stop_flag=any_signal())
                # A checkpoint must not know more than the metrics on disk.
                waits = end in saved or is_cut_off or run.must_wait
                stop_signal = reports.write(all_but=0 if waits else 1)
                if end in saved:
                    checkpoints.save(state, step=end)
                if stop_signal:
                    reports.write()
                    checkpoints.save(state, step=end)
                    checkpoints.wait()
                    logging.info("Saved after step %d; stopped by a signal.", end)
                    raise StoppedBySignalError(stop_signal)
        except GivenUpError:
            _give_up(config, state, checkpoints)
    return pace.steps_per_second


def _give_up(config: Settings, state: TrainState, checkpoints: Checkpoints) -> None:
    """Saves the last good state, and says what was not finite and where."""
    tally = jax.tree.map(np.asarray, state.tally)
    step = int(state.step)
    what = name_of_value(int(tally.bad_value), state)
    checkpoints.save(state._replace(tally=resume_tally(state.tally)), step=step)
    checkpoints.wait()
    skips = config.on_nonfinite == "skip"
    times = f", {config.max_nonfinite_steps} steps in a row" if skips else ""
    advice = " With --config.on_nonfinite=skip this run goes on without such steps."
    raise DivergedError(
        f"{what} is not finite at step {step + 1}{times}. The state after step {step} "
        "is saved. A lower learning rate, a longer warm-up or "
        "config.optimizer.clip_norm may keep it finite, from the beginning and in "
        f"another --workdir.{'' if skips else advice}",
        step,
    )


def _summarize(workdir: Path, steps_per_second: float, seconds: float) -> None:
    metrics = read_metrics(workdir)
    passed = [line["step"] for line in metrics if line["test_accuracy"] >= 0.9]
    summary = {
        "final_test_accuracy": metrics[-1]["test_accuracy"],
        "steps_to_90_percent": passed[0] if passed else None,
        "steps_per_second": steps_per_second,
        "wall_seconds": seconds,
        "device": jax.devices()[0].device_kind,
        "versions": {
            "jax": jax.__version__,
            "flax": flax.__version__,
            "bn_jax": bn_jax.__version__,
        },
    }
    write_summary(workdir, summary)
