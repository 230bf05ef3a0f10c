"""What is made of a compiled program's numbers: by hand, and from the compiler's own messages."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from mlingo_jax.planning.costs import Costs, compile_costs, out_of_memory, sent_bytes
from mlingo_jax.planning.flops import operations
from mlingo_jax.planning.machines import KINDS, Kind
from mlingo_jax.planning.program import Collective
from mlingo_jax.planning.published import encoder_sizes, language_model_sizes
from mlingo_jax.planning.roofline import Roofline, besides, formula, roofline
from mlingo_jax.planning.shapes import Shapes, trace_train_step
from mlingo_jax.recipes import load_config
from mlingo_jax.settings import MeshConfig
from mlingo_jax.training.sharding import make_mesh

GATHER = Collective("all-gather", ("bf16[400]",), 800, 4, (3,), "body")
KIND = Kind("k", memory=1e3, flops=1e6, bandwidth=1e4, link=1e3)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("all-gather", 600),
        ("reduce-scatter", 600),
        ("all-to-all", 600),
        ("all-reduce", 1200),
        ("collective-permute", 800),
    ],
)
def test_what_a_ring_sends(kind: str, expected: float):
    assert sent_bytes(dataclasses.replace(GATHER, kind=kind)) == expected


def test_the_roofline_is_the_slowest_of_three():
    endless = dataclasses.replace(GATHER, loops=(None,))
    costs = Costs(operations=8_000_000, arguments=3, temporaries=4, moved=15_000, collectives=(GATHER, endless))
    assert costs.memory == 7
    # Three times in a loop, and once for the loop without a known end.
    assert costs.sent == 4 * 600
    limit = roofline(costs, KIND, devices=4)
    assert limit == Roofline(compute=2.0, memory=1.5, links=2.4)
    assert (limit.seconds, limit.bound) == (2.4, "links")


def paper(encode: bool) -> Shapes:
    config = load_config("pretrain")
    config.data.encode_in_step, config.data.crop_seconds = encode, 30.0
    encoder, llm = encoder_sizes(config.mert.path).config, language_model_sizes(config.llm.path).config
    return Shapes.of(config, encoder, llm, seconds=30.0)


@pytest.mark.parametrize("encode", [False, True])
def test_the_formula_and_what_it_leaves_out_make_up_the_step(encode: bool):
    shapes, tokens = paper(encode), 32 * 48
    floor = (2 * 315_428_992 * 32 * 2249 if encode else 0) + 4 * 6_738_423_808 * tokens
    assert formula(shapes) == floor
    traced = trace_train_step(shapes, make_mesh(MeshConfig(), jax.devices()[:1]))
    # Less is counted: embeddings are looked up, and a layer's last product is not needed again.
    assert operations(traced.jaxpr) == pytest.approx(floor + sum(besides(shapes).values()), rel=0.1)


def test_a_compiled_program():
    a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 128), (128, 32)))
    costs = compile_costs(jax.jit(lambda a, b: a @ b).trace(a, b))
    assert costs.operations == 2 * 64 * 128 * 32
    assert costs.arguments == 4 * (64 * 128 + 128 * 32)
    # The result takes no argument's place.
    assert costs.temporaries >= 4 * 64 * 32
    assert costs.collectives == ()


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (18.57G) exceeds "
        "available HBM (15.75G).",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 18.57G of "
        "15.75G hbm. Exceeded hbm capacity by 2.82G.",
    ],
)
def test_a_compiler_that_finds_no_room(message: str):
    found = out_of_memory(message)
    assert found is not None
    assert str(found) == "needs 18.57 of 15.75 GiB"
    assert found.available == KINDS["v5e"].memory


def test_other_failures_stay_what_they_are():
    assert out_of_memory("INTERNAL: (18.57G) exceeds available HBM (15.75G)") is None
    assert out_of_memory("RESOURCE_EXHAUSTED: too many files") is None
