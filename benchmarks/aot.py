"""Cost of a training step of BN-Inception on a TPU, by a compiler that needs no TPU.

    python benchmarks/aot.py [PROGRAM ...]

The script compiles complete training steps of `configs/imagenet_inception.py` ahead of
time, for chips of a TPU v5e with the topology "2x4". Each step is compiled twice: with
bn_jax's normalization, and with `flax.linen.BatchNorm` in the same network. XLA reports
FLOPs, bytes accessed, peak memory and all-reduces for one chip and one step. It also
estimates the cycles of each operation, and the script adds these up.

The numbers are estimates of a compiler, not measured times. They do not vary between
runs of one version. Bytes accessed include the chip's main memory, its fast memory and
the copies between them. The cycles of an operation depend on which of the two memories
holds its arrays.

Needs libtpu, the compiler: `pip install --target=FOLDER 'libtpu==0.0.42.*'` for jax
0.10.2, and FOLDER on PYTHONPATH. Writes `results/aot.json`. Each row is written as soon
as its program is compiled, with the commit of the source code. With arguments, such as
`modern-bfloat16-flax`, only these programs are compiled and the other rows are kept.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
from aot_record import commit_of, name_of, rows_to_keep, with_row
from hlo import count_collectives, estimated_cycles
from imagenet_networks import dataset_of, with_flax
from jax.experimental import topologies

import bn_jax
from bn_jax.training.build import build_parts_for_data, build_train_step
from bn_jax.training.config_files import load_config
from bn_jax.training.distributed.parallel import compile_stretch, make_parallel
from bn_jax.training.parts import Parts, build_init
from bn_jax.training.step.train_step import Examples, make_train_stretch

_ROOT = Path(__file__).parent.parent
_RESULTS = _ROOT / "results" / "aot.json"
_TOPOLOGY = "v5e:2x4"
_NORMS = ("bn_jax", "flax")


class _Setting(NamedTuple):
    arm: str
    dtype: str
    chips: int


_SETTINGS = (
    _Setting("modern", "bfloat16", 8),
    _Setting("bn_x30", "bfloat16", 1),
    _Setting("bn_x30", "float32", 1),
)
_PROGRAMS = {
    name_of({**setting._asdict(), "norm": norm}): (setting, norm)
    for setting, norm in itertools.product(_SETTINGS, _NORMS)
}


def main() -> None:
    """Compiles programs, prints their table and writes the results row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "programs", nargs="*", help=f"from {', '.join(_PROGRAMS)}; by default all"
    )
    named = parser.parse_args().programs
    if unknown := [name for name in named if name not in _PROGRAMS]:
        sys.exit(
            f"benchmarks/aot.py: programs must be from {', '.join(_PROGRAMS)}, but "
            f"include {', '.join(unknown)}."
        )
    if importlib.util.find_spec("libtpu") is None:
        sys.exit(
            "benchmarks/aot.py: libtpu, the compiler for TPUs, is not installed; for "
            "jax 0.10.2 run `pip install --target=FOLDER 'libtpu==0.0.42.*'` and add "
            "FOLDER to PYTHONPATH."
        )
    header = _header()
    record = json.loads(_RESULTS.read_text()) if _RESULTS.exists() else {}
    try:
        rows = rows_to_keep(record, header, is_whole=not named)
    except ValueError as error:
        sys.exit(str(error))
    print(f"{'':36}{'GFLOP':>9}{'GB':>9}{'Mcycles':>9}{'GiB peak':>10}  all-reduces")
    with ProcessPoolExecutor(
        len(os.sched_getaffinity(0)), get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        compiled = [
            pool.submit(_compile, *_PROGRAMS[name]) for name in named or _PROGRAMS
        ]
        for future in as_completed(compiled):
            row = future.result()
            rows = with_row(rows, row, list(_PROGRAMS))
            _RESULTS.write_text(
                json.dumps({**header, "programs": rows}, indent=1) + "\n"
            )
            _print(row)


def _devices() -> Any:
    """Returns descriptions of the chips, which the machine does not need to have."""
    jax.config.update("jax_platforms", "cpu")
    # By default, libtpu asks a server of Google which TPUs are attached, and allows
    # only one process at a time.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    return topologies.get_topology_desc(_TOPOLOGY, "tpu").devices


def _header() -> dict[str, Any]:
    """Returns the part of the record that all rows share."""
    return {
        "command": "python benchmarks/aot.py",
        "topology": _TOPOLOGY,
        "device": _devices()[0].device_kind,
        "versions": {
            "bn_jax": bn_jax.__version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "libtpu": importlib.metadata.version("libtpu"),
        },
    }


def _compile(setting: _Setting, norm: str) -> dict[str, Any]:
    """Compiles one program and returns its row."""
    commit = commit_of(_ROOT)
    config: Any = load_config(f"imagenet_inception:{setting.arm}")
    config.dtype = setting.dtype
    parallel = make_parallel(
        config.parallel.mode, num_devices=setting.chips, devices=list(_devices())
    )
    parts = build_parts_for_data(dataset_of(_black_images(config)), config, parallel)
    if norm == "flax":
        parts = with_flax(config, parts)
    stretch = compile_stretch(
        parallel, make_train_stretch(build_train_step(config, parts))
    )
    compiled = stretch.lower(*_shapes(config, parts)).compile()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    text = compiled.as_text()
    return {
        **setting._asdict(),
        "mode": parallel.mode,
        "norm": norm,
        "commit": commit,
        "batch_size": config.batch_size,
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "peak_memory_bytes": memory.peak_memory_in_bytes,
        "all_reduces": count_collectives(text)["all-reduce"],
        "estimated_cycles": estimated_cycles(text),
    }


def _black_images(config: Any) -> np.ndarray:
    """Returns the images of one step, as a view of a single zero to save memory."""
    shape = (config.batch_size, *(config.dataset.image_size,) * 2, 3)
    return np.broadcast_to(np.zeros((), np.uint8), shape)


def _shapes(config: Any, parts: Parts) -> tuple[Any, Examples]:
    """Returns the shapes of the state and of the examples of one step."""
    size, split = config.dataset.image_size, parts.parallel.sharded(2)

    def shape_of(dtype: Any, *image: int) -> jax.ShapeDtypeStruct:
        shape = (1, 1, config.batch_size, *image)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

    examples = Examples(shape_of(np.uint8, size, size, 3), shape_of(np.int32))
    return build_init(parts).shapes, examples


def _print(row: dict[str, Any]) -> None:
    name = "{arm} {dtype} {mode} {chips}, {norm}".format(**row)
    print(
        f"{name:36}{row['flops'] / 1e9:9.1f}{row['bytes_accessed'] / 1e9:9.2f}"
        f"{row['estimated_cycles'] / 1e6:9.1f}"
        f"{row['peak_memory_bytes'] / 2**30:10.2f}  {row['all_reduces']}",
        flush=True,
    )


if __name__ == "__main__":
    main()
