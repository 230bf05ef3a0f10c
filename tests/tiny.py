"""Small things made on the spot for the tests: a tokenizer, audio files."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "###Human: <Audio></Audio> What instrument plays? ###Assistant: A slow bell plays in a low register.###",
    "###Human: <Audio></Audio> Describe the tempo of the music. ###Assistant: The tempo is fast, in a minor key.###",
]


def tiny_tokenizer(folder: Path, *, bos: bool = True, vocabulary: int = 320) -> PreTrainedTokenizerFast:
    """Writes a byte-level BPE tokenizer of about `vocabulary` pieces into `folder`; any text round-trips through it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", bos_token="<s>" if bos else None
    )
    fast.save_pretrained(folder)
    return fast
