"""How parameters lie on a mesh: by their letters, evenly, or with an error that names the number."""

import math

import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mlingo_jax.errors import UserError
from mlingo_jax.models.llama import Llama
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.mert import Mert, MertConfig
from mlingo_jax.models.partition import PARAM_RULES, ROLES, check_divides, partition
from mlingo_jax.models.quantization import Quantization
from mlingo_jax.weights.keymap import parameters
from mlingo_jax.weights.released import MERT_330M
from tests.tiny import LLAMA

VICUNA = LLAMA | {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}


def mesh_of(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"))


def llama(quantization: Quantization = "none", /, **changes: int) -> nnx.Module:
    config = LlamaConfig.from_json(VICUNA | changes, "llama")
    return nnx.eval_shape(lambda: Llama(config, dtype=jnp.bfloat16, quantization=quantization, rngs=nnx.Rngs(0)))


def mert() -> nnx.Module:
    config = MertConfig.from_json(MERT_330M, "mert")
    return nnx.eval_shape(lambda: Mert(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("axes", "spec"),
    [
        ("VD", P("tensor", "fsdp")),
        ("LDNH", P(None, "fsdp", "tensor", None)),
        ("LNF", P(None, "tensor", None)),
        ("TIO", P(None, None, ("fsdp", "tensor"))),
        ("LD", P(None, None)),
        ("LNH", P(None, "tensor", None)),
        ("", P()),
    ],
)
def test_letters_say_how_a_parameter_lies(axes: str, spec: P):
    assert partition(axes, mesh_of(1, 2, 4)) == spec
    assert partition(axes, AbstractMesh((8,), ("data",))) == P(*[None] * len(axes))


def test_every_split_letter_has_a_name():
    assert PARAM_RULES.keys() == ROLES.keys()


@pytest.mark.parametrize("sizes", [(8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8), (1, 4, 8)])
@pytest.mark.parametrize("make", [llama, mert])
def test_a_device_holds_its_share_of_a_tower(make, sizes: tuple[int, int, int]):
    """At the sizes of Vicuna 7B and MERT-v1-330M."""
    mesh = mesh_of(*sizes)
    total = own = 0
    for parameter in parameters(make()):
        sharding = NamedSharding(mesh, partition(parameter.axes, mesh))
        total += math.prod(parameter.shape)
        own += math.prod(sharding.shard_shape(parameter.shape))
    assert own == pytest.approx(total / (mesh.shape["fsdp"] * mesh.shape["tensor"]), rel=0.05)


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        ({"vocab_size": 32_001}, (1, 1, 2), "a vocabulary of 32001 tokens over tensor 2"),
        ({"num_attention_heads": 12, "head_dim": 128, "num_key_value_heads": 4}, (1, 1, 8), "12 heads"),
        ({"num_key_value_heads": 4}, (2, 2, 8), "4 key/value heads over tensor 8"),
        ({"intermediate_size": 11_007}, (1, 1, 4), "an inner width of 11007 over tensor 4"),
        ({"hidden_size": 4128, "head_dim": 128}, (1, 64, 1), "a width of 4128 over fsdp 64"),
    ],
)
def test_a_size_that_does_not_divide_is_named(changes: dict[str, int], sizes: tuple[int, int, int], message: str):
    with pytest.raises(UserError, match=f"my llm: .*{message}"):
        check_divides(llama(**changes), "my llm", mesh_of(*sizes))


def test_groups_that_do_not_divide_are_named_as_such():
    """A width of 896 is 28 groups of 32."""
    small = {"hidden_size": 896, "num_attention_heads": 8, "num_key_value_heads": 8}
    check_divides(llama(**small), "my llm", mesh_of(1, 8, 1))
    check_divides(llama("int8", **small), "my llm", mesh_of(1, 8, 1))
    with pytest.raises(UserError) as refused:
        check_divides(llama("int4", **small), "my llm", mesh_of(1, 8, 1))
    names = ("gate", "key", "query", "up", "value")
    listed = ", ".join(f"28 groups of the {name} kernel along a width of 896 over fsdp 8" for name in names)
    assert str(refused.value) == f"my llm: cannot be split evenly: {listed}; choose another mesh"


def test_a_vocabulary_that_tensor_cannot_split_is_no_hindrance_to_fsdp():
    vicuna_v0 = llama(vocab_size=32_001)
    check_divides(vicuna_v0, "my llm", mesh_of(1, 8, 1))
    with pytest.raises(UserError, match=r"choose another mesh \(fsdp in place of tensor splits widths alone\)"):
        check_divides(vicuna_v0, "my llm", mesh_of(1, 1, 8))
