"""What the numbers of a report say: the student against every other system, a verdict, and what speaks against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from adasearch.formats import format_count, format_ms, format_score, format_spread, format_threads, metric_name
from adasearch.report import KINDS, Report, System

PARAMETER_FREE = ("skip", "none", "max_pool", "avg_pool")  # an operation's name without its kernel
COLLAPSE_SHARE = 0.8  # of the edges; the default of search.collapse_share
UNDECIDED_ENTROPY = 0.95  # share of the maximum above which the choice of operations is as good as open
SMALLER_ON_PURPOSE = ("pruned", "sparse", "dense", "dense_int8")  # kinds that a student is no better than, but smaller or faster
HELD_AGAINST = {"direct": "sparse"}  # a control -> the kind it is a control of, where that is not the student
TIMED_ALIKE = ("runtime", "threads", "batch_size", "seq_len")  # in what two times must agree to be divided; precision is a method's work
LEAST_AGREEMENT = 0.99  # of a graph with what was trained; rounding alone leaves 99.3% and more
FEW_EXAMPLES = 300  # held-out examples; the standard error of an accuracy of 80% is then 2.3 points
BUSY_QUOTIENT = 2.0  # a 90th percentile of so many medians; on a quiet machine it has been below 1.3
NOISE_ERRORS = 2.0  # fewer standard errors than this are noise: 95% level of many seeds, 88% of three against three


def compute_ratios(systems: Sequence[System]) -> dict[str, dict[str, float | None] | None]:
    """The student against every other kind, as ``student_vs_<kind>``; None where student or other is missing.

    ``speed``, ``size`` and ``params`` are the other's value over the student's, ``score`` the student's over the
    other's, ``score_difference`` theirs subtracted, ``pooled_sd`` the seeds' pooled standard deviation and
    ``standard_error`` that of the difference of the two means; None where a number is missing, ``speed`` also where the
    two were not timed alike.
    """
    by_kind: dict[str, System] = {}
    for system in systems:
        by_kind.setdefault(system.kind, system)
    student = by_kind.get("student")
    return {
        f"student_vs_{kind}": None if student is None or kind not in by_kind else _compare(student, by_kind[kind])
        for kind in KINDS if kind != "student"
    }  # fmt: skip


def _compare(student: System, other: System) -> dict[str, float | None]:
    pooled, error = _pool(student.scores, other.scores)
    have_scores = student.score_mean is not None and other.score_mean is not None
    return {
        "speed": quotient(other.latency_ms_p50, student.latency_ms_p50) if are_timed_alike(student, other) else None,
        "size": quotient(other.size_bytes, student.size_bytes),
        "params": quotient(other.params, student.params),
        "score": quotient(student.score_mean, other.score_mean),
        "score_difference": student.score_mean - other.score_mean if have_scores else None,
        "pooled_sd": pooled,
        "standard_error": error,
    }


def are_timed_alike(first: System, second: System) -> bool:
    """Whether two systems' times may be divided: taken in one runtime, on as many threads, at one shape."""
    return all(getattr(first, name) == getattr(second, name) for name in TIMED_ALIKE)


def quotient(numerator: float | None, denominator: float | None) -> float | None:
    """The quotient; None where a part is missing or the quotient means nothing."""
    return None if numerator is None or denominator is None or denominator <= 0 else numerator / denominator


def _pool(first: Sequence[float], second: Sequence[float]) -> tuple[float | None, float | None]:
    """Pooled sample standard deviation and the standard error of the difference of the means (Student's two-sample)."""
    freedom = len(first) + len(second) - 2
    if not first or not second or freedom < 1:
        return None, None
    squares = sum((x - sum(values) / len(values)) ** 2 for values in (first, second) for x in values)
    pooled = math.sqrt(squares / freedom)
    return pooled, pooled * math.sqrt(1 / len(first) + 1 / len(second))


def served_texts_per_s(system: System) -> float | None:
    """Texts of the task's own lengths a second, the tokenizer's time first and the model's behind it; of a report that does not know
    the tokenizer's, the model's alone."""
    if not system.task_texts_per_s or not system.tokenizer_texts_per_s:
        return system.task_texts_per_s
    return 1 / (1 / system.tokenizer_texts_per_s + 1 / system.task_texts_per_s)


def tokenizer_note(report: Report) -> str:
    """Whether rates at the task's own lengths, and what they cost, have the tokenizer in them."""
    reading = [system for system in report.systems if system.task_texts_per_s and system.seq_len]  # the others read raw texts
    is_counted = reading and all(system.tokenizer_texts_per_s for system in reading)
    return "the tokenizer included" if is_counted else "the tokenizer not counted"


def usd_per_million(system: System, price_per_hour: float | None) -> float | None:
    """US dollars for a million texts of the task's own lengths, at a price of one core for an hour; see ``served_texts_per_s``."""
    rate = served_texts_per_s(system)
    if price_per_hour is None or not rate or not system.threads:
        return None
    return price_per_hour * system.threads * 1e6 / rate / 3600


def verdict(report: Report) -> str:
    """One sentence on the student: score and speed against the teacher, size, and what stands beside it."""
    student, metric = report.find("student"), metric_name(report.metric)
    if student is None or student.score_mean is None:
        return "No student was scored."
    scored = f"{format_score(student.score_mean, report.metric)}{format_spread(student.score_sd, report.metric)}"
    ratio = report.ratios.get("student_vs_teacher") or {}
    threads = format_threads(student.threads)
    how = f"batch {student.batch_size}, {student.seq_len} word pieces, {threads}, {student.runtime}"
    teacher = report.find("teacher")
    if ratio.get("score") is not None and teacher is not None:
        against = format_score(teacher.score_mean, report.metric)
        verb = "keeps" if ratio["score"] <= 1 else "reaches"
        sentence = f"The student {verb} {100 * ratio['score']:.1f}% of the teacher's {metric} ({scored} of {against})"
        if ratio.get("speed") is not None:
            how += "" if student.precision == teacher.precision else f", {student.precision} against {teacher.precision}"
            sentence += f" at {ratio['speed']:.1f}x its speed ({how})"
    else:
        sentence = f"The student reaches {scored} {metric}"
        if student.latency_ms_p50 is not None:
            sentence += f" in {format_ms(student.latency_ms_p50)} ms ({how})"
    if student.params is not None:
        sentence += f" with {format_count(student.params)} parameters"
    if sizes := student.size_ratios:
        sentence += (
            f", in a file {sizes['whole']:.1f}x smaller than its own weights in float32 (its encoder's alone {sizes['with_index']:.1f}x,"
            f" {sizes['nominal']:.1f}x by their values)"
        )
    beside = [text for kind in ("tfidf", "random_architecture", "random_ticket") if (text := _beside(report, kind))]
    return f"{sentence}{'; it is ' if beside else ''}{' and '.join(beside)}."


def _beside(report: Report, kind: str) -> str | None:
    ratio = report.ratios.get(f"student_vs_{kind}") or {}
    difference = ratio.get("score_difference")
    if difference is None:
        return None
    spread = format_spread(ratio.get("pooled_sd"), report.metric) if kind.startswith("random") else ""
    shown = format_score(abs(difference), report.metric)
    if shown == format_score(0.0, report.metric):
        return f"level with {KINDS[kind]}"
    return f"{shown}{spread} points {'below' if difference < 0 else 'above'} {KINDS[kind]}"


def warnings(report: Report) -> list[str]:
    """What speaks against the student or against trusting the numbers, in plain words."""
    student, teacher = report.find("student"), report.find("teacher")
    found, majority = [], report.majority.get(report.metric)
    constant = None if majority is None else format_score(majority, report.metric)
    if report.max_steps is not None:
        found.append(f"max_steps {report.max_steps}: a quick look, not a result.")
    if constant is not None and teacher is not None and teacher.score_mean is not None and teacher.score_mean <= majority:
        reached = format_score(teacher.score_mean, report.metric)
        found.append(
            f"The teacher ({reached}) is no better than the constant answer ({constant}): more finetune.epochs, or another teacher."
        )
    if student is not None and student.score_mean is not None:
        found += [text for kind in KINDS if (text := _not_better(report, student, kind))]
        if constant is not None and student.score_mean <= majority:
            found.append(f"The student is not better than the constant answer ({constant}).")
        if len(student.scores) == 1:
            found.append("One seed: how much the scores vary from run to run is not known.")
    if not report.has_gold:
        found.append("The labels are the likeliest soft labels: a score is agreement with whoever made those, not with the truth.")
    if report.held_out is not None and report.held_out < FEW_EXAMPLES:
        found.append(_few_examples(report, student))
    setups = {(s.runtime, s.threads, s.batch_size) for s in report.systems if s.kind not in ("tfidf",) and s.runtime}
    if len(setups) > 1:
        found.append("The systems differ in runtime, threads or batch size: their latencies do not compare.")
    for s in report.systems:
        if s.agreement is not None and s.agreement < LEAST_AGREEMENT:
            share = f"{100 * s.agreement:.1f}%"
            found.append(f"The int8 graph of {s.name!r} predicts as the model that was trained on {share} of the examples: its own score is below.")
    if busy := _busy(report):
        found.append(busy)
    if missed := report.latency.get("warning"):
        found.append(f"{missed[0].upper()}{missed[1:]}.")
    return found + _search_warnings(report.search)


def _few_examples(report: Report, student: System | None) -> str:
    """How little a score of so few examples says: of an accuracy its standard error, sqrt(p (1 - p) / N)."""
    text = f"Only {report.held_out:,} held-out examples: differences of a few points are chance"
    if report.metric != "accuracy" or student is None or student.score_mean is None:
        return f"{text}."
    error = math.sqrt(student.score_mean * (1 - student.score_mean) / report.held_out)
    return f"{text}, the standard error of an accuracy of {format_score(student.score_mean, report.metric)} is {100 * error:.1f}."


def _busy(report: Report) -> str | None:
    """Who was held up most while it was timed, where anybody was; the system is named that it says least about."""
    quotients = [
        (timing["latency_ms_p90"] / timing["latency_ms_p50"], timing, system.name)
        for system in report.systems for timing in system.timings
        if timing.get("latency_ms_p50") and timing.get("latency_ms_p90") and timing.get("seq_len")
    ]  # fmt: skip
    worst, timing, name = max(quotients, key=lambda item: item[0], default=(0.0, {}, ""))
    if worst <= BUSY_QUOTIENT:
        return None
    return (
        f"The machine was busy while it timed: one call in ten of {name} at {timing['batch_size']} x {timing['seq_len']} took {worst:.1f} times"
        " the median or more. Such times do not compare; the same command on a quiet machine measures again."
    )


def _not_better(report: Report, student: System, kind: str) -> str | None:
    other, rival = report.find(kind), report.find(HELD_AGAINST.get(kind, "student"))
    if other is None or rival is None:
        return None
    ratio = report.ratios.get(f"student_vs_{kind}") or {} if rival is student else _compare(rival, other)
    difference, error = ratio.get("score_difference"), ratio.get("standard_error")
    if kind == "teacher":
        speed = ratio.get("speed")
        return None if speed is None or speed > 1 else f"The student is not faster than its teacher ({speed:.2f}x)."
    if difference is None or kind in SMALLER_ON_PURPOSE:
        return None
    own, others = (format_score(system.score_mean, report.metric) for system in (rival, other))
    pair, who, what = f"({own} against {others})", KINDS[rival.kind].capitalize(), KINDS[kind]
    is_alone = kind == "student_no_kd" and report.find("teacher") is None
    if is_alone:
        what = "the same student without soft labels"
    if difference <= 0:
        ends = {
            "tfidf": "the plain baseline is the better choice here",
            "random_architecture": "the search gained nothing",
            "student_no_kd": "the soft labels gained nothing" if is_alone else "the teacher gained nothing",
            "bag_of_embeddings": "the cells gained nothing",
            "random_ticket": "the choice of heads and neurons gained nothing",
            "direct": "sparse pre-training gained nothing here",
        }
        return f"{who} is not better than {what} {pair}: {ends[kind]}."
    if error is not None and difference < NOISE_ERRORS * error:
        return (
            f"{who} is not better than {what} within noise {pair}:"
            f" the difference is less than {NOISE_ERRORS:.0f} standard errors."
        )
    return None


def _search_warnings(search: dict[str, Any]) -> list[str]:
    found = []
    counts = search.get("operations") or {}
    free = sum(count for name, count in counts.items() if name.rstrip("0123456789") in PARAMETER_FREE)
    total = sum(counts.values())
    if total and free / total > search.get("collapse_share", COLLAPSE_SHARE):
        found.append(
            f"Collapse: {free} of {total} edges have an operation without parameters; a smaller search.beta or a longer"
            " search.arch_warmup may help."
        )
    open_share = (search.get("entropy") or {}).get("operations")
    if open_share is not None and open_share > UNDECIDED_ENTROPY:
        found.append(
            f"The search ended undecided: the entropy of its operations is {100 * open_share:.0f}% of the maximum;"
            " more search.steps or a larger search.arch_learning_rate may help."
        )
    return found


def cascade_point(curve: Sequence[dict[str, float]]) -> dict[str, float]:
    """The point of a curve, in the order of its shares, that says what the cascade gains: from which on at least 90% of the way to the
    teacher's score is gone. A point that stands out by itself is chance. Where the teacher is not better, the best."""
    alone, teacher = curve[0]["score"], curve[-1]["score"]
    if teacher <= alone:
        return max(curve, key=lambda point: point["score"])
    wanted = alone + 0.9 * (teacher - alone)
    behind = max((index for index, point in enumerate(curve) if point["score"] < wanted), default=-1)
    return curve[min(behind + 1, len(curve) - 1)]


def served_model(report: Report) -> str:
    """Of which of several models, each of a seed, single examples tell; "" where there is one. Begins with a blank."""
    student = report.find("student")
    if student is None or len(student.scores) < 2:
        return ""
    return f" The model in student/ is seed {report.seeds[0]}'s, with {format_score(student.scores[0], report.metric)}; what is said of single examples is of it."


def cascade_sentence(report: Report) -> str | None:
    """What the cascade gains: the least share handed to the teacher from which on 90% of the way to its score is gone."""
    curve = sorted(report.cascade.get("curve") or [], key=lambda point: point["share_escalated"])
    if len(curve) < 2:
        return None
    alone, teacher, point = curve[0]["score"], curve[-1]["score"], cascade_point(curve)
    name = metric_name(report.metric)
    if teacher <= alone:
        gain = f"; at {100 * point['share_escalated']:.0f}% it is {format_score(point['score'], report.metric)}"
        return (
            f"The student alone has {format_score(alone, report.metric)} {name}, not less than its teacher on these"
            f" examples{gain if point['score'] > alone else ''}."
        )
    return (
        f"With the least sure {100 * point['share_escalated']:.0f}% of the texts handed to the teacher, {name} is"
        f" {format_score(point['score'], report.metric)}: {format_score(alone, report.metric)} with none,"
        f" {format_score(teacher, report.metric)} with all."
    )


def disagreement_sentence(report: Report) -> str | None:
    """How often student and teacher part on held-out examples, and who is right then."""
    found = report.disagreements
    if not found.get("of"):
        return None
    count, neither = found["count"], found["count"] - found["student_right"] - found["teacher_right"]
    share = f"{count:,} of {found['of']:,} held-out examples ({100 * count / found['of']:.1f}%)"
    if not count:
        return f"Student and teacher agree on all {found['of']:,} held-out examples."
    sides = f"the teacher is right in {found['teacher_right']:,}, the student in {found['student_right']:,}"
    return f"Student and teacher disagree on {share}: {sides}{f', neither in {neither:,}' if neither else ''}."


def latency_sentence(report: Report) -> str | None:
    """What the search's table said of the student's latency, and what it is."""
    found = report.latency
    if not found:
        return None
    target = f"{format_ms(found['target_ms'])} ms asked for, " if found.get("target_ms") else ""
    predicted, measured = format_ms(found["predicted_ms"]), format_ms(found["measured_ms"])
    return (
        f"Latency at the target's lengths: {target}{predicted} ms predicted from the table, {measured} ms measured of the"
        f" exported student (the prediction is {100 * found['error']:+.1f}% off)."
    )
