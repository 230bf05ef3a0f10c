"""Which file a clip is: its path decides, or an id that only one file has; never a name that another file has too."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from mlingo_jax.data.lookup import AudioFolders, find_all
from mlingo_jax.data.manifest import read_manifest, split_examples
from mlingo_jax.data.prepared import Prepared
from mlingo_jax.datasets.manifest import Manifest
from mlingo_jax.datasets.music_qa import MusicQA
from mlingo_jax.errors import UserError
from tests.collections_of_music import built, music_qa_question, tone, tones, write_json, write_jsonl


def row(audio: str, **more: str) -> dict[str, str]:
    return {"audio": audio, "question": "What plays?", "answer": f"That of {audio}.", **more}


@pytest.mark.parametrize(
    "named",
    [
        "one/01.flac",
        "./one/01.flac",
        "one\\01.flac",
        "music/one/01.flac",
        "/nowhere/one/01.flac",
    ],
)
def test_a_file_of_another_folder_never_stands_in_for_a_missing_one(tmp_path, named):
    tone(tmp_path / "another" / "01.flac", 1.0)
    tone(tmp_path / "one" / "02.flac", 1.0)
    assert AudioFolders([tmp_path]).find([named]) == []


def test_a_path_is_found_below_other_folders_and_with_another_extension(tmp_path):
    wanted = tone(tmp_path / "deep" / "one" / "01.flac", 1.0)
    tone(tmp_path / "deep" / "another" / "01.wav", 1.0)
    folders = AudioFolders([tmp_path])
    for named in ("one/01.flac", "one/01.mp3", "deep/one/01", "./one/01.flac", "one\\01.flac"):
        assert folders.find([named]) == [wanted]
    assert len(folders.find(["01"])) == 2


def test_a_manifest_misses_what_is_not_at_its_path(tmp_path):
    tone(tmp_path / "another" / "01.wav", 1.0)
    tone(tmp_path / "one" / "02.wav", 1.0)
    annotations = write_jsonl(tmp_path / "mine.jsonl", [row("one/01.wav"), row("one/02.wav")])
    report = built(Manifest, annotations, tmp_path, tmp_path / "data")
    assert (report.clips["there"], report.clips["missing"]) == (1, 1)


def test_a_manifest_in_an_albums_folder_does_not_reach_into_another_albums(tmp_path):
    """Its names are found by name alone only where none of them is a file beside it."""
    for name in ("one/01.wav", "another/01.wav", "another/02.wav"):
        tone(tmp_path / name, 1.0)
    annotations = write_jsonl(tmp_path / "one" / "mine.jsonl", [row("01.wav"), row("02.wav")])
    report = built(Manifest, annotations, tmp_path, tmp_path / "data")
    assert (report.clips["there"], report.clips["missing"]) == (1, 1)
    assert Prepared(tmp_path / "data", "manifest/own").clips["01.wav"].audio == (tmp_path / "one/01.wav").read_bytes()


def test_two_manifests_that_mean_different_files_by_one_name_are_refused(tmp_path):
    paths = []
    for album, seconds in (("one", 1.0), ("another", 2.0)):
        tone(tmp_path / album / "01.wav", seconds)
        paths.append(write_jsonl(tmp_path / album / "mine.jsonl", [row("01.wav")]))
    names = {"01.wav": tuple(str(path.with_name("01.wav")) for path in paths)}
    with pytest.raises(UserError, match=r"1 clip of one name beside different manifests.*another/01.wav and .*one/01"):
        find_all([tmp_path], names)
    (tmp_path / "both").mkdir()
    for i, path in enumerate(paths):
        path.rename(tmp_path / "both" / f"{i}.jsonl")
        tone(tmp_path / "both" / "01.wav", 1.0)
    assert built(Manifest, tmp_path / "both", tmp_path / "both", tmp_path / "data").clips["there"] == 1


def test_the_splits_of_several_manifests_are_compared(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [row("01.wav", split="train")])
    write_jsonl(tmp_path / "b.jsonl", [row("01.wav", split="eval")])
    with pytest.raises(UserError, match=r"b\.jsonl:1: '01\.wav' is in the split 'eval' here and in 'train' at .*a\.js"):
        list(Manifest(annotations=[tmp_path / "a.jsonl", tmp_path / "b.jsonl"]).annotations())


def test_two_files_at_one_path_below_two_folders_are_refused_and_one_file_reached_twice_is_not(tmp_path):
    for folder in ("here", "there"):
        tone(tmp_path / folder / "one" / "01.wav", 1.0)
    (tmp_path / "linked").symlink_to(tmp_path / "here")
    clips = {"one/01.wav": ("one/01.wav",), "01": ("01",)}
    with pytest.raises(UserError, match="2 clips with several audio files"):
        find_all([tmp_path / "here", tmp_path / "there"], clips)
    one = tmp_path / "here" / "one" / "01.wav"
    assert find_all([tmp_path / "here", tmp_path / "linked"], clips) == {"one/01.wav": one, "01": one}


def test_music_qa_tells_two_files_of_one_name_apart_by_their_folders(tmp_path):
    for folder, seconds in (("a", 1.0), ("b", 2.0)):
        tone(tmp_path / folder / "1.wav", seconds)
    questions = [music_qa_question(f"{folder}/1.wav", "What?", f"Of {folder}.") for folder in "ab"]
    annotations = write_json(tmp_path / "EvalMusicQA.json", questions)
    built(MusicQA, annotations, tmp_path, tmp_path / "data")
    prepared = Prepared(tmp_path / "data", "music_qa")
    found = {e.answer: prepared.clips[e.clip].seconds for e in map(prepared.examples("eval").__getitem__, range(2))}
    assert found == {"Of a.": 1.0, "Of b.": 2.0}


SPELLINGS = ["one/01.wav", "./one/01.wav", "one//01.wav", "one/../one/01.wav", "link/01.wav", "hard.wav"]


@pytest.fixture
def spelled(tmp_path) -> Path:
    """A folder whose one file goes by the names in SPELLINGS, and by its absolute path."""
    file = tone(tmp_path / "one" / "01.wav", 1.0)
    (tmp_path / "link").symlink_to(tmp_path / "one")
    os.link(file, tmp_path / "hard.wav")
    return tmp_path


def test_one_file_is_one_clip_however_it_is_spelled(spelled):
    rows = [row(name) for name in [*SPELLINGS, str(spelled / "one" / "01.wav")]]
    examples = read_manifest(write_jsonl(spelled / "mine.jsonl", rows))
    assert {(e.clip, e.audio) for e in examples} == {("one/01.wav", spelled / "one" / "01.wav")}
    for share in (0.1, 0.5, 0.9):
        assert [] in split_examples(examples, share)
    annotations = list(Manifest(annotations=[spelled / "mine.jsonl"]).annotations())
    assert {a.clip for a in annotations} == {"one/01.wav"}
    assert len(annotations) == len(rows)


@pytest.mark.parametrize("other", SPELLINGS[1:])
def test_one_file_is_not_trained_on_and_held_out(spelled, other):
    lines = [row("one/01.wav", split="train"), row(other, split="eval")]
    path = write_jsonl(spelled / "mine.jsonl", lines)
    for read in (read_manifest, lambda path: list(Manifest(annotations=[path]).annotations())):
        with pytest.raises(UserError, match=r"mine\.jsonl:2: 'one/01\.wav' is in the split 'eval' here and in 'train'"):
            read(path)


def test_one_file_below_an_audio_folder_is_not_two_clips(spelled):
    (spelled / "notes").mkdir()
    annotations = write_jsonl(spelled / "notes" / "mine.jsonl", [row("one/01.wav"), row("link/01.wav")])
    with pytest.raises(UserError, match=r"1 audio file under several names; .*01\.wav: one/01\.wav, link/01\.wav"):
        built(Manifest, annotations, spelled, spelled / "data")


def test_names_that_can_be_no_path_are_only_missing(tmp_path):
    path = tmp_path / "mine.jsonl"
    for name in ("\0", "x" * 5000, "//", ".", "one/\0"):
        path.write_text(json.dumps(row(name)))
        with pytest.raises(UserError, match="there is no audio file"):
            read_manifest(path)


def asked(folder: Path, seconds: float) -> Path:
    """A manifest of three clips, which states their length."""
    rows = [{**row(f"{i}.wav"), "seconds": seconds} for i in range(3)]
    return write_jsonl(folder / "mine.jsonl", rows)


def test_clips_that_were_prepared_before_must_have_the_length_that_is_stated(tmp_path):
    tones(tmp_path / "audio", ["0.wav", "1.wav"], 1.0)
    tone(tmp_path / "audio" / "2.wav", 5.0)
    built(
        Manifest, write_jsonl(tmp_path / "all.jsonl", [row(f"{i}.wav") for i in range(3)]), tmp_path / "audio", tmp_path
    )
    report = built(Manifest, asked(tmp_path / "notes", 1.0), "manifest_own", tmp_path, config="asked")
    assert report.clips == {"there": 2, "missing": 0, "unreadable": 0, "too short": 0, "wrong length": 1}


def test_a_dataset_whose_clips_were_prepared_anew_from_other_audio_is_refused(tmp_path):
    audio, data_dir = tones(tmp_path / "audio", [f"{i}.wav" for i in range(3)], 1.0), tmp_path / "data"
    own = write_jsonl(tmp_path / "all.jsonl", [row(f"{i}.wav") for i in range(3)])
    built(Manifest, own, audio, data_dir)
    notes = asked(tmp_path / "notes", 1.0)
    built(Manifest, notes, "manifest_own", data_dir, config="asked")
    # The same audio and one clip more: nothing changes for whom the clips are theirs.
    tone(audio / "3.wav", 1.0)
    write_jsonl(own, [row(f"{i}.wav") for i in range(4)])
    built(Manifest, own, audio, data_dir)
    assert len(Prepared(data_dir, "manifest/asked").clips) == 4
    tone(audio / "1.wav", 1.0, frequency=700)
    built(Manifest, own, audio, data_dir)
    with pytest.raises(UserError, match=r"1 clip of manifest_own changed since manifest/asked was prepared \(1\.wav\)"):
        _ = Prepared(data_dir, "manifest/asked").clips
    assert len(Prepared(data_dir, "manifest/own").clips) == 4
    built(Manifest, notes, "manifest_own", data_dir, config="asked")
    assert len(Prepared(data_dir, "manifest/asked").clips) == 4


def test_a_record_that_is_not_what_was_measured_is_not_heard(tmp_path):
    audio, data_dir = tones(tmp_path / "audio", ["0.wav", "1.wav"], 1.0), tmp_path / "data"
    built(Manifest, write_jsonl(tmp_path / "all.jsonl", [row("0.wav"), row("1.wav")]), audio, data_dir)
    clips = Prepared(data_dir, "manifest/own").clips
    assert clips.audio("0.wav") == (audio / "0.wav").read_bytes()
    checks = clips.folder / "checks.jsonl"
    checks.write_text(checks.read_text().replace(hashlib.sha256(clips.audio("1.wav")).hexdigest(), "0" * 64))
    clips = Prepared(data_dir, "manifest/own").clips
    with pytest.raises(
        UserError, match=r"the audio of clip '1\.wav' is not what was prepared; prepare the dataset again"
    ):
        clips.audio("1.wav")
    for text in ("12\n", "{}\n", "["):
        checks.write_text(text)
        with pytest.raises(UserError, match=r"checks\.jsonl: missing or damaged"):
            Prepared(data_dir, "manifest/own").clips.digest("0.wav")
