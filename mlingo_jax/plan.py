"""What a run will need on a machine that one has not got, from shapes alone: no weights, no data, no accelerator.

    python -m mlingo_jax.plan --config=pretrain --topology=v5e:4x4 [--search] [--config.FIELD=VALUE ...]

Compiles the run's real train step for the machine, and prints memory, operations, bytes moved, collectives, the least
time of a step, and the hours of the whole run.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

from mlingo_jax.cli import Parser, run_cli
from mlingo_jax.errors import UserError
from mlingo_jax.flags import read_config
from mlingo_jax.planning import machines


def parser() -> argparse.ArgumentParser:
    """The command line, but for --config, which is read as train reads it."""
    made = Parser(
        prog="python -m mlingo_jax.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--topology", required=True, help=f"the machine: {machines.AS}; kinds: {', '.join(machines.KINDS)}"
    )
    made.add_argument("--search", action="store_true", help="try the meshes of the machine's devices, best first")
    made.add_argument("--most", type=int, default=6, help="with --search: meshes compiled at most (default 6)")
    made.add_argument("--seconds", type=float, default=30.0, help="of audio in a clip, cached (default 30)")
    made.add_argument("--clips", type=int, default=0, help="clips of the dataset, for what encoding them once takes")
    made.add_argument("--rows", type=int, default=0, help="also plan answering so many questions at once")
    made.add_argument("--config", metavar="NAME", help="as of python -m mlingo_jax.train; and --config.FIELD=VALUE")
    return made


def main() -> None:
    """The command."""
    argv = sys.argv[1:]
    flags, rest = parser().parse_known_args(argv)
    config = read_config([*([f"--config={flags.config}"] if flags.config else []), *rest])
    machine = machines.parse(flags.topology)
    # Imported late: --help and mistakes on the command line need none of the numerical libraries.
    from mlingo_jax.planning import report
    from mlingo_jax.planning.costs import answering_costs, check_fits, compile_costs, encoding_operations
    from mlingo_jax.planning.devices import compile_target, devices, prepare
    from mlingo_jax.planning.published import encoder_sizes, language_model_sizes
    from mlingo_jax.planning.search import search
    from mlingo_jax.planning.shapes import Shapes, trace_train_step, weight_bytes
    from mlingo_jax.training.sharding import check_batch, make_mesh

    encoder, llm = encoder_sizes(config.mert.path), language_model_sizes(config.llm.path)
    shapes = Shapes.of(config, encoder.config, llm.config, flags.seconds)
    target = compile_target(machine)
    say(report.describe_machine(machine, target))
    prepare(target)
    found = devices(target)
    say(report.describe_run(shapes, (encoder.source, llm.source)))
    start = time.monotonic()
    if flags.search:
        candidates = []
        for one in search(
            shapes, found, machine.memory, lambda m: compile_costs(trace_train_step(shapes, m)), flags.most
        ):
            candidates.append(one)
            print(f"{time.monotonic() - start:5.0f} s: tried {' x '.join(map(str, one.sizes))}", file=sys.stderr)
        say(report.describe_search(candidates, machine))
        return
    mesh = make_mesh(config.mesh, found)
    check_batch(mesh, shapes.batch_size)
    say([f"mesh         data {mesh.shape['data']}, fsdp {mesh.shape['fsdp']}, tensor {mesh.shape['tensor']}"])
    with must_fit("the train step", machine, "a smaller --config.batch_size"):
        check_fits(weight_bytes(shapes, mesh), machine.memory)
        costs = compile_costs(trace_train_step(shapes, mesh))
        say([f"compiled     in {time.monotonic() - start:.0f} s for {target.name}"])
        check_fits(costs.memory, machine.memory)
    say(report.describe_step(shapes, costs, machine))
    if not shapes.spec.online:
        say(report.describe_encoding(encoding_operations(shapes, mesh), flags.clips, machine))
    if flags.rows:
        with must_fit(f"answering {flags.rows} questions at once", machine, "fewer --rows"):
            reading, writing = answering_costs(shapes, mesh, flags.rows)
            check_fits(max(reading.memory, writing.memory), machine.memory)
        say(report.describe_answering(shapes.answer, reading, writing, flags.rows, machine))


@contextlib.contextmanager
def must_fit(what: str, machine: machines.Machine, advice: str) -> Iterator[None]:
    """Says in a line what does not fit, and what may help."""
    from mlingo_jax.planning.costs import DoesNotFit

    try:
        yield
    except DoesNotFit as error:
        raise UserError(
            f"does not fit: {what} {error} on each device of {machine.name}; try --search, more of "
            f"--config.mesh.fsdp, --config.llm.quantization=int8, or {advice}"
        ) from error


def say(lines: list[str]) -> None:
    """Prints at once: compiling takes its time."""
    print(*lines, sep="\n", flush=True)


def cli() -> NoReturn:
    """The console command."""
    run_cli(main)


if __name__ == "__main__":
    cli()
