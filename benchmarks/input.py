"""Images a second from the disk to a batch of 224 pixels, beside PyTorch's DataLoader.

    python benchmarks/input.py

Both read the same JPEGs, written by this script: 500x375 pixels, about 85 KB. bn_jax
reads them from the array_record files that `bn-jax prepare imagenet2012` makes; PyTorch
from a folder of files, by `torchvision.datasets.ImageFolder` (Pillow), with a worker
process a core. Both crop at random, resize, flip, and give uint8 batches; in the second
arm both also change the colours. In the third, PyTorch gives normalized floats, as its
recipes do; bn_jax leaves that to the device. The files lie in the system's cache. The
two take turns, each first every other round; what is compared is the rate in pairs.

Beside the rate there is the processor time an image, of all threads and processes: on
a machine that has other work it is the steadier one.

Needs `pip install 'bn-jax[imagenet,benchmark]'`. Writes `results/input.json`.
"""

import argparse
import io
import json
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from PIL import Image

import bn_jax
from bn_jax.reporting.machine import describe_machine

_SIZE = 224
_WIDTH, _HEIGHT = 500, 375
_SYNSETS = ("n01440764", "n01443537")
# Strength of the changes of colour, and whether PyTorch normalizes.
_ARMS = {
    "crop": (0.0, False),
    "crop and colours": (0.5, False),
    "crop, PyTorch's in floats": (0.0, True),
}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LIBRARIES = ("bn_jax", "torch")


class Cost(NamedTuple):
    """What a round took."""

    images_per_second: float
    cpu_milliseconds_per_image: float


def main() -> None:
    """Measures both in turn, prints the ratios and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--cores", type=int, default=None, help="the first few")
    parser.add_argument("--output", type=Path, default=_results())
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    # Threads and processes that are made later inherit it.
    os.sched_setaffinity(0, cores)
    arms = {}
    with tempfile.TemporaryDirectory() as folder:
        sizes = _write_images(Path(folder), options.images)
        for arm, (distortion, as_floats) in _ARMS.items():
            source = (Path(folder), options, len(cores), distortion)
            runs = {"bn_jax": _ours(*source), "torch": _torch(*source, as_floats)}
            arms[arm] = _compare(runs, options.rounds, options.images)
            print(f"{arm}: {_summary(arms[arm], len(cores))}")
    libraries = ("jax", "opencv-python-headless", "torch", "torchvision", "pillow")
    result = {
        "command": f"python benchmarks/input.py --rounds={options.rounds} "
        f"--images={options.images} --batch_size={options.batch_size} "
        f"--cores={len(cores)}",
        "machine": describe_machine(),
        "versions": {
            "bn_jax": bn_jax.__version__,
            **{name: version(name) for name in libraries},
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
    """Costs of both in each round, their medians and the medians of the ratios."""
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
        "bn_jax_over_torch": statistics.median(
            c["bn_jax"].images_per_second / c["torch"].images_per_second for c in costs
        ),
        "torch_over_bn_jax_in_cpu_time": statistics.median(
            c["torch"].cpu_milliseconds_per_image
            / c["bn_jax"].cpu_milliseconds_per_image
            for c in costs
        ),
    }


def _cost(run: Callable[[], None], num_images: int) -> Cost:
    start, cpu_start = time.perf_counter(), _cpu_seconds()
    run()
    seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu_start
    return Cost(num_images / seconds, 1e3 * cpu / num_images)


def _cpu_seconds() -> float:
    """Of this process and of those that it has started."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


def _summary(arm: dict[str, Any], num_cores: int) -> str:
    rates = {
        name: values["median"] / num_cores
        for name, values in arm["images_per_second"].items()
    }
    return (
        f"{rates['bn_jax']:.0f} images/s a core, PyTorch {rates['torch']:.0f}; "
        f"{arm['bn_jax_over_torch']:.2f} times its rate, "
        f"{arm['torch_over_bn_jax_in_cpu_time']:.2f} times in processor time"
    )


def _write_images(folder: Path, num_images: int) -> list[int]:
    """The same images for both; gives back their sizes in bytes."""
    from bn_jax.data.prepare_imagenet import prepare_imagenet

    rng = np.random.default_rng(0)
    sizes = []
    contents: dict[str, dict[str, bytes]] = {synset: {} for synset in _SYNSETS}
    for number in range(num_images):
        synset = _SYNSETS[number % len(_SYNSETS)]
        content = _jpeg(rng)
        sizes.append(len(content))
        path = folder / "files" / synset / f"{synset}_{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        contents[synset][path.name] = content
    training = {f"{synset}.tar": _tar(files) for synset, files in contents.items()}
    validation = {"ILSVRC2012_val_00000001.JPEG": _jpeg(rng)}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(_tar(training))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(_tar(validation))
    prepare_imagenet(folder, folder / "prepared", is_subset=True)
    return sizes


def _tar(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def _jpeg(rng: np.random.Generator) -> bytes:
    """Smooth colours under noise, which give a file the size of a photograph's."""
    coarse = rng.integers(0, 256, (_HEIGHT // 25, _WIDTH // 25, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 17, (_HEIGHT, _WIDTH, 1))
    pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=87)
    return file.getvalue()


def _ours(
    folder: Path, options: argparse.Namespace, num_cores: int, distortion: float
) -> Callable[[], None]:
    from bn_jax.data import load_dataset

    split = load_dataset(
        "imagenet2012",
        data_dir=str(folder / "prepared"),
        image_size=_SIZE,
        distortion=distortion,
        read_threads=num_cores,
    ).train
    order = np.random.default_rng(0).permutation(len(split))

    def run() -> None:
        for start in range(0, len(order), options.batch_size):
            batch = order[start : start + options.batch_size]
            split.read(batch, start + np.arange(len(batch)))

    return run


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

    # Brightness is a factor there: 1/8 is 32 of 255, for a light image.
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
        # Not forked from a process that has threads.
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
