"""Everything that can be drawn of a run's folder, an architecture.json or a student's folder, at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adasearch.architecture import Architecture
from adasearch.canvas import save_figure
from adasearch.cofi_plots import prunings_figure, read_prunings
from adasearch.curves import comparison_figure, search_figure, training_figure
from adasearch.draw import Details, cell_figure, describe, network_figure
from adasearch.errors import ConfigError
from adasearch.files import read_json
from adasearch.histories import read_histories, read_history
from adasearch.layout import Costs
from adasearch.member_cost import operation_costs
from adasearch.sparse_pretraining_report import draw_figures, read_pretraining
from adasearch.sparsity_plots import describe_zeros, draw_zeros, read_zeros
from adasearch.structure_plots import MODEL_TYPE, describe_structures, read_structures, structure_figure
from adasearch.ticket_plots import distances_figure, read_distances

DRAWABLE = (
    "a run's folder (search/architecture.json, search/history.jsonl, report.json), an architecture.json,"
    " a student's folder (config.json with 'architecture'), a pruned encoder's folder, a sparse pre-training's run"
)


def inspect(path: Path, output_dir: Path | None) -> str:
    """Draw everything that can be drawn of a run's folder, an architecture.json or a student's folder.

    Figures go to ``output_dir``, else to figures/ beside what was read. Returns the text of ``describe`` and the files.
    Raises ``ConfigError`` when ``path`` is none of these or a file in it cannot be read.
    """
    path = Path(path)
    folder = Path(output_dir) if output_dir else (path.parent if path.is_file() else path) / "figures"
    if pretraining := read_pretraining(path):
        drawn = draw_figures(path, pretraining, folder)
        return "\n\n".join([describe_zeros({"sparse": pretraining["sparsity_by_layer"]}), "\n".join(map(str, drawn))])
    architecture, config = _find(path)
    text, written = [], []
    if architecture is not None:
        costs, details = _costs_of(architecture, config, where=path)
        text.append(describe(architecture, costs))
        if architecture.cells:
            written += save_figure(cell_figure(architecture, costs), folder / "cell")
        written += save_figure(network_figure(architecture, details), folder / "network")
    if structures := read_structures(path):
        text.append(describe_structures(structures))
        written += save_figure(structure_figure(structures), folder / "structure")
    if zeros := read_zeros(path):
        text.append(describe_zeros(zeros))
        written += draw_zeros(zeros, folder / "zeros")
    if distances := read_distances(path):
        written += save_figure(distances_figure(*next(iter(distances.items()))), folder / "tickets")  # the first model's
    if prunings := read_prunings(path):
        written += save_figure(prunings_figure(prunings), folder / "pruning")
    if path.is_dir():
        if (path / "search" / "history.jsonl").is_file():
            written += save_figure(search_figure(read_history(path / "search" / "history.jsonl")), folder / "search")
        histories = read_histories(path)
        if any(histories.values()):
            written += save_figure(training_figure(histories), folder / "training")
        if (path / "report.json").is_file():
            report = _read_json(path / "report.json")
            if any(s.get("score_mean") is not None and s.get("latency_ms_p50") for s in report.get("systems", [])):
                written += save_figure(comparison_figure(report), folder / "comparison")
    if not text and not written:
        if (path / "run.json").is_file() and not (path / "report.json").is_file():
            raise ConfigError(f"path: {path}: nothing to draw is there yet; the run is not finished: give the same command again")
        raise ConfigError(f"path: {path}: nothing to draw is there; choices: {DRAWABLE}")
    return "\n\n".join([*text, "\n".join(map(str, written))])


def _find(path: Path) -> tuple[Architecture | None, dict[str, Any] | None]:
    """The architecture at ``path`` and the student's configuration, as far as they are there."""
    if path.is_file():
        return Architecture.load(path), None
    found, config = path / "search" / "architecture.json", None
    for candidate in (path / "config.json", path / "student" / "config.json"):
        if candidate.is_file():
            config = _read_json(candidate)
            if isinstance(config.get("architecture"), dict):
                break
            if config.get("model_type") == MODEL_TYPE:
                return None, None
            raise ConfigError(f"{candidate}: no key 'architecture'; choices: {DRAWABLE}")
    if config is not None:
        return Architecture.from_dict(config["architecture"], where=f"{path}: architecture"), config
    if found.is_file():
        return Architecture.load(found), None
    if any((path / name).is_file() for name in ("search/history.jsonl", "report.json", "run.json")):
        return None, None
    raise ConfigError(f"path: {path}: {'nothing to draw is there' if path.exists() else 'no such folder'}; choices: {DRAWABLE}")


def _costs_of(architecture: Architecture, config: dict[str, Any] | None, *, where: Path) -> tuple[Costs, Details]:
    """Costs of the operations, per token at the usual length, and parameters of the parts; nothing is allocated."""
    import torch

    from adasearch.operations import OPERATIONS
    from adasearch.student import AdasearchConfig, AdasearchForSequenceClassification
    
    for name in architecture.operations:
        if name not in OPERATIONS:
            known = ", ".join(sorted(OPERATIONS))
            raise ConfigError(f"{where}: unknown operation {name!r} (yours? --import its module); known: {known}")
    length = 128  # tokens; only attention's MACs per token depend on it
    costs = operation_costs(architecture.operations, architecture.width, architecture.macro, length)
    settings = config or {"architecture": architecture.to_dict(), "vocab_size": 8, "sep_token_id": 2}
    with torch.device("meta"):
        student = AdasearchForSequenceClassification(AdasearchConfig.from_dict(settings))

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    trunk = student.trunk
    details = Details(tuple(count(cell) for cell in trunk.cells))
    if config is not None:
        parts = count(trunk.embeddings), count(trunk.read_out)
        details = Details(details.cells, *parts, student.config.vocab_size, student.config.num_labels)
    per_token = {name: (round(float(cost.params)), round(float(cost.macs) / length)) for name, cost in costs.items()}
    return per_token, details


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: it cannot be read ({error}); choices: JSON as adasearch writes it") from error
