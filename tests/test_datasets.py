"""Every dataset from a small copy of its real format: splits, texts, clips; and the real annotations where they are."""

import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mlingo_jax.data.annotations import CAPTION_QUESTION
from mlingo_jax.data.audio import AudioSettings, decode_audio, read_audio
from mlingo_jax.data.prepared import Prepared
from mlingo_jax.datasets.lp_music_caps import CAPTIONS, LPMusicCaps
from mlingo_jax.datasets.manifest import Manifest
from mlingo_jax.datasets.music_caps import MusicCaps
from mlingo_jax.datasets.music_instruct import MusicInstruct
from mlingo_jax.datasets.music_qa import MusicQA
from mlingo_jax.datasets.song_describer import SongDescriber
from mlingo_jax.errors import UserError
from tests.collections_of_music import (
    MUSIC_CAPS,
    built,
    music_caps,
    music_instruct_question,
    music_qa_question,
    tone,
    tones,
    write_csv,
    write_json,
    write_jsonl,
)

REAL = Path(__file__).parents[1].parent / "shared" / "data"


def texts(prepared: Prepared, split: str) -> list[tuple[str, str, str, str]]:
    return [(e.clip, e.question, e.answer, e.source) for e in prepared.examples(split)]


def test_music_caps(tmp_path):
    annotations, audio = music_caps(tmp_path)
    report = built(MusicCaps, annotations, audio, tmp_path / "data")
    assert report.clips == {"there": 4, "missing": 0, "unreadable": 0, "too short": 0, "wrong length": 0}
    prepared = Prepared(tmp_path / "data", "music_caps")
    assert prepared.splits == {"eval": 2, "train": 2}
    expected = [
        (str(row["ytid"]), CAPTION_QUESTION, row["caption"], "music_caps")
        for row in MUSIC_CAPS
        if not row["is_audioset_eval"]
    ]
    assert texts(prepared, "train") == expected
    for clip, _, _, _ in texts(prepared, "eval"):
        stored = prepared.clips[clip]
        assert stored.audio == (audio / f"{clip}.wav").read_bytes()
        assert (stored.seconds, stored.rate) == (10.0, 8000)
        settings = AudioSettings(24000, normalize=True)
        encoded = decode_audio(stored.audio, clip, settings)
        assert (encoded == read_audio(audio / f"{clip}.wav", settings)).all()
    assert sorted(clip for clip, _, _ in prepared.clips.lengths()) == sorted(str(row["ytid"]) for row in MUSIC_CAPS)
    assert "tensorflow" not in sys.modules


def test_what_is_not_prepared_is_named(tmp_path):
    annotations, audio = music_caps(tmp_path)
    with pytest.raises(UserError, match=r"music_caps is not prepared there; do so by `python -m mlingo_jax\.prepare"):
        Prepared(tmp_path / "data", "music_caps")
    (tmp_path / "data/manifest/own/1.0.0").mkdir(parents=True)
    (tmp_path / "data/manifest/own/1.0.0/prepared.json").write_text("{}")
    with pytest.raises(UserError, match="manifest is not prepared there; name the part that is: manifest/own"):
        Prepared(tmp_path / "data", "manifest")
    built(MusicCaps, annotations, audio, tmp_path / "data")
    prepared = Prepared(tmp_path / "data", "music_caps")
    assert "x" not in prepared.clips
    assert MUSIC_CAPS[0]["ytid"] in prepared.clips
    with pytest.raises(UserError, match="there is no clip 'x' in this collection"):
        prepared.clips["x"]
    with pytest.raises(UserError, match="expected the split eval or train, found 'test'"):
        prepared.examples("test")
    with pytest.raises(IndexError):
        prepared.examples("train")[2]


def test_music_caps_in_the_originals_form(tmp_path):
    """Its json carries the sample rate of the .npy files; LP-MusicCaps' file names carry the times."""
    rows = [{**row, "sampling_rate": 8000, "is_audioset_eval": str(row["is_audioset_eval"])} for row in MUSIC_CAPS]
    names = [f"[{row['ytid']}]-[{row['start_s']}-{row['end_s']}].flac" for row in MUSIC_CAPS]
    annotations = write_json(tmp_path / "all.json", {"ann": rows})
    report = built(MusicCaps, annotations, tones(tmp_path / "audio" / "deep", names), tmp_path / "data")
    assert report.clips["there"] == 4
    assert Prepared(tmp_path / "data", "music_caps").splits == {"eval": 2, "train": 2}


@pytest.mark.parametrize("true", [True, "True"])
def test_music_instruct_shares_the_clips_of_music_caps(tmp_path, true):
    annotations, audio = music_caps(tmp_path)
    built(MusicCaps, annotations, audio, tmp_path / "data")
    ids = [str(row["ytid"]) for row in MUSIC_CAPS]
    folder = tmp_path / "MusicInstruct"
    short = [
        music_instruct_question(ids[0], true, "short"),
        music_instruct_question(ids[1], False, "short"),
        music_instruct_question("gone", str(not true), "short"),
    ]
    long = [music_instruct_question(ids[0], true, "long"), music_instruct_question(ids[2], "False", "long")]
    write_json(folder / "music_instruct_short.json", {"QA": short})
    write_json(folder / "music_instruct_long.json", {"QA": long})
    write_json(folder / "music_instruct.json", {"QA": short + long})
    for config, test, train in [("short", 1, 1), ("long", 1, 1), ("all", 2, 2)]:
        report = built(MusicInstruct, folder, "music_caps", tmp_path / "data", config=config)
        assert report.clips["missing"] == (0 if config == "long" else 1)
        prepared = Prepared(tmp_path / "data", f"music_instruct/{config}")
        assert prepared.splits == {"test": test, "train": train}
        assert prepared.clips[prepared.examples("train")[0].clip].seconds == 10.0
    assert [path.name for path in (tmp_path / "data" / "clips").iterdir()] == ["music_caps"]
    with pytest.raises(UserError, match="expected the config all or short or long, found 'medium'"):
        built(MusicInstruct, folder, "music_caps", tmp_path / "data", config="medium")
    with pytest.raises(UserError, match="no prepared clips there"):
        built(MusicInstruct, folder, "nowhere", tmp_path / "data", config="all")


def test_music_qa(tmp_path):
    folder = tmp_path / "MusicQA"
    write_json(folder / "PretrainMusicQA.json", [music_qa_question("-0Gj8-vB1q4.wav", "Describe the audio", "A bell.")])
    write_json(
        folder / "FinetuneMusicQA.json",
        [music_qa_question("f_1-117-146.mp3", "What do you encode in the audio", "Lutes.")],
    )
    evaluation = [
        music_qa_question("012542.wav", q, a) for q, a in [("Describe the audio", "Post-rock."), ("Genre?", "Röck…")]
    ]
    write_json(folder / "EvalMusicQA.json", evaluation)
    audio = tones(tmp_path / "audios", ["a/-0Gj8-vB1q4.mp3", "b/f_1-117-146.ogg", "012542.wav"], 1.0)
    report = built(MusicQA, folder, audio, tmp_path / "data")
    assert report.clips["there"] == 3
    prepared = Prepared(tmp_path / "data", "music_qa")
    assert prepared.splits == {"eval": 2, "finetune": 1, "pretrain": 1}
    assert texts(prepared, "eval")[1] == ("012542", "Genre?", "Röck…", "music_qa")
    assert texts(prepared, "finetune") == [("f_1-117-146", "What do you encode in the audio", "Lutes.", "music_qa")]


LP = {
    "track_id": ["TRBAISB12903CF1054", "TRAAAAA000000000A1"],
    "title": ["Crushing Belial", "Untitled"],
    "tag": [["metalcore"], []],
    **{name: [f"{name} one", f"{name} two"] for name in CAPTIONS},
    "path": ["8/1/8134074.clip.mp3", "9/2/9200000.clip.mp3"],
}


def test_lp_music_caps_keeps_all_four_captions(tmp_path):
    table = pyarrow.table({**LP, "caption_summary": ["summary one", None]})
    (tmp_path / "lp").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "lp" / "train-00000-of-00002.parquet")
    second = pyarrow.table({**LP, "track_id": ["TRAAAAA000000000A2", "TRAAAAA000000000A3"], "path": ["x.mp3", "y.mp3"]})
    pyarrow.parquet.write_table(second, tmp_path / "lp" / "train-00001-of-00002.parquet")
    names = ["8/1/8134074.clip.mp3", "TRAAAAA000000000A1.mp3", "x.mp3", "y.mp3"]
    report = built(LPMusicCaps, tmp_path / "lp", tones(tmp_path / "audio", names, 1.0), tmp_path / "data", config="msd")
    assert report.clips["there"] == 4
    prepared = Prepared(tmp_path / "data", "lp_music_caps/msd")
    others = {"train_summary": 3, "train_paraphrase": 4, "train_attribute_prediction": 4}
    assert prepared.splits == {"train": 4, **others}
    first = ("TRBAISB12903CF1054", CAPTION_QUESTION, "caption_writing one", "lp_music_caps/msd/writing")
    assert texts(prepared, "train")[0] == first
    with pytest.raises(UserError, match="expected the config msd or mtt or mc, found None"):
        built(LPMusicCaps, tmp_path / "lp", tmp_path / "audio", tmp_path / "data")


def test_lp_music_caps_of_music_caps(tmp_path):
    rows = [{**row, "fname": "x", **{name: f"{name} {row['ytid']}" for name in CAPTIONS}} for row in MUSIC_CAPS]
    write_csv(tmp_path / "lp" / "train.csv", rows[:3])
    write_csv(tmp_path / "lp" / "test.csv", rows[3:])
    _, audio = music_caps(tmp_path)
    built(LPMusicCaps, tmp_path / "lp", audio, tmp_path / "data", config="mc")
    prepared = Prepared(tmp_path / "data", "lp_music_caps/mc")
    assert prepared.splits["train"] == prepared.splits["train_summary"] == 3
    assert texts(prepared, "test_summary")[0][2] == f"caption_summary {rows[3]['ytid']}"


def test_song_describer(tmp_path):
    row = {"caption_id": 1, "track_id": 1004048, "caption": "Dub.", "is_valid_subset": True, "familiarity": 0}
    row |= {"artist_id": 1, "album_id": 2, "path": "48/1004048.mp3", "duration": 250.1}
    other = {**row, "caption_id": 2, "caption": "Echoes.", "is_valid_subset": False}
    annotations = write_csv(tmp_path / "song_describer.csv", [row, other])
    audio = tones(tmp_path / "audio", ["48/1004048.2min.mp3"], 2.0)
    built(SongDescriber, annotations, audio, tmp_path / "data")
    prepared = Prepared(tmp_path / "data", "song_describer")
    assert prepared.splits == {"test": 2, "validated": 1}
    assert texts(prepared, "validated") == [("1004048", CAPTION_QUESTION, "Dub.", "song_describer")]


def test_song_describer_as_cmi_bench_has_it(tmp_path):
    row = {"instruction": "Please describe.", "input": "<|SOA|><AUDIO><|EOA|>", "output": "Dub.", "uuid": "1"}
    row |= {"split": ["test"], "task_type": {}, "audio_path": ["data/SDD/audio/48/1004048.2min.mp3"]}
    row |= {"audio_start": 0.0, "audio_end": 2.0, "source": "SDD"}
    annotations = write_jsonl(tmp_path / "CMI_SDD.jsonl", [row])
    audio = tones(tmp_path / "audio", ["48/1004048.2min.mp3"], 2.0)
    built(SongDescriber, annotations, audio, tmp_path / "data")
    prepared = Prepared(tmp_path / "data", "song_describer")
    assert texts(prepared, "test") == [("1004048", "Please describe.", "Dub.", "cmi_bench")]


def test_manifest(tmp_path):
    first, second = {"audio": "a/1.wav", "question": "What plays?"}, {"audio": "b/1.wav", "question": "And here?"}
    rows = [{**first, "answer": "A bell."}, {**second, "answer": "A lute.", "split": "eval"}]
    annotations = write_jsonl(tmp_path / "mine.jsonl", rows)
    tone(tmp_path / "a/1.wav", 1.0)
    tone(tmp_path / "b/1.wav", 2.0)
    built(Manifest, annotations, tmp_path, tmp_path / "data", config="mine")
    prepared = Prepared(tmp_path / "data", "manifest/mine")
    assert texts(prepared, "train") == [("a/1.wav", "What plays?", "A bell.", "mine")]
    assert texts(prepared, "eval") == [("b/1.wav", "And here?", "A lute.", "mine")]
    assert prepared.clips["b/1.wav"].seconds == 2.0


def test_manifest_in_csv_and_by_name_alone(tmp_path):
    rows = [{"audio": "1", "question": "What, then?", "answer": 'A "bell".', "split": ""}]
    annotations = write_csv(tmp_path / "notes" / "mine.csv", rows)
    built(Manifest, annotations, tones(tmp_path / "music", ["deep/down/1.flac"], 1.0), tmp_path / "data")
    prepared = Prepared(tmp_path / "data", "manifest/own")
    assert texts(prepared, "train") == [("1", "What, then?", 'A "bell".', "own")]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_manifest_of_conversations(tmp_path, suffix):
    said = ["<audio>\nWhat plays?", "A bell.", "How fast?\n<audio>", "Slowly."]
    turns = [{"from": "human" if i % 2 == 0 else "gpt", "value": value} for i, value in enumerate(said)]
    rows = [{"id": "7", "audio": "1.wav", "conversations": turns}]
    path = tmp_path / f"mine.{suffix}"
    annotations = write_json(path, rows) if suffix == "json" else write_jsonl(path, rows)
    tone(tmp_path / "1.wav", 1.0)
    built(Manifest, annotations, tmp_path, tmp_path / "data")
    expected = [("1.wav", "What plays?", "A bell.", "own"), ("1.wav", "How fast?", "Slowly.", "own")]
    assert texts(Prepared(tmp_path / "data", "manifest/own"), "train") == expected


@pytest.mark.skipif(not REAL.is_dir(), reason="the real annotations (../shared/data) are not here")
def test_the_real_music_caps(tmp_path):
    annotations = REAL / "musiccaps-public.csv"
    wanted = list(MusicCaps(annotations=[annotations]).annotations())
    assert [sum(a.split == split for a in wanted) for split in ("train", "eval")] == [2663, 2858]
    assert {a.seconds for a in wanted} == {10.0}
    report = built(MusicCaps, annotations, tones(tmp_path / "audio", [f"{a.clip}.wav" for a in wanted[:200]]), tmp_path)
    assert report.annotated == report.published == {"train": 2663, "eval": 2858}
    assert (report.clips["there"], report.clips["missing"]) == (200, 5321)
    prepared = Prepared(tmp_path, "music_caps")
    assert sum(prepared.splits.values()) == 200
    for split in prepared.splits:
        kept = [(a.clip, a.question, a.answer, a.source) for a in wanted[:200] if a.split == split]
        assert texts(prepared, split) == kept


@pytest.mark.skipif(not REAL.is_dir(), reason="the real annotations (../shared/data) are not here")
def test_the_real_music_qa(tmp_path):
    items = json.loads((REAL / "EvalMusicQA.json").read_text(encoding="utf-8"))
    names = list(dict.fromkeys(item["audio_name"] for item in items))
    assert (len(items), len(names)) == (5040, 560)
    report = built(MusicQA, REAL / "EvalMusicQA.json", tones(tmp_path / "audio", names, 0.5), tmp_path)
    assert report.annotated == report.kept == report.published == {"eval": 5040}
    assert report.clips["there"] == len(Prepared(tmp_path, "music_qa").clips) == 560
    stored = texts(Prepared(tmp_path, "music_qa"), "eval")
    assert [answer for _, _, answer, _ in stored] == [item["conversation"][1]["value"] for item in items]
