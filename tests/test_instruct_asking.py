"""Making data against a server that plays a model: well, badly, with kills, by batch files, for money."""

import json
import os
import random
import re
import signal
import subprocess
import time

import pytest

from mlingo_jax.errors import UserError
from mlingo_jax.instruct import main
from mlingo_jax.instruction.filters.vocabulary import load_vocabulary
from tests.instruct_runs import command, environment, read_lines, report, results, run, write_captions
from tests.scripted_model import MISHAPS, Script, ScriptedModel, usage_of

CLIPS = 24


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    return write_captions(tmp_path_factory.mktemp("captions"), CLIPS)


@pytest.fixture(scope="module")
def told(captions, tmp_path_factory):
    """The result of a model that does what can go wrong, left alone; (folder, model, what the command said)."""
    source, aspects = captions
    output = tmp_path_factory.mktemp("told") / "made"
    with ScriptedModel(Script(aspects, mishaps=MISHAPS)).serving() as model:
        done = run(source, output, model, "--concurrency", "8", "--blind_check")
    assert done.returncode == 0, done.stderr
    return output, model, done


def test_every_pair_is_sound_and_every_loss_is_counted(captions, told):
    _, aspects = captions
    output, model, done = told
    assert set(model.events) >= {*MISHAPS, "well"}, model.events
    vocabulary = load_vocabulary()
    texts = {f"clip-{n:06d}": caption for n, caption in enumerate(aspects)}
    pairs = json.loads((output / "music_instruct.json").read_text())["QA"]
    assert pairs
    for pair in pairs:
        known = vocabulary.known(f"{texts[pair['ytid']]}. {'. '.join(aspects[texts[pair['ytid']]])}")
        assert vocabulary.mentions(pair["answer"]) <= known
        assert "17" not in pair["answer"]
        assert pair["is_audioset_eval"] == (int(pair["ytid"][5:]) % 3 == 0)
    asked = [(pair["ytid"], pair["question"]) for pair in pairs]
    assert len(set(asked)) == len(asked)
    counts, rejected = report(output), read_lines(output / "rejected.jsonl")
    assert counts["pairs"]["kept"] == len(pairs)
    assert counts["pairs"]["written"] == len(pairs) + sum(counts["pairs"]["rejected"].values())
    assert len(rejected) == sum(counts["pairs"]["rejected"].values()) + sum(counts["replies"]["lost"].values())
    assert {"invented", "repeated_question", "given_away"} <= set(counts["pairs"]["rejected"])
    assert counts["replies"]["repairs"] > 0
    assert all(line["reason"] for line in rejected)
    assert counts["clips"]["train"] + counts["clips"]["eval"] == CLIPS
    assert counts["asked"]["write requests"] + counts["asked"]["judge requests"] + counts["asked"][
        "blind requests"
    ] == len(read_lines(output / "requests/journal.jsonl"))
    assert "a sample of 10 clips took" in done.stderr


def test_the_fault_is_told_to_the_model(told):
    _, model, _ = told
    told_again = [body["messages"][-1]["content"] for body in model.bodies.values()]
    faults = [text for text in told_again if text.startswith("This cannot be used: ")]
    assert any("not JSON" in fault for fault in faults)
    assert any("cut off" in fault for fault in faults)
    seeds = [body["seed"] for body in model.bodies.values()]
    assert len(set(seeds)) == len(seeds)
    assert all("temperature" in body for body in model.bodies.values())


def test_nothing_is_paid_twice_and_the_journal_gives_the_same_bytes(captions, told, tmp_path):
    source, _ = captions
    output, model, _ = told
    assert model.paid_twice() == []
    before = results(output)
    again = run(source, output, None, "--blind_check")
    assert again.returncode == 0, again.stderr
    assert results(output) == before
    # The same replies, recorded in another order.
    lines = (output / "requests/journal.jsonl").read_bytes().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests/journal.jsonl").write_bytes(b"".join(lines))
    assert run(source, tmp_path, None, "--blind_check").returncode == 0
    assert results(tmp_path) == before


def test_ten_kills_change_nothing_and_cost_nothing(captions, told, tmp_path):
    """By turns the command alone is killed, and its whole process group."""
    source, aspects = captions
    expected, _, _ = told
    drawn = random.Random(0)
    with ScriptedModel(Script(aspects, mishaps=MISHAPS, pause=0.03)).serving() as model:
        options = ("--concurrency", "3", "--blind_check")
        for kill in range(10):
            wanted = model.seen.total() + drawn.randint(1, 9)
            process = subprocess.Popen(
                command(source, tmp_path, model, *options),
                stderr=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment(),
                start_new_session=True,
            )
            while process.poll() is None and model.seen.total() < wanted:
                time.sleep(0.005)
            assert process.poll() is None, "it was done before it could be killed"
            (os.kill, os.killpg)[kill % 2](process.pid, signal.SIGKILL)
            process.wait()
        done = run(source, tmp_path, model, *options)
    assert done.returncode == 0, done.stderr
    assert model.paid_twice() == []
    assert results(tmp_path) == results(expected)


def test_a_reply_that_was_cut_off_in_the_journal_is_asked_for_again(captions, told, tmp_path):
    source, aspects = captions
    expected, _, _ = told
    journal = tmp_path / "requests/journal.jsonl"
    journal.parent.mkdir()
    journal.write_bytes((expected / "requests/journal.jsonl").read_bytes()[:-100])
    with ScriptedModel(Script(aspects, mishaps=MISHAPS)).serving() as model:
        assert run(source, tmp_path, model, "--blind_check").returncode == 0
    assert model.paid.total() == 1
    assert results(tmp_path) == results(expected)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], b"{nonsense\n", *lines[3:]]))
    broken = run(source, tmp_path, None, "--blind_check")
    assert broken.returncode == 1
    assert "no request and reply in the line at byte" in broken.stderr


@pytest.mark.parametrize(
    ("refuses", "expected"),
    [
        (("response_format",), {"max_tokens", "temperature", "seed"}),
        (("max_tokens", "temperature"), {"max_completion_tokens", "response_format", "seed"}),
        (("seed", "response_format"), {"max_tokens", "temperature"}),
    ],
)
def test_what_a_server_does_not_take_is_left_out(captions, tmp_path, refuses, expected):
    source, aspects = captions
    with ScriptedModel(Script(aspects, refuses=refuses)).serving() as model:
        done = run(source, tmp_path, model, "--recipe", "short", "--limit", "3", "--no_judge", "--concurrency", "2")
    assert done.returncode == 0, done.stderr
    sent = read_lines(tmp_path / "requests/journal.jsonl")[-1]["request"]
    assert set(sent) == {"model", "messages", *expected}


def test_keys_appear_nowhere(captions, tmp_path):
    source, aspects = captions
    secret = "sk-very-secret-0123456789"
    with ScriptedModel(Script(aspects, key=secret)).serving() as model:
        wrong = run(source, tmp_path, model, "--recipe", "short", "--limit", "2", OPENAI_API_KEY="sk-wrong-9876543210")
        assert wrong.returncode == 1
        assert "401: it wants a key" in wrong.stderr
        assert "sk-wrong" not in wrong.stderr + wrong.stdout
        done = run(source, tmp_path, model, "--recipe", "short", "--limit", "2", "--key_env", "MY_KEY", MY_KEY=secret)
        assert done.returncode == 0, done.stderr
        written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert secret.encode() not in written
        inside = run(source, tmp_path, None, "--endpoint", model.url.replace("//", "//me:pw@"))
    assert "no keys in the address" in inside.stderr


def test_money(captions, tmp_path):
    source, aspects = captions
    prices = ("--recipe", "short", "--price_in", "1000", "--price_out", "2000")
    with ScriptedModel(Script(aspects)).serving() as model:
        stopped = run(source, tmp_path, model, *prices, "--max_cost", "1")
        assert stopped.returncode == 1
        assert "that is more than 1" in stopped.stderr
        sampled = model.paid.total()
        assert sampled == 20
        estimate = run(source, tmp_path, model, *prices, "--estimate")
        assert model.paid.total() == sampled
        cost = float(re.search(r"about ([\d.,]+) by the given prices", estimate.stderr)[1])  # pyright: ignore
        assert run(source, tmp_path, model, *prices).returncode == 0
    assert report(tmp_path)["cost"] == pytest.approx(cost, rel=0.05)


def test_a_server_that_is_down_or_wrong_is_told_in_one_line(captions, tmp_path):
    source, aspects = captions
    with ScriptedModel(Script(aspects, down=True)).serving() as model:
        down = run(source, tmp_path, model, "--tries", "2")
    assert down.returncode == 1
    assert down.stderr.count("\n") == 1
    assert "does not answer: 503" in down.stderr
    gone = run(source, tmp_path, model, "--tries", "1")
    assert "does not answer: ConnectError" in gone.stderr
    with ScriptedModel(Script(aspects)).serving() as model:
        wrong = run(source, tmp_path, None, "--endpoint", f"{model.url}/nowhere")
    assert "404: there is no such address or model" in wrong.stderr


def test_concurrency_is_kept_and_a_busy_server_is_given_its_time(captions, tmp_path):
    source, aspects = captions
    script = Script(aspects, mishaps=("busy",), mishap_share=0.4, pause=0.02, retry_after="0.4")
    with ScriptedModel(script).serving() as model:
        begun = time.monotonic()
        done = run(source, tmp_path, model, "--recipe", "short", "--concurrency", "4", "--no_judge")
        took = time.monotonic() - begun
    assert done.returncode == 0, done.stderr
    assert model.most_under_way == 4
    assert model.events["busy"] >= 2
    assert took > 0.8


def test_another_command_in_the_folder_is_refused(captions, tmp_path):
    source, aspects = captions
    with ScriptedModel(Script(aspects, pause=2.0)).serving() as model:
        first = subprocess.Popen(
            command(source, tmp_path, model, "--concurrency", "2"),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment(),
        )
        while not model.seen:
            time.sleep(0.01)
        second = run(source, tmp_path, model)
        first.send_signal(signal.SIGINT)
        assert first.wait(60) == 130
    assert second.returncode == 1
    assert "another command is at work there" in second.stderr
    assert model.paid_twice() == []
    # What was under way when Ctrl-C came was waited for.
    assert model.events["hung up"] == 0
    assert len(read_lines(tmp_path / "requests/journal.jsonl")) == model.paid.total()


def test_batch_files_do_the_same_without_a_server(captions, tmp_path):
    source, aspects = captions
    played = ScriptedModel(Script(aspects))
    rounds = 0
    while True:
        written = run(source, tmp_path / "made", None, "--batch", "write", str(tmp_path / f"ask-{rounds}.jsonl"))
        assert written.returncode == 0, written.stderr
        if "nothing is left" in written.stdout:
            break
        lines = read_lines(tmp_path / f"ask-{rounds}.jsonl")
        assert all(line["url"] == "/v1/chat/completions" and line["method"] == "POST" for line in lines)
        answered = [_batch_result(played, line, failed=rounds == 0 and n % 11 == 3) for n, line in enumerate(lines)]
        random.Random(rounds).shuffle(answered)
        (tmp_path / f"said-{rounds}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answered))
        read = run(source, tmp_path / "made", None, "--batch", "read", str(tmp_path / f"said-{rounds}.jsonl"))
        assert read.returncode == 0, read.stderr
        rounds += 1
    assert rounds == 4
    with ScriptedModel(Script(aspects)).serving() as model:
        assert run(source, tmp_path / "live", model).returncode == 0
    assert results(tmp_path / "made") == results(tmp_path / "live")
    again = run(source, tmp_path / "made", None, "--batch", "read", str(tmp_path / "said-0.jsonl"))
    assert "0 replies read" in again.stdout
    strange = run(source, tmp_path / "made", None, "--batch", "read", str(source.with_suffix(".csv")))
    assert strange.returncode == 1


def _batch_result(model: ScriptedModel, line: dict, *, failed: bool) -> dict:
    """A line of a file of results."""
    if failed:
        return {"custom_id": line["custom_id"], "response": None, "error": {"code": "batch_expired"}}
    text = model.write(line["body"])
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = {"object": "chat.completion", "choices": [choice], "usage": usage_of(line["body"], text)}
    return {"id": "1", "custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}}


def test_bad_options_are_told_in_one_line(captions, tmp_path, monkeypatch):
    source, _ = captions
    for options, expected in (
        (("--recipe", "nothing"), "--recipe: expected short, long, both, captions, qa or a toml file"),
        (("--concurrency", "0"), "--concurrency: expected more than 0, found 0"),
        (("--max_cost", "3"), "--max_cost needs prices"),
        (("--tasks", "short,nothing"), "no task 'nothing' in it, only short, long"),
        (("--batch", "eat", "x"), "--batch: expected `write FILE` or `read FILE`, found 'eat'"),
        (("--batch", "read", "x"), "--batch read: there is no file x"),
        (("--endpoint", "localhost:80"), "--endpoint: expected an address as http://localhost:8000/v1"),
        ((), "--endpoint: there is something to ask, so the address of a server is needed"),
        (("--exclude", "/nowhere.csv"), "/nowhere.csv: there is no such file of clips to exclude"),
    ):
        monkeypatch.setattr("sys.argv", command(source, tmp_path, None, *options)[2:])
        with pytest.raises(UserError) as error:
            main()
        assert expected in str(error.value)
        assert "\n" not in str(error.value)
    monkeypatch.setattr("sys.argv", command("nowhere.csv", tmp_path, None)[2:])
    with pytest.raises(UserError, match=r"nowhere\.csv: there is no such file; for a prepared dataset"):
        main()
