"""Size and compile time of programs with the Batch Normalization of bn_jax and Flax.

    python benchmarks/compile_cost.py

Counts the StableHLO operations and the jaxpr equations of one layer's forward pass in
training. Also counts the StableHLO lines of a training step of ResNet-18 (He et al.,
2016) for images of 32 x 32 pixels and SGD with momentum. In each round, a new process
compiles this step on the CPU for one library, and then another process for the other.
The benchmark compares the CPU seconds of all threads in the same round. The programs do
not change between rounds.

Writes `results/compile_cost.json`.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import bn_jax
from bn_jax.machine import describe_machine

_NORMS: dict[str, Any] = {"bn_jax": bn_jax.BatchNorm, "flax": nn.BatchNorm}
_RESULTS = Path(__file__).parents[1] / "results" / "compile_cost.json"
_OPERATION = re.compile(r"= \"?(?:stablehlo|chlo|func)\.|= call ")


class _Block(nn.Module):
    """A residual block of two convolutions."""

    features: int
    stride: int
    norm: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        conv = partial(nn.Conv, use_bias=False)
        strides = (self.stride, self.stride)
        y = conv(self.features, (3, 3), strides)(x)
        y = conv(self.features, (3, 3))(nn.relu(self.norm()(y)))
        y = self.norm()(y)
        if x.shape != y.shape:
            x = self.norm()(conv(self.features, (1, 1), strides)(x))
        return nn.relu(x + y)


class _ResNet18(nn.Module):
    """ResNet-18 for small images: eight blocks, with 20 normalizations in all."""

    norm: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(self.norm()(nn.Conv(64, (3, 3), use_bias=False)(x)))
        for stage, features in enumerate((64, 128, 256, 512)):
            x = _Block(features, 1 if stage == 0 else 2, self.norm)(x)
            x = _Block(features, 1, self.norm)(x)
        return nn.Dense(10)(x.mean((1, 2)))


def main() -> None:
    """Counts, compiles in fresh processes, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--compile", choices=_NORMS, help="only compile this one and print its seconds"
    )
    options = parser.parse_args()
    if options.compile:
        lowered = _lowered_step(options.compile)
        start = time.process_time()
        lowered.compile()
        print(time.process_time() - start)
        return
    seconds: dict[str, list[float]] = {name: [] for name in _NORMS}
    for number in range(options.rounds):
        # The order alternates between rounds.
        for name in list(_NORMS)[:: 1 if number % 2 else -1]:
            command = [sys.executable, __file__, f"--compile={name}"]
            printed = subprocess.run(
                command, check=True, capture_output=True, text=True
            )
            seconds[name].append(float(printed.stdout))
    rounds = zip(seconds["bn_jax"], seconds["flax"], strict=True)
    lines = {name: len(_lowered_step(name).as_text().splitlines()) for name in _NORMS}
    record = {
        "command": f"python {' '.join(sys.argv)}",
        "machine": describe_machine(),
        "versions": {
            library.__name__: library.__version__ for library in (bn_jax, jax, flax)
        },
        "layer": {name: _size_of_layer(name) for name in _NORMS},
        "resnet18_step": {
            "lines": lines,
            "lines_over_flax": lines["bn_jax"] / lines["flax"],
            "cpu_seconds": seconds,
            "median_cpu_seconds": {
                name: statistics.median(values) for name, values in seconds.items()
            },
            "cpu_seconds_over_flax": statistics.median(
                ours / theirs for ours, theirs in rounds
            ),
        },
    }
    _RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(
        json.dumps({key: record[key] for key in ("layer", "resnet18_step")}, indent=2)
    )


def _size_of_layer(name: str) -> dict[str, int]:
    """Returns the sizes of a layer's forward pass in training."""
    layer = _NORMS[name](use_running_average=False)
    x = jnp.zeros((64, 56, 56, 64))
    variables = layer.init(jax.random.key(0), x)

    def apply(variables: Any, x: Any) -> Any:
        return layer.apply(variables, x, mutable=["batch_stats"])

    text = jax.jit(apply).lower(variables, x).as_text()
    operations = sum(bool(_OPERATION.search(line)) for line in text.splitlines())
    return {
        "stablehlo_operations": operations,
        "jaxpr_equations": _count_equations(jax.make_jaxpr(apply)(variables, x).jaxpr),
    }


def _count_equations(jaxpr: Any) -> int:
    """Returns the number of equations, including those nested in other equations."""
    inner = jax.extend.core.jaxprs_in_params
    return sum(
        1 + sum(map(_count_equations, inner(equation.params)))
        for equation in jaxpr.eqns
    )


def _lowered_step(name: str) -> Any:
    """Returns a training step of ResNet-18, lowered but not compiled."""
    model = _ResNet18(partial(_NORMS[name], use_running_average=False))
    optimizer = optax.sgd(0.1, momentum=0.9)
    images = jax.ShapeDtypeStruct((32, 32, 32, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((32,), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    state = jax.eval_shape(optimizer.init, variables["params"])

    def step(variables: Any, state: Any, images: Any, labels: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            given = {**variables, "params": params}
            logits, changed = model.apply(given, images, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), changed

        params = variables["params"]
        gradients, changed = jax.grad(loss_fn, has_aux=True)(params)
        updates, new_state = optimizer.update(gradients, state, params)
        return {**changed, "params": optax.apply_updates(params, updates)}, new_state

    return jax.jit(step).lower(variables, state, images, labels)


if __name__ == "__main__":
    main()
