"""Random examples, and one call of the training loop on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from adasearch.fit import fit
from adasearch.progress import Progress
from adasearch.tokens import Examples, TokenStore


def examples(count: int = 40) -> Examples:
    """Random texts with labels, teacher's and probes' logits."""
    rng = np.random.default_rng(0)
    sequences = [np.concatenate([[1], rng.integers(3, 30, rng.integers(1, 9)), [2]]) for _ in range(count)]
    return Examples(
        TokenStore.from_lists(sequences),
        0,
        labels=rng.integers(0, 3, count),
        teacher_logits=rng.normal(size=(count, 3)).astype(np.float32),
        probe_logits=rng.normal(size=(count, 4, 3)).astype(np.float32),
    )


def run(
    folder: Path, parts: tuple, progress: Progress | None = None, checkpoint_seconds: float = 0.0, is_mixed: bool = False
) -> list[dict[str, Any]]:
    """One call of ``fit``; with 0 seconds between checkpoints every step is saved."""
    model, method, config = parts
    data = examples()
    splits = {"train": data, "valid": data.select(np.arange(20))}
    return fit(
        model, method, splits, config, seed=3, folder=folder, accelerator=Accelerator(cpu=True), progress=progress or Progress(),
        title="test", checkpoint_seconds=checkpoint_seconds, is_mixed=is_mixed,
    )  # fmt: skip
