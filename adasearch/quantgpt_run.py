"""A generative transformer to few bits, from a folder and a task to a packed model, its score and a report.

    model + task -> teacher, student -> fit -> pack -> score the packed files -> report

Every stage leaves its result in the run's folder and is skipped when that is there, so the same command goes on after a
kill. What is scored is the packed model as it was read back from its files, not the one that was trained.
"""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, BartForConditionalGeneration, GPT2LMHeadModel
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from adasearch.accelerator import keeping_threads, make_accelerator
from adasearch.canvas import save_figure
from adasearch.errors import ConfigError, ModelError, loading
from adasearch.files import fingerprint, read_json, write_folder, write_json, write_text
from adasearch.fit import fit
from adasearch.language import Seq2SeqPairs, TokenBlocks, language_logits
from adasearch.language_task import LanguageTask, load_language_task
from adasearch.low_bit import load_low_bit, pack_model
from adasearch.low_bit_size import file_size, size_table, size_totals
from adasearch.measure import hardware
from adasearch.methods.quantgpt import QuantGpt, visits_again
from adasearch.model_inputs import check_vocabulary
from adasearch.progress import Progress
from adasearch.quantgpt_config import QuantGptConfig
from adasearch.quantgpt_plots import scales_figure, similarity_figure, weights_figure
from adasearch.quantgpt_report import model_card, report_text
from adasearch.quantize_model import attach_quantizers, quantized_cache, quantized_integers
from adasearch.run_files import ALWAYS_FREE, begin_run, begun_precision, check_begun, check_same, note_stage, only_one, refuse_processes, stage_facts
from adasearch.settings import to_dict
from adasearch.stopwatch import Stopwatch

# model_type -> class, and what its dropouts are called
MODELS: dict[str, tuple[type[PreTrainedModel], tuple[str, ...]]] = {
    "gpt2": (GPT2LMHeadModel, ("resid_pdrop", "embd_pdrop", "attn_pdrop")),
    "bart": (BartForConditionalGeneration, ("dropout", "attention_dropout", "activation_dropout")),
}
# settings that may differ when a run goes on: they change what is shown, kept or timed, not what is learned
FREE = (*ALWAYS_FREE, "figures", "cache_dir", "evaluations", "bank_gib")
FIGURE_TOKENS = 60  # of the validation split, whose similarity is drawn


@dataclass
class QuantRun:
    """A run's folder and its parts."""

    config: QuantGptConfig
    folder: Path
    model_config: PretrainedConfig
    task: LanguageTask
    teacher: PreTrainedModel
    accelerator: Accelerator
    progress: Progress

    @property
    def cache(self) -> Path:
        """Tokens, and the full-precision model's scores."""
        return cache_of(self.config, self.folder)


@keeping_threads()
def quantize_language_model(config: QuantGptConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Quantise ``config.model`` and return the report that ``report.json`` holds; the packed model is in ``model/``.

    A finished run is only reported again. Raises ``ConfigError``, ``DataError`` or ``ModelError`` before any training when
    request, data or model are wrong, and ``TrainingError`` when the loss is not finite.
    """
    refuse_processes("quantgpt")
    config.check()
    folder = run_folder(config)
    check_begun(folder, config, FREE)
    with only_one(folder):
        if not (folder / "report.json").exists():
            this = _open(config, folder, progress or Progress())
            if not (folder / "model" / "config.json").exists():
                _train(this)
            _checkpoint(folder).unlink(missing_ok=True)  # here, so that a kill just after the model was written leaves none for good
            write_json(folder / "report.json", _measure(this))
        report = read_json(folder / "report.json")
        write_text(folder / "report.md", report_text(report, folder))
        write_text(folder / "model" / "README.md", model_card(report))
    return report


def run_folder(config: QuantGptConfig) -> Path:
    """Where a run is written."""
    return Path(config.output_dir or Path("runs") / f"quantgpt-{Path(config.model).name}-{config.bits}")


def load_language_model(name: str, dropout: float | None = None) -> PreTrainedModel:
    """A GPT-2 or BART in float32 from a folder or the hub, with another dropout where one is given. Raises ``ModelError``."""
    model_config = language_config(name)
    kind, dropouts = MODELS[model_config.model_type]
    changes = {} if dropout is None else dict.fromkeys(dropouts, dropout)
    with _loading(name):
        return kind.from_pretrained(name, dtype=torch.float32, **changes)


def language_config(name: str) -> PretrainedConfig:
    """The model's configuration. Raises ``ModelError`` where there is none, or of another kind than GPT-2 and BART."""
    with _loading(name):
        found = AutoConfig.from_pretrained(name, trust_remote_code=False)  # else it asks at a terminal
    if found.model_type not in MODELS:
        raise ModelError(f"model: {name!r} is a {found.model_type}; choices: {', '.join(MODELS)}")
    return found


def cache_of(config: QuantGptConfig, folder: Path) -> Path:
    """Where tokens and full-precision scores lie."""
    return Path(config.cache_dir) if config.cache_dir else folder / "cache"


def _loading(name: str) -> AbstractContextManager[None]:
    return loading(f"model: {name!r} cannot be loaded", f"a folder or a hub id of {' or '.join(MODELS)}")


def _tokenizer(name: str, model_config: PretrainedConfig) -> PreTrainedTokenizerBase:
    with _loading(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    check_vocabulary("model", name, tokenizer, model_config)
    return tokenizer


def _open(config: QuantGptConfig, folder: Path, progress: Progress) -> QuantRun:
    """Check all that can be checked, then make or reopen the run's folder."""
    accelerator = make_accelerator(config, begun_precision(folder))
    model_config = language_config(config.model)
    tokenizer = _tokenizer(config.model, model_config)
    _check_quantizer(config, model_config)
    task = load_language_task(config, model_config, tokenizer, cache=cache_of(config, folder), progress=progress)
    teacher = load_language_model(config.model)
    data = {name: {"examples": len(part), **_fingerprints(part)} for name, part in task.splits.items()}
    inputs = {"model": Path(config.model)}
    check_same(folder / "run.json", data, inputs)
    this = QuantRun(config, folder, model_config, task, teacher.to(accelerator.device).eval(), accelerator, progress)
    begin_run(folder, to_dict(config), accelerator.mixed_precision, data=data, inputs=inputs)
    return this


def _fingerprints(part: TokenBlocks | Seq2SeqPairs) -> dict[str, str]:
    stores = {"texts": part.tokens} if isinstance(part, TokenBlocks) else {"texts": part.tokens, "targets": part.targets}
    return {name: fingerprint(store.ids, store.offsets) for name, store in stores.items()}


def _check_quantizer(config: QuantGptConfig, model_config: PretrainedConfig) -> None:
    """Try bits and quantiser on a model of the same kind and hardly any size. Raises ``ConfigError``."""
    small = copy.deepcopy(model_config)
    sizes = {"n_layer": 1, "n_embd": 2, "n_head": 1, "n_inner": 2, "n_positions": 2, "d_model": 2, "vocab_size": 8, "max_position_embeddings": 2}
    sides = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("attention_heads", 1), ("ffn_dim", 2))}
    for name, value in {**sizes, **sides, "pad_token_id": 1}.items():
        if hasattr(small, name):
            setattr(small, name, value)
    tiny = MODELS[model_config.model_type][0](small)
    found = attach_quantizers(
        tiny, config.bits, quantizer=config.quantizer, per=config.per, embedding_per=config.embedding_per, **config.quantizer_options()
    )
    if not found.names:
        raise ConfigError(f"bits: {config.bits} quantises no weights, so there is nothing to pack; choices: such as 2-2-8")


def _train(this: QuantRun) -> None:
    """The student, from its teacher to ``model/``."""
    config, task = this.config, this.task
    student = load_language_model(config.model, config.dropout)
    method = QuantGpt(config, this.teacher, task.splits["train"])
    if config.lambda_contrastive and config.bank == "position" and not visits_again(config, len(task.splits["train"])):
        this.progress.message("no token is seen twice in so few steps: the bank by position stays empty and is left out")
    watch = Stopwatch()

    def glance(model: PreTrainedModel) -> dict[str, float]:
        with quantized_cache():
            return task.glance(model, this.accelerator)

    with watch.timing(this.folder) as took:
        history = fit(
            student, method, {"train": task.splits["train"]}, method.config, seed=config.seed, folder=this.folder,
            accelerator=this.accelerator, progress=this.progress, title=f"quantise to {config.bits}", evaluate=glance,
            evaluations=config.evaluations, checkpoint_seconds=config.checkpoint_seconds, is_mixed=config.mixed_precision != "no",
            watch=watch,
        )  # fmt: skip
    for name in MODELS[this.model_config.model_type][1]:  # the packed model is as its teacher in all but its weights
        setattr(student.config, name, getattr(this.model_config, name))
    quantizers = {name: quantizer.describe() for name, quantizer in method.quantized.quantizers.items()}
    write_json(this.folder / "quantizers.json", quantizers)
    packed = pack_model(student)
    if config.figures:
        _draw(this, student, packed, history)

    def save(partial: Path) -> None:
        packed.save_pretrained(partial)
        task.tokenizer.save_pretrained(partial)

    facts = {"steps": history[-1]["step"], "validation": history[-1].get("validation"), "has_bank": method.bank is not None}
    note_stage(this.folder, "train", seconds=took.get("seconds"), **facts)
    write_folder(this.folder / "model", save)
    note_stage(this.folder, "check", packed_logits_max_difference=_difference(this, student))


def _checkpoint(folder: Path) -> Path:
    """What a training under way goes on from."""
    return folder / "checkpoint.pt"


@torch.inference_mode()
def _difference(this: QuantRun, student: PreTrainedModel) -> float:
    """Largest difference between the logits of the packed files and of the trained student, on one batch."""
    batch = this.task.splits["validation"].collate([0])
    batch = {name: tensor.to(this.accelerator.device) for name, tensor in batch.items()}
    packed = load_low_bit(this.folder / "model").to(this.accelerator.device)
    return float((language_logits(packed, batch) - language_logits(student.eval(), batch)).abs().max())


def _draw(this: QuantRun, student: PreTrainedModel, packed: PreTrainedModel, history: list[dict[str, Any]]) -> None:
    """figures/: weights, scales, similarity of tokens."""
    config, before = this.config, {name: tensor.cpu() for name, tensor in this.teacher.state_dict().items()}
    after: dict[str, Tensor] = {name: (n * scale).cpu() for name, (n, scale) in quantized_integers(student).items()}
    figures = {"weights": weights_figure(before, after, f"Weights before and after: {config.quantizer}, {config.bits}")} if after else {}
    scales = history[-1].get("scales")
    if scales:
        words = {"dynamic_scale": "γ (clip / mean magnitude)", "pact": "clip α", "lsq": "step"}[config.quantizer]
        title = f"Learned scales by module: {config.quantizer}, {config.bits}"
        figures["scales"] = scales_figure(scales, title, words, history[0].get("scales"))
    models = {"full precision": this.teacher, config.bits: packed.to(this.accelerator.device)}
    text = this.task.tokenizer.decode(this.task.splits["validation"].tokens.ids[:FIGURE_TOKENS].tolist(), skip_special_tokens=True)
    figures["similarity"] = similarity_figure(models, this.task.tokenizer, text)
    for name, figure in figures.items():
        save_figure(figure, this.folder / "figures" / name)


def _measure(this: QuantRun) -> dict[str, Any]:
    """The report: both models' scores on the same split, sizes of the written files."""
    config, folder, task = this.config, this.folder, this.task
    full = _full_scores(this)
    packed = load_low_bit(folder / "model", memory="float").to(this.accelerator.device)
    scores = task.score(packed, this.accelerator, this.progress)
    totals = size_totals(size_table(folder / "model"), file_size(folder / "model"))
    facts, began = stage_facts(folder, "train"), read_json(folder / "run.json")
    mebibyte = 2**20
    return {
        "task": task.name, "split": task.scored_split, "metric": task.metric, "higher_is_better": not task.is_causal,
        "score_full_precision": full[task.metric], "score_quantized": scores[task.metric],
        "scores_full_precision": full, "scores_quantized": scores, "validation_quantized": facts.get("validation"),
        "size_mib_full_precision": totals["fp32_bytes"] / mebibyte, "size_mib_quantized": totals["file_bytes"] / mebibyte,
        "size_ratio": totals["file_ratio"], "size_ratio_nominal": totals["nominal_ratio"],
        "steps": facts.get("steps"), "train_seconds": facts.get("seconds"), "seed": config.seed, "has_bank": facts.get("has_bank", config.bank != "none"),
        "packed_logits_max_difference": stage_facts(folder, "check").get("packed_logits_max_difference"),
        "model_type": this.model_config.model_type, "config": to_dict(config),
        "command": began["command"], "commit": began["commit"], "hardware": hardware(),
    }  # fmt: skip


def _full_scores(this: QuantRun) -> dict[str, float]:
    """The full-precision model's scores on the same texts, computed once for all runs that share a cache."""
    config, task = this.config, this.task
    examples = task.splits[task.scored_split]
    stores = [examples.tokens] + ([] if task.is_causal else [examples.targets])
    weights = [tensor.cpu().numpy() for tensor in this.teacher.state_dict().values()]
    how = [config.block_length, config.stride] if task.is_causal else [config.target_length, config.num_beams, config.eval_texts]
    name = f"scores-{fingerprint(*weights, *(part for store in stores for part in (store.ids, store.offsets)), how)}.json"
    if not (this.cache / name).exists():
        found = task.score(this.teacher, this.accelerator, this.progress)
        assert math.isfinite(found[task.metric]), found  # a word without blanks around it may be a whole line, its perplexity beyond all floats
        write_json(this.cache / name, found)
    return read_json(this.cache / name)
