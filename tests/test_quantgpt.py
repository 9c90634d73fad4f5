"""QuantGPT's training: what its terms mean, what learns and how, exact resumption, settings and their errors."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from hearing import KillAt, Killed
from tiny_language import tiny_examples, tiny_model

from adasearch.errors import ConfigError
from adasearch.fit import fit
from adasearch.language import language_outputs
from adasearch.methods.quantgpt import QuantGpt, _last_states, visits_again
from adasearch.quantgpt_config import QuantGptConfig
from adasearch.quantgpt_plots import token_similarity
from adasearch.quantizers import WEIGHT_QUANTIZERS

KINDS = ("gpt2", "bart")


def settings(**changes: Any) -> QuantGptConfig:
    return QuantGptConfig(**{"model": "tiny", "steps": 7, "batch_size": 4, "learning_rate": 1e-2, "scale_learning_rate": 1e-2, **changes})


def parts(kind: str, **changes: Any) -> tuple[Any, QuantGpt, Any]:
    """A student that starts as its teacher, the method, the examples."""
    # wide weights: a teacher that is sure of something, so that there is something to learn
    student, examples = tiny_model(kind, **{"initializer_range" if kind == "gpt2" else "init_std": 0.3}), tiny_examples(kind)
    return student, QuantGpt(settings(**changes), copy.deepcopy(student), examples), examples


def train(folder: Path, kind: str, kill_at: float = math.inf, **changes: Any) -> tuple[Any, QuantGpt, list[dict[str, Any]]]:
    student, method, examples = parts(kind, **changes)
    history = fit(
        student, method, {"train": examples}, method.config, seed=3, folder=folder, accelerator=Accelerator(cpu=True),
        progress=KillAt(kill_at), title="train", checkpoint_seconds=0.0,
    )  # fmt: skip
    return student, method, history


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bank", ["position", "token"])
def test_a_killed_run_ends_with_the_weights_and_the_bank_of_the_undisturbed_one(tmp_path: Path, kind: str, bank: str) -> None:
    changes = {"bank": bank, "negatives_count": 2}  # random negatives: torch's generator must come back as well
    whole, method, history = train(tmp_path / "whole", kind, **changes)
    for at in (1, 5):
        with pytest.raises(Killed):
            train(tmp_path / "killed", kind, at, **changes)
    again, method_again, history_again = train(tmp_path / "killed", kind, **changes)
    assert history_again == history and len(history) == 7
    for left, right in ((whole, again), (method, method_again)):
        expected, found = left.state_dict(), right.state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert method.bank is not None and method.bank.is_known_K.any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_stays_as_it_is_and_out_of_the_checkpoint(tmp_path: Path, kind: str) -> None:
    before = parts(kind)[0].state_dict()
    student, method, _ = train(tmp_path, kind)
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.teacher.state_dict().items())
    assert not method.teacher.training
    assert set(method.state_dict()) == {"bank.states_KD", "bank.is_known_K"}
    assert not torch.equal(student.state_dict()["lm_head.parametrizations.weight.original"], before["lm_head.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_unquantised_copy_is_at_the_minimum_of_the_logits_term(kind: str) -> None:
    student, method, examples = parts(kind, bits="32-32-32", lambda_contrastive=0.0)
    method.attach(student)
    student.eval()
    batch = examples.collate([0, 1, 11])
    loss = method.loss(student, batch)["logits"]
    logits_BLV = method.teacher(**_inputs(kind, method, batch)).logits
    entropy_BL = torch.distributions.Categorical(logits=logits_BLV).entropy()
    assert loss.item() == pytest.approx(entropy_BL[batch["labels"] != -100].mean().item(), rel=1e-5)
    loss.backward()
    assert max(p.grad.abs().max().item() for p in student.parameters() if p.grad is not None) < 1e-6  # 0 but for rounding


def _inputs(kind: str, method: QuantGpt, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What transformers needs: it shifts a target by itself when it is given labels."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return {**inputs, "labels": batch["labels"]} if kind == "bart" else inputs


@pytest.mark.parametrize(("quantizer", "kind"), [*((name, "gpt2") for name in WEIGHT_QUANTIZERS if name != "bwn"), ("dynamic_scale", "bart")])
def test_training_is_finite_from_the_first_step_and_gets_nearer_to_the_teacher(tmp_path: Path, kind: str, quantizer: str) -> None:
    _, _, history = train(tmp_path, kind, quantizer=quantizer, steps=20, bank="none")
    losses = [record["terms"]["logits"] for record in history]
    assert all(torch.isfinite(torch.tensor(losses))) and sum(losses[-5:]) < sum(losses[:5])
    assert ("scales" in history[0]) == (quantizer in ("dynamic_scale", "pact", "lsq"))


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({}, {"logits", "contrastive"}),
        ({"lambda_contrastive": 0.0}, {"logits"}),
        ({"distill": False, "lambda_contrastive": 0.0}, {"ce"}),
        ({"distill": False}, {"ce", "contrastive"}),
    ],
)
def test_terms_can_be_left_out(changes: dict[str, Any], terms: set[str]) -> None:
    student, method, examples = parts("gpt2", **changes)
    method.attach(student)
    assert set(method.loss(student, examples.collate([0, 1]))) == terms


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_terms_are_those_written_out_each_times_its_own_weight(kind: str) -> None:
    changes = {"bits": "2-2-8", "lambda_contrastive": 0.3, "temperature": 0.2, "bank": "none"}
    student, method, examples = parts(kind, **changes)
    method.attach(student)
    batch = examples.collate([0, 1, 11])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    own, target = (model(**inputs, output_hidden_states=True) for model in (student.eval(), method.teacher))
    mask, name = batch["labels"] != -100, "decoder_hidden_states" if kind == "bart" else "hidden_states"
    cross = -(target.logits.softmax(-1) * own.logits.log_softmax(-1)).sum(-1)[mask].mean().item()
    costs = []
    for state_LD, teacher_LD, is_taught_L in zip(own[name][-1], target[name][-1], mask):
        mine, theirs = state_LD[is_taught_L], teacher_LD[is_taught_L]
        cosines = F.cosine_similarity(mine[:, None], theirs[None], dim=-1)  # each with every token of its text; its own is the right one
        costs.append(F.cross_entropy(cosines / 0.2, torch.arange(len(mine)), reduction="none"))
    contrastive = 0.3 * torch.cat(costs).mean().item()
    found = {name: term.item() for name, term in method.loss(student, batch).items()}
    assert found == pytest.approx({"logits": cross, "contrastive": contrastive}, rel=1e-4)
    method.settings.distill = False
    found = {name: term.item() for name, term in method.loss(student, batch).items()}
    assert found == pytest.approx({"ce": own.loss.item(), "contrastive": contrastive}, rel=1e-4)  # transformers' own loss


def test_the_contrastive_term_is_weighted_and_smaller_for_nearer_states() -> None:
    found = {}
    for bits in ("32-32-32", "2-2-8"):
        for weight in (0.1, 0.2):
            student, method, examples = parts("gpt2", bits=bits, lambda_contrastive=weight, bank="none")
            method.attach(student)
            found[bits, weight] = method.loss(student.eval(), examples.collate([0, 1]))["contrastive"].item()
    assert found["2-2-8", 0.2] == pytest.approx(2 * found["2-2-8", 0.1])
    assert found["32-32-32", 0.1] < found["2-2-8", 0.1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_bank_by_position_has_a_row_for_every_token_that_is_taught(kind: str) -> None:
    student, method, examples = parts(kind)
    method.attach(student)
    store = examples.tokens if kind == "gpt2" else examples.targets
    method.loss(student, examples.collate([3, 7]))
    known = [number for number in range(len(store)) for _ in range(store.lengths[number]) if number in (3, 7)]
    expected_K = torch.zeros(len(store.ids), dtype=torch.bool)
    for number in (3, 7):
        expected_K[store.offsets[number] : store.offsets[number + 1]] = True
    assert known and torch.equal(method.bank.is_known_K, expected_K)


def test_an_untied_bart_s_negatives_are_rows_of_the_table_that_its_decoder_reads() -> None:
    """Its shared table, which nothing reads, may hold anything."""
    teacher = tiny_model("bart", tie_word_embeddings=False)
    student, examples = copy.deepcopy(teacher), tiny_examples("bart")
    torch.nn.init.constant_(teacher.model.shared.weight, torch.nan)
    method = QuantGpt(settings(negatives="vocabulary"), teacher, examples)
    method.attach(student)
    assert method.loss(student, examples.collate([0, 1]))["contrastive"].isfinite()
    assert not np.isnan(token_similarity(teacher, torch.arange(4, 8), "embeddings")).any()


def test_the_bank_by_token_knows_the_ids_that_were_read() -> None:
    for kind in KINDS:
        student, method, examples = parts(kind, bank="token")
        method.attach(student)
        batch = examples.collate([2])
        method.loss(student, batch)
        read = set(batch["input_ids"][0].tolist()) if kind == "gpt2" else {2, *batch["labels"][0, :-1].tolist()}
        assert set(method.bank.is_known_K.nonzero().flatten().tolist()) == read


@pytest.mark.parametrize("kind", KINDS)
def test_the_states_compared_are_those_the_head_reads(kind: str) -> None:
    student, _, examples = parts(kind)
    output = language_outputs(student.eval(), examples.collate([0, 1]), output_hidden_states=True)
    torch.testing.assert_close(student.lm_head(_last_states(output)), output.logits)  # BART's bias of the logits is 0 at first


def test_a_second_visit_mixes_and_a_first_does_not() -> None:
    student, method, examples = parts("gpt2")
    method.attach(student)
    student.eval()
    batch = examples.collate([0, 1])
    first, second = (method.loss(student, batch)["contrastive"].item() for _ in range(2))
    assert second == pytest.approx(first, rel=1e-3)  # the same state, averaged with itself in float16
    with torch.no_grad():
        method.bank.states_KD.neg_()
    assert method.loss(student, batch)["contrastive"].item() > 1.5 * first


def test_a_bank_by_position_that_would_never_be_asked_is_not_made_and_a_large_one_is_refused() -> None:
    assert not visits_again(settings(steps=3), 12) and visits_again(settings(steps=4), 12)
    assert parts("gpt2", steps=3)[1].bank is None
    with pytest.raises(ConfigError, match=r"bank: position: 92 tokens x 16 .* choices: .*--bank token"):
        parts("gpt2", bank_gib=1e-9)


def test_scales_learn_in_a_group_of_their_own_without_decay() -> None:
    student, method, _ = parts("bart", weight_decay=0.3)
    method.attach(student)
    weights, scales = method.groups(student)
    assert [scales.learning_rate, weights.learning_rate] == [1e-2, 1e-2]
    assert scales.params == [{"params": method.quantized.scales(), "weight_decay": 0.0}]
    held = [id(p) for group in (weights, scales) for params in group.params for p in params["params"]]
    assert sorted(held) == sorted(id(p) for p in student.parameters())  # all, each once
    min_max, method_min_max, _ = parts("gpt2", quantizer="min_max")
    method_min_max.attach(min_max)
    assert [group.name for group in method_min_max.groups(min_max)] == ["weights"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": ""}, "model: none given"),
        ({"bank": "disk"}, "bank: 'disk' is not known; choices: position, token, none"),
        ({"negatives": "all"}, "negatives: 'all' is not known; choices: teacher, student, vocabulary"),
        ({"per": "column"}, "per: 'column' is not known"),
        ({"temperature": 0.0}, "temperature: 0.0 is out of range"),
        ({"stride": 200}, "stride: 200 is out of range; choices: 1 to 128"),
        ({"momentum": 1.0}, "momentum: 1.0 is out of range"),
        ({"data_dir": "a", "train_file": "b"}, "choices: one of the two"),
        ({"quantizer": "min_max", "scale_init": "mse"}, "scale_init: mse: min_max learns no scale"),
        ({"quantizer": "lsq", "detach_mean": True}, "detach_mean: lsq has no such mean"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings(**changes).check()
    assert says in str(error.value)


def test_settings_reach_the_quantiser() -> None:
    student, method, _ = parts("gpt2", scale_init="1.5", detach_mean=True, embedding_per="row")
    method.attach(student)
    table = method.quantized.quantizers["transformer.wte.weight"]
    assert table.detach_mean and table.gamma.shape == (40, 1) and torch.all(table.gamma == 1.5)
    assert method.quantized.quantizers["transformer.h.0.attn.c_attn.weight"].gamma.shape == ()
