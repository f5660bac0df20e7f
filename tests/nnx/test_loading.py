"""States of Flax, which have no counts, loaded into layers that need one."""

import chex
import numpy as np
import pytest
from arrays import normal
from flax import nnx
from layers.nnx_model import Model

from bn_jax.nnx import with_counts


def trained_by_flax(x):
    theirs = Model(nnx.BatchNorm)
    theirs(x)
    return theirs


@pytest.mark.parametrize(
    ("settings", "count"), [({"debias": True}, 2**24), ({"momentum": None}, 0)]
)
def test_a_state_of_flax_loads_with_counts(settings, count):
    x = normal(60, 3)
    theirs, ours = trained_by_flax(x), Model(**settings)
    state = nnx.state(theirs)
    nnx.update(ours, with_counts(ours, state))
    merged = nnx.merge(nnx.graphdef(ours), with_counts(ours, state))
    assert "count" not in state["norms"][0]
    for model in (ours, merged):
        assert [norm.count[...] for norm in model.norms] == [count] * 2
        model.eval()
        theirs.eval()
        np.testing.assert_allclose(model(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_training_goes_on_from_a_state_of_flax_as_flax_does():
    x = normal(60, 3)
    theirs, ours = trained_by_flax(x), Model(debias=True)
    nnx.update(ours, with_counts(ours, nnx.state(theirs)))
    theirs(x)
    ours(x)
    for of_ours, of_theirs in zip(ours.norms, theirs.norms, strict=True):
        for name in ("mean", "var"):
            actual, expected = (getattr(n, name)[...] for n in (of_ours, of_theirs))
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_state_without_counts_is_refused_by_merge_and_forgotten_after_update():
    x = normal(60, 3)
    state, ours = nnx.state(trained_by_flax(x)), Model(debias=True)
    with pytest.raises(ValueError, match="leaves"):
        nnx.merge(nnx.graphdef(ours), state)
    nnx.update(ours, state)
    assert ours.norms[0].count[...] == 0
    ours(x + 5)
    np.testing.assert_allclose(ours.norms[0].mean[...], (x + 5).mean(0), rtol=1e-5)


def test_counts_that_a_state_has_are_kept_also_for_an_abstract_model():
    ours = Model(debias=True)
    ours(normal(6, 3))
    abstract = nnx.eval_shape(lambda: Model(debias=True))
    for model in (ours, abstract):
        state = with_counts(model, nnx.state(ours))
        chex.assert_trees_all_equal(state, nnx.state(ours))
    state = with_counts(abstract, nnx.state(Model()))
    assert state["norms"][1]["count"][...] == 2**24
