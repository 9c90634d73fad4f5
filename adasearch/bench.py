"""``adasearch bench``: models and reference shapes, each in every runtime and precision asked for, measured alike.

The protocol is docs/benchmarking.md. Latency and throughput are timed in one process, all systems in turns; cold
starts have processes of their own. What a model lacks (an ONNX graph, an int8 one) is made in a temporary place:
nothing is written into its folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from adasearch.accelerator import keeping_threads
from adasearch.bench_config import BenchConfig, check_bench
from adasearch.cold import Deployed, cold_fields, cold_starts
from adasearch.errors import ConfigError
from adasearch.export import check_onnx, example_inputs, export_onnx, input_names
from adasearch.int8 import write_int8, write_int8_embedding
from adasearch.measure import GRAPH_RUNTIMES, count_macs, count_params, set_threads, size_bytes, time_systems
from adasearch.model_inputs import check_positions, positions_of
from adasearch.progress import Progress
from adasearch.references import make_reference, reference_label
from adasearch.runtime_base import require_model
from adasearch.runtimes import (
    ONNX_FILES,
    RUNTIMES,
    Runtime,
    available_runtimes,
    choose_runtime,
    graph_file,
    load_classifier,
    load_runtime,
    read_vocab_size,
)
from adasearch.settings import check_threads
from adasearch.streams import time_streams

UNTRUE_INT8 = "int8 ranges from random ids: time only"
RANDOM_BATCHES, RANDOM_BATCH = 4, 8  # texts that stand for a calibration set where there is none


@dataclass(frozen=True)
class Subject:
    """What is timed: its name, a folder that holds all files its runtimes need, its facts, and what to know of it."""

    name: str
    folder: Path
    facts: dict[str, Any]
    made: tuple[str, ...]  # precisions whose graphs were made here, with random ids
    limit: int | None  # the most tokens it has positions for
    source: Path | None  # the folder that was named; None of a reference


def choose_ways(config: BenchConfig) -> list[tuple[str, str]]:
    """The (runtime, precision) pairs to time: every runtime asked for, at the precisions asked for that it offers here.

    Raises ``ConfigError`` for a runtime or precision that is not known or not here, or a pair twice.
    """
    offered = available_runtimes()
    names = [choose_runtime(name) for name in config.runtimes or [config.runtime]]
    known = sorted({precision for kind in RUNTIMES for precision in RUNTIMES[kind].precisions})
    for where, values in (("runtimes", names), ("precisions", config.precisions)):
        if len(set(values)) != len(values):
            raise ConfigError(f"{where}: {', '.join(values)}: one is there twice; name every one once")
    if not config.precisions:
        raise ConfigError(f"precisions: the list is empty; choices: {', '.join(known)}")
    for precision in config.precisions:
        if precision not in known:
            raise ConfigError(f"precisions: {precision!r} is not known; choices: {', '.join(known)}")
        if not any(precision in offered[name] for name in names):
            choices = ", ".join(name for name, precisions in offered.items() if precision in precisions) or "none here"
            raise ConfigError(f"precisions: {precision!r} is offered by none of {', '.join(names)}; runtimes that do: {choices}")
    return [(name, precision) for name in names for precision in config.precisions if precision in offered[name]]


@keeping_threads()
def bench_folders(
    models: Sequence[Path], config: BenchConfig, progress: Progress | None = None,
    lengths: Sequence[int] | None = None, own: Mapping[Path, Sequence[int]] = MappingProxyType({}),
) -> list[dict[str, Any]]:  # fmt: skip
    """Time the classifiers of several folders, and the reference shapes, interleaved; a row a runtime and precision.

    ``own`` are the lengths of models that cut the task's texts into other pieces. A row, flat at the first shape: name, note, params, params_embedding, macs, size_bytes, the fields of ``Timing``,
    ``timings`` for all shapes, ``streams`` (``StreamTiming``; empty without ``lengths``, the task's in tokens), and the
    fields of ``ColdStart``. Raises ``ConfigError``, before any model is loaded where it can.
    """
    progress = progress or Progress()
    ways = choose_ways(config)
    references = config.references if config.reference else []
    check_bench(config)
    check_threads(config.threads)
    for model in models:
        require_model(model, "models")
    if not models and not references:
        raise ConfigError("models: nothing to time; name one or more folders, or let references be true")
    shapes = [(batch, length) for length in config.seq_lengths for batch in config.batch_sizes]
    set_threads(config.threads)
    with tempfile.TemporaryDirectory(prefix="adasearch-bench-") as scratch:
        subjects = _prepare_all(models, references, config, ways, Path(scratch), progress)
        taken = {f"{s.name} | {name} {precision}": (s, name, precision) for s in subjects for name, precision in ways}
        progress.stage("load models", total=len(taken))
        systems: dict[str, Runtime] = {}
        for key, (subject, name, precision) in taken.items():
            systems[key] = load_runtime(name, subject.folder, config.threads, precision)
            progress.step(len(systems))
        timings = time_systems(
            systems, shapes, repeats=config.repeats, warmup=config.warmup, threads=config.threads, progress=progress
        )
        streams: dict[str, Any] = {}
        if lengths is not None and config.stream_texts:
            theirs = {key: _cut(own[s.source], subjects, progress) for key, (s, _, _) in taken.items() if s.source in own}
            streams = time_streams(
                systems, _cut(lengths, subjects, progress), config.batch_sizes, texts=config.stream_texts,
                threads=config.threads, progress=progress, own=theirs,
            )  # fmt: skip
        del systems  # a cold start is not measured beside gigabytes of models
        deployed = {key: deployment(s.folder, name, precision, config.threads) for key, (s, name, precision) in taken.items()}
        starts = cold_starts(deployed, cold_shapes(config), starts=config.cold_starts, progress=progress)
        return [
            {
                "name": subject.name, "note": UNTRUE_INT8 if precision in subject.made else "", **subject.facts,
                "size_bytes": size_bytes(subject.folder, name, deployed[key].graph),
                **asdict(timings[key][0]), **cold_fields(starts[key]), "timings": [asdict(t) for t in timings[key]],
                "streams": [asdict(stream) for stream in streams.get(key, [])],
            }
            for key, (subject, name, precision) in taken.items()
        ]  # fmt: skip


def _cut(lengths: Sequence[int], subjects: Sequence[Subject], progress: Progress) -> np.ndarray:
    """The lengths, none of them more than every subject has positions for; says so where that changes one."""
    limit = min((subject.limit for subject in subjects if subject.limit), default=None)
    lengths_N = np.asarray(lengths)
    if limit is None or lengths_N.max() <= limit:
        return lengths_N
    progress.message(f"{(lengths_N > limit).sum()} of {len(lengths_N)} lengths are cut to {limit} tokens, the models' limit")
    return np.minimum(lengths_N, limit)


def cold_shapes(config: BenchConfig) -> list[tuple[int, int]]:
    """The shapes of a cold start: every batch size, smallest first, at the first length; memory is that of the largest."""
    return [(batch, config.seq_lengths[0]) for batch in sorted(set(config.batch_sizes))]


def deployment(folder: Path, runtime: str, precision: str, threads: int) -> Deployed:
    """What a fresh process loads to serve a folder's model in that runtime. Raises ``ModelError``."""
    graph = graph_file(folder, precision) if runtime in GRAPH_RUNTIMES else None
    return Deployed(folder, runtime, precision, threads, read_vocab_size(folder), graph)


def _prepare_all(
    models: Sequence[Path], references: Sequence[str], config: BenchConfig, ways: Sequence[tuple[str, str]],
    scratch: Path, progress: Progress,
) -> list[Subject]:  # fmt: skip
    """A subject for every folder and reference shape, with the graphs that their runtimes will ask for."""
    subjects: dict[str, Subject] = {}
    progress.stage("export", total=len(models) + len(references))
    for index, source in enumerate([*map(Path, models), *references]):
        is_folder = isinstance(source, Path)
        model = (load_classifier(source) if is_folder else make_reference(source)).requires_grad_(False)  # DeBERTa's cannot be counted with
        name = _unique(str(source) if is_folder else reference_label(source), subjects)
        check_positions("seq_lengths", max(config.seq_lengths), name, model.config)
        place = scratch / str(index)
        if is_folder:
            _mirror(source, place)
        else:
            model.save_pretrained(place)
        made = _make_graphs(model, place, ways, config.seq_lengths[0])
        params, embedding = count_params(model)
        facts = {"params": params, "params_embedding": embedding, "macs": count_macs(model, config.seq_lengths[0])}
        subjects[name] = Subject(name, place, facts, made, positions_of(model.config), source if is_folder else None)
        progress.step(index + 1)
    return list(subjects.values())


def _mirror(folder: Path, place: Path) -> None:
    """A folder of links to the files of another, so that what is added stays out of that one."""
    for source in (folder, folder / "onnx"):
        if source.is_dir():
            (place / source.relative_to(folder)).mkdir(parents=True)
            for file in source.iterdir():
                if file.is_file():
                    target = place / file.relative_to(folder)
                    try:
                        os.symlink(file.resolve(), target)
                    except OSError:  # a system that lets only some users link
                        shutil.copy(file, target)


def _make_graphs(
    model: PreTrainedModel, place: Path, ways: Sequence[tuple[str, str]], length: int
) -> tuple[str, ...]:
    """Write the graphs that are asked for and not there; returns the precisions made with random ids."""
    wanted = {"fp32" if precision == "bf16" else precision for name, precision in ways if name in GRAPH_RUNTIMES}
    missing = [precision for precision in ONNX_FILES if precision in wanted and not _graph(place, precision).is_file()]
    if wanted and not _graph(place, "fp32").is_file():
        check_onnx(model, export_onnx(model, _graph(place, "fp32")))
    made = tuple(precision for precision in missing if precision != "fp32")
    if made and not _graph(place, "int8_embedding").is_file():  # if it is, it is a link to the model's own
        write_int8_embedding(_graph(place, "fp32"), _graph(place, "int8_embedding"), model.config.vocab_size)
    if "int8" in made and sum(isinstance(module, (nn.Linear, nn.Conv1d)) for module in model.modules()) > 1:
        write_int8(_graph(place, "int8_embedding"), _graph(place, "int8"), _random_feeds(model, length))
    elif "int8" in made:  # a look-up and a classifier: the table is all there is to quantise
        shutil.copy(_graph(place, "int8_embedding"), _graph(place, "int8"))
    return made


def _random_feeds(model: PreTrainedModel, length: int) -> list[dict[str, np.ndarray]]:
    """Batches of random ids (B, L) by input name: their ranges make int8 as fast as true ones would."""
    names, feeds = input_names(model), []
    for seed in range(RANDOM_BATCHES):
        inputs = example_inputs(model, RANDOM_BATCH, length, seed)
        feeds.append({name: inputs[name].numpy() for name in names})
    return feeds


def _graph(place: Path, precision: str) -> Path:
    return place / "onnx" / ONNX_FILES[precision]


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    """``name``, numbered if it is taken."""
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name} ({number})"
    return unique
