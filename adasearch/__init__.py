"""adasearch: task + teacher + search space + budget -> a small, fast student that is a Hugging Face model.

    import adasearch
    student_dir = adasearch.compress(adasearch.RunConfig(task="demo")) / "student"
    student = adasearch.load_student(student_dir)

The names below are loaded on first use. Importing the package makes the student known to the Auto classes of
transformers, so that ``AutoModelForSequenceClassification.from_pretrained(student_dir)`` and ``pipeline`` work.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {  # name -> module and name there; ``compress`` is a function, so no module of ours may bear that name
    "compress": "adasearch.pipeline:run",
    "quantize": "adasearch.quantize:quantize",
    "load_deployed": "adasearch.deploy:load_deployed",
    "load_student": "adasearch.predict:load_student",
    "load_space": "adasearch.space:load_space",
    "predict_file": "adasearch.predict:predict_file",
    "score_models": "adasearch.score_models:score_models",
    "calibrate": "adasearch.calibration:calibrate",
    "TextClassifier": "adasearch.classifier:TextClassifier",
    "read_report": "adasearch.report:read_report",
    "rebuild_report": "adasearch.report_files:rebuild_report",
    "register_operation": "adasearch.operations:register_operation",
    "prune_student": "adasearch.prune_files:prune_student",
    "prune_vocabulary": "adasearch.prune:prune_vocabulary",
    "bench_folders": "adasearch.bench:bench_folders",
    "best_ratios": "adasearch.bench_ratios:best_ratios",
    "warm": "adasearch.warm_run:warm",
    "WarmConfig": "adasearch.warm_config:WarmConfig",
    "tune": "adasearch.tune_study:tune",
    "TuneConfig": "adasearch.tune_config:TuneConfig",
    "speed_tables": "adasearch.speed_table:speed_tables",
    "build_latency_table": "adasearch.latency_bench:build_table",
    "pack_model": "adasearch.low_bit:pack_model",
    "load_low_bit": "adasearch.low_bit:load_low_bit",
    "size_table": "adasearch.low_bit_size:size_table",
    "LatencyTable": "adasearch.latency:LatencyTable",
    "pretrain_sparse": "adasearch.sparse_pretraining_run:pretrain_sparse",
    "SparsePretrainingConfig": "adasearch.sparse_pretraining_config:SparsePretrainingConfig",
    "attach_masks": "adasearch.sparse_model:attach_masks",
    "lock_pattern": "adasearch.sparse_model:lock_pattern",
    "sparsity_of": "adasearch.sparse_model:sparsity_of",
    "bake_masks": "adasearch.sparse_model:bake_masks",
    "quantize_language_model": "adasearch.quantgpt_run:quantize_language_model",
    "QuantGptConfig": "adasearch.quantgpt_config:QuantGptConfig",
    "from_hugging_face": "adasearch.encoder:from_hugging_face",
    "GateValues": "adasearch.structure:GateValues",
    "StructureGates": "adasearch.hard_concrete:StructureGates",
    "compress_cofi": "adasearch.cofi_run:compress_cofi",
    "CofiConfig": "adasearch.cofi_config:CofiConfig",
    "compress_earlybert": "adasearch.earlybert_run:compress_earlybert",
    "EarlyBertConfig": "adasearch.earlybert_config:EarlyBertConfig",
    "SparseModel": "adasearch.sparse_files:SparseModel",
    "save_sparse": "adasearch.sparse_files:save_sparse",
    "sparse_size": "adasearch.sparse_size:sparse_size",
    "prune_once_for_all": "adasearch.prune_ofa_run:prune_once_for_all",
    "PruneOfaTaskConfig": "adasearch.prune_ofa_config:PruneOfaTaskConfig",
    "Architecture": "adasearch.architecture:Architecture",
    "Progress": "adasearch.progress:Progress",
    "RunConfig": "adasearch.config:RunConfig",
    "SweepConfig": "adasearch.sweep_config:SweepConfig",
}
__all__ = ["__version__", "register_encoder", "register_low_bit", "register_student", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'adasearch' has no attribute {name!r}; public: {', '.join(sorted(_PUBLIC))}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted({*globals(), *_PUBLIC})


def _is_command_line() -> bool:
    """Whether this process is ``adasearch VERB`` or ``python -m adasearch VERB``."""
    program = (getattr(sys, "argv", None) or [""])[0]  # runpy leaves "-m" there while it looks for the module
    name = program.replace("\\", "/").rsplit("/", 1)[-1]
    is_module = program == "-m" and "adasearch" in sys.orig_argv
    return is_module or name in ("adasearch", "adasearch.exe", "adasearch-script.py")


def register_student() -> None:
    """Make the student, and our encoder, known to transformers' Auto classes; calling it again does no harm.

    It is not done in ``adasearch.student`` because that file travels with every saved student as its remote code.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    import adasearch.inherited  # these two register their operations
    import adasearch.pair_operations
    from adasearch.student import AdasearchConfig, AdasearchForSequenceClassification

    AutoConfig.register(AdasearchConfig.model_type, AdasearchConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(AdasearchConfig, AdasearchForSequenceClassification, exist_ok=True)
    register_encoder()


def register_encoder() -> None:
    """Make our encoder known to AutoConfig, AutoModelForSequenceClassification and AutoModelForQuestionAnswering."""
    from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoModelForSequenceClassification

    from adasearch.encoder_layers import EncoderConfig, EncoderForQuestionAnswering, EncoderForSequenceClassification

    AutoConfig.register(EncoderConfig.model_type, EncoderConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(EncoderConfig, EncoderForSequenceClassification, exist_ok=True)
    AutoModelForQuestionAnswering.register(EncoderConfig, EncoderForQuestionAnswering, exist_ok=True)


def register_low_bit() -> None:
    """Make the low-bit GPT-2 and BART known to AutoConfig, AutoModelForCausalLM and AutoModelForSeq2SeqLM."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from adasearch.low_bit import LowBitForCausalLM, LowBitForSeq2SeqLM

    for auto, kind in ((AutoModelForCausalLM, LowBitForCausalLM), (AutoModelForSeq2SeqLM, LowBitForSeq2SeqLM)):
        AutoConfig.register(kind.config_class.model_type, kind.config_class, exist_ok=True)
        auto.register(kind.config_class, kind, exist_ok=True)


# transformers learns of a class only when it is handed over, and that class needs torch: seconds, which a library user
# pays anyway but `adasearch --help` should not. The console script cannot avoid importing this file, so it is the one
# caller that is left out; it registers before it starts a verb, after the thread settings are in place.
if not _is_command_line():
    register_student()
    register_low_bit()
