"""A language model as judge, against a real server on this machine that grades, fails, dawdles and talks nonsense."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mlingo_jax.errors import UserError
from mlingo_jax.evaluate import main
from mlingo_jax.evaluation.answers import Answer, write_answers
from mlingo_jax.evaluation.judge import Judge, judge_answers, read_grade
from mlingo_jax.evaluation.statistics import ratio

EXAMPLES = [
    Answer(f"clip {i}", "What plays?", f"a {name}", f"a {name}") for i, name in enumerate(("harp", "bell", "drum"))
]
EXAMPLES.append(Answer("clip 3", "What plays?", "a horn", ""))
QUICK = {"pauses": (0.01, 0.01, 0.01), "timeout": 5.0}


class Server(ThreadingHTTPServer):
    """Grades 5 if reference and answer are the same and 1 otherwise; `reply`, if there is one, comes before."""

    reply: Callable[["Server", dict], tuple[int, str] | None] | None = None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict] = []
        self.paths: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.requests.append(request)
        server.paths.append(self.path)
        special = server.reply(server, request) if server.reply else None
        status, body = special or (200, json.dumps(completion(grade(request))))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the screen."""


def grade(request: dict) -> str:
    prompt = request["messages"][0]["content"]
    reference, answer = (re.search(f"{name}: (.*)", prompt) for name in ("Reference", "Answer"))
    assert reference
    assert answer
    return json.dumps({"grade": 5 if reference[1] == answer[1] else 1, "reason": "so"})


def completion(text: str) -> dict:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_answers_and_their_shuffles_are_graded(server, tmp_path):
    judge = Judge(server.endpoint, "tiny", **QUICK)
    scored, described = judge_answers(judge, EXAMPLES, tmp_path / "judge.jsonl")
    assert ratio(scored.own.sum(axis=0)) == 0.75
    assert ratio(scored.shuffled.sum(axis=1)) == [0]
    assert described["unreadable_replies"] == 0
    assert set(server.paths) == {"/v1/chat/completions"}
    assert {request["model"] for request in server.requests} == {"tiny"}
    assert {request["temperature"] for request in server.requests} == {0}
    lines = [json.loads(line) for line in (tmp_path / "judge.jsonl").read_text().splitlines()]
    assert len(lines) == len(server.requests)
    assert all(json.loads(line["reply"])["grade"] in (1, 5) for line in lines)
    assert {line["prompt"] for line in lines} == {described["prompt"]}


def test_nothing_is_asked_twice(server, tmp_path):
    judge, replies = Judge(server.endpoint, "tiny", **QUICK), tmp_path / "judge.jsonl"
    first, _ = judge_answers(judge, EXAMPLES, replies)
    asked = len(server.requests)
    # The last line was cut off by a kill.
    replies.write_bytes(replies.read_bytes()[:-20])
    again, _ = judge_answers(judge, EXAMPLES, replies)
    assert len(server.requests) == asked + 1
    assert (again.own == first.own).all()
    judge_answers(Judge(server.endpoint, "another", **QUICK), EXAMPLES, replies)
    assert len(server.requests) == 2 * asked + 1


def test_failures_that_pass_are_tried_again(server, tmp_path):
    failures = iter([(429, "{}"), (500, "oh"), (200, "<html>")])
    server.reply = lambda server, request: next(failures, None)
    judge = Judge(server.endpoint, "tiny", workers=1, **QUICK)
    scored, _ = judge_answers(judge, EXAMPLES, tmp_path / "judge.jsonl")
    assert ratio(scored.own.sum(axis=0)) == 0.75


def test_what_was_paid_for_is_kept_when_the_endpoint_fails(server, tmp_path):
    server.reply = lambda server, request: (
        (503, '{"error": {"message": "over there"}}') if len(server.requests) > 3 else None
    )
    judge = Judge(server.endpoint, "tiny", workers=1, **QUICK)
    said = r"the judge answers 503: over there; 3 grades kept in .*judge\.jsonl: the same command resumes"
    with pytest.raises(UserError, match=said):
        judge_answers(judge, EXAMPLES, tmp_path / "judge.jsonl")
    asked = len((tmp_path / "judge.jsonl").read_text().splitlines())
    server.reply = None
    before = len(server.requests)
    judge_answers(judge, EXAMPLES, tmp_path / "judge.jsonl")
    assert len(server.requests) - before == len((tmp_path / "judge.jsonl").read_text().splitlines()) - asked


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        pytest.param((401, '{"error": {"message": "no key"}}'), "answers 401: no key", id="refuses"),
        pytest.param((200, '{"object": "list"}'), "answers something else than a chat completion", id="no completion"),
        pytest.param(
            (200, json.dumps(completion("I like it."))), "replies hold no grade, as 'I like it.'", id="nonsense"
        ),
    ],
)
def test_a_bad_endpoint_is_one_line(server, tmp_path, reply, said):
    server.reply = lambda server, request: reply
    with pytest.raises(UserError) as raised:
        judge_answers(Judge(server.endpoint, "tiny", **QUICK), EXAMPLES, tmp_path / "judge.jsonl")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_endpoint_that_is_down_or_slow_is_one_line(server, tmp_path):
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1/v1: the judge cannot be used \(.*refused\)"):
        judge_answers(Judge("http://127.0.0.1:1/v1", "tiny", **QUICK), EXAMPLES, tmp_path / "judge.jsonl")

    def dawdle(server: Server, request: dict) -> None:
        time.sleep(0.5)

    server.reply = dawdle
    judge = Judge(server.endpoint, "tiny", timeout=0.1, pauses=())
    with pytest.raises(UserError, match=r"gives no reply within 0\.1 s"):
        judge_answers(judge, EXAMPLES, tmp_path / "judge.jsonl")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"grade": 4, "reason": "mostly"}', 4),
        ('Let me think.\n```json\n{"grade": 2}\n```', 2),
        ("It agrees in part.\nRating: 3", 3),
        ('{"grade": 5, "reason": "cut o', 5),
        ('{"grade": 7}', None),
        ("Fine!", None),
        ("", None),
    ],
)
def test_grades_are_read(reply, expected):
    assert read_grade(reply) == expected


def test_the_command_reports_the_judge(server, tmp_path):
    write_answers(tmp_path / "answers.jsonl", EXAMPLES)
    files = ["--answers", str(tmp_path / "answers.jsonl"), "--output", str(tmp_path / "out")]
    main([*files, "--judge", server.endpoint, "--judge_model", "tiny"])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["metrics"]["judge.score"]["value"] == 0.75
    assert report["metrics"]["judge.score"]["shuffled"] == {"mean": 0, "deviation": 0}
    assert report["settings"]["judge"]["model"] == "tiny"
    assert "## judge" in (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(UserError, match="--judge and --judge_model go together"):
        main(["--answers", "a", "--output", "b", "--judge", "c"])
