"""What devices send each other, read from compiled programs: the adapter's gradient, and one layer at a time."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mlingo_jax.planning.devices import cuda_plugin
from mlingo_jax.planning.program import Collective
from tests.mesh_programs import ADAPTER, LAYER, LLAMA_CONFIG, MERT_CONFIG, PLACES, ROWS

STATE = 12  # arrays in a TrainState: step, 2 of the adapter, 2 x 2 moments, 2 counts, 2 of the gradient, weight


@pytest.fixture(scope="module", params=["cpu:8", "v5e:2x4", "h100:8"])
def programs(request: pytest.FixtureRequest) -> dict[str, Any]:
    compilers = {"cpu:8": True, "v5e:2x4": find_spec("libtpu"), "h100:8": cuda_plugin()}
    if not compilers[request.param]:
        pytest.skip(f"the compiler for {request.param} is not installed")
    command = [sys.executable, "-m", "tests.mesh_programs", request.param]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def of(programs: dict[str, Any], mesh: str, program: str) -> list[Collective]:
    found = programs[mesh][program]["collectives"]
    return [Collective(**{**c, "shapes": tuple(c["shapes"]), "loops": tuple(c["loops"])}) for c in found]


def sent(found: list[Collective]) -> int:
    return sum(c.bytes * (c.times or 0) for c in found)


def test_pure_data_parallelism_sends_the_adapters_gradient_alone(programs):
    found = of(programs, "8x1x1", "train")
    assert {(c.kind, c.devices, c.times) for c in found} == {("all-reduce", 8, 1)}
    # And with it two scalars: the loss sum and the number of answer tokens.
    assert sent(found) == 4 * (ADAPTER + 2)


def test_fsdp_gathers_one_layer_at_a_time_and_sends_no_activations(programs):
    item = programs["item"]
    found = of(programs, "1x8x1", "train")
    layers = [c for c in found if c.loops]
    assert {(c.kind, c.devices, c.loops) for c in layers} == {("all-gather", 8, (LLAMA_CONFIG.num_layers,))}
    # Once forward and once backward, one matrix after the other or, on a GPU, those of a layer together.
    assert sent(layers) == 2 * item * LAYER * LLAMA_CONFIG.num_layers
    assert max(c.bytes for c in layers) <= item * LAYER
    # Outside of the layers: the head once, the rows' tokens and their embeddings, the adapter's gradient.
    head = item * LLAMA_CONFIG.vocab_size * LLAMA_CONFIG.embed_dim
    tokens = 4 * ROWS * PLACES
    embeddings = item * PLACES * LLAMA_CONFIG.embed_dim * ROWS // 8
    expected = {"all-gather": head + tokens, "all-reduce": 4 * (ADAPTER + 2), "all-to-all": embeddings}
    rest = [c for c in found if not c.loops]
    assert {kind: sent([c for c in rest if c.kind == kind]) for kind in {c.kind for c in rest}} == expected


def test_on_all_axes_weights_are_gathered_over_fsdp_alone(programs):
    item, half = programs["item"], LAYER // 2
    found = of(programs, "2x2x2", "train")
    gathers = [c for c in found if c.kind == "all-gather" and c.loops]
    assert {c.devices for c in gathers} == {2}
    assert sent(gathers) == 2 * item * half * LLAMA_CONFIG.num_layers
    assert max(c.bytes for c in gathers) <= item * half
    # What heads and inner width share out is summed again: the residual stream of a device's own rows.
    stream = item * ROWS // 4 * PLACES * LLAMA_CONFIG.embed_dim
    sums = [c for c in found if c.loops == (LLAMA_CONFIG.num_layers,) and c.kind == "all-reduce"]
    assert {c.bytes % stream for c in sums} == {0}
    assert {c.devices for c in sums} == {2}


def test_hearing_moves_no_frames_over_data_and_fsdp(programs):
    item = programs["item"]
    assert not of(programs, "8x1x1", "encode")
    layers = [c for c in of(programs, "2x2x2", "encode") if c.loops]
    weights = [c for c in layers if c.kind == "all-gather"]
    kernels = 4 * MERT_CONFIG.embed_dim**2 + 2 * MERT_CONFIG.embed_dim * MERT_CONFIG.mlp_dim
    assert sent(weights) == item * kernels * MERT_CONFIG.num_layers // 2
    assert {(c.kind, c.devices) for c in layers if c.kind != "all-gather"} == {("all-reduce", 2)}


def test_decoding_moves_no_weights(programs):
    found = of(programs, "2x2x2", "decode")
    # The smallest matrix on a device is a head's projection; a step's largest activation the logits.
    matrix = programs["item"] * LLAMA_CONFIG.embed_dim * LLAMA_CONFIG.num_heads * LLAMA_CONFIG.head_dim // 4
    assert max(c.bytes for c in found) < matrix / 4
    assert {c.kind for c in found} <= {"all-reduce", "reduce-scatter", "all-gather", "all-to-all"}
    assert max(c.bytes for c in found if c.kind == "all-gather") <= 4 * ROWS * max(PLACES, LLAMA_CONFIG.embed_dim)


def test_the_state_is_donated_and_the_towers_are_not(programs):
    for mesh in ("8x1x1", "1x8x1", "2x2x2"):
        given = set(programs[mesh]["train"]["donated"])
        # The last one is a number, the answer tokens gathered so far, for which a GPU's program may take new memory.
        assert set(range(STATE - 1)) <= given <= set(range(STATE))
