"""Prune Once for All on a task: a sparse model, fine-tuned under lock, trained on in int8, stored, exported, scored, timed.

    sparse model + task + dense teacher -> lock -> int8 -> small file, ONNX (QDQ) -> scores, sizes, speed, report

The order is fixed, since no other makes sense: a mask chosen after quantising would drop values that the scales were
learned for, and a quantised model has nothing left to learn its weights with. Every stage is kept; the same command goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adasearch.accelerator import keeping_threads
from adasearch.encoder_run import About, begin_encoders, run_folder, run_recipes
from adasearch.encoder_training import Compressed
from adasearch.progress import Progress
from adasearch.prune_ofa_config import PruneOfaTaskConfig
from adasearch.prune_ofa_source import open_source
from adasearch.prune_ofa_systems import prune_ofa_recipes
from adasearch.run_files import note_settings

FREE = ("baselines", "direct", "dense")  # they add rows
OF_DIRECT = ("direct_epochs", "direct_more_steps")  # which nothing in a folder without a model of ``direct`` depends on


@keeping_threads()
def prune_once_for_all(config: PruneOfaTaskConfig, progress: Progress | None = None) -> Path:
    """Do all of it for one task; returns the run's folder. ``student/`` is the first seed's sparse int8 model.

    Raises ``ConfigError``, ``DataError`` or ``ModelError`` before any training where request, data or models are wrong: a
    sparse model of another vocabulary, of other sizes than ``model``, without zeros, or one that is quantised already.
    """
    is_begun = any(run_folder(config, ABOUT.slug).glob("*/direct-*"))
    run, problem = begin_encoders(config, ABOUT, progress, FREE if is_begun else (*FREE, *OF_DIRECT))
    recipes = prune_ofa_recipes(config, open_source(config, problem))
    if (run.folder / "run.json").exists():  # now, since a killed training goes on with them
        note_settings(run.folder, {name: getattr(config, name) for name in OF_DIRECT})
    return run_recipes(run, problem, recipes)


def _facts(trained: Sequence[Compressed]) -> dict[str, str]:
    """Zeros before and after rounding, how well the graph does what was trained, what the sparse model took."""
    rows = {key: [item.facts for item in trained if item.recipe.key == key] for key in ("sparse", "sparse_int8")}

    def shares(key: str, name: str, form: str = "{:.2f}%") -> str:
        return ", ".join(dict.fromkeys(form.format(100 * facts[name]) for facts in rows[key] if name in facts))

    seconds = rows["sparse"][0].get("pretraining_seconds")
    found = {
        "zeros that were locked": shares("sparse", "sparsity"),
        "zeros after rounding to int8": shares("sparse_int8", "sparsity_rounded"),
        "int8 graph predicts as the model that was trained": shares("sparse_int8", "agreement"),
        "time to make the sparse model, once for all tasks": "" if seconds is None else f"{seconds:,.0f} s",
    }
    return {name: text for name, text in found.items() if text}


ABOUT = About(
    "Prune Once for All", "prune-ofa", "[Zafrir et al. 2021](https://arxiv.org/abs/2111.05754)",
    "A language model that was pruned once is fine-tuned with its zeros locked, taught by the task's dense model, then trained on"
    " in int8 with lock and teacher still on. Its weights are stored as the values that are not zero and where they stand.",
    _facts, tags=("pruning", "sparsity", "int8"), every_runtime=True,
    files="`onnx/model_int8.onnx` is what to run, with the scales that were trained; predict and serve take it by themselves."
    " `sparse/` is the small file: `adasearch.sparse_files.SparseModel.from_pretrained(\"student/sparse\")` computes the same.\n"
    "`model.safetensors` holds the rounded weights in float32: loaded by transformers, activations are not rounded.",
)  # fmt: skip
