"""The demo's language model: a small LLaMA that learns, from text alone, to read what stands where the music will be.

A model that has only seen captions ignores the music. So between <Audio> and </Audio> it is given the words for what is
true, and questions and answers that agree with them. Half of the time each word has a place of its own; otherwise all
of them share every place, as sums of their embeddings: one music token will have to carry all that is encoded.
"""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mlingo_jax.data.prompt import Prompt, PromptSettings, collate
from mlingo_jax.demo.music import ATTRIBUTES
from mlingo_jax.demo.texts import CAPTION, all_templates, ask, tell
from mlingo_jax.demo.towers import Batch, Params, fit, write_tower
from mlingo_jax.models.adapter import Adapter, AdapterConfig
from mlingo_jax.models.llama import Llama
from mlingo_jax.models.llama_config import LlamaConfig
from mlingo_jax.models.musilingo import answer_loss

ARCHITECTURE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
ROWS, LENGTH, MUSIC_TOKENS = 64, 56, 8
RATE = 3e-3
CAPTION_SHARE = 0.3


def make_language_model(folder: Path, prompt: PromptSettings, *, steps: int, seed: int) -> None:
    """Writes the tokenizer and the trained model as a Hugging Face folder."""
    tokenizer = make_tokenizer(prompt)
    tokenizer.save_pretrained(folder)
    values = {**ARCHITECTURE, "vocab_size": len(tokenizer)}
    config = LlamaConfig.from_json(values, "the demo's language model")
    model = Llama(config, dtype=jnp.float32, rngs=nnx.Rngs(seed))
    graphdef, state = nnx.split(model, nnx.Param)
    adapter = nnx.graphdef(Adapter(AdapterConfig(config.vocab_size, config.embed_dim), rngs=nnx.Rngs(seed)))

    def loss(params: Params, batch: Batch) -> Float[Array, ""]:
        # The adapter's place is taken by the embedding table: a music token is a weighted sum of words.
        words = {"projection": {"kernel": params["embedding"], "bias": jnp.zeros(config.embed_dim)}}
        llm = nnx.merge(graphdef, nnx.State(params))
        total, tokens = answer_loss(llm, nnx.merge(adapter, nnx.State(words)), batch, batch["music"])
        return total / tokens

    batches = _batches(Prompt(tokenizer, prompt), np.random.default_rng(seed))
    params = fit(nnx.to_pure_dict(state), loss, batches, steps=steps, rate=RATE, title="language model")
    write_tower(folder, "llama", values, model, jax.device_get(params))


def make_tokenizer(prompt: PromptSettings) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that has the corpus's words whole; any other text is spelled."""
    tokenizer = Tokenizer(models.BPE())
    # A run of # is cut off the word before it, so the end symbol is a token of its own.
    marks = pre_tokenizers.Split(Regex("#+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([marks, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    frame = prompt.template.format("<Audio></Audio>") + prompt.end_symbol
    tokenizer.train_from_iterator([*all_templates(), *[frame] * 100], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _batches(prompt: Prompt, rng: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of text: the batch contract's fields, `music` [B, M, V] being the weight of each word."""
    words = {value: _ids(prompt.tokenizer, value) for values in ATTRIBUTES.values() for value in values}
    subjects = (*ATTRIBUTES, CAPTION)
    shares = [(1 - CAPTION_SHARE) / len(ATTRIBUTES)] * len(ATTRIBUTES) + [CAPTION_SHARE]
    while True:
        rows, music = [], np.zeros((ROWS, MUSIC_TOKENS, len(prompt.tokenizer)), np.float32)
        for row in range(ROWS):
            truth = {name: str(rng.choice(values)) for name, values in ATTRIBUTES.items()}
            subject = subjects[rng.choice(len(subjects), p=shares)]
            said = [words[truth[name]] for name in rng.permutation(list(truth))]
            said += [said[i] for i in rng.integers(len(said), size=rng.integers(3))]
            ids = np.concatenate(said)[:MUSIC_TOKENS]
            if rng.random() < 0.5:
                positions = len(ids)
                music[row, np.arange(positions), ids] = 1
            else:
                positions = int(rng.integers(1, MUSIC_TOKENS))
                for position in range(positions):
                    np.add.at(music[row, position], ids, rng.uniform(0.3, 1, len(ids)))
            rows.append(prompt.row(ask(subject, rng), tell(subject, truth, rng), positions))
        yield {**collate(rows, LENGTH, ROWS), "music": music}


def _ids(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
    return tokenizer.encode(f" {word}", add_special_tokens=False)
