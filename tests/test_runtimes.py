"""Runtimes answer alike, take what the model takes, and say what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from adasearch.errors import ConfigError, ModelError
from adasearch.export import export_student
from adasearch.runtimes import RUNTIMES, Runtime, TorchRuntime, choose_runtime, load_classifier, load_runtime

TINY = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 24, "num_labels": 3, "initializer_range": 0.5}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT classifier, exported."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bert")
    BertForSequenceClassification(BertConfig(**TINY)).save_pretrained(path)
    export_student(path)
    return path


def make_batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, mask and token types of three texts, (3, 9); the second is padded."""
    ids = np.random.default_rng(0).integers(5, 60, (3, 9))
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    return ids, mask, np.repeat([[0, 0, 0, 0, 1, 1, 1, 1, 1]], 3, axis=0)


@pytest.mark.parametrize("name", sorted(RUNTIMES))
@pytest.mark.parametrize("has_types", [False, True])
def test_every_runtime_gives_the_models_logits(folder: Path, name: str, has_types: bool) -> None:
    ids, mask, types = make_batch()
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    inputs = {"input_ids": ids, "attention_mask": mask, **({"token_type_ids": types} if has_types else {})}
    with torch.no_grad():
        expected = model(**{key: torch.from_numpy(value) for key, value in inputs.items()}).logits.numpy()
    runtime = load_runtime(name, folder, threads=1)
    found = runtime(ids, mask, types) if has_types else runtime(ids, mask)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32
    assert (runtime.name, runtime.precision, runtime.threads, runtime.vocab_size) == (name, "fp32", 1, 60)


def test_token_types_matter_in_this_test(folder: Path) -> None:
    runtime = load_runtime("onnxruntime", folder)
    ids, mask, types = make_batch()
    assert abs(runtime(ids, mask, types) - runtime(ids, mask)).max() > 1e-2


def test_models_without_token_types_are_not_fed_any() -> None:
    model = BertForSequenceClassification(BertConfig(**TINY, type_vocab_size=1)).eval()
    ids, mask, types = make_batch()  # a type 1 would be beyond the table
    assert TorchRuntime(model, 1)(ids, mask, types).shape == (3, 3)


def test_torch_runtime_keeps_its_threads(folder: Path) -> None:
    runtime = load_runtime("torch", folder, threads=2)
    ids, mask, _ = make_batch()
    try:
        torch.set_num_threads(1)
        runtime(ids, mask)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_auto_is_onnxruntime_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_runtime("auto") == "onnxruntime"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # Python's own way to say: not installed
    assert choose_runtime("auto") == "torch"
    with pytest.raises(ConfigError, match=r"'onnxruntime' is not installed; pip install 'adasearch\[onnx\]'"):
        choose_runtime("onnxruntime")
    assert choose_runtime("torch") == "torch"


def test_a_registered_runtime_can_be_chosen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RUNTIMES, "_items", dict(RUNTIMES._items))

    @RUNTIMES.register("half")
    def load_half(model_dir: Path, threads: int, precision: str) -> Runtime:
        return TorchRuntime(load_classifier(model_dir).bfloat16(), threads)

    runtime = load_runtime("half", folder)
    ids, mask, _ = make_batch()
    assert runtime.precision == "bf16" and runtime(ids, mask).dtype == np.float32


def test_errors_of_choice(folder: Path, tmp_path: Path) -> None:
    for settings, message in (
        ({"name": "tvm"}, "runtime: 'tvm' is not known; choices: auto, onnxruntime, torch"),
        ({"threads": 0}, "threads: 0 is out of range"),
        (
            {"name": "onnxruntime", "precision": "int3"},
            "precision: 'int3' is not known to runtime 'onnxruntime'; choices: fp32, int8",
        ),
        ({"name": "torch", "precision": "int8"}, "precision: 'int8' is not known to runtime 'torch'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_runtime(**{"name": "torch", "model_dir": folder, **settings})
    with pytest.raises(ModelError, match=r"model_int8.onnx: not there; `adasearch export"):
        load_runtime("onnxruntime", folder, precision="int8")
    broken = tmp_path / "broken"
    (broken / "onnx").mkdir(parents=True)
    (broken / "config.json").write_text(json.dumps({"vocab_size": 5}))
    (broken / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match="model.onnx: onnxruntime cannot load it"):
        load_runtime("onnxruntime", broken)


def test_errors_of_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        load_classifier(tmp_path / "absent")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "never_heard_of"}))
    with pytest.raises(ModelError, match="no sequence classifier can be loaded") as caught:
        load_classifier(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelError, match="no sequence classifier can be loaded"):  # a config without weights
        load_classifier(tmp_path)


def test_half_precision_checkpoints_are_run_in_float32(tmp_path: Path) -> None:
    BertForMaskedLM(BertConfig(**TINY)).half().save_pretrained(tmp_path)
    assert load_classifier(tmp_path).dtype == torch.float32
