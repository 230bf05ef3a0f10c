"""Before a run on prepared datasets: what is missing, and what it would train on."""

import json
import re
import shutil
from pathlib import Path

import pytest

from mlingo_jax.data.mixture import parse_wanted
from mlingo_jax.datasets.music_caps import MusicCaps
from mlingo_jax.errors import UserError
from mlingo_jax.flags import to_json
from mlingo_jax.recipes import load_config, recipe_names
from mlingo_jax.settings import Config
from mlingo_jax.training.dry_run import dry_run
from mlingo_jax.training.preflight import require_all
from tests.collections_of_music import MUSIC_CAPS, built, prepare_all, tones, write_csv, write_jsonl
from tests.tiny import tiny_llama, tiny_mert

# Configs of the paper's runs: all but those that bring their own data.
RUNS = [name for name in recipe_names() if load_config(name).data.datasets]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("everything")
    tiny_mert(folder / "mert")
    tiny_llama(folder / "llm")
    prepare_all(folder)
    tones(folder / "mine", ["1.wav", "2.wav"], 1.0)
    lines = [{"audio": f"{n}.wav", "question": "What?", "answer": "A gong.", "split": "train"} for n in (1, 2)]
    write_jsonl(folder / "mine" / "mine.jsonl", lines)
    return folder


def settled(name: str, folder: Path) -> Config:
    config = load_config(name)
    config.mert.path, config.llm.path = str(folder / "mert"), str(folder / "llm")
    config.data.data_dir, config.batch_size = str(folder / "data"), 2
    return config


@pytest.mark.parametrize("name", RUNS)
def test_what_is_missing_fits_a_screen(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    config = load_config(name)
    with pytest.raises(UserError) as error:
        require_all(config)
    text = str(error.value)
    for part in config.data.datasets.split(","):
        assert f"python -m mlingo_jax.prepare {part.split(':')[0].split('/')[0].strip()} " in text
    assert "python -m conversion.to_jax weights/vicuna-7b-delta-v0 weights/vicuna-v0 --base weights/llama-7b" in text
    assert "hf download m-a-p/MERT-v1-330M" in text
    assert (config.adapter.start in text) == bool(config.adapter.start) or not config.adapter.start
    assert len(text.splitlines()) <= 24


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("music_caps:tran", "^music_caps: expected the split .*, found 'tran'$"),
        ("music_instruct:train", r"there is: music_instruct/.*; name one of these"),
    ],
)
def test_a_split_or_part_that_is_misnamed_is_no_missing_dataset(named, message, folder):
    config = settled("finetune_musiccaps", folder)
    config.adapter.start, config.data.datasets = "", named
    with pytest.raises(UserError, match=message):
        require_all(config)


@pytest.mark.parametrize("name", recipe_names())
def test_a_dry_run_of_every_config(name, folder):
    config = settled(name, folder)
    if name in RUNS:
        config.adapter.start = ""
        require_all(config)
    else:
        config.data.manifest = str(folder / "mine" / "mine.jsonl")
    shown = dry_run(config)
    settings, counts, batch, plan = shown.split("\n\n")
    assert settings == to_json(config).rstrip()
    assert re.match(r"\d examples? to train on, \d to evaluate on, about \d clips?\nrows of \d+ tokens", counts)
    rows = batch.splitlines()[1:]
    assert len(rows) == 2
    opening = "###Human: <Audio>" if config.prompt.template else ""
    end = config.prompt.end_symbol.replace("\n", "\\n") if "; 0 answers cut" in counts else ""
    for b, row in enumerate(rows):
        assert re.match(rf"row {b}, \S+: <s>{opening}\[music 0-\d\]", row)
        assert row.endswith(f"{end}»")
    assert f"{config.steps:,} steps of 2 examples, {config.steps // config.accumulate:,} updates\n" in plan
    for part in parse_wanted(config.data.datasets, "") if name in RUNS else []:
        assert re.search(rf"examples? of {part.dataset}:{part.split}", plan)


def test_a_dry_run_of_stage_1(folder):
    shown = dry_run(settled("pretrain_musiccaps", folder))
    assert '"max_answer_tokens": 32' in shown
    assert "2 examples to train on, 2 to evaluate on, about 4 clips" in shown
    assert r': <s>[music 0-2]«A slow bell, "low"\nand soft: recording' in shown
    assert shown.endswith(
        "4,000 steps of 2 examples, 4,000 updates\n  4000.00 epochs of the 2 examples of music_caps:train"
    )


def test_a_dry_run_of_stage_2(folder):
    shown = dry_run(settled("finetune_musiccaps", folder))
    assert "<s>###Human: <Audio>[music 0-2]</Audio> Please give a caption to the music. ###Assistant: «A slow" in shown
    assert ".###»\n" in shown
    assert "6,000 steps of 2 examples, 750 updates" in shown


def test_a_dry_run_tells_what_a_run_would(folder, tmp_path):
    """Stop texts in answers, rows longer than the model was made for, how they begin, and with what."""
    llm = tiny_llama(tmp_path / "llm", max_position_embeddings=16)
    config = settled("manifest", folder)
    lines = [{"audio": f"{folder}/mine/1.wav", "question": "What?", "answer": answer} for answer in ("A ### b", "c")]
    config.data.manifest = str(write_jsonl(tmp_path / "mine.jsonl", [{**line, "split": "train"} for line in lines]))
    config.llm.path = str(llm)
    shown = dry_run(config)
    assert re.search(r"\neach begins with <s> \(1\) #\S* \(\d+\) ", shown)
    assert re.search(
        r"note: 1 answer with a text in it at which generation stops, .*; the first: '###' at \S+mine\.jsonl:1\n", shown
    )
    assert "tokens are longer than the 16 that the language model was made for" in shown
    assert "begin-of-sequence" not in shown
    tokenizer = json.loads((llm / "tokenizer_config.json").read_text())
    (llm / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"bos_token": None}))
    assert "note: rows have no begin-of-sequence token: neither the tokenizer nor config.json" in dry_run(config)


def test_a_dry_run_of_packed_rows(folder):
    config = settled("finetune_musiccaps", folder)
    config.data.packed = True
    shown = dry_run(config)
    assert "packed into 1 row of 512 tokens, " in shown
    assert [line.split(": ")[0] for line in shown.splitlines() if line.startswith("row ")] == [
        f"row {b}, music_caps:train[{place}]" for b in range(2) for place in range(2)
    ]
    assert "[music 3-5]" in shown
    assert "12000.00 epochs of the 2 examples" in shown


def test_a_clip_that_is_gone_is_no_accident(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    rows = [{**MUSIC_CAPS[0], "ytid": "other"}]
    audio = tones(tmp_path / "audio", ["other.wav"])
    built(MusicCaps, write_csv(tmp_path / "caps.csv", rows), audio, tmp_path / "data")
    config = settled("finetune_mi_short", folder)
    config.data.data_dir = str(tmp_path / "data")
    assert "its clip cannot be read" in dry_run(config)


def test_what_is_not_named_is_asked_for(folder):
    config = settled("manifest", folder)
    config.mert.path = ""
    with pytest.raises(UserError, match=r"^config\.mert\.path is empty: name it"):
        dry_run(config)
    with pytest.raises(UserError, match=r"^config\.data\.manifest is empty: name the examples' file"):
        dry_run(settled("manifest", folder))
