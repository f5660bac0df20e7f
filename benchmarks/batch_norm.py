"""Batch Normalization in training mode: ours against the other libraries.

    make bench

Forward, and forward with backward, of one layer: output and new running statistics,
gradients for x, scale and bias. All libraries take turns in one process, round after
round; what is compared are ratios to `flax.linen.BatchNorm` with its default formula,
round by round, and their medians. Beside each stand the relative error of the variance
that it normalizes by and the error of the values that it returns, the largest over all
shapes, in the first step on an input with a large mean: 1e4 standard deviations in
float32, 30 in bfloat16, whose numbers end there. A value of bfloat16 is rounded by up
to 2^-9 of it in the end.

The jitted libraries start from running statistics like those of the data, as they are
after a few steps of training; so does ours, whose second pass is for the first steps.
Features have a mean of half a standard deviation. On a CPU ours adds up faster within
one than beyond, so that its forward pass is timed for a mean of three as well.
PyTorch gets its channels-last layout. On an accelerator the shapes are larger, so that
they fill it.

Memory that a call gives back is kept for the next one. Without that, glibc hands large
arrays back to the kernel or not, by what was allocated before: the same call then takes
once or twice as long, and it is chance which library that hits.

Writes `results/batch_norm-<device>.json`.
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
from bn_jax.reporting.machine import describe_machine

_REFERENCE = "flax"
_MEAN, _FAR_MEAN = 0.5, 3.0
_OF_FAR_MEAN = f"forward, mean of {_FAR_MEAN:.0f} deviations"


class _Work(NamedTuple):
    """What is timed.

    Attributes:
        shapes: Of x, in turn.
        values: That one timing works through at least, so that it takes milliseconds.
    """

    shapes: tuple[tuple[int, ...], ...]
    values: int


_SMALL = _Work(
    ((64, 56, 56, 64), (32, 28, 28, 192), (4096, 1024), (60, 100)), 2 * 10**6
)
# As large as what BN-Inception's stages leave, on 64 images.
_LARGE = _Work(
    ((64, 112, 112, 64), (64, 56, 56, 192), (64, 28, 28, 320), (4096, 1024)), 2 * 10**9
)


def main() -> None:
    """Times all libraries on all shapes, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument(
        "--libraries",
        nargs="+",
        choices=list(jax_layers()),
        default=list(jax_layers()),
        help="PyTorch and flax, to which all are compared, are always among them",
    )
    options = parser.parse_args()
    chosen = {_REFERENCE, *options.libraries}
    layers = {name: layer for name, layer in jax_layers().items() if name in chosen}
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
    """Ratios to the reference for each shape, their geometric means, and errors."""
    whats = ("forward", "forward+backward", _OF_FAR_MEAN)
    ratios: dict[str, dict[str, list[float]]] = {what: {} for what in whats}
    milliseconds: dict[str, dict[str, list[float]]] = {what: {} for what in whats}
    for shape in work.shapes:
        arrays, far = (_arrays(shape, dtype, mean) for mean in (_MEAN, _FAR_MEAN))
        calls = {
            "forward": _forward_calls(arrays, layers),
            "forward+backward": _backward_calls(arrays, layers),
            _OF_FAR_MEAN: _forward_calls(far, layers),
        }
        for what, by_name in calls.items():
            times = _time(by_name, max(1, work.values // int(np.prod(shape))), rounds)
            base = times[_REFERENCE]
            for name, values in times.items():
                ratio = float(np.median(values / base))
                ratios[what].setdefault(name, []).append(ratio)
                median = float(np.median(values)) * 1e3
                milliseconds[what].setdefault(name, []).append(median)
    return {
        "shapes": work.shapes,
        "time_over_reference": ratios,
        "geometric_mean": {
            what: {
                name: float(np.exp(np.mean(np.log(values))))
                for name, values in by_name.items()
            }
            for what, by_name in ratios.items()
        },
        "milliseconds": milliseconds,
        "largest_error": largest_errors(dtype, layers, work.shapes),
    }


def _time(
    calls: dict[str, Callable[[], Any]], repeats: int, rounds: int
) -> dict[str, np.ndarray]:
    """Seconds of one call of each, in each round.

    Repeated calls follow each other as in a training loop: dispatched one after the
    other, and waited for at the end.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        _wait(call())
    # In an order of its own each round: a library leaves memory and threads behind
    # that the next one has to bear with, PyTorch's spinning threads above all.
    shuffle = np.random.default_rng(0).permutation
    for _ in range(rounds):
        for name in shuffle(list(calls)):
            call = calls[name]
            # Not timed: what was left behind goes away here.
            _wait(call())
            start = time.perf_counter()
            for _ in range(repeats):
                result = call()
            _wait(result)
            times[name].append((time.perf_counter() - start) / repeats)
    return {name: np.array(values) for name, values in times.items()}


def _arrays(shape: tuple[int, ...], dtype: str, mean: float) -> tuple[Any, ...]:
    """x, scale, bias, and running statistics near those of x."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(mean, 1.0, shape), dtype)
    scale, bias = (random.normal(size=shape[-1]).astype(np.float32) for _ in "ab")
    running = (mean + 0.1 * random.normal(size=shape[-1])).astype(np.float32)
    arrays = (scale, bias, running, np.ones_like(running))
    return x, *map(jnp.asarray, arrays)


def _forward_calls(arrays: tuple[Any, ...], layers: dict[str, Layer]) -> dict[str, Any]:

    def call(function: Any) -> Callable[[], Any]:
        return lambda: function(*arrays)

    calls = {name: call(jax.jit(layer)) for name, layer in layers.items()}
    x, parameters, running = torch_arrays(arrays)

    def of_torch() -> Any:
        with torch.no_grad():
            return torch.nn.functional.batch_norm(
                x, *running, *parameters, training=True
            )

    return {**calls, "pytorch": of_torch}


def _backward_calls(
    arrays: tuple[Any, ...], layers: dict[str, Layer]
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
    x, parameters, running = torch_arrays(arrays)
    cotangent = to_torch(dy)
    inputs = [x.requires_grad_(), *(p.requires_grad_() for p in parameters)]

    def of_torch() -> Any:
        y = torch.nn.functional.batch_norm(x, *running, *parameters, training=True)
        return torch.autograd.grad(y, inputs, cotangent)

    return {**calls, "pytorch": of_torch}


def _keep_memory() -> None:
    """Keeps freed memory in this process, where the C library is glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Of malloc.h: M_MMAP_MAX, arrays of their own, and M_TRIM_THRESHOLD, bytes.
        mallopt(-4, 0)
        mallopt(-1, 2**31 - 1)


def _wait(result: Any) -> None:
    jax.block_until_ready(result)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _table(dtype: str, results: dict[str, Any]) -> str:
    shapes = ", ".join(map(str, results["shapes"]))
    lines = [
        f"{dtype}: time over {_REFERENCE}'s; shapes {shapes}",
        f"{'':14}{'forward':>34}{'forward+backward':>34}"
        f"{'error of variance':>19}{'of values':>10}",
    ]
    errors = results["largest_error"]
    for name, error in errors["variance"].items():
        cells = []
        for what in ("forward", "forward+backward"):
            values = results["time_over_reference"][what][name]
            mean = results["geometric_mean"][what][name]
            cells.append(" ".join(f"{v:5.2f}" for v in values) + f"  ={mean:5.2f}")
        lines.append(
            f"{name:14}{cells[0]:>34}{cells[1]:>34}"
            f"{error:>19.1e}{errors['values'][name]:>10.1e}"
        )
    far = results["geometric_mean"][_OF_FAR_MEAN]
    means = ", ".join(f"{name} {value:.2f}" for name, value in far.items())
    lines.append(f"{_OF_FAR_MEAN}: {means}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
