"""What goes along with weights that are written: the towers' files, and a MusiLingo's config as it was released."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlingo_jax.files import write_json
from mlingo_jax.weights.folders import carry
from mlingo_jax.weights.towers import OpenTower

# Source: preprocessor_config.json of m-a-p/MERT-v1-330M.
MERT_330M_PREPROCESSOR: Mapping[str, Any] = {
    "do_normalize": True,
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0,
    "return_attention_mask": True,
    "sampling_rate": 24000,
}


def write_files(tower: OpenTower, folder: Path) -> None:
    """Writes the files that go along with a tower's weights: config.json, tokenizer, preprocessor.

    The published layout lacks them: the config is known, and so is the encoder's preprocessor.
    """
    if tower.files is not None:
        carry(tower.files, folder)
        return
    write_json(folder / "config.json", tower.values)
    if tower.kind.role == "encoder":
        write_json(folder / "preprocessor_config.json", MERT_330M_PREPROCESSOR)


def make_config(llm: Mapping[str, Any], mert_name: str, llm_name: str, prompt: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a MusiLingo put together from its parts: the published one's keys, over the language model's.

    `prompt` is the prompt of the run that trained it (`mlingo_jax.data.prompt.PromptSettings.to_json`).
    """
    return {
        **llm,
        "architectures": ["MusilingoModel"],
        "model_type": "musilingo",
        "mert_model": mert_name,
        "llama_model": llm_name,
        "prompt_template": prompt["template"],
        "end_sym": prompt["end_symbol"],
        "max_txt_len": prompt["max_answer_tokens"],
    }
