"""Images per second in training BN-Inception on one GPU, with JAX and with PyTorch.

    python benchmarks/imagenet_step.py

A step is that of `configs/imagenet_inception.py:modern` with 256 images: bfloat16, and
SGD with momentum. Three networks are compared: one with bn_jax's normalization, one
with `flax.linen.BatchNorm`, and pytorchcv's network in eager PyTorch, with autocast and
channels-last memory. pytorchcv's network has the same layers, and biases before its
normalizations in addition. The random images of 224 x 224 pixels are bytes on the
device. In each round, each library gets a new process, one after the other. A process
is timed only after a few untimed steps, which include compilation.

Needs a GPU, torch and pytorchcv. Writes `results/imagenet_step.json`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_LIBRARIES = ("bn_jax", "flax", "pytorch")
_RESULTS = Path(__file__).parents[1] / "results" / "imagenet_step.json"
# Steps of one timing. In JAX they are one call of the compiled program.
_STEPS = 10
# Number of calls of `_STEPS` steps before the first timing.
_WARM_UP = 3


def main() -> None:
    """Runs all libraries in turn, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--timings", type=int, default=10, help="timings per round")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--library", choices=_LIBRARIES, help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        print(json.dumps(_measure(options)))
        return
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in _LIBRARIES}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(options.rounds):
            for library, results in rounds.items():
                command = [sys.executable, *sys.argv]
                command += [f"--library={library}", f"--cache={cache}"]
                completed = subprocess.run(command, stdout=subprocess.PIPE)
                if completed.returncode > 0:
                    # The process has printed the error itself.
                    sys.exit(1)
                completed.check_returncode()
                results.append(json.loads(completed.stdout.splitlines()[-1]))
    used = {result["device"] for results in rounds.values() for result in results}
    if len(used) > 1:
        sys.exit(
            "benchmarks/imagenet_step.py: all libraries must run on one kind of device,"
            f" but ran on {', '.join(sorted(used))}."
        )
    record = {
        "command": f"python benchmarks/imagenet_step.py --rounds={options.rounds} "
        f"--timings={options.timings} --batch_size={options.batch_size}",
        "batch_size": options.batch_size,
        "device": used.pop(),
        "versions": {
            name: version
            for results in rounds.values()
            for name, version in results[0]["versions"].items()
        },
        "libraries": {
            name: {
                "images_per_second": statistics.median(
                    options.batch_size / seconds
                    for result in results
                    for seconds in result["seconds_a_step"]
                ),
                "peak_bytes": max(result["peak_bytes"] for result in results),
                "seconds_a_step": [result["seconds_a_step"] for result in results],
            }
            for name, results in rounds.items()
        },
    }
    print(_table(record))
    _RESULTS.write_text(json.dumps(record, indent=1) + "\n")


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the seconds per step of one library for each timing, and its versions."""
    prepare = _prepare_torch if options.library == "pytorch" else _prepare_jax
    take_steps, describe = prepare(options)
    for _ in range(_WARM_UP):
        take_steps()
    seconds = []
    for _ in range(options.timings):
        start = time.perf_counter()
        take_steps()
        seconds.append((time.perf_counter() - start) / _STEPS)
    return {"seconds_a_step": seconds, **describe()}


_Prepared = tuple[Callable[[], None], Callable[[], dict[str, Any]]]


def _prepare_jax(options: argparse.Namespace) -> _Prepared:
    import flax
    import jax
    from imagenet_networks import dataset_of, with_flax

    import bn_jax
    from bn_jax.training.build import build_parts_for_data, build_train_step
    from bn_jax.training.config_files import load_config
    from bn_jax.training.distributed.parallel import compile_stretch, make_parallel
    from bn_jax.training.parts import build_initial_state, read_batches
    from bn_jax.training.step.train_step import make_train_stretch

    if jax.default_backend() == "cpu":
        sys.exit("benchmarks/imagenet_step.py: needs a GPU, and JAX sees none.")
    # Later rounds reuse the programs that the first one compiles.
    jax.config.update("jax_compilation_cache_dir", options.cache)
    config: Any = load_config("imagenet_inception:modern")
    config.batch_size = options.batch_size
    # As in PyTorch's network, the first convolution is dense.
    config.model.separable = False
    parallel = make_parallel("jit", num_devices=1)
    dataset = dataset_of(_random_images(options.batch_size))
    parts = build_parts_for_data(dataset, config, parallel)
    if options.library == "flax":
        parts = with_flax(config, parts)
    step = build_train_step(config, parts)
    stretch = compile_stretch(parallel, make_train_stretch(step))
    state = build_initial_state(parts)
    examples = read_batches(parts, 0, _STEPS)

    def take_steps() -> None:
        nonlocal state
        state, tally = stretch(state, examples)
        jax.block_until_ready(tally)

    def describe() -> dict[str, Any]:
        if int(state.tally.num_skipped) != 0:
            sys.exit(
                f"benchmarks/imagenet_step.py: {options.library}: every step must be "
                "finite, but some were not."
            )
        device = jax.devices()[0]
        modules = (jax, flax, bn_jax)
        return {
            "device": device.device_kind,
            "versions": {module.__name__: module.__version__ for module in modules},
            "peak_bytes": device.memory_stats()["peak_bytes_in_use"],
        }

    return take_steps, describe


def _prepare_torch(options: argparse.Namespace) -> _Prepared:
    import torch
    from pytorchcv.models.bninception import bninception

    device = torch.device("cuda")
    torch.backends.cudnn.benchmark = True
    network = bninception().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    images = torch.from_numpy(_random_images(options.batch_size)).to(device)
    labels = torch.arange(options.batch_size, device=device) % 1000
    mean = torch.tensor((0.485, 0.456, 0.406), device=device)
    std = torch.tensor((0.229, 0.224, 0.225), device=device)

    def take_steps() -> None:
        for _ in range(_STEPS):
            # `permute` returns a view, so the memory stays channels-last.
            x = ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)
            with torch.autocast(device.type, torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(
                    network(x), labels, label_smoothing=0.1
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        torch.cuda.synchronize()

    def describe() -> dict[str, Any]:
        return {
            "device": torch.cuda.get_device_name(),
            "versions": {"torch": torch.__version__},
            "peak_bytes": torch.cuda.max_memory_allocated(),
        }

    return take_steps, describe


def _random_images(number: int) -> np.ndarray:
    shape = (number, 224, 224, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _table(record: dict[str, Any]) -> str:
    lines = [f"{record['device']}, {record['batch_size']} images a step"]
    lines.append(f"{'':10}{'images/s':>10}{'of flax':>9}{'GiB':>7}")
    reference = record["libraries"]["flax"]["images_per_second"]
    for name, row in record["libraries"].items():
        rate = row["images_per_second"]
        lines.append(
            f"{name:10}{rate:10.0f}{rate / reference:9.3f}"
            f"{row['peak_bytes'] / 2**30:7.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
