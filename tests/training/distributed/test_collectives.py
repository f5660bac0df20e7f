"""Communication between devices in a training step."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import pytest
from training.tiny_runs import grouped, parts_of, tiny_config

from benchmarks.hlo import count_collectives, summed_dtypes
from bn_jax.training.build import build_train_step
from bn_jax.training.distributed.parallel import compile_stretch
from bn_jax.training.parts import build_initial_state, read_batches
from bn_jax.training.step.train_step import make_train_stretch

# Operands of an all-reduce in what JAX hands to XLA, before a backend changes them.
_REDUCED = re.compile(r"stablehlo\.all_reduce.*?\}\) : \((.*?)\) ->", re.DOTALL)


def lowered(idx_dir: Path, mode: str, *, num_layers: int = 1, **settings: Any) -> Any:
    """A stretch of steps on four devices, lowered."""
    config = tiny_config(
        idx_dir,
        batch_size=24,
        model__hidden_features=(8, 7)[:num_layers],
        parallel__mode=mode,
        parallel__num_devices=4,
        **settings,
    )
    parts = parts_of(config)
    chunk = make_train_stretch(build_train_step(grouped(config), parts))
    return jax.jit(compile_stretch(parts.parallel, chunk)).lower(
        build_initial_state(parts), read_batches(parts, 0, 3)
    )


@pytest.mark.parametrize(("mode", "num_layers"), [("shard_map", 2), ("pmap", 1)])
def test_a_step_has_one_all_reduce_and_three_more_for_each_norm(
    idx_dir: Path, mode: str, num_layers: int
) -> None:
    program = lowered(idx_dir, mode, num_layers=num_layers)
    found = count_collectives(program.compile().as_text())
    assert found == Counter({"all-reduce": 1 + 3 * num_layers})


def test_without_synchronization_the_gradients_travel_alone(idx_dir: Path) -> None:
    text = lowered(idx_dir, "shard_map", norm__sync=False).compile().as_text()
    found = count_collectives(text)
    # Running statistics are those of all devices; they need no way back.
    assert found["all-reduce"] <= 1 + 2
    assert set(found) == {"all-reduce"}


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
def test_everything_is_summed_over_devices_in_float32(idx_dir: Path, mode: str) -> None:
    text = lowered(idx_dir, mode, dtype="bfloat16").as_text()
    assert "bf16" in text
    reduced = _REDUCED.findall(text)
    # Five gradients, the loss, and the norm's statistics there and back at least.
    assert len(reduced) >= 5 + 1 + 2
    assert {re.split(r"[<x>]", operand)[-2] for operand in reduced} == {"f32"}


def test_everything_is_summed_in_float32_where_xla_divides_the_program(
    idx_dir: Path, tmp_path: Path
) -> None:
    program = lowered(idx_dir, "jit", dtype="bfloat16")
    assert "bf16" in program.as_text()
    assert set(summed_dtypes(program, tmp_path)) == {"f32"}


def test_accumulation_sums_gradients_over_devices_once(idx_dir: Path) -> None:
    program = lowered(idx_dir, "shard_map", accumulation_steps=2)
    text = program.compile().as_text()
    # Two forward and one backward in the loop over microbatches; gradients outside it.
    assert count_collectives(text) == Counter({"all-reduce": 1 + 3})
