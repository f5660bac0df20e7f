"""Time and error of one Batch Normalization layer in training, for several libraries.

    make bench

The benchmark times the forward pass alone, and forward with backward pass; both return
new running statistics. The libraries take turns in one process. In each round their
times are divided by that of `flax.linen.BatchNorm`; the medians over all rounds are
compared. The features' means are 0, 0.5, 3, 100 and 10,000 standard deviations for
bn_jax and Flax, and 0.5 for the others, whose work does not depend on the mean.

The record also holds two errors of each library in the first step: the relative error
of the variance that it normalizes by, and the absolute error of the values that it
returns. Both are the largest over all shapes. The input's mean is 1e4 standard
deviations in float32, and 30 in bfloat16, whose precision allows no more. Rounding to
bfloat16 alone can change a result by 2^-9 of it.

PyTorch gets its channels-last layout. On an accelerator the shapes are larger, to fill
it. The process keeps freed memory: glibc may otherwise return large arrays to the
kernel, and a call of any one library then takes twice as long. The
results are written to `results/batch_norm-<device>.json`.
"""

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import flax
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import torch
from norm_errors import largest_errors
from norm_layers import Layer, jax_layers, to_torch, torch_arrays

import bn_jax
from bn_jax.machine import describe_machine

_REFERENCE = "flax"
_COMPARED = ("bn_jax", _REFERENCE)
_MEANS = (0.0, 0.5, 3.0, 100.0, 1e4)
# The mean, in standard deviations, at which all libraries are timed.
_USUAL_MEAN = 0.5
_WHATS = ("forward", "forward+backward")
# Number of values. Computing with fewer takes less time than dispatching the program.
_LARGE_ENOUGH = 2**16


class _Work(NamedTuple):
    """Inputs of the benchmark.

    Attributes:
        shapes: Shapes of x.
        values: Minimum number of values that the calls of one timing normalize in
            total, so that a timing takes milliseconds.
    """

    shapes: tuple[tuple[int, ...], ...]
    values: int


_SMALL = _Work(
    ((64, 56, 56, 64), (32, 28, 28, 192), (4096, 1024), (60, 100)), 2 * 10**6
)
# Mostly the sizes of the outputs of BN-Inception's stages for 64 images.
_LARGE = _Work(
    ((64, 112, 112, 64), (64, 56, 56, 192), (64, 28, 28, 320), (4096, 1024)), 2 * 10**9
)


def main() -> None:
    """Times all libraries on all shapes, prints a table and writes the results."""
    names = list(jax_layers())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument(
        "--libraries",
        nargs="+",
        choices=names,
        default=names,
        help="libraries to time; PyTorch, bn_jax and flax are always included",
    )
    options = parser.parse_args()
    chosen = {*_COMPARED, *options.libraries}
    layers = {name: of for name, of in jax_layers().items() if name in chosen}
    _keep_memory()
    device = jax.devices()[0]
    work = _SMALL if device.platform == "cpu" else _LARGE
    record: dict[str, Any] = {
        "command": f"python {' '.join(sys.argv)}",
        "machine": describe_machine(),
        "device": device.device_kind,
        "versions": {
            library.__name__: library.__version__
            for library in (bn_jax, jax, flax, hk, eqx, torch)
        },
        "reference": _REFERENCE,
    }
    for dtype in ("float32", "bfloat16"):
        record[dtype] = _measure(dtype, layers, work, options.rounds)
        print(_table(dtype, record[dtype]), flush=True)
    folder = Path(__file__).parents[1] / "results"
    name = device.device_kind.lower().replace(" ", "-")
    (folder / f"batch_norm-{name}.json").write_text(json.dumps(record, indent=2) + "\n")


def _measure(
    dtype: str, layers: dict[str, Layer], work: _Work, rounds: int
) -> dict[str, Any]:
    """Returns ratios to the reference by mean and shape, their summary, and errors."""
    ratios: dict[str, dict[str, dict[str, list[float]]]] = {}
    milliseconds: dict[str, dict[str, dict[str, list[float]]]] = {}
    for mean in _MEANS:
        for timed in (ratios, milliseconds):
            timed[f"{mean:g}"] = {what: {} for what in _WHATS}
        usual = mean == _USUAL_MEAN
        compared = {n: of for n, of in layers.items() if usual or n in _COMPARED}
        for shape in work.shapes:
            arrays = _arrays(shape, dtype, mean)
            both = (_forward_calls, _backward_calls)
            for what, calls_of in zip(_WHATS, both, strict=True):
                calls = calls_of(arrays, compared, with_torch=usual)
                repeats = max(1, work.values // int(np.prod(shape)))
                times = _time(calls, repeats, rounds)
                for name, values in times.items():
                    ratio = float(np.median(values / times[_REFERENCE]))
                    ratios[f"{mean:g}"][what].setdefault(name, []).append(ratio)
                    median = float(np.median(values)) * 1e3
                    milliseconds[f"{mean:g}"][what].setdefault(name, []).append(median)
    ours = {what: [by[what]["bn_jax"] for by in ratios.values()] for what in _WHATS}
    large = [int(np.prod(shape)) >= _LARGE_ENOUGH for shape in work.shapes]
    return {
        "shapes": work.shapes,
        "time_over_reference": ratios,
        "geometric_mean": {
            what: {name: _geometric_mean(of) for name, of in by_name.items()}
            for what, by_name in ratios[f"{_USUAL_MEAN:g}"].items()
        },
        "bn_jax_over_all_means": {
            what: {
                "geometric_mean": _geometric_mean(values),
                "largest_of_large_shapes": float(np.max(np.array(values)[:, large])),
            }
            for what, values in ours.items()
        },
        "milliseconds": milliseconds,
        "largest_error": largest_errors(dtype, layers, work.shapes),
    }


def _geometric_mean(ratios: Any) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def _time(
    calls: dict[str, Callable[[], Any]], repeats: int, rounds: int
) -> dict[str, np.ndarray]:
    """Returns the seconds of one call of each library, in each round.

    Repeated calls are dispatched one after the other, as in a training loop, and the
    process waits for the device after the last one.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        _wait(call())
    # Each round has its own order, because the memory and the threads that a library
    # leaves behind slow the next library down, most of all PyTorch's spinning threads.
    shuffle = np.random.default_rng(0).permutation
    for _ in range(rounds):
        for name in shuffle(list(calls)):
            call = calls[name]
            # This call is not timed. It absorbs the slowdown by the previous library.
            _wait(call())
            start = time.perf_counter()
            for _ in range(repeats):
                result = call()
            _wait(result)
            times[name].append((time.perf_counter() - start) / repeats)
    return {name: np.array(values) for name, values in times.items()}


def _arrays(shape: tuple[int, ...], dtype: str, mean: float) -> tuple[Any, ...]:
    """Returns x, scale and bias, with a running mean and variance near those of x."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(mean, 1.0, shape), dtype)
    scale, bias = (random.normal(size=shape[-1]).astype(np.float32) for _ in "ab")
    running = (mean + 0.1 * random.normal(size=shape[-1])).astype(np.float32)
    arrays = (scale, bias, running, np.ones_like(running))
    return x, *map(jnp.asarray, arrays)


def _forward_calls(
    arrays: tuple[Any, ...], layers: dict[str, Layer], *, with_torch: bool
) -> dict[str, Any]:
    def call(function: Any) -> Callable[[], Any]:
        return lambda: function(*arrays)

    calls = {name: call(jax.jit(layer)) for name, layer in layers.items()}
    if not with_torch:
        return calls
    x, parameters, running = torch_arrays(arrays)

    def of_torch() -> Any:
        with torch.no_grad():
            return torch.nn.functional.batch_norm(
                x, *running, *parameters, training=True
            )

    return {**calls, "pytorch": of_torch}


def _backward_calls(
    arrays: tuple[Any, ...], layers: dict[str, Layer], *, with_torch: bool
) -> dict[str, Any]:
    x = arrays[0]
    dy = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), x.dtype)

    def call(layer: Layer) -> Callable[[], Any]:
        @jax.jit
        def function(
            x: Any, scale: Any, bias: Any, mean: Any, var: Any, dy: Any
        ) -> Any:
            def forward(*inputs: Any) -> Any:
                return layer(*inputs, mean, var)

            y, pullback, kept = jax.vjp(forward, x, scale, bias, has_aux=True)
            cotangent = jnp.moveaxis(dy, -1, 1) if y.shape != dy.shape else dy
            return pullback(cotangent.astype(y.dtype)), kept

        return lambda: function(*arrays, dy)

    calls = {name: call(layer) for name, layer in layers.items()}
    if not with_torch:
        return calls
    x, parameters, running = torch_arrays(arrays)
    cotangent = to_torch(dy)
    inputs = [x.requires_grad_(), *(p.requires_grad_() for p in parameters)]

    def of_torch() -> Any:
        y = torch.nn.functional.batch_norm(x, *running, *parameters, training=True)
        return torch.autograd.grad(y, inputs, cotangent)

    return {**calls, "pytorch": of_torch}


def _keep_memory() -> None:
    """Makes this process keep freed memory, if its C library is glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Options from malloc.h. M_MMAP_MAX=0: no array gets its own memory mapping.
        mallopt(-4, 0)
        # M_TRIM_THRESHOLD, in bytes: the heap does not shrink.
        mallopt(-1, 2**31 - 1)


def _wait(result: Any) -> None:
    jax.block_until_ready(result)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _table(dtype: str, results: dict[str, Any]) -> str:
    shapes = ", ".join(map(str, results["shapes"]))
    lines = [
        f"{dtype}: time divided by {_REFERENCE}'s; shapes {shapes}",
        f"{'':24}{'forward':>34}{'forward+backward':>34}"
        f"{'error of variance':>19}{'of values':>10}",
    ]
    errors = results["largest_error"]
    for mean, by_what in results["time_over_reference"].items():
        for name in by_what["forward"]:
            cells = []
            for what in _WHATS:
                values = by_what[what][name]
                numbers = " ".join(f"{v:5.2f}" for v in values)
                cells.append(f"{numbers}  ={_geometric_mean(values):5.2f}")
            line = f"{f'mean {mean}, {name}':24}{cells[0]:>34}{cells[1]:>34}"
            if mean == f"{_USUAL_MEAN:g}":
                line += (
                    f"{errors['variance'][name]:>19.1e}{errors['values'][name]:>10.1e}"
                )
            if name != _REFERENCE:
                lines.append(line)
    for what, summary in results["bn_jax_over_all_means"].items():
        lines.append(
            f"bn_jax over all means, {what}: {summary['geometric_mean']:.2f}, at most "
            f"{summary['largest_of_large_shapes']:.2f} for shapes of at least 2^16 "
            "values"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
