"""A language model's tokenizer, as its own files define it; for SentencePiece models the sentencepiece library decides.

transformers 5 reads LLaMA's tokenizers otherwise than the reference implementation did: its class ranks merges by id
and adds no space before a text that begins with one, so that `two  spaces` gets other ids. Here the backend is taken
from the files, and where they hold a SentencePiece model it is compared with sentencepiece each time it is loaded.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlingo_jax.errors import UserError
from mlingo_jax.files import read_json, refuse_pointer

JSON, MODEL, CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
# SentencePiece's spelling of a space.
SPACE = "▁"
# SHA-256 of the pieces 3 to 31,999 of LLaMA's vocabulary, one a line; Vicuna, Llama-2 and TinyLlama share it.
LLAMA_PIECES = "7c969e2e8180e4640d50a1997717a175816b45c9ebadf5d276e98ce7e60c60df"
# What transformers' versions have read differently: spaces in a row, at either end and around line breaks; texts that
# spell special and byte pieces; repeated characters; bytes that are no piece.
PROBES = (
    "two  spaces",
    " leading",
    "   three, and trailing  ",
    "a \n\n b\tc",
    "</s><s><unk>###Assistant: ",
    "<0x0A><0xE2>",
    "-------- ======",
    f"{SPACE}a{SPACE}{SPACE}b",
    "naïve 音楽 🎵",
)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a Hugging Face folder, from its own files alone; no text is ever read as a special token.

    Raises:
        UserError: there is none, it cannot be loaded, or it gives other ids than sentencepiece does.
    """
    folder = Path(folder)
    try:
        stated = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        tokenizer = _read(folder, stated)
        sentencepiece = _read_sentencepiece(folder / MODEL)
        if sentencepiece is not None:
            _take_over(tokenizer.backend_tokenizer, folder / MODEL)
        else:
            _mend(tokenizer.backend_tokenizer)
    # The Rust library raises Exception itself over a file that it cannot read.
    except Exception as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder}: the tokenizer cannot be loaded ({reason})") from error
    _reset(tokenizer)
    if sentencepiece is not None:
        _compare(tokenizer.backend_tokenizer, sentencepiece, folder / MODEL)
    _name_begin(tokenizer, stated, folder, sentencepiece)
    return tokenizer


def read_eos(folder: Path, tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> tuple[int, ...]:
    """A language model's end-of-sequence ids: of generation_config.json, else of config.json, else the tokenizer's.

    Raises:
        UserError: `eos_token_id` is neither a token id nor a list of them, or lies outside the vocabulary.
    """
    for file in (folder / "generation_config.json", folder / "config.json"):
        found = read_json(file).get("eos_token_id") if file.is_file() else None
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise UserError(f"{file}: eos_token_id is {found!r}; expected a token id or a list of token ids")
        if any(not 0 <= i < vocabulary for i in ids):
            raise UserError(
                f"{file}: eos_token_id is {found!r}, outside the vocabulary of {vocabulary:,}; put in the id at which "
                f"this model's answers end (its tokenizer says {tokenizer.eos_token_id!r})"
            )
        return tuple(ids)
    own = tokenizer.eos_token_id
    return (own,) if isinstance(own, int) and own < vocabulary else ()


def _read(folder: Path, stated: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    found = [name for name in (JSON, MODEL, "vocab.json") if (folder / name).exists()]
    if not found:
        raise UserError(
            f"{folder}: no tokenizer (tokenizer.json, tokenizer.model or vocab.json); copy the language model's there"
        )
    for name in found:
        refuse_pointer(folder / name)
    # With only a vocabulary, how texts are split is known to the model's own class alone.
    kind = AutoTokenizer if found == ["vocab.json"] else PreTrainedTokenizerFast
    # The earliest LLaMA folders name their special tokens "", which the library searches for without an end.
    nameless: dict[str, Any] = {name: None for name, token in stated.items() if name.endswith("_token") and token == ""}
    return kind.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, split_special_tokens=True, **nameless
    )


def _read_sentencepiece(path: Path) -> SentencePieceProcessor | None:
    """None where there is no such file, or it is another library's (LLaMA 3 has a tiktoken file of this name)."""
    try:
        return SentencePieceProcessor(model_file=str(path)) if path.is_file() else None
    except RuntimeError:
        return None


def _take_over(backend: Tokenizer, path: Path) -> None:
    """Gives the backend, whose added tokens stay, the pieces and rules of a SentencePiece model."""
    with tempfile.TemporaryDirectory() as alone:
        (Path(alone) / MODEL).symlink_to(path.absolute())
        source = PreTrainedTokenizerFast.from_pretrained(alone, local_files_only=True).backend_tokenizer
    backend.model = source.model
    backend.normalizer, backend.pre_tokenizer, backend.decoder = source.normalizer, source.pre_tokenizer, source.decoder


def _mend(backend: Tokenizer) -> None:
    """Undoes what transformers 5 changes in a SentencePiece model's `tokenizer.json`.

    Its pre-tokenizer adds a space only before texts that begin with none: SentencePiece adds one before any. And its
    merges are in the order of ids, which is that of LLaMA's scores but for its pieces of spaces alone: they come last.
    """
    state = json.loads(backend.to_str())
    model, splits = state["model"], state["pre_tokenizer"] or {}
    if model["type"] != "BPE" or not model["byte_fallback"]:
        return
    if state["normalizer"] is None and splits.get("type") == "Metaspace":
        escape = normalizers.Replace(" ", SPACE)
        adds = splits["prepend_scheme"] != "never"
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), escape]) if adds else escape
        backend.pre_tokenizer = None
    merges = sorted(map(tuple, model["merges"]), key=lambda pair: not "".join(pair).strip(SPACE))
    if merges != list(map(tuple, model["merges"])) and _is_llama(model["vocab"]):
        backend.model = models.BPE(
            model["vocab"], merges, unk_token=model["unk_token"], fuse_unk=model["fuse_unk"], byte_fallback=True
        )


def _is_llama(vocabulary: Mapping[str, int]) -> bool:
    pieces = {number: piece for piece, number in vocabulary.items()}
    listed = "\n".join(pieces.get(number, "") for number in range(3, 32_000))
    return hashlib.sha256(listed.encode()).hexdigest() == LLAMA_PIECES


def _reset(tokenizer: PreTrainedTokenizerFast) -> None:
    """All state that is not the vocabulary, whatever was switched on when the files were saved."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    if isinstance(backend.model, models.BPE) and backend.model.dropout is not None:
        backend.model.dropout = None


def _compare(backend: Tokenizer, sentencepiece: SentencePieceProcessor, path: Path) -> None:
    for text in PROBES:
        expected, found = sentencepiece.encode(text), backend.encode(text, add_special_tokens=False).ids
        # A token that was added to the model is none of sentencepiece's.
        if found != expected and max(found) < len(sentencepiece):
            raise UserError(
                f"{path}: {text!r} is {expected} to sentencepiece and {found} to this version of transformers; "
                "install transformers 5.24, or another version of it"
            )


def _name_begin(
    tokenizer: PreTrainedTokenizerFast,
    stated: Mapping[str, Any],
    folder: Path,
    sentencepiece: SentencePieceProcessor | None,
) -> None:
    """Sets the begin-of-sequence token where tokenizer_config.json does not name it.

    It is the SentencePiece model's own, else that of config.json. A null there means that there is none.
    """
    if tokenizer.bos_token or ("bos_token" in stated and stated["bos_token"] is None):
        return
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    named = config.get("bos_token_id") if sentencepiece is None else sentencepiece.bos_id()
    tokenizer.bos_token = None
    if isinstance(named, int) and not isinstance(named, bool) and 0 <= named < len(tokenizer):
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(named)
