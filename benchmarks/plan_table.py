"""The plan of the paper's pre-training (MERT-330M, Vicuna 7B, 32 clips of 30 s a step) on machines that one can rent.

    python -m benchmarks.plan_table --costs=plan.jsonl

Compiles each distinct program once, minutes apiece, and keeps its costs in the file, so that the command resumes where
it was stopped; prints the table of docs/planning.md. Needs both compilers (pip install 'mlingo_jax[cuda,tpu]'), and
neither devices nor weights.
"""

import argparse
import dataclasses
import datetime
import json
import sys
import time
from importlib import metadata
from pathlib import Path

from mlingo_jax.errors import UserError
from mlingo_jax.planning.costs import Costs, DoesNotFit, compile_costs
from mlingo_jax.planning.devices import compile_target, cuda_plugin, devices, prepare
from mlingo_jax.planning.machines import GIB, Machine, parse
from mlingo_jax.planning.program import Collective
from mlingo_jax.planning.published import encoder_sizes, language_model_sizes
from mlingo_jax.planning.roofline import roofline
from mlingo_jax.planning.shapes import Shapes, trace_train_step
from mlingo_jax.recipes import load_config
from mlingo_jax.settings import Config, MeshConfig
from mlingo_jax.training.sharding import make_mesh

MACHINES = ("a100-80:1", "h100:1", "h200:1", "v5p-8", "a100-80:4", "v4-8", "v6e-8", "v5e-8", "v5e-16")
# Devices that share the weights, where whole ones leave too little room; else all go along the batch: that sends least.
FSDP = {("v5e-8", "none", True): 2, ("v5e-16", "none", True): 2}
HEAD = """\
| machine | mesh | weights | features | memory of a device, GiB | step at least | bound by | the run | device-hours |
|---|---|---|---|---|---|---|---|---|"""


def settings(quantization: str, encode: bool) -> Config:
    """The paper's pre-training."""
    config = load_config("pretrain")
    config.llm.quantization, config.data.encode_in_step, config.data.crop_seconds = quantization, encode, 30.0
    return config


def compile_step(machine: Machine, sizes: tuple[int, int, int], config: Config) -> Costs | None:
    """What the train step costs; None if the compiler finds no room for it."""
    if compile_target(machine) != machine:
        raise UserError(f"{machine.name}: its compiler is not installed; pip install 'mlingo_jax[cuda,tpu]'")
    prepare(machine)
    encoder, llm = encoder_sizes(config.mert.path).config, language_model_sizes(config.llm.path).config
    mesh = make_mesh(MeshConfig(*sizes), devices(machine))
    try:
        return compile_costs(trace_train_step(Shapes.of(config, encoder, llm, seconds=30.0), mesh))
    except DoesNotFit:
        return None


def row(machine: Machine, sizes: tuple[int, int, int], config: Config, costs: Costs | None) -> str:
    """A line of the table."""
    kept = "bfloat16" if config.llm.quantization == "none" else config.llm.quantization
    encoded = "encoded in the step" if config.data.encode_in_step else "cached"
    assert machine.kind
    have = machine.memory
    head = f"| {machine.name} | {' x '.join(map(str, sizes))} | {kept} | {encoded} |"
    if costs is None or costs.memory > have:
        size = "more" if costs is None else f"{costs.memory / GIB:.1f}"
        return f"{head} {size} of {have / GIB:.1f} | does not fit | | | |"
    limit = roofline(costs, machine.kind, machine.devices)
    hours = config.steps * limit.seconds / 3600
    return (
        f"{head} {costs.memory / GIB:.1f} of {have / GIB:.1f} | {1e3 * limit.seconds:.0f} ms | {limit.bound} "
        f"| {hours:.1f} h | {hours * machine.devices:.1f} |"
    )


def read_costs(file: Path) -> dict[str, Costs | None]:
    """What earlier calls compiled, by program."""
    known: dict[str, Costs | None] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        record = json.loads(line)
        costs = record["costs"]
        if costs:
            fields = [{**c, "shapes": tuple(c["shapes"]), "loops": tuple(c["loops"])} for c in costs["collectives"]]
            costs = Costs(**{**costs, "collectives": tuple(Collective(**c) for c in fields)})
        known[record["program"]] = costs
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--costs", type=Path, required=True, help="jsonl of what has been compiled")
    flags = parser.parse_args()
    known = read_costs(flags.costs)
    rows = []
    for encode in (False, True):
        for quantization in ("none", "int8"):
            config = settings(quantization, encode)
            for name in MACHINES:
                machine = parse(name)
                fsdp = FSDP.get((name, quantization, encode), 1)
                sizes = (machine.devices // fsdp, fsdp, 1)
                program = f"{machine.name} {sizes} {quantization} {'encoded' if encode else 'cached'}"
                if program not in known:
                    start = time.monotonic()
                    costs = known[program] = compile_step(machine, sizes, config)
                    with flags.costs.open("a") as file:
                        record = {"program": program, "costs": dataclasses.asdict(costs) if costs else None}
                        file.write(json.dumps(record) + "\n")
                    print(f"{program}: compiled in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
                rows.append(row(machine, sizes, config, known[program]))
    packages = ("jax", "libtpu", cuda_plugin() or "")
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in packages)
    print(f"{datetime.date.today()}, {versions}\n\n{HEAD}", *rows, sep="\n")


if __name__ == "__main__":
    main()
