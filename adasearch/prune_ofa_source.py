"""The model that Prune Once for All begins with on a task: where it lies, whether it fits, its zeros."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from adasearch.architecture import Architecture
from adasearch.demo_assets import model_path
from adasearch.encoder import FAMILIES
from adasearch.encoder_layers import EncoderConfig
from adasearch.encoder_problem import EncoderProblem
from adasearch.encoder_training import check_model, is_uncut
from adasearch.errors import ConfigError, ModelError, loading
from adasearch.files import read_json
from adasearch.known_labels import HF_PROBLEM_TYPES, label_settings, labels_of, places_of
from adasearch.model_inputs import check_positions
from adasearch.prune_ofa_config import PruneOfaTaskConfig
from adasearch.qdq_export import check_exporter, has_packages
from adasearch.quantize_aware import attach_int8, refuse_quantised, stacked_layers
from adasearch.run_files import model_in
from adasearch.runtimes import load_classifier
from adasearch.sparse_model import mean_sparsity, pattern_of, prune_once
from adasearch.sparse_pattern import Pattern
from adasearch.sparse_storage import check_storage
from adasearch.teacher import Teacher, reorder_outputs

STUDENT = "adasearch"  # model type of a searched student


@dataclass(frozen=True)
class Source:
    """A folder or name, the run's settings and task; ``sparsity`` is the share of zeros it begins with."""

    config: PruneOfaTaskConfig
    problem: EncoderProblem
    path: str
    sparsity: float = 0.0

    @property
    def is_student(self) -> bool:
        """Whether it is a searched student instead of an encoder."""
        return AutoConfig.from_pretrained(self.path).model_type == STUDENT

    @property
    def may_be_cut(self) -> bool:
        """Whether it is an encoder of ours, from which heads or neurons may have been taken."""
        return AutoConfig.from_pretrained(self.path).model_type == EncoderConfig.model_type

    @property
    def direct_sparsity(self) -> float:
        """What pruning on the task alone aims at: the sparsity without its last digits; of 1:3, the two thirds that it holds."""
        most = Pattern.parse(self.pattern).most
        return most if abs(self.sparsity - most) < 1e-3 else round(self.sparsity, 3)

    def start(self, seed: int) -> tuple[PreTrainedModel, list[str]]:
        """What lock begins with, and the names of the layers with zeros. Errors as ``sparse``."""
        model, names = self.sparse(seed)
        if self.config.teach.start == "teacher":
            add_task_vector(model, self.problem.pretrained(seed), self.problem.dense().cpu(), names)
        return model, names

    def sparse(self, seed: int) -> tuple[PreTrainedModel, list[str]]:
        """The model with its zeros, one-shot ones included where asked for, and the names of the layers that have them.

        A masked language model has no head's first layer (BERT's pooler): it is given that of the model it was made of. A searched student's
        outputs are put in the order of the task's labels. Raises ``ModelError`` for a model that is quantised already or has no layers for
        zeros, as a student that only pools, ``ConfigError`` for one without zeros and for a student of another task.
        """
        config, problem = self.config, dataclasses.replace(self.problem, checkpoint=self.path)
        model = load_classifier(Path(self.path)) if self.is_student else problem.pretrained(seed)
        refuse_quantised(model)
        if self.is_student:
            self._take_labels(model)
        names = stacked_layers(model)
        if not names:
            raise ModelError(
                f"sparse_model: {config.sparse_model} has no linear layer or convolution in its layers, so none of its weights can be 0;"
                " choices: another student, or an encoder"
            )
        if not self.is_student and hasattr(model, "head") and _lacks_head(self.path):
            dense = self.problem.pretrained(seed).head.dense
            if dense.weight.shape == model.head.dense.weight.shape:
                model.head.dense.load_state_dict(dense.state_dict())
        if config.sparsity:
            prune_once(model, config.sparsity, config.pattern, config.scope, names)
        if not mean_sparsity(model, names) > 0:
            raise ConfigError(
                f"sparse_model: {config.sparse_model} has no zeros in its {len(names)} layers; choices: a sparse model, or --sparsity 0.85"
            )
        return model.requires_grad_(True), names

    def label_places(self, student: PreTrainedConfig) -> list[int]:
        """Which of a searched student's outputs stands for each label of the task. Raises ``ConfigError`` where it learned another task."""
        task, place = self.problem.task, f"sparse_model: {self.config.sparse_model}"
        kind, choices = HF_PROBLEM_TYPES[task.problem_type], "choices: a student of this task, or the task that it was searched for"
        for what, theirs, ours in (("of problem type", student.problem_type, kind), ("of pairs of texts:", student.is_pair, task.is_pair)):
            if theirs is not None and theirs != ours:
                raise ConfigError(f"{place} is a searched student {what} {theirs}, task {task.name!r} asks for {ours}; {choices}")
        _, names = labels_of(student)
        places = [0] if kind == "regression" and len(names) == 1 else places_of(task.label_names, names)
        if places is None:
            known = f"{place} has {len(names)} labels ({', '.join(names)})"
            raise ConfigError(f"{known}, task {task.name!r} has {task.num_labels} ({', '.join(task.label_names)}); {choices}")
        return places

    def _take_labels(self, student: PreTrainedModel) -> None:
        """Edit in place: a searched student speaks of the task's labels, in the task's order. Raises ``ConfigError`` where it cannot."""
        task, places = self.problem.task, self.label_places(student.config)
        if places != sorted(places) and not reorder_outputs(Teacher(student, self.problem.tokenizer), places):
            raise ConfigError(
                f"sparse_model: {self.config.sparse_model} has the labels in the order {', '.join(labels_of(student.config)[1])}, task"
                f" {task.name!r} in the order {', '.join(task.label_names)}, and its outputs cannot be put in that order; choices: another student"
            )
        student.config.update({"is_pair": task.is_pair, **label_settings(task)})

    @property
    def pattern(self) -> str:
        """What may be zero together in it: the pattern that it is pruned to here, else that of the run that made it."""
        return self._made("pattern")

    @property
    def scope(self) -> str:
        """Whether every layer has the same share of zeros, or all together: found as ``pattern`` is."""
        return self._made("scope")

    def _made(self, setting: str) -> str:
        made = {} if self.config.sparsity else pretraining_run(Path(self.path)).get("config", {})
        return made.get(setting, getattr(self.config, setting))

    @property
    def pretraining_seconds(self) -> float | None:
        """What making the sparse model took, where that is still known."""
        known = [stage.get("seconds") for stage in pretraining_stages(Path(self.path)).values()]
        return None if None in known or not known else float(sum(known))


def pretraining_run(sparse_model: Path) -> dict[str, Any]:
    """run.json of the sparse pre-training that made a model; empty where it is gone."""
    paths = (folder / "run.json" for folder in (sparse_model, sparse_model.parent))
    return next((read_json(path) for path in paths if path.is_file()), {})


def pretraining_stages(sparse_model: Path) -> dict[str, dict[str, float | None]]:
    """``steps`` and ``seconds`` of the teacher's preparation and of the pruning, by stage: ``teacher`` and ``sparse``.

    Those of the runs that it went on from, and whose teacher it was given, are counted as well; None where one is not known. Empty
    where the run is gone.
    """
    run = pretraining_run(sparse_model)
    if not run:
        return {}
    config = run.get("config", {})
    chains = {"teacher": _teacher_runs(run), "sparse": [run]}
    if config.get("start"):
        earlier = pretraining_stages(Path(model_in(_given(run, "start"))))
        chains["sparse"].append({"stages": earlier})
        if not config.get("teacher"):
            chains["teacher"].append({"stages": earlier})

    def total(stage: str, name: str) -> float | None:
        known = [one.get("stages", {}).get(stage, {}).get(name) for one in chains[stage]]
        return None if None in known else sum(known)

    return {stage: {name: total(stage, name) for name in ("steps", "seconds")} for stage in chains}


def made_of(teacher: str) -> str:
    """The model that a prepared teacher was made of; the teacher's own folder where its run is gone."""
    runs = _teacher_runs(pretraining_run(Path(teacher)))
    return runs[-1].get("config", {}).get("model", teacher)


def _teacher_runs(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that a run's teacher comes from: it may be a copy of one that the run it was taken from was given as well."""
    is_given = run.get("config", {}).get("teacher")
    return [run, *(_teacher_runs(pretraining_run(_given(run, "teacher"))) if is_given else [])]


def _given(run: dict[str, Any], setting: str) -> Path:
    """The folder that a run was given: from where it was begun, else, where the runs were moved, from here."""
    path = Path(run["config"][setting])
    there = Path(run.get("directory") or ".") / path
    return there if there.exists() else path


def open_source(config: PruneOfaTaskConfig, problem: EncoderProblem) -> Source:
    """Find the model and raise what is wrong with it before anything is trained: ``ConfigError`` or ``ModelError``."""
    source = Source(config, problem, model_in(model_path(config.sparse_model, problem.cache, config.demo_assets)))
    with loading(f"sparse_model: {config.sparse_model} has no tokenizer that can be loaded"):
        pieces = AutoTokenizer.from_pretrained(source.path).get_vocab()
    if pieces != problem.tokenizer.get_vocab():
        sizes = f"{len(pieces):,} against {len(problem.tokenizer.get_vocab()):,} pieces"
        raise ConfigError(
            f"sparse_model: {config.sparse_model} has another vocabulary than the teacher ({sizes}); choices: models of one vocabulary"
        )
    if source.is_student and problem.is_asked:
        raise ConfigError(f"sparse_model: {config.sparse_model} is a searched student, which answers no questions; choices: an encoder")
    theirs = AutoConfig.from_pretrained(source.path)
    if source.is_student and (places := source.label_places(theirs)) != sorted(places):
        given, ours = ", ".join(labels_of(theirs)[1]), ", ".join(problem.task.label_names)
        problem.notes.append(
            f"sparse_model: {config.sparse_model} has the labels in the order {given}; its outputs were put in the task's: {ours}"
        )
        problem.progress.message(problem.notes[-1])
    if not source.is_student or Architecture.from_dict(theirs.architecture, where="config.architecture").macro.position_embeddings:
        setting = "question.max_seq_length" if problem.is_asked else "max_seq_length"
        check_positions(setting, problem.longest, config.sparse_model, theirs)
    if config.baselines:
        problem.dense()  # of a kind that cannot be read it says so here, not after all training
    check_storage(config.format, config.compression)
    if config.export and has_packages():
        check_exporter()
    model, names = source.sparse(config.seed)
    source = dataclasses.replace(source, sparsity=mean_sparsity(model, names))
    if not source.is_student:
        check_model(problem, config, "sparse_model", model, source.may_be_cut)
    if config.direct:
        Pattern.parse(source.pattern).check(source.direct_sparsity)
    if config.direct and (source.is_student or not is_uncut(problem, model)):
        raise ConfigError(
            f"direct: {config.sparse_model} is smaller than {config.model} before any weight is 0, so pruning that one to the same"
            " sparsity compares nothing; choices: false, or a sparse model with all heads and neurons"
        )
    for name, is_on, is_alike, what, off in (
        ("layer_weight", config.teach.layer_weight, _is_as_deep_and_wide, "they cannot be taught one by one", "0"),
        ("start", config.teach.start == "teacher", _is_of_one_shape, "it cannot begin with what that one has learned", "sparse"),
    ):
        if is_on and (source.is_student or not is_alike(model, problem.dense())):
            raise ConfigError(
                f"teach.{name}: {config.sparse_model} has other layers than the dense model, so that {what};"
                f" choices: {off}, or a model with layers like those of the dense one"
            )
    if config.teach.start == "teacher" and not _is_of_one_shape(model, problem.pretrained(config.seed)):
        raise ConfigError(
            f"teach.start: {config.sparse_model} has other parameters than {config.model}, so that what fine-tuning has added to that"
            " one cannot be added to it; choices: sparse, or a sparse model that nothing was cut from"
        )
    attach_int8(model, exclude=config.int8.exclude)  # names of layers that there are not; the model is not used again
    return source


@torch.no_grad()
def add_task_vector(model: PreTrainedModel, pretrained: PreTrainedModel, tuned: PreTrainedModel, names: list[str]) -> None:
    """Edit in place: what fine-tuning added to the encoder is added to a sparse one, and the head is that of the tuned model.

    ``names`` are of layers whose zeros stay. All three models are of one shape.
    """
    pattern = pattern_of(model, names)
    before, after = dict(pretrained.named_parameters()), dict(tuned.named_parameters())
    for name, parameter in model.named_parameters():
        if name.startswith("encoder."):
            parameter += after[name] - before[name]
        else:
            parameter.copy_(after[name])
    for name, kept in pattern.items():
        model.get_submodule(name).weight *= kept


def _lacks_head(path: str) -> bool:
    """Whether the first layer of a classifier's head, by the name that its family gives it, is not among a checkpoint's weights."""
    with torch.random.fork_rng(devices=[]):  # what is missing is drawn
        model, report = AutoModelForSequenceClassification.from_pretrained(path, ignore_mismatched_sizes=True, output_loading_info=True)
    *_, (dense, _) = FAMILIES.get(model.config.model_type, ("encoder", ("head.dense", "")))
    return f"{dense}.weight" in report["missing_keys"]


def _is_as_deep_and_wide(model: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Whether the layers' states can be compared one by one."""
    shapes = ((one.config.num_hidden_layers, one.config.hidden_size) for one in (model, other))
    return len(set(shapes)) == 1


def _is_of_one_shape(model: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Whether every parameter of one can be added to the other's."""
    first, second = ({name: parameter.shape for name, parameter in one.named_parameters()} for one in (model, other))
    return first == second  # by name: a mask that was baked in has left its weight behind the bias
