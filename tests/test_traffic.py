"""Bytes moved, counted in the text of compiled programs: by hand, and against XLA's own count."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlingo_jax.planning.traffic import moved_bytes

# A product; a loop of 32 that slices its weights and keeps what it computes.
SCRIPT = """
import json
import jax, jax.numpy as jnp
from mlingo_jax.planning.traffic import moved_bytes

def loop(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), x), x, w)

def count(f, *shapes):
    compiled = jax.jit(f).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()
    return moved_bytes(compiled.as_text()), compiled.cost_analysis()["bytes accessed"]

print(json.dumps([count(lambda x, w: x @ w, (64, 128), (128, 256)), count(loop, (64, 128), (32, 128, 128))]))
"""


def test_compiled_programs():
    environment = {n: v for n, v in os.environ.items() if n != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (product, xla), (loop, _) = json.loads(done.stdout)
    assert product == xla == 4 * (64 * 128 + 128 * 256 + 64 * 256)
    row, weights = 4 * 64 * 128, 4 * 128 * 128
    # In each round: its own weights and some rows, and not the weights of all rounds.
    assert 32 * (3 * row + weights) <= loop <= 32 * (12 * row + 4 * weights) < 32 * 32 * weights


def program(entry: str, others: str = "") -> str:
    return f"HloModule m\n\n{others}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{entry}\n}}\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ROOT %a = f32[8]{0} add(%p, %p)", 96),
        ("ROOT %a = f32[8]{0:T(128)S(1)} negate(%p)", 32),
        ("ROOT %s = f32[2]{0} dynamic-slice(%p, %i), dynamic_slice_sizes={2}", 16),
        ("ROOT %u = f32[8]{0} dynamic-update-slice(%p, %q, %i)", 16),
        ("ROOT %c = (f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%p)", 32),
        ("ROOT %t = (f32[8]{0}, f32[8]{0}) tuple(%p, %p)", 0),
        # A GPU's, with room for the library to work in; the second adds its product to %p, which it reads.
        (
            'ROOT %c = (bf16[2,4]{1,0}, s8[4194304]{0}) custom-call(%q, %p), custom_call_target="__cublas$lt$matmul", '
            'backend_config={"gemm_backend_config":{"alpha_real":1,"beta":0}}',
            16 + 8 + 32,
        ),
        (
            'ROOT %c = (f32[8]{0}, s8[4194304]{0}) custom-call(%q, %q, %p), custom_call_target="__cublas$lt$matmul", '
            "output_to_operand_aliasing={{0}: (2, {})}",
            32 + 8 + 8 + 32,
        ),
        (
            "ROOT %f = (bf16[2,4,7,64]{3,1,2,0}, u8[64]{0}) custom-call(%q, %q, %q, %i), "
            'custom_call_target="__cudnn$fmhaSoftmax"',
            2 * 2 * 4 * 7 * 64 + 3 * 8 + 4,
        ),
        ("ROOT %a = f32[8]{0} all-reduce-start(%p), replica_groups={{0,1}}, to_apply=%add", 64),
        ("ROOT %a = ((f32[8]{0}), f32[2]{0}) reduce-scatter-start(%p), replica_groups={{0,1,2,3}}, dimensions={0}", 40),
    ],
)
def test_instructions(line: str, expected: int):
    entry = f"  %p = f32[8]{{0}} parameter(0)\n  %q = f32[2]{{0}} parameter(1)\n  %i = s32[] parameter(2)\n  {line}"
    assert moved_bytes(program(entry)) == expected


def test_fusions_and_loops():
    others = """\
%slice_and_update (a: f32[4,8], b: f32[4,8], i: s32[]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[4,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %row = f32[1,8]{1,0} dynamic-slice(%b, %i, %i), dynamic_slice_sizes={1,8}
  ROOT %u = f32[4,8]{1,0} dynamic-update-slice(%a, %row, %i, %i)
}

%body (t: (f32[4,8], f32[4,8], s32[])) -> (f32[4,8], f32[4,8], s32[]) {
  %t = (f32[4,8]{1,0}, f32[4,8]{1,0}, s32[]) parameter(0)
  %a = f32[4,8]{1,0} get-tuple-element(%t), index=0
  %b = f32[4,8]{1,0} get-tuple-element(%t), index=1
  %i = s32[] get-tuple-element(%t), index=2
  %f = f32[4,8]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%slice_and_update
  ROOT %r = (f32[4,8]{1,0}, f32[4,8]{1,0}, s32[]) tuple(%f, %b, %i)
}
"""
    loop = (
        "  %p = (f32[4,8]{1,0}, f32[4,8]{1,0}, s32[]) parameter(0)\n"
        "  ROOT %w = (f32[4,8]{1,0}, f32[4,8]{1,0}, s32[]) while(%p), condition=%c, body=%body, "
        'backend_config={"known_trip_count":{"n":"4"}}'
    )
    # Each round reads one row of b and the index, and writes one row of a.
    assert moved_bytes(program(loop, others)) == 4 * (32 + 4 + 32)


def test_a_gpus_fusions():
    """A layer's kernel copied out of the stack for cuBLAS, and one multiplied by Triton as it is read, in int8."""
    others = """\
%fused_dynamic_slice.4 (param_0.211: bf16[32,64,128], param_1.165: s32[]) -> bf16[1,64,128] {
  %param_0.211 = bf16[32,64,128]{2,1,0} parameter(0)
  %param_1.165 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %dynamic_slice.90.1 = bf16[1,64,128]{2,1,0} dynamic-slice(%param_0.211, %param_1.165, %zero, %zero)
  ROOT %copy.205 = bf16[1,64,128]{2,1,0} copy(%dynamic_slice.90.1)
}

%nested_kernel (p.1: s8[64,128]) -> bf16[64,128] {
  %p.1 = s8[64,128]{1,0} parameter(0)
  ROOT %c.1 = bf16[64,128]{1,0} convert(%p.1)
}

%gemm_fusion_dot.52_body (p.2: bf16[8,64], p.3: s8[64,128]) -> bf16[8,128] {
  %p.2 = bf16[8,64]{1,0} parameter(0)
  %p.3 = s8[64,128]{1,0} parameter(1)
  %k.1 = bf16[64,128]{1,0} fusion(%p.3), kind=kCustom, calls=%nested_kernel
  ROOT %dot.1 = bf16[8,128]{1,0} dot(%p.2, %k.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    entry = """\
  %stack = bf16[32,64,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = bf16[8,64]{1,0} parameter(2)
  %kernel = s8[64,128]{1,0} parameter(3)
  %copied.4 = bf16[1,64,128]{2,1,0} fusion(%stack, %i), kind=kCustom, calls=%fused_dynamic_slice.4
  ROOT %gemm_fusion_dot.52 = bf16[8,128]{1,0} fusion(%x, %kernel), kind=kCustom, calls=%gemm_fusion_dot.52_body"""
    copied, multiplied = 2 * 2 * 64 * 128 + 4, 2 * 8 * 64 + 64 * 128 + 2 * 8 * 128
    assert moved_bytes(program(entry, others)) == copied + multiplied


def test_a_collective_in_pieces_counts_once():
    piece = 'all-gather(%x), channel_id=3, replica_groups=[1,8]<=[8], frontend_attributes={chain_id="0"}'
    others = f"""\
%begin (x: f32[1]) -> (f32[1], f32[8]) {{
  %x = f32[1]{{0}} parameter(0)
  %g = f32[8]{{0}} {piece}
  ROOT %s = (f32[1]{{0}}, f32[8]{{0}}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%beside (x: f32[1], y: f32[8], z: f32[16]) -> (f32[16], f32[1], f32[8]) {{
  %x = f32[1]{{0}} parameter(0)
  %y = f32[8]{{0}} parameter(1)
  %z = f32[16]{{0}} parameter(2)
  %g = f32[8]{{0}} {piece}
  %n = f32[16]{{0}} negate(%z)
  ROOT %t = (f32[16]{{0}}, f32[1]{{0}}, f32[8]{{0}}) tuple(%n, %x, %g)
}}

%end (x: f32[1], y: f32[8]) -> f32[8] {{
  %x = f32[1]{{0}} parameter(0)
  %y = f32[8]{{0}} parameter(1)
  %g = f32[8]{{0}} {piece}
  ROOT %d = f32[8]{{0}} custom-call(%x, %y, %g), custom_call_target="AsyncCollectiveDone"
}}
"""
    entry = """\
  %a = f32[1]{0} parameter(0)
  %z = f32[16]{0} parameter(1)
  %s = (f32[1]{0}, f32[8]{0}) fusion(%a), kind=kCustom, calls=%begin
  %x = f32[1]{0} get-tuple-element(%s), index=0
  %y = f32[8]{0} get-tuple-element(%s), index=1
  %b = (f32[16]{0}, f32[1]{0}, f32[8]{0}) fusion(%x, %y, %z), kind=kCustom, calls=%beside
  ROOT %d = f32[8]{0} fusion(%x, %y), kind=kCustom, calls=%end"""
    # The part is read, whole and part are written; beside it 16 numbers are read and written; the end moves nothing.
    assert moved_bytes(program(entry, others)) == 4 * (1 + 8 + 1) + 4 * (16 + 16)
