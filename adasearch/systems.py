"""The systems of the honest table: the student and the controls that say what the search and the teacher were worth.

Every trained system goes through the same ``fit`` with the same settings; they differ in one thing each.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from adasearch.architecture import Architecture, Space
from adasearch.canvas import save_figure
from adasearch.config import RunConfig
from adasearch.derive import finalists
from adasearch.distributed import main_first
from adasearch.errors import DataError, ModelError
from adasearch.export import save_student
from adasearch.files import read_json, write_atomically, write_json
from adasearch.fit import fit
from adasearch.fit_config import DistillConfig, capped
from adasearch.latency_bench import measure_architecture
from adasearch.latency_target import check_targets, known_latency, open_table, target_lengths
from adasearch.member_cost import learned_operations
from adasearch.methods.distill import Distill
from adasearch.metrics import is_known, score
from adasearch.objectives import task_loss
from adasearch.outputs import outputs_of
from adasearch.play_off import Finals
from adasearch.prepare import Problem
from adasearch.progress import Progress
from adasearch.search_config import SearchConfig
from adasearch.search_plots import front_figure
from adasearch.shrink import PRICE_TOLERANCE, price_gap, random_architecture_like
from adasearch.starts import new_student, start_supernet
from adasearch.stopwatch import Stopwatch
from adasearch.strategies import find_strategy, remark
from adasearch.student import AdasearchForSequenceClassification
from adasearch.supernet import Supernet
from adasearch.tokens import Examples


def scores_of(problem: Problem, logits: np.ndarray, examples: Examples) -> dict[str, float]:
    """The task's metrics, as fractions."""
    return score(problem.task.metrics, logits, examples.labels)


def student_logits(model: AdasearchForSequenceClassification, examples: Examples, accelerator: Accelerator) -> np.ndarray:
    """Logits of all examples, (N, C)."""
    model.eval()
    return outputs_of(lambda ids, mask: (model(ids, mask).logits,), examples, accelerator)[0]


def run_search(
    config: RunConfig, problem: Problem, space: Space, folder: Path, accelerator: Accelerator, progress: Progress
) -> tuple[Supernet, Architecture]:
    """Search, or read back a finished search. Leaves ``architecture.json`` and ``supernet.pt`` in ``folder``.

    A strategy that finds a whole Pareto front leaves it as ``front.json`` and as a figure too.
    """
    strategy = find_strategy(config.search)
    torch.manual_seed(config.seed)
    supernet = Supernet(space, problem.student_config)
    path, weights = folder / "architecture.json", folder / "supernet.pt"
    if path.exists():
        return _read_search(supernet, weights, path)
    start_supernet(supernet, config, problem, folder.parent / "cache", progress)
    settings = capped(config.search, config.max_steps)
    lengths = target_lengths(config.search, problem.labelled)
    with main_first():
        table = open_table(settings, space, lengths, folder, progress)
    latency = None if table is None else table.at(lengths)
    check_targets(settings, space, problem.length, problem.student_config, latency)
    # a choice that learns nothing reads no texts of its own: all that are kept are for comparing members
    is_bilevel = settings.mode == "bilevel" and strategy.learns_architecture
    parts = problem.search_splits(settings.valid_share, config.seed, is_bilevel)
    if not len(parts.train):
        count = len(problem.labelled)
        raise DataError(f"search: of {count} labelled texts none is left to learn from beside those to compare members on; more are needed")
    splits = {"train": parts.train, "valid": parts.valid} if is_bilevel else {"train": parts.train}
    if remark(settings):
        progress.message(remark(settings))
    method = strategy(settings, config.distill, problem.task.problem_type, problem.task.num_labels, problem.length, latency)
    method.train(
        supernet, splits, seed=config.seed, folder=folder, accelerator=accelerator, progress=progress,
        checkpoint_seconds=config.checkpoint_seconds,
    )  # fmt: skip
    if not accelerator.is_main_process:  # one process derives, the others read what it found
        accelerator.wait_for_everyone()
        return _read_search(supernet, weights, path)
    supernet.cpu().trunk.embeddings.word.sparse = False
    measure = None if table is None else partial(measure_architecture, table, lengths=lengths, progress=progress)
    derived = method.cpu().derive(supernet, parts.compared, config.seed, progress, measure)
    architecture = derived.architecture
    if settings.finalists > 1:
        members = finalists(derived, method, measure)
        architecture = Finals(config, problem, space, supernet, method, members, parts, folder, accelerator, progress).winner()
    if derived.front is not None:
        front = derived.front(architecture)
        write_json(folder / "front.json", front)
        save_figure(front_figure(front), folder / "front")
    _alarm(architecture, settings, space, progress)
    write_atomically(weights, lambda partial: torch.save(supernet.state_dict(), partial))
    write_json(path, architecture.to_dict())
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return supernet, architecture


def _read_search(supernet: Supernet, weights: Path, architecture: Path) -> tuple[Supernet, Architecture]:
    """A finished search from its files. Raises ``ModelError`` where the weights are gone."""
    if not weights.exists():
        raise ModelError(f"{weights}: is missing; choices: put it back, or another --output_dir with --architecture {architecture}")
    supernet.cpu().load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    return supernet.eval(), Architecture.load(architecture)


def _alarm(architecture: Architecture, settings: SearchConfig, space: Space, progress: Progress) -> None:
    """Say so when the search has collapsed to operations that learn nothing."""
    names, learned = architecture.operations, learned_operations(space)
    share = sum(name not in learned for name in names) / max(1, len(names))
    if share > settings.collapse_share:
        progress.warning(
            f"search: {share:.0%} of the edges have operations without weights (alarm above {settings.collapse_share:.0%});"
            " choices: a smaller search.beta, a longer search.arch_warmup, learned_per_node in the space"
        )


OnScores = Callable[[str, int, dict[str, float]], None]  # (kind, seed, validation metrics)


@dataclasses.dataclass(frozen=True)
class Trained:
    """One trained system: its folder, the metrics on the held-out examples, its architecture."""

    kind: str
    seed: int
    folder: Path
    scores: dict[str, float]
    architecture: Architecture


class Trainer:
    """Trains students of any shape on one problem; what is finished is read back."""

    def __init__(
        self,
        config: RunConfig,
        problem: Problem,
        space: Space,
        supernet: Supernet | None,
        folder: Path,
        accelerator: Accelerator,
        progress: Progress,
        on_scores: OnScores | None = None,
    ):
        self.on_scores = on_scores  # hears of every evaluation while a system trains; what it raises ends the training
        self.config, self.problem, self.space, self.supernet = config, problem, space, supernet
        self.folder, self.accelerator, self.progress = folder, accelerator, progress

    def train(self, kind: str, architecture: Architecture, seed: int) -> Trained:
        """Train one system of the table with one seed.

        student and random_architecture learn alike; student_no_kd starts afresh and sees gold labels alone;
        bag_of_embeddings is a student without cells.
        """
        target = self.folder / "models" / f"{kind}-{seed}"
        work = self.folder / "work" / f"{kind}-{seed}"
        if kind == "random_architecture":
            latency = known_latency(self.config.search, self.problem.labelled, self.folder)
            given, length = architecture, self.problem.length
            architecture = random_architecture_like(given, self.space, length, seed, latency=latency)
            if (off := price_gap(architecture, given, length, latency)) > PRICE_TOLERANCE:
                note = f"the random architecture of seed {seed} is the nearest in {'latency' if latency else 'MACs'} that was drawn, {off:.0%} off"
                self.problem.notes.extend([] if note in self.problem.notes else [note])
        elif kind == "bag_of_embeddings":
            architecture = dataclasses.replace(architecture, cells=())
        if not (target / "scores.json").exists():
            self._train(kind, architecture, seed, target, work)
        elif Architecture.from_dict(read_json(target / "config.json")["architecture"], where=str(target)) != architecture:
            raise ModelError(f"{target}: holds another architecture than the one to be trained; choices: delete it")
        return Trained(kind, seed, target, read_json(target / "scores.json"), architecture)

    def _train(self, kind: str, architecture: Architecture, seed: int, target: Path, work: Path) -> None:
        problem, config, accelerator = self.problem, self.config, self.accelerator
        with_teacher = kind != "student_no_kd"
        torch.manual_seed(seed)
        student = new_student(architecture, config, problem, self.space, self.supernet, self.folder / "cache", self.progress, with_teacher)
        settings = capped(config.retrain, config.max_steps)
        examples = problem.lesson
        if not with_teacher:
            examples = dataclasses.replace(problem.labelled, teacher_logits=None, probe_logits=None)
            settings = dataclasses.replace(settings, inherited_rate=1.0)  # its layers are new, not the teacher's
        distill = config.distill if with_teacher else DistillConfig(gamma=0.0, probe_weight=0.0)
        method = Distill(
            settings, distill, problem.task.problem_type, problem.task.num_labels, architecture.width, max(1, architecture.depth)
        )

        watch = Stopwatch()

        def evaluate(_: torch.nn.Module) -> dict[str, float]:
            scores = scores_of(problem, student_logits(student, problem.validation, accelerator), problem.validation)
            if self.on_scores is not None:
                self.on_scores(kind, seed, scores)
            return scores

        with watch.timing(work) as took:
            history = fit(
                student, method, {"train": examples}, settings, seed=seed, folder=work, accelerator=accelerator, progress=self.progress,
                title=f"train {kind.replace('_', ' ')}, seed {seed}", evaluate=evaluate, evaluations=config.evaluate,
                checkpoint_seconds=config.checkpoint_seconds, watch=watch,
            )  # fmt: skip
        if accelerator.is_main_process:
            self._save(student, history, {"steps": settings.steps, **took}, target, work)
        accelerator.wait_for_everyone()

    def _save(
        self, student: AdasearchForSequenceClassification, history: list[dict[str, Any]], took: dict[str, float], target: Path, work: Path
    ) -> None:
        problem = self.problem
        logits_NC = student_logits(student, problem.held_out, self.accelerator)
        held_out = scores_of(problem, logits_NC, problem.held_out)
        known = np.flatnonzero(is_known(problem.held_out.labels))
        logits, labels = (torch.from_numpy(values[known]) for values in (logits_NC, problem.held_out.labels))
        losses = task_loss(logits.float(), labels, problem.task.problem_type)
        shutil.rmtree(target, ignore_errors=True)  # a kill between saving the folder and its scores
        save_student(student.cpu(), problem.tokenizer, target)
        write_json(target / "history.json", history)
        write_json(target / "training.json", {**took, "held_out_loss": float(losses.mean())})
        write_json(target / "scores.json", held_out)  # last: it says that all is there
        (work / "checkpoint.pt").unlink(missing_ok=True)

