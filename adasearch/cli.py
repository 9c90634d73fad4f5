"""``adasearch VERB [--config file.yaml] [--key value ...]``: every verb is a thin call of a public function.

Nothing heavy is imported before a verb is known and its settings are read. Results go to standard output, progress and
errors to standard error. Exit codes: 0; 1 the run failed; 2 the request or the data is wrong; 130 stopped by Ctrl-C, 143
by SIGTERM.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import adasearch
from adasearch.config import RunConfig, validate
from adasearch.errors import AdasearchError, ConfigError, DataError
from adasearch.progress import Progress
from adasearch.run_files import refuse_processes
from adasearch.user_code import import_user_code
from adasearch.verbs import METHODS, VERBS, Verb

FAILED, BAD_USAGE, INTERRUPTED, BROKEN_PIPE, TERMINATED = 1, 2, 130, 141, 143  # the last three are 128 + the signal's number, as in shells


COMPRESS = "compress"  # the one verb whose first word is a method; settings are the method's


def parse(name: str, arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """Settings of the verb ``name`` and the modules to import first. Raises ``ConfigError``."""
    # jsonargparse reads and checks whole signatures: a tenth of a second that --version does not need
    from adasearch.arguments import parse_settings

    verb = find_verb(name)
    about = f"{verb.help[0].upper()}{verb.help[1:]}."
    return parse_settings(verb.settings, arguments, prog=f"adasearch {name}", about=about, positional=verb.positional)


def find_verb(name: str) -> Verb:
    """The verb of that name, or the method of ``compress METHOD``. Raises ``ConfigError`` naming the choices."""
    is_method = name.startswith(f"{COMPRESS} ")
    where, kind, known = (f"adasearch {COMPRESS}", "method", METHODS) if is_method else ("adasearch", "verb", VERBS)
    word, choices = name.removeprefix(f"{COMPRESS} "), [*known] if is_method else [*VERBS, COMPRESS]
    if word not in known:
        near = difflib.get_close_matches(word, choices, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f"{where}: unknown {kind} {word!r}{hint}; choices: {', '.join(choices)}")
    return known[word]


def methods_overview() -> str:
    """The text of ``adasearch compress --help``."""
    methods = "\n".join(f"  {name:<18} {method.help}" for name, method in METHODS.items())
    return (
        f"usage: adasearch {COMPRESS} METHOD [--config file.yaml] [--key value ...]\n\n{methods}\n\n"
        f"adasearch {COMPRESS} METHOD --help lists the settings of a method."
    )


def overview() -> str:
    """The text of ``adasearch --help``."""
    helps = {**{name: verb.help for name, verb in VERBS.items()}, COMPRESS: f"another published method: {', '.join(METHODS)}"}
    verbs = "\n".join(f"  {name:<9} {text}" for name, text in helps.items())
    return (
        "usage: adasearch VERB [--config file.yaml] [--key value ...]\n\n"
        "From a text-classification task and a teacher transformer to a small, fast student.\n\n"
        f"{verbs}\n\nadasearch VERB --help lists the settings of a verb; adasearch --version prints the version.\n"
        "To begin:         adasearch run demo --search.target_macs 5e6\n"
        "With your data:   adasearch run intents.csv --text_column message --label_column intent --search.target_macs 6e6\n"
        "A finished run:   adasearch quantize runs/intents, then predict, score or serve runs/intents"
    )


def dispatch(arguments: Sequence[str]) -> int:
    """Do what the arguments ask for. Raises ``AdasearchError`` for what is the user's to mend."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if arguments else BAD_USAGE
    if arguments[0] == "--version":
        print(f"adasearch {adasearch.__version__}")
        return 0
    name, *rest = arguments
    if name == COMPRESS:
        if not rest or rest[0] in ("-h", "--help"):
            print(methods_overview())
            return 0 if rest else BAD_USAGE
        name = f"{COMPRESS} {rest.pop(0)}"
    verb = find_verb(name)
    settings, modules = parse(name, rest)
    from adasearch.console import make_progress, quiet_third_parties  # rich takes a third of the time of --help, which needs none

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch reads it once; spinning threads stall a shared machine
    quiet_third_parties()
    for module in modules:
        import_user_code(module)
    if isinstance(settings, RunConfig):
        from adasearch.questions import refuse_questions  # reads tables, which --help does not

        refuse_questions(settings, f"adasearch {name}")
        validate(settings)
    if verb.needs_student:
        adasearch.register_student()
    if type(settings) is not RunConfig:
        refuse_processes(f"adasearch {name}")
    rank, processes = process_place()
    with make_progress(settings.quiet) if rank == 0 else contextlib.nullcontext(Progress()) as progress:
        text = verb.call(settings, progress)
    if processes > 1:
        from adasearch.distributed import close_group

        close_group()
    if text and rank == 0:
        print(text)
    return 0


def process_place() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun says; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return explained(lambda: dispatch(sys.argv[1:] if arguments is None else arguments))


def explained(work: Callable[[], int | None]) -> int:
    """Do the work of a command and return its exit code. Errors of ours keep their traceback; the user's are one line."""
    try:
        code = _explained(work)
        sys.stdout.flush()  # a reader that has gone away is noticed here rather than at exit
        return code
    except BrokenPipeError:
        # the interpreter flushes standard output once more at exit: let it flush into nothing
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _explained(work: Callable[[], int | None]) -> int:
    try:
        with _terminated_like_stopped():
            return work() or 0
    except SystemExit as done:  # --help and --print_config
        return int(done.code or 0)
    except AdasearchError as error:
        _say(f"error: {' '.join(str(error).split())}")
        return BAD_USAGE if isinstance(error, (ConfigError, DataError)) else FAILED
    except KeyboardInterrupt as stop:
        _say("stopped; the same command goes on from what was saved")
        return TERMINATED if stop.args == (signal.SIGTERM,) else INTERRUPTED
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not is_full and error.filename is None:
            raise
        where, saved = error.filename or "output", "what was saved before is intact, and the same command goes on"
        _say(f"error: {where}: the disk is full; {saved}" if is_full else f"error: {where}: {error.strerror}; choices: mend that; {saved}")
        return FAILED


@contextlib.contextmanager
def _terminated_like_stopped() -> Iterator[None]:
    """SIGTERM, as ``timeout`` and batch systems send it, ends the work as Ctrl-C does."""

    def stop(number: int, _: Any) -> None:
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # only the main thread may ask for signals; whoever has asked for this one before keeps it
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _say(text: str) -> None:
    rank, _ = process_place()
    print(f"process {rank}: {text}" if rank else text, file=sys.stderr)
