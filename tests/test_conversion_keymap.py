"""The engine: any pattern goes both ways without loss, and what does not fit is listed whole."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from mlingo_jax.errors import UserError
from mlingo_jax.models.layers import Projection
from mlingo_jax.weights.keymap import Parameter, Rule, check, entries, parameters, to_flax, to_torch
from mlingo_jax.weights.tensors import DTYPES, Tensor


@dataclasses.dataclass(frozen=True)
class Case:
    """PyTorch's axes in groups of letters, none for an axis of length 1; Flax's axes; their sizes; layers, or None.

    Rule and parameter are made outside of hypothesis's drawing: beartype, which checks them, uses `random`.
    """

    groups: list[str]
    axes: str
    sizes: dict[str, int]
    layers: int | None

    def rule(self) -> Rule:
        left = " ".join(f"({' '.join(group)})" if len(group) > 1 else group or "1" for group in self.groups)
        return Rule("x" if self.layers is None else "layers.{l}.x", "stack.x", f"{left} -> {' '.join(self.axes)}")

    def parameter(self) -> Parameter:
        shape = tuple(self.sizes[a] for a in self.axes)
        if self.layers is None:
            return Parameter(("stack", "x"), self.axes, shape)
        return Parameter(("stack", "x"), f"L{self.axes}", (self.layers, *shape))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = {letter: draw(st.integers(1, 3)) for letter in draw(st.permutations("ABCDE"))[: draw(st.integers(1, 4))]}
    groups: list[str] = []
    for letter in draw(st.permutations(list(sizes))):
        if groups and draw(st.booleans()):
            groups[-1] += letter
        else:
            groups += [""] * draw(st.integers(0, 1)) + [letter]
    axes = "".join(draw(st.permutations(list(sizes))))
    return Case(groups, axes, sizes, draw(st.none() | st.integers(1, 3)))


@given(case=cases(), dtype=st.sampled_from(sorted(DTYPES)), seed=st.integers(0, 2**32 - 1))
def test_every_pattern_goes_both_ways(case: Case, dtype: str, seed: int):
    table = entries([case.rule()], [case.parameter()])
    assert [entry.layer for entry in table] == ([None] if case.layers is None else list(range(case.layers)))
    rng = np.random.default_rng(seed)
    tensors = {entry.torch: _random(rng, entry.torch_shape, DTYPES[dtype]) for entry in table}
    there = to_flax(table, {name: _at_rest(array) for name, array in tensors.items()}, "test")
    back = to_torch(table, there, "test")
    for entry in table:
        array = tensors[entry.torch]
        assert array.shape == tuple(math.prod(case.sizes[a] for a in group) for group in case.groups)
        expected = _by_hand(case, array)
        assert there[entry.flax].shape == expected.shape
        assert there[entry.flax].dtype == DTYPES[dtype]
        np.testing.assert_array_equal(there[entry.flax].read(), expected)
        assert back[entry.torch].read().tobytes() == array.tobytes()


def _by_hand(case: Case, array: np.ndarray) -> np.ndarray:
    letters = "".join(case.groups)
    return array.reshape([case.sizes[a] for a in letters]).transpose([letters.index(a) for a in case.axes])


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return rng.normal(size=shape).astype(dtype)


def _at_rest(array: np.ndarray) -> Tensor:
    return Tensor(array.shape, array.dtype, lambda: array)


class Net(nnx.Module):
    """Two listed maps, three stacked ones."""

    def __init__(self, rngs: nnx.Rngs):
        arguments: dict[str, Any] = {"dtype": jnp.float32, "rngs": rngs}
        self.first = nnx.List([Projection("BD,DF->BF", {"D": 2, "F": 4}, **arguments) for _ in range(2)])
        self.stack = Projection("BD,DNH->BNH", {"D": 2, "N": 3, "H": 5}, bias="NH", layers=3, **arguments)


RULES = (
    Rule("a.{i}.weight", "first.{i}.kernel", "F D -> D F"),
    Rule("b.{l}.weight", "stack.kernel", "(N H) D -> D N H"),
    Rule("b.{l}.bias", "stack.bias", "(N H) -> N H"),
    Rule("c.weight", "not.here", "D -> D"),
)


def net() -> list[Parameter]:
    return parameters(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))


def test_a_table_lists_every_tensor_of_both_sides():
    shapes = {(entry.torch, entry.torch_shape, entry.flax, entry.flax_shape) for entry in entries(RULES, net())}
    assert shapes == {
        *((f"a.{i}.weight", (4, 2), f"first.{i}.kernel", (2, 4)) for i in range(2)),
        *((f"b.{i}.weight", (15, 2), f"stack.{i}.kernel", (2, 3, 5)) for i in range(3)),
        *((f"b.{i}.bias", (15,), f"stack.{i}.bias", (3, 5)) for i in range(3)),
    }


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (RULES[1:], r"first.0.kernel: 0 rules"),
        ((*RULES, Rule("d.{l}", "stack.bias", "(N H) -> N H")), r"stack.bias: 2 rules"),
        ((RULES[0], RULES[1], Rule("b.bias", "stack.bias", "(N H) -> N H")), "axes are LNH"),
        ((RULES[0], RULES[1], Rule("b.{l}.bias", "stack.bias", "(N H) -> H N")), "axes are LNH"),
    ],
    ids=["no rule", "two rules", "no slot for the layer", "another order"],
)
def test_a_wrong_table_is_found(rules: tuple[Rule, ...], message: str):
    with pytest.raises(ValueError, match=message):
        entries(rules, net())


def test_all_that_does_not_fit_is_listed():
    found = {
        name: _at_rest(np.zeros(shape)) for name, shape in {"a": (2,), "b": (3, 1), "more": (1,), "mine": ()}.items()
    }
    with pytest.raises(UserError) as caught:
        check({"a": (2,), "b": (1, 3), "c": (4,), "d": (5, 6)}, found, "some/folder")
    assert str(caught.value).splitlines() == [
        "some/folder: 5 tensors not as config.json has them",
        "  missing: c [4]",
        "  missing: d [5, 6]",
        "  left over: more [1]",
        "  left over: mine []",
        "  wrong shape: b is [3, 1], expected [1, 3]",
    ]


def test_what_is_wrong_in_like_layers_is_one_line():
    """A config.json of another size would give hundreds."""
    expected = {f"layers.{n}.up.weight": (4, 8) for n in range(32)} | {"head": (8,)}
    found = {name: _at_rest(np.zeros((8, 4) if shape == (4, 8) else shape)) for name, shape in expected.items()}
    found |= {f"layers.{n}.bias": _at_rest(np.zeros(3)) for n in range(2)}
    with pytest.raises(UserError) as caught:
        check(expected, found, "some/folder")
    assert str(caught.value).splitlines() == [
        "some/folder: 34 tensors not as config.json has them",
        "  left over: layers.*.bias [3] (2 of them)",
        "  wrong shape: layers.*.up.weight is [8, 4], expected [4, 8] (32 of them)",
    ]
