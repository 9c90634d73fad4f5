"""deploy.json: what is saved comes back, what does not fit is refused, and it decides how a model is loaded."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from hearing import Heard
from transformers import BertConfig, BertForSequenceClassification

from adasearch.classifier import open_runtime
from adasearch.deploy import Deployment, load_deployed, load_deployment, save_deployment
from adasearch.errors import ConfigError, ModelError
from adasearch.export import export_student
from adasearch.measure import hardware

TINY = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 24, "num_labels": 3}  # fmt: skip


def make_deployment(**changes: object) -> Deployment:
    settings = {
        "runtime": "openvino", "precision": "fp32", "threads": 1, "batch_size": 1, "seq_len": 8, "metric": "accuracy",
        "score": 0.9, "score_fp32": 0.9, "latency_ms_p50": 1.5, "texts_per_s": 666.7, "size_bytes": 1000,
        "tried": [{"runtime": "torch", "precision": "fp32", "score": None, "note": "why"}],
        "hardware": {"cpu": hardware()["cpu"]},
    }  # fmt: skip
    return Deployment(**{**settings, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny classifier without graphs."""
    BertForSequenceClassification(BertConfig(**TINY)).save_pretrained(tmp_path)
    return tmp_path


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    assert load_deployment(tmp_path) is None
    deployment = make_deployment(left_out=["a"])
    assert save_deployment(deployment, tmp_path) == tmp_path / "deploy.json"
    assert load_deployment(tmp_path) == deployment
    chosen_by_none = make_deployment(max_drop=None)
    save_deployment(chosen_by_none, tmp_path)
    assert load_deployment(tmp_path) == chosen_by_none
    assert [path.name for path in tmp_path.iterdir()] == ["deploy.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime": "tvm"}, "runtime: 'tvm' is not known; choices: onnxruntime, openvino, torch"),
        ({"precision": "int2"}, "precision: 'int2' is not known to openvino; choices: fp32, bf16, int8"),
        ({"threads": 0}, "threads: 0 does not fit; choices: whole numbers from 1"),
        ({"score": float("nan")}, "score: nan does not fit; choices: a finite number"),
        ({"version": 9}, "version: 9 cannot be read; choices: 1"),
    ],
)
def test_what_does_not_fit_is_neither_saved_nor_read(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"deploy.json: {message}"):
        save_deployment(make_deployment(**changes), tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "deploy.json").write_text(json.dumps(dataclasses.asdict(make_deployment(**changes))))
    with pytest.raises(ConfigError, match=f"deploy.json: {message}"):
        load_deployment(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"deploy.json: cannot be read \(.*\); `adasearch quantize .*` writes it anew"),
        ("[]", "deploy.json: holds list, not a deployment"),
        ('{"runtime": "torch", "speed": 3}', r"deploy.json: unknown keys \['speed'\], missing keys \['batch_size', "),
    ],
)
def test_files_that_hold_no_deployment(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "deploy.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_deployment(tmp_path)


def test_without_a_choice_it_is_auto(folder: Path) -> None:
    runtime = load_deployed(folder)
    assert (runtime.name, runtime.threads) == ("torch", torch.get_num_threads())  # no graph to load
    export_student(folder)
    assert (load_deployed(folder, threads=2).name, load_deployed(folder, threads=2).threads) == ("onnxruntime", 2)


def test_the_choice_is_loaded_and_what_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_deployment(make_deployment(runtime="torch", precision="bf16", threads=3), folder)
    runtime = load_deployed(folder)
    assert (runtime.name, runtime.precision, runtime.threads) == ("torch", "bf16", 3)
    assert load_deployed(folder, threads=1).threads == 1
    save_deployment(make_deployment(precision="int8"), folder)
    with pytest.raises(ModelError, match="deploy.json: .*model_int8.onnx: not there; `adasearch quantize"):
        load_deployed(folder)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"deploy.json: runtime: 'openvino' is not installed; pip install 'adasearch\[openvino\]'"):
        load_deployed(folder)


def test_a_choice_of_another_processor_is_taken_with_a_warning(folder: Path) -> None:
    progress = Heard()
    save_deployment(make_deployment(runtime="torch"), folder)
    load_deployed(folder, progress=progress)
    assert progress.warnings == []
    save_deployment(make_deployment(runtime="torch", hardware={"cpu": "Z80"}), folder)
    assert load_deployed(folder, progress=progress).name == "torch"
    (said,) = progress.warnings
    assert "torch fp32 was the fastest on 'Z80'" in said and "measures anew" in said


@pytest.mark.parametrize(
    ("asked", "loaded"),
    [
        (("auto", "int8", None), ("openvino", "int8", 3)),
        (("auto", "fp32", None), ("openvino", "fp32", 3)),
        (("openvino", None, None), ("openvino", "int8_embedding", 3)),
        (("openvino", None, 2), ("openvino", "int8_embedding", 2)),
        (("onnxruntime", None, None), ("onnxruntime", "fp32", 3)),
        (("torch", "bf16", 1), ("torch", "bf16", 1)),
    ],
)
def test_what_is_not_asked_for_stays_as_it_was_saved(
    asked: tuple[str, str | None, int | None], loaded: tuple[str, str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adasearch.classifier.load_runtime", lambda name, folder, threads, precision: (name, precision, threads))
    save_deployment(make_deployment(precision="int8_embedding", threads=3), tmp_path)
    runtime, precision, threads = asked
    assert open_runtime(tmp_path, runtime, precision, threads) == loaded


def test_a_precision_that_the_saved_runtime_lacks_is_looked_for_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adasearch.classifier.load_runtime", lambda name, folder, threads, precision: (name, precision, threads))
    save_deployment(make_deployment(runtime="torch", threads=3), tmp_path)
    assert open_runtime(tmp_path, "auto", "int8", None) == ("onnxruntime", "int8", 3)
    (tmp_path / "deploy.json").unlink()
    assert open_runtime(tmp_path, "auto", "int8", None) == ("onnxruntime", "int8", torch.get_num_threads())
