"""The web application around a classifier: POST /predict, GET /health, GET / (a page to try it). Needs the extra ``serve``.

Requests that arrive while the model is busy wait and are answered together in its next call: nobody waits for a batch
to fill, and under load the batches grow by themselves. One thread computes, so the model is never called twice at once.
Whose client goes away while he waits is not answered: what nobody hears would keep the others waiting.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from adasearch.cascade import Cascade
from adasearch.classifier import Answers, TextClassifier, check_pairs, shortest
from adasearch.errors import ConfigError
from adasearch.tables import SURROGATE
from adasearch.web_page import PAGE

LOG = logging.getLogger(__name__)
QUEUE_REQUESTS = 16  # full requests that may wait; then others are told to come back later
GONE = 499  # nginx's status for a client that did not wait; nobody reads it but the middleware


@dataclass(frozen=True)
class Limits:
    """What one request may hold, and so what the process may be made to hold. Raises ``ConfigError`` below 1."""

    texts: int = 256
    characters: int = 20_000  # of one text
    body_bytes: int = 8_000_000  # of a whole request; refused before it is read to its end

    def __post_init__(self) -> None:
        for name, value in (("max_texts", self.texts), ("max_characters", self.characters)):
            if value < 1:
                raise ConfigError(f"{name}: {value} is out of range; choices: 1 or more")


@dataclass(frozen=True, eq=False)
class Job:
    """Texts that wait, and the promise of what is said of them."""

    texts: Sequence[str]
    pairs: Sequence[str] | None
    answers: asyncio.Future[Answers]


class Batcher:
    """Gathers what waits while the model is busy into its next call."""

    def __init__(self, answerer: TextClassifier | Cascade, limits: Limits):
        self.answerer, self.limits = answerer, limits
        self.waiting: deque[Job] = deque()
        self.arrived = asyncio.Event()
        self.calls = 0

    async def answer(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Answers:
        """What the model says. Raises HTTP 503 when too much waits already. Cancelled, what was not begun is not computed."""
        if sum(len(job.texts) for job in self.waiting) > QUEUE_REQUESTS * self.limits.texts:
            raise HTTPException(503, "too many texts are waiting; try again in a second", headers={"Retry-After": "1"})
        job = Job(texts, pairs, asyncio.get_running_loop().create_future())
        self.waiting.append(job)
        self.arrived.set()
        try:
            return await job.answers
        except asyncio.CancelledError:
            with suppress(ValueError):  # it is being computed
                self.waiting.remove(job)
            raise

    async def work(self) -> None:
        """Answer for ever."""
        with ThreadPoolExecutor(1, thread_name_prefix="classifier") as thread:
            while True:
                await self.arrived.wait()
                self.arrived.clear()
                while self.waiting:
                    jobs = self._next()
                    await self._answer(jobs, thread)

    def _next(self) -> list[Job]:
        """The jobs of the next call: in order, of one kind (single texts or pairs), together no more than a request."""
        jobs = [self.waiting.popleft()]
        count = len(jobs[0].texts)
        while self.waiting and (self.waiting[0].pairs is None) == (jobs[0].pairs is None):
            count += len(self.waiting[0].texts)
            if count > self.limits.texts:
                break
            jobs.append(self.waiting.popleft())
        return jobs

    async def _answer(self, jobs: list[Job], thread: ThreadPoolExecutor) -> None:
        texts = [text for job in jobs for text in job.texts]
        pairs = None if jobs[0].pairs is None else [text for job in jobs for text in job.pairs or ()]
        self.calls += 1
        try:
            answers = await asyncio.get_running_loop().run_in_executor(thread, self.answerer.answer, texts, pairs)
        except asyncio.CancelledError:
            raise
        except BaseException:  # a bug or a damaged model, or a panic in a library's Rust; who asked must hear of it, the next call may go well
            LOG.exception("the model failed on %d texts", len(texts))
            for job in jobs:
                if not job.answers.done():
                    job.answers.set_exception(HTTPException(500, "the model failed; the server's log says why"))
            return
        start = 0
        for job in jobs:
            part = slice(start, start := start + len(job.texts))
            if not job.answers.done():  # its client may have gone away
                job.answers.set_result(answers.part(part))


class Asked(BaseModel):
    """The body of a request. A misspelt ``pairs`` is refused: the first texts alone would be answered."""

    model_config = ConfigDict(extra="forbid")
    texts: list[str] = Field(description="The texts, or the first texts of pairs.")
    pairs: list[str] | None = Field(None, description="The second texts of pairs, one a text.")


def create_app(answerer: TextClassifier | Cascade, facts: dict[str, Any], limits: Limits | None = None) -> FastAPI:
    """The application. ``facts`` is what /health tells of the model."""
    limits = limits or Limits()
    batcher = Batcher(answerer, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.work())
        yield
        task.cancel()

    # its pages of documentation would load scripts from the network
    app = FastAPI(title="adasearch", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, largest=limits.body_bytes)

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        """What is wrong and where, in one line; the request is not echoed."""
        problems = [f"{'.'.join(map(str, e['loc'][1:])) or 'body'}: {e['msg']}" for e in error.errors()[:3]]
        expected = 'expected: {"texts": ["..."], "pairs": ["..."] (optional)}, with Content-Type: application/json'
        return JSONResponse({"detail": f"{'; '.join(problems)}; {expected}"}, 422)

    @app.post("/predict")
    async def predict(request: Request, asked: Asked) -> dict[str, Any]:
        """A prediction for each text, with the probabilities of its labels, in the order of the texts."""
        texts, pairs = asked.texts, asked.pairs
        _check(texts, pairs, limits)
        try:
            check_pairs(answerer.is_pair, pairs is not None)
        except ConfigError as error:
            raise HTTPException(422, str(error)) from error
        answers = await while_there(request, batcher.answer(texts, pairs))
        return {"predictions": as_json(answers, answerer.labels)}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """That the server answers, and with what."""
        return {"status": "ok", **facts, "max_texts": limits.texts, "max_characters": limits.characters}

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        """A page to try it by hand."""
        return PAGE

    return app


async def while_there(request: Request, answering: Coroutine[Any, Any, Answers]) -> Answers:
    """The answer, or HTTP 499 to nobody once the client has gone: no server cancels what it asked for."""

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, left = asyncio.ensure_future(answering), asyncio.ensure_future(leave())
    try:
        await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise HTTPException(GONE, "the client has gone")
    finally:
        for task in (answer, left):
            task.cancel()


def as_json(answers: Answers, labels: Sequence[str]) -> list[dict[str, Any]]:
    """One object a text: ``label``, ``probabilities`` by label (in regression ``score``), in a cascade ``answered_by``; of a text
    of which only the beginning was read ``cut``."""
    if answers.probabilities_NC is None:
        rows: list[dict[str, Any]] = [{"score": score} for score in answers.predictions]
    else:
        columns_CN = [shortest(answers.probabilities_NC[:, c]) for c in range(len(labels))]
        rows = [
            {"label": label, "probabilities": dict(zip(labels, shares))}
            for label, *shares in zip(answers.predictions, *columns_CN)
        ]
    for row in np.flatnonzero(answers.is_cut_N):
        rows[row]["cut"] = True
    if answers.is_escalated_N is not None:
        for row, is_escalated in zip(rows, answers.is_escalated_N):
            row["answered_by"] = "teacher" if is_escalated else "student"
    return rows


def _check(texts: list[str], pairs: list[str] | None, limits: Limits) -> None:
    """Raise HTTP 4xx that says what is wrong with the request."""
    if not texts:
        raise HTTPException(422, "texts: empty; send 1 or more")
    if len(texts) > limits.texts:
        raise HTTPException(413, f"texts: {len(texts)} of them; at most {limits.texts} a request")
    if pairs is not None and len(pairs) != len(texts):
        raise HTTPException(422, f"pairs: {len(pairs)} for {len(texts)} texts; one each is needed")
    for name, column in (("texts", texts), ("pairs", pairs or [])):
        for index, text in enumerate(column):
            if len(text) > limits.characters:
                raise HTTPException(413, f"{name}[{index}]: {len(text)} characters; at most {limits.characters} a text")
            if SURROGATE.search(text):
                raise HTTPException(422, f"{name}[{index}]: half a character (a lone surrogate)")


class BodyLimit:
    """ASGI middleware that refuses a larger body before it is read, or while, where its length was not announced; and one that is no UTF-8."""

    def __init__(self, app: Callable[..., Any], largest: int):
        self.app, self.largest = app, largest

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, is_whole = bytearray(), False
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        while True:
            if len(body) > self.largest or (announced.isdigit() and int(announced) > self.largest):
                refusal = JSONResponse({"detail": f"the request is larger than {self.largest} bytes"}, 413)
                await refusal(scope, receive, send)
                return
            if is_whole:
                break
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            is_whole = not message.get("more_body", False)
        try:
            body.decode("utf-8")
        except UnicodeDecodeError as error:
            refusal = JSONResponse({"detail": f"body: byte {error.start} (0x{body[error.start]:02x}) is not UTF-8; send the request in UTF-8"}, 422)
            await refusal(scope, receive, send)
            return
        told = False

        async def replay() -> dict[str, Any]:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, replay, send)
