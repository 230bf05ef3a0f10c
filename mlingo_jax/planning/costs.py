"""What a program costs on each device, of its compiled form; nothing is run."""

import dataclasses
import re

import jax
from jax.sharding import Mesh
from jax.stages import Compiled, Traced

from mlingo_jax.planning.flops import operations
from mlingo_jax.planning.machines import GIB
from mlingo_jax.planning.program import Collective, collectives
from mlingo_jax.planning.shapes import Shapes, trace_encoding, trace_reading, trace_writing
from mlingo_jax.planning.traffic import moved_bytes

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DoesNotFit(Exception):
    """A program needs more memory than the device that it is compiled for has: bytes `needed` of those `available`."""

    def __init__(self, needed: float, available: float):
        super().__init__(f"needs {needed / GIB:.2f} of {available / GIB:.2f} GiB")
        self.needed, self.available = needed, available


def check_fits(needed: float, available: float) -> None:
    """Raises DoesNotFit if so many bytes are not there."""
    if needed > available:
        raise DoesNotFit(needed, available)


@dataclasses.dataclass(frozen=True)
class Costs:
    """One execution of a program; bytes are those of one device.

    Attributes:
        operations: multiplications and additions of all devices together (see `flops`).
        arguments: what it is given: weights, state, batch.
        temporaries: what it needs besides, at most at a time; its own code, and results that take no argument's place.
        moved: read from and written to the device's memory; loops that end by their data count once.
        collectives: what the devices exchange.
    """

    operations: int
    arguments: int
    temporaries: int
    moved: int
    collectives: tuple[Collective, ...]

    @property
    def memory(self) -> int:
        """Bytes needed on a device."""
        return self.arguments + self.temporaries

    @property
    def sent(self) -> float:
        """Bytes that a device sends to others, by the ring algorithms; loops that end by their data count once."""
        return sum(sent_bytes(one) * (one.times or 1) for one in self.collectives)


def sent_bytes(one: Collective) -> float:
    """Bytes that each device of a ring sends for one collective: (n - 1) / n of it, twice that to all-reduce."""
    if one.kind.startswith("collective"):
        return float(one.bytes)
    return one.bytes * (one.devices - 1) / one.devices * (2 if one.kind == "all-reduce" else 1)


def compile_costs(traced: Traced) -> Costs:
    """Compiles a program and reads what it costs; raises as `compile_program`."""
    return costs_of(traced, compile_program(traced))


def answering_costs(shapes: Shapes, mesh: Mesh, rows: int) -> tuple[Costs, Costs]:
    """What answering `rows` questions at once costs: reading them all, and writing a token in each row."""
    reading = trace_reading(shapes, mesh, rows)
    compiled = compile_program(reading)
    return costs_of(reading, compiled), compile_costs(trace_writing(shapes, mesh, reading, compiled))


def encoding_operations(shapes: Shapes, mesh: Mesh) -> int:
    """Multiplications and additions to encode one clip, in pieces where it is long, as the feature cache is filled."""
    traced = trace_encoding(shapes, mesh, mesh.size)
    waveform = traced.args_info[0][1]
    return operations(traced.jaxpr) * shapes.samples // waveform.shape[0] // waveform.shape[1]


def compile_program(traced: Traced) -> Compiled:
    """Compiles a program for the devices of its arguments.

    Raises:
        DoesNotFit: a TPU's compiler found no way to lay it out in the device's memory; a GPU's does not say.
    """
    lowered = traced.lower()
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if found := out_of_memory(str(error)):
            raise found from error
        # On a GPU each matrix product is tried by Triton, fused with what makes its operands, and by cuBLAS, and the
        # quicker is taken. Without one it is Triton's, by a guess at tile sizes that a few shapes do not divide by.
        if "output tile sizes" not in str(error):
            raise
        return lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False})


def costs_of(traced: Traced, compiled: Compiled) -> Costs:
    """What a compiled program costs."""
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Costs(
        operations=operations(traced.jaxpr),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + memory.generated_code_size_in_bytes + results,
        moved=moved_bytes(text),
        collectives=tuple(collectives(text)),
    )


def out_of_memory(message: str) -> DoesNotFit | None:
    """What a TPU compiler's error says of memory, if that is what it is about."""
    sizes = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)", message) or re.search(
        r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", message
    )
    if "RESOURCE_EXHAUSTED" not in message or not sizes:
        return None
    needed, unit, available, other = sizes.groups()
    return DoesNotFit(float(needed) * _UNITS[unit], float(available) * _UNITS[other])
