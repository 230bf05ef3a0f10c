"""Annotations that are empty, damaged or another dataset's; audio that is missing, broken, too short or too long."""

import contextlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from mlingo_jax.data.annotations import items, read_csv, read_json, read_jsonl
from mlingo_jax.data.lookup import AudioFolders, stem
from mlingo_jax.datasets.check import Task, check
from mlingo_jax.datasets.lp_music_caps import LPMusicCaps
from mlingo_jax.datasets.manifest import Manifest
from mlingo_jax.datasets.music_caps import MusicCaps
from mlingo_jax.datasets.music_instruct import MusicInstruct
from mlingo_jax.datasets.music_qa import MusicQA
from mlingo_jax.datasets.song_describer import SongDescriber
from mlingo_jax.errors import UserError
from tests.audio_files import SECONDS, encoded
from tests.collections_of_music import MUSIC_CAPS, built, music_caps, tone, tones, write_csv, write_json, write_jsonl

HEADER = "ytid,start_s,end_s,caption,is_audioset_eval\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"bad\.csv: the file is empty"),
        (HEADER.encode(), "no annotations in it"),
        (b"audio,question,answer\n1,2,3\n", "columns ytid, caption, .* are missing; found audio, question, answer"),
        (
            (HEADER + "a,0,10,A bell.,True\nb,0,10,A lu").encode(),
            r"bad\.csv:3: expected 5 columns, found 4; the file is",
        ),
        ((HEADER + "a,0,10,A bell, a lute.,True\n").encode(), r"bad\.csv:2: expected 5 columns, found 6"),
        ((HEADER + 'a,0,10,"A bell').encode(), "not valid csv, or cut off"),
        ((HEADER + "a,0,10,A b\xe9ll.,True\n").encode("latin-1"), "not UTF-8"),
        (
            (HEADER + "a,0,10,A bell.,perhaps\n").encode(),
            'expected True or False in "is_audioset_eval", found "perhaps"',
        ),
        ((HEADER + "a,ten,10,A bell.,True\n").encode(), 'expected a number in "start_s", found "ten"'),
        ((HEADER + "a,10,0,A bell.,True\n").encode(), "expected 0 <= start_s < end_s, found 10 and 0"),
        ((HEADER + "a,0,10, ,True\n").encode(), 'expected a text in "caption"'),
        ((HEADER + "a,0,10,A,True\na,0,9,B,True\n").encode(), "the clip 'a' two lengths, 10.0 s and 9.0 s"),
    ],
)
def test_a_bad_csv_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        built(MusicCaps, path, tmp_path, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_columns_that_nobody_asked_for_are_no_harm(tmp_path):
    _, audio = music_caps(tmp_path)
    annotations = write_csv(tmp_path / "more.csv", [{**row, "mood": "calm"} for row in MUSIC_CAPS])
    assert built(MusicCaps, annotations, audio, tmp_path / "data").clips["there"] == 4


@pytest.mark.parametrize(
    ("dataset", "name", "content", "message"),
    [
        (MusicQA, "EvalMusicQA.json", "", "the file is empty"),
        (MusicQA, "EvalMusicQA.json", '[{"audio_name": "1.wav", ', "not valid JSON, or cut off"),
        (MusicQA, "EvalMusicQA.json", "[]", r"expected a list of objects, found \[\]"),
        (MusicQA, "EvalMusicQA.json", '{"QA": []}', "expected a list of objects, found .* is it this dataset's file"),
        (MusicQA, "EvalMusicQA.json", '[{"ytid": "1"}]', "item 0: the field audio_name is missing; found ytid"),
        (MusicQA, "questions.json", "[]", "the file's name tells the split: expected one of PretrainMusicQA.json"),
        (MusicInstruct, "music_instruct.json", "[]", "the field QA is missing"),
        (MusicInstruct, "music_instruct.json", '{"QA": [3]}', "QA: item 0: expected a JSON object, found 3"),
        (Manifest, "own.jsonl", "\n", "the file is empty"),
        (Manifest, "own.jsonl", '{"audio": "1.wav"}\n', r"own\.jsonl:1: the field question is missing; found audio"),
        (Manifest, "own.jsonl", '{"audio": "1.wav", "quest', r"own\.jsonl:1: not JSON, or cut off"),
        (Manifest, "own.jsonl", '"1.wav"', 'expected a JSON object, found "1.wav"'),
        (Manifest, "own.jsonl", '{"audio": "\\ud800"}', "half a surrogate pair"),
        (SongDescriber, "song_describer.csv", "track_id,caption\n", "the columns is_valid_subset, path are missing"),
        (SongDescriber, "x.jsonl", '{"instruction": "a"}', "the fields output, audio_path are missing"),
    ],
)
def test_a_bad_json_is_refused(tmp_path, dataset, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        built(dataset, tmp_path / name, tmp_path, tmp_path / "data")


def test_text_that_is_not_utf8_is_refused(tmp_path):
    for name in ("EvalMusicQA.json", "own.jsonl"):
        (tmp_path / name).write_bytes(b'{"audio": "R\xf6ck"}')
    with pytest.raises(UserError, match=r"EvalMusicQA\.json: not UTF-8 \(invalid start byte at byte 12\)"):
        read_json(tmp_path / "EvalMusicQA.json")
    with pytest.raises(UserError, match=r"own\.jsonl:1: not UTF-8"):
        list(read_jsonl(tmp_path / "own.jsonl"))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([{"from": "human", "value": "What?"}], "the last question has no answer"),
        ([{"from": "gpt", "value": "A."}, {"from": "human", "value": "B?"}], 'item 0: expected "human" in "from"'),
        ([{"from": "human", "value": "<audio>"}, {"from": "gpt", "value": "A."}], 'item 0: expected a text in "value"'),
        ([{"from": "human"}, {"from": "gpt", "value": "A."}], "item 0: the field value is missing"),
        ("What?", 'conversations: expected a list of objects, found "What'),
    ],
)
def test_a_bad_conversation_is_refused(tmp_path, said, message):
    path = write_jsonl(tmp_path / "own.jsonl", [{"audio": "1.wav", "conversations": said}])
    with pytest.raises(UserError, match=message):
        list(Manifest(annotations=[path]).annotations())


def test_a_manifest_with_a_clip_in_two_splits_is_refused(tmp_path):
    row = {"audio": "1.wav", "question": "What?", "answer": "A bell."}
    path = write_jsonl(tmp_path / "own.jsonl", [{**row, "split": "eval"}, row])
    with pytest.raises(UserError, match=r"own\.jsonl:2: '1\.wav' is in the split 'train' here and in 'eval' at .*:1"):
        list(Manifest(annotations=[path]).annotations())


def test_parquet_that_is_none_is_refused(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"train\.parquet: not valid parquet, or cut off"):
        built(LPMusicCaps, tmp_path / "train.parquet", tmp_path, tmp_path / "data", config="msd")


def test_more_than_was_published_is_refused(tmp_path):
    answer = {"question": "What?", "answer": "A bell.", "is_audioset_eval": True}
    path = write_json(tmp_path / "all.json", {"QA": [{**answer, "ytid": str(i % 7)} for i in range(27541)]})
    with pytest.raises(UserError, match="expected at most the published 27540 examples, found 27541"):
        built(MusicInstruct, path, tmp_path, tmp_path / "data", config="short")


def test_as_many_as_published_must_be_about_as_many_clips(tmp_path):
    said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A bell."}]
    path = write_json(
        tmp_path / "EvalMusicQA.json", [{"audio_name": f"{i % 559}.wav", "conversation": said} for i in range(5040)]
    )
    with pytest.raises(UserError, match="5040 examples in eval to be about 560 clips, found 559"):
        built(MusicQA, path, tmp_path, tmp_path / "data")


def test_missing_places_are_named(tmp_path):
    annotations, audio = music_caps(tmp_path)
    with pytest.raises(UserError, match=r"nothing\.csv: there is no such annotation file"):
        built(MusicCaps, tmp_path / "nothing.csv", audio, tmp_path / "data")
    with pytest.raises(UserError, match=r"none of musiccaps-public\.csv, all\.json in this folder"):
        built(MusicCaps, audio, audio, tmp_path / "data")
    with pytest.raises(UserError, match="nowhere: there is no such folder of audio"):
        built(MusicCaps, annotations, tmp_path / "nowhere", tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        built(MusicCaps, annotations, audio, tmp_path / "file" / "data")


def test_two_files_that_claim_one_clip_are_refused(tmp_path):
    annotations, audio = music_caps(tmp_path)
    tone(audio / "more" / f"{MUSIC_CAPS[0]['ytid']}.flac")
    with pytest.raises(UserError, match=r"1 clip with several audio files, .*\.wav, .*more.*\.flac"):
        built(MusicCaps, annotations, audio, tmp_path / "data")


def write_claiming_an_hour(path: Path) -> None:
    """A wav of ten seconds with an hour's header."""
    tone(path)
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", 3600 * 8000 * 2)
    path.write_bytes(content)


def test_every_clip_that_cannot_be_used_is_reported(tmp_path):
    ids = ["good", "empty", "text", "hour", "long", "short", "none", "nothing", "twin", "nan"]
    rows = [{**MUSIC_CAPS[0], "ytid": name, "caption": f"Clip {name}."} for name in ids]
    annotations = write_csv(tmp_path / "all.csv", rows)
    audio = tones(tmp_path / "audio", ["good.wav", "long.wav", "twin.wav"])
    (audio / "twin.wav").write_bytes((audio / "good.wav").read_bytes())
    tone(audio / "long.wav", 14.0)
    tone(audio / "short.wav", 0.01)
    soundfile.write(audio / "none.wav", np.zeros(0), 8000)
    soundfile.write(audio / "nan.wav", np.full(80000, np.nan, np.float32), 8000, subtype="FLOAT")
    (audio / "empty.wav").write_bytes(b"")
    (audio / "text.mp3").write_text("no audio at all")
    write_claiming_an_hour(audio / "hour.wav")
    report = built(MusicCaps, annotations, audio, tmp_path / "data")
    assert report.clips == {"there": 2, "missing": 1, "unreadable": 4, "too short": 2, "wrong length": 1}
    assert report.duplicated == 2
    assert report.kept == {"eval": 2}
    folder = tmp_path / "data" / "reports" / "music_caps"
    assert (folder / "missing.txt").read_text() == "nothing\n"
    assert json.loads((folder / "duplicates.jsonl").read_text()) == ["good", "twin"]
    bad = {
        line["clip"]: line["reason"] for line in map(json.loads, (folder / "bad_clips.jsonl").read_text().splitlines())
    }
    assert sorted(bad) == sorted(set(ids) - {"good", "twin", "nothing"})
    assert "the header claims" in bad["hour"]
    assert "over 11.0 s, expected 10.0 s" in bad["long"]
    assert "not finite" in bad["nan"]
    assert "the file is empty" in bad["empty"]
    stored = json.loads((folder / "report.json").read_text())
    assert (stored["clips"], stored["share"]) == (report.clips, 0.2)
    assert "unreadable                           4  40.0%" in report.table()


def test_too_few_clips_stop_the_build_after_its_report(tmp_path):
    annotations, audio = music_caps(tmp_path)
    (audio / f"{MUSIC_CAPS[1]['ytid']}.wav").write_text("broken")
    with pytest.raises(UserError, match=r"music_caps: 3 of 4 clips can be used, expected a share of at least 0.9"):
        built(MusicCaps, annotations, audio, tmp_path / "data", min_share=0.9)
    report = json.loads((tmp_path / "data" / "reports" / "music_caps" / "report.json").read_text())
    assert report["clips"]["unreadable"] == 1
    assert not (tmp_path / "data" / "music_caps").exists()
    assert built(MusicCaps, annotations, audio, tmp_path / "data", min_share=0.75).clips["there"] == 3
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="0 of 4 clips can be used, expected at least one"):
        built(MusicCaps, annotations, tmp_path / "none", tmp_path / "other")


def test_a_long_file_is_not_decoded_where_ten_seconds_are_expected(tmp_path):
    path = tone(tmp_path / "hour.wav", 100.0)
    checked, clip = check(Task("hour", str(path), seconds=10.0), 1.0)
    assert (checked.status, clip) == ("wrong length", None)
    assert 11 < checked.seconds < 60
    assert "over 11.0 s, expected 10.0 s" in checked.reason
    checked, clip = check(Task("hour", str(path)), 1.0)
    assert checked.status == "there"
    assert clip is not None
    assert clip.seconds == 100.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_the_originals_arrays_keep_their_numbers(tmp_path, dtype):
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, 80000)
    stored = (samples * 32767).astype(dtype) if dtype == np.int16 else samples.astype(dtype)
    np.save(tmp_path / "a.npy", stored)
    checked, clip = check(Task("a", str(tmp_path / "a.npy"), 10.0, rate=8000), 0.0)
    assert (checked.status, checked.seconds, checked.rate) == ("there", 10.0, 8000)
    assert clip is not None
    (tmp_path / "a.wav").write_bytes(clip.audio)
    read, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    expected = stored / np.float32(32768) if dtype == np.int16 else stored.astype(np.float32)
    np.testing.assert_array_equal(read, expected)
    assert rate == 8000


def test_bad_arrays_are_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(8000, np.float32))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:1000])
    np.save(tmp_path / "none.npy", np.zeros(0, np.float32))
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 4), np.float32))
    reasons = {
        "a": (None, "unreadable", "the annotations have no sampling_rate for it"),
        "objects": (8000, "unreadable", "not an array of samples"),
        "cut": (8000, "unreadable", "not an array of samples"),
        "none": (8000, "too short", "0.000 s"),
        "cube": (8000, "unreadable", "expected the shape"),
    }
    for name, (rate, status, reason) in reasons.items():
        checked, _ = check(Task(name, str(tmp_path / f"{name}.npy"), rate=rate), 1.0)
        assert checked.status == status
        assert reason in checked.reason


def test_what_is_stored_is_what_was_found_whatever_its_format(tmp_path):
    """No format is converted: what is measured, stored and decoded later are the same bytes."""
    for kind in ("m4a", "wma", "webm", "aac", "mp2", "caf", "w64", "aifc"):
        (tmp_path / f"{kind}.bin").write_bytes(encoded(kind))
        checked, clip = check(Task(kind, str(tmp_path / f"{kind}.bin"), SECONDS), 0.1)
        assert checked.status == "there", checked.reason
        assert clip is not None
        assert clip.audio == encoded(kind)
        assert clip.seconds == pytest.approx(SECONDS, abs=0.06)
    (tmp_path / "b.m4a").write_text("nothing")
    checked, _ = check(Task("b", str(tmp_path / "b.m4a")), 1.0)
    assert "not audio, or not in a format that can be read" in checked.reason


def test_clips_are_found_whatever_extension_and_folder(tmp_path):
    names = ["a.WAV", "deep/down/b.flac", "c.2min.mp3", ".hidden.wav", ".work/d.wav", "notes.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    folders = AudioFolders([tmp_path])
    assert len(folders) == 3
    assert folders.find(["a"]) == [tmp_path / "a.WAV"]
    assert folders.find(["b.wav"]) == [tmp_path / "deep" / "down" / "b.flac"]
    assert folders.find(["c", "c.2min"]) == [tmp_path / "c.2min.mp3"]
    assert folders.find(["deep/down/b.flac"]) == [tmp_path / "deep" / "down" / "b.flac"]
    assert folders.find(["d", "hidden", "x" * 5000, "a\0b"]) == []


NAMES = st.text(st.characters(exclude_characters="/\\\\"), min_size=1, max_size=20)


@given(NAMES)
def test_a_name_is_its_own_stem_but_for_folder_and_extension(name):
    assert stem(f"some/folder/{name}.flac") == name
    assert stem(f"folder\\{name}.MP3") == name
    assert stem(f"{name}.2min") == f"{name}.2min"


CELLS = st.text(st.characters(exclude_characters="\0\r", codec="utf-8"))


@given(st.lists(st.fixed_dictionaries(dict.fromkeys("abc", CELLS)), min_size=1, max_size=5))
def test_csv_rows_are_read_as_written(tmp_path_factory, rows):
    path = write_csv(tmp_path_factory.mktemp("csv") / "rows.csv", rows)
    assert [row for _, row in read_csv(path, "abc")] == rows


JSON = st.recursive(
    st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6
)


@given(JSON)
def test_only_lists_of_objects_have_items(value):
    legal = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    with contextlib.nullcontext() if legal else pytest.raises(UserError, match=r"^file: "):
        assert [item for _, item in items(value, "file")] == value
