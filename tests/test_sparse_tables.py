"""Sizes, runtimes and zeros in reports: rows of hand-worked numbers, and what must not be said."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from pictures import assert_disjoint, assert_inside, rendered
from reports import STUDENT, make_report, system, timing

from adasearch import html, markdown, verdict
from adasearch.errors import ConfigError
from adasearch.report import Report, System
from adasearch.report_files import read_report, rebuild_report, write_report
from adasearch.report_tables import Cell
from adasearch.sparse_tables import runtimes_table, sizes_table, zeros_sentences
from adasearch.sparsity_plots import describe_zeros, read_zeros, write_zeros, zeros_figure

RATIOS = {"nominal": 40.0, "with_index": 17.8, "without_tables": 12.5, "whole": 5.04}
GRAPH = {"accuracy": 0.871}


def row(ms: float, runtime: str, precision: str, option: str = "") -> dict[str, object]:
    return {**timing(1, 128, ms), "runtime": runtime, "precision": precision, "option": option}


def sparse_report(*others: System, **changes: object) -> Report:
    """Dense 20 ms and 16 ms; in int8 10 ms and 8 ms; the student's zeros bring nothing in onnxruntime, 2x in OpenVINO's option."""
    int8 = {"precision": "int8"}
    dense = system("teacher", (0.9,), 1000, 20.0, runtimes=[row(16.0, "openvino", "fp32")])
    student = system(
        "student", STUDENT, 1000, 10.0, **int8, encoder_sparsity=0.9, size_ratios=RATIOS, sparse_bytes=18_700_000, agreement=0.9954, graph_scores=GRAPH,
        runtimes=[row(8.0, "openvino", "int8"), row(4.0, "openvino", "int8", "sparse weights")], **changes,
    )  # fmt: skip
    student = dataclasses.replace(student, timings=[{**one, **int8} for one in student.timings])
    calibrated = system("dense_int8", (0.88,), 1000, 10.2, **int8, runtimes=[row(8.0, "openvino", "int8")])
    calibrated = dataclasses.replace(calibrated, timings=[{**one, **int8} for one in calibrated.timings])
    return make_report(dense, student, calibrated, *others)


def texts(cells: list[Cell]) -> list[str]:
    return [f"{cell.text} {cell.note}".strip() for cell in cells]


def test_a_size_is_said_in_four_ways() -> None:
    table = sizes_table(sparse_report())
    assert [row.is_main for row in table.rows] == [True] and len(table.columns) == 9
    assert texts(table.rows[0].cells) == ["student", "90.00", "40.0", "17.8", "12.5", "5.0", "18.7", "99.54", "87.1"]
    assert sizes_table(make_report()) is None and runtimes_table(make_report()) is None
    said = verdict.verdict(sparse_report())
    assert "in a file 5.0x smaller than its own weights in float32 (its encoder's alone 17.8x, 40.0x by their values)" in said
    page, text = html.html(sparse_report()), markdown.markdown(sparse_report())
    assert 'id="sizes"' in page and 'id="runtimes"' in page and "smaller as the sparse file: 18.7 MB" in page
    assert "| **student** | 90.00 | 40.0 | 17.8 | 12.5 | 5.0 | 18.7 | 99.54 | 87.1 |" in text
    assert "onnxruntime fp32 (student in int8; dense int8 in int8), all systems interleaved" in text
    assert "## Other shapes" not in text and "## Other shapes" in markdown.markdown(make_report()), "one table has all shapes"


def test_every_runtime_is_held_against_the_dense_model_in_the_same_one() -> None:
    table = runtimes_table(sparse_report())
    found = {tuple(texts(row.cells[:2])): texts(row.cells[2:])[0] for row in table.rows}
    assert found == {
        ("teacher", "onnxruntime fp32"): "20.0", ("teacher", "openvino fp32"): "16.0",
        ("student", "onnxruntime int8"): "10.0 2.0×", ("student", "openvino int8"): "8.00 2.0×",
        ("student", "openvino int8 option for sparse weights"): "4.00 4.0×",
        ("dense int8", "onnxruntime int8"): "10.2 2.0×", ("dense int8", "openvino int8"): "8.00 2.0×",
    }  # fmt: skip


def test_zeros_are_praised_for_what_zeros_alone_did() -> None:
    assert zeros_sentences(sparse_report()) == [
        "Zeros alone bring no speed in onnxruntime int8: 10.2 ms dense, 10.0 ms sparse.",
        "Zeros alone bring no speed in openvino int8: 8.00 ms dense, 8.00 ms sparse.",
        "Zeros alone make it at least 2.00 times as fast in openvino int8 with its option for sparse weights: 8.00 ms dense, 4.00 ms sparse.",
    ]
    smaller = sparse_report()
    busy = [dataclasses.replace(s, runtimes=[*s.runtimes, *({**one, "batch_size": 32, "latency_ms_p50": 90.0} for one in s.runtimes)]) for s in smaller.systems]
    assert not any("make it" in text for text in zeros_sentences(dataclasses.replace(smaller, systems=busy))), "at one shape of two alone"
    cut = [dataclasses.replace(s, params=500) if s.kind == "student" else s for s in smaller.systems]
    assert zeros_sentences(dataclasses.replace(smaller, systems=cut)) == [], "it has fewer heads, too"
    refused = dataclasses.replace(smaller.systems[2], runtimes=[{"runtime": "openvino", "option": "", "precision": "int8", "error": "no such operator"}])
    said = zeros_sentences(dataclasses.replace(smaller, systems=[*smaller.systems[:2], refused]))
    assert said[-1] == "openvino refused dense int8: no such operator" and len(said) == 2


def test_a_graph_that_computes_otherwise_is_told() -> None:
    report = sparse_report()
    student = dataclasses.replace(report.find("student"), agreement=0.953)
    found = verdict.warnings(dataclasses.replace(report, systems=[report.systems[0], student]))
    assert "The int8 graph of 'student' predicts as the model that was trained on 95.3% of the examples: its own score is below." in found
    assert not any("graph" in text for text in verdict.warnings(report))


def test_pruning_on_the_task_alone_is_a_control_of_the_sparse_model_not_of_its_int8() -> None:
    def warned(sparse: tuple[float, ...], direct: tuple[float, ...]) -> list[str]:
        found = verdict.warnings(sparse_report(system("sparse", sparse), system("direct", direct)))
        return [text for text in found if "faster" not in text]

    assert warned((0.90, 0.901, 0.899), (0.886, 0.887, 0.885)) == [], "above the student, below the sparse model"
    (text,) = warned((0.86, 0.861, 0.859), (0.87, 0.871, 0.869))
    assert text == (
        "The sparse model before int8 is not better than a model pruned on this task alone (86.0 against 87.0):"
        " sparse pre-training gained nothing here."
    )


def test_a_report_keeps_its_sizes_and_runtimes(tmp_path: Path) -> None:
    report = sparse_report()
    write_report(tmp_path, report)
    assert read_report(tmp_path) == report
    rebuild_report(tmp_path)
    (tmp_path / "report.json").write_text('{"metric": "perplexity"}', encoding="utf-8")
    with pytest.raises(ConfigError, match="has no systems to compare"):
        rebuild_report(tmp_path)


def test_zeros_of_each_layer_are_told_and_drawn(tmp_path: Path) -> None:
    systems = {name: {f"encoder.layers.{n}.ffn.input": share + n / 100 for n in range(8)} for name, share in (("a", 0.85), ("b", 0.7))}
    write_zeros(tmp_path, systems)
    assert read_zeros(tmp_path) == systems and read_zeros(tmp_path / "none") == {}
    assert describe_zeros(systems).splitlines()[1:] == ["a       8       85.00% to 92.00%", "b       8       70.00% to 77.00%"]
    for shown in (systems, {"a": systems["a"]}):
        figure = zeros_figure(shown)
        drawn = rendered(figure)
        assert_inside(drawn, figure)
        assert_disjoint(drawn)
        assert {"ffn.input", "layer 7", "a", "85.0", "92.0"} <= {text for text, _ in drawn}
    students = {"searched": {"trunk.cells.0.edges.1.conv": 0.5, "trunk.cells.1.edges.0.linear": 0.25, "trunk.read": 0.75}}
    assert {"edges.1.conv", "edges.0.linear", "trunk.read", "25.0"} <= {text for text, _ in rendered(zeros_figure(students))}
