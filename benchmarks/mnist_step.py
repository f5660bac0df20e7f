"""Training steps per second of the MNIST experiment, in bn_jax and in eager PyTorch.

    make bench

Each contender has its own process, or one process for each core, which loads the real
data and waits. The contenders take turns. In each round, each of them trains one block
of steps, so that slow phases of the machine affect all of them. The benchmark computes
the ratios of the times in the same round, and reports their medians. It makes these
comparisons:

- one run, all cores: bn_jax on all cores or on one, and PyTorch with one thread or with
  two; the faster variant of each is compared;
- one run on one core;
- two runs at the same time, one on each core, as `bn-jax figure1` trains them. The
  steps of both runs count. PyTorch also has two runs, or its faster single run.

Writes `results/mnist_step.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bn_jax.machine import describe_machine

_BATCH_SIZE = 60
_ARMS = ("baseline", "bn")


class _Contender(NamedTuple):
    """Processes of one library that train at the same time.

    Attributes:
        library: "jax" or "torch".
        threads: Threads of PyTorch in each process; JAX ignores it.
        cores: For each process the core that it is bound to, or None for all cores.
    """

    library: str
    threads: int
    cores: tuple[int | None, ...]


_CONTENDERS = {
    "jax": _Contender("jax", 0, (None,)),
    "jax, one core": _Contender("jax", 0, (0,)),
    "jax, two runs": _Contender("jax", 0, (0, 1)),
    "torch, 2 threads": _Contender("torch", 2, (None,)),
    "torch, 1 thread": _Contender("torch", 1, (0,)),
    "torch, two runs": _Contender("torch", 1, (0, 1)),
}


def main() -> None:
    """Runs all contenders in turn, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=500, help="steps per block")
    parser.add_argument("--library", choices=["jax", "torch"], help=argparse.SUPPRESS)
    for name in ("--threads", "--core"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--arm", choices=_ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        _serve(options)
        return

    record: dict[str, Any] = {
        "command": f"python benchmarks/mnist_step.py --rounds={options.rounds} "
        f"--steps={options.steps}",
        "machine": describe_machine(),
        "arms": {},
    }
    for arm in _ARMS:
        times, versions = _measure(arm, options.rounds, options.steps)
        record["versions"] = versions
        record["arms"][arm] = _summarize(times)
        print(_table(arm, record["arms"][arm]))
    results = Path(__file__).parents[1] / "results"
    (results / "mnist_step.json").write_text(json.dumps(record, indent=2) + "\n")


def _measure(
    arm: str, rounds: int, steps: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Returns milliseconds per step of each contender in each round, and versions."""
    groups = {}
    versions: dict[str, str] = {}
    for name, contender in _CONTENDERS.items():
        words = [
            *(sys.executable, __file__, f"--library={contender.library}"),
            *(f"--threads={contender.threads}", f"--arm={arm}", f"--steps={steps}"),
        ]
        groups[name] = [
            subprocess.Popen(
                words if core is None else [*words, f"--core={core}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for core in contender.cores
        ]
    times: dict[str, list[float]] = {name: [] for name in _CONTENDERS}
    try:
        for group in groups.values():
            for answer in _ask(group, "ready"):
                versions |= json.loads(answer)
        for _ in range(rounds):
            for name, group in groups.items():
                seconds = max(float(answer) for answer in _ask(group, "go"))
                times[name].append(seconds / (steps * len(group)) * 1e3)
    finally:
        for process in (process for group in groups.values() for process in group):
            process.kill()
            process.wait()
    return times, versions


def _ask(group: "list[subprocess.Popen[str]]", question: str) -> list[str]:
    """Asks all processes of a contender at the same time and returns their answers."""
    for process in group:
        assert process.stdin is not None
        process.stdin.write(question + "\n")
        process.stdin.flush()
    answers = []
    for process in group:
        assert process.stdout is not None
        answers.append(process.stdout.readline())
        if not answers[-1]:
            raise RuntimeError(
                "benchmarks/mnist_step.py: a process must answer, but ended with exit "
                f"code {process.wait()}; its error is printed above."
            )
    return answers


def _summarize(times: dict[str, list[float]]) -> dict[str, Any]:
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ours = min(("jax", "jax, one core"), key=medians.__getitem__)
    torch = min(("torch, 1 thread", "torch, 2 threads"), key=medians.__getitem__)
    pairs = {
        "one run, all cores": (torch, ours),
        "one run, one core": ("torch, 1 thread", "jax, one core"),
        "two runs, one a core": ("torch, two runs", "jax, two runs"),
        "two runs against the faster single run of PyTorch": (torch, "jax, two runs"),
    }
    return {
        "milliseconds_per_step": {
            name: {"median": medians[name], "all": [round(v, 4) for v in values]}
            for name, values in times.items()
        },
        "steps_per_second_over_torch": {
            comparison: float(np.median(np.array(times[slow]) / np.array(times[fast])))
            for comparison, (slow, fast) in pairs.items()
        },
    }


def _table(arm: str, summary: dict[str, Any]) -> str:
    lines = [f"{arm}:"]
    for name, values in summary["milliseconds_per_step"].items():
        lines.append(f"  {name:18}{values['median']:7.3f} ms per step")
    for comparison, ratio in summary["steps_per_second_over_torch"].items():
        lines.append(f"  {ratio:.2f} times PyTorch's steps per second: {comparison}")
    return "\n".join(lines)


def _serve(options: argparse.Namespace) -> None:
    """Answers each line of standard input: "ready" by versions, others by seconds."""
    if options.core is not None:
        # Bind the process before JAX starts and counts the cores.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[options.core % len(cores)]})
    if options.library == "jax":
        run, versions = _jax_block(options.arm, options.steps)
    else:
        run, versions = _torch_block(options.arm, options.steps, options.threads)
    run()
    for line in sys.stdin:
        if line.strip() == "ready":
            print(json.dumps(versions), flush=True)
        else:
            start = time.perf_counter()
            run()
            print(time.perf_counter() - start, flush=True)


def _jax_block(arm: str, steps: int) -> tuple[Callable[[], None], dict[str, str]]:
    """Returns a function that runs a compiled scan of training steps, and versions."""
    from functools import partial

    import jax
    import jax.numpy as jnp

    from bn_jax.data import load_dataset
    from bn_jax.data.batching import batch_indices
    from bn_jax.data.preprocess import binarize
    from bn_jax.models import make_model, make_norm
    from bn_jax.training.optim.optimizers import make_optimizer
    from bn_jax.training.step.state import init_state
    from bn_jax.training.step.train_step import Examples, make_train_step

    data = load_dataset("mnist")
    preprocess = partial(binarize, threshold=127)
    norm = make_norm("batch_norm") if arm == "bn" else None
    model = make_model("mlp", num_classes=10, norm=norm)
    tx = make_optimizer(
        "sgd",
        learning_rate=0.1,
        weight_decay=0.0,
        decay_scale_and_bias=False,
        clip_norm=None,
    )
    train_step = make_train_step(model, tx, preprocess=preprocess)

    @jax.jit
    def train_block(state: Any, examples: Any, indices: Any) -> Any:
        def take_and_train(state: Any, chosen: Any) -> Any:
            one = jax.tree.map(lambda leaf: leaf[chosen], examples)
            return train_step(state, jax.tree.map(lambda leaf: leaf[None], one))

        return jax.lax.scan(take_and_train, state, indices)

    state = init_state(
        model, tx, key=jax.random.key(0), example=preprocess(data.train.images[:1])
    )
    examples = Examples(jnp.asarray(data.train.images), jnp.asarray(data.train.labels))
    done = 0

    def run() -> None:
        nonlocal state, done
        indices = batch_indices(
            len(data.train.labels),
            _BATCH_SIZE,
            seed=0,
            first_step=done,
            num_steps=steps,
        )
        state, losses = train_block(state, examples, indices)
        losses.block_until_ready()
        done += steps

    return run, {"jax": jax.__version__}


def _torch_block(
    arm: str, steps: int, threads: int
) -> tuple[Callable[[], None], dict[str, str]]:
    """Returns a function that trains a block of steps with PyTorch, and the versions.

    Network, data and optimizer equal those of `_jax_block`.
    """
    import torch

    from bn_jax.data import load_dataset
    from bn_jax.data.batching import batch_indices

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    data = load_dataset("mnist")
    images = torch.from_numpy(data.train.images.reshape(-1, 784).copy())
    labels = torch.from_numpy(data.train.labels.astype(np.int64))
    layers: list[torch.nn.Module] = []
    for inputs in (784, 100, 100):
        layers.append(torch.nn.Linear(inputs, 100, bias=arm == "baseline"))
        if arm == "bn":
            layers.append(torch.nn.BatchNorm1d(100, momentum=0.01))
        layers.append(torch.nn.Sigmoid())
    model = torch.nn.Sequential(*layers, torch.nn.Linear(100, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cross_entropy = torch.nn.CrossEntropyLoss()
    done = 0

    def run() -> None:
        nonlocal done
        indices = batch_indices(
            len(labels), _BATCH_SIZE, seed=0, first_step=done, num_steps=steps
        )
        for chosen in torch.from_numpy(indices.astype(np.int64)):
            batch = (images[chosen] > 127).float()
            optimizer.zero_grad()
            cross_entropy(model(batch), labels[chosen]).backward()
            optimizer.step()
        done += steps

    return run, {"torch": torch.__version__}


if __name__ == "__main__":
    main()
