"""Laws of quantised GPT-2 and BART: what is quantised, ties that hold, copies that are whole, baking that changes nothing.

References: the same model with its weights replaced by hand, torch's own tying, autograd without the cache.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from adasearch.errors import ConfigError, ModelError
from adasearch.quantize_model import attach_quantizers, bake, find_quantized, quantized_cache, quantized_integers
from adasearch.quantizers import WEIGHT_QUANTIZERS

VOCAB = 41
GPT2_LAYER = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
CASES = [(name, WEIGHT_QUANTIZERS[name].BITS[0]) for name in WEIGHT_QUANTIZERS] + [("dynamic_scale", 4), ("dynamic_scale", 8)]
every_model = pytest.mark.parametrize("kind", ["gpt2", "bart"])
every_quantizer = pytest.mark.parametrize(("name", "bits"), CASES)


def a_model(kind: str, is_tied: bool = True) -> PreTrainedModel:
    """Two layers of width 16, without dropout, weights as large as trained ones."""
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCAB, n_positions=24, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
            bos_token_id=0, eos_token_id=0, pad_token_id=1, tie_word_embeddings=is_tied, initializer_range=0.2,
        )  # fmt: skip
        return GPT2LMHeadModel(config).eval()
    config = BartConfig(
        vocab_size=VOCAB, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=24, dropout=0, init_std=0.2, tie_word_embeddings=is_tied,
    )  # fmt: skip
    return BartForConditionalGeneration(config).eval()


def tokens() -> Tensor:
    return torch.randint(4, VOCAB, (3, 7), generator=torch.Generator().manual_seed(1))


def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=tokens()).logits


def loss_of(model: PreTrainedModel) -> Tensor:
    return (logits(model) * torch.linspace(-1, 1, VOCAB)).sum()


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@every_model
def test_what_is_quantised(kind: str) -> None:
    model = a_model(kind)
    plain = set(model.state_dict())
    found = attach_quantizers(model, "2-4-8")
    assert set(found.names) <= plain and set(found.tied) <= plain
    layers = [name for name in found.names if "layers." in name or ".h." in name]
    if kind == "gpt2":
        expected = {f"transformer.h.{i}.{part}.weight" for i in range(2) for part in GPT2_LAYER} | {"transformer.wte.weight"}
        assert found.tied == {"lm_head.weight": "transformer.wte.weight"}
    else:
        expected = {n for n in plain if "layers." in n and n.endswith("weight") and "layer_norm" not in n}
        expected |= {"model.shared.weight"}
        assert len(layers) == 2 * 6 + 2 * 10
        assert set(found.tied) == {"lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"}
        assert set(found.tied.values()) == {"model.shared.weight"}
    assert set(found.names) == expected
    assert {found.quantizers[name].bits for name in layers} == {2}
    assert found.quantizers[(expected - set(layers)).pop()].bits == 4
    assert set(found.inputs) == {name.removesuffix(".weight") for name in layers} | {"lm_head"}
    assert len(found.scales()) == len(found.names) == len({id(scale) for scale in found.scales()})


@every_model
def test_32_bits_change_nothing(kind: str) -> None:
    model = a_model(kind)
    before, names = logits(model), list(model.state_dict())
    found = attach_quantizers(model, "32-32-32")
    assert torch.equal(logits(model), before) and list(model.state_dict()) == names and not found.names
    attach_quantizers(model, "32-32-8")
    rounded = logits(model)
    assert not torch.equal(rounded, before) and torch.allclose(rounded, before, atol=0.5)
    assert not bake(model) and torch.equal(logits(model), before)


@pytest.mark.parametrize("part", ["weights", "embedding"])
@every_model
def test_logits_change_by_the_quantised_weights_alone(kind: str, part: str) -> None:
    model = a_model(kind)
    by_hand = copy.deepcopy(model)
    found = attach_quantizers(model, "2-32-32" if part == "weights" else "32-2-32")
    for name, quantizer in found.quantizers.items():
        weight = by_hand.get_parameter(name)
        weight.data = quantizer(weight).detach()  # every use of a tied weight changes with it
    assert found.names and torch.equal(logits(model), logits(by_hand))


@pytest.mark.parametrize("per", ["tensor", "row"])
@every_quantizer
@every_model
def test_baking_changes_no_logit(kind: str, name: str, bits: int, per: str) -> None:
    model = a_model(kind)
    keys = set(model.state_dict())
    found = attach_quantizers(model, f"{bits}-{bits}-32", quantizer=name, per=per)
    before = logits(model)
    told = quantized_integers(model)
    copied = copy.deepcopy(model)
    integers = bake(model)
    assert set(model.state_dict()) == keys and not find_quantized(model).names and not find_quantized(model).inputs
    assert type(model.get_input_embeddings()).__name__ in ("Embedding", "BartScaledWordEmbedding")
    assert list(integers) == found.names == list(told)
    for weight_name, (levels, scale) in integers.items():
        assert torch.equal(levels * scale, model.get_parameter(weight_name)) and torch.equal(levels, told[weight_name][0])
        is_row = per == "row"
        assert (scale.numel() > 1) == is_row
        if is_row and kind == "gpt2" and ".h." in weight_name:
            assert scale.shape == (1, levels.shape[1])  # Conv1D: one for each output, as in a Linear
    assert torch.equal(logits(model), before)
    assert torch.equal(logits(copied), before)  # the copy is still quantised
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@every_model
def test_ties_hold(kind: str) -> None:
    model = a_model(kind)
    found = attach_quantizers(model, "2-2-8")
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    original = embedding.parametrizations.weight.original
    model.tie_weights()
    for name in found.tied:
        module = model.get_submodule(name.removesuffix(".weight"))
        assert module.parametrizations.weight.original is original
        assert torch.equal(module.weight, embedding.weight)
    assert head.parametrizations.weight.original is original
    with quantized_cache():
        assert head.weight is embedding.weight  # quantised once
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == len(set(names)) == len(list(model.parameters()))

    both = gradients(model)[f"{found.tied['lm_head.weight'].removesuffix('weight')}parametrizations.weight.original"]
    uses = {}  # the head's use alone, the embedding's use alone: torn apart by hand
    for use in ("head", "embedding"):
        alone = copy.deepcopy(model)
        fixed = alone.get_input_embeddings().weight.detach().clone()
        for name in {**found.tied, **dict.fromkeys(found.tied.values())}:
            is_head = name == "lm_head.weight"
            if is_head != (use == "head"):
                module = alone.get_submodule(name.removesuffix(".weight"))
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
                module.weight = torch.nn.Parameter(fixed.clone())
            elif is_head:  # its source is gone: a quantiser of its own
                module = alone.get_submodule("lm_head")
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
                quantizer = copy.deepcopy(embedding.parametrizations.weight[0])
                parametrize.register_parametrization(module, "weight", quantizer)
        loss_of(alone).backward()
        owner = alone.get_output_embeddings() if use == "head" else alone.get_input_embeddings()
        uses[use] = owner.parametrizations.weight.original.grad
    assert uses["head"].abs().max() > 0 and uses["embedding"].abs().max() > 0
    assert torch.allclose(both, uses["head"] + uses["embedding"], atol=1e-4 * both.abs().max())


def test_an_untied_head_stays_as_it_is() -> None:
    model = a_model("gpt2", is_tied=False)
    found = attach_quantizers(model, "2-2-8")
    assert not found.tied and "transformer.wte.weight" in found.names and "lm_head" not in found.inputs
    assert not parametrize.is_parametrized(model.lm_head)


def test_the_tables_of_an_untied_bart_are_all_quantised() -> None:
    model = a_model("bart", is_tied=False)
    found = attach_quantizers(model, "32-2-32")
    tables = ["model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens"]
    assert found.names == [f"{name}.weight" for name in tables] and not found.tied and not parametrize.is_parametrized(model.lm_head)
    assert all(len(model.get_submodule(name).weight.unique()) <= 4 for name in tables)
    assert len({id(quantizer) for quantizer in found.quantizers.values()}) == 3


@every_quantizer
def test_the_cache_changes_neither_values_nor_gradients(name: str, bits: int) -> None:
    model = a_model("bart").train()
    attach_quantizers(model, f"{bits}-{bits}-8", quantizer=name)
    twin = copy.deepcopy(model)
    plain = gradients(twin)
    with quantized_cache():
        cached = gradients(model)
    assert list(plain) == list(cached)
    for parameter, gradient in plain.items():
        # the three uses of the tied weight are added before the quantiser, or after it
        assert torch.allclose(cached[parameter], gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max()), parameter


@every_model
def test_copies_are_whole_and_their_own(kind: str) -> None:
    model = a_model(kind)
    attach_quantizers(model, "2-2-8")
    before, copied = logits(model), copy.deepcopy(model)
    assert find_quantized(copied).names == find_quantized(model).names
    assert find_quantized(copied).tied == find_quantized(model).tied
    shared = {id(p) for p in model.parameters()} & {id(p) for p in copied.parameters()}
    assert not shared and list(copied.state_dict()) == list(model.state_dict())
    for scale in find_quantized(copied).scales():
        scale.data.mul_(1.7)
    with quantized_cache():  # one cache for both: neither takes the other's weights
        assert torch.equal(logits(model), before)
        assert not torch.equal(logits(copied), before)
    bake(copy.deepcopy(copied))
    bake(copied)
    assert torch.equal(logits(model), before) and find_quantized(model).names
    again = copy.deepcopy(copy.deepcopy(model))
    assert torch.equal(logits(again), before)


@every_quantizer
def test_training_resumes_from_a_state_dict(name: str, bits: int) -> None:
    model = a_model("gpt2").train()
    attach_quantizers(model, f"{bits}-{bits}-8", quantizer=name)
    train(model, 2)
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)  # other weights to start from
    other = a_model("gpt2").train()
    attach_quantizers(other, f"{bits}-{bits}-8", quantizer=name)
    other.load_state_dict(state)
    assert torch.equal(logits(other), logits(model))
    train(model, 2)
    train(other, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


def train(model: PreTrainedModel, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)  # no state of its own
    for _ in range(steps):
        optimizer.zero_grad()
        with quantized_cache():
            loss_of(model).backward()
        optimizer.step()


@every_model
def test_models_load_save_and_generate_as_others(kind: str, tmp_path: object) -> None:
    a_model(kind).save_pretrained(tmp_path)
    loaded = type(a_model(kind)).from_pretrained(tmp_path).eval()
    attach_quantizers(loaded, "2-2-8")
    loaded.tie_weights()
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "num_beams": 1}
    mask = torch.ones_like(tokens())
    with quantized_cache():
        generated = loaded.generate(input_ids=tokens(), attention_mask=mask, **settings)
    slow = loaded.generate(input_ids=tokens(), attention_mask=mask, use_cache=False, **settings)
    assert torch.equal(generated, slow)  # rounding a token's activations knows no other token
    before = logits(loaded)
    loaded.save_pretrained(tmp_path)  # the weights under their names as parametrised
    bake(loaded)
    loaded.tie_weights()
    loaded.save_pretrained(tmp_path)
    again = type(loaded).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(loaded)) and before.isfinite().all()
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    attach_quantizers(loaded, "4-4-8")  # a baked model is a plain one
    loaded.tie_weights()


def test_padding_and_neighbours_do_not_change_a_text() -> None:
    model = a_model("gpt2")
    attach_quantizers(model, "2-2-8")
    alone, batch = model(input_ids=tokens()[:1]).logits, logits(model)[:1]
    assert torch.allclose(alone, batch, atol=1e-5)


def test_masks_stack_below_the_quantiser() -> None:
    class Mask(torch.nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * (weight > 0)

    model = a_model("gpt2")
    layer = model.transformer.h[0].mlp.c_fc
    parametrize.register_parametrization(layer, "weight", Mask())
    masked = layer.weight.detach()
    found = attach_quantizers(model, "4-4-32")
    # a mean over magnitudes is that of what the mask keeps, or the scale would shrink with every weight that is pruned
    mean = found.quantizers["transformer.h.0.mlp.c_fc.weight"].mean_magnitude(masked)
    assert mean.item() == pytest.approx(masked[masked > 0].mean().item(), rel=1e-5)
    assert [q.skip_zeros for q in found.quantizers.values()].count(True) == 1
    before, copied = logits(model), copy.deepcopy(model)
    assert torch.equal(logits(copied), before)
    levels, scale = bake(model)["transformer.h.0.mlp.c_fc.weight"]
    assert levels.min() == 0 and (levels > 0).any() and torch.equal(levels * scale, layer.weight)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("bits", "options", "says"),
    [
        ("2-2", {}, "expected weights-embeddings-activations"),
        ("2-2-8", {"quantizer": "best"}, "quantizer 'best'; known: dynamic_scale, min_max"),
        ("2-2-8", {"gamma": 1.0}, "unknown setting 'gamma'; known: detach_mean, full_range, gamma_init, skip_zeros"),
        ("2-4-8", {"quantizer": "twn"}, "twn: 4 bits"),
        ("2-2-8", {"per": "column"}, "per 'column'"),
        ("2-2-8", {"activation_per": "batch"}, "activation_per 'batch'; known: token, tensor"),
    ],
)
def test_wrong_settings_leave_the_model_alone(bits: str, options: dict[str, object], says: str) -> None:
    model = a_model("gpt2")
    with pytest.raises(ConfigError, match=says):
        attach_quantizers(model, bits, **options)
    found = find_quantized(model)
    assert not found.names and not found.inputs and not any(parametrize.is_parametrized(m) for m in model.modules())


def test_other_models_are_refused() -> None:
    bert = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(ModelError, match="BertModel: only models made of GPT-2's or BART's layers"):
        attach_quantizers(bert, "2-2-8")
    model = a_model("gpt2")
    attach_quantizers(model, "2-32-32")
    with pytest.raises(ModelError, match="quantised already"):
        attach_quantizers(model, "2-2-8")
    with pytest.raises(ModelError, match="bfloat16"):
        attach_quantizers(a_model("gpt2").bfloat16(), "2-2-8")
