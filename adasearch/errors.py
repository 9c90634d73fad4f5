"""Errors a user can act on: each names the place, the value and the choices.

The command line prints them as one line and exits with 2 (``ConfigError``, ``DataError``: the request or its data are
wrong) or 1 (any other ``AdasearchError``: the run failed). Every other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError


class AdasearchError(Exception):
    """Base class of the errors that are the user's to mend."""


class ConfigError(AdasearchError):
    """A setting, flag, search space or architecture is wrong; raised before any work begins."""


class DataError(AdasearchError):
    """A data set, file or row is wrong; raised before any training begins."""


class ModelError(AdasearchError):
    """A checkpoint cannot be used as asked (missing files, another label count, another architecture)."""


class TrainingError(AdasearchError):
    """A run cannot go on (loss is not finite, disk is full); the last checkpoint is still good."""


def one_line(error: BaseException, most: int | None = None) -> str:
    """What an error says, or its kind where it says nothing, without line breaks and cut to ``most`` characters."""
    return " ".join(str(error).split())[:most] or type(error).__name__


LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)  # what Hugging Face raises of files that are not as they should be


@contextmanager
def loading(what: str, choices: str = "", most: int | None = 300) -> Iterator[None]:
    """Around calls of Hugging Face that load something: where they fail, raise ``ModelError`` "<what> (<reason>); choices: <choices>".

    The reason is cut to ``most`` characters. In code of our own the same exceptions would be bugs: it stands outside.
    """
    try:
        yield
    except LOAD_ERRORS as error:
        advice = f"; choices: {choices}" if choices else ""
        raise ModelError(f"{what} ({one_line(error, most)}){advice}") from error
