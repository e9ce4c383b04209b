"""What is read from a compiled program's text: small texts, and real ones of this CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests import tiny_model
from tools.aot import hlo

# As the TPU compiler prints it: one all-gather that overlaps with two fusions, in a loop of
# 3 by steps of 2; a reduce-scatter in the guise of an all-reduce; a kernel whose metadata spans lines.
_TPU_TEXT = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%overlapped.1 (p: bf16[128,16]) -> bf16[1024,16] {
  %p = bf16[128,16]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[1024,16]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, \
replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, dimensions={0}
}

%overlapped.2 (p.2: bf16[128,16]) -> bf16[1024,16] {
  %p.2 = bf16[128,16]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[1024,16]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=7, \
replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, dimensions={0}
}

%all-reduce-scatter (input: f32[64,4]) -> f32[8,4] {
  %input = f32[64,4]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,4]{1,0:T(8,128)} all-reduce(%input), channel_id=9, \
replica_groups=[1,8]<=[8], to_apply=%add
  %zero = u32[] constant(0)
  ROOT %dynamic-slice.1 = f32[8,4]{1,0} dynamic-slice(%all-reduce.1, %zero, %zero)
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%condition (s: (s32[], bf16[128,16])) -> pred[] {
  %s = (s32[]{:T(128)}, bf16[128,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %limit = s32[]{:T(128)} constant(6)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (t: (s32[], bf16[128,16])) -> (s32[], bf16[128,16]) {
  %t = (s32[]{:T(128)}, bf16[128,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %j = s32[] get-tuple-element(%t), index=0
  %shard = bf16[128,16]{1,0:T(8,128)(2,1)} get-tuple-element(%t), index=1
  %a = bf16[1024,16]{1,0} fusion(%shard), kind=kCustom, calls=%overlapped.1
  %b = bf16[1024,16]{1,0} fusion(%shard), kind=kCustom, calls=%overlapped.2
  %halo = (bf16[128,16]{1,0}, bf16[128,16]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) \
collective-permute-start(%shard), channel_id=8, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %done = bf16[128,16]{1,0} collective-permute-done(%halo)
  %two = s32[]{:T(128)} constant(2)
  %stepped = s32[] add(%j, %two)
  ROOT %next = (s32[], bf16[128,16]{1,0}, /*index=2*/f32[]) tuple(%stepped, %done, %j)
}

ENTRY %main.1_spmd (x.1: bf16[128,16], y.1: f32[64,4]) -> f32[] {
  %x.1 = bf16[128,16]{1,0:T(8,128)(2,1)} parameter(0)
  %y.1 = f32[64,4]{1,0} parameter(1)
  %start = s32[] constant(0)
  %init = (s32[], bf16[128,16]{1,0}) tuple(%start, %x.1)
  %loop = (s32[]{:T(128)}, bf16[128,16]{1,0}) while(%init), condition=%condition, \
body=%body, metadata={op_name="jit(step)/while"}
  %kernel = f32[64,4]{1,0} custom-call(%y.1), custom_call_target="tpu_custom_call", \
metadata={op_name="attention
  its text goes on here }
and here {"}
  %scattered = f32[8,4]{1,0} fusion(%kernel), kind=kCustom, calls=%all-reduce-scatter
  %all-reduce.2 = (f32[10]{0}, f32[30]{0}) all-reduce(%start, %start), channel_id=11, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %end = f32[] constant(0)
}
"""


def test_collectives_count_once_a_channel_and_as_often_as_their_loop_runs():
    found = sorted(hlo.Program(_TPU_TEXT).collectives(), key=lambda one: one.kind)
    assert found == [
        hlo.Collective("all-gather", 3, 8, 1024 * 16 * 2),
        hlo.Collective("all-reduce", 1, 4, 40 * 4),
        hlo.Collective("collective-permute", 3, 4, 128 * 16 * 2),
        hlo.Collective("reduce-scatter", 1, 8, 64 * 4 * 4),
    ]


def test_a_chip_sends_what_rings_need():
    of = {kind: hlo.Collective(kind, 2, 4, 1000).sent_bytes for kind in hlo.COLLECTIVES}
    assert of == {
        "all-gather": 1500,
        "all-reduce": 3000,
        "reduce-scatter": 1500,
        "all-to-all": 1500,
        "collective-permute": 2000,
    }


def test_kernels_are_counted_and_their_metadata_may_span_lines():
    program = hlo.Program(_TPU_TEXT)
    assert hlo.num_kernels(program) == 1
    assert program.runs["body"] == 3 and program.runs["overlapped.2"] == 3


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.Program("HloModule empty\n")


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        # 128 x 512 times 512 x 256
        (
            "f32[128,256]{1,0} convolution(%a, %b), dim_labels=bf_io->bf",
            2 * 128 * 512 * 256,
        ),
        # A batch of 2 as the TPU compiler writes it, then heads that are not summed over.
        (
            "f32[2,2048,32,128]{3,2,1,0} convolution(%c, %d), window={size=1x32 "
            + "pad=0_0x31_31 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f",
            2 * (2 * 2048 * 32 * 128) * 4096,
        ),
        (
            "f32[128,256]{1,0} dot(%a, %b), lhs_contracting_dims={1}",
            2 * 128 * 512 * 256,
        ),
    ],
)
def test_matrix_products_in_every_guise(line, flops):
    text = f"""\
HloModule m

ENTRY %e (a: f32[128,512]) -> f32[] {{
  %a = f32[128,512]{{1,0}} parameter(0)
  %b = f32[512,256]{{1,0}} parameter(1)
  %c = bf16[2,2048,4096,1]{{3,2,1,0}} parameter(2)
  %d = bf16[4096,32,128,1]{{3,2,1,0}} parameter(3)
  ROOT %r = {line}
}}
"""
    assert hlo.product_flops(hlo.Program(text)) == flops


def test_a_loop_that_xla_compiled_counts_as_often_as_it_runs():
    def step(x):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, length=7)[0]

    compiled = jax.jit(step).lower(jax.ShapeDtypeStruct((64, 64), np.float32)).compile()
    program = hlo.Program(compiled.as_text())
    assert hlo.product_flops(program) == 7 * 2 * 64**3


def test_collectives_that_xla_compiled_for_eight_devices():
    mesh = tiny_model.mesh(4, 2)

    def gather_and_sum(x):
        whole = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))
        return jnp.sum(whole * whole), jnp.sum(x)

    x = jax.ShapeDtypeStruct(
        (16, 32), np.float32, sharding=NamedSharding(mesh, P("data", None))
    )
    compiled = jax.jit(gather_and_sum).lower(x).compile()
    found = {one.kind: one for one in hlo.Program(compiled.as_text()).collectives()}
    assert found["all-gather"] == hlo.Collective("all-gather", 1, 4, 16 * 32 * 4)
    assert found["all-reduce"].group_size == 4
    assert found["all-reduce"].payload_bytes == 4


def _traffic(body: str, call: str) -> int:
    text = f"""\
HloModule m

%fused (p: f32[1000,8], u: f32[10,8], i: s32[]) -> f32[1000,8] {{
  %p = f32[1000,8]{{1,0}} parameter(0)
  %u = f32[10,8]{{1,0}} parameter(1)
  %i = s32[]{{:S(2)}} parameter(2)
  {body}
}}

ENTRY %e (a: f32[1000,8]) -> f32[] {{
  %a = f32[1000,8]{{1,0}} parameter(0)
  %b = f32[10,8]{{1,0}} parameter(1)
  %c = s32[]{{:S(2)}} parameter(2)
  %near = f32[10,8]{{1,0:T(8,128)S(1)}} parameter(3)
  ROOT %r = {call}
}}
"""
    return hlo.memory_bytes(hlo.Program(text))


@pytest.mark.parametrize(
    ("body", "call", "rows"),
    [
        (  # all of the first is read, all written; the second is not used
            "ROOT %n = f32[1000,8]{1,0} negate(%p)",
            "f32[1000,8]{1,0} fusion(%a, %b, %c), kind=kLoop, calls=%fused",
            2000,
        ),
        (  # ten rows are read and written in place
            "ROOT %n = f32[1000,8]{1,0} dynamic-update-slice(%p, %u, %i, %i)",
            "f32[1000,8]{1,0} fusion(%a, %b, %c), kind=kLoop, calls=%fused",
            20,
        ),
        (  # ten rows are read and written
            "ROOT %n = f32[10,8]{1,0} dynamic-slice(%p, %i, %i)",
            "f32[10,8]{1,0} fusion(%a, %b, %c), kind=kLoop, calls=%fused",
            20,
        ),
        ("", "f32[10,8]{1,0} copy(%near)", 10),  # from on-chip memory
        (
            "",
            "(f32[10,8]{1,0:S(1)}, f32[10,8]{1,0}, u32[]{:S(2)}) copy-start(%b)",
            10,
        ),
    ],
)
def test_memory_traffic_is_what_leaves_the_chip(body, call, rows):
    assert _traffic(body, call) == rows * 8 * 4
