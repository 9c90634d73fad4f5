"""Runtimes answer alike, take what the model takes, and say what is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from adasearch.errors import ConfigError, ModelError
from adasearch.export import export_onnx, export_student
from adasearch.runtimes import (
    RUNTIMES, OpenvinoRuntime, Runtime, TorchRuntime, available_runtimes, choose_runtime, load_classifier, load_runtime,
    register_runtime,
)  # fmt: skip

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


def test_compiled_kernels_serve_every_length(folder: Path) -> None:
    runtime, reference = load_runtime("torch_compile", folder), load_runtime("torch", folder)
    generator, graphs = np.random.default_rng(2), []
    for shape in ((2, 5), (3, 9), (5, 24), (15, 2), (4, 17)):
        ids = generator.integers(5, 60, shape)
        np.testing.assert_allclose(runtime(ids, np.ones_like(ids)), reference(ids, np.ones_like(ids)), atol=1e-5)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(set(graphs)) == 1  # compiled once, at the first call


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_bf16_rounds_and_no_more(folder: Path, name: str) -> None:
    if "bf16" not in available_runtimes()[name]:
        pytest.skip("this processor does not compute in bf16")
    batch = make_batch()
    exact, rounded = load_runtime(name, folder)(*batch), load_runtime(name, folder, precision="bf16")(*batch)
    difference = abs(exact - rounded).max() / abs(exact).max()
    assert 1e-5 < difference < 0.1  # 8 bits of mantissa: 0.4% an operation, some ten of them; and not fp32 by another name
    assert rounded.dtype == np.float32


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_answers_depend_on_no_earlier_call(folder: Path, name: str) -> None:
    runtime, generator = load_runtime(name, folder), np.random.default_rng(1)
    texts = [generator.integers(5, 60, shape) for shape in ((1, 3), (4, 20), (1, 3), (2, 7), (1, 24), (3, 1))]
    kept = [runtime(ids, np.ones_like(ids)) for ids in texts]
    copies = [logits.copy() for logits in kept]
    for ids, logits in zip(texts[::-1], copies[::-1]):
        fresh = load_runtime(name, folder)(ids, np.ones_like(ids))
        np.testing.assert_array_equal(runtime(ids, np.ones_like(ids)), logits)
        np.testing.assert_array_equal(fresh, logits)
    for logits, copy in zip(kept, copies):
        np.testing.assert_array_equal(logits, copy)  # what was handed out is not overwritten


def test_openvino_is_set_to_one_stream_of_that_many_threads(folder: Path) -> None:
    compiled = load_runtime("openvino", folder, threads=2).compiled
    assert (compiled.get_property("INFERENCE_NUM_THREADS"), compiled.get_property("NUM_STREAMS")) == (2, 1)
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


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
    assert choose_runtime("torch") == "torch"


def test_a_signal_is_handled_after_openvino_models_are_gone(folder: Path) -> None:
    program = (
        "import pathlib, signal\n"
        "from adasearch.runtimes import load_runtime\n"
        f"first, second = (load_runtime('openvino', pathlib.Path({str(folder)!r})) for _ in range(2))\n"
        "del first\n"
        "del second\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('handled'))\n"
        "signal.raise_signal(signal.SIGTERM)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr  # -11 with a core for each model


@pytest.mark.parametrize(("name", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_runtime_that_is_not_installed_names_its_extra(
    name: str, extra: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert name not in available_runtimes()
    message = rf"runtime: '{name}' is not installed; pip install 'adasearch\[{extra}\]', or choose torch"
    for ask in (lambda: choose_runtime(name), lambda: load_runtime(name, folder)):
        with pytest.raises(ConfigError, match=message):
            ask()


def test_torch_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "torch_compile" not in available_runtimes()
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler, and 'no-such-compiler' is not there; install it"):
        choose_runtime("torch_compile")


def test_a_registered_runtime_can_be_chosen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RUNTIMES, "_items", dict(RUNTIMES._items))

    @register_runtime("half", precisions=("bf16", "fp16"), offers=lambda: ("bf16",))
    def load_half(model_dir: Path, threads: int, precision: str) -> Runtime:
        return TorchRuntime(load_classifier(model_dir).bfloat16(), threads)

    assert available_runtimes()["half"] == ("bf16",)
    runtime = load_runtime("half", folder, precision="bf16")
    ids, mask, _ = make_batch()
    assert runtime.precision == "bf16" and runtime(ids, mask).dtype == np.float32
    message = "precision: 'fp16' is not offered by this machine to runtime 'half'; choices: bf16"
    with pytest.raises(ConfigError, match=message):
        load_runtime("half", folder, precision="fp16")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}, "its labels count 3, those of .* 2"),
        ({"vocab_size": 61}, "its vocabulary count 60, those of .* 61"),
    ],
)
def test_a_graph_of_another_task_is_refused(
    name: str, changes: dict[str, object], message: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes((folder / "onnx" / "model.onnx").read_bytes())
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"is the graph of another task: {message}; `adasearch export"):
        load_runtime(name, tmp_path)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_graph_of_other_weights_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    load_runtime(name, own)
    torch.manual_seed(1)
    other = BertForSequenceClassification(BertConfig(**TINY)).eval()
    other.save_pretrained(own)  # trained on, without a new export
    with pytest.raises(ModelError, match=f"model.onnx: was made of other weights than those of {own}; `adasearch export {own}` writes it anew"):
        load_runtime(name, own)
    export_student(own)
    load_runtime(name, own)
    (own / "model.safetensors").unlink()  # a folder to be served with its graph alone
    load_runtime(name, own)
    other.save_pretrained(own)
    export_onnx(other, own / "onnx" / "model.onnx")  # of a model in memory: it says nothing of weights
    (own / "model.safetensors").write_bytes(b"others")
    load_runtime(name, own)


def test_errors_of_choice(folder: Path, tmp_path: Path) -> None:
    for settings, message in (
        ({"name": "tvm"}, "runtime: 'tvm' is not known; choices: auto, onnxruntime, openvino, torch"),
        ({"threads": 0}, "threads: 0 is out of range"),
        (
            {"name": "onnxruntime", "precision": "int3"},
            "precision: 'int3' is not known to runtime 'onnxruntime'; choices: fp32, int8",
        ),
        ({"name": "torch", "precision": "int8"}, "precision: 'int8' is not known to runtime 'torch'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_runtime(**{"name": "torch", "model_dir": folder, **settings})
    with pytest.raises(ModelError, match=r"model_int8.onnx: not there; `adasearch quantize"):
        load_runtime("onnxruntime", folder, precision="int8")
    broken = tmp_path / "broken"
    (broken / "onnx").mkdir(parents=True)
    (broken / "config.json").write_text(json.dumps({"vocab_size": 5}))
    (broken / "onnx" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match="model.onnx: onnxruntime cannot load it"):
        load_runtime("onnxruntime", broken)
    with pytest.raises(ModelError, match="model.onnx: OpenVINO cannot load it"):
        OpenvinoRuntime(broken / "onnx" / "model.onnx", 1)


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
