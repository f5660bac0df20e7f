"""Cost of a training step of BN-Inception on a TPU, compiled where there is none.

    python benchmarks/aot.py [PROGRAM ...]

The steps of `configs/imagenet_inception.py`, whole and by bn_jax's own functions, are
compiled ahead of time for chips of a TPU v5e (its topology "2x4"): with bn_jax's
normalization, and with `flax.linen.BatchNorm` in the same network. XLA reports the
FLOPs and the bytes accessed by one chip in one step, the most memory that it holds, its
all-reduces, and the cycles that it expects of each operation, which are added up here.
These are a compiler's estimates and not times; one version gives the same ones each
time. Bytes accessed are those of the chip's memory and of its fast memory, with the
copies between the two; cycles depend on which of the two an array lies in.

Needs libtpu, the compiler: `pip install --target=FOLDER 'libtpu==0.0.42.*'` for jax
0.10.2, and FOLDER on PYTHONPATH. Writes `results/aot.json`, a row as soon as its
program is compiled, with the commit that it was compiled at. Where programs are named,
such as `modern-bfloat16-flax`, they alone are compiled, and the other rows stay.
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
from bn_jax.experiments.configs import load_config
from bn_jax.training.build import Parts, build_init, build_train_step, parts_around
from bn_jax.training.distributed.parallel import compile_chunk, make_parallel
from bn_jax.training.steps import Examples, make_train_chunk

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
        "programs", nargs="*", help=f"all, or of {', '.join(_PROGRAMS)}"
    )
    named = parser.parse_args().programs
    if unknown := [name for name in named if name not in _PROGRAMS]:
        sys.exit(
            f"benchmarks/aot.py: programs must be among {', '.join(_PROGRAMS)}, and "
            f"{', '.join(unknown)} is not."
        )
    if importlib.util.find_spec("libtpu") is None:
        sys.exit(
            "benchmarks/aot.py: libtpu, the compiler for TPUs, is not here. `pip "
            "install --target=FOLDER 'libtpu==0.0.42.*'` is the one for jax 0.10.2; "
            "put FOLDER on PYTHONPATH then."
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
    """The chips, of which none is here."""
    jax.config.update("jax_platforms", "cpu")
    # It would ask a server of Google's which TPUs are attached, and let one process
    # alone have them.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    return topologies.get_topology_desc(_TOPOLOGY, "tpu").devices


def _header() -> dict[str, Any]:
    """Returns what all rows have in common."""
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
    config: Any = load_config("imagenet_inception.py", setting.arm)
    config.dtype = setting.dtype
    parallel = make_parallel(
        config.parallel.mode, num_devices=setting.chips, devices=list(_devices())
    )
    parts = parts_around(dataset_of(_black_images(config)), config, parallel)
    if norm == "flax":
        parts = with_flax(config, parts)
    chunk = compile_chunk(parallel, make_train_chunk(build_train_step(config, parts)))
    compiled = chunk.lower(*_shapes(config, parts)).compile()
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
    """Returns as many images as a step has; they take no memory."""
    shape = (config.batch_size, *(config.dataset.image_size,) * 2, 3)
    return np.broadcast_to(np.zeros((), np.uint8), shape)


def _shapes(config: Any, parts: Parts) -> tuple[Any, Examples]:
    """Returns a state and the examples of one step, without their values."""
    size, split = config.dataset.image_size, parts.parallel.split(2)

    def placed(dtype: Any, *image: int) -> jax.ShapeDtypeStruct:
        shape = (1, 1, config.batch_size, *image)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

    examples = Examples(placed(np.uint8, size, size, 3), placed(np.int32))
    return build_init(config, parts).shapes, examples


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
