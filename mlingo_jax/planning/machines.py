"""Machines that one might rent: what a device of each kind holds and how fast it is, as its maker publishes it.

Knows nothing of JAX, so that a command can ask before JAX starts.
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping

from mlingo_jax.errors import UserError

MIB, GIB = 2.0**20, 2.0**30
# JAX takes this share of a GPU's memory for its programs, unless told otherwise.
MEMORY_FRACTION = 0.75
# GPUs that NVLink joins; more are several nodes.
NODE = 8


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What a GPU's compiler asks about one, besides what all of them share.

    Attributes:
        capability: CUDA's compute capability.
        multiprocessors: streaming multiprocessors.
        lanes: float32 units of a multiprocessor.
        clock: GHz at most.
        shared: KiB of shared memory of a multiprocessor; a block can have all but one.
        cache: MiB of the second-level cache.
    """

    capability: tuple[int, int]
    multiprocessors: int
    lanes: int
    clock: float
    shared: int
    cache: int


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of device; a TPU's device is a chip.

    Attributes:
        name: what it is called here.
        memory: bytes: a TPU's that programs can have, all of a GPU's.
        flops: multiplications and additions a second of dense bfloat16 matrix products.
        bandwidth: bytes a second between the device and its memory.
        link: bytes a second that it sends to other devices: a TPU's to both neighbours along one axis of the torus, a
            GPU's over NVLink in one direction.
        axes: of the torus; 0 for a GPU.
        cores: TensorCores in a chip, which the clouds' names count ("v5p-8" is four chips); 1 where they count chips.
        gpu: what a GPU is made of.
        product: what JAX calls it.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    axes: int = 0
    cores: int = 1
    gpu: Gpu | None = None
    product: str = ""


# Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} for compute, HBM and interconnect (a chip's published bandwidth
# divided by its links, times the two links of an axis); the TPU compiler for what of the memory it gives to programs.
# NVIDIA's data sheets of A100 (SXM), H100 (SXM) and H200 (SXM): dense rates, half of NVLink's two-way bandwidth; the
# memory is nvidia-smi's total; white papers and the CUDA C++ programming guide (compute capabilities) for the parts.
_A100 = Gpu((8, 0), multiprocessors=108, lanes=64, clock=1.41, shared=164, cache=40)
_H100 = Gpu((9, 0), multiprocessors=132, lanes=128, clock=1.98, shared=228, cache=50)
KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("v4", 30.75 * GIB, flops=275e12, bandwidth=1228e9, link=100e9, axes=3, cores=2, product="TPU v4"),
        Kind("v5e", 15.75 * GIB, flops=197e12, bandwidth=819e9, link=100e9, axes=2, product="TPU v5 lite"),
        Kind("v5p", 95.74 * GIB, flops=459e12, bandwidth=2765e9, link=200e9, axes=3, cores=2, product="TPU v5"),
        Kind("v6e", 31.25 * GIB, flops=918e12, bandwidth=1640e9, link=200e9, axes=2, product="TPU v6 lite"),
        Kind("a100-40", 40960 * MIB, 312e12, bandwidth=1555e9, link=300e9, gpu=_A100, product="NVIDIA A100-SXM4-40GB"),
        Kind("a100-80", 81920 * MIB, 312e12, bandwidth=2039e9, link=300e9, gpu=_A100, product="NVIDIA A100-SXM4-80GB"),
        Kind("h100", 81559 * MIB, 989e12, bandwidth=3350e9, link=450e9, gpu=_H100, product="NVIDIA H100 80GB HBM3"),
        Kind("h200", 143771 * MIB, 989e12, bandwidth=4800e9, link=450e9, gpu=_H100, product="NVIDIA H200"),
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
    def is_gpu(self) -> bool:
        """Whether the devices are GPUs."""
        return self.kind is not None and self.kind.gpu is not None

    @property
    def memory(self) -> float:
        """Bytes that programs can have on a device."""
        if self.kind is None:
            return math.inf
        return self.kind.memory * (memory_fraction() if self.is_gpu else 1)

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
        if kind and (number := math.prod(shape)) > NODE and number % NODE:
            raise UserError(f"--topology={text}: a node holds {NODE} GPUs; expected up to {NODE} or a multiple of it")
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


def memory_fraction() -> float:
    """The share of a GPU's memory that JAX takes, of the environment that a run reads it from.

    Raises:
        UserError: it is no share.
    """
    name = next((n for n in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION") if os.environ.get(n)), "")
    try:
        share = float(os.environ[name]) if name else MEMORY_FRACTION
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UserError(f"{name}={os.environ[name]}: expected a share of a GPU's memory, as in 0.9")
    return share


AS = "v5e:4x4, v5p:2x2x2, v4-8, a100-80:4, h100:1, cpu:8"


def _slice(text: str, kind: Kind, count: int) -> tuple[int, ...]:
    slices = SLICES_2D if kind.axes == 2 else SLICES_3D
    chips, odd = divmod(count, kind.cores)
    if odd or chips not in slices:
        known = ", ".join(f"{kind.name}-{n * kind.cores}" for n in slices)
        raise UserError(f"--topology={text}: no slice of that size is known here; there are {known}; or give its shape")
    return slices[chips]
