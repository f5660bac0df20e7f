"""What is read from compiled programs is what they hold."""

import jax
import jax.numpy as jnp
import pytest
from conformance.hlo import estimated_cycles, without_loops_in_branches


def once(x):
    return x + 1


def until_large(x):
    return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: 2 * x, x)


def compiled_text(*branches):
    def function(number, x):
        return jax.lax.switch(number, branches, x)

    return jax.jit(function).lower(0, jnp.ones(3)).compile().as_text()


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


@pytest.mark.parametrize(
    ("others", "found"),
    [((lambda x: until_large(-x) + 1,), 0), ((once, lambda x: jnp.sort(-x)), 2)],
)
def test_a_loop_beside_no_other_branch_or_several_is_refused(others, found):
    text = compiled_text(until_large, *others)
    message = rf"one branch without a loop .* found {found} in"
    with pytest.raises(ValueError, match=message):
        without_loops_in_branches(text)


def with_cycles(operation, cycles):
    return f'  {operation}, backend_config={{"estimated_cycles":"{cycles}"}}\n'


def test_cycles_are_those_of_what_is_executed_with_the_longest_branch():
    text = (
        "%fused (p: f32[]) -> f32[] {\n"
        + with_cycles("ROOT %a = f32[] negate(%p)", 1)
        + "}\n\n%short (p: f32[]) -> f32[] {\n"
        + with_cycles("ROOT %a = f32[] negate(%p)", 10)
        + "}\n\n%long (p: f32[]) -> f32[] {\n"
        + with_cycles("ROOT %a = f32[] fusion(%p), calls=%fused", 200)
        + "}\n\n%body (p: f32[]) -> f32[] {\n"
        + with_cycles("ROOT %a = f32[] fusion(%p), calls=%fused", 3000)
        + "}\n\n%condition (p: f32[]) -> pred[] {\n"
        + with_cycles("ROOT %a = pred[] compare(%p, %p)", 40000)
        + "}\n\nENTRY %main (p: f32[], i: s32[]) -> f32[] {\n"
        + "  %p = f32[] parameter(0)\n  %i = s32[] parameter(1)\n"
        + "  %c = f32[] conditional(%i, %p, %p), branch_computations={%short, %long}\n"
        + "  %w = f32[] while(%c), condition=%condition, body=%body\n"
        + with_cycles("ROOT %a = f32[] fusion(%w), calls=%fused", 500000)
        + "}\n"
    )
    assert estimated_cycles(text) == 543200


def test_a_text_without_cycles_is_refused():
    with pytest.raises(ValueError, match="a text of the compiler for TPUs"):
        estimated_cycles(compiled_text(once, until_large))
