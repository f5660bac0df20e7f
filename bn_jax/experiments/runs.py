"""Training of several runs at once, one on each core or device."""

import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

import jax

from bn_jax.errors import DivergedError, UserError
from bn_jax.machine import number_of_cores, own_cores
from bn_jax.progress import progress_bar
from bn_jax.training.distributed.compilation import cache_compiled_programs
from bn_jax.training.loop import train
from bn_jax.workdir.files import read_metrics


class Job(NamedTuple):
    """One run to train.

    Attributes:
        config: Configuration of the run, a ConfigDict.
        workdir: Workdir of the run.
        may_diverge: True if divergence is a valid result of the run; False if it is an
            error. A run diverges when a loss or gradient is not finite.
    """

    config: Any
    workdir: Path
    may_diverge: bool = False


def run_jobs(jobs: Sequence[Job]) -> list[int | None]:
    """Trains all runs that are not complete yet.

    On CPUs each core gets its own process. For small models a second core gains
    nothing, and distributing the work costs time. On accelerators each device gets a
    thread.

    Args:
        jobs: Runs to train.

    Returns:
        One entry a run: the last step whose state was finite if the run has diverged,
        None if the run is complete.

    Raises:
        UserError: If a run has a validation split, whose metrics figures do not show,
            or `bn_jax.training.loop.train` raises it for a run. Runs that have already
            started are completed first.
    """
    if any(job.config.dataset.validation_split is not None for job in jobs):
        raise UserError(
            "figures show evaluations of the test split; leave "
            "--config.dataset.validation_split out, or set test_split instead."
        )
    context = multiprocessing.get_context("spawn")
    workers = min(number_of_cores(), len(jobs))
    free_cores = context.Queue()
    for core in own_cores():
        free_cores.put(core)
    with ProcessPoolExecutor(
        workers, context, initializer=_start_worker, initargs=(free_cores,)
    ) as pool:
        # Ask a worker, because a process that queries an accelerator also claims it.
        if pool.submit(jax.default_backend).result() == "cpu":
            return _wait_with_progress(jobs, [pool.submit(_train, job) for job in jobs])
    cache_compiled_programs()
    return run_on_devices(jobs, jax.local_devices())


def run_on_devices(jobs: Sequence[Job], devices: Sequence[Any]) -> list[int | None]:
    """Trains all runs in this process, one at a time on each device.

    Args:
        jobs: Runs to train.
        devices: Devices of this process.

    Returns:
        One entry a run: the last step whose state was finite if the run has diverged,
        None if the run is complete.
    """
    free: Queue[Any] = Queue()
    for device in devices:
        free.put(device)

    def train_on_a_free_device(job: Job) -> int | None:
        device = free.get()
        try:
            with jax.default_device(device):
                return _train(job, devices=[device])
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(devices)) as pool:
        futures = [pool.submit(train_on_a_free_device, job) for job in jobs]
        return _wait_with_progress(jobs, futures)


def _train(job: Job, *, devices: Sequence[Any] | None = None) -> int | None:
    try:
        train(job.config, job.workdir, show_progress=False, devices=devices)
    except DivergedError as error:
        if not job.may_diverge:
            raise
        return error.step
    return None


def _start_worker(free_cores: Any) -> None:
    """Binds this worker process to its own core, before JAX counts the cores."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    # Runs that differ only in their seed share compiled programs through this cache.
    cache_compiled_programs()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {free_cores.get()})


def _exit_with_parent() -> None:
    """Exits this process when its parent process has ended for any reason.

    The next command resumes the runs from their checkpoints.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _wait_with_progress(
    jobs: Sequence[Job], futures: Sequence[Future[int | None]]
) -> list[int | None]:
    """Shows the progress of all runs until they are complete or one has failed."""
    total = sum(job.config.num_steps for job in jobs)
    unfinished = set(futures)
    with progress_bar(total=total, unit="step", desc=f"{len(jobs)} runs") as bar:
        while unfinished:
            done, unfinished = wait(unfinished, 0.5, FIRST_COMPLETED)
            failed = [future for future in done if future.exception() is not None]
            if failed:
                for future in unfinished:
                    future.cancel()
                failed[0].result()
            bar.update(sum(_steps_taken(job) for job in jobs) - bar.n)
    return [future.result() for future in futures]


def _steps_taken(job: Job) -> int:
    metrics = read_metrics(job.workdir)
    return metrics[-1]["step"] if metrics else 0
