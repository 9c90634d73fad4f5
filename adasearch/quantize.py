"""``adasearch quantize``: the fastest way to run a model on this machine that keeps its score.

The int8 graphs are written, every runtime is tried in every precision it offers, all are scored on the validation
examples and timed in turns, and the fastest that loses no more than was allowed is saved in ``deploy.json``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from adasearch.accelerator import keeping_threads
from adasearch.deploy import DEPLOY_FILE, Deployment, load_deployment, save_deployment
from adasearch.errors import ConfigError, ModelError
from adasearch.export import check_onnx, export_student, input_names, staged
from adasearch.formats import align_columns
from adasearch.graph_runtimes import VOCABULARY_KEY, WEIGHTS_KEY
from adasearch.int8 import CALIBRATIONS, can_be_int8, leave_out, quantised_operations, write_int8, write_int8_embedding
from adasearch.measure import GRAPH_RUNTIMES, hardware, set_threads, size_bytes, time_systems
from adasearch.metrics import points_lost, scores_to_keep
from adasearch.progress import Progress
from adasearch.qdq_export import export_trained, is_trained_int8
from adasearch.quantize_config import QuantizeConfig
from adasearch.quantize_texts import Material, load_material
from adasearch.runtime_base import require_onnx
from adasearch.runtimes import (
    ONNX_FILES, RUNTIMES, OnnxRuntime, Runtime, TorchRuntime, available_runtimes, choose_precision, choose_runtime,
    graph_file, load_classifier, load_onnxruntime, load_runtime,
)  # fmt: skip
from adasearch.settings import check_choice, check_range, check_threads

SHARE_LEFT_OUT = 0.5  # int8 with more of its operations in fp32 than this is given up
ROWS = ("runtime", "precision", "score", "drop_points", "latency_ms_p50", "latency_ms_p90", "texts_per_s", "size_bytes", "note")
Way = tuple[str, str]  # runtime, precision


@dataclass(frozen=True)
class Reference:
    """Torch in fp32, which all others are held against: its logits (N, C) on the validation examples, its ``scores_to_keep``."""

    logits_NC: np.ndarray
    scores: tuple[float, ...]


@keeping_threads()
def quantize(path: Path, config: QuantizeConfig | None = None, progress: Progress | None = None) -> Deployment:
    """Try every runtime and precision for a run's student, or any classifier's folder, and keep the fastest good one.

    Writes the folder's int8 graphs (and, where it is missing, ``onnx/model.onnx``) and ``deploy.json``. Raises
    ``ConfigError``, ``DataError`` or ``ModelError`` before the work begins where request, texts or graph are wrong, and
    ``ModelError`` when nothing that was asked for keeps the score.
    """
    config, progress = config or QuantizeConfig(), progress or Progress()
    check_threads(config.threads)
    ways = choose_ways(config)
    material = load_material(path, config)
    model = load_classifier(material.model_dir)
    set_threads(config.threads)
    if any(runtime in GRAPH_RUNTIMES for runtime, _ in ways):
        _check_fp32_graph(model, material.model_dir, progress)
    progress.stage("score torch fp32")
    logits_NC = material.validation.logits_of(TorchRuntime(model, config.threads))
    reference = Reference(logits_NC, _scores(material, logits_NC))
    left_out, refused, written = _write_graphs(model, material, reference, ways, config, progress)
    if written and _is_choice_of(material.model_dir, written):
        (material.model_dir / DEPLOY_FILE).unlink(missing_ok=True)  # its score is not that of the graph that has been written anew
    tried = _try_all(material, reference, ways, refused, config, progress)
    kept = _choose(tried, config, material)
    deployment = Deployment(
        **{name: kept[name] for name in ("runtime", "precision", "score", "latency_ms_p50", "texts_per_s", "size_bytes")},
        threads=config.threads, batch_size=config.batch_size, seq_len=material.seq_len, metric=material.metrics[0],
        score_fp32=reference.scores[0], max_drop=config.max_drop, left_out=left_out, tried=tried, hardware=hardware(),
    )  # fmt: skip
    save_deployment(deployment, material.model_dir)
    return deployment


def choose_ways(config: QuantizeConfig) -> list[Way]:
    """The (runtime, precision) pairs to try. Raises ``ConfigError`` for a setting that is wrong or not to be had here."""
    check_choice("calibration", config.calibration, tuple(CALIBRATIONS))
    for name in ("calibration_texts", "validation_texts", "threads", "batch_size", "repeats"):
        check_range(name, getattr(config, name), 1, 1 << 30)
    for name in ("max_drop", "warmup"):
        check_range(name, getattr(config, name), 0, 1 << 30)
    for name in ("seq_length", "max_seq_length"):
        check_range(name, getattr(config, name) or 1, 1, 1 << 20)
    here = available_runtimes()
    known = tuple(dict.fromkeys(precision for name in RUNTIMES for precision in RUNTIMES[name].precisions))
    for precision in config.precisions:
        check_choice("precisions", precision, known)
    runtimes = [choose_runtime(name) for name in config.runtimes] or list(here)
    wanted = config.precisions or known
    ways = [(runtime, precision) for runtime in runtimes for precision in here[runtime] if precision in wanted]
    if not ways:
        choose_precision(runtimes[0], config.precisions[0])  # says what that runtime offers
    return list(dict.fromkeys(ways))


def _check_fp32_graph(model: PreTrainedModel, model_dir: Path, progress: Progress) -> None:
    """Export the graph where there is none, or one of an earlier export that says less of itself; refuse one that is not this model's."""
    require_onnx("quantize", "onnx", "onnxruntime")
    is_old = True
    if (model_dir / "onnx" / ONNX_FILES["fp32"]).is_file():
        metadata = load_onnxruntime(model_dir, threads=1).metadata  # which checks labels, vocabulary, weights
        is_old = not {VOCABULARY_KEY, WEIGHTS_KEY} <= set(metadata)
        try:
            check_onnx(model, graph_file(model_dir, "fp32"))
        except ModelError as error:
            raise ModelError(f"{error}: it is not this model's; `adasearch export {model_dir}` writes it anew") from error
    if is_old:
        progress.stage("export")
        export_student(model_dir)


def _write_graphs(
    model: PreTrainedModel, material: Material, reference: Reference, ways: Sequence[Way], config: QuantizeConfig,
    progress: Progress,
) -> tuple[list[str], dict[Way, str], set[str]]:  # fmt: skip
    """Write the int8 graphs that are asked for; returns the operations left in fp32 so that int8 keeps the score, why a way has no
    graph, and the precisions whose graphs are new.

    The int8 graph of a model that was trained in int8 is not calibrated: it has its scales.
    """
    wanted = {precision for runtime, precision in ways if runtime in GRAPH_RUNTIMES} & {"int8", "int8_embedding"}
    if is_trained_int8(material.model_dir):
        progress.message(f"{material.model_dir}: it was trained in int8; its graph keeps the scales it has")
        if not (material.model_dir / "onnx" / ONNX_FILES["int8"]).is_file():
            export_trained(material.model_dir)
        wanted -= {"int8"}
    if not wanted:
        return [], {}, set()
    progress.stage("quantise")
    refused: dict[Way, str] = {}
    folder, vocab_size, left_out = material.model_dir / "onnx", model.config.vocab_size, []
    with tempfile.TemporaryDirectory(prefix="adasearch-int8-") as scratch:
        table = write_int8_embedding(folder / ONNX_FILES["fp32"], Path(scratch) / "table.onnx", vocab_size)
        if "int8_embedding" in wanted:
            with staged(folder / ONNX_FILES["int8_embedding"]) as partial:
                write_int8_embedding(folder / ONNX_FILES["fp32"], partial, vocab_size)
        if "int8" in wanted and not can_be_int8(table):
            why = "it has no convolution or matrix product to compute in int8; its int8 is int8_embedding"
            refused = {(runtime, precision): why for runtime, precision in ways if runtime in GRAPH_RUNTIMES and precision == "int8"}
        elif "int8" in wanted:
            names = input_names(model)
            feeds = [{name: batch[name] for name in names} for _, batch in material.calibration.batches()]
            with staged(folder / ONNX_FILES["int8"]) as partial:
                write_int8(table, partial, feeds, calibration=config.calibration)
                left_out = _keep_score(partial, Path(scratch), material, reference, config, progress)
    return left_out, refused, wanted - {precision for _, precision in refused}


def _is_choice_of(model_dir: Path, precisions: set[str]) -> bool:
    """Whether the folder's saved choice is a graph of one of these precisions, or cannot be read."""
    try:
        chosen = load_deployment(model_dir)
    except ConfigError:
        return True
    return chosen is not None and chosen.runtime in GRAPH_RUNTIMES and chosen.precision in precisions


def _keep_score(
    graph: Path, scratch: Path, material: Material, reference: Reference, config: QuantizeConfig, progress: Progress
) -> list[str]:
    """Give the operations that hurt back to fp32, the worst first, twice as many each time, until the score is kept.

    How much one hurts is the squared error of the logits when it alone is quantised. Edits ``graph``; returns names.
    """
    whole = scratch / "whole.onnx"
    names = quantised_operations(graph)
    lost = _lost(reference, material, OnnxRuntime(graph, config.threads))
    if _keeps(lost, config):
        return []
    shutil.copyfile(graph, whole)  # no rename: scratch may lie on another file system
    progress.stage(f"int8 loses {lost:.2f} points: which operations hurt", total=len(names))
    few = next(batch for _, batch in material.calibration.batches())
    exact_BC = OnnxRuntime(leave_out(whole, scratch / "none.onnx", names), config.threads)(**few)
    errors = []
    for done, name in enumerate(names, start=1):
        alone = leave_out(whole, scratch / "alone.onnx", [other for other in names if other != name])
        errors.append(float(np.square(OnnxRuntime(alone, config.threads)(**few) - exact_BC).mean()))
        progress.step(done)
    worst_first = [names[index] for index in np.argsort(errors)[::-1]]
    least, left, count = lost, [], 1
    graph_of_best = whole
    while count <= SHARE_LEFT_OUT * len(names):
        candidate = leave_out(whole, scratch / f"without-{count}.onnx", worst_first[:count])
        lost = _lost(reference, material, OnnxRuntime(candidate, config.threads))
        if lost < least:
            least, left, graph_of_best = lost, worst_first[:count], candidate
        if _keeps(lost, config):
            break
        count *= 2
    leave_out(graph_of_best, graph, [])
    if left:
        progress.message(f"int8: {len(left)} of {len(names)} operations stay in fp32; it then loses {least:.2f} points")
    if not _keeps(least, config):
        progress.warning(f"int8 loses {least:.2f} points, whatever is left out; another --calibration may lose less")
    return left


def _try_all(
    material: Material, reference: Reference, ways: Sequence[Way], refused: Mapping[Way, str], config: QuantizeConfig, progress: Progress
) -> list[dict[str, Any]]:
    """A row for every way: its score, then its time, all interleaved. One that fails, or was ``refused``, says why in its note."""
    rows: dict[Way, dict[str, Any]] = {}
    ready: dict[str, Runtime] = {}
    progress.stage("score every runtime and precision", total=len(ways))
    for done, (runtime, precision) in enumerate(ways, start=1):
        row = rows[runtime, precision] = dict.fromkeys(ROWS) | {"runtime": runtime, "precision": precision, "note": ""}
        try:
            if (why := refused.get((runtime, precision))) is not None:
                raise ModelError(why)
            system = load_runtime(runtime, material.model_dir, config.threads, precision)
            logits_NC = material.validation.logits_of(system)
            scores = _scores(material, logits_NC)
        except ModelError as error:
            row["note"] = str(error)
            progress.warning(f"{runtime} {precision}: {error}")
            continue
        graph = graph_file(material.model_dir, precision) if runtime in GRAPH_RUNTIMES else None
        row |= {
            "score": scores[0], "drop_points": points_lost(reference.scores, scores),
            "size_bytes": size_bytes(material.model_dir, runtime, graph),
            "logits_difference": float(np.abs(logits_NC - reference.logits_NC).max()),
        }  # fmt: skip
        ready[f"{runtime} {precision}"] = system
        progress.step(done)
    timings = time_systems(
        ready, [(config.batch_size, material.seq_len)], repeats=config.repeats, warmup=config.warmup,
        threads=config.threads, progress=progress,
    ) if ready else {}  # fmt: skip
    for (runtime, precision), row in rows.items():
        if (found := timings.get(f"{runtime} {precision}")) is not None:
            row |= {name: asdict(found[0])[name] for name in ("latency_ms_p50", "latency_ms_p90", "texts_per_s")}
    return list(rows.values())


def format_deployment(deployment: Deployment) -> str:
    """The table of all that was tried, fastest first, and a sentence on what was kept (marked with a star)."""
    rows = sorted(deployment.tried, key=lambda row: row["latency_ms_p50"] or float("inf"))
    header = ("", "runtime", "precision", deployment.metric, "lost", "p50 ms", "p90 ms", "texts/s", "MB", "")
    lines: list[Sequence[str]] = [header]
    for row in rows:
        is_kept = (row["runtime"], row["precision"]) == (deployment.runtime, deployment.precision)
        score_, lost, p50, p90, rate, size = (row[name] for name in ROWS[2:8])
        numbers = ("-",) * 6 if p50 is None else (
            f"{100 * score_:.2f}", f"{lost:+.2f}", f"{p50:.3g}", f"{p90:.3g}", f"{rate:,.0f}", f"{size / 1e6:.1f}",
        )  # fmt: skip
        lines.append(("*" if is_kept else "", row["runtime"], row["precision"], *numbers, row["note"]))
    shape = f"{deployment.batch_size} x {deployment.seq_len} word pieces, {deployment.threads} thread(s)"
    kept = f"kept: {deployment.runtime} {deployment.precision}, {deployment.latency_ms_p50:.3g} ms at {shape}"
    return f"{align_columns(lines)}\n\n{kept}"


def _choose(tried: Sequence[dict[str, Any]], config: QuantizeConfig, material: Material) -> dict[str, Any]:
    good = [row for row in tried if row["score"] is not None and _keeps(row["drop_points"], config)]
    if good:
        return min(good, key=lambda row: row["latency_ms_p50"])
    scored = [row for row in tried if row["score"] is not None]
    if not scored:
        raise ModelError(f"{material.model_dir}: no runtime that was asked for could run it ({tried[0]['note']})")
    best = min(scored, key=lambda row: row["drop_points"])
    raise ModelError(
        f"{material.model_dir}: nothing that was asked for loses {config.max_drop:g} points or less; "
        f"{best['runtime']} {best['precision']} comes nearest with {best['drop_points']:.2f}"
    )


def _keeps(lost: float, config: QuantizeConfig) -> bool:
    return lost <= config.max_drop + 1e-9  # rounding of shares is no loss


def _lost(reference: Reference, material: Material, runtime: Runtime) -> float:
    """Points that the runtime loses against the reference on the validation examples."""
    return points_lost(reference.scores, _scores(material, material.validation.logits_of(runtime)))


def _scores(material: Material, logits_NC: np.ndarray) -> tuple[float, ...]:
    if not np.isfinite(logits_NC).all():
        raise ModelError(f"{material.model_dir}: logits are not finite")
    return scores_to_keep(material.metrics[0], logits_NC, material.labels)
