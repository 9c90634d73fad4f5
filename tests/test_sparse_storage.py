"""Laws of the sparse files: what comes back is what went in, whatever the format; sizes are those of the bytes written."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoder import make_model
from tiny_kinds import KINDS, a_model, inputs, logits
from tiny_masked import tiny_bert
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertForMaskedLM

from adasearch.errors import ConfigError, ModelError
from adasearch.quantize_aware import attach_int8, stacked_layers
from adasearch.sparse_files import FILE, SparseModel, read_sparse, save_sparse
from adasearch.sparse_model import attach_masks, prune_once, prune_to
from adasearch.sparse_size import sparse_size
from adasearch.sparse_storage import COMPRESSIONS, FORMATS, decode, encode, stored_bytes


def a_tensor(shape: tuple[int, ...], density: float, dtype: torch.dtype = torch.int8) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    values = torch.randint(-128, 128, shape, generator=generator).to(dtype)
    return values * (torch.rand(shape, generator=generator) < density)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("format", [*FORMATS, "smallest"])
@pytest.mark.parametrize("shape", [(0,), (1,), (7, 5), (64, 300), (3, 4, 5), (2, 3000)])
def test_round_trip(format: str, compression: str, shape: tuple[int, ...]) -> None:
    if compression == "zstd":
        pytest.importorskip("zstandard")
    for density in (0.0, 0.001, 0.1, 1.0):
        for dtype in (torch.int8, torch.float32):
            tensor = a_tensor(shape, density, dtype)
            stored, parts = encode(tensor, format, compression)
            found = decode(stored, parts)
            assert torch.equal(found, tensor) and found.dtype == dtype and found.shape == tensor.shape
            assert not found.is_floating_point() or not torch.signbit(found[found == 0]).any()


def test_layouts_by_hand() -> None:
    tensor = torch.tensor([[0, 5, 0, 0], [0, 0, 0, -3], [0, 0, 0, 0]], dtype=torch.int8)
    parts = {format: {key: part.tolist() for key, part in encode(tensor, format)[1].items()} for format in FORMATS}
    values = [5, 253]
    assert parts["bitmap"] == {"bitmap": [0b10000010, 0], "values": values}
    assert parts["index"] == {"counts": [1, 0, 1, 0, 0, 0], "columns": [1, 0, 3, 0], "values": values}
    assert parts["delta"] == {"gaps": [1, 5], "values": values}
    far = torch.zeros(600, dtype=torch.int8)
    far[[255, 599]] = 1
    assert encode(far, "delta")[1]["gaps"].tolist() == [255, 0, 255, 88]


def test_sizes_are_those_of_the_formulas() -> None:
    tensor = torch.zeros(100, 1000, dtype=torch.int8)
    tensor.view(-1)[::10] = 1
    n, k = tensor.numel(), tensor.numel() // 10
    sizes = {format: stored_bytes(encode(tensor, format)[1]) for format in FORMATS}
    assert sizes == {"bitmap": n // 8 + k, "index": 2 * 100 + 3 * k, "delta": 2 * k, "dense": n}
    assert 4 * n / sizes["bitmap"] == pytest.approx(17.8, abs=0.03), "as the specification says of 90% and int8"
    assert stored_bytes(encode(tensor, "smallest")[1]) == min(sizes.values())


def test_damaged_parts_are_refused() -> None:
    stored, parts = encode(a_tensor((30, 40), 0.2), "bitmap")
    with pytest.raises(ModelError, match="not whole"):
        decode(stored, {**parts, "values": parts["values"][:-1]})
    with pytest.raises(ModelError, match="not whole"):
        decode(stored, {"values": parts["values"]})
    stored, parts = encode(a_tensor((30, 40), 0.2), "bitmap", "zlib")
    with pytest.raises(ModelError, match="not whole"):
        decode(stored, {key: part[:-5] for key, part in parts.items()})


def test_unknown_choices_are_refused() -> None:
    for settings in ({"format": "coo"}, {"compression": "gzip"}):
        with pytest.raises(ConfigError, match="choices"):
            encode(torch.zeros(3, 3), **settings)
    with pytest.raises(ModelError, match="float16"):
        encode(torch.zeros(3, dtype=torch.float16))
    with pytest.raises(ModelError, match="too long"):
        encode(torch.zeros(1, 2**16), "index")


@pytest.mark.parametrize("format", ["smallest", "bitmap"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_read_back_computes_the_same_in_every_bit(kind: str, format: str, tmp_path: Path) -> None:
    model = a_model(kind)
    attach_masks(model, names=stacked_layers(model))
    prune_to(model, 0.9)
    attach_int8(model, embeddings=kind == "bert")
    model.train()(**inputs(kind))
    model.eval()
    found = SparseModel.from_pretrained(save_sparse(model, tmp_path, format=format, compression="zlib"))
    assert torch.equal(logits(found, kind), logits(model, kind))


def test_a_sparse_model_without_int8_is_a_plain_one(tmp_path: Path) -> None:
    model = a_model("bert")
    prune_once(model, 0.8)
    found = SparseModel.from_pretrained(save_sparse(model, tmp_path))
    assert type(found) is type(model) and torch.equal(logits(found, "bert"), logits(model, "bert"))


def test_who_does_not_know_the_format_finds_no_weights(tmp_path: Path) -> None:
    save_sparse(a_model("bert"), tmp_path)
    with pytest.raises(OSError, match="safetensors"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_the_four_ratios_are_counted_from_the_file(tmp_path: Path) -> None:
    model = make_model("bert", hidden_size=64, intermediate_size=128)
    attach_masks(model)
    prune_to(model, 0.9)
    attach_int8(model)
    model.train()(**inputs("bert"))
    size = sparse_size(save_sparse(model.eval(), tmp_path, format="bitmap"))
    layers = [model.get_submodule(name).weight for name in stacked_layers(model)]
    elements = sum(weight.numel() for weight in layers)
    kept = sum(int((weight != 0).sum()) for weight in layers)
    plain = make_model("bert", hidden_size=64, intermediate_size=128)
    whole = sum(parameter.numel() for parameter in plain.parameters())
    tables = sum(m.weight.numel() for m in plain.modules() if isinstance(m, torch.nn.Embedding))
    assert (size.linear_elements, size.linear_nonzeros, size.elements) == (elements, kept, whole)
    assert size.table_elements == tables and size.table_bytes == 4 * tables
    assert size.nominal == pytest.approx(4 * elements / kept) and size.nominal >= 40
    assert size.with_index == pytest.approx(4 * elements / (kept + sum(math.ceil(w.numel() / 8) for w in layers) + 4 * len(layers)))
    assert size.file_bytes == (tmp_path / FILE).stat().st_size
    assert size.whole == pytest.approx(4 * whole / size.file_bytes)
    assert size.without_tables == pytest.approx(4 * (whole - tables) / (size.file_bytes - 4 * tables))
    assert size.nominal > size.with_index > size.without_tables


def test_a_model_without_stacked_layers_has_no_ratios_of_them(tmp_path: Path) -> None:
    model = make_model("bert", num_hidden_layers=0).eval()
    found = sparse_size(save_sparse(model, tmp_path)).to_dict()
    assert (found["sparsity"], found["ratios"]["nominal"], found["ratios"]["with_index"]) == (0, None, None)
    assert 0 < found["ratios"]["whole"] < 1 and 0 < found["ratios"]["without_tables"] < 1  # names and header are in the file as well


def test_what_is_tied_is_stored_and_counted_once(tmp_path: Path) -> None:
    """A masked language model's decoder is its word table."""
    model = tiny_bert(BertForMaskedLM).eval()
    prune_once(model, 0.8)
    size = sparse_size(save_sparse(model, tmp_path))
    assert size.elements == sum(parameter.numel() for parameter in model.parameters())
    assert size.table_elements == sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding))
    tensors = load_file(tmp_path / FILE)
    assert not any(name.startswith("cls.predictions.decoder.") for name in tensors)
    found, ids_BL = SparseModel.from_pretrained(tmp_path), torch.arange(5, 13)[None]
    assert found.get_output_embeddings().weight is found.get_input_embeddings().weight
    assert torch.equal(found(ids_BL).logits, model(ids_BL).logits)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="save_sparse"):
        read_sparse(tmp_path)
    save_file({"x": torch.zeros(2)}, tmp_path / FILE)
    with pytest.raises(ModelError, match="no sparse model's file"):
        read_sparse(tmp_path)
    folder = save_sparse(a_model("bert"), tmp_path / "model")
    tensors = load_file(folder / FILE)
    assert all(name.rpartition(":")[2] in ("bitmap", "values", "counts", "columns", "gaps") for name in tensors if ":" in name)
    assert np.prod(tensors["classifier.weight:values"].shape) > 0


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_model_that_was_kept_in_halves_and_widened_is_read_back_in_full(family: str, tmp_path: Path) -> None:
    make_model(family).half().save_pretrained(tmp_path / "halves")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "halves").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 2**-20)  # what halves cannot hold
    read = SparseModel.from_pretrained(save_sparse(model, tmp_path / "sparse"))
    state = read.state_dict()
    assert read.config.dtype == torch.float32 and all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
