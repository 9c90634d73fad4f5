"""Fresh processes: what they report, what they import, what becomes of those that fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hearing import Heard
from onnx import TensorProto, helper
from transformers import BertConfig, BertForSequenceClassification

from adasearch import cold
from adasearch.cold import Deployed, cold_fields, cold_starts, start_once
from adasearch.runtimes import OnnxRuntime

MEGABYTE = 1 << 20


def write_graph(path: Path, ballast_bytes: int = 0) -> Path:
    """Logits (B, L) = float(ids) * mask; a constant of so many bytes has to be loaded beside."""
    weight = np.ones(max(1, ballast_bytes // 4), np.float32)
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["ids", "mask"], ["product"]),
        helper.make_node("ReduceMax", ["weight"], ["one"], keepdims=0),
        helper.make_node("Mul", ["product", "one"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "l"]) for name in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "l"])]
    constant = helper.make_tensor("weight", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True)
    graph = helper.make_graph(nodes, "ballast", inputs, outputs, [constant])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def deployed(graph: Path, runtime: str = "onnxruntime") -> Deployed:
    return Deployed(graph.parent, runtime, "fp32", 1, vocab_size=60, graph=graph)


def test_a_start_reports_times_and_memory(tmp_path: Path) -> None:
    ballast = 64 * MEGABYTE
    small, large = (
        start_once(deployed(write_graph(tmp_path / f"{size}.onnx", size)), [(1, 8), (2, 8)]) for size in (0, ballast)
    )
    for found in (small, large):
        assert all(found[key] > 0 for key in ("import_s", "load_s", "first_inference_ms"))
        assert 8 * MEGABYTE < found["import_rss_bytes"] <= found["peak_rss_bytes"] < 1 << 30
    grown = large["peak_rss_bytes"] - small["peak_rss_bytes"]
    assert ballast * 0.9 < grown  # the constant is held once at least


def test_a_graph_is_served_without_torch(tmp_path: Path) -> None:
    request = {"model_dir": str(tmp_path), "runtime": "onnxruntime", "precision": "fp32", "threads": 1, "vocab_size": 60,
               "shapes": [[1, 4]], "graph": str(write_graph(tmp_path / "g.onnx")), "root": ""}  # fmt: skip
    script = (
        f"import runpy, sys; found = runpy.run_path({cold.__file__!r})['answer_request']({request!r});"
        "print(sorted({'torch', 'transformers', 'adasearch', 'onnxruntime'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert told.stdout.strip() == "['onnxruntime']"


def test_the_process_serves_a_graph_as_the_runtime_does(tmp_path: Path) -> None:
    """Options that make a runtime slow or fast must be the same ones, and the logits too."""
    graph = write_graph(tmp_path / "g.onnx")
    ids = np.arange(6, dtype=np.int64).reshape(2, 3)
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    ours = OnnxRuntime(graph, 1, "fp32", 60)
    call = cold._import_onnxruntime(str(graph), 1, "fp32")()
    np.testing.assert_array_equal(call(ids, mask), ours(ids, mask))
    options = [session.get_session_options() for session in (ours.session, call.__closure__[1].cell_contents)]
    keys = ("intra_op_num_threads", "inter_op_num_threads", "execution_mode", "graph_optimization_level")
    assert len({tuple(str(getattr(option, key)) for key in keys) for option in options}) == 1
    spinning = [option.get_session_config_entry("session.intra_op.allow_spinning") for option in options]
    assert spinning == ["0", "0"]


def test_starts_take_turns_and_those_that_fail_are_told(tmp_path: Path) -> None:
    good = deployed(write_graph(tmp_path / "good.onnx"))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    listener = Heard()
    found = cold_starts({"good": good, "bad": deployed(broken)}, [(1, 4)], starts=2, progress=listener)
    assert found["good"].starts == 2 and found["bad"] is None
    assert len(listener.warnings) == 1 and "bad: onnxruntime fp32: no cold start measured" in listener.warnings[0]
    assert "broken.onnx" in listener.warnings[0]  # what the process itself said
    assert cold_fields(None) == dict.fromkeys(cold_fields(found["good"]))
    assert cold_fields(found["good"])["peak_rss_bytes"] == found["good"].peak_rss_bytes
    assert cold_starts({"good": good}, [(1, 4)], starts=0) == {"good": None}  # not asked for


def test_a_process_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    with pytest.raises(cold.ChildFailed, match="no answer in 0 s"):
        start_once(deployed(write_graph(tmp_path / "g.onnx")), [(1, 4)], timeout_s=0.001)


def test_a_runtime_that_reads_weights_is_loaded_by_the_package(tmp_path: Path) -> None:
    BertForSequenceClassification(BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
    )).save_pretrained(tmp_path)  # fmt: skip
    found = start_once(Deployed(tmp_path, "torch", "fp32", 1, vocab_size=60), [(1, 4)])
    assert found["load_s"] > 0 and found["import_rss_bytes"] > 100 * MEGABYTE  # torch itself


def test_medians() -> None:
    rows = [
        {"import_s": s, "load_s": 2 * s, "first_inference_ms": 3 * s, "import_rss_bytes": 10, "peak_rss_bytes": 4 * s}
        for s in (5, 1, 3, 9)
    ]
    found = cold._median(rows)
    assert (found.import_s, found.load_s, found.first_inference_ms, found.peak_rss_bytes, found.starts) == (4, 8, 12, 16, 4)
    assert cold._median(rows[:3]).import_s == 3


def test_files_of_the_working_folder_hide_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_graph(tmp_path / "g.onnx")
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    assert start_once(deployed(Path("g.onnx")), [(1, 4)])["load_s"] > 0


def test_peak_memory_is_what_the_system_says() -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs Linux's account of the process")
    peaks = [cold.peak_rss_bytes(), int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.05)  # the two accounts are updated at different moments
