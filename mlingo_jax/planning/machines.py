"""Machines that one might rent: what a device of each kind holds and how fast it is, as its maker publishes it.

Knows nothing of JAX, so that a door can ask before JAX starts.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

from mlingo_jax.errors import UserError

GB, GIB = 1e9, 2.0**30


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of device; a TPU's device is a chip.

    Attributes:
        name: what it is called here.
        memory: bytes that programs can have, of the memory that it is sold with.
        flops: multiplications and additions a second of dense bfloat16 matrix products.
        bandwidth: bytes a second between the device and its memory.
        link: bytes a second that it sends to other devices: a TPU's to both neighbours along one axis of the torus, a
            GPU's over NVLink in one direction.
        axes: of the torus; 0 for a GPU.
        cores: TensorCores in a chip, which the clouds' names count ("v5p-8" is four chips); 1 where they count chips.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    axes: int = 0
    cores: int = 1


# Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} for compute, HBM and interconnect (a chip's published bandwidth
# divided by its links, times the two links of an axis); the TPU compiler for what of the memory it gives to programs.
# NVIDIA's data sheets of A100 (SXM), H100 (SXM) and H200 (SXM): dense rates, half of NVLink's two-way bandwidth.
KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("v4", memory=30.75 * GIB, flops=275e12, bandwidth=1228e9, link=100e9, axes=3, cores=2),
        Kind("v5e", memory=15.75 * GIB, flops=197e12, bandwidth=819e9, link=100e9, axes=2),
        Kind("v5p", memory=95.74 * GIB, flops=459e12, bandwidth=2765e9, link=200e9, axes=3, cores=2),
        Kind("v6e", memory=31.25 * GIB, flops=918e12, bandwidth=1640e9, link=200e9, axes=2),
        Kind("a100-40", memory=40 * GIB, flops=312e12, bandwidth=1555e9, link=300e9),
        Kind("a100-80", memory=80 * GIB, flops=312e12, bandwidth=2039e9, link=300e9),
        Kind("h100", memory=80 * GB, flops=989e12, bandwidth=3350e9, link=450e9),
        Kind("h200", memory=141 * GB, flops=989e12, bandwidth=4800e9, link=450e9),
    )
}
# The slices that the clouds name by a number alone, and how their chips lie.
SLICES_2D = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
SLICES_3D = {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4)}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices of one kind that are wired together; `kind` is None for this machine's own processor, cut into devices.

    shape: how a TPU's chips lie, e.g. (4, 4); for others their number.
    """

    kind: Kind | None
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        """Number of devices."""
        return math.prod(self.shape)

    @property
    def is_tpu(self) -> bool:
        """Whether the devices are a TPU's."""
        return self.kind is not None and self.kind.axes > 0

    @property
    def name(self) -> str:
        """As `parse` reads it."""
        return f"{self.kind.name if self.kind else 'cpu'}:{'x'.join(map(str, self.shape))}"


def parse(text: str) -> Machine:
    """A machine by its name: a TPU slice by its shape ("v5e:4x4", "v5p:2x2x2") or as the clouds call it ("v5e-16").

    A number of other devices: "a100-80:4", "h100:1", "cpu:8".

    Raises:
        UserError: there is no such machine.
    """
    match = re.fullmatch(r"(.+?)(?::(\d+(?:x\d+)*)|-(\d+))?", text.strip().lower())
    name, sizes, count = match.groups() if match else ("", None, None)
    whole = f"{name}-{count}"
    if whole in KINDS:
        name, sizes, count = whole, "1", None
    kind = KINDS.get(name)
    if kind is None and name != "cpu":
        raise UserError(
            f"--topology={text}: no such kind of device; there are {', '.join([*KINDS, 'cpu'])}, as in {AS}"
        )
    if kind is None or not kind.axes:
        shape = tuple(map(int, (sizes or count or "1").split("x")))
        if len(shape) > 1 or 0 in shape:
            raise UserError(f"--topology={text}: expected a number of devices, as in {name}:4")
        return Machine(kind, shape)
    if count is not None:
        return Machine(kind, _slice(text, kind, int(count)))
    shape = tuple(map(int, (sizes or "1").split("x")))
    if shape == (1,):
        shape = (1,) * kind.axes
    if len(shape) != kind.axes or 0 in shape:
        example = "x".join(map(str, (SLICES_2D if kind.axes == 2 else SLICES_3D)[8]))
        raise UserError(f"--topology={text}: a slice of {kind.name} has {kind.axes} axes, as in {name}:{example}")
    return Machine(kind, shape)


AS = "v5e:4x4, v5p:2x2x2, v4-8, a100-80:4, h100:1, cpu:8"


def _slice(text: str, kind: Kind, count: int) -> tuple[int, ...]:
    slices = SLICES_2D if kind.axes == 2 else SLICES_3D
    chips, odd = divmod(count, kind.cores)
    if odd or chips not in slices:
        known = ", ".join(f"{kind.name}-{n * kind.cores}" for n in slices)
        raise UserError(f"--topology={text}: no slice of that size is known here; there are {known}; or give its shape")
    return slices[chips]
