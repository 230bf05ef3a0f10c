"""JAX's layout to what the PyTorch world loads: `python -m conversion.to_pytorch SRC DST`.

A tower becomes a Hugging Face folder, an adapter a `.pth` for MusiLingo's own scripts, and a whole MusiLingo a folder
in the layout in which it was released. Of a training run or a whole MusiLingo, a DST that ends in .pth gets the
adapter alone, and any other all three parts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mlingo_jax.cli import Parser, run_cli
from mlingo_jax.conversion.release import make_config, write_files
from mlingo_jax.errors import UserError
from mlingo_jax.files import write_json
from mlingo_jax.processes import initialize, is_primary, run_on_primary
from mlingo_jax.weights import released
from mlingo_jax.weights.adapter import adapter_entries, open_adapter
from mlingo_jax.weights.checkpoints import FORMS, Form, write_checkpoint
from mlingo_jax.weights.folders import Found, carry, find, identify, new_target
from mlingo_jax.weights.keymap import to_torch
from mlingo_jax.weights.tensors import Tensor, Tensors
from mlingo_jax.weights.torch_files import write_torch
from mlingo_jax.weights.towers import KINDS, ROLES, OpenTower, open_tower

SHARD_BYTES = 5 * 10**9


def convert(source: Path, target: Path, *, form: Form = "safetensors") -> None:
    """Writes `target`, a folder or a `.pth`, from a folder that `conversion.to_jax` or a training run wrote.

    `form` is that of a folder's weights; the reference implementation's pinned environment reads "bin" alone.

    Raises:
        UserError: `source` is in neither layout, is broken, or has no counterpart in PyTorch; or `target` exists.
    """
    found = identify(source)
    if found.layout == "torch":
        raise UserError(f"{source}: is in PyTorch's layout already")
    alone = target.suffix == ".pth"
    if found == Found("adapter", "jax") and not alone:
        raise UserError(f"{target}: an adapter becomes one file; give it a name that ends in .pth")
    if target.suffix in (".bin", ".pt", ".safetensors"):
        raise UserError(f"{target}: an adapter is written as a .pth; of any other name is a folder, with all there is")
    with new_target(target, folder=not alone or found.kind in KINDS) as partial:
        if found.kind in KINDS:
            _write_tower(open_tower(source, KINDS[found.kind].role), partial, form)
        elif alone:
            write_torch(partial, {"model": _adapter_tensors(source)})
        else:
            _write_musilingo(source, found, partial, form)


def _write_tower(tower: OpenTower, folder: Path, form: Form) -> None:
    write_files(tower, folder)
    write_checkpoint(folder, tower.torch_tensors(), shard_bytes=SHARD_BYTES, title=tower.kind.name, form=form)


def _adapter_tensors(source: Path) -> dict[str, Tensor]:
    adapter = open_adapter(source)
    if adapter.config.per_layer:
        raise UserError(
            f"{source}: its adapter learned a weight for each of the encoder's hidden states; the reference "
            "implementation takes their plain mean, so there is nothing to convert it to"
        )
    return to_torch(adapter_entries(adapter.config), adapter.tensors, str(source))


def _write_musilingo(source: Path, found: Found, folder: Path, form: Form) -> None:
    tensors = _prefixed("adapter", _adapter_tensors(source))
    towers = _run_towers(source, folder) if found.layout == "run" else [open_tower(source, role) for role in ROLES]
    for tower in towers:
        tensors |= _prefixed(tower.kind.role, tower.bare().torch_tensors())
        files = folder / released.PARTS[tower.kind.role].files
        files.mkdir()
        write_files(tower, files)
    if found.layout == "jax":
        carry(source, folder)
    write_checkpoint(folder, tensors, shard_bytes=SHARD_BYTES, title="musilingo", form=form)


def _prefixed(part: str, tensors: Tensors) -> dict[str, Tensor]:
    return {f"{released.PARTS[part].prefix}{name}": tensor for name, tensor in tensors.items()}


def _run_towers(workdir: Path, folder: Path) -> list[OpenTower]:
    """The towers that a run was trained between; writes the config of the MusiLingo they make up to `folder`."""
    from mlingo_jax.runs.folder import read_run

    run = read_run(workdir)
    mert, llm = open_tower(find(run["mert"]["folder"]), "encoder"), open_tower(find(run["llm"]["folder"]), "llm")
    for tower, part in ((mert, "mert"), (llm, "llm")):
        if tower.config_hash() != run[part]["identity"]["config"]:
            raise UserError(f"{tower.source}: its config.json is not that of the tower that {workdir} was trained with")
    names = {f"{part}_name": run[part]["identity"]["name"] for part in ("mert", "llm")}
    write_json(folder / "config.json", make_config(llm.values, **names, prompt=run["prompt"]))
    return [mert, llm]


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(prog="python -m conversion.to_pytorch", description=__doc__)
    parser.add_argument(
        "source", metavar="SRC", type=Path, help="a folder that conversion.to_jax wrote, or a training run's"
    )
    parser.add_argument("target", metavar="DST", type=Path, help="the folder or .pth to write; must not exist yet")
    parser.add_argument(
        "--format",
        choices=FORMS,
        default=FORMS[0],
        help="of a folder's weights (default %(default)s); bin: torch's, for where safetensors is not installed",
    )
    arguments = parser.parse_args(argv)
    initialize()
    run_on_primary("conversion", lambda: convert(arguments.source, arguments.target, form=arguments.format))
    if is_primary():
        print(f"{arguments.target}: written")


def cli() -> NoReturn:
    """The console command."""
    run_cli(main)


if __name__ == "__main__":
    cli()
