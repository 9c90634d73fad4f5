"""Laws of the teacher: its labels are the task's, its probes are what scikit-learn finds, its word is computed once.

Dimensions: N texts, B batch, L tokens, D hidden, P levels, C labels.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hearing import Killed
from sklearn.linear_model import LogisticRegression, Ridge
from tiny import tiny_architecture, tiny_config
from tiny_task import WORDS, rows, write_teacher
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLNetConfig,
)

from adasearch import outputs
from adasearch.errors import ModelError
from adasearch.files import write_array
from adasearch.lesson import lesson_rows, soft_label_logits, teach
from adasearch.outputs import cached_outputs, outputs_of
from adasearch.progress import Progress
from adasearch.student import AdasearchForSequenceClassification
from adasearch.tasks import Task
from adasearch.teacher import PROBE_L2, Teacher, fit_probes, load_teacher, needs_finetuning, tables_of
from adasearch.texts import Split
from adasearch.tokens import Examples, TokenStore

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("encoder"))


def classifier(folder: Path, encoder: Path, names: Sequence[str] | None, count: int = 2) -> str:
    """A sequence classifier of random weights with those label names (None: transformers' own), saved in ``folder``."""
    labels = {"num_labels": count} if names is None else {"id2label": dict(enumerate(names))}
    BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), **SHAPE, **labels)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    return str(folder)


def task_with(*names: str) -> Task:
    empty = Split([])
    return Task("moods", "single_label", names, ("accuracy",), empty, empty)


def teacher_of(encoder: Path, **changes: int) -> Teacher:
    config = BertConfig(vocab_size=len(WORDS), num_labels=3, **{**SHAPE, **changes})
    return Teacher(BertForSequenceClassification(config).eval(), AutoTokenizer.from_pretrained(encoder))


def examples_of(teacher: Teacher, count: int) -> Examples:
    texts = [row["text"] for row in rows(count, seed=3)]
    return Examples(TokenStore.from_lists(teacher.tokenizer(texts)["input_ids"]), teacher.tokenizer.pad_token_id)


# --- a checkpoint and a task ---


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2"])
def test_outputs_are_put_in_the_order_of_the_task(family: str, tmp_path: Path, encoder: Path) -> None:
    """The same names, in any case: each label keeps its logits, here and in a copy that is saved."""
    names, task = ("Other", "COMPLAINT", "question"), task_with("complaint", "other", "question")
    sizes = {
        "bert": SHAPE, "roberta": SHAPE, "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
        "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32},
    }[family]  # fmt: skip
    config = AutoConfig.for_model(family, vocab_size=len(WORDS), pad_token_id=0, id2label=dict(enumerate(names)), initializer_range=1.0, **sizes)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "given")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "given")
    teacher = load_teacher(str(tmp_path / "given"), task, is_finetuned=True)
    teacher.model.save_pretrained(tmp_path / "kept")
    teacher.tokenizer.save_pretrained(tmp_path / "kept")
    batch = examples_of(teacher, 12).collate(range(12))
    given, kept = (AutoModelForSequenceClassification.from_pretrained(tmp_path / name).eval() for name in ("given", "kept"))
    old_BC = given(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    for model in (teacher.model.eval(), kept):
        new_BC = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert torch.allclose(new_BC, old_BC[:, [1, 0, 2]], atol=1e-5) and not torch.allclose(new_BC, old_BC, atol=1e-3)
        assert model.config.id2label == {0: "complaint", 1: "other", 2: "question"} and model.config.label2id["other"] == 1
    assert "in the order Other, COMPLAINT, question; its outputs were put in the task's: complaint, other, question" in teacher.note
    assert not load_teacher(str(tmp_path / "kept"), task, is_finetuned=True).note


def test_outputs_that_do_not_follow_the_rows_of_a_layer_are_refused(tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that does something with its last layer's outputs cannot be reordered there, and stays what it was."""
    path, task = classifier(tmp_path, encoder, ("POSITIVE", "Negative")), task_with("negative", "positive")
    plain, scale_C, heads = BertForSequenceClassification.forward, torch.tensor([1.0, 3.0]), []

    def scaled(self: BertForSequenceClassification, *args: Any, **kwargs: Any) -> Any:
        heads.append(self.classifier.weight)
        output = plain(self, *args, **kwargs)
        output.logits = output.logits * scale_C
        return output

    monkeypatch.setattr(BertForSequenceClassification, "forward", scaled)
    with pytest.raises(ModelError) as caught:
        load_teacher(path, task, is_finetuned=True)
    message = str(caught.value)
    assert path in message and "\n" not in message
    assert "POSITIVE, Negative, task 'moods' in the order negative, positive" in message
    assert "--finetune.when always" in message
    assert torch.equal(heads[-1], BertForSequenceClassification.from_pretrained(path).classifier.weight)
    assert load_teacher(path, task, is_finetuned=False).model.config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.parametrize("names", [("Negative", "POSITIVE"), None, ("bad", "good"), ("positive", "other")])
def test_labels_in_the_same_order_or_of_other_names_pass(
    tmp_path: Path, encoder: Path, names: tuple[str, ...] | None
) -> None:
    """LABEL_0 and words that are not the task's say nothing. What is loaded speaks of the task's; equal weights."""
    path = classifier(tmp_path, encoder, names)
    model = load_teacher(path, task_with("negative", "positive"), is_finetuned=True).model
    assert model.config.id2label == {0: "negative", 1: "positive"} and model.config.label2id["positive"] == 1
    saved = BertForSequenceClassification.from_pretrained(path)
    assert torch.equal(model.classifier.weight, saved.classifier.weight)


@pytest.mark.parametrize(
    ("declared", "says"),
    [({"problem_type": "multi_label_classification"}, "of problem type multi_label_classification"), ({"is_pair": True}, "of pairs of texts: True")],
)
def test_a_model_of_another_kind_of_task_is_refused_unless_fine_tuned(declared: dict[str, Any], says: str, tmp_path: Path, encoder: Path) -> None:
    path, task = classifier(tmp_path, encoder, ("bad", "good")), task_with("bad", "good")
    load_teacher(path, task, is_finetuned=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | declared))
    with pytest.raises(ModelError, match=f"is a model {says}, task 'moods' asks for"):
        load_teacher(path, task, is_finetuned=True)
    load_teacher(path, task, is_finetuned=False)


def test_a_model_with_code_of_its_own_is_read_where_that_is_allowed(tmp_path: Path) -> None:
    """To see whether it has a head its configuration is read, which is code as well."""
    (tmp_path / "own.py").write_text("from transformers import BertConfig\nclass OwnConfig(BertConfig):\n    model_type = 'own_of_test'\n")
    settings = {"model_type": "own_of_test", "auto_map": {"AutoConfig": "own.OwnConfig"}, "architectures": ["OwnForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert needs_finetuning(str(tmp_path), "auto", True) is False
    with pytest.raises(ModelError, match="trust_remote_code"):
        needs_finetuning(str(tmp_path), "auto")


def test_order_is_the_numbers_not_the_letters(tmp_path: Path, encoder: Path) -> None:
    """Ten labels and more: as keys of the JSON, "10" comes before "2"."""
    names = [f"topic{i:02d}" for i in range(12)]
    path = classifier(tmp_path, encoder, names)
    assert load_teacher(path, task_with(*names), is_finetuned=True).model.config.num_labels == 12
    turned = load_teacher(path, task_with(*names[::-1]), is_finetuned=True).model
    assert torch.equal(turned.classifier.weight, BertForSequenceClassification.from_pretrained(path).classifier.weight.flip(0))


def test_another_number_of_labels_is_refused_unless_fine_tuned(tmp_path: Path, encoder: Path) -> None:
    path, task = classifier(tmp_path, encoder, ("sad", "glad", "calm")), task_with("negative", "positive")
    expected = r"has 3 labels \(sad, glad, calm\), task 'moods' has 2 \(negative, positive\); .*--finetune.when always"
    with pytest.raises(ModelError, match=expected):
        load_teacher(path, task, is_finetuned=True)
    teacher = load_teacher(path, task, is_finetuned=False)
    assert teacher.model.classifier.weight.shape == (2, 16)
    kept = BertForSequenceClassification.from_pretrained(path)
    assert torch.equal(teacher.model.get_input_embeddings().weight, kept.get_input_embeddings().weight)


def test_a_head_that_was_never_trained_is_no_teacher(encoder: Path) -> None:
    task = task_with("negative", "positive")
    with pytest.raises(ModelError, match=r"has no trained head \(classifier.bias, classifier.weight missing\).*--finetune.when always"):
        load_teacher(str(encoder), task, is_finetuned=True)
    assert load_teacher(str(encoder), task, is_finetuned=False).model.classifier.weight.shape == (2, 16)


def test_only_a_sequence_classifier_needs_no_fine_tuning(tmp_path: Path, encoder: Path) -> None:
    path = classifier(tmp_path, encoder, None)
    choices = ("auto", "always", "never")
    assert [needs_finetuning(path, when) for when in choices] == [False, True, False]
    assert [needs_finetuning(str(encoder), when) for when in choices] == [True, True, False]
    absent = str(tmp_path / "absent")
    with pytest.raises(ModelError, match=f"teacher: '{absent}' cannot be loaded .*choices: a folder, a hub name"):
        load_teacher(absent, task_with("a", "b"), is_finetuned=False)


def test_a_searched_student_is_no_teacher(tmp_path: Path, encoder: Path) -> None:
    AdasearchForSequenceClassification(tiny_config(tiny_architecture())).save_pretrained(tmp_path / "student")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "student")
    for is_finetuned in (False, True):
        with pytest.raises(ModelError, match="teacher: .*student' is a searched student, .*; choices: a transformer"):
            load_teacher(str(tmp_path / "student"), task_with("a", "b", "c"), is_finetuned=is_finetuned)


def test_a_model_that_reads_the_last_position_is_refused(tmp_path: Path, encoder: Path) -> None:
    path = str(tmp_path / "xlnet")
    XLNetConfig(vocab_size=len(WORDS), d_model=16, n_layer=1, n_head=2, d_inner=16).save_pretrained(path)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(path)
    with pytest.raises(ModelError, match="teacher: .*xlnet' reads the last position of a batch .xlnet., which of the shorter texts is padding"):
        load_teacher(path, task_with("a", "b"), is_finetuned=False)


def test_a_decoder_is_told_the_tokenizers_padding(tmp_path: Path, encoder: Path) -> None:
    """It reads the last token that is no padding; without that id it refuses every batch of more than one text."""
    path, tokenizer = str(tmp_path / "decoder"), AutoTokenizer.from_pretrained(encoder)
    GPT2Model(GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=32, pad_token_id=None)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    teacher = load_teacher(path, task_with("a", "b"), is_finetuned=False)
    batch = tokenizer(["the film was great", "dull"], padding=True, return_tensors="pt")
    logits = teacher.model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    alone = teacher.model(tokenizer("dull", return_tensors="pt")["input_ids"]).logits
    assert logits.shape == (2, 2) and torch.allclose(logits[1], alone[0], atol=1e-5)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(path)
    with pytest.raises(ModelError, match="teacher: .*decoder': its tokenizer has no padding token"):
        load_teacher(path, task_with("a", "b"), is_finetuned=False)


def test_an_encoder_with_a_decoder_is_refused_before_it_is_tuned(tmp_path: Path, encoder: Path) -> None:
    path = str(tmp_path / "bart")
    BartConfig(vocab_size=len(WORDS), d_model=16, encoder_layers=1, decoder_layers=1).save_pretrained(path)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(path)
    with pytest.raises(ModelError, match="teacher: .*bart' is an encoder with a decoder .bart., whose levels cannot be probed"):
        load_teacher(path, task_with("a", "b"), is_finetuned=False)


# --- what it hears and says ---


def test_token_types_by_hand_and_as_the_tokenizer_gives_them(encoder: Path) -> None:
    teacher = teacher_of(encoder)
    ids_BL = torch.tensor([[2, 5, 3, 6, 7, 3, 0], [2, 5, 6, 3, 0, 0, 0]])  # [CLS] = 2, [SEP] = 3, [PAD] = 0
    expected = [[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0]]
    assert teacher.token_types(ids_BL)["token_type_ids"].tolist() == expected
    batch = teacher.tokenizer(
        ["good film", "the plot was dull", "fine"], ["bad cast", "and", "it was very lovely"],
        padding=True, return_token_type_ids=True, return_tensors="pt",
    )  # fmt: skip
    assert torch.equal(teacher.token_types(batch["input_ids"])["token_type_ids"], batch["token_type_ids"])
    assert teacher_of(encoder, type_vocab_size=1).token_types(ids_BL) == {}


def test_a_decoder_is_probed_where_it_has_read_the_whole_text(encoder: Path) -> None:
    """The first token of a decoder is the same whatever follows; its head reads the last."""
    bert = teacher_of(encoder)
    settings = GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=32, pad_token_id=0, num_labels=2)
    decoder = Teacher(GPT2ForSequenceClassification(settings).eval(), bert.tokenizer)
    assert decoder.is_causal and not bert.is_causal
    ids_BL, mask_BL = examples_of(bert, 5).tokens.pad(range(5), 0)
    assert len(set(mask_BL.sum(1).tolist())) > 1  # of several lengths
    with torch.no_grad():
        logits_BC, features_BPD = decoder.logits_and_features(ids_BL, mask_BL)
        for row in range(5):
            output = decoder.model.transformer(input_ids=ids_BL[row : row + 1, : int(mask_BL[row].sum())], output_hidden_states=True)
            torch.testing.assert_close(features_BPD[row, 1:], torch.stack([layer[0, -1] for layer in output.hidden_states[1:]]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(decoder.model.score(features_BPD[:, -1]), logits_BC)  # what the head itself reads


def test_levels_are_those_of_each_text_alone(encoder: Path) -> None:
    """Padding must not enter the mean; the probes are linear maps of the levels."""
    teacher = teacher_of(encoder)
    ids_BL, mask_BL = examples_of(teacher, 5).tokens.pad(range(5), 0)
    with torch.no_grad():
        logits_BC, features_BPD = teacher.logits_and_features(ids_BL, mask_BL)
        assert features_BPD.shape == (5, teacher.levels, 16) == (5, 3, 16)
        for row in range(5):
            alone = ids_BL[row : row + 1, : int(mask_BL[row].sum())]
            output = teacher.model(input_ids=alone, output_hidden_states=True)
            first, *layers = (hidden[0] for hidden in output.hidden_states)
            expected_PD = torch.stack([first.mean(0), *(layer[0] for layer in layers)])
            torch.testing.assert_close(features_BPD[row], expected_PD, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(logits_BC[row], output.logits[0], rtol=1e-4, atol=1e-5)
        teacher.probe_weights_PCD, teacher.probe_biases_PC = torch.randn(3, 4, 16), torch.randn(3, 4)
        again_BC, probes_BPC = teacher.outputs(ids_BL, mask_BL)
    torch.testing.assert_close(again_BC, logits_BC)
    for level, (weight_CD, bias_C) in enumerate(zip(teacher.probe_weights_PCD, teacher.probe_biases_PC)):
        linear = nn.functional.linear(features_BPD[:, level], weight_CD, bias_C)
        torch.testing.assert_close(probes_BPC[:, level], linear, rtol=1e-4, atol=1e-5)


# --- probes ---


def features(count: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two levels of features of different scales (N, 2, 6), the same with mean 0 and variance 1, and noise (N, 3)."""
    rng = np.random.default_rng(0)
    raw_NPD = rng.normal(size=(count, 2, 6)) @ rng.normal(size=(6, 6)) * np.geomspace(0.1, 30, 6) + 5
    raw_NPD = raw_NPD.astype(np.float32)
    return raw_NPD, (raw_NPD - raw_NPD.mean(0)) / raw_NPD.std(0, ddof=1), rng.gumbel(size=(count, 3))


@pytest.mark.parametrize("count", [2, 3])
def test_probes_are_the_logistic_regression(count: int) -> None:
    """mean CE + l |W|^2, where scikit-learn says C sum CE + |w|^2 / 2: C = 1 / (2 N l).

    For two classes it has one vector w = W_1 - W_0, and at the optimum W_1 = -W_0, so |W|^2 = |w|^2 / 2: C = 1 / (N l).
    The noise makes the classes overlap. L-BFGS stops when the loss moves by less than 1e-9: probabilities within 0.3%.
    """
    raw_NPD, standard_NPD, noise_NC = features()
    labels = (standard_NPD[:, 0, :count] + noise_NC[:, :count]).argmax(1)
    weights_PCD, biases_PC = fit_probes(raw_NPD, labels, "single_label", count, Progress())
    for level in range(2):
        x_ND, scale = standard_NPD[:, level].astype(np.float64), 2 if count > 2 else 1
        model = LogisticRegression(C=1 / (scale * len(labels) * PROBE_L2), tol=1e-10, max_iter=10_000)
        expected_NC = model.fit(x_ND, labels).predict_log_proba(x_ND)
        found_NC = (torch.from_numpy(raw_NPD[:, level]) @ weights_PCD[level].T + biases_PC[level]).log_softmax(1)
        np.testing.assert_allclose(found_NC, expected_NC, atol=3e-3)
        assert model.score(x_ND, labels) < 0.99  # not separable


def test_probes_are_summed_in_full_precision_where_the_teacher_is_not(encoder: Path) -> None:
    """A first token that hardly differs between texts has large folded weights: bfloat16 products would be off by more than they say."""
    teacher = teacher_of(encoder)
    ids_BL, mask_BL = examples_of(teacher, 8).tokens.pad(range(8), 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, features_BPD = teacher.logits_and_features(ids_BL, mask_BL)
    mean_PD, scale = features_BPD.float().mean(0), 1e-4
    teacher.probe_weights_PCD = torch.randn(mean_PD.shape[0], 2, mean_PD.shape[1]) / scale
    teacher.probe_biases_PC = -torch.einsum("pd,pcd->pc", mean_PD, teacher.probe_weights_PCD)
    wanted_BPC = torch.einsum("bpd,pcd->bpc", (features_BPD.float() - mean_PD).double(), teacher.probe_weights_PCD.double())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, probes_BPC = teacher.outputs(ids_BL, mask_BL)
    assert torch.allclose(probes_BPC.double(), wanted_BPC, rtol=0, atol=1e-3 * wanted_BPC.abs().max().item())


def test_probes_of_several_labels_and_of_amounts() -> None:
    """Multi-label: one logistic regression a label, its loss a Cth of the whole. Regression: ridge; NaN is left out."""
    raw_NPD, standard_NPD, noise_NC = features()
    amounts = (standard_NPD[:, 0, 0] + noise_NC[:, 0]).astype(np.float32)
    is_known = np.arange(len(amounts)) % 5 > 0
    hidden = np.where(is_known, amounts, np.nan).astype(np.float32)
    weights_PCD, biases_PC = fit_probes(raw_NPD, hidden, "regression", 1, Progress())
    found = torch.from_numpy(raw_NPD[:, 0]) @ weights_PCD[0, 0] + biases_PC[0, 0]
    ridge = Ridge(alpha=len(amounts) * PROBE_L2).fit(standard_NPD[is_known, 0], amounts[is_known])
    np.testing.assert_allclose(found, ridge.predict(standard_NPD[:, 0]), atol=1e-3)

    tags_NC = (standard_NPD[:, 0, :3] + noise_NC > 0).astype(np.float32)
    weights_PCD, biases_PC = fit_probes(raw_NPD, tags_NC, "multi_label", 3, Progress())
    x_ND = standard_NPD[:, 1].astype(np.float64)
    for label in range(3):
        model = LogisticRegression(C=1 / (2 * 3 * len(tags_NC) * PROBE_L2), tol=1e-10, max_iter=10_000)
        expected = model.fit(x_ND, tags_NC[:, label]).decision_function(x_ND)
        found = torch.from_numpy(raw_NPD[:, 1]) @ weights_PCD[1, label] + biases_PC[1, label]
        np.testing.assert_allclose(found, expected, atol=1e-3)


# --- tables ---


@pytest.mark.parametrize("family", [BertForSequenceClassification, RobertaForSequenceClassification])
def test_tables_are_the_rows_that_texts_meet(family: type) -> None:
    """Row l of the position table is what the model adds at the l-th token; RoBERTa's first row is padding_idx + 1."""
    is_roberta = family is RobertaForSequenceClassification
    make_config = RobertaConfig if is_roberta else BertConfig
    model = family(make_config(vocab_size=20, max_position_embeddings=12, pad_token_id=1, **SHAPE)).eval()
    seen: dict[str, Tensor] = {}
    embeddings = model.base_model.embeddings
    embeddings.position_embeddings.register_forward_hook(lambda _, __, output: seen.update(position=output.squeeze(0)))
    embeddings.word_embeddings.register_forward_hook(lambda _, __, output: seen.update(word=output[0]))
    ids_BL = torch.tensor([[4, 9, 7, 19, 5, 6]])
    model(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL))
    word_VD, position_LD = tables_of(model)
    assert torch.equal(word_VD[ids_BL[0]], seen["word"])
    assert torch.equal(position_LD[:6], seen["position"])
    assert len(position_LD) == (10 if is_roberta else 12) and not (word_VD.requires_grad or position_LD.requires_grad)


def test_a_model_without_such_a_table_has_none() -> None:
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, pad_token_id=0))
    word_VD, position_LD = tables_of(model)
    assert word_VD.shape == (20, 16) and position_LD is None


# --- outputs, computed once ---


class Interrupted:
    """A forward pass that is killed at call number ``at``; counts the texts that went through it."""

    def __init__(self, teacher: Teacher, at: int | None = None):
        self.teacher, self.at, self.calls, self.texts = teacher, at, 0, 0

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.calls == self.at:
            raise Killed
        self.calls += 1
        self.texts += len(input_ids)
        return self.teacher.logits_and_features(input_ids, attention_mask)


@pytest.fixture
def run_of(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Teacher, Examples]:
    monkeypatch.setattr(outputs, "CHUNK", 8)
    teacher = teacher_of(encoder)
    return teacher, examples_of(teacher, 21)


def cached(forward: Interrupted, examples: Examples, folder: Path) -> list[np.ndarray]:
    names = ("logits", "features")
    return cached_outputs(forward, examples, folder, names, Accelerator(cpu=True), Progress(), "pass", is_mixed=False)


def test_outputs_are_in_the_order_of_the_texts(run_of: tuple[Teacher, Examples], tmp_path: Path) -> None:
    """Batched by length, in chunks or at once: each text's row is what it gets alone."""
    teacher, examples = run_of
    whole = outputs_of(teacher.logits_and_features, examples, Accelerator(cpu=True), batch_size=4)
    for array, kept in zip(whole, cached(Interrupted(teacher), examples, tmp_path)):
        assert isinstance(kept, np.memmap) and array.dtype == kept.dtype == np.float32
        np.testing.assert_allclose(kept, array, rtol=1e-4, atol=1e-5)  # other batches, other padding
    for n in range(len(examples)):
        ids_BL, mask_BL = examples.tokens.pad([n], 0)
        with torch.no_grad():
            alone = teacher.logits_and_features(ids_BL, mask_BL)
        for array, output in zip(whole, alone):
            np.testing.assert_allclose(array[n], output[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_killed_pass_goes_on_and_ends_the_same(run_of: tuple[Teacher, Examples], tmp_path: Path, at: int) -> None:
    """21 texts in chunks of 8, one batch each: what was saved is not computed again; arrays equal to the bit."""
    teacher, examples = run_of
    undisturbed = cached(Interrupted(teacher), examples, tmp_path / "undisturbed")
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        cached(Interrupted(teacher, at), examples, folder)
    assert not list(folder.glob("*.partial"))
    rest = Interrupted(teacher)
    resumed = cached(rest, examples, folder)
    assert rest.texts == 21 - 8 * at
    assert all(np.array_equal(a, b) for a, b in zip(resumed, undisturbed))
    assert sorted(path.name for path in folder.iterdir()) == ["features.npy", "logits.npy"]
    again = Interrupted(teacher, 0)  # would be killed at once
    assert all(np.array_equal(a, b) for a, b in zip(cached(again, examples, folder), undisturbed))


@pytest.mark.parametrize("at", range(8))
def test_a_kill_between_any_two_files_costs_a_chunk_at_most(
    run_of: tuple[Teacher, Examples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Three chunks of two files, then the two whole ones: killed before file number ``at`` is written."""
    teacher, examples = run_of
    undisturbed = cached(Interrupted(teacher), examples, tmp_path / "undisturbed")
    written = iter(range(100))

    def write(path: Path, array: np.ndarray) -> None:
        if next(written) == at:
            raise Killed
        write_array(path, array)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(outputs, "write_array", write)
        cached(Interrupted(teacher), examples, tmp_path / "killed")
    rest = Interrupted(teacher)
    resumed = cached(rest, examples, tmp_path / "killed")
    assert rest.texts == max(0, 21 - 8 * (at // 2))
    assert all(np.array_equal(a, b) for a, b in zip(resumed, undisturbed))


# --- the lesson made of its word ---


def test_labelled_texts_are_repeated_until_they_make_up_their_share() -> None:
    """Three labelled texts among ten: 10 x 3 of 37 rows are 81%, 9 x 3 of 34 are 79%."""
    assert np.bincount(lesson_rows(3, 10, 0.8)).tolist() == [10] * 3 + [1] * 7
    assert lesson_rows(3, 10, 0.2).tolist() == lesson_rows(3, 10, 0.0).tolist() == list(range(10)), "never fewer than there are"
    assert lesson_rows(4, 4, 0.8).tolist() == [0, 1, 2, 3]
    assert np.bincount(lesson_rows(1, 5, 0.8)).tolist() == [16, 1, 1, 1, 1], "met exactly"


def test_soft_labels_are_what_their_logits_predict() -> None:
    p_NC = np.random.default_rng(0).dirichlet(np.ones(3), 20).clip(2e-4, 1).astype(np.float32)
    p_NC /= p_NC.sum(1, keepdims=True)
    np.testing.assert_allclose(torch.from_numpy(soft_label_logits(p_NC, "single_label")).softmax(-1), p_NC, rtol=1e-4)
    np.testing.assert_allclose(torch.from_numpy(soft_label_logits(p_NC, "multi_label")).sigmoid(), p_NC, rtol=1e-4)
    assert np.array_equal(soft_label_logits(p_NC, "regression"), p_NC)
    sure_NC = np.array([[0.0, 1.0]])
    for problem_type, predict in (("single_label", lambda logits: logits.softmax(-1)), ("multi_label", torch.sigmoid)):
        np.testing.assert_allclose(predict(torch.from_numpy(soft_label_logits(sure_NC, problem_type))), sure_NC, atol=1.1e-4)


@pytest.mark.parametrize("is_soft", [False, True])
def test_the_lesson_is_the_teachers_and_its_probes_word_and_soft_labels_come_before_it(encoder: Path, tmp_path: Path, is_soft: bool) -> None:
    """Ten labelled texts and six more, of which soft labels say nothing."""
    teacher, count = teacher_of(encoder), 10
    everything = examples_of(teacher, 16)
    labels = np.arange(count) % 3
    p_NC = np.random.default_rng(0).dirichlet(np.full(3, 5.0), count).astype(np.float32)
    split = Split([""] * count, labels=labels, soft_labels=p_NC if is_soft else None)
    task = dataclasses.replace(task_with("a", "b", "c"), train=split)
    labelled = dataclasses.replace(everything.select(np.arange(count)), labels=labels)
    extra = [everything.tokens.select(np.arange(count, 16))]
    lesson = teach(SimpleNamespace(seed=3), task, teacher, labelled, extra, tmp_path, Accelerator(cpu=True), Progress())
    assert lesson.labels.tolist() == [*labels, *[-100] * 6]
    with torch.no_grad():
        alone = [teacher.outputs(*everything.tokens.pad([n], 0)) for n in range(16)]
        features = torch.cat([teacher.logits_and_features(*everything.tokens.pad([n], 0))[1] for n in range(count)])
    # fitted anew on what each text gives alone; L-BFGS stops at a loss within 1e-9 of the optimum, hence the tolerance
    weights_PCD, biases_PC = fit_probes(features.numpy(), labels, "single_label", 3, Progress())
    own_NPC = torch.einsum("npd,pcd->npc", features, weights_PCD) + biases_PC
    np.testing.assert_allclose(torch.tensor(lesson.probe_logits[:count]).softmax(-1), own_NPC.softmax(-1), atol=0.01)
    # so small a teacher's first tokens are nearly alike: its probes, of size 18, are differences of numbers of size 3,000
    np.testing.assert_allclose(lesson.probe_logits, torch.cat([probes for _, probes in alone]), atol=0.01)
    logits_NC = torch.cat([logits for logits, _ in alone])
    np.testing.assert_allclose(lesson.teacher_logits[count:], logits_NC[count:], rtol=1e-4, atol=1e-5)
    if is_soft:
        np.testing.assert_allclose(torch.tensor(lesson.teacher_logits[:count]).softmax(-1), p_NC, rtol=1e-3)
    else:
        np.testing.assert_allclose(lesson.teacher_logits[:count], logits_NC[:count], rtol=1e-4, atol=1e-5)


def test_without_a_teacher_soft_labels_are_the_lesson(encoder: Path, tmp_path: Path) -> None:
    labelled = dataclasses.replace(examples_of(teacher_of(encoder), 4), labels=np.array([0, 1, 1, 0]))
    p_NC = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]], np.float32)
    task = dataclasses.replace(task_with("a", "b"), train=Split([""] * 4, labels=labelled.labels, soft_labels=p_NC))
    lesson = teach(SimpleNamespace(seed=3), task, None, labelled, [], tmp_path, Accelerator(cpu=True), Progress())
    np.testing.assert_allclose(torch.from_numpy(lesson.teacher_logits).softmax(-1), p_NC, rtol=1e-4)
