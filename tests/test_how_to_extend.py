"""What docs/how-to-extend.md shows runs: every Python block, on models of a few thousand weights."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_classifier import make_classifier
from transformers import BertConfig, BertForSequenceClassification

from adasearch.export import export_student

PAGE = Path(__file__).parents[1] / "docs" / "how-to-extend.md"
TINY = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 128}  # fmt: skip


def test_every_block_runs(tmp_path: Path) -> None:
    """A block that begins with the name of a file is that file; the others run in order, in one process."""
    pytest.importorskip("onnxruntime")
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    blocks += [re.sub("^    ", "", block, flags=re.MULTILINE) for block in re.findall(r"^    # \w+\.yaml\n(?:    .*\n)+", page, re.MULTILINE)]
    named = {name[1]: block for block in blocks if (name := re.match(r"# (\w+\.\w+)\n", block))}
    for name, block in named.items():
        (tmp_path / name).write_text(block, encoding="utf-8")
    modules = [name.removesuffix(".py") for name in named if name.endswith(".py")]
    assert set(named) >= {"my_ops.py", "my_space.yaml", "my_method.py", "my_metrics.py", "my_runtime.py"} and len(blocks) >= len(named) + 3
    make_classifier(tmp_path / "runs" / "demo" / "teacher")
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(**TINY)).save_pretrained(tmp_path / "runs" / "demo" / "student")
    export_student(tmp_path / "runs" / "demo" / "student")
    script = "\n".join([f"import {', '.join(modules)}", *(block for block in blocks if block not in named.values()), "print(len(history))"])
    environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[1])}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout and re.search(r"torch_bf16 bf16 \d", done.stdout) and done.stdout.split()[-1].isdigit()
