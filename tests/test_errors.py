"""Errors that processes hand to each other."""

import pickle

from bn_jax.errors import DivergedError


def test_a_divergence_keeps_its_step_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DivergedError("the loss is not finite.", 7)))
    assert (str(error), error.step) == ("the loss is not finite.", 7)
