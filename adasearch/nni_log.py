"""Where NNI talks to: a file of the run, in the place of the console. Needs the extra ``nni``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOGGERS = ("nni", "pytorch_lightning", "lightning_fabric", "py.warnings")


@contextmanager
def told_to(path: Path) -> Iterator[None]:
    """What NNI, Lightning and Python's warnings say goes into a file, not to the console."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.captureWarnings(True)
    before = [(logger, logger.handlers[:], logger.propagate) for logger in map(logging.getLogger, LOGGERS)]

    def listen() -> None:
        for logger, _, _ in before:
            logger.handlers, logger.propagate = [handler], False

    try:
        listen()
        import nni  # noqa: F401 (adds a handler of its own, for the console)
        import pytorch_lightning  # noqa: F401 (likewise)

        listen()
        yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        logging.captureWarnings(False)
        handler.close()
