"""Numbers that are read from the text of compiled programs."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.hlo import count_collectives, estimated_cycles


def compiled_text(function):
    return jax.jit(function).lower(jnp.ones((3, 3))).compile().as_text()


def test_collectives_of_a_loop_are_counted_once(make_mesh):
    add_up = jax.shard_map(
        lambda x: jax.lax.psum(x, "devices"),
        mesh=make_mesh(devices=2),
        in_specs=jax.P("devices"),
        out_specs=jax.P(),
    )

    def rounds(x):
        return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tile(add_up(x), 2), x)

    text = jax.jit(rounds).lower(jnp.ones(2)).compile().as_text()
    assert count_collectives(text) == {"all-reduce": 1}


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
    with pytest.raises(ValueError, match="text must have estimated cycles"):
        estimated_cycles(compiled_text(jnp.sin))
