"""What is read from compiled programs is what they hold."""

import jax
import jax.numpy as jnp
import pytest
from conformance.hlo import without_loops_in_branches


def once(x):
    return x + 1


def until_large(x):
    return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: 2 * x, x)


def compiled_text(*branches):
    def function(is_first, x):
        return jax.lax.cond(is_first, *branches, x)

    return jax.jit(function).lower(True, jnp.ones(3)).compile().as_text()


@pytest.mark.parametrize("branches", [(once, until_large), (until_large, once)])
def test_a_branch_with_a_loop_gives_way_to_the_other(branches):
    text = compiled_text(*branches)
    untaken, number = without_loops_in_branches(text)
    assert number == 1
    assert untaken.count(" conditional(") == text.count(" conditional(") == 1
    assert without_loops_in_branches(untaken) == (untaken, 0)


def test_a_program_without_loops_in_branches_stays():
    text = compiled_text(once, lambda x: jnp.sort(-x))
    assert without_loops_in_branches(text) == (text, 0)


def test_branches_of_loops_alone_are_refused():
    text = compiled_text(until_large, lambda x: until_large(-x) + 1)
    with pytest.raises(ValueError, match=r"one branch without a loop .* found 0 in"):
        without_loops_in_branches(text)
