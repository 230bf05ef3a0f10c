"""The layout in which MusiLingo was released: encoder, language model and adapter in one folder's shards.

The released config.json (model_type "musilingo") names the two towers and gives the language model's sizes, but holds
neither tower's own config, and there is no tokenizer. Folders that we write keep both towers' files beside the shards,
in `audio_encoder/` and `llama_model/`; a folder without them is read as the published one: MERT-v1-330M and LLaMA.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mlingo_jax.errors import UserError
from mlingo_jax.files import read_json
from mlingo_jax.weights.checkpoints import read_checkpoint
from mlingo_jax.weights.tensors import Tensor

# Source: config.json of m-a-p/MERT-v1-330M; what only training reads is left out.
MERT_330M: Mapping[str, Any] = {
    "architectures": ["MERTModel"],
    "model_type": "mert_model",
    "attention_relax": 32.0,
    "conv_bias": False,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "deepnorm": False,
    "do_stable_layer_norm": True,
    "feat_extract_activation": "gelu",
    "feat_extract_norm": "group",
    "feat_proj_layer_norm": True,
    "feature_extractor_cqt": False,
    "feature_extractor_cqt_bins": 336,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-5,
    "mask_feature_prob": 0.0,
    "mask_time_prob": 0.075,
    "num_attention_heads": 16,
    "num_conv_pos_embedding_groups": 16,
    "num_conv_pos_embeddings": 128,
    "num_feat_extract_layers": 7,
    "num_hidden_layers": 24,
    "sample_rate": 24000,
}
# The released config's keys that are the language model's own, and LLaMA-1's values for those that are not in it.
LLAMA_KEYS = (
    "attention_bias",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "torch_dtype",
    "vocab_size",
)
LLAMA_1: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


@dataclasses.dataclass(frozen=True)
class PartLayout:
    """Where a part is: its prefix in the shards, its files' folder beside them, and its folder when converted."""

    prefix: str
    files: str
    folder: str


PARTS = {
    "encoder": PartLayout("model.audio_encoder.", "audio_encoder", "mert"),
    "llm": PartLayout("model.llama_model.", "llama_model", "llm"),
    "adapter": PartLayout("model.", "", "adapter"),
}
ADAPTER = ("model.llama_proj.weight", "model.llama_proj.bias")


@dataclasses.dataclass(frozen=True)
class Part:
    """One tower of a released folder: its files' folder (None: it has none), config.json, and tensors, prefix gone."""

    source: Path
    files: Path | None
    values: Mapping[str, Any]
    tensors: dict[str, Tensor]


def read_part(folder: Path, role: Literal["encoder", "llm"]) -> Part:
    """One tower of a released MusiLingo folder.

    Raises:
        UserError: the shards are broken, hold tensors of no part, or the config needed is neither there nor published.
    """
    layout = PARTS[role]
    tensors = {
        key.removeprefix(layout.prefix): tensor
        for key, tensor in read_released(folder).items()
        if key.startswith(layout.prefix)
    }
    files = folder / layout.files
    if files.is_dir():
        return Part(files, files, read_json(files / "config.json"), tensors)
    return Part(folder, None, _published(folder, role), tensors)


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The adapter of a released MusiLingo folder, by the names of MusiLingo's own `.pth`."""
    prefix = PARTS["adapter"].prefix
    return {name.removeprefix(prefix): tensor for name, tensor in read_released(folder).items() if name in ADAPTER}


def read_released(folder: Path) -> dict[str, Tensor]:
    """All tensors of a released MusiLingo folder.

    Raises:
        UserError: listing those that belong to no part.
    """
    tensors = read_checkpoint(folder)
    towers = (PARTS["encoder"].prefix, PARTS["llm"].prefix)
    if left_over := [name for name in tensors if not name.startswith(towers) and name not in ADAPTER]:
        raise UserError(f"{folder}: tensors that are no part of MusiLingo:\n  " + "\n  ".join(left_over))
    return tensors


def _published(folder: Path, role: Literal["encoder", "llm"]) -> Mapping[str, Any]:
    values = read_json(folder / "config.json")
    if role == "llm":
        return {**LLAMA_1, **{key: values[key] for key in LLAMA_KEYS if key in values}}
    encoder = str(values.get("mert_model"))
    if Path(encoder).name != "MERT-v1-330M":
        raise UserError(
            f"{folder / 'config.json'}: mert_model is {encoder}, but only MERT-v1-330M's config is known by its name; "
            f"copy the encoder's config.json and preprocessor_config.json to {folder / PARTS['encoder'].files}"
        )
    return MERT_330M
