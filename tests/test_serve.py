"""The server over HTTP on the loopback, a real one on a free port, against the classifier called directly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_classifier import TEXTS, make_classifier

httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

from adasearch.cascade import Cascade  # noqa: E402
from adasearch.classifier import Answers, TextClassifier  # noqa: E402
from adasearch.errors import ConfigError  # noqa: E402
from adasearch.serve import facts_of, listen, serve  # noqa: E402
from adasearch.web import Batcher, Limits, as_json, create_app  # noqa: E402

LIMITS = Limits(texts=8, characters=50, body_bytes=2000)
SECONDS = 60  # after which a test that waits has failed; none of them comes near


@contextmanager
def running(app: Any) -> Iterator[httpx.Client]:
    """A client of the application on a real server. The socket listens before the server runs: nobody has to wait."""
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=SECONDS) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(SECONDS)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextClassifier:
    return TextClassifier(make_classifier(tmp_path_factory.mktemp("model") / "student"), runtime="torch", threads=1)


@pytest.fixture(scope="module")
def client(model: TextClassifier) -> Iterator[httpx.Client]:
    with running(create_app(model, facts_of(Path("student"), model, model), LIMITS)) as client:
        yield client


def test_answers_are_those_of_the_classifier(client: httpx.Client, model: TextClassifier) -> None:
    for pairs in (None, TEXTS[::-1]):
        reply = client.post("/predict", json={"texts": TEXTS} | ({"pairs": pairs} if pairs else {}))
        expected = model.answer(TEXTS, pairs)
        assert reply.status_code == 200
        rows = reply.json()["predictions"]
        assert [row["label"] for row in rows] == expected.predictions and len(set(expected.predictions)) > 1
        for row, shares in zip(rows, expected.probabilities_NC, strict=True):
            assert list(row["probabilities"]) == ["neg", "neu", "pos"]
            assert list(row["probabilities"].values()) == pytest.approx(shares.tolist(), abs=1e-6)


def test_health_says_what_runs(client: httpx.Client) -> None:
    facts = client.get("/health").json()
    assert (facts["status"], facts["runtime"], facts["precision"], facts["threads"]) == ("ok", "torch", "fp32", 1)
    assert facts["labels"] == ["neg", "neu", "pos"] and facts["max_texts"] == 8


def test_the_page_needs_nothing_else(client: httpx.Client) -> None:
    reply = client.get("/")
    assert reply.headers["content-type"].startswith("text/html") and "textarea" in reply.text
    assert "http://" not in reply.text and "https://" not in reply.text and "innerHTML" not in reply.text
    assert client.get("/docs").status_code == 404  # FastAPI's page would load scripts from the network


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        ({"json": {"texts": []}}, 422, "texts: empty; send 1 or more"),
        ({"json": {"texts": ["a"] * 9}}, 413, "texts: 9 of them; at most 8 a request"),
        ({"json": {"texts": ["a", "b" * 51]}}, 413, "texts[1]: 51 characters; at most 50 a text"),
        ({"json": {"texts": ["a"], "pairs": ["b" * 51]}}, 413, "pairs[0]: 51 characters"),
        ({"json": {"texts": ["a"], "pairs": ["b", "c"]}}, 422, "pairs: 2 for 1 texts"),
        ({"json": {"text": ["a"]}}, 422, "texts: Field required; text: Extra inputs are not permitted; expected: {"),
        ({"json": {"texts": ["a"], "pair": ["b"]}}, 422, "pair: Extra inputs are not permitted; expected: {"),
        ({"json": {"texts": "a"}}, 422, "texts: Input should be a valid list"),
        ({"json": {"texts": ["a", 3]}}, 422, "texts.1: Input should be a valid string"),
        ({"json": ["a"]}, 422, "expected: {"),
        ({"content": b'{"texts": ["a"'}, 422, "JSON decode error"),
        ({"content": b'{"texts": ["\\ud800"]}'}, 422, "texts[0]: half a character"),
        ({"content": b'{"texts": "\\ud800"}'}, 422, "texts: Input should be a valid"),
        ({"content": b"\xff\xfe"}, 422, "body: byte 0 (0xff) is not UTF-8"),
        ({"content": '{"texts": ["caf\u00e9"]}'.encode("latin-1")}, 422, "body: byte 15 (0xe9) is not UTF-8; send the request in UTF-8"),
        ({"content": b"{"}, 422, "expected: {"),
        ({"json": {"texts": ["a" * 3000]}}, 413, "larger than 2000 bytes"),
        ({"content": iter([b'{"texts": ["'] + [b"a" * 500] * 5)}, 413, "larger than 2000 bytes"),  # no length announced
    ],
)
def test_bad_requests_are_told_what_is_wrong(client: httpx.Client, request_: dict[str, Any], status: int, says: str) -> None:
    reply = client.post("/predict", headers={"content-type": "application/json"}, **request_)
    assert (reply.status_code, says in reply.json()["detail"]) == (status, True), reply.text
    assert client.get("/predict").status_code == 405


def test_a_text_that_was_cut_is_told_to_whom_it_belongs(model: TextClassifier) -> None:
    answers = model.answer(["a film", "very " * 60, "good"])
    assert ["cut" in row for row in as_json(answers, model.labels)] == [False, True, False] and answers.cut == 1
    assert [answers.part(slice(start, start + 1)).cut for start in range(3)] == [0, 1, 0]


class Slow:
    """A classifier whose first call waits to be released."""

    is_pair = None

    def __init__(self, model: TextClassifier):
        self.model, self.labels, self.calls = model, model.labels, []
        self.begun, self.released = threading.Event(), threading.Event()

    def answer(self, texts: list[str], pairs: list[str] | None = None) -> Answers:
        self.calls.append((list(texts), pairs))
        self.begun.set()
        assert self.released.wait(SECONDS)
        if "fail" in texts:
            raise RuntimeError("as asked")
        if "panic" in texts:  # of a library in Rust: no Exception
            raise BaseException("as asked")
        return self.model.answer(texts, pairs)


def test_who_waits_is_answered_together_and_gets_what_is_his(model: TextClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, waiting, answer = Slow(model), threading.Semaphore(0), Batcher.answer
    app = create_app(slow, {}, LIMITS)

    async def told(batcher: Batcher, *texts: Any) -> Answers:
        waiting.release()  # the next request is sent from here on: they wait in this order, however busy the machine
        return await answer(batcher, *texts)

    monkeypatch.setattr(Batcher, "answer", told)
    with running(app) as client, ThreadPoolExecutor(8) as threads:

        def ask(texts: list[str], pairs: list[str] | None = None) -> Any:
            return threads.submit(client.post, "/predict", json={"texts": texts, "pairs": pairs})

        asked = [(TEXTS[:1], None)]
        replies = [ask(*asked[0])]
        assert slow.begun.wait(SECONDS) and waiting.acquire(timeout=SECONDS)
        for texts, pairs in ((TEXTS[1:3], None), (TEXTS[3:6], None), (TEXTS[:2], TEXTS[2:4])):
            asked.append((texts, pairs))
            replies.append(ask(texts, pairs))
            assert waiting.acquire(timeout=SECONDS)
        assert client.get("/health").status_code == 200  # a busy model keeps nobody else from being answered
        slow.released.set()
        for (texts, pairs), reply in zip(asked, replies):
            found = [row["label"] for row in reply.result(SECONDS).json()["predictions"]]
            assert found == model.answer(texts, pairs).predictions
        assert slow.calls[0][0] == TEXTS[:1] and len(slow.calls) < 4  # some of the three went together
        assert not any(pairs and len(texts) > 2 for texts, pairs in slow.calls)  # pairs by themselves
        assert ask(["fail"]).result(SECONDS).status_code == 500
        assert ask(["panic"]).result(SECONDS).status_code == 500
        assert ask(["bad"]).result(SECONDS).status_code == 200  # one failed call is not the end


def test_whose_client_has_gone_is_not_answered(model: TextClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is room kept for him among those who wait."""
    slow, queued, ended, answer = Slow(model), threading.Semaphore(0), threading.Semaphore(0), Batcher.answer
    app = create_app(slow, {}, LIMITS)

    async def told(batcher: Batcher, *texts: Any) -> Answers:
        queued.release()
        return await answer(batcher, *texts)

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)
        ended.release()

    def asked(text: str) -> socket.socket:
        body = json.dumps({"texts": [text] * LIMITS.texts}).encode()
        head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection = socket.create_connection((client.base_url.host, client.base_url.port), SECONDS)
        connection.sendall(head.encode() + body)
        return connection

    monkeypatch.setattr(Batcher, "answer", told)
    with running(watched) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/predict", json={"texts": ["good"]})
        assert slow.begun.wait(SECONDS) and queued.acquire(timeout=SECONDS)
        try:
            for text in ["bad", "film"] * 10:  # more than may wait at once
                connection = asked(text)
                assert queued.acquire(timeout=SECONDS)
                connection.close()
                assert ended.acquire(timeout=10), "who has gone is kept"
            slow.released.set()
            assert first.result(SECONDS).status_code == 200
            assert client.post("/predict", json={"texts": ["the end"]}).status_code == 200
        finally:
            slow.released.set()
    assert [texts for texts, _ in slow.calls] == [["good"], ["the end"]]


def test_a_cascade_says_who_answered(model: TextClassifier, tmp_path: Path) -> None:
    teacher = TextClassifier(make_classifier(tmp_path / "teacher"), runtime="torch", threads=1)
    threshold = float(np.median(model.answer(TEXTS).probabilities_NC.max(axis=1)))
    cascade = Cascade(model, teacher, threshold)
    with running(create_app(cascade, facts_of(Path("student"), model, cascade))) as client:
        rows = client.post("/predict", json={"texts": TEXTS}).json()["predictions"]
        assert client.get("/health").json()["cascade_threshold"] == threshold
    expected = cascade.answer(TEXTS)
    assert [row["answered_by"] == "teacher" for row in rows] == expected.is_escalated_N.tolist()
    assert [row["label"] for row in rows] == expected.predictions and 0 < expected.is_escalated_N.sum() < len(TEXTS)


def test_a_model_of_pairs_is_sent_pairs_alone(tmp_path: Path) -> None:
    pairs = TextClassifier(make_classifier(tmp_path / "pairs", is_pair=True), runtime="torch", threads=1)
    with running(create_app(pairs, facts_of(Path("pairs"), pairs, pairs))) as client:
        reply = client.post("/predict", json={"texts": TEXTS})
        assert reply.status_code == 422 and "pairs: none given; the model was trained on pairs" in reply.json()["detail"]
        assert client.post("/predict", json={"texts": TEXTS, "pairs": TEXTS}).status_code == 200
        assert client.get("/health").json()["is_pair"] is True


def test_one_command_serves_and_stops_when_told(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "student")
    command = [sys.executable, "-m", "adasearch", "serve", str(folder), "--port", "0", "--runtime", "torch"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stderr.readline()
            assert line.startswith(f"serving {folder} at http://127.0.0.1:"), line + process.stderr.read()
            address = line.split(" at ")[1].split()[0]
            reply = httpx.post(f"{address}/predict", json={"texts": ["a good film"]}, timeout=SECONDS)
            assert reply.json()["predictions"][0]["label"] in ("neg", "neu", "pos")
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) in (0, -signal.SIGTERM) and process.stderr.read() == ""
        finally:
            process.kill()


def test_replies_do_not_wait_for_acknowledgements() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname(), SECONDS):
        with listener.accept()[0] as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_bad_settings_are_refused_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")  # enough to be taken for a model's folder until it is loaded
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for settings, says in (
            ({"student_dir": tmp_path / "absent"}, "student: .*absent is no model folder"),
            ({"port": 70_000}, "port: 70000 is out of range"),
            ({"port": taken.getsockname()[1]}, "cannot be used .*in use"),
            ({"host": "no.such.host.invalid"}, "no.such.host.invalid:0 cannot be used"),
            ({"max_texts": 0}, "max_texts: 0 is out of range"),
            ({"threads": 0}, "threads: 0 on "),
            ({"runtime": "tpu"}, "runtime: 'tpu' is not known"),
            ({"cascade_threshold": 0.9}, "cascade_teacher: none given"),
            ({"cascade_teacher": tmp_path}, "cascade_threshold: none given, and a teacher needs one; choices: --cascade_threshold 0.9"),
            ({"cascade_teacher": tmp_path / "absent", "cascade_threshold": 0.5}, "cascade_teacher: .*absent is no model"),
        ):
            with pytest.raises(ConfigError, match=says):
                serve(**{"student_dir": tmp_path, "port": 0, **settings})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"fastapi and uvicorn not installed; pip install 'adasearch\[serve\]'"):
        serve(tmp_path)


def test_a_model_that_was_not_quantised_has_one_thread_whatever_the_other_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def load(folder: Path, **settings: Any) -> SimpleNamespace:
        taken.append((folder.name, settings["threads"]))
        if len(taken) % 2 == 0:
            raise KeyboardInterrupt  # before they are asked anything
        return SimpleNamespace()

    monkeypatch.setattr("adasearch.serve.TextClassifier", load)
    for name in ("chosen", "plain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "chosen" / "deploy.json").write_text("{}")
    for student, teacher, threads in (("chosen", "plain", None), ("plain", "chosen", None), ("chosen", "plain", 1)):
        with pytest.raises(KeyboardInterrupt):
            serve(tmp_path / student, port=0, threads=threads, cascade_teacher=tmp_path / teacher, cascade_threshold=0.5)
    assert taken == [("chosen", None), ("plain", 1), ("plain", 1), ("chosen", None), ("chosen", 1), ("plain", 1)]
