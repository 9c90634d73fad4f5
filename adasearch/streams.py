"""Throughput at a task's own lengths: a stream of texts as long as the task's, batched and padded as in service.

Texts a second at one fixed length say little of a task whose texts differ: a batch is as long as its longest text.
Dimensions: N texts, B batch, L tokens of the longest text in a batch.
"""

from __future__ import annotations

import copy
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from adasearch.errors import ConfigError, DataError
from adasearch.files import read_json
from adasearch.measure import Factory, collector_off, random_pieces
from adasearch.progress import Progress
from adasearch.prune import REPORT, load_student_and_tokenizer
from adasearch.runtimes import Runtime
from adasearch.texts import Split, served_pieces
from adasearch.tokens import TokenStore
from adasearch.vocabulary import retokenise

SECONDS_PER_STREAM = 5.0  # passes over a stream are as many as fit into it, but
FEWEST_PASSES, MOST_PASSES = 1, 10  # one pass is many calls already
SEED = 0


@dataclass(frozen=True)
class StreamTiming:
    """Throughput of one system on the stream. ``is_sorted``: texts were put into batches by length, else as they come.
    ``mean_tokens`` of a text without padding; ``padding_share`` of the tokens computed; both None for raw texts.
    ``texts_per_s`` is the median over passes, ``texts_per_s_cv`` their sd / mean (0 of a single pass)."""

    batch_size: int
    is_sorted: bool
    texts: int
    mean_tokens: float | None
    padding_share: float | None
    runtime: str
    precision: str
    threads: int
    texts_per_s: float
    texts_per_s_cv: float
    passes: int


def draw_rows(lengths: Sequence[int], count: int) -> np.ndarray:
    """``count`` rows (N,) whose lengths have the given ones' distribution: evenly spaced quantiles, in random order."""
    ordered = np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable")
    places = ((np.arange(count) + 0.5) / count * len(ordered)).astype(np.int64)
    return np.random.default_rng(SEED).permutation(ordered[places])


def draw_lengths(lengths: Sequence[int], count: int) -> np.ndarray:
    """The lengths (N,) of rows that ``draw_rows`` draws."""
    return np.asarray(lengths, dtype=np.int64)[draw_rows(lengths, count)]


def split_batches(lengths_N: np.ndarray, batch_size: int, is_sorted: bool) -> list[np.ndarray]:
    """Lengths of the texts of each batch: in the given order, or longest first as ``predict`` does."""
    ordered = np.sort(lengths_N)[::-1] if is_sorted else lengths_N
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def time_streams(
    systems: Mapping[str, Runtime | Factory], lengths: Sequence[int], batch_sizes: Sequence[int], *, texts: int = 128,
    threads: int = 1, progress: Progress | None = None, clock: Callable[[], float] = time.perf_counter,
    own: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> dict[str, list[StreamTiming]]:  # fmt: skip
    """Throughput of every system at every batch size, as texts come and (above 1) sorted by length.

    ``lengths`` are those of the task's texts, in tokens; a stream of ``texts`` is drawn from them, of systems whose tokenizer
    cuts the same texts into other pieces from theirs, ``own``. Systems take turns,
    a pass over the stream at a time: in service, too, a model has the caches to itself. A function (batch size,
    length) -> call reads its own raw texts and is timed as they come only.
    Raises ``ConfigError`` when there are no lengths, or less than one text or token.
    """
    if not len(lengths) or min(lengths) < 1 or texts < 1:
        raise ConfigError(f"lengths: {len(lengths)} lengths, {texts} texts to draw; choices: 1 or more of each, from 1 token")
    drawn = {name: draw_lengths(own.get(name, lengths), texts) for name in systems}
    orders = [(batch, is_sorted) for batch in batch_sizes for is_sorted in ((False, True) if batch > 1 else (False,))]
    results: dict[str, list[StreamTiming]] = {name: [] for name in systems}
    progress = progress or Progress()
    progress.stage("measure throughput at the task's lengths", total=len(orders))
    with torch.inference_mode():
        for done, (batch_size, is_sorted) in enumerate(orders, start=1):
            batches = {name: split_batches(drawn_N, batch_size, is_sorted) for name, drawn_N in drawn.items()}
            taking_part = {
                name: _calls(system, batches[name])
                for name, system in systems.items() if isinstance(system, Runtime) or not is_sorted
            }  # fmt: skip
            seconds = _passes(taking_part, clock)
            for name, spent in seconds.items():
                system, drawn_N = systems[name], drawn[name]
                tokens = sum(len(batch) * int(batch.max()) for batch in batches[name])
                is_runtime = isinstance(system, Runtime)
                rates = [texts / value for value in spent]
                results[name].append(
                    StreamTiming(
                        batch_size, is_sorted, texts, float(drawn_N.mean()) if is_runtime else None,
                        1 - int(drawn_N.sum()) / tokens if is_runtime else None,
                        system.name if is_runtime else getattr(system, "runtime", "python"),
                        system.precision if is_runtime else "fp64", getattr(system, "threads", threads),
                        float(np.median(rates)), float(np.std(rates) / np.mean(rates)), len(rates),
                    )  # fmt: skip
                )
            progress.step(done)
    return results


def tokenizer_rates(
    tokenizers: Mapping[str, PreTrainedTokenizerBase], split: Split, longest: int, *, texts: int = 128,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:  # fmt: skip
    """Texts a second that each tokenizer turns into word pieces, cut to ``longest``, on one thread and as in service.

    ``texts`` of the split are read, of lengths as frequent as they are there; median over passes. One tokenizer under several names is
    timed once. Raises ``ConfigError`` when there is nothing to read.
    """
    if not len(split) or texts < 1:
        raise ConfigError(f"texts: {len(split)} texts, {texts} to draw; choices: 1 or more of each")
    columns = [split.texts] if split.pairs is None else [split.texts, split.pairs]
    drawn = split.select(draw_rows([sum(map(len, row)) for row in zip(*columns, strict=True)], texts))
    different = {id(tokenizer): copy.deepcopy(tokenizer) for tokenizer in tokenizers.values()}  # reading leaves a limit in a tokenizer
    calls = {str(key): [partial(served_pieces, own, drawn.texts, drawn.pairs, longest)] for key, own in different.items()}
    with _one_tokenizer_thread():
        spent = _passes(calls, clock)
    return {name: float(texts / np.median(spent[str(id(tokenizer))])) for name, tokenizer in tokenizers.items()}


@contextmanager
def _one_tokenizer_thread() -> Iterator[None]:
    """Fast tokenizers share a batch out to as many threads as there are cores, unless the environment forbids it."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _calls(system: Runtime | Factory, batches: Sequence[np.ndarray]) -> list[Callable[[], Any]]:
    """One call a batch, on random word pieces padded to the batch's longest; raw texts: on the next so many."""
    if not isinstance(system, Runtime):
        makers = {size: system(size, 0) for size in {len(batch) for batch in batches}}
        return [makers[len(batch)] for batch in batches]
    generator = np.random.default_rng(SEED)
    calls = []
    for lengths_B in batches:
        mask_BL = (np.arange(lengths_B.max()) < lengths_B[:, None]).astype(np.int64)
        ids_BL = random_pieces(generator, system.vocab_size, mask_BL.shape) * mask_BL
        calls.append(lambda ids_BL=ids_BL, mask_BL=mask_BL: system(ids_BL, mask_BL))
    return calls


def _passes(systems: dict[str, list[Callable[[], Any]]], clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each pass of each system over its calls, after one untimed pass that meets every shape."""

    def run(passes: dict[str, int]) -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {name: [] for name in passes}
        names = list(passes)
        for turn in range(max(passes.values(), default=0)):
            active = [name for name in names if turn < passes[name]]
            for name in active[turn % len(active) :] + active[: turn % len(active)]:
                start = clock()
                for call in systems[name]:
                    call()
                seconds[name].append(clock() - start)
        return seconds

    with collector_off():
        estimates = {name: spent[0] for name, spent in run(dict.fromkeys(systems, 1)).items()}
        affordable = {name: int(SECONDS_PER_STREAM / max(spent, 1e-9)) for name, spent in estimates.items()}
        return run({name: min(max(count, FEWEST_PASSES), MOST_PASSES) for name, count in affordable.items()})


def read_lengths(path: Path) -> np.ndarray:
    """Lengths in tokens (N,) of a task's texts: of a run's folder those of the examples it is scored on (its cache),
    of a .txt file one whole number a line. Raises ``DataError`` where there are none."""
    path = Path(path)
    if path.is_dir():
        if (store := _latest(path, "held_out")) is None:
            raise DataError(f"lengths_from: {path}: no lengths (cache/held_out-*.offsets.npy); choices: a run's folder, a .txt file")
        return store.lengths
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"lengths_from: {path}: cannot be read ({error}); choices: a run's folder, a .txt file") from error
    bad = next((word for word in words if not re.fullmatch(r"[1-9]\d{0,6}", word)), None)
    if bad is not None or not words:
        raise DataError(f"lengths_from: {path}: {bad!r} is no length; choices: whole numbers of 1 and more, one a line")
    return np.array([int(word) for word in words])


def own_lengths(model_dir: Path) -> np.ndarray | None:
    """Lengths (N,) of its run's texts in the word pieces of a student with a vocabulary of its own, or one that ``prune`` has cut; None
    of any other model.

    Raises ``DataError`` for a student that was cut where its run's own student, in whose pieces the texts are kept, is gone.
    """
    model_dir = Path(model_dir).resolve()
    if not _is_student(model_dir):
        return None
    is_cut = (model_dir / REPORT).is_file()
    source = Path(read_json(model_dir / REPORT)["source"]).resolve() if is_cut else model_dir
    for run in dict.fromkeys([*model_dir.parents[:2], *source.parents[:2]]):
        store = _latest(run, "student_held_out")
        if is_cut and store is None:
            store = _latest(run, "held_out")
        if store is not None:
            return _lengths_in(model_dir, run / "student", store) if is_cut else store.lengths
    return None


def _lengths_in(model_dir: Path, whole: Path, store: TokenStore) -> np.ndarray:
    """Lengths (N,) of texts in the pieces of a folder's student, from their ids in those of the student that it was cut out of."""
    if not (whole / "config.json").is_file():
        raise DataError(f"models: {model_dir}: {whole}, whose word pieces its run's texts are in, is gone; choices: --lengths_from FILE, with its own lengths")
    (_, old), (model, new) = load_student_and_tokenizer(whole), load_student_and_tokenizer(model_dir)
    return retokenise(store, old, new, model.config.max_position_embeddings).lengths


def _latest(run: Path, name: str) -> TokenStore | None:
    """The texts of that name that a run's cache was given last."""
    files = sorted((run / "cache").glob(f"{name}-*.offsets.npy"), key=lambda file: file.stat().st_mtime)
    return TokenStore.load(files[-1].parent, files[-1].name.removesuffix(".offsets.npy")) if files else None


def _is_student(model_dir: Path) -> bool:
    path = Path(model_dir) / "config.json"
    return path.is_file() and read_json(path).get("model_type") == "adasearch"


def lengths_of_task(model_dir: Path, source: str | None, progress: Progress) -> np.ndarray | None:
    """The lengths in ``source`` (see ``read_lengths``), or else those of the run whose folder the model lies in.

    None, and a message, where neither is there: throughput at the task's own lengths is then left out.
    """
    if source is not None:
        lengths = read_lengths(Path(source))
    else:
        places = Path(model_dir).resolve().parents[:2]  # of runs/x/student, runs/x/models/student-1
        source = next((str(place) for place in places if any((place / "cache").glob("held_out-*.offsets.npy"))), None)
        if source is None:
            where = "name a run or a file of lengths in lengths_from"
            progress.message(f"{model_dir} lies in no run: its throughput at its own lengths is left out; {where}")
            return None
        lengths = read_lengths(Path(source))
    progress.message(f"lengths of {len(lengths)} texts from {source}: {lengths.mean():.1f} tokens, at most {lengths.max()}")
    return lengths
