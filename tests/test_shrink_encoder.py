"""The law of shrinking, and that what comes out is a model like any other: files, runtimes, verbs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from elsewhere import run_without_adasearch
from tiny_classifier import TEXTS, WORDS, make_classifier
from tiny_encoder import FAMILIES, HEADS, TASKS, answer, batch_for, every_gate, make_encoder
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer

from adasearch.encoder import EncoderForSequenceClassification, EncoderPreTrainedModel, axes_of, from_hugging_face
from adasearch.classifier import TextClassifier
from adasearch.errors import ModelError
from adasearch.export import export_student, save_student
from adasearch.hard_concrete import StructureGates
from adasearch.runtimes import ONNX_FILES, available_runtimes, load_classifier, load_runtime
from adasearch.shrink_encoder import shrink_encoder
from adasearch.structure import GateValues


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_shrunk_equals_gated(family: str, task: str) -> None:
    model = make_encoder(family, task).double()  # so that only mistakes are left to see
    batch = batch_for(model, task)
    for name, values in every_gate(model).items():
        values = values.map(torch.Tensor.double)
        smaller = shrink_encoder(model, values)
        expected = answer(model, batch, gates=values)
        torch.testing.assert_close(answer(smaller, batch), expected, atol=1e-10, rtol=1e-10, msg=name)
        single = shrink_encoder(model.float(), values.map(torch.Tensor.float))
        torch.testing.assert_close(answer(single, batch).double(), expected, atol=1e-4, rtol=1e-4, msg=name)
        model.double()


def test_in_single_precision_it_holds_to_1e_minus_5() -> None:
    model = make_encoder()
    with torch.no_grad():  # logits of usual size
        model.head.classifier.weight.mul_(0.3)
    batch = batch_for(model)
    for name, values in every_gate(model).items():
        smaller = shrink_encoder(model, values)
        torch.testing.assert_close(answer(smaller, batch), answer(model, batch, gates=values), atol=1e-5, rtol=0, msg=name)


def test_sizes_are_what_was_kept() -> None:
    model = make_encoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    values = axes_of(model).ones()
    values.mha_N[0], values.heads[1][:2], values.neurons[0][:], values.hidden_D[3:] = 0, 0, 0, 0
    smaller = shrink_encoder(model.train(), values)
    assert (smaller.config.heads, smaller.config.neurons, smaller.config.hidden_size) == ([0, HEADS - 2], [0, 24], 3)
    assert smaller.config.pooler_size == 16 and smaller.config.head_size == 4  # heads x width is not the hidden size
    assert type(smaller) is EncoderForSequenceClassification and smaller.training
    layers = smaller.encoder.layers
    assert layers[0].attention is None and layers[0].attention_norm is None and layers[0].ffn is None and layers[0].ffn_norm is None
    assert layers[1].attention.query.weight.shape == (8, 3) and layers[1].attention.output.weight.shape == (3, 8)
    assert all(p.requires_grad for p in smaller.parameters()) and model.config.hidden_size == 16
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    same = shrink_encoder(model, GateValues())
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in model.state_dict().items())
    same.head.dense.weight.data.zero_()
    assert model.head.dense.weight.abs().sum() > 0  # nothing is shared


def test_a_shrunk_model_can_be_gated_trained_and_shrunk_again() -> None:
    model = make_encoder()
    batch = batch_for(model)
    smaller = shrink_encoder(model, every_gate(model)["a whole layer gone"])
    for name, values in {"random": StructureGates(axes_of(smaller)).eval()(), "ones": axes_of(smaller).ones()}.items():
        again = shrink_encoder(smaller, values)
        torch.testing.assert_close(answer(again, batch), answer(smaller, batch, gates=values), atol=1e-5, rtol=1e-5, msg=name)
    smaller.train()(**batch).loss.backward()
    assert all(p.grad is not None for p in smaller.parameters())


def test_sampled_gates_obey_the_law_too() -> None:
    model = make_encoder("roberta")
    gates = StructureGates(axes_of(model))
    for parameter in gates.parameters():
        torch.nn.init.normal_(parameter, std=2)
    batch = batch_for(model)
    for _ in range(10):
        values = gates()
        expected = answer(model, batch, gates=values)
        torch.testing.assert_close(answer(shrink_encoder(model, values), batch), expected, atol=1e-4, rtol=1e-4)


def test_nothing_left_and_wrong_sizes_are_refused() -> None:
    model = make_encoder()
    with pytest.raises(ModelError, match="no hidden dimension is left"):
        shrink_encoder(model, GateValues(hidden_D=torch.zeros(16)))
    with pytest.raises(ModelError, match="gates: mha_N has 3 elements, the encoder 2"):
        shrink_encoder(model, GateValues(mha_N=torch.ones(3)))


def shrunk(family: str, task: str) -> EncoderPreTrainedModel:
    """One with uneven layers, one of them without attention, of a hidden size that is no product of its heads."""
    model = make_encoder(family, task)
    values = every_gate(model)["one sublayer of each kind"]
    values.hidden_D[:3] = 0
    return shrink_encoder(model, values)


KINDS = {"bert": "single_label", "distilbert": "regression", "roberta": "question_answering"}


def test_a_saved_encoder_loads_bit_equal_with_and_without_adasearch(tmp_path: Path) -> None:
    models = {family: shrunk(family, task) for family, task in KINDS.items()}
    batches = {family: batch_for(model, KINDS[family]) for family, model in models.items()}
    inputs = {name: {key: batch[key] for key in batch if "ids" in key or "mask" in key} for name, batch in batches.items()}
    expected = {family: answer(model, batches[family]) for family, model in models.items()}
    for family, model in models.items():
        folder = save_student(model, None, tmp_path / family)
        again = (AutoModelForQuestionAnswering if family == "roberta" else AutoModelForSequenceClassification).from_pretrained(folder)
        assert type(again) is type(model) and torch.equal(answer(again, batches[family]), expected[family])
        assert type(load_classifier(folder)) is type(model)
        assert json.loads((folder / "config.json").read_text())["heads"] == model.config.heads
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert").save_pretrained(tmp_path / "bert-again")
    inputs["bert-again"], expected["bert-again"] = inputs["bert"], expected["bert"]
    torch.save(inputs, tmp_path / "inputs.pt")
    program = """
        from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification
        found = {}
        for family, batch in torch.load("inputs.pt").items():
            auto = AutoModelForQuestionAnswering if family == "roberta" else AutoModelForSequenceClassification
            output = auto.from_pretrained(family, trust_remote_code=True)(**batch)
            found[family] = output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], -1)
        torch.save(found, "logits.pt")
    """
    run_without_adasearch(program, tmp_path)
    found = torch.load(tmp_path / "logits.pt")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_graphs_give_torchs_answer(family: str, tmp_path: Path) -> None:
    model = shrunk(family, KINDS[family])
    folder = save_student(model, None, tmp_path / "model")
    assert export_student(folder) == folder / "onnx" / ONNX_FILES["fp32"]
    batch = batch_for(model, KINDS[family])
    arrays = {name: batch[name].numpy() for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
    expected = answer(model, batch).detach().numpy()
    for name in set(available_runtimes()) - {"torch_compile"}:  # its kernels take longer than a test may; see below
        np.testing.assert_allclose(load_runtime(name, folder)(**arrays), expected, atol=1e-4, err_msg=name)


def test_the_compiler_takes_the_graph(tmp_path: Path) -> None:
    from adasearch.trace import trace

    model = shrunk("roberta", "single_label")
    batch = batch_for(model)
    program = torch.compile(trace(model).module(), dynamic=True, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(program(batch["input_ids"], batch["attention_mask"]), answer(model, batch))


def test_texts_in_and_labels_out(tmp_path: Path) -> None:
    teacher_dir = make_classifier(tmp_path / "teacher")
    teacher = AutoModelForSequenceClassification.from_pretrained(teacher_dir)
    model = from_hugging_face(teacher)
    values = GateValues(heads=[torch.tensor([0.9, 0.0])], hidden_D=torch.cat([torch.zeros(2), torch.ones(len(WORDS) + 2)]))
    folder = save_student(shrink_encoder(model, values), AutoTokenizer.from_pretrained(teacher_dir), tmp_path / "pruned")
    classifier = TextClassifier(folder, runtime="torch", threads=1)
    answers = classifier.answer(TEXTS, TEXTS[::-1])
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, TEXTS[::-1], padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(**batch, gates=values).logits.numpy()
    np.testing.assert_allclose(answers.logits_NC, expected, atol=1e-5)
    assert classifier.labels == ["neg", "neu", "pos"]
    reader = save_student(make_encoder("bert", "question_answering"), AutoTokenizer.from_pretrained(teacher_dir), tmp_path / "reader")
    with pytest.raises(ModelError, match="its model answers questions and has no labels to give"):
        TextClassifier(reader, runtime="torch", threads=1)
