"""Several training runs at a time, as many as cores or devices allow."""

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

from bn_jax.errors import DivergedError
from bn_jax.machine import number_of_cores, own_cores
from bn_jax.progress import progress_bar
from bn_jax.training.distributed.compilation import keep_compiled_code
from bn_jax.training.loop import train
from bn_jax.workdir.files import read_metrics


class Job(NamedTuple):
    """One run to train.

    Attributes:
        config: Its configuration, a ConfigDict.
        workdir: Its folder.
        may_diverge: Whether it is a result, and no error, that the loss or a gradient
            stops being finite.
    """

    config: Any
    workdir: Path
    may_diverge: bool = False


def run_jobs(jobs: Sequence[Job]) -> list[int | None]:
    """Trains all runs; those that are complete already are not trained again.

    On CPU each core gets a process of its own: small models gain nothing from a
    second core, and lose by handing work over. Elsewhere each device gets a thread.

    Args:
        jobs: The runs.

    Returns:
        For each run the last step whose state was finite, if it has diverged; None if
        it is complete.

    Raises:
        UserError: As `bn_jax.training.loop.train` does; runs that have begun are
            completed first.
    """
    context = multiprocessing.get_context("spawn")
    workers = min(number_of_cores(), len(jobs))
    free_cores = context.Queue()
    for core in own_cores():
        free_cores.put(core)
    with ProcessPoolExecutor(
        workers, context, initializer=_prepare, initargs=(free_cores,)
    ) as pool:
        # Asked there, because a process that has looked at an accelerator holds it.
        if pool.submit(jax.default_backend).result() == "cpu":
            return _follow(jobs, [pool.submit(_train, job) for job in jobs])
    keep_compiled_code()
    return run_on_devices(jobs, jax.local_devices())


def run_on_devices(jobs: Sequence[Job], devices: Sequence[Any]) -> list[int | None]:
    """Trains all runs in this process, one at a time on each device.

    Args:
        jobs: The runs.
        devices: Devices of this process.

    Returns:
        As for `run_jobs`.
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
        return _follow(jobs, [pool.submit(train_on_a_free_device, job) for job in jobs])


def _train(job: Job, *, devices: Sequence[Any] | None = None) -> int | None:
    try:
        train(job.config, job.workdir, show_progress=False, devices=devices)
    except DivergedError as error:
        if not job.may_diverge:
            raise
        return error.step
    return None


def _prepare(free_cores: Any) -> None:
    """Binds this process to a core of its own, before JAX counts the cores."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Runs that differ in their seed alone compile the same programs.
    keep_compiled_code()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {free_cores.get()})


def _end_with_parent() -> None:
    """Ends this process when its parent has ended, in whatever way.

    The runs go on from their checkpoints when they are asked for again.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _follow(
    jobs: Sequence[Job], futures: Sequence[Future[int | None]]
) -> list[int | None]:
    """Shows how far all runs are, until they are complete or one has failed."""
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
