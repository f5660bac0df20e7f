"""Compiled programs of a run."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from training.tiny_runs import compile_tiny_run, parts_of, tiny_config

from bn_jax.data.dataset import ArraySplit, Dataset
from bn_jax.errors import UserError


@pytest.fixture
def compiled() -> Iterator[Counter[str]]:
    """Number of compilations since the test began, by the name of the program."""
    names: Counter[str] = Counter()

    def listen(event: str, _: float, **about: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            # Such as "jit(train_stretch)".
            names[about["fun_name"].split("(")[-1].rstrip(")")] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def evaluated_run(idx_dir: Path, **settings: Any) -> Any:
    """Returns the metrics of an evaluation after two stretches of two steps."""
    features = {"model__hidden_features": (4,)}
    config = tiny_config(idx_dir, batch_size=24, **features, **settings)
    run = compile_tiny_run(config)
    state, _ = run.train_steps(run.initial_state, 0, 2)
    run.evaluate(state, 2, lambda: 0)
    state, _ = run.train_steps(state, 2, 4)
    return run.evaluate(state, 4, lambda: 0)


@pytest.mark.parametrize(
    ("mode", "momentum"),
    [
        ("jit", None),
        ("shard_map", 0.9),
        pytest.param("jit", 0.9, marks=pytest.mark.slow),
        pytest.param("pmap", 0.9, marks=pytest.mark.slow),
    ],
)
def test_what_all_steps_and_evaluations_need_is_compiled_once(
    idx_dir: Path, mode: str, momentum: float | None, compiled: Counter[str]
) -> None:
    parallel = {"parallel__mode": mode, "parallel__num_devices": 2}
    # Running statistics without momentum come with a count, evaluated ones do not.
    evaluated_run(idx_dir, **parallel, ema_decay=0.5, norm__momentum=momentum)
    # Pmap names everything alike.
    chunk = "_fun" if mode == "pmap" else "train_stretch"
    names = ["init", chunk, "population_step", "eval_step"]
    assert [compiled[name] for name in names] == [1, 1, 1, 1]


class DamagedSplit(ArraySplit):
    is_in_memory = False

    def read(self, indices: np.ndarray, positions: np.ndarray) -> Any:
        raise UserError("n01440764_18 is damaged.")


def test_a_damaged_test_image_is_not_blamed_on_the_configuration(idx_dir: Path) -> None:
    config = tiny_config(idx_dir)
    parts = parts_of(config)
    damaged = DamagedSplit(np.zeros((9, 8, 8, 1), np.uint8), np.zeros(9, np.int32))
    data = Dataset("damaged", 10, parts.data.train, damaged)
    with pytest.raises(UserError, match=r"^n01440764_18 is damaged"):
        compile_tiny_run(config, data)
