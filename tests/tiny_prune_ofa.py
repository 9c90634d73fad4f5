"""Prune Once for All on a task, in miniature."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tiny_encoder_run import question_settings, tiny_settings
from tiny_task import write_teacher
from transformers import AutoConfig, AutoModel

from adasearch.bench_config import BenchConfig
from adasearch.prune_ofa_config import Int8Config, LockConfig, PruneOfaTaskConfig
from adasearch.sparse_model import prune_once

SPARSITY = 0.8


def bench(runtime: str) -> BenchConfig:
    """Two calls of two shapes."""
    return BenchConfig(
        runtime=runtime, seq_lengths=[8], batch_sizes=[1, 2], repeats=2, warmup=1, reference=False, cold_starts=0, stream_texts=0
    )


IN_TORCH = {"bench": bench("torch")}  # only what is int8 has a graph
WITHOUT_GRAPHS = {**IN_TORCH, "export": False}


def tiny_prune_ofa(folder: Path, **changes: Any) -> PruneOfaTaskConfig:
    """A run that takes seconds, on labels. One layer is enough: half of the time goes into graphs."""
    if not (folder / "encoder").exists():
        write_teacher(folder / "encoder")
        config = AutoConfig.from_pretrained(folder / "encoder", num_hidden_layers=1)
        AutoModel.from_config(config).save_pretrained(folder / "encoder")
    return _config(folder, tiny_settings(folder), changes)


def tiny_questions_run(folder: Path, **changes: Any) -> PruneOfaTaskConfig:
    """The same on questions."""
    return _config(folder, {**tiny_settings(folder), **question_settings(folder)}, changes)


def _config(folder: Path, settings: dict[str, Any], changes: dict[str, Any]) -> PruneOfaTaskConfig:
    sparse = folder / "sparse"
    if not sparse.exists():
        shutil.copytree(settings["model"], sparse)
        model = AutoModel.from_pretrained(sparse)
        prune_once(model, SPARSITY)
        model.save_pretrained(sparse)
    own = {
        "sparse_model": str(sparse), "lock": LockConfig(epochs=3, learning_rate=1e-3, batch_size=16),
        "int8": Int8Config(epochs=2, learning_rate=1e-4, batch_size=16, per="row"), "bench": bench("auto"),
    }  # fmt: skip
    return PruneOfaTaskConfig(**{**settings, **own, **changes})
