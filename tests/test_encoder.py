"""The encoder equals Hugging Face's without gates, and a slow, plain reference under them; gradients too."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_encoder import FAMILIES, HIDDEN, TASKS, answer, batch_for, every_gate, make_encoder, make_model
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from adasearch.encoder import EncoderConfig, EncoderPreTrainedModel, EncoderForSequenceClassification, _names, axes_of, from_hugging_face
from adasearch.encoder_parts import is_slow_fused
from adasearch.errors import ModelError
from adasearch.masked_model import set_dropout
from adasearch.structure import GateValues


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_states_and_loss_are_hugging_faces(family: str, task: str) -> None:
    theirs = make_model(family, task)
    ours = from_hugging_face(theirs)
    for with_types in (True, False):
        batch = batch_for(theirs, task, with_types)
        torch.testing.assert_close(answer(ours, batch), answer(theirs, batch), atol=1e-5, rtol=0)
    expected, found = theirs(**batch, output_hidden_states=True), ours(**batch, output_hidden_states=True)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=0)
    assert len(found.hidden_states) == len(expected.hidden_states) == ours.config.num_hidden_layers + 1
    for state, other in zip(found.hidden_states, expected.hidden_states):
        real = batch["attention_mask"].bool()  # what stands on padding is nobody's business
        torch.testing.assert_close(state[real], other[real], atol=1e-5, rtol=0)
    loss = ours(**batch, return_dict=False)[0]
    assert torch.equal(loss, found.loss) and ours(**batch).hidden_states is None
    ours.config.problem_type = None
    if task in ("single_label", "multi_label", "regression"):
        assert torch.equal(ours(**batch).loss, loss)


@pytest.mark.parametrize("task", ["single_label", "question_answering"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_hugging_faces(family: str, task: str) -> None:
    theirs = make_model(family, task)
    ours = from_hugging_face(theirs)
    batch = batch_for(theirs, task)
    theirs(**batch).loss.backward()
    ours(**batch).loss.backward()
    expected, found = dict(theirs.named_parameters()), dict(ours.named_parameters())
    compared = 0
    for our_name, their_name in _names(theirs.config, type(ours)).items():
        for part in ("weight", "bias"):
            if f"{our_name}.{part}" in found:
                gradient = found[f"{our_name}.{part}"].grad
                torch.testing.assert_close(gradient, expected[f"{their_name}.{part}"].grad, atol=1e-5, rtol=1e-4, msg=our_name)
                compared += 1
    assert compared == len(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_where_hugging_face_has_it(family: str) -> None:
    rates = {"dropout": 0.2, "attention_dropout": 0.3, "seq_classif_dropout": 0.4}
    if family != "distilbert":
        rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.4}
    theirs = make_model(family, **rates).train()
    ours = from_hugging_face(theirs)
    assert ours.training
    batch = batch_for(theirs)
    for seed in range(3):  # the same numbers in the same order fall on the same places
        torch.manual_seed(seed)
        expected = answer(theirs, batch)
        torch.manual_seed(seed)
        torch.testing.assert_close(answer(ours, batch), expected, atol=1e-5, rtol=0)
    assert (answer(theirs, batch) - expected).abs().max() > 1e-3  # it did something


def test_half_precision_learns_by_the_same_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch's fused attention goes back slowly plain products stand in: same values, same gradients, padding unseen."""
    model = make_encoder(attention_probs_dropout_prob=0.0).train()
    attention = model.encoder.layers[0].attention.bfloat16()
    torch.manual_seed(0)
    x_BLD = torch.randn(3, 5, HIDDEN, dtype=torch.bfloat16)
    visible_B11L = (torch.arange(5) < torch.tensor([[5], [2], [1]]))[:, None, None]
    gate_H = torch.rand(attention.heads).bfloat16()
    found = {}
    for is_slow in (True, False):
        monkeypatch.setattr("adasearch.encoder_parts.is_slow_fused", lambda *_: is_slow)
        leaf = x_BLD.clone().requires_grad_()
        result = attention(leaf, visible_B11L, gate_H)
        result.float().square().sum().backward()
        found[is_slow] = (result, leaf.grad)
    for one, other in zip(found[True], found[False]):
        torch.testing.assert_close(one, other, atol=0.06, rtol=0.05)
    monkeypatch.undo()
    assert is_slow_fused(x_BLD, 0.0) and not is_slow_fused(x_BLD, 0.1) and not is_slow_fused(x_BLD.float(), 0.0)
    with torch.no_grad():
        assert not is_slow_fused(x_BLD, 0.0)


def test_dropout_can_be_taken_out_of_any_encoder() -> None:
    for model in (make_encoder(), make_model("bert"), make_model("distilbert")):
        batch, model = batch_for(model), model.train()
        set_dropout(model, 0.5)
        assert not torch.equal(answer(model, batch), answer(model, batch))
        set_dropout(model, 0.0)
        assert torch.equal(answer(model, batch), answer(model, batch))


def reference(model: EncoderPreTrainedModel, batch: dict[str, Tensor], z: GateValues) -> Tensor:
    """A classifier's logits of one BERT-shaped text after another, head by head, LayerNorm on the survivors alone."""
    config, embeddings = model.config, model.encoder.embeddings
    D, K = config.hidden_size, config.head_size
    z_D = torch.ones(D, dtype=model.dtype) if z.hidden_D is None else z.hidden_D
    kept = z_D.nonzero().flatten().tolist()

    def norm(layer: torch.nn.LayerNorm, x_LD: Tensor) -> Tensor:
        survivors = x_LD[:, kept]
        centred = survivors - survivors.mean(1, keepdim=True)
        normed = centred / (centred.square().mean(1, keepdim=True) + layer.eps).sqrt()
        columns = dict(zip(kept, (normed * layer.weight[kept] + layer.bias[kept]).unbind(1)))
        return torch.stack([columns[d] * z_D[d] if d in columns else torch.zeros_like(x_LD[:, 0]) for d in range(D)], 1)

    def value(list_or_tensor: list[Tensor] | Tensor | None, n: int) -> Tensor | None:
        return None if list_or_tensor is None else list_or_tensor[n]

    rows = []
    for ids, mask, types in zip(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]):
        x = embeddings.word_embeddings.weight[ids] + embeddings.position_embeddings.weight[: len(ids)]
        x = norm(embeddings.norm, (x + embeddings.token_type_embeddings.weight[types]) * z_D)
        for n, layer in enumerate(model.encoder.layers):
            mha, heads, ffn, neurons = (value(part, n) for part in (z.mha_N, z.heads, z.ffn_N, z.neurons))
            is_there = (mha is None or mha.item() != 0) and (heads is None or any(h != 0 for h in heads.tolist()))
            if is_there:
                attention, contexts = layer.attention, []
                q, k, v = (F.linear(x, part.weight, part.bias) for part in (attention.query, attention.key, attention.value))
                for h in range(config.heads[n]):
                    own = slice(h * K, (h + 1) * K)
                    scores = q[:, own] @ k[:, own].T / math.sqrt(K)
                    context = scores.masked_fill(mask[None] == 0, -math.inf).softmax(-1) @ v[:, own]
                    contexts.append(context if heads is None else context * heads[h])
                y = F.linear(torch.cat(contexts, 1), attention.output.weight, attention.output.bias)
                x = norm(layer.attention_norm, x + (y if mha is None else y * mha) * z_D)
            if (ffn is None or ffn.item() != 0) and (neurons is None or any(f != 0 for f in neurons.tolist())):
                y = F.gelu(F.linear(x, layer.ffn.input.weight, layer.ffn.input.bias))
                y = F.linear(y if neurons is None else y * neurons, layer.ffn.output.weight, layer.ffn.output.bias)
                x = norm(layer.ffn_norm, x + (y if ffn is None else y * ffn) * z_D)
        pooled = F.linear(x[0], model.head.dense.weight, model.head.dense.bias).tanh()
        rows.append(F.linear(pooled, model.head.classifier.weight, model.head.classifier.bias))
    return torch.stack(rows)


def test_gates_act_where_they_should_and_so_do_their_gradients() -> None:
    model = make_encoder().double()
    batch = batch_for(model)
    for name, values in every_gate(model).items():
        gradients = []
        for forward in (lambda z: answer(model, batch, gates=z), lambda z: reference(model, batch, z)):
            model.zero_grad()
            z = values.map(lambda tensor: tensor.double().requires_grad_())
            logits = forward(z)
            logits.square().sum().backward()
            if z.hidden_D is not None:  # the state of a dead dimension is nothing, so its derivative is anything
                z.hidden_D.grad[z.hidden_D.detach() == 0] = 0
            of_gates = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in z.tensors()]
            of_weights = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
            gradients.append((logits.detach(), *of_gates, *of_weights))
        for found, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_ones_change_nothing(family: str) -> None:
    model = make_encoder(family)
    batch = batch_for(model)
    torch.testing.assert_close(answer(model, batch, gates=axes_of(model).ones()), answer(model, batch), atol=1e-5, rtol=0)


def test_layers_may_differ_and_be_empty() -> None:
    config = EncoderConfig(
        vocab_size=20, hidden_size=10, head_size=3, heads=[0, 2, 0], neurons=[0, 0, 7], num_labels=2, max_position_embeddings=8
    )
    model = EncoderForSequenceClassification(config).eval()
    ids = torch.randint(1, 20, (2, 6))
    output = model(ids, output_hidden_states=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 6, 10)] * 4
    assert torch.equal(output.hidden_states[0], output.hidden_states[1])
    assert sum(p.numel() for p in model.parameters()) == axes_of(model).expected_params(None, "all")
    gates = axes_of(model).ones()
    torch.testing.assert_close(model(ids, gates=gates).logits, output.logits)
    with pytest.raises(ValueError, match="heads are of 2 layers, neurons of 1"):
        EncoderConfig(heads=[1, 2], neurons=[3])
    with pytest.raises(ValueError, match="head_kind: 'mean' is not known; choices: bert, distilbert, roberta"):
        EncoderConfig(head_kind="mean")


def test_half_precision_keeps_the_survivors_normalisation() -> None:
    model = make_encoder()
    values = every_gate(model)["hidden with holes"]
    batch = batch_for(model)
    expected = answer(model, batch, gates=values)
    with torch.autocast("cpu", torch.bfloat16):
        found = answer(model, batch, gates=values)
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.05)  # bfloat16 has 8 bits


def test_what_cannot_be_taken_is_named() -> None:
    tiny = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    with pytest.raises(ModelError, match="BertForMaskedLM: no encoder of ours can be made of it; choices: bert, roberta"):
        from_hugging_face(BertForMaskedLM(BertConfig(**tiny)))
    with pytest.raises(ModelError, match="GPT2ForSequenceClassification"):
        from_hugging_face(GPT2ForSequenceClassification(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)))
    with pytest.raises(ModelError, match="is_decoder or add_cross_attention is set"):
        from_hugging_face(BertForSequenceClassification(BertConfig(**tiny, is_decoder=True)))
    model = make_encoder()
    values = axes_of(model).ones()
    values.hidden_D = torch.ones(1)
    with pytest.raises(ModelError, match=f"gates: hidden_D has 1 elements, the encoder {HIDDEN}"):
        answer(model, batch_for(model), gates=values)


def test_ours_of_ours_is_a_copy() -> None:
    model = make_encoder()
    again = from_hugging_face(model)
    assert again is not model and torch.equal(again.head.dense.weight, model.head.dense.weight)
    again.head.dense.weight.data.zero_()
    assert model.head.dense.weight.abs().sum() > 0
