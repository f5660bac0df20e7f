"""Images per second from disk to batches of 224 x 224 pixels: bn_jax, Grain, PyTorch.

    python benchmarks/input.py

All three read the same JPEGs, which this script writes: 500 x 375 pixels, about 89 KB.

- bn_jax reads them from the array_record files of `bn-jax prepare imagenet2012`.
- Grain reads these files too, with bn_jax's function for one image, but in its own
  order and with its own threads, one for each core.
- PyTorch's DataLoader reads a folder of JPEG files with
  `torchvision.datasets.ImageFolder` (Pillow), in one worker process for each core.

All three crop at random, resize, flip, and return uint8 batches. In the second arm they
also change the colors. In the third arm PyTorch returns normalized floats, as in its
recipes; the other two leave normalization to the device. The files are in the file
cache of the operating system. The libraries take turns, in reverse order every other
round, and their rates in the same round are compared.

The benchmark also reports the CPU time per image, of all threads and processes. It
varies less than the rate on a machine that has other work to do.

Needs `pip install -e '.[benchmark,imagenet]'`. Writes `results/input.json`.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from photographs import write_images

import bn_jax
from bn_jax.data import load_dataset
from bn_jax.data.dataset import Split
from bn_jax.machine import describe_machine

_SIZE = 224
# For each arm: strength of the changes of color in [0, 1], and True if PyTorch returns
# normalized floats.
_ARMS = {
    "crop": (0.0, False),
    "crop and colours": (0.5, False),
    "crop, PyTorch's in floats": (0.0, True),
}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LIBRARIES = ("bn_jax", "grain", "torch")
_NEEDED = ("cv2", "grain", "psutil", "torch", "torchvision")


class Cost(NamedTuple):
    """Speed and CPU time of one library in one round."""

    images_per_second: float
    cpu_milliseconds_per_image: float


def main() -> None:
    """Measures all libraries in turn, prints the ratios and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument(
        "--cores", type=int, default=None, help="use the first few cores; default all"
    )
    parser.add_argument("--output", type=Path, default=_results())
    options = parser.parse_args()
    if lacking := [name for name in _NEEDED if find_spec(name) is None]:
        sys.exit(
            f"benchmarks/input.py: needs {', '.join(_NEEDED)}, but finds no "
            f"{', no '.join(lacking)}; run pip install -e '.[benchmark,imagenet]'"
        )
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    # Threads and processes that start later inherit these cores.
    os.sched_setaffinity(0, cores)
    arms = {}
    with tempfile.TemporaryDirectory() as folder:
        sizes = write_images(Path(folder), options.images)
        for arm, (distortion, as_floats) in _ARMS.items():
            source = (Path(folder), options, len(cores), distortion)
            runs = {
                "bn_jax": _ours(*source),
                "grain": _grain(*source),
                "torch": _torch(*source, as_floats),
            }
            arms[arm] = _compare(runs, options.rounds, options.images)
            print(f"{arm}: {_summary(arms[arm], len(cores))}")
    libraries = ("jax", "opencv-python-headless", "grain", "torch", "torchvision")
    result = {
        "command": f"python benchmarks/input.py --rounds={options.rounds} "
        f"--images={options.images} --batch_size={options.batch_size} "
        f"--cores={len(cores)}",
        "machine": describe_machine(),
        "versions": {
            "bn_jax": bn_jax.__version__,
            **{name: version(name) for name in (*libraries, "pillow")},
        },
        "load_average": os.getloadavg()[0],
        "kilobytes_per_image": statistics.mean(sizes) / 1e3,
        "cores": len(cores),
        "arms": arms,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")


def _compare(
    runs: dict[str, Callable[[], None]], rounds: int, num_images: int
) -> dict[str, Any]:
    """Returns the costs of each round, their medians and the medians of the ratios."""
    for run in runs.values():
        run()
    costs: list[dict[str, Cost]] = []
    for number in range(rounds):
        order = sorted(runs, reverse=bool(number % 2))
        costs.append({name: _cost(runs[name], num_images) for name in order})
    return {
        **{
            field: {
                name: {
                    "median": statistics.median(getattr(c[name], field) for c in costs),
                    "all": [round(getattr(c[name], field), 3) for c in costs],
                }
                for name in _LIBRARIES
            }
            for field in Cost._fields
        },
        **{
            f"bn_jax_over_{peer}": statistics.median(
                c["bn_jax"].images_per_second / c[peer].images_per_second for c in costs
            )
            for peer in _LIBRARIES[1:]
        },
        **{
            f"{peer}_over_bn_jax_in_cpu_time": statistics.median(
                c[peer].cpu_milliseconds_per_image
                / c["bn_jax"].cpu_milliseconds_per_image
                for c in costs
            )
            for peer in _LIBRARIES[1:]
        },
    }


def _cost(run: Callable[[], None], num_images: int) -> Cost:
    start, cpu_start = time.perf_counter(), _cpu_seconds()
    run()
    seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu_start
    return Cost(num_images / seconds, 1e3 * cpu / num_images)


def _cpu_seconds() -> float:
    """Returns the CPU time of this process and of the processes that it started."""
    import psutil

    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


def _summary(arm: dict[str, Any], num_cores: int) -> str:
    rates = {
        name: values["median"] / num_cores
        for name, values in arm["images_per_second"].items()
    }
    return f"bn_jax {rates['bn_jax']:.0f} images/s per core; " + "; ".join(
        f"{peer} {rates[peer]:.0f}: bn_jax has {arm[f'bn_jax_over_{peer}']:.2f} times "
        f"its rate, {peer} takes {arm[f'{peer}_over_bn_jax_in_cpu_time']:.2f} times "
        "the CPU time"
        for peer in _LIBRARIES[1:]
    )


def _ours(
    folder: Path, options: argparse.Namespace, num_cores: int, distortion: float
) -> Callable[[], None]:
    split = _split(folder, num_cores, distortion)
    order = np.random.default_rng(0).permutation(len(split))

    def run() -> None:
        for start in range(0, len(order), options.batch_size):
            batch = order[start : start + options.batch_size]
            split.read(batch, start + np.arange(len(batch)))

    return run


def _grain(
    folder: Path, options: argparse.Namespace, num_cores: int, distortion: float
) -> Callable[[], None]:
    import grain

    split: Any = _split(folder, num_cores, distortion)

    def example(index: int) -> tuple[np.ndarray, int]:
        image = np.empty((_SIZE, _SIZE, 3), np.uint8)
        # `read` calls this method for each image in bn_jax's threads; here Grain's do.
        return image, split._read_example(int(index), int(index), out=image)

    loader = (
        grain.MapDataset.range(len(split))
        .seed(0)
        .shuffle()
        .map(example)
        .to_iter_dataset(
            grain.ReadOptions(
                num_threads=num_cores, prefetch_buffer_size=2 * options.batch_size
            )
        )
        .batch(options.batch_size)
    )

    def run() -> None:
        for _ in loader:
            pass

    return run


def _split(folder: Path, num_cores: int, distortion: float) -> Split:
    return load_dataset(
        "imagenet2012",
        data_dir=str(folder / "prepared"),
        image_size=_SIZE,
        distortion=distortion,
        read_threads=num_cores,
    ).train


def _torch(
    folder: Path,
    options: argparse.Namespace,
    num_cores: int,
    distortion: float,
    as_floats: bool,
) -> Callable[[], None]:
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    # In torchvision brightness is a factor: 0.125 changes a white pixel by 32 of 255.
    jitter = transforms.ColorJitter(
        0.125 * distortion, 0.5 * distortion, 0.5 * distortion, 0.2 * distortion
    )
    steps = [
        transforms.RandomResizedCrop(_SIZE),
        transforms.RandomHorizontalFlip(),
        *([jitter] if distortion else []),
        *(
            [transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)]
            if as_floats
            else [transforms.PILToTensor()]
        ),
    ]
    loader = DataLoader(
        ImageFolder(str(folder / "files"), transforms.Compose(steps)),
        batch_size=options.batch_size,
        shuffle=True,
        num_workers=num_cores,
        persistent_workers=True,
        # A fork of this process, which has threads, could deadlock.
        multiprocessing_context="forkserver",
    )

    def run() -> None:
        for _ in loader:
            pass

    return run


def _results() -> Path:
    return Path(__file__).parent.parent / "results" / "input.json"


if __name__ == "__main__":
    main()
