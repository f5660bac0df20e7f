"""What is read from compiled programs is what they hold."""

import jax
import jax.numpy as jnp
import pytest
from jaxlib import xla_client

from benchmarks.hlo import count_collectives, estimated_cycles, without_loops

_LOOPS = """HloModule loops

%condition (p: (f32[3], f32[])) -> pred[] {
  %p = (f32[3], f32[]) parameter(0)
  %size = f32[] get-tuple-element(%p), index=1
  %limit = f32[] constant(100)
  ROOT %goes_on = pred[] compare(%size, %limit), direction=LT
}

%body (p: (f32[3], f32[])) -> (f32[3], f32[]) {
  %p = (f32[3], f32[]) parameter(0)
  %x = f32[3] get-tuple-element(%p), index=0
  %size = f32[] get-tuple-element(%p), index=1
  %twice = f32[] add(%size, %size)
  ROOT %next = (f32[3], f32[]) tuple(%x, %twice)
}

ENTRY %main (x: f32[3], size: f32[]) -> f32[3] {
  %x = f32[3] parameter(0)
  %size = f32[] parameter(1)
  %given = (f32[3], f32[]) tuple(%x, %size)
  %loop = (f32[3], f32[]) while(%given), condition=%condition, body=%body
  %loop.1 = (f32[3], f32[]) while(%loop), condition=%condition, body=%body
  %end = f32[3] get-tuple-element(%loop.1), index=0
  ROOT %result = f32[3] negate(%end)
}
"""


def three_times(x):
    return jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x) @ x, x)


def compiled_text(function):
    return jax.jit(function).lower(jnp.ones((3, 3))).compile().as_text()


def test_what_a_loop_is_given_stands_for_what_it_gives():
    alone, number = without_loops(_LOOPS)
    assert number == 2
    assert " while(" not in alone
    assert "%end = f32[3] get-tuple-element(%given), index=0" in alone
    # It is a program still, and without loops that is told again.
    assert xla_client.hlo.hlo_module_from_text(alone).name == "loops"
    assert without_loops(alone) == (alone, 0)


def test_a_loop_of_a_known_number_of_rounds_stays():
    text = compiled_text(lambda x: jnp.sin(three_times(x)))
    assert " while(" in text
    assert without_loops(text) == (text, 0)


def test_a_loop_that_is_a_result_itself_is_refused():
    text = _LOOPS.replace("  %loop.1", "  ROOT %loop.1")
    with pytest.raises(ValueError, match="is made of, and found ROOT %loop"):
        without_loops(text)


def test_collectives_of_a_loop_count_as_always_where_its_rounds_are_known(make_mesh):
    mesh = make_mesh(devices=2)
    add_up = jax.shard_map(
        lambda x: jax.lax.psum(x, "devices"),
        mesh=mesh,
        in_specs=jax.P("devices"),
        out_specs=jax.P(),
    )

    def counts(loop):
        text = jax.jit(loop).lower(jnp.ones(2)).compile().as_text()
        found = count_collectives(text)
        return found.always["all-reduce"], found.if_needed["all-reduce"]

    def rounds(x):
        return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tile(add_up(x), 2), x)

    def until(x):
        return jax.lax.while_loop(
            lambda x: x.sum() < 100, lambda x: jnp.tile(add_up(x), 2), x
        )

    assert counts(rounds) == (1, 0)
    # Whether it goes on is asked once at least, of all devices.
    assert counts(until) == (1, 1)


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
        estimated_cycles(compiled_text(jnp.sin))
