"""The TF-IDF baseline against scikit-learn's parts put together by hand."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from adasearch import baselines
from adasearch.baselines import ABSENT_SCORE, STRENGTHS, PairTfidf, most_terms, tfidf_baseline
from adasearch.errors import ConfigError, DataError
from adasearch.honest import _tfidf
from adasearch.progress import Progress

WORDS = {0: ["dull", "slow", "bad"], 1: ["bright", "quick", "good"], 2: ["plain", "even", "fair"]}


def make_texts(labels: list[int] | np.ndarray, seed: int = 0) -> list[str]:
    """Texts of five words, three of which speak for their label."""
    generator = np.random.default_rng(seed)
    noise = ["film", "plot", "scene", "actor", "music"]
    return [" ".join([*generator.choice(WORDS[int(y)], 3), *generator.choice(noise, 2)]) for y in labels]


@pytest.mark.parametrize("num_labels", [2, 3])
def test_softmax_of_scores_is_the_probability_of_a_logistic_regression(num_labels: int) -> None:
    labels = np.arange(60) % num_labels
    texts, unseen = make_texts(labels), make_texts(labels, seed=1)
    baseline = tfidf_baseline(texts, labels)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    reference = LogisticRegression(C=baseline.strength, max_iter=300).fit(vectorizer.fit_transform(texts), labels)
    exponents = np.exp(baseline.scores(unseen).astype(np.float64))
    expected = reference.predict_proba(vectorizer.transform(unseen))
    np.testing.assert_allclose(exponents / exponents.sum(1, keepdims=True), expected, atol=1e-6)  # scores are float32
    assert baseline.scores(unseen).shape == (60, num_labels)
    assert baseline.params == reference.coef_.size + reference.intercept_.size
    assert baseline.is_strength_chosen and baseline.strength in STRENGTHS


def test_pair_features_are_both_vectors_their_product_and_their_distance() -> None:
    pairs = [("red fox runs", "blue fox runs"), ("cats sleep", "dogs bark"), ("cats sleep", "cats sleep")]
    transformer = PairTfidf().fit(pairs)
    a, b = (transformer.vectorizer_.transform([pair[side] for pair in pairs]).toarray() for side in (0, 1))
    found = transformer.transform(pairs).toarray()
    np.testing.assert_allclose(found, np.hstack([a, b, a * b, np.abs(a - b)]))
    assert a.shape[1] == 13  # red fox runs blue cats sleep dogs bark, and the pairs of neighbours among them
    assert found[2, -a.shape[1] :].sum() == 0  # equal texts are no distance apart


def test_pairs_are_told_apart_by_how_they_relate() -> None:
    generator = np.random.default_rng(0)
    words = [f"word{i}" for i in range(12)]
    first = [" ".join(generator.choice(words, 4)) for _ in range(200)]
    labels = np.arange(200) % 2
    second = [text if y else " ".join(generator.choice(words, 4)) for text, y in zip(first, labels)]
    baseline = tfidf_baseline(first[:150], labels[:150], pairs=second[:150])
    accuracy = (baseline.scores(first[150:], second[150:]).argmax(1) == labels[150:]).mean()
    assert accuracy > 0.9  # from one text alone it would be one half


def test_regression_is_ridge() -> None:
    labels = np.arange(60) % 3
    texts = make_texts(labels)
    baseline = tfidf_baseline(texts, labels.astype(np.float32) * 0.5, problem_type="regression")
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    reference = Ridge(alpha=1 / baseline.strength).fit(vectorizer.fit_transform(texts), labels * 0.5)
    assert baseline.scores(texts).shape == (60, 1) and baseline.num_labels == 1
    np.testing.assert_allclose(baseline.scores(texts)[:, 0], reference.predict(vectorizer.transform(texts)), atol=1e-5)


def test_the_strength_of_a_single_tag_is_chosen_by_the_f1_of_that_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    """scikit-learn's micro F1 of one column is accuracy."""
    asked, search = [], baselines.GridSearchCV
    monkeypatch.setattr(baselines, "GridSearchCV", lambda *given, **named: asked.append(named["scoring"]) or search(*given, **named))
    labels = (np.arange(60) % 4 == 0).astype(np.float32)[:, None]
    baseline = tfidf_baseline(make_texts(labels[:, 0]), labels, problem_type="multi_label")
    assert asked == ["f1"] and baseline.is_strength_chosen
    assert ((baseline.scores(make_texts(labels[:, 0], seed=1)) > 0) == (labels > 0)).all()


def test_multi_label_is_one_logistic_regression_a_label() -> None:
    classes = np.arange(60) % 3
    labels = np.stack([classes == 0, classes != 1, np.ones(60)], axis=1).astype(np.int64)  # the last is always there
    texts = make_texts(classes)
    baseline = tfidf_baseline(texts, labels, problem_type="multi_label")
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    features = vectorizer.fit_transform(texts)
    for label in (0, 1):
        reference = LogisticRegression(C=baseline.strength, max_iter=300).fit(features, labels[:, label])
        np.testing.assert_allclose(baseline.scores(texts)[:, label], reference.decision_function(features), atol=1e-5)
    assert (baseline.scores(texts)[:, 2] > 0).all()


def test_unknown_labels_are_left_out() -> None:
    labels = np.arange(40) % 2
    texts = make_texts(labels)
    with_unknown = tfidf_baseline([*texts, "unheard words"], np.array([*labels, -100]))
    np.testing.assert_array_equal(with_unknown.scores(texts), tfidf_baseline(texts, labels).scores(texts))


def test_a_label_without_texts_is_never_chosen() -> None:
    labels = np.array([0, 2] * 20)
    baseline = tfidf_baseline(make_texts(labels), labels, num_labels=4)
    scores = baseline.scores(make_texts(labels, seed=1))
    assert scores.shape == (40, 4) and (scores[:, [1, 3]] == ABSENT_SCORE).all()
    assert (scores.argmax(1) == labels).all()


def test_with_too_few_texts_of_a_label_nothing_is_chosen() -> None:
    baseline = tfidf_baseline(["good film", "bad film", "good plot"], np.array([1, 0, 1]))
    assert baseline.strength == 1.0 and not baseline.is_strength_chosen


def test_rare_terms_are_dropped_from_large_sets_only() -> None:
    labels = np.arange(1_000) % 2
    texts = [f"{text} once{index}" for index, text in enumerate(make_texts(labels))]
    for count, has_rare in ((999, True), (1_000, False)):
        terms = tfidf_baseline(texts[:count], labels[:count]).pipeline.named_steps["features"].get_feature_names_out()
        assert ("once7" in terms) == has_rare


def test_of_many_labels_the_most_frequent_terms_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert most_terms(2, is_pair=False) > 8_000_000 and most_terms(1_000, is_pair=False) == 16_777 == 4 * most_terms(1_000, is_pair=True) + 1
    labels = np.arange(90) % 3
    texts = [f"{text} rare{index % 30}" for index, text in enumerate(make_texts(labels))]
    monkeypatch.setattr(baselines, "MEMORY_BYTES", 3 * 5 * baselines.BYTES_PER_COEFFICIENT)
    single, pair = tfidf_baseline(texts, labels), tfidf_baseline(texts, labels, pairs=texts)
    terms = single.pipeline.named_steps["features"].get_feature_names_out()
    assert len(terms) == 5 and not any(term.startswith("rare") for term in terms)
    assert pair.pipeline.named_steps["model"].coef_.shape == (3, 4)


def test_size_and_calls() -> None:
    labels = np.arange(40) % 2
    texts = make_texts(labels)
    baseline = tfidf_baseline(texts, labels)
    again = pickle.loads(pickle.dumps(baseline.pipeline, protocol=pickle.HIGHEST_PROTOCOL))
    np.testing.assert_array_equal(again.decision_function(texts), baseline.pipeline.decision_function(texts))
    assert baseline.size_bytes == len(pickle.dumps(again, protocol=pickle.HIGHEST_PROTOCOL))
    call = baseline.factory(texts)(30, 128)
    np.testing.assert_allclose(call(), baseline.scores(texts[:30]), rtol=1e-6)
    np.testing.assert_allclose(call(), baseline.scores([*texts[30:], *texts[:20]]), rtol=1e-6)  # goes on, and round


@pytest.mark.parametrize(
    ("texts", "labels", "settings", "error", "message"),
    [
        (["a b", "c d"], [1, 1], {}, DataError, "2 labelled texts with 1 different labels"),
        (["??", "!"], [0, 1], {}, DataError, "no terms in 2 texts"),
        (["good one"], [0, 1], {}, DataError, "1 texts but 2 labels"),
        (
            ["good one"],
            [0],
            {"problem_type": "ranking"},
            ConfigError,
            "'ranking' is not known; choices: single_label, multi_label",
        ),
    ],
)
def test_errors(
    texts: list[str], labels: list[int], settings: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message.replace("?", r"\?")) as caught:
        tfidf_baseline(texts, np.array(labels), **settings)
    assert "\n" not in str(caught.value)


def test_a_trained_run_whose_texts_have_no_terms_is_reported_without_the_baseline() -> None:
    train = SimpleNamespace(texts=["!", "?"] * 10, pairs=None, labels=np.arange(20) % 2)
    problem = SimpleNamespace(task=SimpleNamespace(train=train, problem_type="single_label", num_labels=2), notes=[])
    run = SimpleNamespace(config=SimpleNamespace(controls=["tfidf"], seed=1), progress=Progress())
    assert _tfidf(run, problem) is None
    assert problem.notes[0].startswith("tfidf: no terms in 20 texts") and problem.notes[0].endswith("; this report is without that baseline")
