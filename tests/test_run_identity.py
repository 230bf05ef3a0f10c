"""A run resumes with its own audio, settings and checkpoints alone, and says in one line what else it was given."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mlingo_jax.errors import UserError
from mlingo_jax.flags import to_json
from mlingo_jax.runs.checkpoints import restore
from mlingo_jax.settings import Config
from mlingo_jax.training.loop import train
from mlingo_jax.training.run import check_config
from mlingo_jax.training.setup import set_up
from mlingo_jax.training.sharding import make_mesh
from tests.tiny_run import ROOT, as_config, command, make_corpus, settings


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def short(corpus: Path, workdir: Path) -> dict[str, object]:
    """A run of two steps, with a checkpoint after each."""
    changes = {"steps": 2, "accumulate": 1, "checkpoint.every": 1, "log.eval_every": 0}
    return settings(corpus, workdir) | changes


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "[one]"
    train(as_config(short(corpus, workdir)))
    return workdir


@pytest.fixture
def run(trained, corpus, tmp_path) -> tuple[Config, Path]:
    """A copy of the run and its corpus, to be changed, and its config."""
    own = shutil.copytree(corpus, tmp_path / "corpus")
    workdir = shutil.copytree(trained, tmp_path / "run")
    return as_config(short(own, workdir)), own


def test_a_finished_run_is_finished_also_in_a_copy_with_touched_audio(run, capsys):
    config, corpus = run
    for path in corpus.glob("*.wav"):
        os.utime(path)
    train(config)
    shown = capsys.readouterr().err
    assert "is finished after step 2 of 2" in shown
    assert "not needed: every clip has been encoded" in shown


def test_a_run_whose_audio_has_changed_is_refused(run):
    config, corpus = run
    soundfile.write(corpus / "1.wav", np.random.default_rng(9).normal(0, 0.1, 8000), 24000)
    with pytest.raises(UserError, match=r"holds another run: data\.audio was '\w+', is '\w+'\. Choose another"):
        train(config)


def test_a_run_that_encodes_in_its_steps_is_refused_when_a_file_has_another_size(corpus, tmp_path):
    """Its files are not read for it."""
    own = shutil.copytree(corpus, tmp_path / "corpus")
    values = short(own, tmp_path / "run") | {"data.encode_in_step": True, "steps": 1}
    train(as_config(values))
    for path in own.glob("*.wav"):
        os.utime(path)
    train(as_config(values))
    soundfile.write(own / "1.wav", np.random.default_rng(9).normal(0, 0.1, 8000), 24000)
    with pytest.raises(UserError, match=r"holds another run: data\.audio was '\w+', is '\w+'"):
        train(as_config(values))


def test_a_run_from_before_audio_had_digests_goes_on(run):
    config, _ = run
    path = Path(config.workdir, "run.json")
    described = json.loads(path.read_text())
    del described["data"]["audio"]
    for name in ("mert", "llm"):
        del described[name]["identity"]["rounded"]
    path.write_text(json.dumps(described))
    train(config)


def test_a_run_without_its_run_json_is_refused_and_stays(run):
    config, _ = run
    workdir = Path(config.workdir)
    (workdir / "run.json").unlink()
    config.seed = 7
    with pytest.raises(UserError, match=r"has checkpoints, but no run\.json"):
        train(config)
    assert not (workdir / "run.json").exists()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2"]


def test_a_checkpoint_of_another_run_is_passed_over_and_put_aside(run, trained):
    """The same settings but the seed: another run."""
    config, _ = run
    workdir = Path(config.workdir)
    path = workdir / "run.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "id": "another"}))
    with pytest.warns(UserWarning, match="it is of another run"), pytest.raises(UserError, match="none of the check"):
        restore(workdir)
    path.write_text(json.dumps(described))
    shutil.copytree(workdir / "checkpoints" / "1", workdir / "checkpoints" / "70")
    with pytest.warns(UserWarning, match=r"70: passed over \(it is the checkpoint of step 1\)"):
        train(config)
    assert (workdir / "checkpoints" / "70.aside").is_dir()


@pytest.mark.parametrize("text", ["[]", "12", '{"path": 5}', "[" * 100_000], ids=range(4))
def test_an_encoders_place_that_is_none_costs_loading_it(run, text, capsys):
    config, _ = run
    (Path(config.workdir) / "features" / "encoder.json").write_text(text)
    train(config)
    assert "is finished" in capsys.readouterr().err


def test_a_workdir_that_is_not_utf8_is_refused_in_one_line(corpus, tmp_path):
    values = short(corpus, tmp_path) | {"workdir": f"{tmp_path}/\udcff"}
    done = subprocess.run(command(values), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: config.workdir: ")
    assert done.stderr.splitlines()[-1].endswith("is not UTF-8; choose another one")
    assert "Traceback" not in done.stderr


PASSED = """
import sys
from mlingo_jax.flags import to_json
from mlingo_jax.runs.checkpoints import restore
print(restore(sys.argv[1]).step)
"""


def test_a_checkpoint_that_orbax_cannot_read_is_passed_over_without_its_tracebacks(run):
    """Its sums are right: it was written so."""
    config, _ = run
    folder = Path(config.workdir, "checkpoints", "2")
    for path in folder.rglob("*"):
        if path.is_file() and path.name.startswith("manifest"):
            path.write_bytes(b"nothing")
    sums = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    lines = [subprocess.check_output(["sha256sum", name], cwd=folder, text=True) for _, name in sums]
    (folder / "SHA256SUMS").write_text("".join(lines))
    done = subprocess.run([sys.executable, "-c", PASSED, config.workdir], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "1\n"
    assert "2: passed over (" in done.stderr
    assert "Traceback" not in done.stderr


def test_held_out_audio_that_is_trained_on_under_another_name_is_told(corpus, tmp_path):
    own = shutil.copytree(corpus, tmp_path / "corpus")
    shutil.copyfile(own / "1.wav", own / "0.wav")
    config = as_config(short(own, tmp_path / "run"))
    notes = set_up(config, make_mesh(config.mesh)).notes
    assert "1 clip held out whose very audio is trained on: 0.wav is 1.wav" in notes


def test_a_setting_that_came_after_the_run_had_begun_did_what_its_default_does(tmp_path: Path):
    config = Config(workdir=str(tmp_path))
    values = json.loads(to_json(config))
    del values["data"]["like_the_original"], values["mert"]["resampling"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "run.json").write_text("{}")
    check_config(config)
    config.mert.resampling = "sinc_hann"
    with pytest.raises(UserError, match=r"holds another run: config\.mert\.resampling was 'soxr', is 'sinc_hann'"):
        check_config(config)
