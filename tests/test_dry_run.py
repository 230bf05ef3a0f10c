"""Before a run on prepared datasets: what is missing, and what it would train on."""

from pathlib import Path

import pytest

from configs.base import Config
from mlingo_jax.data.datasets.music_caps import MusicCaps
from mlingo_jax.errors import UserError
from mlingo_jax.training.config import config_names, load_config
from mlingo_jax.training.dry_run import dry_run
from mlingo_jax.training.missing import require_all
from tests.collections_of_music import built, music_caps
from tests.tiny import tiny_llama, tiny_mert

# Configs of the paper's runs: all but those that bring their own data.
RUNS = [name for name in config_names() if load_config(name).data.datasets]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("everything")
    tiny_mert(folder / "mert")
    tiny_llama(folder / "llm")
    annotations, audio = music_caps(folder / "caps")
    built(MusicCaps, annotations, audio, folder / "data")
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


def test_nothing_is_missing(folder):
    require_all(settled("pretrain_musiccaps", folder))


def test_a_dry_run_of_stage_1(folder):
    shown = dry_run(settled("pretrain_musiccaps", folder))
    assert '"max_answer_tokens": 32' in shown
    assert "2 examples to train on, 2 to evaluate on" in shown
    assert r'row 0: <s>[music 0-2]«A slow bell, "low"\nand soft: recording' in shown
    assert shown.endswith("20,000 steps of 2, 20,000 updates\n  20000.00 epochs of 2 examples, weight 1")


def test_a_dry_run_of_stage_2(folder):
    shown = dry_run(settled("finetune_musiccaps", folder))
    assert "<s>###Human: <Audio>[music 0-2]</Audio> Please give a caption to the music. ###Assistant: «A slow" in shown
    assert ".###»\n" in shown
    assert "6,000 steps of 2, 750 updates" in shown


def test_a_dry_run_of_packed_rows(folder):
    config = settled("finetune_musiccaps", folder)
    config.data.packed = True
    shown = dry_run(config)
    assert "packed into 1 x 512 tokens, " in shown
    assert "12000.00 epochs of 2 examples" in shown
