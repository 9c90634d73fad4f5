"""``adasearch score``: what it says of a file, against the same model asked by hand; other models, other labels, a run's own examples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from tiny_classifier import make_classifier
from tiny_questions import find_questions, save_reader

from adasearch import cli
from adasearch.answers_file import QuestionAnswerer
from adasearch.classifier import TextClassifier
from adasearch.errors import ConfigError, DataError
from adasearch.score_models import Evaluation, Served, format_evaluation, score_models
from adasearch.scoring import Judged, judge
from adasearch.squad_metrics import squad_scores

NAMES = ["neg", "neu", "pos"]
WORDS = ["a", "good", "bad", "film", "very", "the", "end", ","]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of the same labels, and a file of labelled texts."""
    folder = tmp_path_factory.mktemp("scored")
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, size=generator.integers(1, 9))) for _ in range(120)]
    pd.DataFrame({"text": texts, "label": generator.choice(NAMES, size=120)}).to_csv(folder / "new.csv", index=False)
    for name in ("one", "two"):
        make_classifier(folder / name)
    return folder


def by_hand(folder: Path, table: pd.DataFrame) -> float:
    """The share of rows whose label the model gives, asked one by one."""
    model = TextClassifier(folder, runtime="torch")
    return float(np.mean([model.answer([text]).predictions[0] == label for text, label in zip(table["text"], table["label"])]))


def test_a_file_is_scored_as_by_hand(place: Path) -> None:
    table = pd.read_csv(place / "new.csv")
    found = score_models([place / "one", place / "two"], place / "new.csv", runtime="torch")
    assert found.source == str(place / "new.csv") and found.board.examples == 120
    for model, folder in zip(found.board.models, (place / "one", place / "two")):
        assert model.name == str(folder) and model.scores["accuracy"].value == pytest.approx(by_hand(folder, table))
        assert 0 < model.calibration_error < 1 and [label.label for label in model.labels] == NAMES
    difference = found.board.differences[0]
    assert difference.score.value == pytest.approx(by_hand(place / "one", table) - by_hand(place / "two", table))
    assert difference.only_first - difference.only_other == round(120 * difference.score.value)
    assert [(how.runtime, how.precision, how.cut) for how in found.served] == [("torch", "fp32", 0)] * 2


def relabelled(place: Path, target: Path, names: list[str]) -> Path:
    """A copy of the first model whose outputs bear other names."""
    shutil.copytree(place / "one", target)
    config = json.loads((target / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_labels_meet_by_name_and_by_number_where_a_model_has_no_names(place: Path, tmp_path: Path) -> None:
    turned = relabelled(place, tmp_path / "turned", ["pos", "neg", "neu"])
    table = pd.read_csv(place / "new.csv")
    found = score_models([place / "one", turned], place / "new.csv", runtime="torch")
    assert found.board.models[1].scores["accuracy"].value == pytest.approx(by_hand(turned, table))
    assert found.board.models[1].scores != found.board.models[0].scores, "other names, other answers"
    nameless = relabelled(place, tmp_path / "nameless", ["LABEL_0", "LABEL_1", "LABEL_2"])
    for models in ([place / "one", nameless], [nameless, place / "one"]):
        file = place / "new.csv" if models[0] != nameless else tmp_path / "numbers.csv"
        pd.DataFrame({"text": table["text"], "label": [NAMES.index(name) for name in table["label"]]}).to_csv(tmp_path / "numbers.csv", index=False)
        one, two = score_models(models, file, runtime="torch").board.models
        assert one.scores == two.scores
    other = relabelled(place, tmp_path / "other", ["cat", "dog", "cow"])
    with pytest.raises(ConfigError, match="models: .*other is single_label of cat, dog, cow, the first single_label of neg, neu, pos"):
        score_models([place / "one", other], place / "new.csv", runtime="torch")


def test_a_run_has_its_own_examples(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv(place / "new.csv")
    run = tmp_path / "run"
    (run / "cache").mkdir(parents=True)
    shutil.copytree(place / "one", run / "student")
    shutil.copytree(place / "two", run / "teacher")
    table[:60].to_csv(tmp_path / "train.csv", index=False)
    table[60:].to_csv(tmp_path / "test.csv", index=False)
    config = {"task": "tiny", "train_file": str(tmp_path / "train.csv"), "test_file": str(tmp_path / "test.csv"), "seed": 3, "metric": None}
    (run / "run.json").write_text(json.dumps({"config": config}))
    found = score_models([run, run / "teacher"], runtime="torch", metric="f1_macro")
    assert found.source == f"the test examples of {run}" and found.board.examples == 60 and found.board.metric == "f1_macro"
    assert found.board.models[1].scores["accuracy"].value == pytest.approx(by_hand(place / "two", table[60:]))
    assert cli.main(["score", str(run), str(run / "teacher"), "--runtime", "torch", "--json", "true", "--quiet", "true"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in printed["models"]] == [str(run), str(run / "teacher")] and printed["models"][0]["runtime"] == "torch"
    assert printed["models"][0]["scores"]["accuracy"]["value"] == pytest.approx(by_hand(place / "one", table[60:]))
    assert cli.main(["score", str(run), str(run / "teacher"), "--runtime", "torch", "--quiet", "true"]) == 0
    text = capsys.readouterr().out
    assert "60 examples: the test examples of" in text and "most often taken for another:" in text and "McNemar: p = " in text
    assert format_evaluation(score_models([run, run / "teacher"], runtime="torch")) in text


def test_a_run_s_examples_keep_their_labels_whatever_a_model_calls_its_outputs(place: Path, tmp_path: Path) -> None:
    """Gold labels are numbers of the task's names: a model that names its outputs otherwise is not scored by their numbers."""
    table = pd.read_csv(place / "new.csv")
    table[:60].to_csv(tmp_path / "train.csv", index=False)
    table[60:].to_csv(tmp_path / "test.csv", index=False)
    turned = relabelled(place, tmp_path / "run" / "student", ["pos", "neg", "neu"])
    (tmp_path / "run" / "cache").mkdir()
    config = {"task": "tiny", "train_file": str(tmp_path / "train.csv"), "test_file": str(tmp_path / "test.csv"), "seed": 3, "metric": None}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": config}))
    (model,) = score_models([tmp_path / "run"], runtime="torch").board.models
    assert model.scores["accuracy"].value == pytest.approx(by_hand(turned, table[60:])) and [label.label for label in model.labels] == NAMES
    assert by_hand(turned, table[60:]) != by_hand(place / "one", table[60:]), "other names, other answers"
    shutil.rmtree(turned)
    relabelled(place, turned, ["cat", "dog", "cow"])
    with pytest.raises(ConfigError, match="models: .*student is single_label of cat, dog, cow, the run's task single_label of neg, neu, pos"):
        score_models([tmp_path / "run"], runtime="torch")


def test_readers_answer_questions(tmp_path: Path) -> None:
    questions = find_questions(30)
    save_reader(tmp_path / "reader")
    answers = [{"text": list(texts), "answer_start": [start]} for texts, start in zip(questions.answers, questions.starts)]
    table = pd.DataFrame({"question": questions.texts, "context": questions.contexts, "answers": answers})
    table.to_json(tmp_path / "questions.jsonl", orient="records", lines=True)
    found = score_models([tmp_path / "reader"], tmp_path / "questions.jsonl", runtime="torch")
    spans = QuestionAnswerer(tmp_path / "reader", runtime="torch").answer(questions.texts, questions.contexts)
    expected = squad_scores([answer.text for answer in spans.answers], questions.answers)
    assert {name: score.value for name, score in found.board.models[0].scores.items()} == pytest.approx(expected)
    assert "exact match" in format_evaluation(found)
    make_classifier(tmp_path / "labels")
    with pytest.raises(ConfigError, match="reader answers questions, .*labels has labels; choices: models of one kind"):
        score_models([tmp_path / "reader", tmp_path / "labels"], tmp_path / "questions.jsonl")
    with pytest.raises(ConfigError, match="metric: 'accuracy' cannot count in question answering; choices: f1, exact_match"):
        score_models([tmp_path / "reader"], tmp_path / "questions.jsonl", metric="accuracy")


def board_of(first: list[int], other: list[int], count: int) -> Evaluation:
    """Two models of ``count`` examples, wrong on these."""
    labels_N = np.arange(count) % 2
    judged = []
    for name, wrong in (("first", first), ("other", other)):
        found_N = labels_N.copy()
        found_N[wrong] = 1 - found_N[wrong]
        judged.append(Judged(name, np.eye(2)[found_N]))
    return Evaluation("a.csv", judge(judged, ["accuracy"], labels_N, ["no", "yes"]), (Served("torch", "fp32", 0),) * 2)


def test_the_exact_test_decides_what_chance_explains() -> None:
    few, many = board_of([], [1, 2, 3, 4], 200), board_of([], list(range(8)), 200)
    assert few.board.differences[0].score.low > 0, "the bootstrap alone would be sure"
    assert "chance alone may do that" in format_evaluation(few) and "p = 0.12" in format_evaluation(few)
    assert "more than chance explains" in format_evaluation(many)


def test_class_names_of_a_parquet_file_are_believed(place: Path, tmp_path: Path) -> None:
    table = pd.read_csv(place / "new.csv")
    turned = ["pos", "neu", "neg"]
    columns = {"text": table["text"].tolist(), "label": [turned.index(name) for name in table["label"]]}
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=turned)})
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "new.parquet")
    found = score_models([place / "one"], tmp_path / "new.parquet", runtime="torch")
    assert found.board.models[0].scores["accuracy"].value == pytest.approx(by_hand(place / "one", table))


def test_texts_are_answered_chunk_by_chunk_and_cut_ones_are_counted(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = score_models([place / "one"], place / "new.csv", runtime="torch")
    monkeypatch.setattr("adasearch.score_models.CHUNK_ROWS", 50)
    assert score_models([place / "one"], place / "new.csv", runtime="torch").board == whole.board
    texts = ["film " * 14, "film " * 15, "good"]  # with two special tokens 16 and 17 of 16
    pd.DataFrame({"text": texts, "label": ["neg", "neu", "pos"]}).to_csv(tmp_path / "long.csv", index=False)
    found = score_models([place / "one"], tmp_path / "long.csv", runtime="torch")
    assert found.served[0].cut == 1 and "reads: 1 texts" in format_evaluation(found)


def test_what_cannot_be_scored_is_refused_before_a_model_is_loaded(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="models: none to score"):
        score_models([])
    with pytest.raises(ConfigError, match="models: .*nowhere is no model folder"):
        score_models([place / "nowhere"], place / "new.csv")
    for run in ("begun", "packaged"):  # a run that was given its teacher has no teacher/
        (place / run).mkdir()
    (place / "begun" / "run.json").write_text(json.dumps({"config": {"teacher": "one"}, "directory": str(place)}))
    (place / "packaged" / "run.json").write_text(json.dumps({"config": {"teacher": "demo"}, "directory": str(place)}))
    for run, teacher in (("begun", place / "one"), ("packaged", "demo")):
        with pytest.raises(ConfigError, match=f"teacher is no model folder .*; this run's teacher is {teacher}$"):
            score_models([place / "one", place / run / "teacher"], place / "new.csv")
    with pytest.raises(ConfigError, match="threads: 1000 on .* choices: 1 to "):
        score_models([place / "nowhere"], place / "new.csv", threads=1000)
    with pytest.raises(ConfigError, match="input_file: none given, and .*one lies in no run's folder; choices: a file"):
        score_models([place / "one"])
    with pytest.raises(DataError, match="no column 'stars'; columns: text, label"):
        score_models([place / "one"], place / "new.csv", label_column="stars")
    with pytest.raises(ConfigError, match="metric: 'bleu' cannot count"):
        score_models([place / "one"], place / "new.csv", metric="bleu")
    with pytest.raises(ConfigError, match="input_file: none given, so there is no column 'stars' to read"):
        score_models([place / "one"], label_column="stars")
    with pytest.raises(ConfigError, match="data_dir: says where a run's own examples lie"):
        score_models([place / "one"], place / "new.csv", data_dir="data")
    (tmp_path / "bad.csv").write_text("text,label\ngood,best\n")
    with pytest.raises(DataError, match=r"unknown label 'best'.*\. Mend them$"):
        score_models([place / "one"], tmp_path / "bad.csv")
    pairs = make_classifier(tmp_path / "pairs", is_pair=True)
    with pytest.raises(ConfigError, match="text_pair_column: none given; the model was trained on pairs"):
        score_models([pairs], place / "new.csv")
