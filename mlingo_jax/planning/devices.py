"""Devices of a machine that one has not got, to compile for: by its own compiler, or as many processors.

Neither a TPU's nor a GPU's compiler needs the device. `prepare` has to be called before JAX starts.
"""

import importlib.util
import os
from importlib import metadata
from typing import Any

import jax
from jax.experimental import topologies

from mlingo_jax.errors import UserError
from mlingo_jax.planning.machines import NODE, Kind, Machine

# By the plugin's CUDA: where cuDNN's and the runtime's versions are read.
PLUGINS = {
    "jax_cuda13_plugin": ("nvidia-cudnn-cu13", "nvidia-cuda-runtime"),
    "jax_cuda12_plugin": ("nvidia-cudnn-cu12", "nvidia-cuda-runtime-cu12"),
}


def cuda_plugin() -> str | None:
    """JAX's plugin for CUDA, if one is installed: the GPU's compiler."""
    return next((name for name in PLUGINS if importlib.util.find_spec(name)), None)


def compile_target(machine: Machine) -> Machine:
    """What programs are compiled for: the machine itself, or processors for GPUs whose compiler is not installed.

    Raises:
        UserError: a TPU without its compiler, or a GPU's is of another version than JAX.
    """
    if machine.is_tpu and importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={machine.name}: the TPU's compiler is not installed; pip install 'mlingo_jax[tpu]' (it needs "
            f"no TPU), or estimate with --topology=cpu:{machine.devices}"
        )
    if not machine.is_gpu:
        return machine
    if (plugin := cuda_plugin()) is None:
        return Machine(None, (machine.devices,))
    if (found := metadata.version(plugin)) != (expected := metadata.version("jaxlib")):
        raise UserError(
            f"--topology={machine.name}: the GPU's compiler is {plugin} {found}, and jaxlib is {expected}; "
            f"pip install -U 'mlingo_jax[cuda]', or estimate with --topology=cpu:{machine.devices}"
        )
    return machine


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
        CUDA_VISIBLE_DEVICES="",
    )
    jax.config.update("jax_platforms", "cpu")
    if target.kind is None:
        jax.config.update("jax_num_cpu_devices", target.devices)


def devices(target: Machine) -> list[Any]:
    """The devices to compile for.

    Raises:
        UserError: the TPU's compiler knows no such slice, or the GPU's does not work here.
    """
    if target.kind is None:
        return jax.devices("cpu")[: target.devices]
    platform, name, options = ("cuda", "", _gpus(target)) if target.is_gpu else ("tpu", target.name, _tpus(target))
    try:
        return list(topologies.get_topology_desc(name, platform, **options).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"--topology={target.name}: the {platform.upper()} compiler refuses it ({reason})") from error


def _tpus(target: Machine) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if target.devices < 4:
        # Less than a host has.
        options["chips_per_host_bounds"] = [*target.shape, 1][:3]
    if target.kind is not None and target.kind.name == "v4":
        # A chip's two cores as one device, as JAX has them on a real one.
        options["chip_config_name"] = "megacore"
    return options


def _gpus(target: Machine) -> dict[str, str]:
    assert target.kind is not None
    node = min(target.devices, NODE)
    # Slices, the nodes of one, the devices of a node.
    return {"topology": f"1x{target.devices // node}x{node}", "target_config": target_config(target.kind)}


def target_config(kind: Kind) -> str:
    """What a GPU's compiler has to be told of a device that is not there: XLA's GpuTargetConfigProto, as text.

    Raises:
        UserError: CUDA's libraries are not installed as Python packages.
    """
    gpu, plugin = kind.gpu, cuda_plugin()
    assert gpu is not None
    assert plugin is not None
    cudnn, runtime = map(_version, PLUGINS[plugin])
    return f"""
        platform_name: "CUDA"
        device_description_str: "{kind.product}"
        dnn_version_info {{ {cudnn} }}
        runtime_version {{ {runtime} }}
        gpu_device_info {{
          cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
          core_count: {gpu.multiprocessors}
          fpus_per_core: {gpu.lanes}
          clock_rate_ghz: {gpu.clock}
          device_memory_size: {int(kind.memory)}
          memory_bandwidth: {int(kind.bandwidth)}
          l2_cache_size: {gpu.cache << 20}
          shared_memory_per_core: {gpu.shared << 10}
          shared_memory_per_block: 49152
          shared_memory_per_block_optin: {gpu.shared - 1 << 10}
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          threads_per_core_limit: 2048
          threads_per_block_limit: 1024
          threads_per_warp: 32
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
        }}"""


def _version(package: str) -> str:
    try:
        major, minor, patch = metadata.version(package).split(".")[:3]
    except metadata.PackageNotFoundError as error:
        raise UserError(f"the GPU's compiler needs {package}; pip install 'mlingo_jax[cuda]'") from error
    return f"major: {major} minor: {minor} patch: {patch}"
