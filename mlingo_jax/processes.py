"""Several processes, one job: JAX's own runtime joins them; here is how they are found, and what only one of them does.

The environment tells of them, one of:
- by hand: JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID;
- SLURM: a step of several tasks; TPU on GKE: a slice of several hosts; JAX asks them for the rest;
- JAX_NUM_PROCESSES=auto: whatever JAX finds; on TPU VMs, whose metadata it asks.

MLINGO_JOIN_SECONDS (50) is how long a process waits for the others to begin, MLINGO_HEARTBEAT_SECONDS (60) after how
much silence one is taken for dead, which ends the others.
"""

import dataclasses
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mlingo_jax.errors import UserError

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_LEAVE_SECONDS = 5.0
# How the libraries beneath JAX name a broken connection; the errors' types do not tell it from a full memory.
_GONE = re.compile(r"\b(Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED)\b")


@dataclasses.dataclass(frozen=True)
class Job:
    """The processes that the environment tells of.

    process, processes: this one's number and how many there are, "?" if only JAX can tell.
    coordinator: where process 0 is, in words; address: its HOST:PORT, if that is known here.
    arguments: for `jax.distributed.initialize`.
    """

    process: str
    processes: str
    coordinator: str
    address: str | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def initialize() -> None:
    """Joins the other processes of this job, if there are any; comes before the first use of a device.

    If they do not all come in time, ends the process with one line that says so.

    Raises:
        UserError: the environment names a job by halves or with values that cannot be, or JAX cannot join it.
    """
    job = find_job(os.environ)
    if job is None:
        return
    seconds, heartbeat = _seconds("MLINGO_JOIN_SECONDS", 50), _seconds("MLINGO_HEARTBEAT_SECONDS", 60)
    # JAX would keep SIGTERM from ending the process from here on; the training loop listens to it itself.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX's own time-out aborts the process with a stack trace: it is set later than this one.
    timer = threading.Timer(seconds, _give_up, (job, seconds))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **job.arguments,
            initialization_timeout=seconds + 30,
            heartbeat_timeout_seconds=heartbeat,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"process {job.process} of {job.processes}: cannot join the others by {job.coordinator}: {reason}"
        ) from error
    finally:
        timer.cancel()
    _meet()


def _meet() -> None:
    """Opens the connections of computations over all devices while the processes are at the same place.

    Between CPUs they are opened by the first computation of a kind, which gives up on a process that comes 30 s late.
    """
    broadcast(all_gather(None))
    mesh = Mesh(np.array(jax.devices()), "all")
    ones = np.ones(jax.local_device_count(), np.int32)
    total = jax.make_array_from_process_local_data(NamedSharding(mesh, P("all")), ones)
    jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))(total).block_until_ready()


def find_job(environment: Mapping[str, str]) -> Job | None:
    """The job that the environment tells of; None for a process by itself.

    Raises:
        UserError: it is given by halves, or with values that cannot be.
    """
    get = environment.get
    if get(COUNT) != "auto" and (get(ADDRESS) or get(COUNT) or get(NUMBER)):
        return _by_hand(environment)
    if int(get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        where = f"process 0 on the first node of {get('SLURM_STEP_NODELIST')}"
        return Job(get("SLURM_PROCID", "?"), get("SLURM_STEP_NUM_TASKS", "?"), where)
    hosts = (get("TPU_PROCESS_ADDRESSES") or get("TPU_WORKER_HOSTNAMES") or "").split(",")
    slices = int(get("MEGASCALE_NUM_SLICES") or 1)
    if len(hosts) > 1 or slices > 1:
        where = f"process 0 on {get('MEGASCALE_COORDINATOR_ADDRESS') or hosts[0]}"
        return Job(get("TPU_WORKER_ID", "?") if slices == 1 else "?", str(len(hosts) * slices), where)
    if get(COUNT) == "auto":
        return Job("?", "?", "process 0 where JAX finds it")
    return None


def _by_hand(environment: Mapping[str, str]) -> Job | None:
    address, count, number = (environment.get(name, "") for name in (ADDRESS, COUNT, NUMBER))
    values = f"{ADDRESS}={address} {COUNT}={count} {NUMBER}={number}"
    if not address or not count.isdecimal() or not number.isdecimal():
        raise UserError(
            f"{values}: several processes need all three, HOST:PORT of process 0, how many they are, and this one's "
            "number from 0; one process needs none of them"
        )
    if int(number) >= int(count):
        raise UserError(f"{values}: the last process is number {int(count) - 1}")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"{ADDRESS}={address}: expected HOST:PORT, as node0:7777")
    if int(count) == 1:
        return None
    arguments = {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(number),
        "cluster_detection_method": "deactivate",
    }
    return Job(number, count, f"process 0 at {address}", address, arguments)


def is_primary() -> bool:
    """Whether this process is the one that speaks and writes for all, as a process by itself does."""
    return jax.process_index() == 0


def run_on_primary(name: str, make: Callable[[], object]) -> None:
    """The first process makes something on the disk that all share; the others wait until it is there.

    If it fails, its error ends it, and with it all. What takes minutes at the very end of a command needs it too: JAX
    lets no process wait for another one's exit for more than five.
    """
    if is_primary():
        make()
    barrier(name)


def barrier(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_gather(value: Any) -> list[Any]:
    """Each process's JSON value, in the order of the processes, on all of them; all must call it."""
    if jax.process_count() == 1:
        return [value]
    data = _encode(value)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def broadcast(value: Any) -> Any:
    """The first process's JSON value, on all of them; all must call it."""
    if jax.process_count() == 1:
        return value
    data = _encode(value)
    size = multihost_utils.broadcast_one_to_all(np.int32(len(data)))
    padded = np.zeros(size, np.uint8)
    if is_primary():
        padded[:] = data
    return json.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())


class Board:
    """Where processes leave JSON values for one another without waiting: the key-value store of the coordinator.

    Keys are a path of two names; each is put once. JAX has the store, but gives no public way to it; Orbax goes this
    way too.
    """

    def __init__(self):
        from jax._src import distributed

        self._client: Any = distributed.global_state.client

    def put(self, key: str, value: Any) -> None:
        """Leaves a value."""
        self._client.key_value_set(f"mlingo/{key}", json.dumps(value))

    def take(self, key: str) -> Any:
        """Takes a value away, once it is there. If another process has ended, the job's watch ends this one too."""
        while True:
            try:
                value = self._client.blocking_key_value_get(f"mlingo/{key}", 60_000)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            else:
                self._client.key_value_delete(f"mlingo/{key}")
                return json.loads(value)

    def take_all(self, folder: str) -> list[Any]:
        """The values that are there under keys `folder/…`, which are taken away."""
        found = self._client.key_value_dir_get(f"mlingo/{folder}")
        for key, _ in found:
            self._client.key_value_delete(key)
        return [json.loads(value) for _, value in found]

    def next(self, counter: str) -> int:
        """0 for the first process that asks, 1 for the second, and so on."""
        return self._client.key_value_increment(f"mlingo/{counter}", 1) - 1


def peer_failure(error: Exception) -> str | None:
    """One line for an error that shows no more than that another process is gone; None for any other error."""
    if not jax.distributed.is_initialized() or not _GONE.search(str(error)):
        return None
    reason = str(error).partition("\n")[0]
    return (
        f"error: process {jax.process_index()} of {jax.process_count()}: what all processes compute together failed "
        f"({reason}); most likely another one has ended: see its last lines. The same command, given to all again, "
        "resumes from what is saved"
    )


def shutdown(code: int) -> NoReturn:
    """Ends a process that failed, for `run_cli`.

    JAX would have it wait for the others at the exit, while they wait for it in a computation. So it waits for a
    moment only: if all have failed alike they part in peace, else the others see that one is gone, and end.
    """
    if jax.distributed.is_initialized():
        timer = threading.Timer(_LEAVE_SECONDS, os._exit, (code,))
        timer.daemon = True
        timer.start()
        sys.stdout.flush()
        sys.stderr.flush()
        jax.distributed.shutdown()
        os._exit(code)
    sys.exit(code)


def _give_up(job: Job, seconds: int) -> NoReturn:
    """Ends the process, from a thread beside the one that waits: nothing else can end that."""
    who = f"error: process {job.process} of {job.processes}"
    if job.process == "0":
        what = f"not all of the others came within {seconds} s; they look for {job.coordinator}"
    elif job.address and not _answers(job.address):
        what = f"cannot reach the coordinator, {job.coordinator}: nothing has answered there for {seconds} s"
    else:
        what = f"could not begin with {job.coordinator} and all the others within {seconds} s"
    print(
        f"{who}: {what}. Are all processes running, with the same address and number of processes, each with a number "
        "of its own, and is the port open between the machines? MLINGO_JOIN_SECONDS=… waits longer",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except OSError:
        return False
    return True


def _encode(value: Any) -> np.ndarray:
    # ASCII: a file name that is not UTF-8 holds lone surrogates, which become JSON's escapes.
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _seconds(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or not int(text):
        raise UserError(f"{name}={text}: expected a whole number of seconds, at least 1")
    return int(text)
