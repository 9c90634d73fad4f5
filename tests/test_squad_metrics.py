"""Exact match and F1 of answers against cases worked by hand from the definition of SQuAD v1.1."""

from __future__ import annotations

import pytest

from adasearch.squad_metrics import answer_f1, exact_match, normalize_answer, squad_scores

NORMALISED = [
    ("The Denver Broncos", "denver broncos"),
    ("the  Theatre of\tan Athens\n", "theatre of athens"),  # an article is a word: "theatre" keeps its "the"
    ("U.S.A.", "usa"),  # marks are deleted, not made blanks
    ("well-known", "wellknown"),
    ("$1,000.50", "100050"),
    ("a.", ""),  # punctuation goes first, then the article it hid
    ("A-B", "ab"),  # for the same reason "a" is no article here
    ("24–10", "24–10"),  # an en dash is no ASCII mark: it stays
    ("“The” end", "“ ” end"),  # nor are curly quotes; the article between them is a word and goes
    ("Café", "café"),
    ("Beyoncé's", "beyoncés"),
    ("", ""),
    ("the", ""),
    ("\u00a0the\u00a0end", "end"),  # a no-break space is white space
]


@pytest.mark.parametrize(("text", "expected"), NORMALISED)
def test_normalisation(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


PAIRS = [  # prediction, gold, exact match, F1
    ("Denver Broncos", "the Denver Broncos!", 1.0, 1.0),
    ("Denver", "Denver Broncos", 0.0, 2 * 1 * 0.5 / 1.5),
    ("the Denver Broncos team", "Denver Broncos", 0.0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
    ("Broncos Denver", "Denver Broncos", 0.0, 1.0),  # F1 knows no order
    ("dog dog dog", "dog cat", 0.0, 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),  # one dog is shared, not three
    ("dog dog", "dog dog cat", 0.0, 2 * 1 * (2 / 3) / (1 + 2 / 3)),
    ("Carolina", "Denver", 0.0, 0.0),
    ("", "Denver", 0.0, 0.0),
    ("The", "a", 1.0, 0.0),  # both are nothing: the same, yet without a shared word
    ("cafe", "café", 0.0, 0.0),  # accents count
]


@pytest.mark.parametrize(("prediction", "gold", "exact", "f1"), PAIRS)
def test_one_gold_answer(prediction: str, gold: str, exact: float, f1: float) -> None:
    assert exact_match(prediction, gold) == exact
    assert answer_f1(prediction, gold) == pytest.approx(f1)
    assert answer_f1(gold, prediction) == pytest.approx(f1), "it is symmetric"


def test_the_best_gold_answer_counts_for_each_metric_by_itself() -> None:
    golds = [("10 August 1920", "August", "in 1920"), ("blue",), ("The",)]
    found = squad_scores(["August 1920", "red", "an"], golds)
    # question 1: no exact match; F1 0.8 against the first, 2/3 against the second, 0.5 against the third. 2: none.
    # 3: exact, with an F1 of 0
    assert found == {"f1": pytest.approx(0.8 / 3), "exact_match": pytest.approx(1 / 3)}
    assert list(found) == ["f1", "exact_match"], "the first counts"


def test_a_perfect_reader_is_perfect() -> None:
    golds = [("gold", "golden"), ("24–10",), ("Levi's Stadium",)]
    assert squad_scores([answers[-1] for answers in golds], golds) == {"f1": 1.0, "exact_match": 1.0}
