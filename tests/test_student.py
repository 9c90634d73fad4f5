"""Laws of the student: folding, saving and padding change nothing; a pair is read as its space says.

References: torch's losses and layer norm, both texts of a pair embedded by hand.
Dimensions: B batch, D width, L tokens, C labels.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny import CLS, PAD, SEP, VOCAB, batch_of, randomise, texts, tiny_architecture, tiny_config
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, pipeline

from adasearch import register_student
from adasearch.masked_norm import Context
from adasearch.student import AdasearchForSequenceClassification, Pooling

CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # float32
LENGTHS = (9, (4, 6), 3, (6, 2))
INPUTS = pytest.mark.parametrize("inputs", ["joint", "two"])
POOLINGS = pytest.mark.parametrize("pooling", ["mean", "max", "attention"])


def tiny_student(config: dict[str, Any] | None = None, **macro: Any) -> AdasearchForSequenceClassification:
    student = AdasearchForSequenceClassification(tiny_config(tiny_architecture(**macro), **(config or {})))
    randomise(student)
    return student.eval()


@torch.no_grad()
def logits_of(student: AdasearchForSequenceClassification, rows: list[list[int]], padding: int = 0) -> Tensor:
    return student(*batch_of(rows, padding)).logits


@INPUTS
@POOLINGS
def test_padding_and_neighbours_in_the_batch_change_nothing(inputs: str, pooling: str) -> None:
    student, rows = tiny_student(inputs=inputs, pooling=pooling), texts(*LENGTHS)
    logits_BC = logits_of(student, rows)
    assert torch.allclose(logits_of(student, rows, padding=7), logits_BC, **CLOSE)
    for row, logits_C in zip(rows, logits_BC):
        assert torch.allclose(logits_of(student, [row])[0], logits_C, **CLOSE)
    ids_BL, mask_BL = batch_of(rows, padding=2)
    with torch.no_grad():
        assert torch.equal(student(ids_BL).logits, student(ids_BL, mask_BL).logits)  # the mask is known from the ids
        assert torch.equal(student(ids_BL, token_type_ids=mask_BL).logits, student(ids_BL, mask_BL).logits)


@INPUTS
@pytest.mark.parametrize("position_embeddings", [True, False])
@pytest.mark.parametrize("zero_cls", [True, False])
@pytest.mark.parametrize("embedding_size", [None, 5])
def test_folding_the_embeddings_changes_nothing(
    inputs: str, position_embeddings: bool, zero_cls: bool, embedding_size: int | None, tmp_path: Path
) -> None:
    macro = {"inputs": inputs, "position_embeddings": position_embeddings, "zero_cls": zero_cls}
    student, rows = tiny_student(**macro, embedding_size=embedding_size), texts(*LENGTHS)
    before = logits_of(student, rows)
    student.fold_embeddings()
    assert torch.allclose(
        logits_of(student, rows), before, atol=1e-4, rtol=1e-4
    )  # random tables of size 1, eight layers on
    assert student.trunk.embeddings.projection is None and student.config.embedding_rank is None
    assert student.get_input_embeddings().weight.shape == (VOCAB, embedding_size or 8)
    folded = logits_of(student, rows)
    student.fold_embeddings()  # nothing is left to fold
    assert torch.equal(logits_of(student, rows), folded)
    student.save_pretrained(tmp_path)
    assert torch.equal(logits_of(AutoModelForSequenceClassification.from_pretrained(tmp_path), rows), folded)


@INPUTS
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_saved_student_gives_the_same_bits(inputs: str, norm: str, tmp_path: Path) -> None:
    register_student()
    student, rows = tiny_student(inputs=inputs, norm=norm, pooling="attention"), texts(*LENGTHS)
    student.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is AdasearchForSequenceClassification and not loaded.training
    assert torch.equal(logits_of(loaded, rows), logits_of(student, rows))
    assert loaded.architecture == student.architecture and loaded.config.hidden_size == 8


@INPUTS
def test_what_a_checkpoint_lacks_is_as_in_a_new_model(inputs: str, tmp_path: Path) -> None:
    """A head for other labels, the usual way to use a model for another task: never memory as it was found."""
    register_student()
    student = tiny_student(inputs=inputs, pooling="attention")
    randomise(student)
    student.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    gone = [name for name in state if name.startswith("trunk.cells.0.") or "read_out" in name]
    save_file({name: tensor for name, tensor in state.items() if name not in gone}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert logits_of(loaded, texts(*LENGTHS)).shape[1] == 5 and logits_of(loaded, texts(*LENGTHS)).isfinite().all()
    new = type(loaded)(loaded.config).state_dict()
    for name, tensor in loaded.state_dict().items():
        if name not in gone:
            assert torch.equal(tensor, state[name]), name
        elif new[name].numel() == 1 or new[name].float().std() == 0:  # begins with one value: a weight of a level, a scale
            assert torch.equal(tensor, new[name]), name
        else:
            assert 0.2 < tensor.float().std() / new[name].float().std() < 5, name


@INPUTS
def test_a_student_of_single_texts_sees_no_second_one(inputs: str) -> None:
    """Whatever separators a text holds."""
    ids_BL, mask_BL = batch_of([[CLS, 5, 6, SEP, 7, 8, SEP]], padding=1)
    seen = []
    for config in ({"is_pair": True}, {"is_pair": False}, {"sep_token_id": None}):  # as GPT-2's tokenizer names none
        first, second, context = tiny_student(config, inputs=inputs).trunk.inputs(ids_BL, mask_BL)
        seen.append(not torch.equal(first, second) or bool(context.second_BL.any()))
    assert seen == [True, False, False] and torch.equal(context.mask_B1L[:, 0], mask_BL.float())


def test_the_second_text_is_found_by_the_first_separator() -> None:
    rows = [
        [CLS, 5, 6, SEP, 7, 8, SEP],  # BERT
        [CLS, 5, SEP, SEP, 7, 8, SEP],  # RoBERTa: the doubled separator begins the second text
        [CLS, 5, 6, SEP],
        [CLS, 5, 6],  # cut, or a tokenizer without separators
    ]
    _, _, context = tiny_student().trunk.inputs(*batch_of(rows, padding=1))
    starts, ends = (4, 3, 4, 3), (7, 7, 4, 3)
    assert context.second_BL.tolist() == [[start <= t < end for t in range(8)] for start, end in zip(starts, ends)]
    assert context.mask_B1L[:, 0].tolist() == [[float(t < end) for t in range(8)] for end in ends]


def embed(student: AdasearchForSequenceClassification, ids: list[int], length: int) -> Tensor:
    """One text by itself from position 0, by the formula: (1, D, length), zero behind its end."""
    part = student.trunk.embeddings
    x_LE = (part.word.weight[ids] + part.position.weight[: len(ids)]) @ part.projection.weight.T
    x_LD = F.layer_norm(x_LE, (8,), part.norm.weight, part.norm.bias)
    return F.pad(x_LD.T[None], (0, length - len(ids)))


@torch.no_grad()
@pytest.mark.parametrize("doubled", [False, True], ids=["bert", "roberta"])
@pytest.mark.parametrize(("first", "second"), [(4, 6), (7, 3), (5, 5), (6, 0), (4, 1), (2, 1)], ids=lambda n: str(n))
def test_two_inputs_are_both_texts_embedded_by_themselves(first: int, second: int, doubled: bool) -> None:
    """Texts of a separator alone among them: what follows the first one is then no doubled one."""
    student = tiny_student(inputs="two")
    (row,) = texts((first, second) if second else first)
    second_row = [row[0], *row[first:]]  # the second text has a [CLS] of its own, as AdaBERT's code gives it
    if doubled and second:
        row.insert(first, SEP)
    length = max(first, second + 1 if second else 0)
    zero = embed(student, row[:first], length)
    one = embed(student, second_row, length) if second else zero
    context = Context(torch.ones(1, 1, length), torch.zeros(1, length, dtype=torch.bool))
    levels, nodes = [(zero + one).mean(-1) / 2], (zero, one)
    for cell, path in zip(student.trunk.cells, student.paths):
        nodes = nodes[1], cell(*nodes, context, path)
        levels.append(nodes[1].mean(-1))
    weights = student.trunk.read_out.level_logits[0].softmax(0)
    mixed_BD = (weights[:, None, None] * torch.stack(levels)).sum(0)
    reference = F.linear(
        mixed_BD.tanh(), student.trunk.read_out.classifier.weight, student.trunk.read_out.classifier.bias
    )
    # beside longer texts and padding, so that bringing the second text to the front is tested too
    rows = [row, *texts((5, 9), 8, 3)]
    assert torch.allclose(logits_of(student, rows, padding=2)[0], reference[0], **CLOSE)
    for ours, expected in zip(student(*batch_of([row])).hidden_states, levels):
        assert torch.allclose(ours, expected, **CLOSE)


def test_two_inputs_know_which_text_is_which() -> None:
    student = tiny_student(inputs="two")
    first, second = texts(5, 4)
    one, other = [*first, *second[1:]], [*second, *first[1:]]
    assert not torch.allclose(logits_of(student, [one]), logits_of(student, [other]), atol=1e-2)


@INPUTS
def test_the_first_token_can_be_blanked(inputs: str) -> None:
    (row,) = texts(6)
    other = [7, *row[1:]]
    for zero_cls in (True, False):
        student = tiny_student(inputs=inputs, zero_cls=zero_cls)
        assert torch.equal(logits_of(student, [row]), logits_of(student, [other])) == zero_cls


@POOLINGS
def test_pooling_is_that_of_the_real_tokens(pooling: str) -> None:
    pool = Pooling(8, pooling)
    x_DL, mask_B1L = torch.randn(8, 5) - 3, (torch.arange(9) < 5).float()[None, None]
    x_BDL = F.pad(x_DL, (0, 4))[None]
    context = Context(mask_B1L, torch.zeros(1, 9, dtype=torch.bool))
    if pooling == "attention":
        assert torch.allclose(pool(x_BDL, context)[0], x_DL.mean(1), **CLOSE)  # starts as the mean
        randomise(pool)
        exponentials = (pool.score.weight[0] @ x_DL).exp()
        expected = x_DL @ (exponentials / exponentials.sum())
    else:
        expected = x_DL.mean(1) if pooling == "mean" else x_DL.amax(1)
    assert torch.allclose(pool(x_BDL, context)[0], expected, **CLOSE)
    with torch.autocast("cpu", torch.bfloat16):  # its scores have another type than the tokens, and fewer digits
        assert torch.allclose(pool(x_BDL, context)[0].float(), expected, atol=0.1)


@pytest.mark.parametrize(
    "problem_type", [None, "single_label_classification", "multi_label_classification", "regression"]
)
def test_losses_are_those_of_torch(problem_type: str | None) -> None:
    student = tiny_student({"problem_type": problem_type, "num_labels": 1 if problem_type == "regression" else 3})
    ids_BL, mask_BL = batch_of(texts(*LENGTHS))
    labels = {
        "multi_label_classification": torch.randint(0, 2, (4, 3)),
        "regression": torch.randn(4),
    }.get(problem_type, torch.tensor([2, 0, 1, 1]))
    output = student(ids_BL, mask_BL, labels=labels)
    expected = {
        "multi_label_classification": lambda: F.binary_cross_entropy_with_logits(output.logits, labels.float()),
        "regression": lambda: F.mse_loss(output.logits[:, 0], labels),
    }.get(problem_type, lambda: F.cross_entropy(output.logits, labels))()
    assert torch.equal(output.loss, expected)
    loss, logits = student(ids_BL, mask_BL, labels=labels, return_dict=False)
    assert torch.equal(loss, expected) and torch.equal(logits, output.logits)
    assert len(student(ids_BL, mask_BL, return_dict=False)) == 1


def test_every_parameter_learns() -> None:
    student = tiny_student(inputs="two", pooling="attention").train()
    student(*batch_of(texts(*LENGTHS)), labels=torch.tensor([0, 1, 2, 1])).loss.backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert not student.get_input_embeddings().weight.grad[PAD].any()


def test_fresh_weights_leave_the_padding_row_zero() -> None:
    student = AdasearchForSequenceClassification(tiny_config(tiny_architecture()))
    weight = student.get_input_embeddings().weight
    assert not weight[PAD].any() and weight[1:].std().item() == pytest.approx(0.05, rel=0.2)


def test_a_pipeline_answers_with_the_labels_names(tmp_path: Path) -> None:
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *map("".join, itertools.product("abcde", repeat=2))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(tmp_path)
    names = {0: "bad", 1: "fair", 2: "good"}
    student = tiny_student({"id2label": names, "label2id": {name: i for i, name in names.items()}})
    student.save_pretrained(tmp_path)
    classify = pipeline("text-classification", model=str(tmp_path), device="cpu")
    answers = classify(["aa ab", "ce dd unheard ba"], top_k=None, batch_size=2)
    p_BC = logits_of(
        student, [[CLS, 4, 5, SEP], [CLS, words.index("ce"), words.index("dd"), 3, words.index("ba"), SEP]]
    ).softmax(-1)
    for answer, p_C in zip(answers, p_BC):
        scores = {entry["label"]: entry["score"] for entry in answer}
        assert scores == pytest.approx({name: p_C[i].item() for i, name in names.items()}, abs=1e-5)
    pair = classify({"text": "aa ab", "text_pair": "ce"})
    assert pair["score"] == pytest.approx(
        logits_of(student, [[CLS, 4, 5, SEP, words.index("ce"), SEP]]).softmax(-1).max().item(), abs=1e-5
    )
