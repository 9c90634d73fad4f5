"""The model card: README.md of a student's folder, as the Hugging Face hub reads it."""

from __future__ import annotations

from typing import Any

import yaml

from adasearch.markdown import scores_table
from adasearch.report import Report
from adasearch.verdict import verdict, warnings


def model_card(report: Report, student_name: str, license: str = "other") -> str:
    """README.md of the student's folder for the Hugging Face hub: front matter, use, scores, limits."""
    student = report.find("student")
    front: dict[str, Any] = {
        "library_name": "transformers", "pipeline_tag": "text-classification", "license": license,
        "tags": ["adasearch", "neural-architecture-search", "knowledge-distillation", "text-classification"],
        "metrics": list(report.metrics),
    }  # fmt: skip
    limits = [
        f"It knows one task, {report.task}, and texts like those it was trained on; elsewhere do not trust it.",
        "What the teacher gets wrong or is biased in, the student has learned.",
        "The licences of the teacher and of the data apply; they are not known here.",
        *warnings(report),
    ]
    precision = "" if student is None or student.precision is None else f" ({student.precision})"
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {student_name}

A small, fast text classifier for {report.task}, found by architecture search and taught by a transformer
([AdaBERT](https://arxiv.org/abs/2001.04246)) with `adasearch`. {verdict(report)}

## Use

```python
import adasearch  # makes the model known to transformers
from transformers import pipeline

classify = pipeline("text-classification", "path/to/student")
print(classify("..."))  # of a pair: classify({{"text": "...", "text_pair": "..."}})
```

Without `adasearch` installed, the modelling file that lies in this folder is used; read it first:

```python
from transformers import pipeline

classify = pipeline("text-classification", "path/to/student", trust_remote_code=True)
```

With onnxruntime alone, where `onnx/` is present:

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

session = onnxruntime.InferenceSession("path/to/student/onnx/model.onnx")
encoded = Tokenizer.from_file("path/to/student/tokenizer.json").encode("...")
inputs = {{"input_ids": np.array([encoded.ids]), "attention_mask": np.array([encoded.attention_mask])}}
(logits,) = session.run(None, inputs)
```

## Scores

{scores_table(report)}

Mean ± standard deviation over the seeds {', '.join(map(str, report.seeds))}; latencies as measured{precision}.

## Limits

{chr(10).join(f"- {text}" for text in limits)}
"""
