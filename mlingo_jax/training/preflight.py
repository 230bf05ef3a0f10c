"""What a run on prepared datasets needs and does not find here, where it is had, and the command that makes it."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from mlingo_jax.data.mixture import Wanted, parse_wanted
from mlingo_jax.data.prepared import Prepared, prepared_parts
from mlingo_jax.datasets.builders import DATASETS
from mlingo_jax.errors import UserError
from mlingo_jax.settings import Config

_AUDIO = "  audio:"
# So many missing datasets are told of at length.
_AT_LENGTH = 2
# The clips of these are another dataset's.
_CLIPS = {"music_instruct": "music_caps", "lp_music_caps/mc": "music_caps"}


def require_all(config: Config) -> None:
    """Looks for everything that the config names, and reads none of it.

    Raises:
        UserError: something is missing, a paragraph for each thing, one screen in all; or there is no such split.
    """
    data, start = config.data, config.adapter.start
    wanted = parse_wanted(data.datasets, "config.data.datasets")
    wanted += parse_wanted(data.evaluate, "config.data.evaluate") if data.evaluate else []
    datasets = list(_datasets(data.data_dir, wanted))
    if len(datasets) > _AT_LENGTH:
        # All of it is to fit on a screen.
        datasets = ["\n".join(line for text in datasets for line in text.splitlines() if not line.startswith(_AUDIO))]
    missing = [*datasets, *_towers(config.mert.path, config.llm.path)]
    if start and not Path(start).exists():
        missing.append(f"adapter {start}\n  made by: python -m mlingo_jax.train --config={Path(start).name}")
    if missing:
        raise UserError("\n\n".join(["this run cannot begin: what follows is not here", *missing]))


def _datasets(data_dir: str, wanted: list[Wanted]) -> Iterator[str]:
    told = set()
    for part in wanted:
        if part.dataset in told:
            continue
        try:
            prepared = Prepared(data_dir, part.dataset)
        except UserError:
            told.add(part.dataset)
            parts = prepared_parts(data_dir, part.dataset)
            there = f"dataset {part.dataset} in {data_dir}\n  there is: {', '.join(parts)}; name one of these"
            yield there if parts else _how_to_prepare(part.dataset, data_dir)
        else:
            prepared.examples(part.split)


def _how_to_prepare(name: str, data_dir: str) -> str:
    dataset, _, part = name.partition("/")
    kind = next((kind for kind in DATASETS if kind.name == dataset), None)
    if kind is None:
        return f"dataset {name}: there is none; known are {', '.join(kind.name for kind in DATASETS)}"
    clips = _CLIPS.get(name, _CLIPS.get(dataset))
    command = ["python", "-m", "mlingo_jax.prepare", dataset, *(["--config", part] if part else [])]
    command += ["--annotations", "ANNOTATIONS", *(["--clips", clips] if clips else ["--audio", "CLIPS"])]
    lines = [
        f"dataset {name} in {data_dir}",
        f"  annotations: {'; '.join(filter(None, (kind.homepage, kind.licence)))}",
        f"{_AUDIO} {f'that of {clips}, which is prepared first' if clips else 'see docs/datasets.md'}",
        f"  made by: {shlex.join([*command, '--data_dir', data_dir])}",
    ]
    return "\n".join(lines)


def _towers(encoder: str, llm: str) -> Iterator[str]:
    if not _is_here(encoder):
        local = f"weights/{Path(encoder).name}" if encoder else "weights/MERT-v1-330M"
        yield (
            f"encoder {encoder or '(config.mert.path is empty)'}\n"
            f"  made by: hf download {encoder or 'm-a-p/MERT-v1-330M'} --local-dir {local}\n"
            f"  and then --config.mert.path={local}; see docs/weights.md"
        )
    if not _is_here(llm):
        yield (
            f"language model {llm or '(config.llm.path is empty)'}\n"
            "  MusiLingo's is Vicuna 7B v0: lmsys/vicuna-7b-delta-v0 on the Hugging Face hub, added to LLaMA-1 7B\n"
            f"  made by: python -m conversion.to_jax weights/vicuna-7b-delta-v0 {llm or 'weights/vicuna-v0'} "
            "--base weights/llama-7b\n"
            "  or any other of docs/weights.md, by --config.llm.path=…"
        )


def _is_here(source: str) -> bool:
    """A path that is there, or a model of the hub that was downloaded before."""
    if not source or Path(source).expanduser().exists():
        return bool(source)
    try:
        snapshot_download(source, local_files_only=True)
    except (OSError, HFValidationError):
        return False
    return True
