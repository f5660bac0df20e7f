"""Training steps of BN-Inception a second on one accelerator, beside PyTorch's.

    python benchmarks/imagenet_step.py

What `configs/imagenet_inception.py:modern` trains for each step of 256 images, in
bfloat16, by SGD with momentum: with bn_jax's normalization, with
`flax.linen.BatchNorm` in the same network, and in eager PyTorch with pytorchcv's
network of the same layers, its memory channels-last and under autocast. (That one has
biases in front of its normalizations besides.) Random images of 224 pixels lie on the
device as bytes. Each library has a process of its own, one after the other and round
after round; a process takes steps until they run as they will, and is timed then.

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
# Steps of one timing, which are one call of the compiled program in JAX.
_STEPS = 10
_WARM_UP = 3


def main() -> None:
    """Runs all libraries in turn, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--timings", type=int, default=10, help="in a round")
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
                    # It has said what is wrong.
                    sys.exit(1)
                completed.check_returncode()
                results.append(json.loads(completed.stdout.splitlines()[-1]))
    used = {result["device"] for results in rounds.values() for result in results}
    if len(used) > 1:
        sys.exit(f"benchmarks/imagenet_step.py: the devices differ: {sorted(used)}.")
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
    """Seconds a step of one library, timing by timing."""
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
    from bn_jax.experiments.configs import load_config
    from bn_jax.training import build
    from bn_jax.training.distributed.parallel import compile_chunk, make_parallel
    from bn_jax.training.steps import make_train_chunk

    if jax.default_backend() == "cpu":
        sys.exit("benchmarks/imagenet_step.py: needs a GPU, and JAX sees none.")
    # What an earlier round has compiled is not compiled again.
    jax.config.update("jax_compilation_cache_dir", options.cache)
    config: Any = load_config("imagenet_inception.py", "modern")
    config.batch_size = options.batch_size
    # The first convolution as in PyTorch's network.
    config.model.separable = False
    parallel = make_parallel("jit", num_devices=1)
    dataset = dataset_of(_random_images(options.batch_size))
    parts = build.parts_around(dataset, config, parallel)
    if options.library == "flax":
        parts = with_flax(config, parts)
    step = build.build_train_step(config, parts)
    chunk = compile_chunk(parallel, make_train_chunk(step))
    state = build.build_initial_state(config, parts)
    examples = build.read_batches(config, parts, 0, _STEPS)

    def take_steps() -> None:
        nonlocal state
        state, tally = chunk(state, examples)
        jax.block_until_ready(tally)

    def describe() -> dict[str, Any]:
        if int(state.tally.num_skipped) != 0:
            sys.exit(f"{options.library}: a step was not finite.")
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
            # A view: the memory stays channels-last.
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
