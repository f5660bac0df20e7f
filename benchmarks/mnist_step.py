"""Training steps per second of the MNIST experiment, ours against eager PyTorch.

    make bench

Every contender is a process of its own that holds the real data and waits. They take
turns, one block of steps each, round after round, so that all of them meet the same
moods of the machine; what is compared are medians over the rounds and, pair by pair,
ratios. PyTorch runs with one thread and with two, and its better one counts. Ours runs
once on all cores and once bound to one, as `bn-jax figure1` runs it.

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
from typing import Any

import numpy as np

from bn_jax.reporting.machine import describe_machine

_BATCH_SIZE = 60
_ARMS = ("baseline", "bn")
_CONTENDERS = ("jax", "jax on one core", "torch 1 thread", "torch 2 threads")


def main() -> None:
    """Runs all contenders in turn, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=500, help="steps a block")
    parser.add_argument("--contender", choices=_CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--arm", choices=_ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        _serve(options.contender, options.arm, options.steps)
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
    path = Path(__file__).parents[1] / "results" / "mnist_step.json"
    path.write_text(json.dumps(record, indent=2) + "\n")


def _measure(
    arm: str, rounds: int, steps: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Milliseconds a step of each contender in each round."""
    processes = {}
    versions: dict[str, str] = {}
    for name in _CONTENDERS:
        words = [sys.executable, __file__, f"--contender={name}", f"--arm={arm}"]
        processes[name] = subprocess.Popen(
            [*words, f"--steps={steps}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    times: dict[str, list[float]] = {name: [] for name in _CONTENDERS}
    try:
        for process in processes.values():
            versions |= json.loads(_ask(process, "ready"))
        for _ in range(rounds):
            for name, process in processes.items():
                times[name].append(float(_ask(process, "go")))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return times, versions


def _ask(process: "subprocess.Popen[str]", question: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(question + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"a contender ended with exit code {process.wait()}.")
    return answer


def _summarize(times: dict[str, list[float]]) -> dict[str, Any]:
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ours = min(("jax", "jax on one core"), key=medians.__getitem__)
    torch = min(("torch 1 thread", "torch 2 threads"), key=medians.__getitem__)
    ratios = np.array(times[torch]) / np.array(times[ours])
    same_core = np.array(times["torch 1 thread"]) / np.array(times["jax on one core"])
    return {
        "milliseconds_per_step": {
            name: {"median": medians[name], "all": [round(v, 4) for v in values]}
            for name, values in times.items()
        },
        "faster_of_ours": ours,
        "faster_torch": torch,
        "steps_per_second_over_torch": float(np.median(ratios)),
        "steps_per_second_over_torch_one_core_each": float(np.median(same_core)),
    }


def _table(arm: str, summary: dict[str, Any]) -> str:
    lines = [f"{arm}:"]
    for name, values in summary["milliseconds_per_step"].items():
        lines.append(f"  {name:18}{values['median']:7.3f} ms a step")
    lines.append(
        f"  {summary['steps_per_second_over_torch']:.2f} times the steps a second of "
        f"the faster PyTorch ({summary['faster_torch']})"
    )
    lines.append(
        f"  {summary['steps_per_second_over_torch_one_core_each']:.2f} times with one "
        "core each"
    )
    return "\n".join(lines)


def _serve(contender: str, arm: str, steps: int) -> None:
    """Answers each line of standard input: versions first, then times."""
    if contender == "jax on one core":
        # Before JAX counts the cores.
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    if contender.startswith("jax"):
        run, versions = _jax_block(arm, steps)
    else:
        run, versions = _torch_block(arm, steps, threads=int(contender.split()[1]))
    run()
    for line in sys.stdin:
        if line.strip() == "ready":
            print(json.dumps(versions), flush=True)
        else:
            start = time.perf_counter()
            run()
            print((time.perf_counter() - start) / steps * 1e3, flush=True)


def _jax_block(arm: str, steps: int) -> tuple[Callable[[], None], dict[str, str]]:
    """The training loop's own compiled step over resident data."""
    from functools import partial

    import jax
    import jax.numpy as jnp

    from bn_jax.data import load_dataset
    from bn_jax.data.batching import batch_indices
    from bn_jax.data.image import binarize
    from bn_jax.models import make_model, make_norm
    from bn_jax.training.optim import make_optimizer
    from bn_jax.training.state import init_state
    from bn_jax.training.steps import Examples, make_train_chunk, make_train_step

    data = load_dataset("mnist")
    preprocess = partial(binarize, threshold=127)
    norm = make_norm("batch_norm") if arm == "bn" else None
    model = make_model("mlp", num_classes=10, norm=norm)
    tx = make_optimizer("sgd", learning_rate=0.1)
    train_step = make_train_step(model, tx, preprocess=preprocess)
    train_chunk = jax.jit(make_train_chunk(train_step))
    state = init_state(
        model, tx, key=jax.random.key(0), example=preprocess(data.train_images[:1])
    )
    examples = Examples(jnp.asarray(data.train_images), jnp.asarray(data.train_labels))
    done = 0

    def run() -> None:
        nonlocal state, done
        indices = batch_indices(
            len(data.train_labels),
            _BATCH_SIZE,
            seed=0,
            first_step=done,
            num_steps=steps,
        )
        state, losses = train_chunk(state, examples, indices)
        losses.block_until_ready()
        done += steps

    return run, {"jax": jax.__version__, "jaxlib": jax.lib.__version__}


def _torch_block(
    arm: str, steps: int, *, threads: int
) -> tuple[Callable[[], None], dict[str, str]]:
    """The same network, data and optimizer in eager PyTorch."""
    import torch

    from bn_jax.data import load_dataset
    from bn_jax.data.batching import batch_indices

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    data = load_dataset("mnist")
    images = torch.from_numpy(data.train_images.reshape(-1, 784).copy())
    labels = torch.from_numpy(data.train_labels.astype(np.int64))
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
