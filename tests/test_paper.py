"""launch/paper.sh on small copies of the paper's datasets, with tiny towers: every stage runs, and none of them twice.

The stages are run in this process, which has the programs compiled: what the script calls `python` is a line that hands
its arguments over and waits for the exit status.
"""

import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from mlingo_jax import evaluate, train
from mlingo_jax.datasets.lp_music_caps import CAPTIONS, LPMusicCaps
from mlingo_jax.datasets.music_caps import MusicCaps
from mlingo_jax.datasets.music_instruct import MusicInstruct
from mlingo_jax.datasets.music_qa import MusicQA
from mlingo_jax.errors import UserError
from mlingo_jax.evaluation.paper_page import PUBLISHED, write_paper
from tests.collections_of_music import (
    MUSIC_CAPS,
    built,
    music_caps,
    music_instruct_question,
    music_qa_question,
    tones,
    write_csv,
    write_json,
)
from tests.tiny import tiny_llama, tiny_mert

SCRIPT = Path(__file__).parents[1] / "launch" / "paper.sh"
TRAIN = (
    "--config.steps=2 --config.batch_size=2 --config.accumulate=1 --config.mert.dtype=float32 "
    "--config.llm.dtype=float32 --config.log.eval_every=0 --config.log.eval_answers=0 --config.data.length=192"
)
EVALUATE = "--dtype float32 --max_new_tokens 4 --candidates 2"


def prepare(folder: Path) -> Path:
    """The paper's datasets, with two clips at least in each evaluation split; their data_dir."""
    data_dir = folder / "data"
    annotations, audio = music_caps(folder / "caps")
    built(MusicCaps, annotations, audio, data_dir)
    evaluated = {str(row["ytid"]): row["is_audioset_eval"] for row in MUSIC_CAPS}
    for kind in ("short", "long"):
        asked = [music_instruct_question(ytid, is_eval, kind) for ytid, is_eval in evaluated.items()]
        file = write_json(folder / kind / f"music_instruct_{kind}.json", {"QA": asked})
        built(MusicInstruct, file, "music_caps", data_dir, config=kind)
    names = ["f_1-117-146.mp3", "012542.wav", "012543.wav"]
    tones(folder / "qa", names, 1.0)
    for file, clips in (("FinetuneMusicQA.json", names[:1]), ("EvalMusicQA.json", names[1:])):
        write_json(folder / "qa" / file, [music_qa_question(clip, "What?", f"A lute, {clip}.") for clip in clips])
    built(MusicQA, folder / "qa", folder / "qa", data_dir)
    for split, clip in (("train", "TRAAA1"), ("valid", "TRAAA2")):
        write_csv(
            folder / "msd" / f"{split}.csv", [{"track_id": clip, **{name: f"A bell, {name}." for name in CAPTIONS}}]
        )
    built(
        LPMusicCaps, folder / "msd", tones(folder / "audio", ["TRAAA1.mp3", "TRAAA2.mp3"], 1.0), data_dir, config="msd"
    )
    return data_dir


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    """DATA and WEIGHTS."""
    folder = tmp_path_factory.mktemp("paper")
    tiny_mert(folder / "weights" / "mert")
    tiny_llama(folder / "weights" / "vicuna")
    return prepare(folder), folder / "weights"


@pytest.fixture(autouse=True, scope="module")
def programs(tmp_path_factory) -> Iterator[None]:
    """What one stage compiled is found again by the next."""
    settings = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in settings]
    for name, value in zip(settings, (str(tmp_path_factory.mktemp("programs")), 0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(settings, before, strict=True):
        jax.config.update(name, value)


def run(folder: Path, *arguments: object) -> list[list[str]]:
    """Runs the script; returns the commands that it gave, each of which was run here."""
    folder.mkdir()
    python, orders, done = folder / "python", folder / "orders", folder / "done"
    os.mkfifo(orders)
    os.mkfifo(done)
    python.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" > {orders}\nexit "$(< {done})"\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "TRAIN_FLAGS": TRAIN, "EVALUATE_FLAGS": EVALUATE}
    given = []
    with subprocess.Popen([SCRIPT, *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True) as script:
        try:
            for command in handed_over(script, orders):
                run_here(command)
                given.append(command[1:])
                done.write_text("0\n")
        except BaseException:
            # It would wait for an answer.
            script.kill()
            raise
        assert script.stderr is not None
        assert script.wait() == 0, script.stderr.read()
    return given


def run_here(command: list[str]) -> None:
    """Runs `python -m MODULE ARGUMENTS`."""
    modules = {"mlingo_jax.train": train, "mlingo_jax.evaluate": evaluate}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command[1:])
        modules[command[1]].main()


def handed_over(script: subprocess.Popen[str], orders: Path) -> Iterator[list[str]]:
    """The commands of a script, until it has ended."""
    reader = os.open(orders, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while script.poll() is None:
            if command := read_one(reader, script):
                yield command
    finally:
        os.close(reader)


def read_one(reader: int, script: subprocess.Popen[str]) -> list[str]:
    """The next command; none if the script ends first."""
    text = b""
    while script.poll() is None:
        try:
            part = os.read(reader, 65536)
        except BlockingIOError:
            part = None
        if part:
            text += part
        elif text and part is not None:
            return text.decode().splitlines()
        else:
            time.sleep(0.01)
    return []


def test_the_whole_paper_on_small_copies(places, tmp_path):
    runs = tmp_path / "runs"
    given = run(tmp_path / "first", *places, runs)
    assert [command[0] for command in given] == ["mlingo_jax.train"] * 5 + ["mlingo_jax.evaluate"] * 5
    page = (runs / "paper.md").read_text()
    for table in tomllib.loads(PUBLISHED.read_text())["table"]:
        assert f"## Table {table['number']}: {table['title']}" in page
        for name in table["evaluations"]:
            assert f"| ours, {name} | **" in page
            assert f"| ours, {name}, shuffled | " in page
            assert f"\n## {name}\n" in page
    assert page.count("### paper") == page.count("### standard") == page.count("### nll") == 4
    assert run(tmp_path / "again", *places, runs) == []


def test_a_dry_run_shows_the_commands(tmp_path):
    done = subprocess.run(
        [SCRIPT, "DATA", "WEIGHTS", tmp_path / "RUNS", "--dry_run"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.count("-m mlingo_jax.train --config=") == 5
    assert done.stdout.count("--like qa") == 4
    assert "== pretrain (about 2 h" in done.stderr
    assert not (tmp_path / "RUNS").exists()


def test_a_page_without_its_evaluations_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"musiccaps: no finished evaluation there; launch/paper\.sh makes it"):
        write_paper(tmp_path)
