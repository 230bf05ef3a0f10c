"""The devices' mesh, and what lies where on it.

Axes of the mesh: `data` splits the batch; `fsdp` splits the batch and the towers' width; `tensor` splits the towers'
heads, inner width and vocabulary. Adapter, optimiser state and metrics are on every device whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mlingo_jax.errors import UserError
from mlingo_jax.settings import MeshConfig

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))


def mesh_sizes(settings: MeshConfig, devices: int) -> tuple[int, int, int]:
    """The sizes (data, fsdp, tensor) of a mesh of so many devices; data = -1 is all that fsdp and tensor leave.

    Raises:
        UserError: the sizes do not make up the number of devices.
    """
    inner = settings.fsdp * settings.tensor
    data = devices // inner if settings.data == -1 else settings.data
    if data * inner != devices:
        given = "" if settings.data == -1 else f" times data {settings.data}"
        raise UserError(
            f"mesh: fsdp {settings.fsdp} times tensor {settings.tensor}{given} does not make up the number of "
            f"devices, {devices}; change --config.mesh"
        )
    return data, settings.fsdp, settings.tensor


def make_mesh(settings: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over the devices given, or all devices of all processes.

    Raises:
        UserError: see `mesh_sizes`.
    """
    sizes = mesh_sizes(settings, jax.device_count() if devices is None else len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def local_mesh() -> Mesh:
    """A mesh of this process's devices alone, the batch split over all of them."""
    return make_mesh(MeshConfig(), jax.local_devices())


def batch_shards(mesh: Mesh) -> int:
    """How many parts a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def reading_share(mesh: Mesh) -> tuple[int, int]:
    """Which share of each batch this process reads, and into how many it is dealt.

    Processes whose devices hold the same rows, for `tensor` goes across them, read the same share.

    Raises:
        UserError: the processes' devices hold rows that are neither the same nor different ones.
    """
    held: dict[int, set[int]] = {}
    for part, devices in enumerate(mesh.devices.reshape(batch_shards(mesh), -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(part)
    shares = sorted({tuple(sorted(parts)) for parts in held.values()})
    if sum(map(len, shares)) != batch_shards(mesh):
        raise UserError(
            f"mesh: fsdp {mesh.shape['fsdp']} and tensor {mesh.shape['tensor']} cut across the {len(held)} processes' "
            "devices, so that batches cannot be dealt out to them; change --config.mesh"
        )
    return shares.index(tuple(sorted(held[jax.process_index()]))), len(shares)


def check_batch(mesh: Mesh, batch_size: int) -> None:
    """Raises a `UserError` if a batch of this size cannot be split evenly over the mesh."""
    parts = batch_shards(mesh)
    if batch_size % parts:
        raise UserError(
            f"config.batch_size is {batch_size}: must be a multiple of {parts}, for the mesh splits a batch into "
            f"data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']} parts"
        )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree's arrays (equal on all processes) on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch on the mesh, its rows split over `data` and `fsdp`; each process gives its own rows."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, BATCH), dict(batch))
