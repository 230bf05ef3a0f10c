"""Collectives are found in compiled programs of CPU, TPU and GPU, however they are written."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mlingo_jax.planning.devices import cuda_plugin
from mlingo_jax.planning.program import Collective, array_bytes, collectives, donated

# Each collective of KINDS but the broadcast, one of them in a scan in a scan, on a mesh of 2 x 4 devices.
SCRIPT = """
import dataclasses, json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from mlingo_jax.planning.devices import devices, prepare
from mlingo_jax.planning.machines import parse
from mlingo_jax.planning.program import collectives, donated

machine = parse(sys.argv[1])
prepare(machine)
mesh = Mesh(np.array(devices(machine)).reshape(2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

@jax.shard_map(mesh=mesh, in_specs=P("a", "b"), out_specs=P("a", "b"), check_vma=False)
def exchange(x):
    def inner(x, _):
        return jnp.sin(jax.lax.psum(x, "b")), None
    def outer(x, _):
        x, _ = jax.lax.scan(inner, x, length=5)
        return jnp.cos(x), None
    x, _ = jax.lax.scan(outer, x, length=3)
    x = jax.lax.psum_scatter(jnp.tanh(jax.lax.all_gather(x, "b", tiled=True)), "b", tiled=True)
    x = jax.lax.all_to_all(jnp.sin(x), "a", 0, 0, tiled=True)
    return jnp.cos(jax.lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)]))

x = jax.ShapeDtypeStruct((256, 512), jnp.float32, sharding=NamedSharding(mesh, P("a", "b")))
step = jax.jit(lambda x, y: exchange(x) + y, donate_argnums=1)
text = step.lower(x, x).compile().as_text()
found = [dataclasses.asdict(c) | {"times": c.times} for c in collectives(text)]
print(json.dumps([found, sorted(donated(text))]))
"""


@pytest.mark.parametrize(
    ("machine", "compiler"), [("cpu:8", True), ("v5e:2x4", find_spec("libtpu")), ("h100:8", cuda_plugin())]
)
def test_collectives_of_a_compiled_program(machine: str, compiler: object):
    if not compiler:
        pytest.skip(f"the compiler for {machine} is not installed")
    environment = {n: v for n, v in os.environ.items() if n != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    command = [sys.executable, "-c", SCRIPT, machine]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, taken_over = json.loads(done.stdout)
    assert taken_over == [1]
    # A device has 128 x 128 numbers of 4 bytes.
    part = 128 * 128 * 4
    expected = {
        ("all-reduce", part, 4, 15),
        ("all-gather", 4 * part, 4, 1),
        ("reduce-scatter", 4 * part, 4, 1),
        ("all-to-all", part, 2, 1),
        ("collective-permute", part, 8, 1),
    }
    assert {(c["kind"], c["bytes"], c["devices"], c["times"]) for c in found} == expected
    assert len(found) == len(expected)
    assert [c["loops"] for c in found if c["times"] == 15] == [[3, 5]]


def program(*lines: str, others: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m, num_partitions=8\n\n{others}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


@pytest.mark.parametrize(
    ("line", "kind", "size", "devices"),
    [
        (
            "%s = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%p), replica_groups=[2,4]<=[8], dimensions={0}",
            "all-gather",
            128,
            4,
        ),
        (
            "%s = ((bf16[2]{0}, bf16[4]{0}), (bf16[8]{0}, bf16[16]{0})) all-gather-start(%p, %q), replica_groups={}",
            "all-gather",
            48,
            8,
        ),
        ("%s = (f32[8]{0}, s4[6]{0}) all-reduce-start(%p, %q), replica_groups={{0,1},{2,3}}", "all-reduce", 35, 2),
        ("%s = ((f32[8]{0}), f32[2]{0}) reduce-scatter-start(%p), replica_groups=[2,4]<=[8]", "reduce-scatter", 32, 4),
        (
            "%s = ((f32[4]{0}, f32[4]{0}), (f32[4]{0}, f32[4]{0})) all-to-all-start(%p, %q), "
            'replica_groups={{0,4},{1,5}}, dimensions={0}, backend_config={"collective_backend_config":{}}',
            "all-to-all",
            32,
            2,
        ),
        (
            "%s = (f32[8]{0}, f32[8]{0}) collective-permute-start(%p), source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            32,
            2,
        ),
        (
            "ROOT %s = pred[8]{0:T(8)S(1)} all-gather(%p), replica_groups=mesh['x'=2,'y'=4] {'x','y':(1)2}",
            "all-gather",
            8,
            4,
        ),
        (
            "ROOT %s = f32[8]{0} all-gather(%p), replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'x'}",
            "all-gather",
            32,
            2,
        ),
    ],
)
def test_ways_to_write_a_collective(line: str, kind: str, size: int, devices: int):
    (found,) = collectives(program(line, "%d = f32[8]{0} all-gather-done(%s)"))
    assert (found.kind, found.bytes, found.devices, found.times) == (kind, size, devices, 1)


def test_a_loop_that_ends_by_its_data_and_a_chain_of_pieces():
    piece = 'all-gather(%x), channel_id=3, replica_groups=[1,8]<=[8], frontend_attributes={chain_id="0"}'
    others = f"""\
%one (x: f32[1]) -> f32[8] {{
  ROOT %g = f32[8]{{0}} {piece}
}}

%two (x: f32[1]) -> f32[8] {{
  ROOT %h = f32[8]{{0}} {piece}
}}

%goes_on (x: f32[8]) -> pred[] {{
  ROOT %c = pred[] and(%x, %y)
}}

%body (x: f32[8]) -> f32[8] {{
  %a = f32[8]{{0}} fusion(%x), kind=kCustom, calls=%one
  ROOT %b = f32[8]{{0}} fusion(%a), kind=kCustom, calls=%two
}}
"""
    (found,) = collectives(program("ROOT %w = f32[8]{0} while(%p), condition=%goes_on, body=%body", others=others))
    assert found == Collective("all-gather", ("f32[8]",), 32, 8, (None,), "one")
    assert found.times is None


@pytest.mark.parametrize(
    ("shape", "size"), [("bf16[4,128]", 1024), ("pred[3]", 3), ("f32[]", 4), ("s4[5]", 3), ("f8e4m3fn[2,2]", 4)]
)
def test_sizes_of_arrays(shape: str, size: Any):
    assert array_bytes(shape) == size


def test_a_program_without_collectives():
    text = program("ROOT %d = f32[8]{0} add(%p, %p)")
    assert collectives(text) == []
    assert donated(text) == frozenset()
