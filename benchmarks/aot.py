"""What a training step of BN-Inception costs on a TPU, compiled where there is none.

    python benchmarks/aot.py [PROGRAM ...]

The steps of `configs/imagenet_inception.py`, whole and by bn_jax's own functions, are
compiled ahead of time for chips of a TPU v5e (its topology "2x4"): with bn_jax's
normalization, and with `flax.linen.BatchNorm` in the same network. XLA tells of each
program the FLOPs and the bytes accessed by one chip in one step, the most memory that
it holds, and its all-reduces. These are a compiler's estimates and no times; the same
versions give the same ones. Bytes accessed are those of the chip's memory and of its
fast one, with the copies between the two.

XLA counts a loop as if it always ran once. bn_jax's normalization of float32 has one,
of further passes over activations whose mean lies far from the running one, which
training takes in its first steps, and later where a feature hardly varies within a
batch. So XLA analyses the compiled text once more, without those loops: that is what a
step costs that takes no further pass. This analysis knows nothing of the tiles of a
chip, to which it pads arrays; the numbers of bytes compare with one another alone. Of
the same text are the cycles that the chip's compiler expects, which it writes beside
each operation: they depend on where an array lies, which the bytes do not.

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
from hlo import count_collectives, estimated_cycles, without_loops
from imagenet_networks import dataset_of, with_flax
from jax.experimental import topologies
from jaxlib import xla_client

import bn_jax
from bn_jax.experiments.configs import load_config
from bn_jax.training.build import Parts, build_init, build_train_step, parts_around
from bn_jax.training.parallel import compile_chunk, make_parallel
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
    print("unpadded: bytes of arrays without a chip's padding, no further pass taken;")
    print("Mcycles: what the compiler expects, likewise")
    print(
        f"{'':36}{'GFLOP':>9}{'GB':>9}{'unpadded':>10}{'Mcycles':>9}{'GiB peak':>10}"
        "  all-reduces"
    )
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
    """What the rows have in common."""
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
    """What XLA says of one program."""
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
    collectives = count_collectives(text)
    return {
        **setting._asdict(),
        "mode": parallel.mode,
        "norm": norm,
        "commit": commit,
        "batch_size": config.batch_size,
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "peak_memory_bytes": memory.peak_memory_in_bytes,
        "all_reduces": collectives.always["all-reduce"],
        "all_reduces_if_needed": collectives.if_needed["all-reduce"],
        "first_pass_alone": _first_pass_alone(
            text, has_loops=norm == "bn_jax" and setting.dtype == "float32"
        ),
    }


def _black_images(config: Any) -> np.ndarray:
    """As many as a step has, which take no memory."""
    shape = (config.batch_size, *(config.dataset.image_size,) * 2, 3)
    return np.broadcast_to(np.zeros((), np.uint8), shape)


def _first_pass_alone(text: str, *, has_loops: bool) -> dict[str, float]:
    """What a step costs that takes no further pass: those are in loops.

    Args:
        text: The compiled program.
        has_loops: Whether its normalization has any: bn_jax's has for float32.
    """
    alone, number = without_loops(text)
    if (number > 0) != has_loops:
        expected = "some" if has_loops else "none"
        raise RuntimeError(
            f"benchmarks/aot.py: {number} loops of further passes were found, where "
            f"{expected} were expected; XLA writes them in another way by now."
        )
    # jaxlib has no public name for it.
    module = xla_client.hlo.hlo_module_from_text(alone)
    cost = xla_client._xla.hlo_module_cost_analysis(jax.devices()[0].client, module)
    return {
        "flops": cost["flops"],
        "unpadded_bytes_accessed": cost["bytes accessed"],
        "estimated_cycles": estimated_cycles(alone),
    }


def _shapes(config: Any, parts: Parts) -> tuple[Any, Examples]:
    """A state and the examples of one step, without their values."""
    size, split = config.dataset.image_size, parts.parallel.split(2)

    def placed(dtype: Any, *image: int) -> jax.ShapeDtypeStruct:
        shape = (1, 1, config.batch_size, *image)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

    examples = Examples(placed(np.uint8, size, size, 3), placed(np.int32))
    return build_init(config, parts).shapes, examples


def _print(row: dict[str, Any]) -> None:
    name = "{arm} {dtype} {mode} {chips}, {norm}".format(**row)
    alone = row["first_pass_alone"]
    print(
        f"{name:36}{row['flops'] / 1e9:9.1f}{row['bytes_accessed'] / 1e9:9.2f}"
        f"{alone['unpadded_bytes_accessed'] / 1e9:10.2f}"
        f"{alone['estimated_cycles'] / 1e6:9.1f}"
        f"{row['peak_memory_bytes'] / 2**30:10.2f}  "
        f"{row['all_reduces']} and {row['all_reduces_if_needed']} if needed",
        flush=True,
    )


if __name__ == "__main__":
    main()
