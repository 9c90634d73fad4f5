"""Sparse pre-training and locked fine-tuning on tiny models: what is learned from, how sparse it ends, that it resumes exactly.

References: Hugging Face's own loss, KL written out, autograd, an undisturbed run.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hearing import Heard, KillAt, Killed
from tiny_encoder import forward
from tiny_masked import VOCABULARY, save_lines, save_masked, tiny_bert, tiny_blocks, tiny_masking
from tiny_words import PIECES, save_words
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import (
    AlbertConfig, AlbertForMaskedLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, BartConfig,
    BartForConditionalGeneration, BertForMaskedLM, BertForQuestionAnswering, BertForSequenceClassification, BertModel, PreTrainedModel,
)  # fmt: skip

from adasearch.classifier import check_settings
from adasearch.config import FitConfig
from adasearch.errors import AdasearchError, ConfigError, ModelError
from adasearch.fit import fit
from adasearch.gradual_pruning import GradualPruning
from adasearch.inspect_run import inspect
from adasearch.masked_language import MaskedBlocks, Masking
from adasearch.masked_model import EVALUATION_STEP, head_parameters, layer_states, load_masked_model, logits_and_states
from adasearch.masked_task import load_blocks
from adasearch.methods.base import Method
from adasearch.methods.locked import GradualFinetuning, LockedFinetuning
from adasearch.methods.qat import QuantizeAware
from adasearch.methods.sparse_pretraining import SparsePretraining, TeacherPreparation
from adasearch.progress import Progress
from adasearch.prune_ofa_config import Int8Config
from adasearch.qdq_export import export_folder
from adasearch.quantize_config import QuantizeConfig
from adasearch.quantize_texts import load_material
from adasearch.report_files import rebuild_report
from adasearch.sparse_model import bake_masks, broken_zeros, encoder_linears, find_masks, lock_pattern, pattern_of, prune_once, sparsity_of
from adasearch.sparse_pattern import Pattern
from adasearch.sparse_pretraining_config import SparsePretrainingConfig
from adasearch.sparse_pretraining_report import model_card, scores_table
from adasearch.sparse_pretraining_run import _prepare_teacher, _prune, pretrain_sparse
from adasearch.sparsity import dropped_count
from adasearch.sparsity_schedule import SparsitySchedule, rewinding_factor
from adasearch.teaching import states_loss
from adasearch.tokens import Examples, TokenStore

STEPS = 12
CONFIG = FitConfig(steps=STEPS, batch_size=4, learning_rate=5e-3, warmup=0.1, weight_decay=0.1, clip_norm=1.0)


def pruning(pattern: str = "unstructured", final: float = 0.85, scope: str = "layer") -> GradualPruning:
    return GradualPruning(SparsitySchedule.of_shares(STEPS, final, every=0.15), Pattern.parse(pattern), scope)


def sparse_method(teacher: PreTrainedModel, **options: Any) -> SparsePretraining:
    where = {name: options.pop(name) for name in ("pattern", "final", "scope") if name in options}
    return SparsePretraining(CONFIG, tiny_masking(), teacher, pruning(**where), **options)


def is_2_of_4(weight: Tensor) -> bool:
    """Whether at most two of every four inputs' weights are left, (outputs, inputs)."""
    return int((weight.detach() != 0).reshape(-1, 4).sum(-1).max()) <= 2


def train(model: PreTrainedModel, method: Method, examples: MaskedBlocks | Examples, folder: Path, **options: Any) -> list[dict[str, Any]]:
    options = {"progress": Progress(), **options}
    accelerator = Accelerator(cpu=True)
    return fit(model, method, {"train": examples}, method.config, seed=3, folder=folder, accelerator=accelerator, title="", **options)


def test_layers_that_teach_alone_hide_no_token_and_leave_the_head_alone() -> None:
    student, teacher = tiny_bert(BertForMaskedLM).eval(), tiny_bert(BertForMaskedLM, seed=1).eval()
    method = sparse_method(teacher, task_weight=0.0, kd_weight=0.0, layer_weight=3.0)
    method.attach(student)
    method.begin_step(student, 4, STEPS)
    batch = tiny_blocks().collate([0, 11, 5])
    terms = method.loss(student, batch)
    states, targets = (layer_states(model, batch) for model in (student, teacher))
    assert set(terms) == {"layers"} and terms["layers"].item() == pytest.approx(3 * states_loss(states, targets, batch["attention_mask"]).item())
    terms["layers"].backward()
    assert all(parameter.grad is None for parameter in head_parameters(student))
    with_head = logits_and_states(student, batch, batch["attention_mask"].bool())[1]
    assert all(torch.equal(one, other) for one, other in zip(states, with_head, strict=True))


@pytest.mark.parametrize(("share", "layers"), [(1.0, 0.0), (0.4, 0.0), (0.4, 3.0)])
def test_the_loss_is_half_hidden_tokens_and_half_teacher_and_layers_if_asked(share: float, layers: float) -> None:
    student, teacher = tiny_bert(BertForMaskedLM).eval(), tiny_bert(BertForMaskedLM, seed=1).eval()
    method = sparse_method(teacher, distill_share=share, layer_weight=layers)
    method.attach(student)
    method.begin_step(student, 4, STEPS)
    batch = tiny_blocks().collate([0, 11, 5])
    terms = method.loss(student, batch)
    sum(terms.values()).backward()
    found = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()

    masked = tiny_masking()(batch, 4, share)  # then from the definitions, on all tokens, by Hugging Face's own loss
    inputs = {name: masked[name] for name in ("input_ids", "attention_mask")}
    output = student(**inputs, labels=masked["labels"], output_hidden_states=True)
    mine, other = (output.logits / 2).softmax(-1), (teacher(**inputs).logits.detach() / 2).softmax(-1)
    divergence_BL = (other * (other.log() - mine.log())).sum(-1)
    taught = masked["drawn_BL"] if share < 1 else batch["attention_mask"] == 1  # all that is no padding, hidden or not
    loss = 0.5 * output.loss + 0.5 * 4 * divergence_BL[taught].mean()
    targets = teacher(**inputs, output_hidden_states=True).hidden_states
    assert ("layers" in terms) == bool(layers)
    for state, target in zip(output.hidden_states[1:], targets[1:], strict=True):  # each token that is no padding, one after the other
        pairs = [(state[b, i], target[b, i].detach()) for b, i in batch["attention_mask"].nonzero().tolist()]
        share_of_square = sum(((a - b) ** 2).sum() for a, b in pairs) / sum((b**2).sum() for _, b in pairs)
        loss = loss + layers * share_of_square / 2
    loss.backward()
    assert terms["mlm"].item() == pytest.approx(0.5 * output.loss.item(), abs=1e-6)
    assert sum(terms.values()).item() == pytest.approx(loss.item(), abs=1e-5)
    for name, parameter in student.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-6), name
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_teacher_learns_the_tokens_that_its_step_hides() -> None:
    model = tiny_bert(BertForMaskedLM).eval()
    method, batch = TeacherPreparation(CONFIG, tiny_masking()), tiny_blocks().collate([0, 11, 5])
    for step in (2, 7):
        method.begin_step(model, step, STEPS)
        masked = tiny_masking()(batch, step)
        output = model(input_ids=masked["input_ids"], attention_mask=masked["attention_mask"], labels=masked["labels"])
        assert method.loss(model, batch)["mlm"].item() == pytest.approx(output.loss.item(), abs=1e-6)


def test_a_student_that_is_its_teacher_learns_nothing_from_it() -> None:
    student = tiny_bert(BertForMaskedLM).eval()
    method = sparse_method(copy.deepcopy(student), task_weight=0.0)
    terms = method.loss(student, tiny_blocks().collate([0, 1]))
    assert terms["kd"].item() == pytest.approx(0, abs=1e-6) and terms["mlm"] == 0
    sum(terms.values()).backward()
    assert max(parameter.grad.abs().max() for parameter in student.parameters()) < 1e-6


@pytest.mark.parametrize(
    ("pattern", "final", "scope"),
    [("unstructured", 0.85, "layer"), ("unstructured", 0.9, "global"), ("2:4", 0.5, "layer"), ("4x1", 0.5, "layer")],
)
def test_it_ends_exactly_as_sparse_as_asked(tmp_path: Path, pattern: str, final: float, scope: str) -> None:
    student, teacher = tiny_bert(BertForMaskedLM), tiny_bert(BertForMaskedLM)
    method = sparse_method(teacher, pattern=pattern, final=final, scope=scope)
    history = train(student, method, tiny_blocks(), tmp_path)
    layers = encoder_linears(student)
    zeros = {name: int((layer.weight == 0).sum()) for name, layer in layers.items()}
    assert not find_masks(student)
    if scope == "global":
        assert sum(zeros.values()) == dropped_count(final, sum(layer.weight.numel() for layer in layers.values()))
    else:
        assert zeros == {name: dropped_count(final, layer.weight.numel()) for name, layer in layers.items()}
    if pattern == "2:4":
        assert all(is_2_of_4(layer.weight) for layer in layers.values())
    schedule = method.pruning.schedule
    for record in history:
        last = max(step for step in range(record["step"]) if schedule.is_update(step))
        assert record["sparsity"] == pytest.approx(schedule.sparsity(last), abs=0.01)
        rate = rewinding_factor(record["step"] - 1, STEPS, round(0.1 * STEPS), schedule)
        assert record["learning_rate"] == pytest.approx(CONFIG.learning_rate * rate)
    fresh = tiny_bert(BertForMaskedLM)
    for name in ("bert.embeddings.word_embeddings", "cls.predictions.transform.dense"):  # dense, but trained
        weight = student.get_submodule(name).weight
        assert (weight != 0).float().mean() > 0.9 and not torch.equal(weight, fresh.get_submodule(name).weight)


def test_the_last_steps_keep_the_pattern(tmp_path: Path) -> None:
    student = tiny_bert(BertForMaskedLM)
    method = sparse_method(tiny_bert(BertForMaskedLM))
    masks: dict[int, dict[str, Tensor]] = {}
    begin = method.begin_step

    def watched(model: PreTrainedModel, step: int, steps: int) -> None:
        begin(model, step, steps)
        masks[step] = {name: mask.mask.clone() for name, mask in find_masks(model).items()}

    method.begin_step = watched
    train(student, method, tiny_blocks(), tmp_path)
    until = method.pruning.schedule.until
    assert 0 < until < STEPS - 1
    for step in range(until, STEPS):
        assert all(torch.equal(mask, masks[until][name]) for name, mask in masks[step].items())
    assert not broken_zeros(student, masks[until])


@pytest.mark.parametrize(
    ("before", "now", "first"),
    [
        (("unstructured", 0.6, "global"), ("unstructured", 0.7, "layer"), 0.0),  # the layer made small has nearly all zeros, and keeps them
        (("unstructured", 0.6, "layer"), ("unstructured", 0.85, "global"), 0.5),  # no mask is chosen before the middle
        (("unstructured", 0.4, "layer"), ("2:4", 0.5, "layer"), 0.2), (("4x1", 0.3, "layer"), ("4x1", 0.5, "layer"), 0.2),
    ],
)  # fmt: skip
def test_zeros_that_a_model_begins_with_stay_from_the_first_step_on(
    tmp_path: Path, before: tuple[str, float, str], now: tuple[str, float, str], first: float
) -> None:
    student, (pattern, final, scope), broken = tiny_bert(BertForMaskedLM), now, []
    with torch.no_grad():
        next(iter(encoder_linears(student).values())).weight *= 0.2
    prune_once(student, before[1], before[0], before[2])
    start = pattern_of(student)
    schedule = SparsitySchedule.of_shares(STEPS, final, start=first, end=max(first, 0.6), every=0.15, initial=min(before[1], final))
    method = sparse_method(tiny_bert(BertForMaskedLM))
    method.pruning = GradualPruning(schedule, Pattern.parse(pattern), scope, holds_zeros=True)
    begin = method.begin_step

    def watched(model: PreTrainedModel, step: int, steps: int) -> None:
        begin(model, step, steps)
        broken.append(broken_zeros(model, start))

    method.begin_step = watched
    train(student, method, tiny_blocks(), tmp_path)
    assert broken == [{}] * STEPS and not broken_zeros(student, start)
    layers, zeros = encoder_linears(student), pattern_of(student)
    for name, layer in layers.items():
        held, least = int((~start[name]).sum()), dropped_count(final, layer.weight.numel())
        if scope == "layer":
            assert int((~zeros[name]).sum()) >= max(held, least) and (pattern == "2:4" or int((~zeros[name]).sum()) == max(held, least)), name
        assert pattern != "2:4" or is_2_of_4(layer.weight)
    if scope == "global":
        assert sum(int((~kept).sum()) for kept in zeros.values()) == dropped_count(final, sum(kept.numel() for kept in zeros.values()))


@pytest.mark.parametrize("kind", ["sparse", "onward", "teacher", "gradual", "locked", "int8 min_max", "int8 lsq"])
def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path, kind: str) -> None:
    def parts() -> tuple[PreTrainedModel, Method, Any]:
        if kind == "gradual":
            method = GradualFinetuning(CONFIG, "single_label", forward, pruning=pruning())
            return tiny_bert(BertForSequenceClassification, num_labels=3), method, task_examples()
        if kind == "locked" or kind.startswith("int8"):
            model = tiny_bert(BertForSequenceClassification, num_labels=3)
            prune_once(model, 0.6)
            if kind == "locked":
                return model, LockedFinetuning(CONFIG, "single_label", forward), task_examples()
            lock_pattern(model)
            # killed before activations are rounded, and while they are; their ranges rest at the end
            int8 = Int8Config(quantizer=kind.split()[1], per="row", delay=0.4, freeze=0.8)
            return model, QuantizeAware(CONFIG, "single_label", forward, int8=int8), task_examples()
        model = tiny_bert(BertForMaskedLM)
        if kind == "onward":
            prune_once(model, 0.4, scope="global")
            method = sparse_method(tiny_bert(BertForMaskedLM, seed=1))
            method.pruning.holds_zeros = True
            return model, method, tiny_blocks()
        method = sparse_method(tiny_bert(BertForMaskedLM, seed=1)) if kind == "sparse" else TeacherPreparation(CONFIG, tiny_masking(), 5)
        return model, method, tiny_blocks()

    whole, method, examples = parts()
    history = train(whole, method, examples, tmp_path / "whole")
    for at in (3, 7):
        folder = tmp_path / str(at)
        with pytest.raises(Killed):
            train(*parts(), folder, progress=KillAt(at), checkpoint_seconds=0.0)
        resumed, method, examples = parts()
        assert train(resumed, method, examples, folder) == history
        left, right = whole.state_dict(), resumed.state_dict()
        assert left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def test_a_new_head_learns_alone_first(tmp_path: Path) -> None:
    model, seen = tiny_bert(BertForMaskedLM), {}
    method = TeacherPreparation(CONFIG, tiny_masking(), head_warmup_steps=6)
    start = copy.deepcopy(model.state_dict())
    begin = method.begin_step

    def watched(model: PreTrainedModel, step: int, steps: int) -> None:
        begin(model, step, steps)
        seen[step] = copy.deepcopy(model.state_dict())

    method.begin_step = watched
    train(model, method, tiny_blocks(), tmp_path)
    head = "cls.predictions.transform.dense.weight"
    assert not torch.equal(seen[6][head], start[head])
    for name, tensor in start.items():
        if name.startswith("bert."):
            assert torch.equal(seen[6][name], tensor), name
    after = model.state_dict()
    body = [name for name in start if name.startswith("bert.encoder") and name.endswith("query.weight")]
    assert body and not any(torch.equal(after[name], start[name]) for name in body)
    assert all(parameter.requires_grad for parameter in model.parameters())


LABELS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "single_label": lambda rng: rng.integers(0, 3, 24),
    "multi_label": lambda rng: rng.integers(0, 2, (24, 3)).astype(np.float32),
    "regression": lambda rng: rng.standard_normal(24).astype(np.float32),
    "question_answering": lambda rng: rng.integers(0, 3, (24, 2)),
}


def task_examples(problem_type: str = "single_label", has_teacher: bool = True) -> Examples:
    rng = np.random.default_rng(2)
    tokens = TokenStore.from_lists([rng.integers(5, VOCABULARY, rng.integers(4, 9)) for _ in range(24)])
    width = {"regression": 1}.get(problem_type, 3)
    teacher = rng.standard_normal((24, width)).astype(np.float32) if has_teacher else None
    return Examples(tokens, 0, LABELS[problem_type](rng), teacher_logits=teacher)


@pytest.mark.parametrize("problem_type", LABELS)
def test_a_lock_holds_on_every_kind_of_task(tmp_path: Path, problem_type: str) -> None:
    kind = BertForQuestionAnswering if problem_type == "question_answering" else BertForSequenceClassification
    model = tiny_bert(kind, num_labels={"regression": 1, "question_answering": 2}.get(problem_type, 3))
    prune_once(model, 0.85)
    pattern, start = pattern_of(model), copy.deepcopy(model.state_dict())
    # a reader's targets would have its windows' lengths: it has gold ones here
    examples = task_examples(problem_type, has_teacher=problem_type != "question_answering")
    history = train(model, LockedFinetuning(CONFIG, problem_type, forward), examples, tmp_path)
    assert not broken_zeros(model, pattern) and not find_masks(model)
    assert set(history[-1]["terms"]) == {"ce" if problem_type == "question_answering" else "kd"}
    assert all(record["sparsity"] == history[0]["sparsity"] for record in history)
    after = model.state_dict()
    assert after.keys() == start.keys() and not any(torch.equal(after[f"{name}.weight"], start[f"{name}.weight"]) for name in pattern)


@pytest.mark.parametrize(("task_weight", "kd_weight"), [(0.0, 1.0), (0.3, 0.7), (1.0, 0.0), (0.3, 0.0)])
def test_a_task_is_learned_from_its_teacher_as_told(task_weight: float, kd_weight: float) -> None:
    model = tiny_bert(BertForSequenceClassification, num_labels=3).eval()
    method = LockedFinetuning(CONFIG, "single_label", forward, task_weight=task_weight, kd_weight=kd_weight)
    batch = task_examples().collate(range(6))
    logits = forward(model, batch).logits
    gold = torch.nn.functional.cross_entropy(logits, batch["labels"])
    mine, other = (logits / 2).softmax(-1), (batch["teacher_logits"] / 2).softmax(-1)
    taught = 4 * (other * (other.log() - mine.log())).sum(-1).mean()
    assert sum(method.loss(model, batch).values()).item() == pytest.approx((task_weight * gold + kd_weight * taught).item(), abs=1e-5)
    alone = method.loss(model, {name: tensor for name, tensor in batch.items() if name != "teacher_logits"})
    weight = 1.0 if kd_weight else task_weight  # a teacher that is asked for and is not there: the labels, in full
    assert sum(alone.values()).item() == pytest.approx(weight * gold.item(), abs=1e-6)


def test_layers_are_taught_by_the_dense_model_where_asked() -> None:
    model, guide = (tiny_bert(BertForSequenceClassification, num_labels=3, seed=seed).eval() for seed in (0, 1))
    batch = task_examples().collate(range(6))
    method = LockedFinetuning(CONFIG, "single_label", forward, layer_weight=3.0, guide=guide.requires_grad_(False))
    terms = method.loss(model, batch)
    sum(terms.values()).backward()
    error, mask = 0.0, batch["attention_mask"].bool()
    for n in (1, 2):  # the embeddings' output is no layer's
        own, target = (forward(one, batch, output_hidden_states=True).hidden_states[n][mask] for one in (model, guide))
        error += float((own - target).norm() ** 2 / target.norm() ** 2) / 2
    assert terms["layers"].item() == pytest.approx(3 * error, rel=1e-5)
    plain = LockedFinetuning(CONFIG, "single_label", forward).loss(model, batch)
    assert plain.keys() == {"kd"} and terms["kd"].item() == pytest.approx(plain["kd"].item(), abs=1e-6)
    assert all(parameter.grad is None for parameter in guide.parameters()) and not method.state_dict()


def test_a_reader_is_taught_by_spans() -> None:
    model = tiny_bert(BertForQuestionAnswering).eval()
    method = LockedFinetuning(CONFIG, "question_answering", forward)
    batch = task_examples("question_answering", has_teacher=False).collate(range(4))
    logits_B2L = torch.stack([forward(model, batch).start_logits, forward(model, batch).end_logits], 1).detach()
    assert method.loss(model, {**batch, "teacher_logits": logits_B2L})["kd"].item() == pytest.approx(0, abs=1e-6)
    assert method.loss(model, {**batch, "teacher_logits": logits_B2L.flip(1)})["kd"].item() > 1e-3


def test_pruning_on_the_task_reaches_the_same_sparsity(tmp_path: Path) -> None:
    model = tiny_bert(BertForSequenceClassification, num_labels=3)
    train(model, GradualFinetuning(CONFIG, "single_label", forward, pruning=pruning()), task_examples(), tmp_path)
    sizes = {name: layer.weight.numel() for name, layer in encoder_linears(model).items()}
    assert sparsity_of(model) == {name: dropped_count(0.85, size) / size for name, size in sizes.items()}


@pytest.mark.parametrize(
    ("rewind", "fifths"),
    [
        # masks are chosen anew every second step until step 6: Tw = 12 - 6 free steps, W = 1 of warm-up, slope 1 / 5
        (True, [0, 5, 6, 5, 6, 5, 6, 5, 4, 3, 2, 1]),
        (False, [5, *(5 * left / 11 for left in range(11, 0, -1))]),
    ],
)
def test_pruning_on_the_task_learns_at_the_rate_that_waits_for_it(tmp_path: Path, rewind: bool, fifths: list[float]) -> None:
    rates: list[set[float]] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append({params["lr"] for params in optimizer.param_groups}))
    method = GradualFinetuning(CONFIG, "single_label", forward, pruning=pruning(), rewind=rewind)
    try:
        history = train(tiny_bert(BertForSequenceClassification, num_labels=3), method, task_examples(), tmp_path)
    finally:
        hook.remove()
    assert [rate for (rate,) in rates] == pytest.approx([CONFIG.learning_rate * fifth / 5 for fifth in fifths], abs=1e-9)
    assert [record["learning_rate"] for record in history] == [rate for (rate,) in rates], "what is told is what was used"


SMALL = {
    "block_length": 8, "batch_size": 4, "steps": 12, "teacher_steps": 6, "evaluations": 2, "validation_blocks": 5, "prune_every": 0.1,
    "cpu": True,
}  # fmt: skip


def settings(folder: Path, kind: type[PreTrainedModel] = BertModel, **changes: Any) -> SparsePretrainingConfig:
    if not (folder / "tiny").exists():
        save_masked(folder / "tiny", kind)
    text = save_lines(folder / "train.txt", 80)
    own = {"model": str(folder / "tiny"), "train_file": text, "output_dir": str(folder / "run")}
    return SparsePretrainingConfig(**{**SMALL, **own, **changes})


@pytest.mark.filterwarnings("ignore")
def test_a_run_leaves_a_plain_model_with_exact_zeros(tmp_path: Path) -> None:
    config = settings(tmp_path)
    report = pretrain_sparse(config)
    run = tmp_path / "run"
    model = AutoModelForMaskedLM.from_pretrained(run / "sparse")
    shares = sparsity_of(model)
    assert shares == report["sparsity_by_layer"] and len(shares) == 12
    for name, layer in encoder_linears(model).items():
        assert shares[name] * layer.weight.numel() == dropped_count(0.85, layer.weight.numel())
    assert all(not name.endswith(("original", "mask")) for name in model.state_dict())
    assert report["stages"]["teacher"]["head"] == "new" and report["stages"]["teacher"]["head_warmup_steps"] == 1
    assert report["scores"]["teacher"]["mlm_loss"] > 0 and set(report["scores"]) == {"model", "teacher", "sparse"}
    assert "perplexity" in (run / "report.md").read_text()
    task_model = AutoModelForSequenceClassification.from_pretrained(run / "sparse", num_labels=3)
    assert sparsity_of(task_model) == shares  # its zeros come with it to any task
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file() and "cache" not in path.parts}
    files = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    assert names == {
        "config.yaml", "run.json", "report.json", "report.md", "sparse/README.md",
        *(f"{folder}/{file}" for folder in ("teacher", "sparse") for file in files),
        *(f"work/{name}/history.jsonl" for name in ("teacher", "sparse")),
        *(f"figures/{name}.{ending}" for name in ("curves", "zeros") for ending in ("svg", "png")),
    }  # fmt: skip
    (run / "report.md").unlink()
    assert rebuild_report(run) == run / "report.md" and (run / "report.md").is_file()
    assert "zeros in a layer" in inspect(run, tmp_path / "drawn") and (tmp_path / "drawn" / "curves.svg").is_file()
    without_head = (
        lambda folder: check_settings(folder, "torch", 1), export_folder, lambda folder: load_material(folder, QuantizeConfig())
    )  # of predict and serve, of export, of quantize
    for call in without_head:
        with pytest.raises(ModelError, match="has no head for a task.*--sparse_model"):
            call(run / "sparse")
    before = (run / "sparse" / "model.safetensors").stat().st_mtime_ns
    config.quiet = True
    assert pretrain_sparse(config) == report and (run / "sparse" / "model.safetensors").stat().st_mtime_ns == before
    config.sparsity = 0.9
    with pytest.raises(ConfigError, match="sparsity was 0.85, is 0.9"):
        pretrain_sparse(config)
    config.sparsity = 0.85
    (run / "report.json").unlink()  # as if it had been killed before its end
    text = Path(config.train_file)
    text.write_text(text.read_text().replace("good", "bad"))
    with pytest.raises(ConfigError, match=r"run: the data have changed since \(train: other texts"):
        pretrain_sparse(config)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs the extra 'tracking'")
@pytest.mark.filterwarnings("ignore")
def test_a_run_of_no_task_is_tracked_under_its_models_name(tmp_path: Path) -> None:
    pretrain_sparse(settings(tmp_path, report_to="tensorboard", figures=False))
    folder = tmp_path / "run" / "tracking" / "adasearch-tiny"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = EventAccumulator(str(folder)).Reload().Tags()
    assert {tag.partition("/")[0] for tag in tags["scalars"]} == {"teacher", "sparse"} and tags["tensors"] == ["settings/text_summary"]


def test_a_warm_up_leaves_the_rewound_rate_near_its_peak() -> None:
    given = {"corpora": ["wikitext2"], "prune_start": 0.0, "prune_end": 0.9, "prune_until": 0.95}
    SparsePretrainingConfig(**given, warmup=0.05).check()
    SparsePretrainingConfig(**given, warmup=0.1, rewind=False).check()
    with pytest.raises(ConfigError, match=r"warmup: 0.1 is more than half of the steps outside of pruning \(0.1\)"):
        SparsePretrainingConfig(**given, warmup=0.1).check()


@pytest.mark.filterwarnings("ignore")
def test_layers_alone_teach_without_a_head(tmp_path: Path) -> None:
    report = pretrain_sparse(settings(tmp_path, task_weight=0.0, kd_weight=0.0, layer_weight=1.0, teacher_steps=0, head_warmup_steps=None))
    run = tmp_path / "run"
    teacher, sparse = (AutoModelForMaskedLM.from_pretrained(run / name).eval() for name in ("teacher", "sparse"))
    corpus = load_blocks(settings(tmp_path), AutoTokenizer.from_pretrained(run / "sparse"), cache=run / "cache", progress=Progress())[1]
    errors, squares = np.zeros(2), np.zeros(2)
    for index in range(len(corpus)):  # one block after the other, so that there is no padding
        inputs = {name: tensor for name, tensor in corpus.collate([index]).items() if name != "index"}
        with torch.no_grad():
            own, others = (model(**inputs, output_hidden_states=True).hidden_states[1:] for model in (sparse, teacher))
        errors += [((a - b) ** 2).sum().item() for a, b in zip(own, others)]
        squares += [(b**2).sum().item() for b in others]
    assert report["layer_distances"] == pytest.approx(errors / squares, rel=1e-4) and errors.min() > 0
    text = (run / "report.md").read_text()
    history = [json.loads(line) for line in (run / "work" / "sparse" / "history.jsonl").read_text().splitlines()]
    assert history[-1]["validation"]["layers"] == pytest.approx((errors / squares).mean(), rel=1e-3)
    assert not any(report["can_guess"].values()) and "perplexity" not in text and "layers' distance" in text
    card = (run / "sparse" / "README.md").read_text()
    assert "fill-mask" not in card and "its head is random" in card
    taught = {**report, "can_guess": {"model": False, "teacher": False, "sparse": True}}
    rows = [line.split("|")[1:] for line in scores_table(taught).splitlines()[2:]]
    assert [(row[0].strip(), bool(row[2].strip())) for row in rows] == [("dense teacher", False), ("sparse", True)]
    assert "fill-mask" in model_card(taught) and "random" not in model_card(taught) and "fill-mask" in model_card({**report, "can_guess": True})


@pytest.mark.filterwarnings("ignore")
def test_a_new_head_that_learns_beside_the_zeros_is_asked(tmp_path: Path) -> None:
    report = pretrain_sparse(settings(tmp_path, kd_weight=0.0, layer_weight=1.0, teacher_steps=0, head_warmup_steps=None))
    assert report["can_guess"] == {"model": False, "teacher": False, "sparse": True}


@pytest.mark.filterwarnings("ignore")
def test_a_head_that_never_learned_teaches_no_other_run(tmp_path: Path) -> None:
    """It is in the folder of the model, whose config says that it was only drawn."""
    layers = {"task_weight": 0.0, "layer_weight": 1.0, "figures": False}
    pretrain_sparse(settings(tmp_path, kd_weight=0.0, teacher_steps=0, **layers))
    run, other = tmp_path / "run", str(tmp_path / "other")
    assert load_masked_model(str(run / "teacher"))[1] and load_masked_model(str(run / "sparse"))[1]
    with pytest.raises(ModelError, match="teacher: .*no trained head.*teacher_steps, or --kd_weight 0"):
        pretrain_sparse(settings(tmp_path, teacher=str(run / "teacher"), output_dir=other, **layers))
    with pytest.raises(ConfigError, match="teacher_steps: 0, but .*no trained head"):
        pretrain_sparse(settings(tmp_path, model=str(run / "sparse"), teacher_steps=0, output_dir=other, **layers))
    report = pretrain_sparse(settings(tmp_path, teacher=str(run / "teacher"), kd_weight=0.0, output_dir=other, **layers))
    assert not any(report["can_guess"].values()) and report["model"] == str(tmp_path / "tiny")
    config = settings(tmp_path, kd_weight=0.0, **{**layers, "task_weight": 1.0}, teacher=str(run / "teacher"), output_dir=str(tmp_path / "third"))
    assert pretrain_sparse(config)["can_guess"] == {"model": False, "teacher": False, "sparse": True}
    assert not load_masked_model(str(tmp_path / "third" / "sparse"))[1]


@pytest.mark.filterwarnings("ignore")
def test_a_start_without_a_head_has_its_teachers(tmp_path: Path) -> None:
    model = tiny_bert(BertModel, vocab_size=len(PIECES))
    prune_once(model, 0.5)
    bake_masks(model)
    model.save_pretrained(tmp_path / "half")
    config = settings(tmp_path, BertForMaskedLM, start=str(tmp_path / "half"), figures=False, kd_weight=0.0, task_weight=0.0, layer_weight=1.0)
    pretrain_sparse(config)
    teacher, sparse = (load_masked_model(str(tmp_path / "run" / name))[0] for name in ("teacher", "sparse"))
    assert all(torch.equal(*pair) for pair in zip(head_parameters(teacher), head_parameters(sparse), strict=True))


@pytest.mark.filterwarnings("ignore")
def test_a_family_that_no_task_takes_is_told_before_it_is_trained(tmp_path: Path) -> None:
    save_words(tmp_path / "albert")
    sizes = {"vocab_size": len(PIECES), "embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    AlbertForMaskedLM(AlbertConfig(**sizes, intermediate_size=32, max_position_embeddings=16)).save_pretrained(tmp_path / "albert")
    heard = Heard()
    pretrain_sparse(settings(tmp_path, model=str(tmp_path / "albert"), steps=2, teacher_steps=1, figures=False), heard)
    assert "'albert' model, which `adasearch compress prune-ofa` does not take" in heard.warnings[0]
    assert "locked, as below." in (tmp_path / "run" / "sparse" / "README.md").read_text()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_no_generator_takes_are_refused(tmp_path: Path, seed: int) -> None:
    with pytest.raises(ConfigError, match="seed: "):
        settings(tmp_path, seed=seed).check()


@pytest.mark.filterwarnings("ignore")
def test_the_pruning_meets_other_blocks_and_hides_other_tokens_than_its_teacher_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, mask = [], Masking.__call__

    def watched(masking: Masking, batch: Any, step: int, *share: float) -> Any:
        made = mask(masking, batch, step, *share)
        if step < EVALUATION_STEP:
            hidden.append((made["labels"] != -100, batch["input_ids"]))
        return made

    monkeypatch.setattr(Masking, "__call__", watched)
    pretrain_sparse(settings(tmp_path, figures=False, teacher_steps=3, steps=3, evaluations=1))
    assert len(hidden) == 6
    for (first, ids), (second, other_ids) in zip(hidden[:3], hidden[3:]):
        assert not torch.equal(ids, other_ids) and not torch.equal(first, second)


@pytest.mark.filterwarnings("ignore")
def test_a_killed_run_goes_on_and_a_teacher_can_be_shared(tmp_path: Path) -> None:
    config = settings(tmp_path, figures=False, checkpoint_seconds=0.0)
    pretrain_sparse(config)
    config.output_dir = str(tmp_path / "killed")
    for at, stage in ((4, "teacher"), (9, "prune to 0.85")):
        with pytest.raises(Killed):
            pretrain_sparse(config, KillAt(at, stage))
    pretrain_sparse(config)
    for folder in ("teacher", "sparse"):
        left, right = (AutoModelForMaskedLM.from_pretrained(tmp_path / run / folder).state_dict() for run in ("run", "killed"))
        assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())
    shared = settings(tmp_path, figures=False, teacher=str(tmp_path / "run" / "teacher"), output_dir=str(tmp_path / "shared"))
    pretrain_sparse(shared)
    left, right = (AutoModelForMaskedLM.from_pretrained(tmp_path / run / "sparse").state_dict() for run in ("run", "shared"))
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())
    assert json.loads((tmp_path / "shared" / "run.json").read_text())["stages"]["teacher"]["steps"] == 0


@pytest.mark.filterwarnings("ignore")
def test_a_sparse_model_goes_on_to_more_zeros_and_keeps_its_own(tmp_path: Path) -> None:
    pretrain_sparse(settings(tmp_path, sparsity=0.6, scope="global"))
    teacher, onward = str(tmp_path / "run" / "teacher"), {"prune_start": 0.3, "output_dir": str(tmp_path / "more")}
    more = settings(tmp_path, start=str(tmp_path / "run"), teacher=teacher, **onward)
    report = pretrain_sparse(more)
    first, second = (AutoModelForMaskedLM.from_pretrained(tmp_path / run / "sparse") for run in ("run", "more"))
    history = [json.loads(line) for line in (tmp_path / "more" / "work" / "sparse" / "history.jsonl").read_text().splitlines()]
    assert min(record["sparsity"] for record in history) >= 0.6 and report["sparsity"] >= 0.85
    kept, layers = pattern_of(first), encoder_linears(second)
    assert all(not layers[name].weight[~kept[name]].any() for name in layers) and "from " + str(tmp_path / "run") in (tmp_path / "more" / "report.md").read_text()
    save_masked(tmp_path / "wide", BertModel, hidden_size=32)
    for changes, says in (
        ({"sparsity": 0.5}, "has 60.01% zeros, more than sparsity 0.5; choices: 0.601 or more"), ({"start": str(tmp_path / "wide")}, "has other layers than"),
        ({"pattern": "4x1"}, "pattern: 4x1, but .*no such blocks"),
    ):  # fmt: skip
        with pytest.raises(AdasearchError, match=says):
            pretrain_sparse(dataclasses.replace(more, output_dir=str(tmp_path / "other"), **changes))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train_file": None}, "no text is given"),
        ({"sparsity": 0.6, "pattern": "2:4"}, "sparsity: 0.6 is out of range; choices: 0 to 0.5 with pattern 2:4"),
        ({"pattern": "3:5", "sparsity": 0.3}, "pattern 3:5: a weight of 16 outputs by 16 inputs"),
        ({"block_length": 32}, "block_length: 32 is out of range; choices: 4 to 16"),
        ({"model": "nowhere/at/all"}, "'nowhere/at/all'"),
        ({"teacher_steps": 0}, "teacher_steps: 0, but"),
        ({"prune_until": 0.3}, "prune_until: 0.3 is out of range"),
        ({"scope": "all"}, "scope: 'all' is not known; choices: layer, global"),
        ({"task_weight": 0, "kd_weight": 0, "layer_weight": 0}, "nothing is learned"),
        ({"corpora": ["imdbb"]}, "corpora[0]: 'imdbb' is not known (did you mean 'imdb'?)"),
        ({"train_file": "absent.txt"}, "absent.txt"),
        ({"stream_tokens": 100}, "stream_tokens: 100 without stream"),
        ({"teacher": "nowhere/at/all"}, "teacher: 'nowhere/at/all'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(AdasearchError) as error:
        pretrain_sparse(settings(tmp_path, **changes))
    assert says in str(error.value)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_model_with_a_decoder_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    save_words(tmp_path / "bart")
    sizes = {"vocab_size": len(PIECES), "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
    config = BartConfig(**sizes, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=16)
    BartForConditionalGeneration(config).save_pretrained(tmp_path / "bart")
    with pytest.raises(ModelError, match="model: .* has an encoder and a decoder"):
        pretrain_sparse(settings(tmp_path, model=str(tmp_path / "bart")))


@pytest.mark.parametrize("stage", ["teacher", "sparse"])
def test_a_stage_is_noted_before_its_folder_is_there(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is there is not made again: what is not noted by then stays unknown."""
    done: list[str] = []
    for name in ("note_stage", "_save"):
        monkeypatch.setattr(f"adasearch.sparse_pretraining_run.{name}", lambda *_, name=name, **__: done.append(name))
    monkeypatch.setattr("adasearch.sparse_pretraining_run._fit", lambda *_, **__: {"steps": 1})
    monkeypatch.setattr("adasearch.sparse_pretraining_run._steps_before", lambda _: 0)
    config = settings(tmp_path, figures=False)
    model = load_masked_model(config.model)[0]
    monkeypatch.setattr("adasearch.sparse_pretraining_run.load_masked_model", lambda *_, **__: (model, False))
    run = SimpleNamespace(
        config=config, folder=tmp_path, source=config.model, masking=tiny_masking(), score=lambda _: {},
        accelerator=SimpleNamespace(device=torch.device("cpu"), mixed_precision="no"),
    )  # fmt: skip
    {"teacher": _prepare_teacher, "sparse": _prune}[stage](run)
    assert done == ["note_stage", "_save"]
