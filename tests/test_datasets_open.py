"""Builders of audio that anybody may download, on small copies of the real formats."""

import pytest

from mlingo_jax.data.prepared import Prepared
from mlingo_jax.data.tables import TAGS_QUESTION
from mlingo_jax.datasets.fma import FMA
from mlingo_jax.datasets.mtg_jamendo import MTGJamendo
from mlingo_jax.datasets.music_bench import MusicBench
from mlingo_jax.errors import UserError
from tests.collections_of_music import built, made_pair, tones, write_jsonl

JAMENDO = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n"


def texts(prepared: Prepared, split: str) -> list[tuple[str, str, str, str]]:
    return [(e.clip, e.question, e.answer, e.source) for e in prepared.examples(split)]


def test_mtg_jamendo(tmp_path):
    for split, number in (("train", 948), ("validation", 1004034), ("test", 12)):
        path = f"{number % 100:02d}/{number}.mp3"
        line = f"track_{number:07d}\tartist_1\talbum_1\t{path}\t212.7\tgenre---rock\tmood/theme---sad\n"
        (tmp_path / f"autotagging-{split}.tsv").write_text(JAMENDO + line)
    # One track as in the full set, one as in the smaller one of mono; one is missing.
    audio = tones(tmp_path / "audio", ["48/948.mp3", "34/1004034.low.mp3"], 2.0)
    report = built(MTGJamendo, tmp_path, audio, tmp_path / "data", config="tags")
    assert (report.clips["there"], report.clips["missing"]) == (2, 1)
    prepared = Prepared(tmp_path / "data", "mtg_jamendo/tags")
    assert prepared.splits == {"train": 1, "valid": 1}
    assert texts(prepared, "train") == [("948", TAGS_QUESTION, "rock, sad", "mtg_jamendo/tags")]
    manifest = [made_pair("948", "48/948.mp3"), made_pair("1004034", "34/1004034.mp3", "eval")]
    made = write_jsonl(tmp_path / "made/manifest.jsonl", manifest)
    built(MTGJamendo, made.parent, audio, tmp_path / "data")
    prepared = Prepared(tmp_path / "data", "mtg_jamendo/captions")
    assert prepared.splits == {"train": 1, "eval": 1}
    assert texts(prepared, "eval") == [("1004034", manifest[1]["question"], "A bell, 1004034.", "mtg_jamendo/writing")]
    write_jsonl(made, [{"clip": "948"}])
    with pytest.raises(UserError, match=r"manifest\.jsonl:1: the field audio is missing"):
        built(MTGJamendo, made, audio, tmp_path / "data")


TRACKS = (
    ",album,artist,set,set,track,track,track,track\n"
    ",title,name,split,subset,genre_top,genres,tags,title\n"
    "track_id,,,,,,,,\n"
    "2,AWOL,Ann,training,small,Hip-Hop,[21],[],Food\n"
    "5,AWOL,Ann,test,medium,Pop,[10],[],Drink\n"
    "134,Hive,Bob,validation,large,,\"[21, 10]\",['raw'],Street\n"
    "135,Hive,Bob,validation,large,,[],[],Road\n"
)


@pytest.mark.parametrize(
    ("config", "splits"),
    [("small", {"train": 1}), ("medium", {"train": 1, "test": 1}), ("large", {"train": 1, "test": 1, "valid": 1})],
)
def test_fma(tmp_path, config, splits):
    (tmp_path / "tracks.csv").write_text(TRACKS)
    (tmp_path / "genres.csv").write_text("genre_id,#tracks,parent,title,top_level\n21,1,0,Hip-Hop,21\n10,2,0,Pop,10\n")
    audio = tones(tmp_path / "audio", [f"000/{number:06d}.mp3" for number in (2, 5, 134, 135)], 1.0)
    built(FMA, tmp_path, audio, tmp_path / "data", config=config)
    prepared = Prepared(tmp_path / "data", f"fma/{config}")
    assert prepared.splits == splits
    assert texts(prepared, "train") == [("2", TAGS_QUESTION, "Hip-Hop", "fma/tags")]
    if config == "large":
        assert texts(prepared, "valid") == [("134", TAGS_QUESTION, "Hip-Hop, Pop, raw", "fma/tags")]


def test_damaged_fma(tmp_path):
    (tmp_path / "tracks.csv").write_text(TRACKS.replace("[10]", "[11]"))
    (tmp_path / "genres.csv").write_text("genre_id,title\n21,Hip-Hop\n10,Pop\n")
    audio = tones(tmp_path / "audio", ["000/000002.mp3"], 1.0)
    with pytest.raises(UserError, match=r"tracks\.csv:5: a genre in \[11\] that genres\.csv has not"):
        built(FMA, tmp_path, audio, tmp_path / "data", config="large")
    (tmp_path / "tracks.csv").write_text(TRACKS[:-30])
    with pytest.raises(UserError, match=r"tracks\.csv:7: expected 9 columns, found \d"):
        built(FMA, tmp_path, audio, tmp_path / "data", config="large")


def test_music_bench(tmp_path):
    """Rows that alter a clip of MusicCaps' evaluation are kept out of training, by their flag or by their id."""
    rows = [
        {"location": "data/abcdefghijk.wav", "main_caption": "A bell.", "is_audioset_eval_mcaps": False},
        {"location": "data_aug2/abcdefghijk_3.wav", "main_caption": "A bell, faster.", "is_audioset_eval_mcaps": True},
        {"location": "data_aug2/-0Gj8-vB1q4_1.wav", "main_caption": "A ballad."},
        {"location": "data_aug2/-0SdAVK79lg_1.wav", "main_caption": "A guitar."},
    ]
    write_jsonl(tmp_path / "MusicBench_train.json", rows)
    write_jsonl(tmp_path / "MusicBench_test_A.json", [{"location": "data/testtesttes.wav", "main_caption": "A lute."}])
    locations = [row["location"] for row in rows] + ["data/testtesttes.wav"]
    audio = tones(tmp_path / "audio", locations, 1.0)
    built(MusicBench, tmp_path, audio, tmp_path / "data")
    prepared = Prepared(tmp_path / "data", "music_bench")
    evaluated = {e.clip for e in prepared.examples("music_caps_eval")}
    assert "data_aug2/abcdefghijk_3.wav" in evaluated
    assert {e.clip for e in prepared.examples("train")} == {row["location"] for row in rows} - evaluated
    assert len(evaluated) == 2
    assert [e.answer for e in prepared.examples("test_a")] == ["A lute."]
    with pytest.raises(UserError, match="the file's name tells the split"):
        built(MusicBench, write_jsonl(tmp_path / "x.json", rows), audio, tmp_path / "data")
