"""Bench: every system in every runtime and precision, none of it written into the models' folders; ratios by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from adasearch import bench
from adasearch.bench import bench_folders, choose_ways
from adasearch.bench_config import check_bench
from adasearch.bench_ratios import best_ratios, best_runtimes, format_bench
from adasearch.config import BenchConfig
from adasearch.errors import ConfigError
from adasearch.export import export_onnx
from adasearch.int8 import write_int8_embedding
from adasearch.measure import count_macs, count_params
from adasearch.runtimes import available_runtimes

TINY = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 32, "num_labels": 3}  # fmt: skip


def config(**changes: Any) -> BenchConfig:
    """Quick and small; no reference, no fresh process."""
    settings = {"runtime": "torch", "batch_sizes": [1, 2], "seq_lengths": [8, 4], "repeats": 2, "warmup": 1, "cold_starts": 0,
                "stream_texts": 6, "reference": False}  # fmt: skip
    return BenchConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier."""
    path = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**TINY)).eval()
    model.save_pretrained(path)
    export_onnx(model, path / "onnx" / "model.onnx")
    return path


def test_a_row_for_every_runtime_and_precision(folder: Path) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in folder.rglob("*")}
    asked = config(runtimes=["torch", "onnxruntime"], precisions=["fp32", "bf16"])
    rows = bench_folders([folder], asked, lengths=[3, 5, 9, 40])
    assert [(row["name"], row["runtime"], row["precision"]) for row in rows] == [
        (str(folder), "torch", "fp32"), (str(folder), "torch", "bf16"), (str(folder), "onnxruntime", "fp32"),
    ]  # fmt: skip
    model = BertForSequenceClassification.from_pretrained(folder)
    for row in rows:
        assert (row["params"], row["params_embedding"]) == count_params(model) and row["macs"] == count_macs(model, 8)
        assert [(t["batch_size"], t["seq_len"]) for t in row["timings"]] == [(1, 8), (2, 8), (1, 4), (2, 4)]
        assert row["latency_ms_p50"] == row["timings"][0]["latency_ms_p50"] > 0
        assert row["size_bytes"] >= 4 * row["params"] and row["note"] == ""
        assert [(s["batch_size"], s["is_sorted"]) for s in row["streams"]] == [(1, False), (2, False), (2, True)]
        assert row["streams"][0]["mean_tokens"] == pytest.approx((3 + 3 + 5 + 9 + 32 + 32) / 6, abs=4)  # 40 was cut to 32
    assert {file.name: file.stat().st_mtime_ns for file in folder.rglob("*")} == before  # nothing is left in it
    json.dumps(rows)
    text = format_bench(rows)
    for words in ("torch bf16", "2 x 4", "sorted", "peak MB", "at equal precision"):
        assert words in text, words


def test_who_times_has_the_threads_he_had(folder: Path) -> None:
    torch.set_num_threads(2)
    try:
        bench_folders([folder], config(seq_lengths=[4], batch_sizes=[1]))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_cold_starts_are_in_the_row(folder: Path) -> None:
    found = bench_folders([folder], config(runtime="onnxruntime", cold_starts=1, seq_lengths=[4]))[0]
    assert found["load_s"] > 0 and found["first_inference_ms"] > 0 and found["peak_rss_bytes"] > found["import_rss_bytes"] > 0


def test_the_same_folder_twice(folder: Path) -> None:
    rows = bench_folders([folder, folder], config(seq_lengths=[4]))
    assert [row["name"] for row in rows] == [str(folder), f"{folder} (2)"]
    assert all(row["streams"] == [] and row["load_s"] is None for row in rows)  # without lengths, without starts
    assert "own lengths" not in format_bench(rows)


def test_int8_that_is_not_there_is_made_from_random_texts_and_says_so(folder: Path, tmp_path: Path) -> None:
    own = shutil.copytree(folder, tmp_path / "own")
    write_int8_embedding(own / "onnx" / "model.onnx", own / "onnx" / "model_int8_embedding.onnx", 60)
    before = {file: file.stat().st_mtime_ns for file in own.rglob("*") if file.is_file()}
    asked = config(
        runtime="onnxruntime", precisions=["fp32", "int8", "int8_embedding"], seq_lengths=[4], reference=True,
        references=["static_embeddings"],
    )  # fmt: skip
    rows = bench_folders([own], asked)
    assert [row["name"] for row in rows[3:]] == ["static embeddings shape (random weights, time only)"] * 3
    assert [row["precision"] for row in rows] == ["fp32", "int8", "int8_embedding"] * 2
    assert [row["note"] == bench.UNTRUE_INT8 for row in rows] == [False, True, False, False, True, True]
    fp32, int8, table = (row["size_bytes"] for row in rows[3:])
    assert int8 == table < 0.3 * fp32  # 30,522 rows of 256 are all there is
    assert {file: file.stat().st_mtime_ns for file in own.rglob("*") if file.is_file()} == before


def row(name: str, runtime: str, precision: str, ms: float, stream: float) -> dict[str, Any]:
    """What is read of a row, of a system that takes ``ms`` a text and makes ``stream`` texts a second."""
    shape = {"batch_size": 1, "seq_len": 128, "texts_per_s": 1e3 / ms}
    return {"name": name, "runtime": runtime, "precision": precision, "timings": [shape],
            "streams": [{"batch_size": 32, "is_sorted": True, "texts_per_s": stream}]}  # fmt: skip


def test_ratios_are_between_best_runtimes_at_equal_precision() -> None:
    rows = [
        row("student", "onnxruntime", "fp32", 2.0, 900), row("student", "openvino", "fp32", 4.0, 1000),
        row("student", "openvino", "int8", 1.0, 1500),
        row("bert", "onnxruntime", "fp32", 160.0, 10), row("bert", "openvino", "fp32", 120.0, 8),
        row("bert", "openvino", "bf16", 40.0, 30),
    ]  # fmt: skip
    found = {(r["precision"], r["shape"]): r for r in best_ratios(rows)}
    assert {key: r["speed"] for key, r in found.items()} == pytest.approx({
        ("fp32", "1 x 128"): 120 / 2, ("fp32", "32, sorted"): 1000 / 10,
        ("any", "1 x 128"): 40 / 1, ("any", "32, sorted"): 1500 / 30,
    })  # fmt: skip
    first = found["fp32", "1 x 128"]
    assert (first["runtime"], first["against_runtime"]) == ("onnxruntime", "openvino")  # each its own best
    assert (found["any", "1 x 128"]["with"], found["any", "1 x 128"]["against_with"]) == ("int8", "bf16")
    assert best_ratios(rows, "bert")[0]["speed"] == pytest.approx(2 / 120)
    order = [(r["shape"], r["precision"], r["name"]) for r in best_runtimes(rows)][:6]
    assert order == [("1 x 128", p, n) for p, n in (
        ("fp32", "student"), ("fp32", "bert"), ("int8", "student"), ("bf16", "bert"), ("any", "student"), ("any", "bert"))]  # fmt: skip
    with pytest.raises(ConfigError, match="subject: 'x' was not timed; choices: student, bert"):
        best_ratios(rows, "x")


def test_ways_are_what_the_runtimes_offer() -> None:
    offered = available_runtimes()
    asked = BenchConfig(runtimes=list(offered), precisions=["fp32", "int8"])
    assert choose_ways(asked) == [(n, p) for n in offered for p in ("fp32", "int8") if p in offered[n]]
    assert choose_ways(BenchConfig(runtime="torch")) == [("torch", "fp32")]  # the one runtime of old


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtimes": ["tvm"]}, "runtime: 'tvm' is not known; choices: auto, "),
        ({"precisions": ["fp4"]}, "precisions: 'fp4' is not known; choices: bf16, fp32, int8, int8_embedding"),
        ({"precisions": ["int8"]}, "precisions: 'int8' is offered by none of torch; runtimes that do: .*onnxruntime"),
        ({"threads": 1000}, "threads: 1000 on .* choices: 1 to "),
        ({"precisions": []}, "precisions: the list is empty"),
        ({"runtimes": ["torch", "torch"]}, "runtimes: torch, torch: one is there twice"),
        ({"reference": True, "references": ["gpt"]}, r"references\[0\]: 'gpt' is not known; choices: bert_base"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        bench_folders([tmp_path / "absent"], config(**changes))


def test_models_are_checked(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent is no model folder"):
        bench_folders([tmp_path / "absent"], config())
    with pytest.raises(ConfigError, match="seq_lengths: 128: model .* has positions for 32; choices: up to 32"):
        bench_folders([folder], config(seq_lengths=[128]))
    with pytest.raises(ConfigError, match="nothing to time"):
        bench_folders([], config())


@pytest.mark.parametrize(("name", "value"), [("batch_sizes", []), ("seq_lengths", [0]), ("threads", 0), ("cold_starts", -1)])
def test_numbers_are_checked(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^bench.{name}"):
        check_bench(config(**{name: value}), "bench.")


def test_shapes_of_a_cold_start_end_with_the_largest_batch() -> None:
    assert bench.cold_shapes(config(batch_sizes=[32, 1, 32])) == [(1, 8), (32, 8)]
