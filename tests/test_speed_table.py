"""Speed tables: hand-worked quotients, published numbers with their sources, files that read back as they were written."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from pictures import assert_disjoint, assert_inside, rendered

from adasearch import cli
from adasearch.errors import ConfigError
from adasearch.files import write_json
from adasearch.report import Report, System
from adasearch.speed_table import (
    MEASURED,
    PUBLISHED,
    PUBLISHED_FILE,
    UNVERIFIED,
    build_tables,
    collect_rows,
    measured_rows,
    published_rows,
    speed_tables,
)
from adasearch.table_files import Table, escape_latex, to_figure, to_latex, to_markdown
from adasearch.verdict import compute_ratios

TIMED = {"runtime": "onnxruntime", "precision": "fp32", "threads": 1, "batch_size": 1, "seq_len": 128}


def make_report(task: str = "sst2", metric: str = "accuracy", **changes: Any) -> Report:
    """A student with 0.88 of a teacher's 0.90, five times smaller and twelve times faster; BERT-base five times slower
    and bigger than the teacher; TF-IDF on raw texts."""
    systems = [
        System("teacher", "teacher", 0.90, None, [0.90], params=20_000_000, latency_ms_p50=24.0, **TIMED),
        System("student (searched)", "student", 0.88, 0.002, [0.878, 0.882], params=4_000_000, latency_ms_p50=2.0, **TIMED),
        System("TF-IDF + logistic regression", "tfidf", 0.81, None, [0.81], params=50_000, latency_ms_p50=0.7,
               **{**TIMED, "seq_len": 0, "runtime": "scikit-learn", "precision": "fp64"}),
        System("BERT-base shape (random weights, time only)", "reference", params=100_000_000, latency_ms_p50=120.0, **TIMED),
    ]  # fmt: skip
    search = {"depth": 3, "width": 96, "operations": {"max_pool3": 4, "sep_conv5": 2}}
    facts = {"metrics": [metric], "majority": {metric: 0.5}, "seeds": [1, 2], "hardware": {}, "ratios": {}}
    return replace(Report(task=task, metric=metric, systems=systems, search=search, **facts), **changes)


def write_run(folder: Path, report: Report) -> Path:
    write_json(folder / "report.json", report.to_dict())
    return folder


def test_quotients_are_those_worked_by_hand() -> None:
    bert, teacher, student, tfidf = measured_rows(make_report())
    assert [row.system.split()[0] for row in (bert, teacher, student, tfidf)] == ["BERT-base", "teacher", "student", "TF-IDF"]
    assert (student.score, student.score_sd, student.seeds, student.cells) == (0.88, 0.002, 2, 3)
    assert student.teacher_share == pytest.approx(0.88 / 0.90)
    assert (student.smaller_than_bert, student.smaller_than_teacher) == pytest.approx((25, 5))
    assert (student.faster_than_bert, student.faster_than_teacher) == pytest.approx((60, 12))
    assert (teacher.faster_than_bert, bert.faster_than_teacher) == pytest.approx((5, 0.2))
    assert student.cell == "4 max_pool3, 2 sep_conv5" and teacher.cell == "" and teacher.cells is None
    # another runtime, raw texts: the times stand, but are not divided by one another
    assert tfidf.latency_ms == 0.7 and tfidf.faster_than_bert is None and tfidf.faster_than_teacher is None
    assert tfidf.smaller_than_teacher == pytest.approx(400)


def test_times_of_two_ways_are_not_compared() -> None:
    report = make_report()
    for key, value in (("runtime", "openvino"), ("threads", 2), ("batch_size", 32), ("seq_len", 64)):
        systems = [replace(s, **{key: value}) if s.kind == "student" else s for s in report.systems]
        student = measured_rows(replace(report, systems=systems))[2]
        assert student.faster_than_bert is None and student.faster_than_teacher is None, key
        ratio = compute_ratios(systems)["student_vs_teacher"]
        assert ratio["speed"] is None and ratio["params"] == pytest.approx(5), key
    found = compute_ratios(report.systems)
    assert found["student_vs_teacher"]["speed"] == pytest.approx(12) and found["student_vs_tfidf"]["speed"] is None


def test_runs_without_teacher_reference_times_or_scores() -> None:
    systems = [replace(make_report().systems[1], latency_ms_p50=None, score_mean=None, score_sd=None, scores=[])]
    (student,) = measured_rows(make_report(systems=systems, search={}))
    known = (student.score, student.teacher_share, student.latency_ms, student.faster_than_bert, student.smaller_than_teacher)
    assert known == (None,) * 5 and student.params == 4_000_000 and student.cells is None


def test_squared_errors_have_no_share_of_the_teachers() -> None:
    student = measured_rows(make_report("stsb", "mse"))[2]
    assert student.teacher_share is None and student.score == 0.88
    assert measured_rows(make_report("stsb", "pearson"))[2].teacher_share == pytest.approx(0.88 / 0.90)


def test_every_published_number_names_a_source_that_is_described() -> None:
    data = json.loads(PUBLISHED_FILE.read_text(encoding="utf-8"))
    found = []
    for row in data["rows"]:
        parts = [row, *row.get("by_task", {}).values(), row["scores"]]
        found += [(row["system"], *v) for part in parts for v in part.values() if isinstance(v, list)]
    assert len(found) > 50 and {source for _, _, source in found} == set(data["sources"])
    assert all(source["text"] and isinstance(source["is_verified"], bool) for source in data["sources"].values())
    assert {system for system, _, _ in found} == {"BERT-base", "BERT6-PKD", "DistilBERT4", "TinyBERT4", "BiLSTM_soft", "AdaBERT"}


def test_published_adabert_agrees_with_its_abstract() -> None:
    """12.7 to 29.3 times faster and 11.5 to 17.0 times smaller than BERT-base (arXiv 2001.04246): over all tasks."""
    tasks = ["sst2", "mrpc", "qqp", "mnli", "qnli", "rte"]
    rows = [row for row in published_rows(tasks) if row.system.startswith("AdaBERT")]
    assert [row.task for row in rows] == tasks
    assert (min(r.faster_than_bert for r in rows), max(r.faster_than_bert for r in rows)) == (12.7, 29.3)
    smaller = [row.smaller_than_bert for row in rows]
    assert (min(smaller), max(smaller)) == pytest.approx((11.5, 17.0), abs=0.05)
    assert [row.metric for row in rows] == ["accuracy", "f1", "f1", "accuracy", "accuracy", "accuracy"]
    assert all(row.source == PUBLISHED and row.latency_ms is None for row in rows)
    assert rows[0].unverified == ("cells", "faster_than_bert", "params", "smaller_than_bert")
    assert rows[1].unverified == ("cells", "faster_than_bert")


def test_published_rows_are_those_of_the_tasks_there_are(tmp_path: Path) -> None:
    assert published_rows(["demo", "my own"]) == []
    assert not any(row.system.startswith("BiLSTM") for row in published_rows(["rte"]))  # nothing was published
    run = write_run(tmp_path / "a", make_report())
    assert {row.source for row in collect_rows([run])} == {MEASURED, PUBLISHED}
    assert {row.source for row in collect_rows([run], published=False)} == {MEASURED}


def test_a_run_is_set_beside_published_rows_by_their_metric(tmp_path: Path) -> None:
    """MRPC's are F1 scores; ours count accuracy first and have F1 as well."""
    report = make_report("mrpc")
    f1 = {"teacher": 0.86, "student": 0.83, "tfidf": 0.80}
    systems = [replace(s, metrics={"accuracy": {"mean": s.score_mean, "sd": None}, "f1": {"mean": f1[s.kind], "sd": 0.01}}) if s.kind in f1 else s for s in report.systems]
    run = write_run(tmp_path / "mrpc", replace(report, systems=systems, metrics=["accuracy", "f1"], majority={}))
    rows = {row.system.split()[0]: row for row in collect_rows([run]) if row.source == MEASURED}
    assert {row.metric for row in collect_rows([run])} == {"f1"}
    assert (rows["student"].score, rows["student"].score_sd, rows["student"].teacher_share) == (0.83, 0.01, pytest.approx(0.83 / 0.86))
    assert {row.metric for row in collect_rows([run], published=False)} == {"accuracy"}
    assert {row.metric for row in collect_rows([write_run(tmp_path / "without", report)]) if row.source == MEASURED} == {"accuracy"}


def read_markdown(text: str) -> list[dict[str, str]]:
    """Every line of every table of a Markdown text by its header, unescaped."""
    found, header = [], None
    for line in text.splitlines():
        cells = [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = cells
        elif not set(line) <= set("|-: "):
            found.append(dict(zip(header, cells, strict=True)))
    return found


def test_files_read_back_as_they_were_written(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", make_report()),
        write_run(tmp_path / "b", make_report("my|own_task*", "f1", search={})),
    ]
    text, written = speed_tables(runs, tmp_path / "out")
    assert sorted(path.name for path in written) == [
        "speed_table.csv", "speed_table.md", "speed_table.tex", "speed_table_by_task.png", "speed_table_overview.png",
    ]  # fmt: skip
    rows, (overview, by_task) = build_tables(runs)
    assert (tmp_path / "out" / "speed_table.md").read_text(encoding="utf-8") == text
    lines = read_markdown(text)
    assert [tuple(line.values()) for line in lines] == [*overview.lines, *by_task.lines]
    assert tuple(lines[-1]) == by_task.header and lines[-1]["task"] == "my|own_task*"
    with open(tmp_path / "out" / "speed_table.csv", newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(rows)
    for line, row in zip(read, rows):
        for name in ("score", "latency_ms", "faster_than_teacher", "smaller_than_bert", "params", "cells"):
            value = getattr(row, name)
            assert line[name] == "" if value is None else float(line[name]) == value  # in full
        assert (line["task"], line["system"], line["source"]) == (row.task, row.system, row.source)
        assert line["unverified"].split() == list(row.unverified)


def test_what_is_measured_and_what_is_published_do_not_mix(tmp_path: Path) -> None:
    _, tables = build_tables([write_run(tmp_path / "a", make_report())])
    for table in tables:
        for name, lines in table.grouped():
            is_published = PUBLISHED in name
            assert all(any("et al." in cell for cell in line) == is_published for line in lines)
        assert any("GLUE test sets" in note for note in table.notes) and any(UNVERIFIED in note for note in table.notes)
    adabert = next(line for line in tables[1].lines if line[1].startswith("AdaBERT"))
    assert adabert[4] == f"6.4M{UNVERIFIED}" and adabert[8] == f"29.3{UNVERIFIED}" and adabert[2] == "91.8"


def test_two_runs_of_one_task_bear_their_names_and_ranges_their_ends(tmp_path: Path) -> None:
    faster = replace(make_report().systems[1], latency_ms_p50=1.0, params=2_000_000)
    systems = [faster if s.kind == "student" else s for s in make_report().systems]
    runs = [write_run(tmp_path / "slow", make_report()), write_run(tmp_path / "fast", make_report(systems=systems))]
    rows, (overview, _) = build_tables(runs)
    assert list(dict.fromkeys(row.task for row in rows)) == ["sst2 (slow)", "sst2 (fast)", "sst2"]
    student = next(line for line in overview.lines if line[0].startswith("student"))
    assert student[1:4] == ("2M to 4M", "60.0 to 120", "12.0 to 24.0")
    by_file = collect_rows([tmp_path / "slow" / "report.json"], published=False)
    assert [row.task for row in by_file] == ["sst2"] * 4
    twice = [tmp_path / "slow", tmp_path / "slow" / "report.json", tmp_path / "fast" / ".." / "slow"]
    assert collect_rows(twice, published=False) == by_file, "one run, however it is named"
    runs[0].rename(tmp_path / "sst2")
    named = collect_rows([tmp_path / "sst2", runs[1] / "report.json"], published=False)
    assert list(dict.fromkeys(row.task for row in named)) == ["sst2", "sst2 (fast)"]


def test_runs_in_folders_of_one_name_are_told_apart_by_those_above(tmp_path: Path) -> None:
    for name in ("sst2", "look"):
        runs = [write_run(tmp_path / machine / name, make_report(systems=[system])) for machine, system in zip("ab", make_report().systems)]
        rows, (overview, _) = build_tables(runs, published=False)
        assert [row.task for row in rows] == [f"sst2 (a/{name})", f"sst2 (b/{name})"]
        assert len(overview.lines) == 2, "neither is written over by the other"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: folder.rmdir(), "runs: .*run: no such folder; choices: the folder of a finished run"),
        (lambda folder: None, "run: no report.json there; choices: the folder of a finished run"),
        (lambda folder: (folder / "run.json").touch(), "run: no report.json there; the run is not finished: give the same command again"),
        (lambda folder: (folder / "report.json").write_text("{"), "no report can be read"),
        (lambda folder: (folder / "report.json").write_text("[1]"), "has no systems"),
        (lambda folder: write_json(folder / "report.json", {"systems": []}), "missing keys"),
    ],
)
def test_folders_without_a_report_are_refused(tmp_path: Path, write: Any, message: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder)
    with pytest.raises(ConfigError, match=message):
        speed_tables([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_settings_are_refused_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a", make_report())
    with pytest.raises(ConfigError, match=r"formats\[1\]: 'docx' is not known; choices: md, csv, latex, png"):
        speed_tables([run], tmp_path / "out", ["md", "docx"])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="output_dir: .*file is a file"):
        speed_tables([run], tmp_path / "file")
    assert not (tmp_path / "out").exists()
    assert cli.main(["table"]) == 2 and "runs: no run" in capsys.readouterr().err


def test_the_verb_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = write_run(tmp_path / "a", make_report()), tmp_path / "out"
    assert cli.main(["table", str(run), "--output_dir", str(out), "--formats", "md", "--published", "false"]) == 0
    printed = capsys.readouterr().out
    assert "## By task" in printed and "AdaBERT" not in printed and str(out / "speed_table.md") in printed
    assert [path.name for path in out.iterdir()] == ["speed_table.md"]


def test_latex_is_escaped_and_balanced() -> None:
    assert escape_latex("a_b & 50% ± 1 ~ {x}\\^#$") == (
        r"a\_b \& 50\% $\pm$ 1 \textasciitilde{} \{x\}\textbackslash{}\textasciicircum{}\#\$"
    )
    table = Table("T_1", ("a&b", "c"), (("x_y", "1"), ("z", "2%")), ("g", "h"), ("note 50%",))
    text = to_latex([table])
    assert text.count(r"\begin{") == text.count(r"\end{") == 2 and text.count(r"\midrule") == 2
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in body] == [1, 0, 1, 0, 1]
    assert r"\begin{tabular}{lr}" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path: Path) -> None:
    if subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).returncode != 0:
        pytest.skip("needs booktabs")
    speed_tables([write_run(tmp_path / "a", make_report("odd_task & 100% {~^}#$"))], tmp_path, ["latex"])
    (tmp_path / "page.tex").write_text(
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs,graphicx,textcomp}"
        "\\begin{document}\\input{speed_table}\\end{document}"
    )
    told = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-draftmode", "page"], cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout[-1000:]


def test_the_picture_holds_every_cell_and_none_over_another(tmp_path: Path) -> None:
    long = make_report("a task of a very long name", search={"depth": 9, "operations": {f"operation_{i}": i for i in range(9)}})
    _, tables = build_tables([write_run(tmp_path / "a", make_report()), write_run(tmp_path / "b", long)])
    for table in tables:
        figure = to_figure(table)
        texts = rendered(figure)
        assert_inside(texts, figure)
        assert_disjoint(texts)
        shown = " ".join(text.replace("\u00a0", " ") for text, _ in texts)
        for word in {word for line in table.lines for cell in line for word in cell.split()}:
            assert word in shown, word
    speed_tables([tmp_path / "a"], tmp_path / "out", ["png"])
    for name in ("overview", "by_task"):
        height, width = imread(tmp_path / "out" / f"speed_table_{name}.png").shape[:2]
        assert height > 300 and width > 600


def test_markup_in_a_name_stays_text() -> None:
    table = Table("T", ("a",), (("x|y *b* _c_ <i> `d` [e]",),), ("g",), ())
    assert read_markdown(to_markdown([table])) == [{"a": "x|y *b* _c_ <i> `d` [e]"}]
