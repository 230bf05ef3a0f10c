"""Devices of a machine that one has not got, to compile for: a TPU's from its compiler, others as processors.

`prepare` has to be called before JAX starts.
"""

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from mlingo_jax.errors import UserError
from mlingo_jax.planning.machines import KINDS, Machine

# What stands in for a GPU: the TPU with the most memory, by chips; it computes in the same precision.
STAND_IN = KINDS["v5p"]
STAND_IN_SHAPES = {1: (1, 1, 1), 2: (2, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4)}


def has_tpu_compiler() -> bool:
    """Whether the TPU's compiler is installed (it needs no TPU)."""
    return importlib.util.find_spec("libtpu") is not None


def compile_target(machine: Machine) -> Machine:
    """What programs are compiled for: the machine itself, or what stands in for one that has no compiler here.

    Raises:
        UserError: a TPU without its compiler.
    """
    if machine.is_tpu and not has_tpu_compiler():
        raise UserError(
            f"--topology={machine.name}: the TPU's compiler is not installed; pip install 'mlingo_jax[tpu]' (it needs "
            f"no TPU), or estimate with --topology=cpu:{machine.devices}"
        )
    if machine.kind is None or machine.is_tpu:
        return machine
    if has_tpu_compiler() and machine.devices in STAND_IN_SHAPES:
        return Machine(STAND_IN, STAND_IN_SHAPES[machine.devices])
    return Machine(None, (machine.devices,))


def prepare(target: Machine) -> None:
    """Sets this process up to compile for a machine, and to touch no accelerator. Before JAX makes its devices."""
    # A TPU's compiler asks the cloud what it runs on, and waits; these answers keep it from asking.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_WORKER_ID="0",
        # Several plans may be made at once: none of them opens a TPU.
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    jax.config.update("jax_platforms", "cpu")
    if not target.is_tpu:
        jax.config.update("jax_num_cpu_devices", target.devices)


def devices(target: Machine) -> list[Any]:
    """The devices to compile for.

    Raises:
        UserError: the TPU's compiler knows no such slice.
    """
    if not target.is_tpu:
        return jax.devices("cpu")[: target.devices]
    assert target.kind is not None
    options: dict[str, Any] = {}
    if target.devices < 4:
        # Less than a host has.
        options["chips_per_host_bounds"] = [*target.shape, 1][:3]
    if target.kind.name == "v4":
        # A chip's two cores as one device, as JAX has them on a real one.
        options["chip_config_name"] = "megacore"
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=target.name, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology={target.name}: the TPU's compiler refuses it ({error})") from error
