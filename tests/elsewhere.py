"""A saved student in a process of its own, in which adasearch is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch
from torch import Tensor


def run_without_adasearch(program: str, folder: Path) -> None:
    """Run the program in the folder, which also takes what transformers copies of a model's code."""
    head = 'import sys, torch\nsys.modules["adasearch"] = None\ntorch.set_num_threads(1)\n'
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules")}
    subprocess.run([sys.executable, "-c", head + textwrap.dedent(program)], check=True, cwd=folder, env=environment)


def logits_without_adasearch(student: Path, ids_BL: Tensor, folder: Path) -> Tensor:
    """What the student says there; ``folder`` is for the process."""
    program = f"""
        from transformers import AutoModelForSequenceClassification
        student = AutoModelForSequenceClassification.from_pretrained({str(student)!r}, trust_remote_code=True).eval()
        torch.save(student(torch.tensor({ids_BL.tolist()})).logits, "logits.pt")
    """
    run_without_adasearch(program, folder)
    return torch.load(folder / "logits.pt", weights_only=True)
