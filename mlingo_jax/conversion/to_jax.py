"""PyTorch weights to JAX's layout: `python -m conversion.to_jax SRC DST [--base LLAMA_FOLDER]`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from mlingo_jax.cli import Parser, run_cli
from mlingo_jax.conversion.delta import merge
from mlingo_jax.conversion.release import write_files
from mlingo_jax.errors import UserError
from mlingo_jax.processes import initialize, is_primary, run_on_primary
from mlingo_jax.weights import released
from mlingo_jax.weights.adapter import OpenAdapter, open_adapter
from mlingo_jax.weights.checkpoints import write_checkpoint
from mlingo_jax.weights.folders import carry, find, identify, new_target, write_record
from mlingo_jax.weights.towers import KINDS, Merge, OpenTower, open_tower

SHARD_BYTES = 512 * 2**20


def convert(source: Path, target: Path, base: str | Path | None = None) -> None:
    """Writes the folder `target` in JAX's layout; what `source` is, a tower, an adapter or all three, is seen from it.

    Raises:
        UserError: `source` is nothing that can be converted, is broken or does not fit, or `target` exists.
    """
    found = identify(source)
    if found.layout == "jax":
        raise UserError(f"{source}: is in JAX's layout already")
    if base is not None and found.kind not in ("llama", "musilingo"):
        raise UserError(f"{source}: is no language model, so there is nothing to add to --base {base}")
    with new_target(target, folder=True) as folder:
        if found.kind in KINDS:
            _write_tower(open_tower(source, KINDS[found.kind].role, _merging(base)), folder)
        elif found.kind == "adapter":
            _write_adapter(open_adapter(source), folder)
        else:
            _write_musilingo(source, folder, base)


def _merging(base: str | Path | None) -> Merge | None:
    return None if base is None else partial(merge, base=base)


def _write_musilingo(source: Path, folder: Path, base: str | Path | None) -> None:
    opened = [open_tower(source, "encoder"), open_tower(source, "llm", _merging(base))]
    adapter = open_adapter(source)
    for tower in opened:
        _write_tower(tower, folder / released.PARTS[tower.kind.role].folder)
    _write_adapter(adapter, folder / released.PARTS["adapter"].folder)
    carry(source, folder)
    write_record(folder, "musilingo")


def _write_tower(tower: OpenTower, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    write_files(tower, folder)
    write_checkpoint(folder, tower.tensors, shard_bytes=SHARD_BYTES, title=tower.kind.name)
    naming = tower.naming
    write_record(
        folder, tower.kind.name, prefix=naming.prefix, parametrized=naming.parametrized, copies=list(naming.copies)
    )


def _write_adapter(adapter: OpenAdapter, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    write_checkpoint(folder, adapter.tensors, shard_bytes=SHARD_BYTES, title="adapter")
    write_record(folder, "adapter", adapter_config=adapter.config.to_json())


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(prog="python -m conversion.to_jax", description=__doc__)
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a MERT/HuBERT or LLaMA-like folder of Hugging Face's, a Vicuna delta, a released MusiLingo folder, a "
        "MusiLingo .pth, a training run's folder, or a hub id of one of the first four",
    )
    parser.add_argument("target", metavar="DST", type=Path, help="the folder to write; must not exist yet")
    parser.add_argument("--base", metavar="LLAMA_FOLDER", help="under a Vicuna delta: the LLaMA weights to add it to")
    arguments = parser.parse_args(argv)
    initialize()
    run_on_primary("conversion", lambda: convert(find(arguments.source), arguments.target, arguments.base))
    if not is_primary():
        return
    print(f"{arguments.target}: written")
    llm = arguments.target / released.PARTS["llm"].folder
    if llm.is_dir() and not any(llm.glob("tokenizer*")):
        print(
            f"{llm}: MusiLingo was released without a tokenizer; copy the files of its language model's to this folder"
        )


def cli() -> NoReturn:
    """The console command."""
    run_cli(main)


if __name__ == "__main__":
    cli()
