"""The report: ratios and verdict against hand-worked numbers, tables without gaps, warnings where they are due."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adasearch import export, formats, markdown, verdict
from adasearch.card import model_card
from adasearch.errors import ConfigError
from adasearch.files import write_json
from adasearch.inspect_run import inspect
from adasearch.report import KINDS, Report, System
from adasearch.report_files import read_report, rebuild_report, write_report
from adasearch.report_tables import cascade_table, honest_table, shapes_table
from adasearch.student import AdasearchForSequenceClassification
from adasearch.verdict import compute_ratios
from reports import RANDOM, STUDENT, TFIDF, full_report, make_report, system, timing
from tiny import tiny_architecture, tiny_config

def cells(table: str) -> dict[str, list[str]]:
    """Rows of a Markdown table by their first cell; every row must be as wide as the header."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    assert len({len(row) for row in rows}) == 1, "a row is longer or shorter than the header"
    return {row[0].strip("* "): row[1:] for row in rows}


def scores(report: Report) -> dict[str, list[str]]:
    """The honest table as report.md has it."""
    return cells(markdown.plain_table(honest_table(report)))


# --- ratios and verdict --------------------------------------------------------------------------------------------


def test_the_verdict_is_the_hand_worked_one() -> None:
    # 0.880 / 0.900 = 97.78%; 28.4 / 2.0 = 14.2; 0.880 - 0.839 = 4.1 and 0.880 - 0.877 = 0.3 points;
    # pooled sd = sqrt((2 * 0.002^2 + 2 * 0.005^2) / 4) = 0.0038
    assert verdict.verdict(make_report()) == (
        "The student keeps 97.8% of the teacher's accuracy (88.0 ± 0.2 of 90.0) at 14.2x its speed"
        " (batch 1, 128 word pieces, one thread, onnxruntime) with 5.1M parameters;"
        " it is 4.1 points above TF-IDF + logistic regression and 0.3 ± 0.4 points above a random architecture of equal cost."
    )


def test_ratios_are_hand_worked_and_none_where_something_is_missing() -> None:
    ratios = compute_ratios(make_report().systems)
    assert set(ratios) == {f"student_vs_{kind}" for kind in KINDS if kind != "student"}
    assert ratios["student_vs_bag_of_embeddings"] is None and ratios["student_vs_student_no_kd"] is None
    teacher = ratios["student_vs_teacher"]
    assert teacher["speed"] == pytest.approx(14.2) and teacher["params"] == pytest.approx(22.7 / 5.1)
    assert teacher["size"] == pytest.approx(22.7 / 5.1) and teacher["score"] == pytest.approx(88 / 90)
    reference = ratios["student_vs_reference"]  # timed, never scored
    assert reference["speed"] == pytest.approx(80) and reference["score"] is reference["score_difference"] is None
    assert set(compute_ratios([system("teacher", (0.9,))]).values()) == {None}  # no student, nothing to compare


def test_the_spread_of_a_difference_is_students_two_sample() -> None:
    ratio = compute_ratios([system("student", STUDENT), system("random_architecture", RANDOM)])["student_vs_random_architecture"]
    reference = stats.ttest_ind(STUDENT, RANDOM)  # equal variances: the pooled ones
    assert ratio["score_difference"] / ratio["standard_error"] == pytest.approx(reference.statistic)
    assert ratio["pooled_sd"] == pytest.approx(((2 * 0.002**2 + 2 * 0.005**2) / 4) ** 0.5)
    single = compute_ratios([system("student", (0.9,)), system("tfidf", (0.8,))])["student_vs_tfidf"]
    assert single["score_difference"] == pytest.approx(0.1) and single["pooled_sd"] is single["standard_error"] is None


@pytest.mark.parametrize(
    ("systems", "expected"),
    [
        ([system("teacher", (0.9,), 10, 1.0)], "No student was scored."),
        ([system("student", (), 10, 1.0)], "No student was scored."),
        ([system("student", (0.5,))], "The student reaches 50.0 accuracy."),
        ([system("student", (0.5,), 1000, 2.0)], "The student reaches 50.0 accuracy in 2.00 ms"
         " (batch 1, 128 word pieces, one thread, onnxruntime) with 1k parameters."),
        ([system("teacher", (0.5,)), system("student", (0.6,))], "The student reaches 120.0% of the teacher's accuracy (60.0 of 50.0)."),
        # a correlation at or below 0 has no meaningful share
        ([system("teacher", (-0.1,)), system("student", (0.6,))], "The student reaches 60.0 accuracy."),
        ([system("student", (0.6,)), system("tfidf", (0.65,))],
         "The student reaches 60.0 accuracy; it is 5.0 points below TF-IDF + logistic regression."),
    ],
)  # fmt: skip
def test_the_verdict_says_only_what_was_measured(systems: list[System], expected: str) -> None:
    assert verdict.verdict(make_report(*systems)) == expected


# --- warnings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "scores", "expected"),
    [
        ("tfidf", (0.90,), "not better than TF-IDF + logistic regression (88.0 against 90.0): the plain baseline is the better choice"),
        ("tfidf", STUDENT, "not better than TF-IDF + logistic regression (88.0 against 88.0)"),
        ("tfidf", (0.839,), None),
        ("random_architecture", RANDOM, "a random architecture of equal cost within noise (88.0 against 87.7)"),
        ("random_architecture", (0.881, 0.883, 0.885), "random architecture of equal cost (88.0 against 88.3): the search gained nothing"),
        ("random_architecture", (0.801, 0.800, 0.802), None),
        ("student_no_kd", (0.89, 0.89, 0.90), "the same student without soft labels (88.0 against 89.3): the soft labels gained nothing"),
        ("bag_of_embeddings", (0.89, 0.89, 0.90), "a bag of embeddings (88.0 against 89.3): the cells gained nothing"),
        ("teacher", (0.70,), None),  # better than its teacher: no reason to warn
    ],
)
def test_a_control_that_is_not_beaten_is_said_plainly(other: str, scores: tuple[float, ...], expected: str | None) -> None:
    report = make_report(system("student", STUDENT), system(other, scores))
    found = verdict.warnings(report)
    assert found == [] if expected is None else len(found) == 1 and expected in found[0]
    assert all(f"> **Warning.** {text}" in markdown.markdown(report) and text in model_card(report, "s") for text in found)


def test_without_a_teacher_a_report_speaks_of_soft_labels() -> None:
    rows = [system("student", STUDENT), system("student_no_kd", (0.89, 0.89, 0.90))]
    taught, alone = make_report(system("teacher", (0.9,)), *rows), make_report(*rows)
    assert any("the same student without a teacher (88.0 against 89.3): the teacher gained nothing" in text for text in verdict.warnings(taught))
    assert markdown.markdown(taught).startswith("# sst2: teacher, student") and markdown.markdown(alone).startswith("# sst2: student and")


def test_few_examples_and_labels_that_nobody_checked_are_warned_of() -> None:
    student = system("student", (0.8, 0.8))
    (few,) = verdict.warnings(make_report(student, held_out=100))  # sqrt(0.8 * 0.2 / 100) = 0.04
    assert few == "Only 100 held-out examples: differences of a few points are chance, the standard error of an accuracy of 80.0 is 4.0."
    assert "Scores on the 100 held-out examples" in markdown.how_measured(make_report(student, held_out=100))
    assert verdict.warnings(make_report(student, held_out=300)) == []
    (soft,) = verdict.warnings(make_report(student, has_gold=False))
    assert "agreement with whoever made those" in soft


def test_a_machine_that_was_busy_while_it_timed_is_told_of() -> None:
    """By any shape of any system: a row in which everything was slow alike looks innocent."""
    calm, held_up = system("student", STUDENT, 1000, 2.0), system("random_architecture", (0.7, 0.7, 0.7), 1000, 2.0)
    assert verdict.warnings(make_report(calm, held_up)) == []
    held_up.timings[2]["latency_ms_p90"] = 15 * held_up.timings[2]["latency_ms_p50"]
    (found,) = verdict.warnings(make_report(calm, held_up))
    assert "one call in ten of random architecture at 1 x 32 took 15.0 times the median or more" in found
    held_up.timings[2]["seq_len"] = 0  # raw texts of their own lengths differ by themselves
    assert verdict.warnings(make_report(calm, held_up)) == []


def test_scores_that_are_shown_alike_are_level() -> None:
    report = make_report(system("student", (0.7251,)), system("random_architecture", (0.725,)))
    assert "; it is level with a random architecture" in verdict.verdict(report)


def test_of_several_seeds_it_is_said_whose_model_is_served() -> None:
    several, one = make_report(), make_report(system("student", (0.9,)))
    said = verdict.served_model(several)
    assert "seed 1's, with" in said and said.rstrip() in model_card(several, "s") and verdict.served_model(one) == ""


def test_slow_constant_single_and_unlike_are_warned_of() -> None:
    student = system("student", (0.509,), 1000, 30.0)
    slow = " ".join(verdict.warnings(make_report(system("teacher", (0.9,), 1000, 15.0), student)))
    assert "not faster than its teacher (0.50x)" in slow and "One seed" in slow
    assert "The student is not better than the constant answer (50.9)." in slow  # in a regression that is no class
    unlike = dataclasses.replace(system("teacher", (0.9,), 1000, 90.0), threads=2)
    assert any("latencies do not compare" in text for text in verdict.warnings(make_report(unlike, system("student", STUDENT, 1000, 2.0))))
    assert verdict.warnings(make_report(system("teacher", (0.9,), 1000, 90.0), system("student", STUDENT, 1000, 2.0))) == []


def test_a_teacher_that_has_learned_nothing_is_told() -> None:
    bad, student = system("teacher", (0.045,)), system("student", STUDENT)
    expected = "The teacher (4.5) is no better than the constant answer (50.9): more finetune.epochs, or another teacher."
    assert verdict.warnings(make_report(bad, student)) == [expected]
    assert verdict.warnings(make_report(system("teacher", (0.51,)), student)) == []
    assert "Scores on the held-out examples: of one seed." in markdown.markdown(make_report(seeds=[7]))
    assert "Seed 7. Scores on the held-out examples: of one seed." in model_card(make_report(seeds=[7]), "s")
    assert verdict.warnings(make_report(student, max_steps=5)) == ["max_steps 5: a quick look, not a result."]


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({"operations": {"skip": 5, "avg_pool3": 4, "conv3": 1}}, "Collapse: 9 of 10 edges"),
        ({"operations": {"skip": 4, "max_pool3": 4, "conv3": 2}}, None),  # exactly the share is not more than it
        ({"operations": {"skip": 3, "conv3": 2}, "collapse_share": 0.5}, "Collapse: 3 of 5 edges"),
        ({"entropy": {"operations": 0.97}}, "undecided: the entropy of its operations is 97%"),
        ({"entropy": {"operations": 0.5}}, None),
        ({}, None),
    ],
)
def test_the_search_alarms(search: dict[str, Any], expected: str | None) -> None:
    found = verdict.warnings(make_report(system("student", STUDENT), search=search))
    assert found == [] if expected is None else len(found) == 1 and expected in found[0]


def curve(*scores: float) -> dict[str, Any]:
    """A cascade whose share handed over grows in equal steps."""
    shares = [index / (len(scores) - 1) for index in range(len(scores))]
    return {"curve": [{"threshold": 0.5, "share_escalated": share, "score": score} for share, score in zip(shares, scores)]}


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # 90% of the way from 80 to 90 is 89: what reaches it and falls back is chance, from three quarters on it holds
        ((0.80, 0.91, 0.88, 0.89, 0.90), "With the least sure 75% of the texts handed to the teacher, accuracy is 89.0: 80.0 with none, 90.0 with all."),
        ((0.80, 0.88, 0.89, 0.91, 0.90), "With the least sure 50% of the texts handed to the teacher, accuracy is 89.0: 80.0 with none, 90.0 with all."),
        ((0.90, 0.90, 0.90), "The student alone has 90.0 accuracy, not less than its teacher on these examples."),
        ((0.90, 0.92, 0.89), "The student alone has 90.0 accuracy, not less than its teacher on these examples; at 50% it is 92.0."),
        ((0.90,), None),
    ],
)
def test_what_a_cascade_gains_is_said_as_worked_by_hand(scores: tuple[float, ...], expected: str | None) -> None:
    cascade = curve(*scores) if len(scores) > 1 else {"curve": [{"threshold": 0.5, "share_escalated": 0.0, "score": 0.9}]}
    report = make_report(cascade=cascade)
    assert verdict.cascade_sentence(report) == expected
    if named := re.search(r"(?:sure|at) (\d+)%", expected or ""):  # what the text names has a row
        assert f"{named[1]}%" in {row.cells[0].text for row in cascade_table(report).rows}
    if report.cascade["curve"][1:]:  # the student answers first, whoever answers then
        student, teacher = (report.find(kind).latency_ms_p50 for kind in ("student", "teacher"))
        assert cascade_table(report).rows[-1].cells[-1].value == pytest.approx(student + teacher)
    assert expected is None or expected in markdown.markdown(report)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"count": 8, "of": 100, "student_right": 3, "teacher_right": 5}, "disagree on 8 of 100 held-out examples (8.0%): the teacher is right in 5, the student in 3."),
        ({"count": 8, "of": 100, "student_right": 3, "teacher_right": 4}, "the teacher is right in 4, the student in 3, neither in 1."),
        ({"count": 0, "of": 100, "student_right": 0, "teacher_right": 0}, "Student and teacher agree on all 100 held-out examples."),
    ],
)
def test_how_often_student_and_teacher_part(found: dict[str, Any], expected: str) -> None:
    assert verdict.disagreement_sentence(make_report(disagreements=found)).endswith(expected)
    assert verdict.disagreement_sentence(make_report()) is None


def test_a_prediction_that_misses_is_a_warning() -> None:
    report = make_report(latency={"predicted_ms": 1.0, "measured_ms": 2.0, "error": -0.5, "warning": "latency: a miss"})
    assert "Latency: a miss." in verdict.warnings(report)
    assert "1.00 ms predicted from the table, 2.00 ms measured" in markdown.markdown(report)
    assert verdict.latency_sentence(make_report()) is None


def test_cost_is_the_price_of_the_cores_that_a_million_texts_keep_busy() -> None:
    row = system("student", STUDENT, 10, 2.0, task_texts_per_s=500.0)
    # 1e6 / 500 = 2000 seconds = 0.556 hours on one core at 0.09 dollars: 5 cents; on two threads 10
    assert verdict.usd_per_million(row, 0.09) == pytest.approx(0.05)
    assert verdict.usd_per_million(dataclasses.replace(row, threads=2), 0.09) == pytest.approx(0.10)
    assert verdict.usd_per_million(row, None) is verdict.usd_per_million(system("student"), 0.09) is None
    read = dataclasses.replace(row, tokenizer_texts_per_s=1000.0)  # a millisecond to read a text, two to score it
    assert verdict.served_texts_per_s(read) == pytest.approx(1000 / 3) and verdict.usd_per_million(read, 0.09) == pytest.approx(0.075)
    report = make_report(row, system("teacher", (0.9,), 10, 30.0), price_per_hour=0.09)
    rows = scores(report)
    own, cost = (rows["system"].index(name) for name in ("own lengths, texts/s", "cost, USD / million"))
    assert {name: (rows[name][own], rows[name][cost]) for name in ("student", "teacher", "constant answer")} == {
        "student": ("500", "$0.050"), "teacher": ("-", "-"), "constant answer": ("-", "-"),
    }  # fmt: skip
    assert "assumes $0.090 for one core and hour" in markdown.markdown(report)
    without = dataclasses.replace(report, price_per_hour=None)
    assert scores(without)["student"][own] == "500" and "USD" not in str(scores(without)) and "assumes" not in markdown.markdown(without)


@pytest.mark.parametrize(("value", "expected"), [(None, "-"), (0.0, "$0"), (0.00559, "$0.0056"), (0.05, "$0.050"), (1.44, "$1.4"), (9.96, "$10"), (1234.5, "$1,234")])
def test_dollars_have_two_digits_that_mean_something(value: float | None, expected: str) -> None:
    assert formats.format_usd(value) == expected


# --- tables and text -----------------------------------------------------------------------------------------------


def test_the_table_is_the_hand_worked_one() -> None:
    rows = scores(make_report())
    assert rows["system"] == [
        "accuracy, points", "speed, × teacher", "size, × smaller", "latency, p50, ms", "latency, p90, ms", "rate, texts/s", "parameters",
        "embeddings, % of parameters", "MACs, a text", "on disk, MB",
    ]  # fmt: skip
    # 28.4 / 2.0 = 14.2; 22.7M / 5.1M = 4.5; 3.9M of 5.1M = 76%; 4 bytes x 5.1M = 20.4 MB; 1000 / 2 ms = 500
    assert rows["student"] == ["88.0 ± 0.2", "14.2×", "4.5×", "2.00", "3.00", "500", "5.1M", "76", "12.3M", "20.4"]
    assert rows["tfidf"] == ["83.9", "142×", "757×", "0.20", "0.30", "5,000", "30k", "-", "-", "0.1"]
    assert rows["reference"] == ["-", "0.18×", "0.21×", "160", "240", "6", "109M", "-", "-", "437.9"]
    assert rows["constant answer"] == ["50.9", *["-"] * 9]


@pytest.mark.parametrize(("method", "expected"), [({}, "of a student without its search"), ({"name": "CoFi"}, "search included")])
def test_the_time_of_training_says_whether_the_search_is_in_it(method: dict[str, str], expected: str) -> None:
    report = make_report(system("student", STUDENT, train_seconds=9.0), method=method)
    (column,) = [column for column in honest_table(report).columns if column.label == "training"]
    assert column.tip.endswith(expected)


def test_skewed_classes_show_every_metric_against_the_constant_answer() -> None:
    both = {"accuracy": {"mean": 0.75, "sd": 0.01}, "f1": {"mean": 0.83, "sd": None}}
    report = make_report(
        system("student", (0.74, 0.76), metrics=both), metric="f1", metrics=["accuracy", "f1"],
        majority={"accuracy": 0.684, "f1": 0.812, "is_skewed": True},
    )  # fmt: skip
    rows = scores(report)
    assert rows["system"][:2] == ["F1, points", "accuracy, points"]  # the metric that counts comes first
    assert rows["student"][:2] == ["83.0", "75.0 ± 1.0"] and rows["constant answer"][:2] == ["81.2", "68.4"]
    assert "read every metric against the constant answer" in markdown.markdown(report)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_not_known_is_a_dash_and_breaks_nothing(kind: str, tmp_path: Path) -> None:
    report = make_report(
        System("bare", kind), majority={}, seeds=[], hardware={}, search={}, command=None, commit=None, notes=[],
    )  # fmt: skip
    text = write_report(tmp_path, report).read_text(encoding="utf-8")
    assert scores(report)["bare"] == []  # a column of which no system knows anything is left out
    card = model_card(report, "bare").replace("session.run(None", "")  # that one is code
    assert "None" not in text and "None" not in card and "nan" not in text


@pytest.mark.parametrize("key", ["latency_ms_p50", "latency_ms_p90", "texts_per_s", "seq_len", "batch_size"])
def test_a_gap_in_a_timing_is_a_dash_too(key: str) -> None:
    row = system("student", STUDENT, 10, 2.0)
    row = dataclasses.replace(row, timings=[{**row.timings[0], key: None}, *row.timings[1:]])
    assert "None" not in markdown.markdown(make_report(row))


def test_times_of_raw_texts_are_not_set_against_those_of_128_pieces() -> None:
    raw_texts = dataclasses.replace(system("tfidf", TFIDF, 30_000, 0.2), seq_len=0)
    report = make_report(system("teacher", (0.9,), 1_000, 20.0), system("student", STUDENT, 10, 2.0), raw_texts)
    table = honest_table(report)
    (place,) = [index for index, column in enumerate(table.columns) if column.label == "speed"]
    texts = [row.cells[place].text for row in table.rows]
    assert texts == ["1.0×", "10.0×", "–", "–"]  # the last is the constant answer


def test_other_shapes_are_timed_in_their_own_table() -> None:
    raw_texts = system("tfidf", TFIDF, 30_000, 0.2)
    raw_texts = dataclasses.replace(raw_texts, seq_len=0, timings=[{**t, "seq_len": 0} for t in raw_texts.timings])
    fewer = system("reference", (), 100, 10.0)
    fewer = dataclasses.replace(fewer, timings=fewer.timings[:1])
    table = shapes_table(make_report(system("student", STUDENT, 10, 2.0), raw_texts, fewer))
    assert table is not None
    rows = cells(markdown.plain_table(table))
    assert rows["system"] == ["1 × 128, ms", "32 × 128, ms", "1 × 32, ms"]
    assert rows["student"] == ["2.00 (500/s)", "64.0 (500/s)", "2.00 (500/s)"]
    assert rows["tfidf"] == ["0.20 (5,000/s)", "6.40 (5,000/s)", "0.20 (5,000/s)"]  # its length is 0: by place
    assert rows["reference"] == ["10.0 (100/s)", "-", "-"]  # no system is left out
    only = dataclasses.replace(system("student", STUDENT, 10, 2.0), timings=[timing(1, 128, 2.0)])
    assert shapes_table(make_report(only)) is None


def test_the_report_says_what_was_run_and_what_the_search_cost() -> None:
    text = markdown.markdown(make_report())
    for part in (
        "# sst2", "- command: `adasearch run sst2 --seeds 1 2 3`", "- commit: abc1234", "- seeds: 1, 2, 3", "over 3 seeds",
        "cpu a processor, cores 2\n", "- 7 texts cut", "- time: 754 s", "- peak memory: 1.25 GB", "- steps: 1,500",
        "operations 31%", "| `conv3` | 4 | 67% |", "| `skip` | 2 | 33% |",
    ):  # fmt: skip
        assert part in text, part
    assert text.index("`conv3`") < text.index("`skip`")  # the most frequent first


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "-"), (0, "0"), (512, "512"), (999, "999"), (1000, "1k"), (1349, "1.3k"), (33_024, "33k"), (999_499, "999k"),
     (999_500, "1M"), (3_972_352, "3.97M"), (22_713_216, "22.7M"), (109_483_778, "109M"), (1.2e9, "1.2G"), (11_200e9, "11.2T")],
)  # fmt: skip
def test_counts_have_three_digits(value: float | None, expected: str) -> None:
    assert formats.format_count(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(None, "-"), (0.57, "0.57"), (9.949, "9.95"), (9.96, "10.0"), (64.04, "64.0"), (4911.2, "4911")])
def test_milliseconds_have_three_digits(value: float | None, expected: str) -> None:
    assert formats.format_ms(value) == expected


def test_squared_errors_are_no_percentages() -> None:
    assert formats.format_score(0.4321, "mse") == "0.432" and formats.format_score(0.4321, "pearson") == "43.2"


# --- files ---------------------------------------------------------------------------------------------------------


def test_json_round_trip_and_rebuilding_give_the_same(tmp_path: Path) -> None:
    report = full_report()
    path = write_report(tmp_path, report)
    assert path == tmp_path / "report.md" and sorted(f.name for f in tmp_path.iterdir()) == ["report.json", "report.md"]
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert Report.from_dict(data) == report and Report.from_dict(data).to_dict() == data == report.to_dict()
    text = path.read_text(encoding="utf-8")
    path.unlink()
    assert rebuild_report(tmp_path) == tmp_path / "report.html" and path.read_text(encoding="utf-8") == text
    assert read_report(tmp_path) == report


def change(data: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    """The data with one entry of the report, or with ``systems.key`` of the first system, set; ``...`` leaves it out."""
    data = json.loads(json.dumps(data))
    target = data["systems"][0] if where.startswith("systems.") else data
    key = where.removeprefix("systems.")
    target.pop(key, None) if value is ... else target.update({key: value})
    return data


@pytest.mark.parametrize(
    ("where", "value", "expected"),
    [
        ("metric", "f1", r"metric: 'f1' is not measured; choices: accuracy"),
        ("task", ..., r"missing keys \['task'\]"),
        ("colour", 1, r"unknown keys \['colour'\]"),
        ("systems", None, "systems"),
        ("systems", ["teacher"], r"systems\[0\]: str found, an object is expected"),
        ("systems.kind", "wizard", r"systems\[0\]\.kind: 'wizard' is not known; choices: teacher, student"),
        ("systems.name", ..., r"systems\[0\]: .*missing keys \['name'\]"),
        ("systems.params", -1, r"systems\[0\]\.params: -1 is no measurement"),
        ("systems.params", "many", r"systems\[0\]\.params: 'many' is no measurement"),
        ("systems.latency_ms_p50", float("nan"), r"systems\[0\]\.latency_ms_p50: nan is no measurement"),
        ("cascade", [], r"cascade: list found, an object is expected"),
        ("systems.task_texts_per_s", -1.0, r"systems\[0\]\.task_texts_per_s: -1.0 is no measurement"),
        ("systems.score_mean", "high", r"systems\[0\]\.score_mean: 'high' is no measurement"),
        ("systems.score_mean", float("inf"), r"systems\[0\]\.score_mean: inf is no measurement"),
    ],
)
def test_a_report_that_does_not_fit_names_file_place_and_value(where: str, value: Any, expected: str, tmp_path: Path) -> None:
    data = change(make_report().to_dict(), where, value)
    (tmp_path / "report.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=expected) as caught:
        rebuild_report(tmp_path)
    assert str(tmp_path / "report.json") in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe{", b"[]"])
def test_an_absent_or_broken_file_is_named(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(ConfigError, match="report.json"):
        rebuild_report(tmp_path)


def test_an_unwritable_report_leaves_the_old_one(tmp_path: Path) -> None:
    write_report(tmp_path, make_report())
    before = (tmp_path / "report.json").read_bytes()
    with pytest.raises(ConfigError, match="wizard"):
        write_report(tmp_path, make_report(System("x", "wizard")))
    assert (tmp_path / "report.json").read_bytes() == before


@pytest.mark.parametrize("is_scored", [True, False])
def test_every_figure_that_is_linked_gets_drawn(is_scored: bool, tmp_path: Path) -> None:
    write_json(tmp_path / "search" / "architecture.json", tiny_architecture().to_dict())
    rows = [system("student", STUDENT if is_scored else (), 1000, 2.0), system("teacher", (0.9,) if is_scored else (), 9000, 20.0)]
    text = write_report(tmp_path, make_report(*rows)).read_text(encoding="utf-8")
    inspect(tmp_path, None)
    links = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert ("figures/comparison.svg" in links) == is_scored and "figures/cell.svg" in links
    assert [link for link in links if not (tmp_path / link).is_file()] == []


def test_a_run_without_cells_links_no_picture_of_one(tmp_path: Path) -> None:
    write_json(tmp_path / "search" / "architecture.json", tiny_architecture(cells=0).to_dict())
    text = write_report(tmp_path, make_report(search={"depth": 0})).read_text(encoding="utf-8")
    assert "figures/cell.svg" not in text and "figures/network.svg" in text


# --- the model card ------------------------------------------------------------------------------------------------


def test_the_card_is_one_the_hub_reads() -> None:
    data = ModelCard(model_card(make_report(), "sst2")).data
    assert data.library_name == "transformers" and data.pipeline_tag == "text-classification" and data.license == "other"
    assert "adasearch" in data.tags and data.metrics == ["accuracy"]
    assert ModelCard(model_card(make_report(), "sst2", license="apache-2.0")).data.license == "apache-2.0"


def test_the_cards_numbers_are_the_reports() -> None:
    report = make_report()
    card = model_card(report, "sst2")
    assert verdict.verdict(report) in card and markdown.plain_table(honest_table(report)) in card and "trust_remote_code=True" in card


def test_a_card_names_a_teacher_only_where_there_was_one() -> None:
    report = make_report()
    alone = dataclasses.replace(report, systems=[s for s in report.systems if s.kind != "teacher"])
    assert "taught by a transformer" in model_card(report, "s") and "What the teacher gets wrong" in model_card(report, "s")
    card = model_card(alone, "s")
    assert "taught by soft labels" in card and "teacher" not in card.partition("## Limits")[2] and "by a transformer" not in card


def test_reports_say_whether_the_tokenizer_is_in_the_rates() -> None:
    old = [system(kind, (0.9,), 10, 2.0, task_texts_per_s=500.0) for kind in ("teacher", "student")]
    raw = dataclasses.replace(system("tfidf", (0.8,), 10, 2.0, task_texts_per_s=900.0), seq_len=0)
    new = [dataclasses.replace(item, tokenizer_texts_per_s=rate) for item, rate in zip(old, (4000.0, 2000.0), strict=True)]
    for systems, note, rate in (([*old, raw], "the tokenizer not counted", "| 500 |"), ([*new, raw], "the tokenizer included", "| 444 |")):
        report = make_report(*systems, price_per_hour=0.04)
        assert note in markdown.price_note(report) and note in {column.tip for column in honest_table(report).columns if column.label == "own lengths"}.pop()
        assert rate in markdown.plain_table(honest_table(report))
    assert "one thread of it reads 2,000 to 4,000 texts a second" in markdown.how_measured(report)
    assert verdict.tokenizer_note(make_report(old[0], new[1])) == "the tokenizer not counted"


def test_times_of_raw_texts_are_told_apart() -> None:
    """TF-IDF reads texts of their own lengths, whatever the column says, and no other system's tokenizer is timed."""
    report = make_report()
    assert "raw texts" not in markdown.how_measured(report)
    raw = dataclasses.replace(report.systems[-1], name="words", seq_len=0, latency_ms_p50=1.0)
    found = markdown.how_measured(dataclasses.replace(report, systems=[*report.systems, raw]))
    assert "words: from raw texts of their own lengths to the score" in found and "without the tokenizer" in found


def test_the_cards_code_runs_on_a_students_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, **{f"word{index}": index for index in range(4, 30)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    student = AdasearchForSequenceClassification(tiny_config(tiny_architecture(cells=1))).eval()
    card = model_card(make_report(), "sst2")
    folder = export.save_student(student, tokenizer, tmp_path / "path" / "to" / "student", card=card)
    export.export_student(folder)
    monkeypatch.chdir(tmp_path)
    installed, _, graph = (code.replace('"..."', '"word4 word9 word7"') for code in re.findall(r"```python\n(.*?)```", card, re.S))
    exec(compile(installed, "card", "exec"), {})
    assert "'label': 'LABEL_" in capsys.readouterr().out
    names: dict[str, Any] = {}
    exec(compile(graph, "card", "exec"), names)
    with torch.no_grad():
        expected = student(torch.tensor([[4, 9, 7]]), torch.ones(1, 3, dtype=torch.int64)).logits
    torch.testing.assert_close(torch.from_numpy(names["logits"]), expected, atol=1e-5, rtol=0)
