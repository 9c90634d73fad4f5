"""The models of Prune Once for All on a task, each a folder: sparse in float32, sparse in int8, and dense ones beside them.

    models/sparse-<seed>/        fine-tuned with its pattern locked
    models/sparse_int8-<seed>/   the same after quantisation-aware training; its graph in onnx/model_int8.onnx
    models/direct-<seed>/        the dense model, pruned to the same sparsity on this task alone, gradually (a baseline)
    models/dense_int8-<seed>/    the task's dense model in int8, ranges of some training texts, not trained

A folder holds the model as Hugging Face loads it (zeros and rounded weights in float32), ``sparse/`` (the file of few bytes),
``scores.json``, ``facts.json`` and ``history.json``. Order: mask, then quantise; the pattern is checked after every stage.

Dimensions: N texts, B batch, C labels.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from adasearch.encoder_problem import EncoderProblem, resolve
from adasearch.encoder_training import Workplace
from adasearch.errors import ConfigError, ModelError
from adasearch.export import check_onnx, export_onnx, save_student
from adasearch.files import read_json, write_folder, write_json
from adasearch.gradual_pruning import GradualPruning
from adasearch.graph_runtimes import ONNX_FILES
from adasearch.int8_modules import int8_twin
from adasearch.methods.locked import GradualFinetuning
from adasearch.methods.qat import QuantizeAware
from adasearch.prune_ofa_task_config import PruneOfaTaskConfig
from adasearch.qdq_export import export_int8, zeros_of
from adasearch.quantize_aware import attach_int8, bake_int8, refuse_quantised, stacked_layers
from adasearch.runtimes import OnnxRuntime, Runtime, is_installed, load_classifier
from adasearch.sparse_files import SparseModel, save_sparse
from adasearch.sparse_model import attach_masks, bake_masks, broken_zeros, lock_pattern, mean_sparsity, pattern_of, prune_to
from adasearch.sparse_pattern import Pattern
from adasearch.sparse_size import sparse_size
from adasearch.sparsity_schedule import SparsitySchedule
from adasearch.taught_method import Taught
from adasearch.teacher import Teacher
from adasearch.teaching import QUESTION_ANSWERING, predictions
from adasearch.tokens import Examples

STUDENT = "adasearch"  # model type of a searched student
CALIBRATION_BATCHES, CALIBRATION_BATCH = 16, 32  # of training texts, for ranges that are not trained
REGRESSION_TOLERANCE = 0.01  # predictions agree that differ by less than this share of all predictions' range


@dataclass(frozen=True)
class Made:
    """One model of the table: its folder, the metrics on the held-out examples, what is known of it."""

    kind: str
    seed: int
    folder: Path
    scores: dict[str, float]
    facts: dict[str, Any]


@dataclass
class Workshop:
    """Makes the models of one run; what is finished is read back."""

    config: PruneOfaTaskConfig
    problem: EncoderProblem
    folder: Path

    def __post_init__(self) -> None:
        self.source = resolve(self.config.sparse_model, self.config, self.problem.cache)
        self.is_student = AutoConfig.from_pretrained(self.source).model_type == STUDENT
        self.has_graphs = self.config.export and is_installed("onnxruntime") and self.problem.task.problem_type != QUESTION_ANSWERING
        self.sparse_problem = dataclasses.replace(self.problem, checkpoint=self.source)

    def check(self) -> None:
        """Raise what is wrong with the sparse model before anything is trained."""
        self._start(self.config.seed)

    def sparse(self, seed: int) -> Made:
        """Fine-tuned from the sparse model, with its zeros locked."""
        def train(place: Workplace) -> tuple[PreTrainedModel, tuple[str, ...], dict[str, Any]]:
            model, names = self._start(seed)
            pattern = pattern_of(model, names)
            lock_pattern(model, names)
            settings = self.config.lock
            fit_config = place.fit_config(self._steps(settings), settings)
            place.fit(model, Taught(fit_config, *self._task, **self._teaching), "lock", examples=self.problem.taught())
            bake_masks(model)
            _check_pattern(model, pattern, "lock")
            return model, ("lock",), {"sparsity": mean_sparsity(model, names)}

        return self._make("sparse", seed, train, self._save_sparse)

    def sparse_int8(self, seed: int) -> Made:
        """The sparse model of this seed, trained on with int8 weights and activations."""
        def train(place: Workplace) -> tuple[PreTrainedModel, tuple[str, ...], dict[str, Any]]:
            with place.watch.paused():
                sparse = self.sparse(seed)
            model = self._load(sparse.folder)
            names = stacked_layers(model)
            pattern = pattern_of(model, names)
            lock_pattern(model, names)
            settings = self.config.int8
            fit_config = place.fit_config(self._steps(settings), settings)
            method = QuantizeAware(fit_config, *self._task, int8=settings, **self._teaching)
            place.fit(model, method, "int8", examples=self.problem.taught())
            _check_pattern(model, pattern, "int8")
            return model, ("int8",), {"sparsity": sparse.facts["sparsity"], "sparsity_int8": mean_sparsity(model, names)}

        return self._make("sparse_int8", seed, train, self._save_int8)

    def direct(self, seed: int, sparsity: float) -> Made:
        """``config.model``, dense and pre-trained, pruned by magnitude while it learns this task: what one sparse model saves."""
        def train(place: Workplace) -> tuple[PreTrainedModel, tuple[str, ...], dict[str, Any]]:
            model, settings = self.problem.pretrained(seed), self.config.lock
            epochs = self.config.direct_epochs or settings.epochs
            fit_config = place.fit_config(self.problem.steps(epochs, settings.batch_size), settings)
            schedule = SparsitySchedule.of_shares(fit_config.steps, sparsity)
            pruning = GradualPruning(schedule, Pattern.parse(self.config.pattern), self.config.scope)
            method = GradualFinetuning(fit_config, *self._task, **self._teaching, pruning=pruning)
            place.fit(model, method, "direct", examples=self.problem.taught())
            return model, ("direct",), {"sparsity": mean_sparsity(model, stacked_layers(model))}

        return self._make("direct", seed, train, self._save_sparse)

    def dense_int8(self) -> Made:
        """The dense model in int8 by calibration: what int8 alone gives, in score and in speed."""
        def train(place: Workplace) -> tuple[PreTrainedModel, tuple[str, ...], dict[str, Any]]:
            model, settings = self.problem.dense().cpu(), self.config.int8
            attach_int8(
                model, per=settings.per, outputs=settings.outputs, exclude=settings.exclude, embeddings=settings.embeddings, momentum=0.1,
            )  # fmt: skip
            calibrate_ranges(model, self.problem)
            return model, (), {"calibrated_texts": CALIBRATION_BATCHES * CALIBRATION_BATCH}

        return self._make("dense_int8", self.config.seed, train, self._save_int8)

    def _start(self, seed: int) -> tuple[PreTrainedModel, list[str]]:
        """The given model with its zeros, one-shot ones included where asked for, and the names of the layers that have them."""
        config = self.config
        model = load_classifier(Path(self.source)) if self.is_student else self.sparse_problem.pretrained(seed)
        refuse_quantised(model)
        names = stacked_layers(model)
        if config.sparsity:
            attach_masks(model, config.pattern, names)
            prune_to(model, config.sparsity, config.scope)
            bake_masks(model)
        if not mean_sparsity(model, names) > 0:
            raise ConfigError(
                f"sparse_model: {config.sparse_model} has no zeros in its {len(names)} layers; choices: a sparse model, or --sparsity 0.85"
            )
        return model.requires_grad_(True), names

    @property
    def _task(self) -> tuple[str, Callable[..., Any]]:
        """Kind of the task and how a batch is fed, as the methods take them."""
        return self.problem.task.problem_type, self.problem.forward

    @property
    def _teaching(self) -> dict[str, float]:
        teach = self.config.teach
        return {"task_weight": teach.gold_weight, "kd_weight": teach.teacher_weight, "temperature": teach.temperature}

    def _steps(self, settings: Any) -> int:
        return self.problem.steps(settings.epochs, settings.batch_size)

    def _load(self, folder: Path) -> PreTrainedModel:
        model = load_classifier(folder) if self.is_student else self.problem.load(folder)
        return model.requires_grad_(True)

    def _make(
        self, kind: str, seed: int, train: Callable[[Workplace], Any], save: Callable[[PreTrainedModel, Path], dict[str, Any]]
    ) -> Made:
        """Train, score, save; or read back."""
        problem, name = self.problem, f"{kind}-{seed}"
        target, work = self.folder / "models" / name, self.folder / "work" / name
        if not (target / "scores.json").exists():
            is_whole = not work.exists()
            work.mkdir(parents=True, exist_ok=True)
            place = Workplace(problem, self.config, seed, work, f"{kind.replace('_', ' ')}, seed {seed}")
            with place.watch.running():
                model, stages, facts = train(place)
            took = {"train_seconds": place.watch.wall_s, "train_cpu_seconds": place.watch.cpu_s} if is_whole else {}
            model = model.cpu().eval()
            shutil.rmtree(target, ignore_errors=True)  # a kill between saving the folder and its scores
            facts |= save(model, target)
            lines = [line for stage in stages for line in (work / stage / "history.jsonl").read_text(encoding="utf-8").splitlines()]
            write_json(target / "history.json", [json.loads(line) for line in lines])
            write_json(target / "facts.json", {**facts, **took})
            scores = problem.scores(model.to(problem.accelerator.device), problem.held_out)
            write_json(target / "scores.json", scores)  # last: it says that all is there
            for checkpoint in work.glob("*/checkpoint.pt"):
                checkpoint.unlink()
        return Made(kind, seed, target, read_json(target / "scores.json"), read_json(target / "facts.json"))

    def _save_sparse(self, model: PreTrainedModel, target: Path) -> dict[str, Any]:
        save_student(model, self.problem.tokenizer, target)
        facts = {"size": self._save_file(model, target)}
        if self.has_graphs:
            check_onnx(model, export_onnx(model, target / "onnx" / ONNX_FILES["fp32"]))
        return facts

    def _save_int8(self, model: PreTrainedModel, target: Path) -> dict[str, Any]:
        """Folder, sparse file and graphs of a model with quantisers; how well the graph agrees with it."""
        plain = copy.deepcopy(model)
        bake_int8(plain, {"bits": 8, "per": self.config.int8.per})
        save_student(plain, self.problem.tokenizer, target)
        facts: dict[str, Any] = {"size": self._save_file(model, target)}
        if self.has_graphs:
            check_onnx(plain, export_onnx(plain, target / "onnx" / ONNX_FILES["fp32"]))
            path = export_int8(int8_twin(model), target / "onnx" / ONNX_FILES["int8"])
            zeros, weights = zeros_of(path)
            runtime = OnnxRuntime(path, 1, "int8", model.config.vocab_size)
            facts |= {"graph_zeros": zeros, "graph_weights": weights, "agreement": self._agreement(model, runtime)}
        return facts

    def _save_file(self, model: PreTrainedModel, target: Path) -> dict[str, Any]:
        """``sparse/`` of the folder, read back: its size. Raises ``ModelError`` when it computes something else."""
        folder = target / "sparse"
        write_folder(folder, lambda partial: self._fill(model, partial))
        batch = {name: tensor.cpu() for name, tensor in self.problem.held_out.collate([0]).items()}
        with torch.inference_mode():
            logits = [predictions(self.problem.forward(one, batch)) for one in (SparseModel.from_pretrained(folder), model)]
        if not torch.equal(*logits):
            difference = float((logits[0] - logits[1]).abs().max())
            raise ModelError(f"{folder}: read back, its logits differ by {difference:.3g}; the file is not the model")
        return sparse_size(folder).to_dict()

    def _fill(self, model: PreTrainedModel, partial: Path) -> None:
        save_sparse(model, partial, format=self.config.format, compression=self.config.compression)
        self.problem.tokenizer.save_pretrained(partial)

    def _agreement(self, model: PreTrainedModel, runtime: Runtime) -> float:
        """Share of the held-out texts on which graph and model predict the same."""
        expected_NC = self.problem.logits(model.to(self.problem.accelerator.device), self.problem.held_out)
        model.cpu()
        return agreement(expected_NC, graph_logits(runtime, self.problem, self.problem.held_out), self.problem.task.problem_type)


def check_source(config: PruneOfaTaskConfig, problem: EncoderProblem) -> None:
    """Raise ``ConfigError`` unless the sparse model reads the texts as the teacher does."""
    source = resolve(config.sparse_model, config, problem.cache)
    theirs = AutoTokenizer.from_pretrained(source).get_vocab()
    if theirs != problem.tokenizer.get_vocab():
        sizes = f"{len(theirs):,} against {len(problem.tokenizer.get_vocab()):,} pieces"
        raise ConfigError(
            f"sparse_model: {config.sparse_model} has another vocabulary than the teacher ({sizes}); choices: models of one vocabulary"
        )


@torch.no_grad()
def calibrate_ranges(model: PreTrainedModel, problem: EncoderProblem) -> None:
    """Let the activations' ranges follow some training texts; weights and dropout rest."""
    quantizers = [module for module in model.eval().modules() if hasattr(module, "is_observing")]
    order = np.random.default_rng(0).permutation(len(problem.train))[: CALIBRATION_BATCHES * CALIBRATION_BATCH]
    for quantizer in quantizers:
        quantizer.train()
    for start in range(0, len(order), CALIBRATION_BATCH):
        problem.forward(model, problem.train.collate(order[start : start + CALIBRATION_BATCH]))
    model.eval()


def graph_logits(runtime: Runtime, problem: EncoderProblem, examples: Examples) -> np.ndarray:
    """A graph's logits (N, C) of all examples, segment ids as the teacher's."""
    types_of = Teacher(problem.teacher.model, problem.tokenizer).token_types
    rows: np.ndarray | None = None
    for indices, batch in examples.in_order(64):
        types: dict[str, Tensor] = types_of(batch["input_ids"])
        found = runtime(batch["input_ids"].numpy(), batch["attention_mask"].numpy(), *(types_BL.numpy() for types_BL in types.values()))
        rows = np.empty((len(examples), *found.shape[1:]), np.float32) if rows is None else rows
        rows[indices] = found
    return rows


def agreement(expected_NC: np.ndarray, found_NC: np.ndarray, problem_type: str) -> float:
    """Share of equal predictions: labels, sets of labels, numbers that differ by less than 1% of their range."""
    if problem_type == "regression":
        close_N = np.abs(expected_NC - found_NC)[:, 0] <= REGRESSION_TOLERANCE * np.ptp(expected_NC)
        return float(close_N.mean())
    if problem_type == "multi_label":
        return float(((expected_NC > 0) == (found_NC > 0)).all(1).mean())
    return float((expected_NC.argmax(1) == found_NC.argmax(1)).mean())


def _check_pattern(model: PreTrainedModel, pattern: dict[str, Tensor], stage: str) -> None:
    """Raise ``ModelError`` where a zero of the pattern is none any more."""
    broken = broken_zeros(model, pattern)
    if broken:
        name, count = next(iter(broken.items()))
        raise ModelError(f"{stage}: {sum(broken.values())} zeros of the locked pattern are gone, {count} of them in {name}; this is a bug")
