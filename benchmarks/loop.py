"""Cost of the training loop, compared with the compiled step alone.

    python benchmarks/loop.py

The convolutional MNIST network is trained in two ways. `bn_jax.training.loop.train`
reads batches, dispatches stretches of steps, fetches metrics, logs progress and checks
for signals. The bare step calls the same compiled program on batches that are already
on the device. The two take turns, and their times per step in the same round are
compared: by the clock, and by the CPU time of all threads, which depends less on other
work of the machine. Compilation, evaluations and checkpoints are not timed, because
they are not costs of the loop.

Writes `results/loop.json`.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

import bn_jax
from bn_jax.machine import describe_machine
from bn_jax.training import loop
from bn_jax.training.build import build_parts, build_train_step
from bn_jax.training.config_files import load_config
from bn_jax.training.distributed.compilation import cache_compiled_programs
from bn_jax.training.distributed.parallel import compile_stretch, make_parallel
from bn_jax.training.logs.reports import Pace
from bn_jax.training.parts import (
    build_initial_state,
    read_batches,
)
from bn_jax.training.step.train_step import make_train_stretch


def main() -> None:
    """Runs both in turn, prints the ratio and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--stretches", type=int, default=6, help="timed stretches per round"
    )
    options = parser.parse_args()
    cache_compiled_programs()
    config: Any = load_config("mnist_cnn:bn")
    with config.unlocked():
        config.num_steps = config.max_steps_per_dispatch * (options.stretches + 1)
        config.evaluation.schedule.early_until_step = 0
        config.evaluation.schedule.every_steps = config.num_steps
        config.checkpoint.every_steps = config.num_steps
        config.parallel.num_devices = 1
    bare = _Bare(config)
    rounds = []
    for number in range(options.rounds):
        pair = {"loop": _loop, "bare": bare}
        # The order alternates between rounds.
        order = sorted(pair, reverse=bool(number % 2))
        rounds.append({name: pair[name](config) for name in order})
        print({name: f"{1e3 * one.clock:.2f} ms" for name, one in rounds[-1].items()})
    ratios = {
        field: statistics.median(
            getattr(one["loop"], field) / getattr(one["bare"], field) for one in rounds
        )
        for field in Seconds._fields
    }
    result = {
        "command": f"python benchmarks/loop.py --rounds={options.rounds} "
        f"--stretches={options.stretches}",
        "machine": describe_machine(),
        "versions": {"jax": jax.__version__, "bn_jax": bn_jax.__version__},
        "batch_size": config.batch_size,
        "steps_a_stretch": config.max_steps_per_dispatch,
        "seconds_a_step": [
            {name: seconds._asdict() for name, seconds in one.items()} for one in rounds
        ],
        "loop_over_bare": ratios,
    }
    path = Path(__file__).parent.parent / "results" / "loop.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"loop / bare step, medians of {len(rounds)} rounds: {ratios}")


class Seconds(NamedTuple):
    """Wall-clock and CPU time in seconds, of a step or since some fixed moment.

    Attributes:
        clock: Wall-clock time.
        processor: CPU time of all threads of this process.
    """

    clock: float
    processor: float

    @classmethod
    def until_now(cls) -> "Seconds":
        """Returns both times; each counts from its own arbitrary start."""
        return cls(time.monotonic(), time.process_time())

    def a_step(self, since: "Seconds", steps: int) -> "Seconds":
        """Returns the time since an earlier moment, divided by the steps since then."""
        differences = (now - then for now, then in zip(self, since, strict=True))
        return Seconds(*(value / steps for value in differences))


class _Bare:
    """Calls of the compiled program without the training loop."""

    def __init__(self, config: Any) -> None:
        parts = build_parts(config, make_parallel("jit", num_devices=1))
        self._state = build_initial_state(parts)
        step = build_train_step(config, parts)
        self._stretch = compile_stretch(parts.parallel, make_train_stretch(step))
        length = config.max_steps_per_dispatch
        self._batches = [read_batches(parts, length * i, length) for i in (0, 1)]
        self._run(2)

    def __call__(self, config: Any) -> Seconds:
        """Returns the time per step, over as many stretches as in the loop's timing."""
        stretches = config.num_steps // config.max_steps_per_dispatch - 1
        started = Seconds.until_now()
        self._run(stretches)
        steps = stretches * config.max_steps_per_dispatch
        return Seconds.until_now().a_step(started, steps)

    def _run(self, stretches: int) -> None:
        for number in range(stretches):
            self._state, tally = self._stretch(self._state, self._batches[number % 2])
        jax.block_until_ready(tally)


def _loop(config: Any) -> Seconds:
    """Returns the time per step of a run, without its first and last two stretches."""
    marks: list[tuple[int, Seconds]] = []

    class RecordingPace(Pace):
        def advance(self, step: int) -> None:
            super().advance(step)
            marks.append((step, Seconds.until_now()))

    before, loop.Pace = loop.Pace, RecordingPace
    try:
        with tempfile.TemporaryDirectory() as workdir:
            loop.train(config, workdir, show_progress=False)
    finally:
        loop.Pace = before
    # The last two marks include the evaluation: the loop reports the last two stretches
    # after the evaluation has waited for them.
    (first_step, first), (last_step, last) = marks[0], marks[-3]
    return last.a_step(first, last_step - first_step)


if __name__ == "__main__":
    main()
