"""Sparse pre-training, from a masked language model and a text to a sparse model for all tasks, and a report.

    model + text -> teacher (goes on learning) -> student (loses weights, taught) -> exact zeros in a plain Hugging Face folder

Every stage leaves its result in the run's folder and is skipped when that is there, so the same command goes on after a
kill. What is reported is counted in, and scored with, the folders as they are read back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from adasearch.accelerator import keeping_threads, make_accelerator
from adasearch.demo_assets import model_path
from adasearch.encoder import FAMILIES
from adasearch.errors import ConfigError, ModelError, loading
from adasearch.files import fingerprint, read_json, write_folder, write_json
from adasearch.fit import fit, seed_after
from adasearch.gradual_pruning import GradualPruning
from adasearch.masked_language import MaskedBlocks, Masking
from adasearch.masked_model import UNTRAINED_HEAD, head_parameters, layer_distances, load_masked_model, score_masked
from adasearch.masked_task import load_blocks
from adasearch.measure import hardware
from adasearch.methods.base import Method
from adasearch.methods.sparse_pretraining import SparsePretraining, TeacherPreparation
from adasearch.model_inputs import check_vocabulary, positions_of
from adasearch.progress import Progress
from adasearch.prune_ofa_source import made_of, pretraining_stages
from adasearch.run_files import (
    ALWAYS_FREE, begin_run, begun_precision, check_begun, check_same, model_in, model_path_of, note_stage, only_one, path_of,
    refuse_processes, refuse_run,
)
from adasearch.settings import to_dict
from adasearch.sparse_model import attach_masks, encoder_linears, has_split_blocks, mean_sparsity, sparsity_of
from adasearch.sparse_pattern import Pattern
from adasearch.sparse_pretraining_config import SparsePretrainingConfig
from adasearch.sparse_pretraining_report import write_pretraining
from adasearch.stopwatch import Stopwatch
from adasearch.trackers import check_trackers, start_trackers, stop_trackers

# settings that may differ when a run goes on: they change what is shown, kept or timed, not what is learned
FREE = (*ALWAYS_FREE, "figures", "cache_dir", "evaluations", "report_to")
TEACHER, SPARSE = "teacher", "sparse"  # the folders of the two models
ROUNDING = 1e-3  # by which the zeros of a model may be more than was asked for: a share is rounded up in every layer
NEW_HEAD_SHARE = 0.2  # of the teacher's steps, in which a new head learns alone


@dataclass
class PretrainingRun:
    """A run's folder and its parts."""

    config: SparsePretrainingConfig
    folder: Path
    source: str  # folder or hub id of the model
    tokenizer: PreTrainedTokenizerBase
    train: MaskedBlocks
    validation: MaskedBlocks
    masking: Masking
    accelerator: Accelerator
    progress: Progress

    @property
    def is_mixed(self) -> bool:
        """Whether it trains in the accelerator's mixed precision."""
        return self.accelerator.mixed_precision != "no"

    def score(self, model: PreTrainedModel) -> dict[str, float]:
        """Masked-language metrics on the validation blocks."""
        size = self.config.batch_size
        return score_masked(model, self.validation, self.masking, self.accelerator, batch_size=size, is_mixed=self.is_mixed)

    def distances(self, model: PreTrainedModel, teacher: PreTrainedModel) -> list[float]:
        """How far the layers are from the teacher's on the validation blocks, layer by layer."""
        teacher, size = teacher.to(self.accelerator.device), self.config.batch_size
        return layer_distances(model, teacher, self.validation, self.accelerator, batch_size=size, is_mixed=self.is_mixed)


@keeping_threads()
def pretrain_sparse(config: SparsePretrainingConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Make ``config.model`` sparse and return the report that ``report.json`` holds; the model is in ``sparse/``.

    A finished run is only reported again. Raises ``ConfigError``, ``DataError`` or ``ModelError`` before any training when
    request, text or model are wrong, and ``TrainingError`` when the loss is not finite.
    """
    refuse_processes("prune-ofa-pretrain")
    config.check()
    folder = run_folder(config)
    check_begun(folder, config, FREE)
    with only_one(folder):
        if not (folder / "report.json").exists():
            this = _open(config, folder, progress or Progress())
            try:
                if not (folder / TEACHER / "config.json").exists():
                    _prepare_teacher(this)
                if not (folder / SPARSE / "config.json").exists():
                    _prune(this)
                write_json(folder / "report.json", _report(this))
            finally:
                stop_trackers(this.accelerator)
        report = read_json(folder / "report.json")
        write_pretraining(folder, report, config.figures)
    return report


def run_folder(config: SparsePretrainingConfig) -> Path:
    """Where a run is written."""
    kind = str(Pattern.parse(config.pattern)).replace(":", "-of-")
    return Path(config.output_dir or Path("runs") / f"prune-ofa-{Path(config.teacher or config.model).name}-{config.sparsity:g}-{kind}")


def _open(config: SparsePretrainingConfig, folder: Path, progress: Progress) -> PretrainingRun:
    """Check all that can be checked, then make or reopen the run's folder."""
    check_trackers(config)
    cache = Path(config.cache_dir) if config.cache_dir else folder / "cache"
    setting = _setting(config)
    refuse_run(setting, config.teacher or config.model)
    source = model_path(config.teacher or config.model, cache, config.demo_assets)
    tokenizer = _tokenizer(source, setting)
    masking = Masking.of(tokenizer, config.mask_share, config.seed)
    model, is_new = load_masked_model(source, setting=setting)
    _check_start(config, model)
    _check_model(config, model, is_new, tokenizer)
    if model.config.model_type not in FAMILIES:
        progress.warning(
            f"{setting}: {config.teacher or config.model!r} is a {model.config.model_type!r} model, which `adasearch compress prune-ofa` does not"
            f" take: it fine-tunes {', '.join(FAMILIES)}; the sparse model is then for your own fine-tuning"
        )
    train, validation = load_blocks(config, tokenizer, cache=cache, progress=progress)
    accelerator = make_accelerator(config, begun_precision(folder))
    blocks = {"train": train, "validation": validation}
    data = {name: {"examples": len(part), "texts": fingerprint(part.tokens.ids, part.tokens.offsets)} for name, part in blocks.items()}
    inputs = {"model": path_of(config.model), "teacher": path_of(config.teacher), "start": model_path_of(config.start)}
    check_same(folder / "run.json", data, inputs)
    begin_run(folder, to_dict(config), accelerator.mixed_precision, data=data, inputs=inputs)
    start_trackers(config, Path(config.teacher or config.model).name, folder, accelerator)
    return PretrainingRun(config, folder, source, tokenizer, train, validation, masking, accelerator, progress)


def _setting(config: SparsePretrainingConfig) -> str:
    """Which setting names the model that the run begins with."""
    return "teacher" if config.teacher else "model"


def _tokenizer(name: str, setting: str) -> PreTrainedTokenizerBase:
    with loading(f"{setting}: {name!r} has no tokenizer that can be loaded", "a folder or a hub id of a masked language model"):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def _check_model(config: SparsePretrainingConfig, model: PreTrainedModel, is_new: bool, tokenizer: PreTrainedTokenizerBase) -> None:
    """Whether kind, pattern, block length, vocabulary and head are possible; before the text is read. The model is used up."""
    name, setting = config.teacher or config.model, _setting(config)
    if model.config.is_encoder_decoder:
        raise ModelError(f"{setting}: {name!r} has an encoder and a decoder; choices: an encoder, as BERT, RoBERTa, DistilBERT, MiniLM")
    try:
        attach_masks(model, config.pattern)
    except ModelError as error:
        raise ModelError(f"{setting}: {name!r}: {error}") from error
    most = min(positions_of(model.config) or config.block_length, tokenizer.model_max_length)
    if config.block_length > most:
        raise ConfigError(f"block_length: {config.block_length} is out of range; choices: 4 to {most} for {name!r}")
    check_vocabulary(setting, name, tokenizer, model.config)
    if is_new and config.kd_weight and config.teacher:
        raise ModelError(
            f"teacher: {name!r} has no trained head for masked language to teach with; choices: a prepared teacher, as the folder teacher/ of a run"
            " with teacher_steps, or --kd_weight 0 with --layer_weight 1"
        )
    if is_new and not config.teacher_steps and config.kd_weight:
        raise ConfigError(
            f"teacher_steps: 0, but {name!r} has no trained head for masked language to teach with; choices: 1 or more, or --kd_weight 0"
        )


def _check_start(config: SparsePretrainingConfig, model: PreTrainedModel) -> None:
    """Whether the student can begin with ``config.start``, as a copy of ``model`` that has lost weights."""
    if config.start is None:
        return
    student, _ = load_masked_model(model_in(config.start), setting="start")
    if [tensor.shape for tensor in student.base_model.parameters()] != [tensor.shape for tensor in model.base_model.parameters()]:
        raise ModelError(f"start: {config.start!r} has other layers than {config.teacher or config.model!r}; choices: one made of the same model")
    if (own := mean_sparsity(student)) > config.sparsity + ROUNDING:
        least = math.ceil(1e3 * own) / 1e3
        raise ConfigError(f"start: {config.start!r} has {own:.2%} zeros, more than sparsity {config.sparsity:g}; choices: {least:g} or more")
    if has_split_blocks(student, Pattern.parse(config.pattern)):
        raise ConfigError(
            f"pattern: {config.pattern}, but {config.start!r} has zeros, which stay, that are no such blocks, so that more would go than"
            " sparsity says; choices: unstructured, or a start that was pruned in these blocks"
        )


def _learner(this: PretrainingRun, name: str) -> tuple[PreTrainedModel, bool]:
    """A model that is to be trained with the run's dropout, and whether its head is new."""
    model, is_new = load_masked_model(name, this.config.dropout)
    on_cpu = this.accelerator.device.type == "cpu"
    if this.config.dropout == 0 and on_cpu and this.accelerator.mixed_precision == "bf16":
        model.set_attn_implementation("eager")  # torch's fused attention is far slower there: encoder_parts.is_slow_fused
    return model, is_new


def _prepare_teacher(this: PretrainingRun) -> None:
    """``teacher/``: the model given as one, the model as it is, or the model after further training on the text."""
    config, start = this.config, time.monotonic()
    torch.manual_seed(config.seed)  # of a new head
    model, is_new = _learner(this, this.source)
    before = this.score(model.to(this.accelerator.device))
    facts: dict[str, Any] = {"validation_before": before, "head": "new" if is_new else "trained", "steps": 0, "seconds": 0.0}
    if not config.teacher and config.teacher_steps:
        late = config.head_warmup_steps
        late = round(NEW_HEAD_SHARE * config.teacher_steps) * is_new if late is None else late
        fit_config = config.fit_config(config.teacher_steps, config.teacher_learning_rate)
        method = TeacherPreparation(fit_config, this.masking, late)
        facts |= _fit(this, model, method, TEACHER, "prepare the teacher") | {"head_warmup_steps": late}
    note_stage(this.folder, TEACHER, **facts, total_seconds=time.monotonic() - start)
    # last: a stage whose folder is there is not done again, and its facts would never be known
    _save(this, model, TEACHER, is_untrained=is_new and not facts["steps"])


def _prune(this: PretrainingRun) -> None:
    """``sparse/``: a copy of the teacher that has lost its weights."""
    config, folder = this.config, this.folder / TEACHER
    teacher, is_untrained = load_masked_model(str(folder))
    student, is_new = _learner(this, model_in(config.start) if config.start else str(folder))
    if config.start and is_new:
        _take_head(student, teacher)
    own = min(mean_sparsity(student), config.sparsity) if config.start else 0.0
    schedule = replace(config.schedule, initial=max(config.initial_sparsity, own))
    pruning = GradualPruning(schedule, Pattern.parse(config.pattern), config.scope, holds_zeros=config.start is not None)
    after = _steps_before(this)
    masking = replace(this.masking, seed=seed_after(config.seed, after))  # else the teacher has learned these very answers
    method = SparsePretraining(
        config.fit_config(config.steps, config.learning_rate), masking, teacher, pruning, task_weight=config.task_weight,
        kd_weight=config.kd_weight, temperature=config.temperature, distill_share=config.distill_share, layer_weight=config.layer_weight,
        rewind=config.rewind,
    )  # fmt: skip

    def evaluate(trained: PreTrainedModel) -> dict[str, float]:
        layers = {"layers": mean(this.distances(trained, teacher))} if config.layer_weight else {}
        return {**this.score(trained), **layers}

    facts = _fit(this, student, method, SPARSE, f"prune to {config.sparsity:g}", evaluate, after)
    note_stage(this.folder, SPARSE, **facts, initial_sparsity=schedule.initial)
    _save(this, student, SPARSE, is_untrained=is_untrained and not config.task_weight)


def _take_head(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Edit in place: a student that begins without a head of its own has its teacher's, as a copy of that one would."""
    with torch.no_grad():
        for own, given in zip(head_parameters(student), head_parameters(teacher), strict=True):
            own.copy_(given)


def _steps_before(this: PretrainingRun) -> int:
    """Steps before the pruning: of the teacher, here or where it was prepared, and of the model that it goes on from, where they are known."""
    config = this.config
    taken = [read_json(this.folder / "run.json")["stages"][TEACHER]["steps"]]
    for given, stage in ((config.teacher, TEACHER), (config.start, SPARSE)):
        if given:
            taken.append(pretraining_stages(Path(model_in(given))).get(stage, {}).get("steps"))
    return sum(steps or 0 for steps in taken)


def _fit(
    this: PretrainingRun, model: PreTrainedModel, method: Method, name: str, title: str,
    score: Callable[[PreTrainedModel], dict[str, float]] | None = None, after: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Train in ``work/<name>``, ``after`` so many steps, scored by ``score``, else on hidden tokens; steps, seconds a step."""
    config, work = this.config, this.folder / "work" / name
    watch = Stopwatch()

    def evaluate(trained: PreTrainedModel) -> dict[str, float]:
        return {key: value for key, value in (score or this.score)(trained).items() if key != "tokens"}

    with watch.timing(work) as took:
        history = fit(
            model, method, {"train": this.train}, method.config, seed=config.seed, folder=work, accelerator=this.accelerator,
            progress=this.progress, title=title, after=after, evaluate=evaluate, evaluations=config.evaluations,
            checkpoint_seconds=config.checkpoint_seconds, is_mixed=this.is_mixed, watch=watch,
        )  # fmt: skip
    seconds = took.get("seconds")
    return {"steps": history[-1]["step"], "seconds": seconds, "seconds_per_step": seconds and seconds / history[-1]["step"]}


def _save(this: PretrainingRun, model: PreTrainedModel, name: str, *, is_untrained: bool) -> None:
    """A model's folder; its config says where the head is ``is_untrained``, so that it is not taken for one that knows words."""
    if is_untrained:
        setattr(model.config, UNTRAINED_HEAD, True)
    elif hasattr(model.config, UNTRAINED_HEAD):
        delattr(model.config, UNTRAINED_HEAD)

    def save(partial: Path) -> None:
        model.cpu().save_pretrained(partial)
        this.tokenizer.save_pretrained(partial)

    write_folder(this.folder / name, save)
    (this.folder / "work" / name / "checkpoint.pt").unlink(missing_ok=True)


def _report(this: PretrainingRun) -> dict[str, Any]:
    """Both models as they are read back: zeros counted, hidden tokens guessed."""
    config, folder, state = this.config, this.folder, read_json(this.folder / "run.json")
    scores, models = {}, {}
    for name in (TEACHER, SPARSE):
        models[name], _ = load_masked_model(str(folder / name))
        scores[name] = this.score(models[name].to(this.accelerator.device))
    sparse = models[SPARSE]
    head = state["stages"].get(TEACHER, {})
    has_head = head.get("head") != "new"
    learned = has_head or bool(head.get("steps"))
    initial = state["stages"].get(SPARSE, {}).get("initial_sparsity", config.initial_sparsity)
    weights = {name: module.weight for name, module in encoder_linears(sparse).items()}
    layers = {name: {"weights": weight.numel(), "zeros": int((weight == 0).sum())} for name, weight in weights.items()}
    return {
        "model": made_of(config.teacher) if config.teacher else config.model, "model_type": sparse.config.model_type, "class": type(sparse).__name__,
        "sparsity": mean_sparsity(sparse), "sparsity_asked": config.sparsity, "pattern": config.pattern, "scope": config.scope,
        "sparsity_by_layer": sparsity_of(sparse), "layers": layers,
        "params": sum(p.numel() for p in sparse.parameters()), "params_encoder_linear": sum(layer["weights"] for layer in layers.values()),
        "scores": {"model": head.get("validation_before"), **scores}, "layer_distances": this.distances(sparse, models[TEACHER]),
        "can_guess": {"model": has_head, TEACHER: learned, SPARSE: learned or config.task_weight > 0},
        "train_tokens": int(this.train.tokens.offsets[-1]), "train_blocks": len(this.train), "validation_blocks": len(this.validation),
        "stages": state["stages"], "schedule": {**vars(config.schedule), "initial": initial},
        "config": state["config"], "precision": state["precision"],
        "seed": config.seed, "command": state["command"], "commit": state["commit"], "hardware": hardware(),
    }  # fmt: skip
