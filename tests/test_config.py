"""Settings from the command line: names, paths, types, ranges, and one clear line for every mistake."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlingo_jax.errors import UserError
from mlingo_jax.flags import describe, fields, read_config, to_json
from mlingo_jax.recipes import load_config, recipe_names
from mlingo_jax.settings import Config


def test_overrides_are_typed_and_may_stand_in_either_spelling():
    argv = "--config=base --config.optim.lr=1e-4 --config.steps 12_000 --config.data.encode_in_step=true"
    argv += " --config.mert.path=a=b --config.mesh.data=-1 --config.steps=7"
    config = read_config(argv.split())
    assert (config.optim.lr, config.steps, config.data.encode_in_step) == (1e-4, 7, True)
    assert (config.mert.path, config.mesh.data) == ("a=b", -1)


@given(st.floats(0, 1e6), st.integers(1, 10**12), st.text())
def test_any_value_comes_back(rate, steps, path):
    config = read_config(
        [f"--config.optim.lr={rate!r}", "--config=base", f"--config.steps={steps}", f"--config.workdir={path}"]
    )
    assert (config.optim.lr, config.steps, config.workdir) == (rate, steps, path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--config=NAME is needed"),
        (["--config=bose"], "pretrain_open; did you mean base?"),
        (["--config=nowhere.py"], "nowhere.py: no such file"),
        (["--config=base", "--config.optim.learning=1"], "--config.optim.learning: config base has no such field"),
        (["--config=base", "--config.optim.lrr=1"], "did you mean optim.lr?"),
        (["--config=base", "--config.optim=1"], "--config.optim: config base has no such field"),
        (["--config=base", "--config.optim.lr=fast"], "--config.optim.lr=fast: must be a number"),
        (["--config=base", "--config.steps=1.5"], "--config.steps=1.5: must be a whole number"),
        (["--config=base", "--config.data.encode_in_step=perhaps"], "must be true or false"),
        (["--config=base", "--config.steps=0"], "config.steps is 0: must be at least 1"),
        (["--config=base", "--config.optim.lr=nan"], "config.optim.lr is nan: must be at least 0"),
        (["--config=base", "--config.data.eval_share=0.7"], "must be at most 0.5"),
        (["--config=base", "--config.mert.dtype=int8"], "must be one of bfloat16, float32"),
        (["--config=base", "--config.steps"], "--config.steps: needs a value"),
        (["--config=base", "--config.demo=yes"], "cannot be set from the command line"),
        (["--config=base", "--verbose"], "--verbose: not understood"),
    ],
)
def test_a_mistake_is_one_clear_line(argv, message):
    with pytest.raises(UserError) as error:
        read_config(argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_config_may_be_a_file_anywhere(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from mlingo_jax.settings import Config\n\ndef get_config():\n    return Config(steps=3)\n")
    assert load_config(str(file)).steps == 3
    file.write_text("def get_config():\n    return {}\n")
    with pytest.raises(UserError, match="no get_config"):
        load_config(str(file))
    file.write_text(
        "from mlingo_jax.settings import Config\n\n"
        "def get_config():\n    config = Config()\n    config.steps = 'many'\n    return config\n"
    )
    with pytest.raises(UserError, match=r"config\.steps is 'many': must be a whole number"):
        read_config([f"--config={file}"])


@pytest.mark.parametrize("name", recipe_names())
def test_every_config_is_legal_and_every_field_is_explained(name):
    config = read_config([f"--config={name}"])
    text = describe([f"--config={name}", "--help"])
    for field in fields(config):
        assert f"--config.{field.name}=" in text
        assert field.metadata["meaning"] in " ".join(text.split()), field.name
    assert json.loads(to_json(config))["optim"]["lr"] == config.optim.lr


def test_two_configs_share_nothing():
    first, second = Config(), Config()
    first.optim.lr = 1.0
    assert second.optim.lr != 1.0


def test_the_door_helps_and_refuses(tmp_path):
    command = [sys.executable, "-m", "mlingo_jax.train"]
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert helped.returncode == 0
    assert "--config.optim.lr=" in helped.stdout
    refused = subprocess.run(
        [*command, "--config=base", "--config.stepps=1"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert refused.stderr == "error: --config.stepps: config base has no such field; did you mean steps?\n"
