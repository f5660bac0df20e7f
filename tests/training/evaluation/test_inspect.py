"""The layers of a trained model, described from its folder."""

import jax
import numpy as np
from training.tiny_runs import Complete, final_state

from bn_jax.training.evaluation.inspect import inspect


def test_every_layer_is_described_with_its_shapes_and_parameters(bn: Complete) -> None:
    step, layers = inspect(bn.workdir)
    shapes = {layer.path: layer.shapes for layer in layers}
    assert step == 60
    assert shapes["hidden1"] == {"kernel": (8, 7)}
    assert shapes["norm1"] == {"scale": (7,), "bias": (7,)}
    numbers = sum(layer.num_parameters for layer in layers)
    state = final_state(bn.config, bn.workdir)
    assert numbers == sum(leaf.size for leaf in jax.tree.leaves(state.params))


def test_only_normalization_layers_have_statistics_and_drift(bn: Complete) -> None:
    _, layers = inspect(bn.workdir)
    with_drift = [layer.path for layer in layers if layer.drift is not None]
    assert with_drift == ["norm0", "norm1"]
    stats = final_state(bn.config, bn.workdir).batch_stats["norm0"]
    (norm0,) = [layer for layer in layers if layer.path == "norm0"]
    assert norm0.batch_stats is not None
    np.testing.assert_array_equal(norm0.batch_stats["mean"], stats["mean"])
    # 60 steps of an average over some hundred leave it far behind.
    assert norm0.drift is not None
    assert float(norm0.drift.mean) > 0.1


def test_to_be_looked_at_changes_nothing_in_the_folder(bn: Complete) -> None:
    before = {path: path.stat().st_mtime_ns for path in bn.workdir.rglob("*")}
    inspect(bn.workdir)
    assert {path: path.stat().st_mtime_ns for path in bn.workdir.rglob("*")} == before
