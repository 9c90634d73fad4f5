"""A packed model is the fake-quantised one: equal logits, equal tokens, from fewer bytes.

References: the model with quantisers that was packed, in every bit; the published sizes (specs: QuantGPT, 14.4x and
13.4x), which count elements and no headers; files as they were written.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import (
    AutoModelForCausalLM, AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel,
    PreTrainedModel,
)  # fmt: skip

import adasearch
from adasearch import packed_modules
from adasearch.errors import ConfigError, ModelError
from adasearch.low_bit import (
    LowBitForCausalLM, LowBitForSeq2SeqLM, load_low_bit, low_bit_class, low_bit_shell, pack_model, packed_weights,
)  # fmt: skip
from adasearch.low_bit_size import file_size, size_table, size_totals
from adasearch.packed_modules import MEMORY, PackedWeight
from adasearch.packing import pack, unpack
from adasearch.quantize_model import attach_quantizers, quantized_cache, quantized_integers

VOCAB, TOKENS = 97, 60
MIB = 2**20
CASES = [
    ("2-2-8", "dynamic_scale", "tensor"), ("2-2-8", "dynamic_scale", "row"), ("4-4-8", "lsq", "tensor"),
    ("8-8-8", "min_max", "row"), ("1-1-32", "bwn", "tensor"), ("32-2-8", "twn", "tensor"), ("4-32-8", "pact", "row"),
]  # fmt: skip


def gpt2(**changes: object) -> GPT2LMHeadModel:
    """A tiny GPT-2 whose width fills no whole number of bytes at 2 bits, with weights that make it talk."""
    settings = {"vocab_size": VOCAB, "n_layer": 2, "n_embd": 18, "n_head": 2, "n_positions": 80, "initializer_range": 0.4}
    settings |= {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**{**settings, **changes})).eval()


def bart(**changes: object) -> BartForConditionalGeneration:
    """A tiny BART that scales its embeddings; heads and layers differ between encoder and decoder."""
    config = BartConfig(
        vocab_size=VOCAB, d_model=16, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=28, decoder_ffn_dim=24, init_std=0.4,
        encoder_attention_heads=2, decoder_attention_heads=4, max_position_embeddings=80, scale_embedding=True,
        **changes,
    )  # fmt: skip
    model = BartForConditionalGeneration(config).eval()
    model.final_logits_bias.normal_()
    return model


MODELS = {"gpt2": gpt2, "bart": bart}


def quantized(model: PreTrainedModel, bits: str = "2-2-8", quantizer: str = "dynamic_scale", per: str = "tensor") -> PreTrainedModel:
    """The same model, with quantisers."""
    attach_quantizers(model, bits, quantizer=quantizer, per=per)
    return model


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    """Of two texts, one with padding, (2, L, V)."""
    ids_BL, mask_BL = texts()
    target = {"decoder_input_ids": ids_BL[:, :5]} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids_BL, attention_mask=mask_BL, **target).logits


def texts() -> tuple[Tensor, Tensor]:
    """Ids and mask of two texts; the first begins with three tokens of padding."""
    ids_BL = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[0, :3] = 0
    return ids_BL, mask_BL


def continued(model: PreTrainedModel, tokens: int = TOKENS, **settings: object) -> Tensor:
    """Greedy tokens, exactly so many; no pair comes twice, which random models would repeat without end."""
    ids_BL, mask_BL = texts()
    settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "no_repeat_ngram_size": 2, "do_sample": False, **settings}
    with quantized_cache():  # weights do not change: the fake-quantised model rounds them once
        return model.generate(ids_BL, attention_mask=mask_BL, **settings)


@pytest.mark.parametrize(("bits", "quantizer", "per"), CASES)
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_the_fake_quantised_models(name: str, bits: str, quantizer: str, per: str, tmp_path: Path) -> None:
    model = quantized(MODELS[name](), bits, quantizer, per)
    expected = logits(model)
    packed = pack_model(model)
    packed.save_pretrained(tmp_path)
    loaded = load_low_bit(tmp_path)
    assert torch.equal(logits(packed), expected)
    assert torch.equal(logits(copy.deepcopy(packed)), expected)
    assert torch.equal(logits(model), expected), "packing changed the model that it was given"
    for memory in MEMORY:
        loaded.keep_in_memory(memory)
        assert torch.equal(logits(loaded), expected), memory
        assert torch.equal(logits(loaded), expected), f"{memory}, the second time"
    for weight_name, (integers, scale) in quantized_integers(model).items():
        weight = loaded.get_submodule(weight_name)
        assert torch.equal(unpack(weight.packed, weight.bits, weight.shape), integers)
        assert torch.equal(weight.scale, scale)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_equal_the_fake_quantised_models(name: str, tmp_path: Path) -> None:
    model = quantized(MODELS[name]())
    expected = continued(model)
    pack_model(model).save_pretrained(tmp_path)
    assert len(expected[1].unique()) > 5, "a model that repeats itself shows nothing"
    packed = load_low_bit(tmp_path)
    assert torch.equal(continued(packed), expected)
    for settings in ({"use_cache": False}, {"num_beams": 2}):
        assert torch.equal(continued(packed, 6, **settings), continued(model, 6, **settings)), settings


@pytest.mark.parametrize(("name", "uses"), [("gpt2", 2), ("bart", 4)])
def test_what_is_tied_is_one_table(name: str, uses: int, tmp_path: Path) -> None:
    pack_model(quantized(MODELS[name]())).save_pretrained(tmp_path)
    loaded = load_low_bit(tmp_path)
    holders = [module for module in loaded.modules() if isinstance(getattr(module, "weight", None), PackedWeight)]
    table = loaded.get_input_embeddings().weight
    assert sum(holder.weight is table for holder in holders) == uses
    assert sum(key.endswith(".packed") for key in load_file(tmp_path / "model.safetensors")) == len(packed_weights(loaded))
    moved = copy.deepcopy(loaded).double()
    assert moved.get_output_embeddings().weight is moved.get_input_embeddings().weight is not table


def test_an_untied_head_stays_as_it_is(tmp_path: Path) -> None:
    model = quantized(gpt2(tie_word_embeddings=False))
    pack_model(model).save_pretrained(tmp_path)
    loaded = load_low_bit(tmp_path)
    assert type(loaded.lm_head) is nn.Linear
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(("bits", "width"), [("2-2-8", 2), ("2-32-8", 32)])
def test_an_untied_bart_has_three_tables(bits: str, width: int, tmp_path: Path) -> None:
    model = quantized(bart(tie_word_embeddings=False), bits)
    pack_model(model).save_pretrained(tmp_path)
    assert torch.equal(logits(load_low_bit(tmp_path)), logits(model))
    tables = [row for row in size_table(tmp_path) if row.kind == "token embedding"]
    assert [(row.bits, row.tensors, row.elements) for row in tables] == [(width, 3, 3 * VOCAB * 16)]


def test_auto_classes_load_low_bit_models(tmp_path: Path) -> None:
    adasearch.register_low_bit()
    adasearch.register_low_bit()  # again does no harm
    for name, auto, kind in (
        ("gpt2", AutoModelForCausalLM, LowBitForCausalLM), ("bart", AutoModelForSeq2SeqLM, LowBitForSeq2SeqLM)
    ):  # fmt: skip
        pack_model(quantized(MODELS[name]())).save_pretrained(tmp_path / name)
        model = auto.from_pretrained(tmp_path / name, memory="int8")
        assert type(model) is kind is low_bit_class(tmp_path / name)
        assert model.memory == "int8"


@pytest.mark.parametrize("per", ["tensor", "row"])
def test_blocks_of_a_table_cover_it(per: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized(gpt2(), "2-2-8", per=per)
    packed = pack_model(model)
    monkeypatch.setattr(packed_modules, "BLOCK_ELEMENTS", 18 * 20)  # 97 rows of 18 in blocks of 16
    table = packed.lm_head.weight
    parts = list(table.blocks())
    assert [(rows.start, rows.stop) for rows, _ in parts] == [(start, min(start + 16, VOCAB)) for start in range(0, VOCAB, 16)]
    assert torch.equal(torch.cat([weight for _, weight in parts]), table.dequantize())
    # products of other shapes may add in another order: equal but for rounding
    torch.testing.assert_close(logits(packed), logits(model), rtol=1e-5, atol=1e-5)


def test_inputs_get_gradients() -> None:
    model = quantized(gpt2(), "2-2-32")
    packed, (ids_BL, _) = pack_model(model), texts()
    embeddings = model.transformer.wte(ids_BL).detach()
    packed.keep_in_memory("float")
    with torch.inference_mode():
        logits(packed)  # what it keeps now serves outside, too
    gradients = []
    for one in (model, packed):
        inputs = embeddings.clone().requires_grad_()
        one(inputs_embeds=inputs).logits.square().mean().backward()
        gradients.append(inputs.grad)
    torch.testing.assert_close(*gradients)


def test_kept_weights_follow_a_change_of_type() -> None:
    packed = pack_model(quantized(gpt2()))
    expected = logits(packed)
    for memory in MEMORY:
        packed.keep_in_memory(memory)
        logits(packed)
        wide = copy.deepcopy(packed).double()
        assert wide.lm_head.weight.dequantize().dtype == torch.float64
        torch.testing.assert_close(logits(wide), expected.double(), rtol=0.1, atol=0.1)  # roundings of inputs flip
        assert logits(copy.deepcopy(packed).bfloat16()).dtype == torch.bfloat16


def test_half_precision_of_the_rest_is_stored_only(tmp_path: Path) -> None:
    packed = pack_model(quantized(gpt2()))
    packed.save_pretrained(tmp_path / "full")
    packed.save_pretrained(tmp_path / "half", rest_dtype=torch.float16)
    stored, full = load_file(tmp_path / "half" / "model.safetensors"), load_file(tmp_path / "full" / "model.safetensors")
    loaded = load_low_bit(tmp_path / "half").state_dict()
    assert stored.keys() == full.keys() == loaded.keys()
    for name, tensor in full.items():
        if name.endswith((".packed", ".scale")):
            assert torch.equal(stored[name], tensor) and stored[name].dtype == tensor.dtype
        else:
            assert stored[name].dtype == torch.float16
            assert torch.equal(loaded[name], tensor.half().float()), name


def test_sizes_are_those_of_the_file(tmp_path: Path) -> None:
    packed = pack_model(quantized(gpt2(), "4-2-8", per="row"))
    packed.save_pretrained(tmp_path)
    rows = size_table(tmp_path)
    assert rows == size_table(packed)
    found = {(row.kind, row.bits): (row.tensors, row.elements, row.size_bytes, row.scale_bytes) for row in rows}
    width, layers = 18, 2
    outputs, per_layer = width * (3 + 1 + 4 + 1), 12 * width * width  # of c_attn, c_proj, c_fc, c_proj
    assert found == {
        ("linear weights", 4): (4 * layers, layers * per_layer, layers * (per_layer // 2 + outputs * 4), layers * outputs * 4),
        ("token embedding", 2): (1, VOCAB * width, -(-VOCAB * width // 4) + VOCAB * 4, VOCAB * 4),
        ("positions", 32): (1, 80 * width, 80 * width * 4, 0),
        ("biases", 32): (4 * layers, layers * outputs, layers * outputs * 4, 0),
        ("layer norms", 32): (2 * (2 * layers + 1), (2 * layers + 1) * 2 * width, (2 * layers + 1) * 2 * width * 4, 0),
    }
    file = (tmp_path / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(file[:8], "little")
    totals = size_totals(rows, file_size(tmp_path))
    assert totals["stored_bytes"] == len(file) - header
    assert totals["file_ratio"] == 4 * sum(p.numel() for p in gpt2().parameters()) / len(file)


@pytest.mark.parametrize("name", MODELS)
def test_a_tied_table_of_32_bits_counts_once_in_memory_too(name: str, tmp_path: Path) -> None:
    packed = pack_model(quantized(MODELS[name](), "2-32-8"))
    packed.save_pretrained(tmp_path)
    assert size_table(packed) == size_table(tmp_path)


@pytest.mark.parametrize(
    ("bits", "published"), [("8-8-8", (121.3, 138.1)), ("2-2-8", (32.9, 39.6))]
)
def test_published_sizes(bits: str, published: tuple[float, float]) -> None:
    base = {"d_model": 768, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072, "encoder_layers": 6, "decoder_layers": 6}
    with torch.device("meta"):  # shapes are all that sizes need
        models = GPT2LMHeadModel(GPT2Config()), BartForConditionalGeneration(BartConfig(vocab_size=50265, **base))
        for model, fp32_mib, packed_mib in zip(models, (474.7, 532.0), published):
            attach_quantizers(model, bits, gamma_init=1.0)
            totals = size_totals(size_table(low_bit_shell(model)))
            assert totals["fp32_bytes"] / MIB == pytest.approx(fp32_mib, abs=0.06)
            assert totals["nominal_bytes"] / MIB == pytest.approx(packed_mib, abs=0.06)
            assert totals["stored_bytes"] - totals["nominal_bytes"] < 1_000


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    pack_model(quantized(gpt2())).save_pretrained(tmp_path)
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    tensors, text = load_file(file), config.read_text()
    lost = "transformer.h.0.attn.c_attn.weight.packed"
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"1 weights are missing, such as {lost}"):
        load_low_bit(tmp_path)
    save_file({**tensors, "more": torch.ones(1)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="1 weights are unknown, such as more"):
        load_low_bit(tmp_path)
    save_file(tensors, file, metadata={"format": "pt"})
    config.write_text(text.replace("transformer.h.0.attn.c_attn.weight", "transformer.h.7.attn.c_attn.weight"))
    with pytest.raises(ModelError, match=r"low_bit names transformer\.h\.7\.attn\.c_attn"):
        load_low_bit(tmp_path)
    config.write_text(json.dumps({**json.loads(text), "model_type": "gpt2"}))
    with pytest.raises(ModelError, match="'gpt2'; low-bit models are: adasearch_low_bit_gpt2, adasearch_low_bit_bart"):
        load_low_bit(tmp_path)
    with pytest.raises(ModelError, match="no model there"):
        load_low_bit(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="no safetensors file"):
        size_table(tmp_path / "nowhere")
    config.write_text(text)
    with pytest.raises(ConfigError, match="memory 'disk'; choices: packed, int8, float"):
        load_low_bit(tmp_path, "disk")


def test_models_that_cannot_be_packed_are_refused() -> None:
    with pytest.raises(ModelError, match="no quantised weights"):
        pack_model(gpt2())
    with pytest.raises(ModelError, match="GPT2Model: no low-bit model of this class; choices: GPT2LMHeadModel"):
        pack_model(gpt2().transformer)
    with pytest.raises(ModelError, match="made by pack_model"):
        LowBitForCausalLM(LowBitForCausalLM.config_class())
    with pytest.raises(ModelError, match="sizes are of low-bit models"):
        size_table(gpt2())
    model = quantized(gpt2())
    parametrize.register_parametrization(model.transformer.wpe, "weight", nn.Identity())
    with pytest.raises(ModelError, match=r"transformer\.wpe\.weight is parametrised but not quantised"):
        pack_model(model)


def test_a_packed_weight_says_what_it_is() -> None:
    weight = PackedWeight((4, 6), 2, (4, 1))
    weight.packed.copy_(pack(torch.ones(4, 6, dtype=torch.int8), 2))
    assert repr(weight) == "PackedWeight((4, 6), bits=2, scales=4)"
    assert torch.equal(weight.dequantize(), torch.ones(4, 6))
