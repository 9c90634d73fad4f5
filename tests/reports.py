"""Reports to test with: rows of hand-worked numbers, and one that has everything a run can measure."""

from __future__ import annotations

from typing import Any

from adasearch.report import Report, System
from adasearch.verdict import compute_ratios

STUDENT, RANDOM, TFIDF = (0.880, 0.882, 0.878), (0.877, 0.882, 0.872), (0.839,)
SHAPES = ((1, 128), (32, 128), (1, 32))


def timing(batch: int, length: int, ms: float) -> dict[str, Any]:
    """What ``measure.Timing`` holds, of a system that takes ``ms`` for each text."""
    return {
        "batch_size": batch, "seq_len": length, "threads": 1, "runtime": "onnxruntime", "precision": "fp32", "repeats": 30,
        "latency_ms_p50": ms * batch, "latency_ms_p90": 1.5 * ms * batch, "latency_cv": 0.1, "texts_per_s": 1000 / ms,
    }  # fmt: skip


def system(kind: str, scores: tuple[float, ...] = (), params: int | None = None, ms: float | None = None, **changes: Any) -> System:
    """A row; mean and spread are numpy-free textbook formulas."""
    mean = sum(scores) / len(scores) if scores else None
    sd = (sum((x - mean) ** 2 for x in scores) / (len(scores) - 1)) ** 0.5 if len(scores) > 1 else None
    timed = {} if ms is None else {
        "runtime": "onnxruntime", "precision": "fp32", "threads": 1, "batch_size": 1, "seq_len": 128, "latency_ms_p50": ms,
        "latency_ms_p90": 1.5 * ms, "texts_per_s": 1000 / ms, "timings": [timing(*shape, ms) for shape in SHAPES],
    }  # fmt: skip
    size = None if params is None else 4 * params
    fields = {"score_mean": mean, "score_sd": sd, "scores": list(scores), "params": params, "size_bytes": size, **timed, **changes}
    if scores:
        fields.setdefault("metrics", {"accuracy": {"mean": mean, "sd": sd}})
    return System(name=kind.replace("_", " "), kind=kind, **fields)


def make_report(*systems: System, **changes: Any) -> Report:
    """The example of the design: 0.88 of 0.90 at 28.4 ms over 2 ms, beside a random architecture and TF-IDF."""
    rows = list(systems) or [
        system("teacher", (0.9,), 22_700_000, 28.4),
        system("student", STUDENT, 5_100_000, 2.0, params_embedding=3_900_000, macs=12_345_678),
        system("random_architecture", RANDOM, 5_000_000, 2.0),
        system("tfidf", TFIDF, 30_000, 0.2),
        system("reference", (), 109_483_778, 160.0),
    ]
    settings: dict[str, Any] = {
        "task": "sst2", "metric": "accuracy", "metrics": ["accuracy"], "majority": {"accuracy": 0.509, "is_skewed": False},
        "seeds": [1, 2, 3], "hardware": {"cpu": "a processor", "cores": 2, "openvino": None}, "systems": rows,
        "search": {"seconds": 754.0, "steps": 1500, "peak_rss_bytes": 1_250_000_000, "space": "adasearch", "depth": 3,
                   "entropy": {"operations": 0.31}, "operations": {"conv3": 4, "skip": 2}},
        "ratios": compute_ratios(rows), "command": "adasearch run sst2 --seeds 1 2 3", "commit": "abc1234", "notes": ["7 texts cut"],
    }  # fmt: skip
    return Report(**{**settings, **changes})


def full_report(**changes: Any) -> Report:
    """A report with every optional part, of three labels; texts hold what would break a page that trusted them."""
    rows = [
        system("teacher", (0.9,), 22_700_000, 28.4, params_embedding=11_900_000, macs=1_430_000_000, task_texts_per_s=60.0),
        system("student", STUDENT, 5_100_000, 2.0, params_embedding=3_900_000, macs=12_345_678, task_texts_per_s=2000.0,
               load_s=0.2, import_s=0.3, first_inference_ms=4.0, import_rss_bytes=50_000_000, peak_rss_bytes=90_000_000),
        system("random_architecture", RANDOM, 5_000_000, 2.1),
        system("bag_of_embeddings", (0.82, 0.83, 0.81), 4_000_000, 0.05),
        system("tfidf", TFIDF, 30_000, 0.2),
        system("reference", (), 109_483_778, 160.0),
    ]  # fmt: skip
    labels = ["bad", "fair", "<b>good</b>"]
    examples = [
        {"text": f"{words} {index}", "gold": labels[index % 3], "student": labels[(index + student) % 3], "student_probability": 0.99 - index / 100,
         "teacher": labels[(index + teacher) % 3], "teacher_probability": 0.9}
        for index, (words, student, teacher) in enumerate([("<script>alert(1)</script>", 0, 1), ("plain words", 1, 0), ("more words", 2, 1)] * 4)
    ]  # fmt: skip
    curve = [{"threshold": 0.5 + share / 2, "share_escalated": share, "score": 0.88 + 0.02 * min(1, 4 * share)} for share in (0, 0.1, 0.25, 0.5, 1)]
    settings: dict[str, Any] = {
        "notes": ["a <note> & more"], "price_per_hour": 0.04,
        "confusion": {"labels": labels, "student": [[30, 2, 1], [3, 20, 4], [0, 0, 0]], "teacher": [[31, 1, 1], [1, 25, 1], [0, 0, 0]]},
        "disagreements": {"count": 14, "of": 60, "student_right": 6, "teacher_right": 7, "examples": examples},
        "cascade": {"temperature": 1.4, "fitted_on": 60, "is_held_out": False, "curve": curve},
        "latency": {"target_ms": 1.6, "predicted_ms": 1.5, "measured_ms": 2.0, "error": -0.25, "warning": "latency: -25% off"},
        "deployments": {
            "runtime": "openvino", "precision": "int8", "threads": 1, "batch_size": 1, "seq_len": 128, "metric": "accuracy",
            "score": 0.878, "score_fp32": 0.88, "latency_ms_p50": 0.6, "texts_per_s": 1600.0, "size_bytes": 5_000_000,
            "tried": [
                {"runtime": "torch", "precision": "fp32", "score": 0.88, "latency_ms_p50": 3.0, "texts_per_s": 333.0, "size_bytes": 20_000_000},
                {"runtime": "openvino", "precision": "int8", "score": 0.878, "latency_ms_p50": 0.6, "texts_per_s": 1600.0, "size_bytes": 5_000_000},
            ],
        },
    }  # fmt: skip
    return make_report(*rows, **{**settings, **changes})
