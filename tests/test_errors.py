"""Errors that users are shown, and that processes hand to each other."""

import pickle

from bn_jax.errors import DivergedError, UserError


def test_a_divergence_is_shown_by_its_message_alone() -> None:
    error = DivergedError("the loss is not finite.", 7)
    assert isinstance(error, UserError)
    assert str(error) == "the loss is not finite."


def test_a_divergence_keeps_its_step_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DivergedError("the loss is not finite.", 7)))
    assert (str(error), error.step) == ("the loss is not finite.", 7)
