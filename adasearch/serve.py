"""A student behind HTTP, in one command. Needs the extra ``serve`` (FastAPI and uvicorn)."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

from adasearch.cascade import Cascade, check_teacher
from adasearch.classifier import TextClassifier, check_settings
from adasearch.deploy import DEPLOY_FILE
from adasearch.errors import ConfigError
from adasearch.progress import Progress
from adasearch.settings import is_installed

STOP_SECONDS = 10  # that requests under way have left when the server is told to stop


def serve(
    student_dir: Path, *, host: str = "127.0.0.1", port: int = 8000, threads: int | None = None, runtime: str = "auto",
    precision: str | None = None, batch_size: int = 32, max_texts: int = 256, max_characters: int = 20_000,
    calibrated: bool = True, cascade_teacher: Path | None = None, cascade_threshold: float | None = None,
    progress: Progress | None = None,
) -> None:  # fmt: skip
    """Answer POST /predict, GET /health and GET / until stopped (SIGINT, SIGTERM); what is under way is finished first.

    Port 0 takes a free one; the address is told to ``progress``. Raises ``ConfigError`` when a setting is wrong, the
    address cannot be used or the extra is not installed, ``ModelError`` when a model cannot be loaded.
    """
    progress = progress or Progress()
    require_serve()
    import uvicorn

    from adasearch.web import Limits, create_app

    limits = Limits(max_texts, max_characters)
    check_settings(student_dir, runtime, batch_size, threads=threads)
    check_teacher(cascade_teacher, cascade_threshold, None, batch_size, has_share=False)
    listener = listen(host, port)  # before the model is loaded: a taken port should not cost seconds
    with listener:
        student = TextClassifier(
            student_dir, runtime=runtime, precision=precision, threads=_threads(student_dir, threads), batch_size=batch_size,
            is_calibrated=calibrated, progress=progress,
        )  # fmt: skip
        answerer: TextClassifier | Cascade = student
        if cascade_teacher is not None:
            teacher = TextClassifier(
                cascade_teacher, threads=_threads(cascade_teacher, threads), batch_size=batch_size, is_calibrated=calibrated,
                progress=progress,
            )  # fmt: skip
            answerer = Cascade(student, teacher, cascade_threshold)
        answerer.answer(["the first call is the slowest"], ["and is"] if answerer.is_pair else None)  # not a client's
        app = create_app(answerer, facts_of(student_dir, student, answerer), limits)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=STOP_SECONDS)
        address = listener.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        progress.message(f"serving {student_dir} at http://{shown}:{address[1]} (stop with Ctrl-C)")
        with contextlib.suppress(KeyboardInterrupt):  # the signal that stopped it, raised again when all is answered
            uvicorn.Server(config).run(sockets=[listener])


def _threads(model_dir: Path, threads: int | None) -> int | None:
    """Those that are asked for, else None where the folder says for how many it was quantised, else one: requests share the cores."""
    return 1 if threads is None and not (model_dir / DEPLOY_FILE).is_file() else threads


def require_serve() -> None:
    """Raise ``ConfigError`` that says how to get what serving needs unless it is installed."""
    missing = [name for name in ("fastapi", "uvicorn") if not is_installed(name)]
    if missing:
        raise ConfigError(f"serve: {' and '.join(missing)} not installed; pip install 'adasearch[serve]'")


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on; they wait until they are answered. Raises ``ConfigError``."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"port: {port} is out of range; choices: 0 (any that is free) to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(f"host, port: {host}:{port} cannot be used ({error.strerror or error}); choices: another") from error
    # its connections inherit this; without it the second half of each reply waits 40 ms for the first to be acknowledged
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def facts_of(student_dir: Path, student: TextClassifier, answerer: TextClassifier | Cascade) -> dict[str, Any]:
    """What /health tells of the model."""
    facts = {
        "model": Path(student_dir).resolve().name, "runtime": student.runtime.name,
        "precision": student.runtime.precision, "threads": student.runtime.threads, "labels": student.labels,
        "problem_type": student.problem_type, "temperature": student.temperature, "max_word_pieces": student.limit,
        "is_pair": answerer.is_pair,
    }  # fmt: skip
    if isinstance(answerer, Cascade):
        facts["cascade_threshold"] = answerer.threshold
    return facts
