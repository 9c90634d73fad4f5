"""The methods of ``adasearch compress METHOD``. Settings are the methods' own."""

from __future__ import annotations

from pathlib import Path

from adasearch.cofi_config import CofiConfig
from adasearch.earlybert_config import EarlyBertConfig
from adasearch.progress import Progress
from adasearch.prune_ofa_config import PruneOfaTaskConfig
from adasearch.quantgpt_config import QuantGptConfig
from adasearch.sparse_pretraining_config import SparsePretrainingConfig


def do_cofi(config: CofiConfig, progress: Progress) -> str:
    """The report, and the run's folder."""
    from adasearch.cofi_run import compress_cofi

    return _told(compress_cofi(config, progress))


def do_earlybert(config: EarlyBertConfig, progress: Progress) -> str:
    """The report, and the run's folder."""
    from adasearch.earlybert_run import compress_earlybert

    return _told(compress_earlybert(config, progress))


def _told(run_dir: Path) -> str:
    """A run's report, and where it lies."""
    return f"{(run_dir / 'report.md').read_text(encoding='utf-8')}\n{run_dir}"


def do_quantgpt(config: QuantGptConfig, progress: Progress) -> str:
    """Scores of both models, and the run's folder."""
    from adasearch.quantgpt_report import scores_table
    from adasearch.quantgpt_run import quantize_language_model, run_folder

    report = quantize_language_model(config, progress)
    return f"{Path(config.model).name} at {config.bits}, {report['split']} split\n\n{scores_table(report)}\n\n{run_folder(config)}"


def do_prune_ofa_pretrain(config: SparsePretrainingConfig, progress: Progress) -> str:
    """Sparsity, scores, and the run's folder."""
    from adasearch.sparse_pretraining_report import scores_table
    from adasearch.sparse_pretraining_run import pretrain_sparse, run_folder

    report = pretrain_sparse(config, progress)
    return f"{Path(report['model']).name}, {100 * report['sparsity']:.2f}% sparse\n\n{scores_table(report)}\n\n{run_folder(config)}"


def do_prune_ofa(config: PruneOfaTaskConfig, progress: Progress) -> str:
    """The report, and the run's folder."""
    from adasearch.prune_ofa_run import prune_once_for_all

    return _told(prune_once_for_all(config, progress))
