"""The sizes of published towers, so that a run can be planned before anything is downloaded."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlingo_jax.errors import UserError
from mlingo_jax.files import read_json
from mlingo_jax.weights.released import LLAMA_1, MERT_330M
from mlingo_jax.weights.towers import read_architecture

# Source: the towers' config.json on the Hugging Face hub; what only training reads is left out.
MERT_95M: Mapping[str, Any] = {
    **MERT_330M,
    "do_stable_layer_norm": False,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
VICUNA_7B: Mapping[str, Any] = {
    **LLAMA_1,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-6,
    "vocab_size": 32001,
}
VICUNA_13B: Mapping[str, Any] = {
    **VICUNA_7B,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
}
# By the last part of a folder's or hub id's name, in lower case.
ENCODERS = {"mert-v1-330m": MERT_330M, "mert-v1-95m": MERT_95M, "mert-330m": MERT_330M, "mert": MERT_330M}
LANGUAGE_MODELS = {
    **dict.fromkeys(("vicuna", "vicuna-v0", "vicuna-7b", "vicuna-7b-v0", "vicuna-7b-delta-v0"), VICUNA_7B),
    **dict.fromkeys(("vicuna-13b", "vicuna-13b-v0", "vicuna-13b-delta-v0"), VICUNA_13B),
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A tower's architecture and where it was read: a config.json, or the published sizes of that name."""

    config: Any
    source: str


def encoder_sizes(path: str) -> Sizes:
    """The encoder's architecture, of a local folder or by its published name.

    Raises:
        UserError: there is no such folder and no such published model, or the folder's config.json is refused.
    """
    values, source = _find(path, ENCODERS, "mert")
    return Sizes(read_architecture(values, source, "encoder"), source)


def language_model_sizes(path: str) -> Sizes:
    """The language model's architecture, as `encoder_sizes`."""
    values, source = _find(path, LANGUAGE_MODELS, "llm")
    return Sizes(read_architecture(values, source, "llm"), source)


def _find(path: str, published: Mapping[str, Mapping[str, Any]], name: str) -> tuple[Mapping[str, Any], str]:
    file = Path(path).expanduser() / "config.json"
    if path and file.is_file():
        return read_json(file), str(file)
    known = path.rstrip("/").rpartition("/")[2].lower()
    if known not in published:
        raise UserError(
            f"config.{name}.path is {path!r}: no folder with a config.json, and none of the models whose sizes are "
            f"known here ({', '.join(published)}); name one of these, or put the model's config.json into a folder"
        )
    return published[known], f"published sizes of {known}"
