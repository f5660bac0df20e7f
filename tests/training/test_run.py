"""What a run compiles."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from training.tiny_runs import parts_of, tiny_config

from bn_jax.training.parallel import MODES
from bn_jax.training.run import compile_run


@pytest.fixture
def compiled() -> Iterator[Counter[str]]:
    """How often a program of each name was compiled since the test began."""
    names: Counter[str] = Counter()

    def listen(event: str, _: float, **about: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            # Such as "jit(train_chunk)".
            names[about["fun_name"].split("(")[-1].rstrip(")")] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("mode", MODES)
def test_what_all_steps_and_evaluations_need_is_compiled_once(
    idx_dir: Path, mode: str, compiled: Counter[str]
) -> None:
    config = tiny_config(
        idx_dir,
        batch_size=24,
        parallel__mode=mode,
        parallel__num_devices=2,
        ema_decay=0.5,
    )
    run = compile_run(config, parts_of(config))
    state = run.initial_state
    for step in (0, 2):
        state, _ = run.train_steps(state, step, step + 2)
        run.evaluate(state, step + 2, lambda: 0)
    # Pmap names everything alike.
    chunk = "_fun" if mode == "pmap" else "train_chunk"
    names = ["init", chunk, "population_step", "eval_step"]
    assert [compiled[name] for name in names] == [1, 1, 1, 1]
