"""What the rows of a bench say: every system in its best runtime, one against the others, all of it as text.

A ratio is quoted between two systems' best runtimes at equal precision: a system is not made to look slow by a runtime
that nobody would give it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adasearch.errors import ConfigError
from adasearch.formats import align_columns

ANY = "any"  # in place of a precision: whichever is fastest


def best_runtimes(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every system's best runtime at every shape and precision, and at ``any`` precision, whichever is fastest.

    A result: precision, shape, name, runtime, ``with`` (the precision it took), texts_per_s. Shapes are "1 x 128" (batch
    x tokens), and "32, as they come" or "32, sorted" of a stream.
    """
    best: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        for shape, rate in _rates(row):
            for precision in (row["precision"], ANY):
                found = {"precision": precision, "shape": shape, "name": row["name"], "runtime": row["runtime"],
                         "with": row["precision"], "texts_per_s": rate}  # fmt: skip
                key = (shape, precision, row["name"])
                if key not in best or rate > best[key]["texts_per_s"]:
                    best[key] = found
    shapes, precisions, names = ([*dict.fromkeys(key[part] for key in best)] for part in range(3))
    precisions.sort(key=lambda precision: precision == ANY)  # stable: as they come, the free choice last
    keys = [(shape, precision, name) for shape in shapes for precision in precisions for name in names]
    return [best[key] for key in keys if key in best]


def best_ratios(rows: Sequence[Mapping[str, Any]], subject: str | None = None) -> list[dict[str, Any]]:
    """How many times faster the system ``subject`` (the first when absent) is than every other, at every shape.

    Both stand in their best runtime at equal precision, or (``any``) in their best of all. A result: precision, shape,
    name, against, ``speed`` (above 1: the subject is faster), and of both the runtime, ``with`` and texts_per_s, those
    of the other with ``against_`` before. Raises ``ConfigError`` when the subject is not among the rows.
    """
    best = best_runtimes(rows)
    names = list(dict.fromkeys(row["name"] for row in rows))
    subject = names[0] if subject is None and names else subject
    if subject not in names:
        raise ConfigError(f"subject: {subject!r} was not timed; choices: {', '.join(names)}")
    own = {(found["precision"], found["shape"]): found for found in best if found["name"] == subject}
    ratios = []
    for other in best:
        found = own.get((other["precision"], other["shape"]))
        if found is not None and other["name"] != subject:
            of_other = {f"against_{key}": other[key] for key in ("runtime", "with", "texts_per_s")}
            speed = found["texts_per_s"] / other["texts_per_s"]
            ratios.append({**found, "against": other["name"], "speed": speed, **of_other})
    return ratios


def _rates(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Shape and texts a second of every measurement of a row."""
    fixed = [(f"{t['batch_size']} x {t['seq_len']}", t["texts_per_s"]) for t in row.get("timings", ())]
    orders = {True: "sorted", False: "as they come"}
    streams = [(f"{s['batch_size']}, {orders[s['is_sorted']]}", s["texts_per_s"]) for s in row.get("streams", ())]
    return fixed + streams


def format_bench(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as text for a terminal: latency, throughput at the task's lengths, start and memory, ratios."""
    ways = [(row["name"], f"{row['runtime']} {row['precision']}", row) for row in rows]
    parts = ["Latency, one call (ms), every shape"]
    parts.append(
        aligned(
            ("system", "runtime", "batch x tokens", "p50", "p90", "cv", "texts/s", "calls"),
            [
                (name, how, f"{t['batch_size']} x {t['seq_len']}", t["latency_ms_p50"], t["latency_ms_p90"], t["latency_cv"],
                 t["texts_per_s"], t["repeats"])
                for name, how, row in ways for t in row["timings"]
            ],
        )
    )  # fmt: skip
    if any(row["streams"] for row in rows):
        parts.append("Texts a second at the task's own lengths, batches padded to their longest text")
        parts.append(
            aligned(
                ("system", "runtime", "batch", "order", "texts/s", "cv", "tokens a text", "padding"),
                [
                    (name, how, s["batch_size"], "sorted" if s["is_sorted"] else "as they come", s["texts_per_s"],
                     s["texts_per_s_cv"], s["mean_tokens"], s["padding_share"])
                    for name, how, row in ways for s in row["streams"]
                ],
            )
        )  # fmt: skip
    parts.append("Size, start of a fresh process (import: the library; load: from files to ready), most memory held")
    parts.append(
        aligned(
            ("system", "runtime", "parameters", "MACs", "on disk MB", "import s", "load s", "first call ms", "peak MB", "note"),
            [
                (name, how, row["params"], row["macs"], row["size_bytes"] / 1e6, row["import_s"], row["load_s"],
                 row["first_inference_ms"], row["peak_rss_bytes"] and row["peak_rss_bytes"] / 1e6, row["note"])
                for name, how, row in ways
            ],
        )
    )  # fmt: skip
    speeds = {(r["shape"], r["precision"], r["against"]): r["speed"] for r in best_ratios(rows)}
    parts.append("Every system in its best runtime, at equal precision and at any")
    parts.append(
        aligned(
            ("batch x tokens", "precision", "system", "best in", "texts/s", f"{rows[0]['name']} is faster by"),
            [
                (b["shape"], b["precision"], b["name"], f"{b['runtime']} {b['with']}", b["texts_per_s"],
                 speeds.get((b["shape"], b["precision"], b["name"])))
                for b in best_runtimes(rows)
            ],
        )
    )  # fmt: skip
    return "\n".join(part if index % 2 else f"\n{part}" for index, part in enumerate(parts)).strip()


def aligned(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """Columns of equal width; numbers with four digits, nothing as a dash."""

    def cell(value: Any) -> str:
        return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    return align_columns([header, *([cell(value) for value in line] for line in lines)])
