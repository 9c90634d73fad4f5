"""What a run of Prune Once for All writes: tables of scores, sizes and speeds, and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

RATIOS = {"nominal": "nominal", "with_index": "with index", "without_tables": "file without embeddings", "whole": "whole file"}


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def scores_table(report: Mapping[str, Any]) -> str:
    """A line a system: score over the seeds, difference to the dense model, sparsity, agreement of the graph."""
    dense = report["rows"][0]["score_mean"]
    rows = []
    for row in report["rows"]:
        spread = "" if row["score_sd"] is None else f" ± {100 * row['score_sd']:.2f}"
        change = "" if row["kind"] == "dense" else f"{100 * (row['score_mean'] - dense):+.2f}"
        agreement = f"{100 * min(row['agreement']):.2f}%" if row.get("agreement") else ""
        seconds = row.get("train_seconds") or []
        took = f"{sum(seconds) / len(seconds):,.0f}" if seconds else ""
        rows.append([row["name"], f"{100 * row['score_mean']:.2f}{spread}", change, f"{100 * row.get('sparsity', 0):.1f}%", agreement, took])
    heads = ["system", f"{report['metric']}, %", "points to dense", "zeros in the encoder", "int8 graph agrees", "training, s"]
    return table(heads, rows)


def sizes_table(report: Mapping[str, Any]) -> str:
    """A line a system: how many times smaller than dense float32, in four ways, and the file."""
    rows = [
        [row["name"], *(f"{row['size']['ratios'][key]:.2f}x" for key in RATIOS), f"{row['size']['file_bytes'] / 2**20:.2f}"]
        for row in report["rows"] if "size" in row
    ]  # fmt: skip
    return table(["system", *RATIOS.values(), "file, MiB"], rows)


def speed_table(report: Mapping[str, Any]) -> str:
    """A line a system and runtime: milliseconds by shape, and times the speed of the dense float32 model in the same runtime."""
    timed = [row for row in report["timings"] if "error" not in row]
    shapes = list(dict.fromkeys((row["batch_size"], row["seq_len"]) for row in timed))
    found = {(row["name"], row["runtime"], row["option"], row["batch_size"], row["seq_len"]): row["latency_ms_p50"] for row in timed}
    rows = []
    for name, runtime, option in dict.fromkeys(key[:3] for key in found):
        cells = []
        for shape in shapes:
            ms, dense = found[name, runtime, option, *shape], found["dense fp32", runtime, "", *shape]
            cells.append(f"{ms:.2f} ({dense / ms:.2f}x)")
        rows.append([name, f"{runtime}{f', {option}' if option else ''}", *cells])
    return table(["system", "runtime", *(f"{batch} x {length}, ms" for batch, length in shapes)], rows)


def sparsity_says(report: Mapping[str, Any]) -> str:
    """What zeros alone did to the speed, in words, from the numbers."""
    ms: dict[tuple[str, str, str], float] = {}
    for row in report["timings"]:
        if "error" not in row:
            ms.setdefault((row["name"], row["runtime"], row["option"]), row["latency_ms_p50"])
    said = []
    for (name, runtime, option), value in ms.items():
        dense = ms.get((name.replace("sparse", "dense"), runtime, ""))
        if name.startswith("sparse") and dense:
            where = f"{runtime}{f' with its option for {option}' if option else ''}"
            gain = dense / value
            verdict = "they bring no speed" if gain < 1.05 else f"they make it {gain:.2f} times as fast"
            said.append(f"- {name.removeprefix('sparse ')} in {where}: {verdict} ({dense:.2f} ms dense, {value:.2f} ms sparse)")
    return "Zeros alone, at the first shape:\n\n" + "\n".join(said) if said else ""


def report_text(report: Mapping[str, Any]) -> str:
    """report.md."""
    machine, notes = report["hardware"], "".join(f"- {note}\n" for note in report["notes"])
    speeds = f"\n## Speed\n\n{speed_table(report)}\n\n{sparsity_says(report)}\n" if report["timings"] else ""
    return f"""# {report["method"]} on {report["task"]}

{scores_table(report)}

Scored on the held-out texts; int8 models with all their rounding. "int8 graph agrees": share of these texts on which the
exported graph in onnxruntime predicts what the trained model does.

## Size

{sizes_table(report)}

Times smaller than float32, dense. *Nominal* counts the kept values of the encoder's linear layers alone, as published ratios
do. *With index* adds where they stand, and scales. The last two are of the file as written, without and with the embeddings.
{speeds}
## How

{notes}- command: `{report["command"]}`
- commit: {report["commit"] or "-"}
- seeds: {", ".join(map(str, report["seeds"]))}
- hardware: {machine["cpu"]}, {machine["torch_threads"]} threads, torch {machine["torch"]}, transformers {machine["transformers"]}
"""


def model_card(report: Mapping[str, Any]) -> str:
    """README.md of the handed-over model."""
    front = {"library_name": "transformers", "license": "other", "tags": ["adasearch", "pruning", "int8"], "metrics": [report["metric"]]}
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# A sparse int8 model for {report["task"]}

Made by [Prune Once for All](https://arxiv.org/abs/2111.05754) as implemented in `adasearch`.

- `onnx/model_int8.onnx`: what to run; `adasearch predict FOLDER --runtime onnxruntime --precision int8 ...`
- `sparse/`: the small file; `adasearch.sparse_files.SparseModel.from_pretrained("FOLDER/sparse")` computes the same as was trained
- this folder's `model.safetensors`: rounded weights in float32, activations not rounded

{scores_table(report)}

{sizes_table(report)}

The licences of the model it was made from and of the data apply; they are not known here.
"""
