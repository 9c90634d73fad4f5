"""The verbs of the command line: what each does, its settings and the function that does it.

The flags of a verb are the fields of its settings. To add one: its settings and a function in one of the ``*_verbs``
modules, a line in ``VERBS``. Functions call a public function of the package and return what is printed; they import it
when they are called, so that help and errors of usage need not wait for torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adasearch.cofi_config import CofiConfig
from adasearch.config import RunConfig
from adasearch.earlybert_config import EarlyBertConfig
from adasearch.method_verbs import do_cofi, do_earlybert, do_prune_ofa, do_prune_ofa_pretrain, do_quantgpt
from adasearch.progress import Progress
from adasearch.prune_ofa_config import PruneOfaTaskConfig
from adasearch.quantgpt_config import QuantGptConfig
from adasearch.report_verbs import BenchSettings, EnvSettings, InspectSettings, ReportSettings, TableSettings
from adasearch.report_verbs import do_bench, do_env, do_inspect, do_report, do_table
from adasearch.run_verbs import do_retrain, do_run, do_search, do_sweep, do_tune, do_warm
from adasearch.sparse_pretraining_config import SparsePretrainingConfig
from adasearch.student_verbs import PruneSettings, QuantizeSettings, StudentSettings, do_export, do_prune, do_quantize
from adasearch.sweep_config import SweepConfig
from adasearch.tune_config import TuneConfig
from adasearch.use_verbs import PredictSettings, ScoreSettings, ServeSettings, do_predict, do_score, do_serve
from adasearch.warm_config import WarmConfig


@dataclass(frozen=True)
class Verb:
    """One verb: what it does, the dataclass of its settings, its function, and the field of its leading arguments."""

    help: str
    settings: type
    call: Callable[[Any, Progress], str]
    positional: str | None = None
    needs_student: bool = True  # whether the student must be known to transformers


VERBS: dict[str, Verb] = {
    "run": Verb("the whole way: teacher, search, training, export, measurement, report", RunConfig, do_run, "task"),
    "search": Verb("only the search: writes architecture.json", RunConfig, do_search, "task"),
    "retrain": Verb("train the student of an architecture found before", RunConfig, do_retrain, "task"),
    "tune": Verb("look for the best settings of a run by many trials", TuneConfig, do_tune, "task"),
    "sweep": Verb("tasks x teachers x budgets x strategies x seeds, and one table", SweepConfig, do_sweep, "tasks"),
    "warm": Verb("teach a space's supernet on unlabelled texts once, for searches to start from", WarmConfig, do_warm),
    "export": Verb("write and check the ONNX model of a student", StudentSettings, do_export, "student"),
    "bench": Verb("time models side by side", BenchSettings, do_bench, "models"),
    "prune": Verb("cut a student's vocabulary to what its task needs", PruneSettings, do_prune, "student"),
    "table": Verb("speed tables of runs beside published rows", TableSettings, do_table, "runs", needs_student=False),
    "quantize": Verb("choose the fastest runtime and precision that keep the score", QuantizeSettings, do_quantize, "path"),
    "inspect": Verb("draw a search, an architecture or a student", InspectSettings, do_inspect, "path"),
    "report": Verb("write a run's report again", ReportSettings, do_report, "run_dir", needs_student=False),
    "predict": Verb("label a file of texts with a student", PredictSettings, do_predict, "student"),
    "score": Verb("score models on labelled examples, and say what may be chance", ScoreSettings, do_score, "models"),
    "serve": Verb("answer over HTTP with a student", ServeSettings, do_serve, "student"),
    "env": Verb("versions, processor and threads", EnvSettings, do_env, needs_student=False),
}

METHODS: dict[str, Verb] = {  # of ``adasearch compress METHOD``: published methods other than the search
    "cofi": Verb("structured pruning of a transformer on a task: layers, heads, neurons, hidden dimensions", CofiConfig, do_cofi, "task"),
    "earlybert": Verb(
        "an early-bird ticket: heads and neurons cut early in training, a smaller network trained", EarlyBertConfig, do_earlybert, "task"
    ),
    "quantgpt": Verb("a GPT-2 or BART with weights of 2, 4 or 8 bits", QuantGptConfig, do_quantgpt, needs_student=False),
    "prune-ofa-pretrain": Verb(
        "a masked language model made sparse once, for all tasks", SparsePretrainingConfig, do_prune_ofa_pretrain, needs_student=False
    ),
    "prune-ofa": Verb("a sparse model on a task: fine-tuned under lock, then int8", PruneOfaTaskConfig, do_prune_ofa, "task"),
}
