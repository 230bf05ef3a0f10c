"""docs/quickstart.ipynb: its code runs, and what it shows is what its code gave."""

import json
from pathlib import Path

import numpy as np
import soundfile

from mlingo_jax.data.prompt import PromptSettings
from mlingo_jax.runs.checkpoints import CheckpointState
from mlingo_jax.training.checkpoint import Checkpoints
from mlingo_jax.weights.load import load_tower
from tests.tiny import tiny_llama, tiny_mert

FILE = Path(__file__).parents[1] / "docs/quickstart.ipynb"
CELLS = [cell for cell in json.loads(FILE.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def make_demo(folder: Path) -> None:
    """What the demo leaves in runs/, with small random models: a run with one checkpoint, and a clip held out."""
    mert = load_tower(tiny_mert(folder / "mert"), role="encoder", dtype="float32")
    llm = load_tower(tiny_llama(folder / "llm"), role="llm", dtype="float32")
    run = {
        "id": "r",
        "mert": {"folder": str(folder / "mert"), "identity": mert.identity},
        "llm": {"folder": str(folder / "llm"), "identity": llm.identity},
        "prompt": PromptSettings().to_json(),
        "frames_per_token": 20,
    }
    (folder / "demo").mkdir()
    (folder / "demo/run.json").write_text(json.dumps(run))
    adapter = {"projection": {"kernel": np.ones((24, 32), np.float32), "bias": np.zeros(32, np.float32)}}
    with Checkpoints(folder / "demo", keep=1, best=0, losses={}) as checkpoints:
        checkpoints.save(CheckpointState(5, {"adapter": adapter}, {"opt_state": adapter}, {}), {})
    clip = folder / "demo-materials/0/corpus/held_out/0000.flac"
    clip.parent.mkdir(parents=True)
    soundfile.write(clip, np.random.default_rng(0).normal(0, 0.1, 24_000), 24_000)


def test_its_code_runs(tmp_path, monkeypatch, capsys):
    make_demo(tmp_path / "runs")
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    names = {}
    for cell in CELLS:
        exec(compile("".join(cell["source"]), FILE.name, "exec"), names)
    assert names["features"][0].shape == (4, 24)
    shown = capsys.readouterr().out
    assert all(question in shown for question in names["questions"])
    assert all(answer in shown for answer in names["answers"])


def test_its_outputs_are_of_one_run_and_small():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    kinds = [output["output_type"] for cell in CELLS for output in cell["outputs"]]
    names = [output.get("name") for cell in CELLS for output in cell["outputs"]]
    assert len(kinds) >= len(CELLS)
    assert "error" not in kinds
    assert "stderr" not in names
    assert FILE.stat().st_size < 300_000
