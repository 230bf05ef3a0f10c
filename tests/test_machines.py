"""Machines by their names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlingo_jax.errors import UserError
from mlingo_jax.planning.machines import GIB, KINDS, SLICES_2D, SLICES_3D, memory_fraction, parse


@pytest.mark.parametrize(
    ("text", "name", "devices"),
    [
        ("v5e:4x4", "v5e:4x4", 16),
        ("v5e-16", "v5e:4x4", 16),
        ("v5e", "v5e:1x1", 1),
        ("v5p:2x2x2", "v5p:2x2x2", 8),
        # The clouds count a v4's and a v5p's cores, two in a chip.
        ("v5p-8", "v5p:2x2x1", 4),
        ("V4-8", "v4:2x2x1", 4),
        ("v6e-8", "v6e:2x4", 8),
        ("a100-80:4", "a100-80:4", 4),
        ("a100-40", "a100-40:1", 1),
        ("h100:1", "h100:1", 1),
        ("h200", "h200:1", 1),
        ("cpu:8", "cpu:8", 8),
    ],
)
def test_names(text: str, name: str, devices: int):
    machine = parse(text)
    assert (machine.name, machine.devices) == (name, devices)
    assert parse(machine.name) == machine
    assert machine.is_tpu == text.lower().startswith("v")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v9:2x2", "no such kind of device; there are v4, v5e"),
        ("", "no such kind"),
        ("v5e:2x2x2", "a slice of v5e has 2 axes, as in v5e:2x4"),
        ("v5p:4x4", "a slice of v5p has 3 axes, as in v5p:2x2x2"),
        ("v5e:0x4", "a slice of v5e has 2 axes"),
        ("v5p-7", "no slice of that size is known here; there are v5p-2, v5p-8"),
        ("h100:2x2", "expected a number of devices, as in h100:4"),
        ("h100:12", "a node holds 8 GPUs; expected up to 8 or a multiple of it"),
        ("cpu:0", "expected a number of devices"),
    ],
)
def test_mistakes(text: str, expected: str):
    with pytest.raises(UserError, match=expected):
        parse(text)


@given(st.text(alphabet="v5epacu10x:-", max_size=12))
def test_any_text_is_a_machine_or_an_error_in_a_line(text: str):
    try:
        devices = parse(text).devices
    except UserError:
        return
    assert devices >= 1


def test_slices_have_as_many_chips_as_their_names_say():
    for slices in (SLICES_2D, SLICES_3D):
        for chips, shape in slices.items():
            product = 1
            for size in shape:
                product *= size
            assert product == chips


def test_rates_are_those_of_devices():
    for kind in KINDS.values():
        assert 10e9 < kind.memory < 200e9 < kind.flops < 2e15
        assert kind.link < kind.bandwidth < kind.flops


@pytest.mark.parametrize(
    ("environment", "share"),
    [({}, 0.75), ({"XLA_CLIENT_MEM_FRACTION": "0.9"}, 0.9), ({"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"}, 0.5)],
)
def test_programs_have_the_share_of_a_gpu_that_jax_takes(monkeypatch, environment: dict[str, str], share: float):
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert parse("a100-40:1").memory == share * 40 * GIB
    assert parse("v5e").memory == 15.75 * GIB
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "lots")
    with pytest.raises(UserError, match="XLA_CLIENT_MEM_FRACTION=lots: expected a share"):
        memory_fraction()
