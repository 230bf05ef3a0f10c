"""Tokenizers from a folder's files: sentencepiece's ids in every form of file, and no state but the vocabulary."""

import csv
import hashlib
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaTokenizer

from mlingo_jax.data import tokenizer as module
from mlingo_jax.data.prompt import Prompt, PromptSettings
from mlingo_jax.data.tokenizer import load_tokenizer, read_eos
from mlingo_jax.errors import UserError
from mlingo_jax.inference.stopping import stop_rule
from tests.tiny import TEXTS, tiny_tokenizer

# Its classes are made when it is imported.
PROTO: Any = sentencepiece_model_pb2
FORMS = ("model", "json4", "json5", "json5 class", "json4 and model", "json5 class and model")
CONFIG = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
ODD = ["</s>", "<s>", "<unk>", "<0x0A>", "###", "  ", " ", "\n", "\r\n", "▁", "bell", "é", "音楽", "🎵", "--", "\u200b"]


def small_sentencepiece() -> bytes:
    """A model of LLaMA's kind: byte pieces, identity, and pieces of spaces alone that are merged last."""
    texts = [*TEXTS, "some  slow   sad    sounds     so      soft", "-- ---- ------"] * 3
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        model_type="bpe",
        vocab_size=380,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        byte_fallback=True,
        minloglevel=2,
    )
    proto = PROTO.ModelProto.FromString(written.getvalue())
    for piece in proto.pieces:
        if not piece.piece.strip("▁"):
            piece.score = -1e9
    return proto.SerializeToString()


def write_forms(model: bytes, folder: Path) -> dict[str, Path]:
    """A folder for each form in which such a tokenizer is published."""
    proto = PROTO.ModelProto.FromString(model)
    folders = {form: folder / form.replace(" ", "_") for form in FORMS}
    for form, path in folders.items():
        path.mkdir()
        (path / "tokenizer_config.json").write_text(json.dumps(CONFIG))
        if form.endswith("model"):
            (path / "tokenizer.model").write_bytes(model)
    like_4(proto, legacy=True).save(str(folders["json4"] / "tokenizer.json"))
    like_4(proto, legacy=False).save(str(folders["json5"] / "tokenizer.json"))
    LlamaTokenizer.from_pretrained(folders["model"]).save_pretrained(folders["json5 class"])
    for form in ("json4", "json5 class"):
        shutil.copyfile(folders[form] / "tokenizer.json", folders[f"{form} and model"] / "tokenizer.json")
    return folders


def like_4(proto: Any, *, legacy: bool) -> Tokenizer:
    """What transformers 4 writes: merges in the order of the pieces' scores."""
    ids = {piece.piece: n for n, piece in enumerate(proto.pieces)}
    pairs = [
        (piece.score, (piece.piece[:cut], piece.piece[cut:]))
        for piece in proto.pieces
        for cut in range(1, len(piece.piece))
        if piece.piece[:cut] in ids and piece.piece[cut:] in ids
    ]
    merges = [pair for _, pair in sorted(pairs, key=lambda scored: -scored[0])]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=legacy, special=True) for t in ("<unk>", "<s>", "</s>")])
    return tokenizer


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[sentencepiece.SentencePieceProcessor, dict[str, Path]]:
    model = small_sentencepiece()
    return sentencepiece.SentencePieceProcessor(model_proto=model), write_forms(model, tmp_path_factory.mktemp("sp"))


@pytest.fixture(scope="module")
def loaded(small, request):
    reference, folders = small
    pieces = "\n".join(reference.id_to_piece(n) if n < len(reference) else "" for n in range(3, 32_000))
    with pytest.MonkeyPatch.context() as patch:
        # The one vocabulary whose spaces are known to come last, whatever order its merges were saved in.
        patch.setattr(module, "LLAMA_PIECES", hashlib.sha256(pieces.encode()).hexdigest())
        return {form: load_tokenizer(folder) for form, folder in folders.items()}


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def test_the_small_model_tells_right_from_wrong(small):
    """What transformers' own class makes of it differs, as it does of LLaMA's."""
    reference, folders = small
    theirs = LlamaTokenizer.from_pretrained(folders["model"])
    assert theirs.encode("so  slow", add_special_tokens=False) != reference.encode("so  slow")
    assert theirs.encode(" a", add_special_tokens=False) != reference.encode(" a")


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=150)
@given(text=st.lists(st.sampled_from(ODD) | st.text(max_size=4), max_size=12).map("".join))
def test_ids_and_texts_are_sentencepiece_s(small, loaded, form, text):
    reference, tokenizer = small[0], loaded[form]
    expected = reference.encode(text)
    assert ids(tokenizer, text) == expected
    assert tokenizer.backend_tokenizer.decode(expected, skip_special_tokens=True) == reference.decode(expected)


@settings(max_examples=150)
@given(data=st.data())
def test_any_ids_read_as_sentencepiece_reads_them(small, loaded, data):
    """Bytes that are no character, pieces that are none, and special ones: as answers may hold them."""
    reference, tokenizer = small[0], loaded["model"]
    some = data.draw(st.lists(st.integers(0, len(reference) - 1), max_size=12))
    rule = stop_rule(tokenizer, ("###",), (), len(reference))
    expected = reference.decode(some).partition("###")[0].strip()
    assert rule.text(some) == expected


def real_texts(shared: Path) -> list[str]:
    """MusicCaps' captions, MusicQA's questions and answers."""
    with (shared / "musiccaps-public.csv").open(newline="", encoding="utf-8") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    asked = json.loads((shared / "EvalMusicQA.json").read_text(encoding="utf-8"))
    return [*captions, *sorted({turn["value"] for item in asked for turn in item["conversation"]})]


def random_texts(count: int) -> list[str]:
    rng = random.Random(1)
    letters = "abcdefghij KLMN  \n\t.,'\"-#<>/s▁0123é日本語音🎵àß\u3000\u00a0x={}[]()"
    return [
        "".join(rng.choice(ODD if rng.random() < 0.3 else letters) for _ in range(rng.randint(0, 60)))
        for _ in range(count)
    ]


def test_llama_s_ids_are_sentencepiece_s(golden: Path, tmp_path: Path):
    model = (golden / "pre_ln" / "llm" / "tokenizer.model").read_bytes()
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = [*real_texts(golden.parent / "data"), *random_texts(10_000)]
    # Each form by fewer than the first: those whose reading differs, by texts of all kinds.
    for form, folder in write_forms(model, tmp_path).items():
        some = texts if form == "model" else texts[::8]
        tokenizer, expected = load_tokenizer(folder), reference.encode(some)
        found = [e.ids for e in tokenizer.backend_tokenizer.encode_batch_fast(some, add_special_tokens=False)]
        assert [text for text, a, b in zip(some, expected, found, strict=True) if a != b] == []
        assert tokenizer.backend_tokenizer.decode_batch(found) == reference.decode(expected)
        assert ids(tokenizer, "two  spaces") == [1023, 29871, 8162]


def test_a_tokenizer_that_disagrees_with_its_model_is_refused(small, tmp_path, monkeypatch):
    folder = shutil.copytree(small[1]["json4 and model"], tmp_path / "llm")
    assert load_tokenizer(folder).bos_token_id == 1
    # As a version of transformers would that converted the model otherwise.
    monkeypatch.setattr(module, "_take_over", lambda backend, path: setattr(backend, "normalizer", None))
    with pytest.raises(UserError, match=r"model: 'two  spaces' is .* to sentencepiece and .* to this version"):
        load_tokenizer(folder)


def test_saved_padding_truncation_and_dropout_change_nothing(tmp_path):
    plain = tiny_tokenizer(tmp_path / "plain")
    saved = json.loads((tmp_path / "plain" / "tokenizer.json").read_text())
    shutil.copytree(tmp_path / "plain", tmp_path / "changed")
    backend = Tokenizer.from_str(json.dumps(saved))
    backend.enable_padding(length=64, pad_id=2, pad_token="</s>")
    backend.enable_truncation(8)
    changed = json.loads(backend.to_str())
    changed["model"]["dropout"] = 0.5
    (tmp_path / "changed" / "tokenizer.json").write_text(json.dumps(changed))
    prompt = Prompt(load_tokenizer(tmp_path / "changed"), PromptSettings(template=""))
    answers = ["A slow bell plays in a low register.", "Fast."]
    expected = [plain.encode(f"{answer}###", add_special_tokens=False) for answer in answers]
    rows = prompt.rows([("", answer, 0) for answer in answers])
    assert [row.tokens[row.loss_weights > 0].tolist() for row in rows] == [ids[:160] for ids in expected]
    assert prompt.lengths(["", ""], answers)[0].tolist() == [len(ids) + 1 for ids in expected]
    assert [prompt.answer_ids(answer)[0] for answer in answers] == expected


@pytest.mark.parametrize(
    ("stated", "config", "expected"),
    [
        ({"bos_token": "<s>"}, {"bos_token_id": 2}, 1),
        ({}, {"bos_token_id": 1}, 1),
        ({"bos_token": ""}, {"bos_token_id": 2}, 2),
        ({"bos_token": None}, {"bos_token_id": 1}, None),
        ({}, {"bos_token_id": -1}, None),
        ({}, {}, None),
    ],
)
def test_where_the_begin_of_sequence_comes_from(tmp_path, stated, config, expected):
    tiny_tokenizer(tmp_path, bos=False)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **stated})
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.bos_token_id == expected
    opening = Prompt(tokenizer, PromptSettings()).opening
    assert opening == [*([expected] if expected else []), *ids(tokenizer, "###Human: <Audio>")]


def test_a_sentencepiece_model_knows_its_own_begin(small, tmp_path):
    """The earliest LLaMA folders name no token and the wrong ids."""
    shutil.copy(small[1]["model"] / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "", "eos_token": "", "unk_token": ""}')
    (tmp_path / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": 1}')
    assert load_tokenizer(tmp_path).bos_token_id == 1


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [3, 4]}, {"eos_token_id": 2}, (3, 4)),
        ({}, {"eos_token_id": 2}, (2,)),
        (None, {"eos_token_id": [2]}, (2,)),
        ({"eos_token_id": None}, {}, (2,)),
    ],
)
def test_end_of_sequence_ids_come_from_the_folder(tmp_path, generation, config, expected):
    tokenizer = tiny_tokenizer(tmp_path)
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text("\ufeff" + json.dumps(config), encoding="utf-8")
    assert read_eos(tmp_path, tokenizer, 320) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"eos_token_id": "</s>"}', "expected a token id"),
        ('{"eos_token_id": true}', "expected a token id"),
        ('{"eos_token_id": -1}', r"eos_token_id is -1, outside the vocabulary of 320; .*its tokenizer says 2"),
        ('{"eos_token_id": [2, 320]}', "outside the vocabulary of 320"),
        ("{", "not JSON"),
    ],
)
def test_a_broken_end_of_sequence_is_refused(tmp_path, text, message):
    tokenizer = tiny_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_eos(tmp_path, tokenizer, 320)


def test_a_pointer_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(UserError, match=r"tokenizer\.json: is a git-LFS pointer, .*git lfs pull"):
        load_tokenizer(tmp_path)
