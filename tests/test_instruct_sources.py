"""Captions and tags of every kind of file, and which clips are kept for evaluation elsewhere."""

from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mlingo_jax.data.overlap import is_listed, plain_id
from mlingo_jax.errors import UserError
from mlingo_jax.instruction.pairs import Source
from mlingo_jax.instruction.selection import choose, make_selection
from mlingo_jax.instruction.sources import read_sources
from tests.collections_of_music import MUSIC_CAPS, built, music_caps, write_json, write_jsonl

REAL = Path(__file__).parents[1].parent / "shared" / "data"


def read(path: Path, **options) -> list[Source]:
    return list(read_sources(str(path), **options))


def test_music_caps(tmp_path):
    annotations, _ = music_caps(tmp_path)
    sources = read(annotations)
    assert [source.clip for source in sources] == [str(row["ytid"]) for row in MUSIC_CAPS]
    assert sources[0].caption == 'A slow bell, "low" and soft: recording -0Gj8-vB1q4.'
    assert sources[0].tags == {"": ("slow tempo", "bell")}
    assert [source.split for source in sources] == ["eval", "train", "train", "eval"]
    assert {source.collection for source in sources} == {"youtube"}
    original = write_json(tmp_path / "all.json", {"ann": [{**row, "sampling_rate": 16000} for row in MUSIC_CAPS]})
    assert [source.caption for source in read(original)] == [source.caption for source in sources]
    assert read(original)[0].rate == 16000


def test_lp_music_caps(tmp_path):
    table = pyarrow.table(
        {
            "track_id": ["TRA", "TRB"],
            "title": ["Bells", ""],
            "artist_name": ["Ann", None],
            "tag": [["metal", "loud"], []],
            "caption_writing": ["Loud metal.", "Calm."],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "valid-00000.parquet")
    first, second = read(tmp_path / "valid-00000.parquet")
    assert first == Source("TRA", "TRA", "Loud metal.", {"": ("metal", "loud")}, {}, ("Ann", "Bells"), "eval")
    assert (second.tags, second.private) == ({}, ())


JAMENDO = """TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS
track_0000948\tartist_000087\talbum_000149\t48/948.mp3\t212.7\tgenre---rock\tgenre---poprock\tmood/theme---happy
track_1004034\tartist_000001\talbum_000002\t34/1004034.mp3\t250.1\tinstrument---dub
track_0000901\tartist_000001\talbum_000002\t01/901.mp3\t250.1\tinstrument---bell
track_0000949\tartist_000001\talbum_000002\t49/949.mp3\t250.1\tinstrument---piano
"""


def jamendo(folder: Path) -> Path:
    path = folder / "autotagging.tsv"
    path.write_text(JAMENDO)
    test = folder / "splits/split-0/autotagging-test.tsv"
    test.parent.mkdir(parents=True)
    test.write_text("\n".join([JAMENDO.splitlines()[0], JAMENDO.splitlines()[4]]) + "\n")
    return path


def test_mtg_jamendo(tmp_path):
    first, *_ = read(jamendo(tmp_path))
    assert (first.clip, first.audio, first.collection) == ("948", "48/948.mp3", "jamendo")
    assert first.tags == {"genre": ("rock", "poprock"), "mood": ("happy",)}
    (tmp_path / "autotagging.tsv").write_text(JAMENDO + "track_2\tx\n")
    with pytest.raises(UserError, match=r"autotagging\.tsv:6: expected TRACK_ID"):
        read(tmp_path / "autotagging.tsv")


def test_fma(tmp_path):
    (tmp_path / "tracks.csv").write_text(
        ",album,artist,set,set,track,track,track,track\n"
        ",title,name,split,subset,genre_top,genres,tags,title\n"
        "track_id,,,,,,,,\n"
        "2,AWOL,Ann,training,small,Hip-Hop,[21],[],Food\n"
        '134,Hive,"Bell, Bob",validation,large,,"[21, 10]","[\'loud\', \'raw\']",Street\n'
    )
    with pytest.raises(UserError, match=r"genres\.csv: is missing"):
        read(tmp_path / "tracks.csv")
    (tmp_path / "genres.csv").write_text("genre_id,#tracks,parent,title,top_level\n21,1,0,Hip-Hop,21\n10,2,0,Pop,10\n")
    first, second = read(tmp_path / "tracks.csv")
    assert first == Source(
        "2", "000/000002.mp3", "", {"genre": ("Hip-Hop",)}, {}, ("Ann", "Food", "AWOL"), "train", "fma"
    )
    assert second.tags == {"genre": ("Hip-Hop", "Pop"), "tags": ("loud", "raw")}
    assert (second.split, second.audio) == ("eval", "000/000134.mp3")


def test_ones_own(tmp_path):
    rows = [
        {"audio": "a/b.flac", "tags": "rock; loud", "BPM": 120, "key": "C minor", "Label": "old", "artist": "Ann"},
        {
            "clip": "c",
            "audio": "c.wav",
            "caption": "Hm.",
            "tags": ["x"],
            "split": "validation",
            "instruments": ["lute", "oud"],
        },
    ]
    first, second = read(write_jsonl(tmp_path / "own.jsonl", rows), fields=("label",))
    assert first == Source(
        "a/b.flac", "a/b.flac", "", {"": ("rock", "loud")}, {"bpm": "120", "key": "C minor", "label": "old"}, ("Ann",)
    )
    assert (second.clip, second.audio, second.split, second.facts) == (
        "c",
        "c.wav",
        "eval",
        {"instruments": "lute, oud"},
    )
    assert "lute, oud" in second.evidence()
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"caption": "?", "clip": "x", "split": "maybe"}])
    with pytest.raises(UserError, match=r"bad\.jsonl:1: expected train, eval, valid or test"):
        read(bad)
    with pytest.raises(UserError, match=r"field clip is missing"):
        read(write_jsonl(tmp_path / "bad.jsonl", [{"caption": "?"}]))
    with pytest.raises(UserError, match="expected a csv, tsv, json, jsonl or parquet file"):
        read(write_json(tmp_path / "x.xml", {}))


def test_a_prepared_dataset(tmp_path):
    from mlingo_jax.datasets.music_caps import MusicCaps

    annotations, audio = music_caps(tmp_path)
    built(MusicCaps, annotations, audio, tmp_path / "data")
    sources = read(Path("music_caps"), data_dir=tmp_path / "data")
    assert Counter(source.split for source in sources) == {"train": 2, "eval": 2}
    assert {source.clip: source.caption.split() for source in sources} == {
        str(row["ytid"]): str(row["caption"]).split() for row in MUSIC_CAPS
    }


def test_music_bench(tmp_path):
    row = {
        "dataset": "MusicBench",
        "location": "data_aug2/-0Gj8-vB1q4_1.wav",
        "main_caption": "A bell.",
        "key": ["C", "minor"],
    }
    (source,) = read(write_jsonl(tmp_path / "MusicBench_train.json", [row]))
    assert (source.caption, source.facts, source.collection) == ("A bell.", {"key": "C, minor"}, "youtube")
    assert plain_id(source.clip) == "-0Gj8-vB1q4"


@pytest.mark.parametrize(
    "clip", ["948", "0948", "track_0000948", "48/948.mp3", "48/948.low.mp3", "audio/48/0000948.2min.mp3"]
)
def test_one_track_has_many_names(clip):
    assert plain_id(clip) == "948"


def excluded(source: Path, *, exclude=(), keep=(), limit=None) -> tuple[list[str], dict[str, int]]:
    selection = make_selection(str(source), exclude, keep)
    chosen, splits, left_out = choose(lambda: read_sources(str(source)), selection, limit, 0)
    assert sum(splits.values()) == len(list(chosen()))
    return [source.clip for source in chosen()], dict(left_out)


def test_evaluation_clips_are_left_out(tmp_path):
    path = jamendo(tmp_path)
    known = excluded(path)
    assert known == (["948"], {"song_describer": 1, "music_qa_eval": 1, "jamendo_test": 1})
    kept = excluded(path, keep=["song_describer", "jamendo_test"])
    assert kept == (["948", "1004034", "949"], {"music_qa_eval": 1})
    (tmp_path / "mine.txt").write_text("0948\n\n")
    assert excluded(path, exclude=[tmp_path / "mine.txt"])[1]["excluded_list"] == 1
    rows = [
        {"location": "data/-0Gj8-vB1q4.wav", "main_caption": "A bell."},
        {"location": "data/x.wav", "main_caption": "B"},
    ]
    bench = write_jsonl(tmp_path / "bench.jsonl", rows)
    assert "-0Gj8-vB1q4" not in excluded(bench)[0]


def test_lists_of_evaluation_clips(tmp_path):
    """A csv with splits gives its evaluation clips alone; MusicCaps' own stay in MusicCaps, as evaluation."""
    annotations, _ = music_caps(tmp_path)
    rows = [{"clip": row["ytid"], "caption": "A bell."} for row in MUSIC_CAPS] + [{"clip": "", "caption": ""}]
    own = write_jsonl(tmp_path / "own.jsonl", rows[:-1])
    evaluated = [str(row["ytid"]) for row in MUSIC_CAPS if row["is_audioset_eval"]]
    clips, left_out = excluded(own, exclude=[annotations])
    assert not set(clips) & set(evaluated)
    assert left_out == {"excluded_list": 2}
    assert len(excluded(annotations)[0]) == 4
    silent = write_jsonl(tmp_path / "silent.jsonl", [{"clip": "a"}, {"clip": "b", "tags": "rock"}])
    assert excluded(silent) == (["b"], {"nothing_known": 1})


def test_a_drawn_part(tmp_path):
    own = write_jsonl(tmp_path / "own.jsonl", [{"clip": f"c{n}", "tags": "rock"} for n in range(50)])
    clips, left_out = excluded(own, limit=7)
    assert len(clips) == 7
    assert left_out == {"limit": 43}
    assert clips == excluded(own, limit=7)[0] != [f"c{n}" for n in range(7)]
    assert set(clips) < set(excluded(own, limit=9)[0])


@pytest.mark.skipif(not REAL.is_dir(), reason="the real annotations are not here")
def test_the_real_music_caps():
    sources = read(REAL / "musiccaps-public.csv")
    assert Counter(source.split for source in sources) == {"train": 2663, "eval": 2858}
    assert all(source.tags and source.caption for source in sources)
    known = {source.clip for source in sources if is_listed("music_caps_eval", "youtube", source.clip)}
    assert known == {source.clip for source in sources if source.split == "eval"}
