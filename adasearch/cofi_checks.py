"""What can be wrong with the models, targets and folder of a CoFi run, said before anything is trained; what its files are called."""

from __future__ import annotations

from pathlib import Path

from adasearch.cofi_budget import check_budgets
from adasearch.cofi_config import CofiConfig
from adasearch.encoder_problem import EncoderProblem
from adasearch.encoder_training import check_model
from adasearch.errors import ConfigError
from adasearch.files import read_json
from adasearch.layer_matching import spread

TEACHER_LAYERS = 4  # so many of the teacher's teach, as published


def model_key(kind: str, target: float) -> str:
    """The recipe's, and with a seed behind it its model's folder."""
    return f"cofi-{kind}-{target:g}"


def state_file(cache: Path, kind: str, target: float, seed: int) -> Path:
    """The state in which a pruning has met its target."""
    return cache / f"cofi-pruning-{kind}-{target:g}-{seed}.pt"


def check_models(config: CofiConfig, problem: EncoderProblem) -> None:
    """Raise ``ConfigError`` for a start of other sizes, layers that the teacher has not, and targets out of reach.

    Targets whose models are there already are not looked at; for the others a missing latency table is measured.
    """
    if config.start == "dense":
        check_model(problem, config, "teacher", problem.dense())
    teacher_layers(config, problem.teacher.model.config.num_hidden_layers)
    seeds = config.all_seeds
    check_budgets(config, problem, [one for one in config.targets if not all(_is_done(problem.folder, *one, seed) for seed in seeds)])


def check_chain(config: CofiConfig, folder: Path) -> None:
    """Raise ``ConfigError`` for a successive target whose predecessor's pruning is not kept: another one has gone on from it.

    And for one that has been begun, but not ended, after other targets: it would go on with the batches of one way and the gates of another.
    """
    if not config.successive:
        return
    for seed in config.all_seeds:
        _check_begun(config, folder, seed)
        for (_, before), (kind, target) in zip(config.targets, config.targets[1:]):
            is_done, could_go_on = (_is_done(folder, kind, one, seed) for one in (target, before))
            is_pruned = (folder / "work" / f"{model_key(kind, target)}-{seed}" / "prune-model" / "config.json").exists()
            is_kept = is_pruned or state_file(folder / "cache", kind, before, seed).exists()
            if could_go_on and not is_done and not is_kept:
                raise ConfigError(
                    f"target_{kind}: {target:g} would go on from the pruning at {before:g}, which is gone: another target has gone on from"
                    " it; choices: targets beyond those that are done, or another --output_dir"
                )


def targets_before(config: CofiConfig, kind: str, target: float) -> list[float]:
    """The targets that a successive one is pruned after."""
    return [one for _, one in config.targets[: config.targets.index((kind, target))]]


def is_begun(work: Path) -> bool:
    """Whether a model's pruning has left something to go on from."""
    return any((work / name).exists() for name in ("prune/checkpoint.pt", "prune/best.pt", "prune-model"))


def _check_begun(config: CofiConfig, folder: Path, seed: int) -> None:
    for kind, target in config.targets:
        work = folder / "work" / f"{model_key(kind, target)}-{seed}"
        if not is_begun(work) or _is_done(folder, kind, target, seed) or not (work / "facts.json").exists():
            continue
        before, now = read_json(work / "facts.json").get("pruned_after"), targets_before(config, kind, target)
        if before is not None and before != now:
            raise ConfigError(
                f"target_{kind}: {target:g} has been begun after {before} with seed {seed}, and would go on after {now}; choices: the targets"
                f" as they were, another --output_dir, or delete {work}, and it begins anew"
            )


def teacher_layers(config: CofiConfig, depth: int) -> list[int]:
    """The teacher's layers that teach. Raises ``ConfigError`` for one that it has not."""
    if config.teacher_layers is None:
        return spread(min(TEACHER_LAYERS, depth), depth)
    if config.teacher_layers[-1] >= depth:
        raise ConfigError(f"teacher_layers: {config.teacher_layers[-1]}: the teacher has {depth} layers; choices: 0 to {depth - 1}")
    return config.teacher_layers


def _is_done(folder: Path, kind: str, target: float, seed: int) -> bool:
    return (folder / "models" / f"{model_key(kind, target)}-{seed}" / "scores.json").exists()
