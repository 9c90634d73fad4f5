"""The model card: README.md of a student's folder, as the Hugging Face hub reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from adasearch.formats import front_matter
from adasearch.markdown import how_measured, plain_table
from adasearch.report import Report
from adasearch.report_tables import honest_table
from adasearch.sparse_tables import SIZES_NOTE, sizes_table
from adasearch.verdict import served_model, verdict, warnings


@dataclass(frozen=True)
class Snippet:
    """A piece of code to copy: what it is for, in which language, the code."""

    title: str
    language: str
    code: str


def is_reader(report: Report) -> bool:
    """Whether the student answers questions instead of labelling texts."""
    return report.method.get("pipeline_tag") == "question-answering"


def usage(student: str, report: Report) -> list[Snippet]:
    """How to call the student of a report, which lies in the folder ``student``."""
    if is_reader(report):  # transformers 5 has no pipeline for these
        return [Snippet("With `adasearch` installed", "python", f"""
from pathlib import Path

from adasearch.answers_file import QuestionAnswerer

found = QuestionAnswerer(Path({json.dumps(student)})).answer(["Who wrote it?"], ["It was written by Ada."])
print(found.answers[0].text)
""")]  # fmt: skip
    system = report.find("student")
    file = "model_int8.onnx" if system is not None and system.precision == "int8" else "model.onnx"
    folder, graph, tokenizer = map(json.dumps, (student, f"{student}/onnx/{file}", f"{student}/tokenizer.json"))
    return [
        Snippet("With `adasearch` installed", "python", f"""
import adasearch  # makes the model known to transformers
from transformers import pipeline

classify = pipeline("text-classification", {folder})
print(classify("...", truncation=True))  # of a pair: classify({{"text": "...", "text_pair": "..."}}, truncation=True)
"""),
        Snippet("Without it, the modelling file that lies in this folder is used; read it first", "python", f"""
from transformers import pipeline

classify = pipeline("text-classification", {folder}, trust_remote_code=True)
"""),
        Snippet("With onnxruntime alone, where `onnx/` is present", "python", f"""
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

session = onnxruntime.InferenceSession({graph})
encoded = Tokenizer.from_file({tokenizer}).encode("...")  # pairs: set encode_special_tokens = True on it, then encode("...", "...")
known = {{"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}}
(logits,) = session.run(None, {{wanted.name: np.array([known[wanted.name]]) for wanted in session.get_inputs()}})
"""),
    ]  # fmt: skip


def _section(snippet: Snippet) -> str:
    return f"{snippet.title}:\n\n```{snippet.language}\n{snippet.code.strip()}\n```\n"


def model_card(report: Report, student_name: str, license: str = "other") -> str:
    """README.md of the student's folder for the Hugging Face hub: front matter, use, scores, limits."""
    method = report.method
    has_teacher = method or report.find("teacher")
    taught = "taught by a transformer" if has_teacher else "taught by soft labels"
    origin = (
        f"A small, fast text classifier for {report.task}, found by architecture search and {taught}\n"
        "([AdaBERT](https://arxiv.org/abs/2001.04246)) with `adasearch`."
    )
    if method:
        origin = f"A transformer for {report.task}, made smaller by {method['name']} ({method['paper']}) with `adasearch`."
    about = ["neural-architecture-search", "knowledge-distillation"]
    if method:
        about = method.get("tags", ["structured-pruning"])
    front: dict[str, Any] = {
        "library_name": "transformers", "pipeline_tag": method.get("pipeline_tag", "text-classification"), "license": license,
        "tags": ["adasearch", *about, method.get("pipeline_tag", "text-classification")], "metrics": list(report.metrics),
    }  # fmt: skip
    taught_limits = [
        "What the teacher gets wrong or is biased in, the student has learned.",
        "The licences of the teacher and of the data apply; they are not known here.",
    ]
    if not has_teacher:
        taught_limits = [
            "What its soft labels get wrong or are biased in, the student has learned.",
            "The licences of the data apply; they are not known here.",
        ]
    limits = [
        f"It knows one task, {report.task}, and texts like those it was trained on; elsewhere do not trust it.",
        *taught_limits,
        *warnings(report),
    ]
    sizes = f"\n{plain_table(found)}\n\n{SIZES_NOTE}\n" if (found := sizes_table(report)) else ""
    files = f"\n{method['files']}\n" if method.get("files") else ""
    shown = ", ".join(map(str, report.seeds))
    return f"""{front_matter(front)}

# {student_name}

{origin} {verdict(report)}

## Use

{chr(10).join(_section(snippet) for snippet in usage("path/to/student", report))}{files}
## Scores

{plain_table(honest_table(report))}
{sizes}
Seed{"s" if len(report.seeds) > 1 else ""} {shown}. {how_measured(report)}{served_model(report)}

## Limits

{chr(10).join(f"- {text}" for text in limits)}
"""
