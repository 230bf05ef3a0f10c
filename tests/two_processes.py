"""Two processes of one job on this machine."""

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start_two(
    command: Sequence[str | Path], environment: Mapping[str, str] = os.environ
) -> list[subprocess.Popen[str]]:
    """The same command twice, process 0 and 1 of a job on CPUs; what they say goes to pipes."""
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    job = {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, **job, "JAX_PROCESS_ID": number},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in ("0", "1")
    ]


def run_two(command: Sequence[str | Path], environment: Mapping[str, str] = os.environ) -> list[tuple[str, str]]:
    """What each of two processes writes to stdout and stderr until it ends; both end well."""
    processes = start_two(command, environment)
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return said
