"""What comes out: MusicInstruct's files that `prepare` reads, the report, the sheet, the card."""

import ast
import csv
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from mlingo_jax.data.prepared import Prepared
from mlingo_jax.datasets.manifest import Manifest
from mlingo_jax.datasets.music_instruct import MusicInstruct
from mlingo_jax.instruction.asking import journal_path
from mlingo_jax.instruction.conversations import Plan
from mlingo_jax.instruction.filters.vocabulary import load_vocabulary
from mlingo_jax.instruction.journal import Journal
from mlingo_jax.instruction.pairs import Source
from mlingo_jax.instruction.recipes import load_recipe
from mlingo_jax.instruction.report import Origin, Prices, table, write_report
from mlingo_jax.instruction.result import write_result
from mlingo_jax.instruction.sources import read_sources
from tests.collections_of_music import built, tones
from tests.instruct_runs import read_lines, record, write_captions
from tests.scripted_model import Script, ScriptedModel

REAL = Path(__file__).parents[1].parent / "shared" / "data" / "musiccaps-public.csv"
CLIPS = 120


def make(
    source: Path, aspects: dict[str, list[str]], output: Path, recipe: str = "both", limit: int | None = None
) -> dict:
    """Everything, as if a scripted model had been asked."""
    model = ScriptedModel(Script(aspects))
    plan = Plan(load_recipe(recipe), "scripted", "scripted", load_vocabulary())
    sources: list[Source] = list(read_sources(str(source)))[:limit]
    output.mkdir(exist_ok=True)
    record(sources, plan, output, lambda request: model.write({"messages": request.messages}))
    summary = write_result(
        lambda: sources, plan, Journal(journal_path(output)), output, rate=16000, advance=lambda: None
    )
    origin = Origin(source.name, "abc", "cc-by-sa-4.0", "scripted", "scripted", False, 0, plan.recipe, {"limit": 3})
    return write_report(output, origin, summary, Prices(1.0, 2.0))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("result")
    source, aspects = write_captions(folder, CLIPS)
    return folder / "made", make(source, aspects, folder / "made")


def test_music_instructs_files(made, tmp_path):
    """As `prepare music_instruct` reads them: its three configs, the splits of the source."""
    folder, report = made
    items = {
        part: json.loads((folder / f"music_instruct{part}.json").read_text())["QA"] for part in ("", "_short", "_long")
    }
    assert set(items[""][0]) == {"question", "answer", "ytid", "is_audioset_eval", "sampling_rate"}
    assert len(items[""]) == len(items["_short"]) + len(items["_long"]) == report["pairs"]["kept"]
    assert Counter(item["is_audioset_eval"] for item in items["_long"]) == {
        True: report["pairs"]["long"]["eval"],
        False: report["pairs"]["long"]["train"],
    }
    assert {item["sampling_rate"] for item in items[""]} == {16000}
    audio = tones(tmp_path / "audio", [f"clip-{n:06d}.wav" for n in range(12)])
    for config, part in (("all", ""), ("short", "_short"), ("long", "_long")):
        built(MusicInstruct, folder, audio, tmp_path / "data", config=config)
        prepared = Prepared(tmp_path / "data", f"music_instruct/{config}")
        there = Counter("test" if i["is_audioset_eval"] else "train" for i in items[part] if i["ytid"] < "clip-000012")
        assert prepared.splits == there


def test_the_manifest_is_one_of_this_project(made, tmp_path):
    folder, report = made
    shutil.copy(folder / "manifest.jsonl", tmp_path)
    audio = tones(tmp_path, [f"clip-{n:06d}.wav" for n in range(6)])
    kept = built(Manifest, tmp_path / "manifest.jsonl", audio, tmp_path / "data").kept
    assert set(kept) == {"train", "eval"}
    lines = read_lines(folder / "manifest.jsonl")
    assert len(lines) == report["pairs"]["kept"]
    assert sum(kept.values()) == sum(line["clip"] < "clip-000006" for line in lines)


def test_the_report(made):
    folder, report = made
    assert json.loads((folder / "report.json").read_text()) == report
    assert report["clips"] == {"train": 80, "eval": 40, "without_pairs": 0}
    kinds = report["kinds"]
    assert set(kinds) >= {"short/genre", "short/instruments", "long/description", "long/summary"}
    assert sum(kind["pairs"] for kind in kinds.values()) == report["pairs"]["kept"]
    lines = read_lines(folder / "manifest.jsonl")
    genres = Counter(line["answer"] for line in lines if line["kind"] == "genre")
    answer, count = genres.most_common(1)[0]
    assert kinds["short/genre"]["frequent_answers"][0]["share"] == pytest.approx(count / genres.total(), abs=1e-4)
    assert genres[kinds["short/genre"]["frequent_answers"][0]["answer"]] == count
    assert answer
    assert kinds["short/genre"]["constant_answer_right"] == kinds["short/genre"]["frequent_answers"][0]["share"]
    assert report["asked"]["write requests"] == 2 * CLIPS
    assert report["cost"] > 0
    shown = table(report)
    assert re.search(rf"pairs kept +{report['pairs']['kept']:,}", shown)
    for name in ("kinds", "lengths", "losses"):
        assert (folder / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")


class _Articles(HTMLParser):
    def __init__(self):
        super().__init__()
        self.count, self.boxes = 0, 0

    def handle_starttag(self, tag, attrs):
        self.count += tag == "article"
        self.boxes += tag == "input"


def test_the_sheet_is_a_random_hundredth(made):
    folder, report = made
    with (folder / "sheet.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == max(round(report["pairs"]["kept"] * 0.01), 20)
    pairs = {(line["clip"], line["question"], line["answer"]) for line in read_lines(folder / "manifest.jsonl")}
    assert all((row["clip"], row["question"], row["answer"]) in pairs for row in rows)
    assert all(row["known"].startswith("Caption: Recording") and row["clear"] == "" for row in rows)
    assert len({row["clip"] for row in rows}) > 10
    page = _Articles()
    page.feed((folder / "sheet.html").read_text())
    assert (page.count, page.boxes) == (len(rows), 4 * len(rows))


def test_the_card(made):
    folder, report = made
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["license"] == "cc-by-sa-4.0"
    assert metadata["configs"] == [{"config_name": "default", "data_files": "manifest.jsonl"}]
    assert metadata["size_categories"] == ["n<1K"]
    assert f"{report['pairs']['kept']:,} questions" in text
    assert load_recipe("both").digest in text


def test_captions_from_tags(tmp_path):
    aspects: dict[str, list[str]] = {tags: [*tags.split(", ")] for tags in ("rock, loud, piano", "jazz, calm, cello")}
    path = tmp_path / "tags.jsonl"
    path.write_text(
        "".join(json.dumps({"clip": f"c{n}", "tags": tags}) + "\n" for n, tags in enumerate(aspects.values()))
    )
    report = make(path, aspects, tmp_path / "made", "captions")
    assert report["pairs"]["rejected"] == {}
    assert set(report["kinds"]) == {
        f"{kind}/{kind}" for kind in ("writing", "summary", "paraphrase", "attribute_prediction")
    }
    assert {line["question"] for line in read_lines(tmp_path / "made/manifest.jsonl")} == {
        "Please give a caption to the music."
    }
    assert "**Beware:**" in (tmp_path / "made/README.md").read_text()
    assert json.loads((tmp_path / "made/music_instruct_short.json").read_text()) == {"QA": []}


@pytest.mark.skipif(not REAL.is_file(), reason="the real annotations are not here")
def test_the_real_music_caps(tmp_path):
    with REAL.open(newline="") as file:
        rows = list(csv.DictReader(file))
    aspects: dict[str, list[str]] = {
        " ".join(row["caption"].split()): ast.literal_eval(row["aspect_list"]) for row in rows
    }
    report = make(REAL, aspects, tmp_path / "made", limit=60)
    assert report["clips"]["train"] + report["clips"]["eval"] == 60
    # What a musician listed as a clip's aspects follows from the same musician's caption, whatever the words.
    assert report["pairs"]["kept"] > 0.97 * report["pairs"]["written"]
