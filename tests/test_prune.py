"""A student's word table cut: what stays the same, what is chosen, what is refused, and the way from a run's folder."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from hearing import Heard
from tiny import randomise, tiny_architecture
from tiny_task import tiny_run
from tiny_words import CHARACTERS, PIECES, SPECIAL, WORDS, save_words, tokenizer_of
from sklearn import metrics as sk
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

import adasearch
from adasearch import cli
from adasearch.config import RunConfig, TransferConfig, VocabularyConfig, to_dict
from adasearch.errors import ConfigError, DataError, ModelError
from adasearch.export import save_student
from adasearch.files import write_json
from adasearch.finished import FinishedRun, find_run
from adasearch.metrics import choose_metrics
from adasearch.predict import predict_file
from adasearch.prepare import Problem, prepare
from adasearch.progress import Progress
from adasearch.prune import SIZES, load_student_and_tokenizer, logits_of, prune_vocabulary, scorer
from adasearch.known_labels import Columns, read_examples
from adasearch.calibration import calibrate, expected_calibration_error, load_calibration
from adasearch.cascade import Cascade
from adasearch.classifier import TextClassifier
from adasearch.prune_files import prune_student
from adasearch.score_models import score_models
from adasearch.shrink import build_student
from adasearch.student import AdasearchConfig, AdasearchForSequenceClassification
from adasearch.tasks import load_task
from adasearch.sources import PRESETS
from adasearch.streams import own_lengths
from adasearch.texts import Split
from adasearch.tokens import TokenStore
from adasearch.vocabulary import required_pieces
from adasearch.word_pieces import pieces_of

REQUIRED = len(SPECIAL) + 2 * len(CHARACTERS)
TEXTS = ["the film was good", "the actor played", "good good"]  # pieces beside the required: the film was good actor play ##ed


def random_student(cells: int = 2, **macro) -> AdasearchForSequenceClassification:
    """A student of random weights for the tokenizer of ``tiny_words``, whose special ids are no small numbers."""
    tokenizer = tokenizer_of()
    config = AdasearchConfig(
        vocab_size=len(PIECES), max_position_embeddings=64, sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id, num_labels=2, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
        problem_type="single_label_classification",
    )  # fmt: skip
    model = build_student(tiny_architecture(cells=cells, **macro), config)
    randomise(model)
    return model.eval()


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return save_student(random_student(), tokenizer_of(), tmp_path / "student", "---\nlicense: other\n---\n\n# tiny\n")


def logits(folder: Path, texts: list[str], pairs: list[str] | None = None) -> torch.Tensor:
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, pairs, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(batch["input_ids"], batch["attention_mask"]).logits


@pytest.mark.parametrize("inputs", ["joint", "two"])
def test_texts_of_kept_pieces_get_the_same_logits(inputs: str, tmp_path: Path) -> None:
    whole = save_student(random_student(inputs=inputs), tokenizer_of(), tmp_path / "student")
    found = prune_vocabulary(whole, TEXTS, output_dir=tmp_path / "small")
    words = "the film was good actor played a b z".split()
    rng = random.Random(0)
    firsts, seconds = ([" ".join(rng.choices(words, k=rng.randint(1, 5))) for _ in range(20)] for _ in range(2))
    for pairs in (None, seconds):  # of pairs the second text is found by the separator's id, which has moved
        assert torch.allclose(logits(whole, firsts, pairs), logits(found.folder, firsts, pairs), atol=1e-6, rtol=0)
    assert not torch.allclose(logits(whole, ["films"]), logits(found.folder, ["films"]), atol=1e-3)
    assert found.after.rows == REQUIRED + 7 and found.before.rows == len(PIECES)
    assert found.before.params - found.after.params == (len(PIECES) - found.after.rows) * 8


def test_the_new_folder_is_a_whole_students(student: Path) -> None:
    found = prune_vocabulary(student, TEXTS, output_dir=student.with_name("small"), size=REQUIRED + 3)
    folder = found.folder
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "model.safetensors", "modeling_adasearch.py", "tokenizer.json", "tokenizer_config.json", "README.md",
        "vocabulary.json",
    }  # fmt: skip
    config, tokenizer = json.loads((folder / "config.json").read_text()), AutoTokenizer.from_pretrained(folder)
    assert config["vocab_size"] == len(tokenizer) == REQUIRED + 3
    assert config["sep_token_id"] == tokenizer.sep_token_id != tokenizer_of().sep_token_id
    assert config["pad_token_id"] == tokenizer.pad_token_id
    assert set(pieces_of(tokenizer)) - set(CHARACTERS) - set(SPECIAL) >= {"good", "the"}  # three times, twice
    header = (folder / "model.safetensors").stat().st_size - found.after.size_bytes
    assert 0 < header < 20_000
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense") and f"from {len(PIECES)} to {REQUIRED + 3} word" in card
    said = json.loads((folder / "vocabulary.json").read_text())
    assert said["after"]["rows"] == REQUIRED + 3 and said["before"]["score"] is None
    again = prune_vocabulary(student, TEXTS, output_dir=folder)  # what prune wrote it may write again
    assert again.after.rows == REQUIRED + 7


def test_an_exported_student_is_exported_again(tmp_path: Path) -> None:
    student = save_student(random_student(cells=1), tokenizer_of(), tmp_path / "student")
    (student / "onnx").mkdir()
    (student / "onnx" / "model.onnx").touch()
    folder = prune_vocabulary(student, TEXTS, output_dir=student.with_name("small")).folder
    runtime = adasearch.runtimes.load_runtime("onnxruntime", folder)
    assert runtime.vocab_size == REQUIRED + 7
    batch = AutoTokenizer.from_pretrained(folder)(["the film was good"], return_tensors="np")
    found = runtime(batch["input_ids"], batch["attention_mask"])
    assert np.allclose(found, logits(folder, ["the film was good"]).numpy(), atol=1e-4)


def test_the_smallest_size_that_loses_little_is_taken(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {len(PIECES): 0.9, REQUIRED + 7: 0.91, REQUIRED + 5: 0.898, REQUIRED + 3: 0.895, REQUIRED + 1: 0.8}
    asked: list[int] = []

    def evaluate(model: torch.nn.Module, tokenizer: object) -> float:
        asked.append(model.config.vocab_size)
        assert len(tokenizer) == model.config.vocab_size
        return scores[asked[-1]]

    sizes = [REQUIRED + 1, REQUIRED + 5, REQUIRED + 3]

    def prune(**settings):
        asked.clear()
        return prune_vocabulary(student, TEXTS, output_dir=student.with_name("small"), evaluate=evaluate, **settings)

    found = prune(sizes=sizes)
    assert asked == [len(PIECES), REQUIRED + 5, REQUIRED + 3, REQUIRED + 1]
    assert found.after.rows == REQUIRED + 3  # 0.5 points exactly
    assert found.after.drop == pytest.approx(0.5) and [cut.rows for cut in found.tried] == asked[1:]
    assert load_student_and_tokenizer(found.folder)[0].config.vocab_size == REQUIRED + 3
    assert prune(sizes=sizes, max_drop=0.3).after.rows == REQUIRED + 5
    monkeypatch.setattr("adasearch.prune.SIZES", (10_000, REQUIRED + 5, REQUIRED + 1, 20))
    assert prune().after.rows == REQUIRED + 5 and asked[1:] == [REQUIRED + 7, REQUIRED + 5, REQUIRED + 1]
    with pytest.raises(ModelError, match=f"max_drop: no size loses 0.1 points or less; the best, {REQUIRED + 5} rows, loses 0.20"):
        prune(sizes=sizes[:2], max_drop=0.1)

    heard = Heard()
    assert prune(size=REQUIRED + 1, progress=heard).after.rows == REQUIRED + 1  # it was asked for
    assert heard.warnings == [f"{REQUIRED + 1} rows lose 10.00 points, more than max_drop 0.5"]
    trained: list[int] = []
    found = prune(sizes=sizes, refit=lambda model, tokenizer: trained.append(len(tokenizer)))
    assert trained == [REQUIRED + 1, REQUIRED + 3] and found.after.rows == REQUIRED + 3  # stops where it is good enough


def test_what_cannot_be_is_refused_before_anything_is_written(student: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"

    def refused(error: type[Exception], match: str, texts: object = TEXTS, source: Path = student, **settings) -> None:
        with pytest.raises(error, match=match):
            prune_vocabulary(source, texts, **{"output_dir": out, **settings})
        assert not out.exists()

    refused(ConfigError, f"vocabulary.size: 10 has no room for the {REQUIRED} special", size=10)
    refused(ConfigError, "vocabulary.sizes: .* and vocabulary.size 80 exclude each other", size=80, sizes=[70])
    refused(ConfigError, "vocabulary.sizes: nothing to choose by", sizes=[70])
    refused(ConfigError, "vocabulary.sizes: the list is empty", sizes=[], evaluate=lambda *_: 1.0)
    refused(ConfigError, "is the student itself", output_dir=student)
    refused(ConfigError, "holds something else", output_dir=tmp_path)
    refused(DataError, "texts: there are none", texts=[])
    refused(ModelError, "piece 999 is beyond the student's", texts=TokenStore.from_lists([[999]]))
    bert = tmp_path / "bert"
    save_words(bert)
    BertForSequenceClassification(tiny_bert()).save_pretrained(bert)
    refused(ModelError, "a 'bert' model; choices: a student", source=bert)


def tiny_bert() -> BertConfig:
    return BertConfig(
        vocab_size=len(PIECES), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, pad_token_id=PIECES.index("[PAD]"),
    )  # fmt: skip


def words_run(folder: Path, **changes) -> RunConfig:
    """The tiny run with a teacher whose pieces are of every kind."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    BertModel(tiny_bert()).save_pretrained(save_words(folder / "words"))
    config = tiny_run(folder, teacher=str(folder / "words"), max_seq_length=64, transfer=TransferConfig(size=40, labelled_share=0.8), **changes)
    return dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, epochs=0.5))


def prepared(config: RunConfig, progress: Progress | None = None) -> Problem:
    folder = Path(config.output_dir)
    task = load_task(config, seed=config.seed, cache=folder / "cache")
    return prepare(config, task, folder, Accelerator(cpu=True), progress or Progress())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Problem]:
    """The folder a run leaves, with a student that is sure of what it does not know."""
    config = words_run(tmp_path_factory.mktemp("ran"))
    problem, folder = prepared(config), Path(config.output_dir)
    model = build_student(tiny_architecture(), random_student().config).eval()
    torch.nn.init.normal_(model.trunk.read_out.classifier.weight, std=2.0)
    model.config.id2label, model.config.label2id = {0: "negative", 1: "positive"}, {"negative": 0, "positive": 1}
    for name in ("student", "models/student-1"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_student(model, problem.tokenizer, folder / name)
    write_json(folder / "run.json", {"config": to_dict(config), "stages": {}})
    return folder, problem


def test_a_runs_own_texts_say_which_pieces_stay(ran: tuple[Path, Problem], tmp_path: Path) -> None:
    folder, problem = ran
    found = prune_student(folder, tmp_path / "small", size=10_000)
    occurring = {PIECES[index] for index in np.unique(problem.lesson.tokens.ids)}
    required = {PIECES[index] for index in np.flatnonzero(required_pieces(tokenizer_of()))}
    assert set(pieces_of(AutoTokenizer.from_pretrained(found.folder))) == occurring | required
    assert found.before.score == pytest.approx(found.after.score) and found.after.drop == 0
    assert found.before.score == scorer(problem.task.validation, "accuracy")(*load_student_and_tokenizer(folder / "student"))[0]


def test_the_student_of_a_run_is_found_and_its_lesson_is_read_back(ran: tuple[Path, Problem]) -> None:
    folder, problem = ran
    for path in (folder, folder / "student", folder / "models" / "student-1"):
        student, run = find_run(path)
        assert run.folder == folder and student == (folder / "student" if path == folder else path)
    lesson, expected = run.lesson(run.task(instead="")), problem.lesson
    assert np.array_equal(lesson.tokens.ids, expected.tokens.ids) and np.array_equal(lesson.labels, expected.labels)
    assert np.array_equal(lesson.teacher_logits, expected.teacher_logits) and lesson.pad_token_id == expected.pad_token_id
    with pytest.raises(ConfigError, match="student: .*no student's folder"):
        find_run(folder / "cache")


def test_the_lesson_of_a_run_without_a_teacher_is_its_soft_labels(tmp_path: Path) -> None:
    config = words_run(tmp_path)
    config = dataclasses.replace(
        config, teacher="none", tokenizer=config.teacher, soft_label_columns=["p_negative", "p_positive"], transfer=TransferConfig(size=0)
    )
    for path in (config.train_file, config.validation_file):
        with open(path, encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        shares = np.linspace(0.05, 0.95, len(rows))
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["text", "p_negative", "p_positive"])
            writer.writeheader()
            writer.writerows({"text": row["text"], "p_negative": p, "p_positive": 1 - p} for row, p in zip(rows, shares))
    problem, folder = prepared(config), Path(config.output_dir)
    save_student(random_student(), problem.tokenizer, folder / "student")
    write_json(folder / "run.json", {"config": to_dict(config), "stages": {}})
    _, run = find_run(folder)
    task = run.task(instead="")
    lesson = run.lesson(task)
    assert np.array_equal(lesson.tokens.ids, problem.lesson.tokens.ids)
    taught = torch.from_numpy(np.asarray(lesson.teacher_logits)).softmax(-1)
    np.testing.assert_allclose(taught, task.train.soft_labels, atol=1e-5)


def test_a_refit_trains_the_cut_student_on_the_lesson(ran: tuple[Path, Problem], tmp_path: Path) -> None:
    size = REQUIRED + 2
    plain = prune_student(ran[0], tmp_path / "plain", size=size)
    refitted = prune_student(ran[0], tmp_path / "refitted", size=size, refit_steps=20)
    before, after = (load_student_and_tokenizer(found.folder)[0].state_dict() for found in (plain, refitted))
    assert before.keys() == after.keys() and refitted.after.rows == size
    assert all(not torch.equal(before[key], after[key]) for key in before if key.endswith("word.weight"))
    taught = torch.from_numpy(np.asarray(ran[1].labelled.teacher_logits)).softmax(-1)
    far, near = ((logits(found.folder, ran[1].task.train.texts).softmax(-1) - taught).abs().mean() for found in (plain, refitted))
    assert near < 0.7 * far


def test_who_is_stopped_while_the_graph_is_written_has_honest_probabilities(
    ran: tuple[Path, Problem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adasearch.prune.export_student", stop)
    run = shutil.copytree(ran[0], tmp_path / "run")
    (run / "student" / "onnx").mkdir(exist_ok=True)
    (run / "student" / "onnx" / "model.onnx").touch()  # the cut student has a graph where the whole one has
    with pytest.raises(KeyboardInterrupt):
        prune_student(run, tmp_path / "cut", size=REQUIRED + 2)
    assert load_calibration(tmp_path / "cut") is not None


def test_a_pruned_students_probabilities_stay_honest(ran: tuple[Path, Problem], student: Path, tmp_path: Path) -> None:
    """Its temperature is its own where there are examples to fit it, and the whole student's where there are none."""
    folder, problem = ran
    found = prune_student(folder, tmp_path / "small", size=REQUIRED + 2)
    split = problem.task.validation
    own = calibrate(logits(found.folder, split.texts).numpy(), split.labels, "validation")
    assert load_calibration(found.folder).temperature == pytest.approx(own.temperature, rel=1e-4)
    texts = tmp_path / "texts.txt"
    texts.write_text("the film was good\n", encoding="utf-8")
    assert load_calibration(prune_student(student, tmp_path / "never", texts_file=texts).folder) is None
    dataclasses.replace(own, temperature=2.5).save(student)
    assert load_calibration(prune_student(student, tmp_path / "unseen", texts_file=texts).folder).temperature == 2.5


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_what_a_pruned_student_serves_is_divided_by_its_own_temperature(ran: tuple[Path, Problem], tmp_path: Path, runtime: str) -> None:
    """In predictions, in a cascade and in a score; recomputed from its logits and its calibration.json."""
    folder, problem = ran
    student = Path(shutil.copytree(folder / "student", tmp_path / "run" / "student"))
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
        (student / "onnx").mkdir()
        (student / "onnx" / "model.onnx").touch()  # as of a student that was exported: the cut one then is, too
    split, source = problem.task.validation, tmp_path / "validation.csv"
    with open(source, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((text, ("negative", "positive")[label]) for text, label in zip(split.texts, split.labels))])
    found = prune_student(student, tmp_path / "small", size=REQUIRED + 2, texts_file=source, validation_file=source).folder
    temperature = json.loads((found / "calibration.json").read_text())["temperature"]
    scores_NC = logits(found, split.texts)
    shares_NC = (scores_NC / temperature).softmax(-1).numpy()
    plain_NC = scores_NC.softmax(-1).numpy()
    assert np.abs(shares_NC - plain_NC).max() > 0.05, "the temperature shows"

    predict_file(found, source, tmp_path / "out.jsonl", runtime=runtime)
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    served_NC = np.array([[row["probability_negative"], row["probability_positive"]] for row in answers])
    np.testing.assert_allclose(served_NC, shares_NC, atol=1e-4)

    confidence_N = np.sort(shares_NC.max(1))
    gap = int(np.diff(confidence_N).argmax())  # a threshold that no rounding crosses
    threshold = float(confidence_N[gap : gap + 2].mean())
    assert ((plain_NC.max(1) < threshold) != (shares_NC.max(1) < threshold)).any()
    cascade = Cascade(TextClassifier(found, runtime=runtime), TextClassifier(folder / "student", runtime="torch"), threshold=threshold)
    assert cascade.answer(split.texts).is_escalated_N.tolist() == (shares_NC.max(1) < threshold).tolist()

    error = score_models([found], source, runtime=runtime).board.models[0].calibration_error
    expected, other = (expected_calibration_error(each_NC, split.labels) for each_NC in (shares_NC, plain_NC))
    assert error == pytest.approx(expected, abs=1e-3) and abs(other - expected) > 0.01


def test_a_student_that_was_cut_is_not_cut_again_by_texts_in_other_pieces(ran: tuple[Path, Problem], tmp_path: Path) -> None:
    """Its run's texts are kept in the pieces of the whole student."""
    folder, _ = ran
    small = prune_student(folder, folder / "smaller", size=REQUIRED + 5).folder
    try:
        for settings in ({}, {"refit_steps": 5}):
            with pytest.raises(ConfigError, match=rf"student: .*smaller was cut before, .*; choices: {folder}/student, or --texts_file FILE"):
                prune_student(small, tmp_path / "x", size=REQUIRED + 2, **settings)
        texts = tmp_path / "texts.txt"
        texts.write_text("the film was good\n", encoding="utf-8")
        assert prune_student(small, tmp_path / "x", texts_file=texts, size=REQUIRED + 2).after.rows == REQUIRED + 2
    finally:
        shutil.rmtree(small)


def test_a_student_from_elsewhere_needs_the_users_files(ran: tuple[Path, Problem], student: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="texts_file: .*lies in no run's folder; choices: --texts_file"):
        prune_student(student)
    with pytest.raises(ConfigError, match="refit_steps: 5 needs the run"):
        prune_student(student, refit_steps=5)
    texts, examples = tmp_path / "texts.txt", tmp_path / "examples.csv"
    texts.write_text("the film was good\n\nthe actor played\n", encoding="utf-8")
    with open(examples, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows({"text": " ".join(WORDS[i : i + 4]), "label": i % 2} for i in range(12))
    found = prune_student(student, texts_file=texts, validation_file=examples)
    assert found.folder == student.with_name("student_pruned") and found.after.rows == REQUIRED + 7
    assert found.before.score is not None and len(SIZES) > 3
    with pytest.raises(DataError, match="texts_file|no column 'sentence'"):
        prune_student(student, tmp_path / "x", texts_file=examples, text_column="sentence")


def test_labels_of_a_file_are_names_or_numbers(tmp_path: Path) -> None:
    def labels(names: tuple[str, ...], *given: str) -> list[int]:
        path = tmp_path / "examples.csv"
        path.write_text("text,label\n" + "".join(f"t,{label}\n" for label in given), encoding="utf-8")
        return read_examples(path, "validation_file", "single_label", names, Columns()).labels.tolist()

    assert labels(("bad", "good"), "good", "bad") == labels(("bad", "good"), "1", "0") == [1, 0]
    assert labels(("1", "2", "3"), "3", "1") == [2, 0]  # stars: the numbers are the names
    with pytest.raises(DataError, match="line 3: column 'label': unknown label 'so-so'; known: 0 = bad, 1 = good"):
        labels(("bad", "good"), "good", "so-so")


@pytest.mark.parametrize(("kind", "size"), [("pruned", REQUIRED + 8), ("own", 80)])
def test_a_runs_vocabulary_may_be_smaller_from_the_start(kind: str, size: int, tmp_path: Path) -> None:
    config = words_run(tmp_path, vocabulary=VocabularyConfig(kind, size))
    problem = prepared(config)
    teacher, student = problem.teacher.tokenizer, problem.tokenizer
    assert len(student) == problem.student_config.vocab_size == len(problem.word) <= size < len(teacher)
    assert problem.student_config.sep_token_id == student.sep_token_id
    plain = prepared(words_run(tmp_path / "plain"))

    def words(tokenizer: object, tokens: TokenStore) -> list[str]:
        return ["".join(tokenizer.convert_ids_to_tokens(tokens[n].tolist())).replace("##", "") for n in range(len(tokens))]

    mine, theirs = words(student, problem.lesson.tokens), words(teacher, plain.lesson.tokens)
    known = [n for n, text in enumerate(mine) if "[UNK]" not in text]  # an own one does not know letters that no text has
    assert [mine[n] for n in known] == [theirs[n] for n in known]  # row by row the same texts
    assert len(known) == len(mine) if kind == "pruned" else len(known) > 0.8 * len(mine)
    assert np.array_equal(problem.lesson.teacher_logits, plain.lesson.teacher_logits)
    assert np.array_equal(problem.lesson.labels, plain.lesson.labels)
    for mine, theirs in ((problem.held_out, problem.teacher_held_out), (problem.validation, problem.teacher_validation)):
        assert words(student, mine.tokens) == words(teacher, theirs.tokens) and np.array_equal(mine.labels, theirs.labels)
        assert mine.pad_token_id == student.pad_token_id and theirs.pad_token_id == teacher.pad_token_id
    assert np.array_equal(problem.teacher_held_out.tokens.ids, plain.held_out.tokens.ids)
    row = {name: problem.word[index] for index, name in enumerate(pieces_of(student))}
    assert torch.equal(row["good"], plain.word[PIECES.index("good")])
    heard = Heard()
    again = prepared(config, heard)
    assert not heard.titles
    assert np.array_equal(again.lesson.tokens.ids, problem.lesson.tokens.ids) and torch.equal(again.word, problem.word)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "smaller"}, "vocabulary.kind: 'smaller' is not known; choices: teacher, pruned, own"),
        ({"kind": "own"}, "vocabulary.size: kind 'own' needs a size"),
        ({"size": 8000}, "vocabulary.size: 8000 has no effect on the teacher's vocabulary"),
        ({"kind": "pruned", "size": 0}, "vocabulary.size: 0 is out of range"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        adasearch.config.validate(RunConfig(vocabulary=VocabularyConfig(**settings)))


def test_a_vocabulary_without_room_is_refused_before_the_teacher_is_trained(tmp_path: Path) -> None:
    for kind in ("pruned", "own"):
        with pytest.raises(ConfigError, match="vocabulary.size: 9 has no room"):
            prepared(words_run(tmp_path, vocabulary=VocabularyConfig(kind, 9)))
    assert not (tmp_path / "run" / "teacher").exists()


def test_a_cut_student_is_timed_at_the_lengths_of_its_own_pieces(tmp_path: Path) -> None:
    """Wherever it lies; its run's texts are kept in the pieces of the whole one."""
    run, texts = tmp_path / "run", ["the films was playing", "good actor", "unplayable plots", "the film was good"]
    whole, tokenizer = save_student(random_student(), tokenizer_of(), run / "student"), tokenizer_of()
    for name, length in (("held_out-a", 3), ("held_out-b", None)):  # the last is the one that counts
        TokenStore.from_lists(ids[:length] for ids in tokenizer(texts)["input_ids"]).save(run / "cache", name)
        time = 10**9 * (2 if length is None else 1)
        os.utime(run / "cache" / f"{name}.offsets.npy", ns=(time, time))
    assert own_lengths(whole) is None, "the run's lengths are its own"
    for place in (run / "student_pruned", tmp_path / "elsewhere" / "cut"):
        folder = prune_vocabulary(whole, TEXTS, output_dir=place).folder
        own = [len(ids) for ids in AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]]
        assert own_lengths(folder).tolist() == own and own > [len(ids) for ids in tokenizer(texts)["input_ids"]]
    TokenStore.from_lists(tokenizer(texts[:2])["input_ids"]).save(run / "cache", "student_held_out-c")  # of a vocabulary of its own
    assert own_lengths(folder).tolist() == own[:2] and own_lengths(whole).tolist() == [len(ids) for ids in tokenizer(texts[:2])["input_ids"]]
    shutil.rmtree(whole)
    with pytest.raises(DataError, match="models: .*cut: .*student, whose word pieces .* is gone; choices: --lengths_from"):
        own_lengths(folder)


def test_a_cut_student_of_a_regression_keeps_the_scale(student: Path) -> None:
    """A word table whose cut moves every prediction by as much correlates as well as before."""
    scores = {len(PIECES): (0.9, 0.8), REQUIRED + 5: (0.9, 0.796), REQUIRED + 1: (0.9, 0.7)}
    found = prune_vocabulary(
        student, TEXTS, output_dir=student.with_name("small"), sizes=[REQUIRED + 1, REQUIRED + 5],
        evaluate=lambda model, tokenizer: scores[len(tokenizer)],
    )  # fmt: skip
    assert found.after.rows == REQUIRED + 5 and found.after.drop == pytest.approx(0.4) and found.after.score == 0.9
    labels_N = np.arange(8, dtype=np.float32)
    split = Split(["film good", "bad", "the plot", "was", "best", "act a", "better", "play"], labels=labels_N)
    one = {"id2label": {0: "score"}, "label2id": {"score": 0}, "problem_type": "regression"}
    regression = build_student(tiny_architecture(), AdasearchConfig.from_dict({**random_student().config.to_dict(), **one})).eval()
    correlation, explained = scorer(split, "pearson")(regression, tokenizer_of())
    values_N = logits_of(regression, tokenizer_of(), split)[:, 0]
    assert correlation == pytest.approx(np.corrcoef(values_N, labels_N)[0, 1], abs=1e-6)
    assert explained == pytest.approx(sk.r2_score(labels_N, values_N), rel=1e-5)


def test_the_verb(ran: tuple[Path, Problem], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "c.yaml"
    settings.write_text(yaml.safe_dump({"vocabulary": {"sizes": [REQUIRED + 20, REQUIRED + 4]}, "max_drop": 100.0}))
    out = tmp_path / "small"
    assert cli.main(["prune", str(ran[0]), "--config", str(settings), "--output_dir", str(out), "--quiet"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["rows", "params", "size_bytes", "score", "drop"] and printed[-1] == str(out)
    assert [line.split()[:2] for line in printed[1:-1]][0] == ["whole", str(len(PIECES))]
    assert ["chosen", str(REQUIRED + 4)] in [line.split()[:2] for line in printed[1:-1]]
    assert cli.main(["prune", str(tmp_path / "nothing"), "--quiet"]) == 2
    assert "no student's folder" in capsys.readouterr().err




def test_other_examples_are_scored_by_the_metric_of_the_run(tmp_path: Path) -> None:
    def first(kind: str = "single_label", **config: object) -> str:
        return choose_metrics(kind, 2, **FinishedRun(tmp_path, config).metrics_of(kind))[0]

    assert first(task="own") == "accuracy" and first(task="own", metric="f1") == "f1"
    assert first(task="cola") == PRESETS["cola"].metrics[0] == "matthews_correlation"
    assert first("multi_label", task="cola") == first("multi_label", task="own"), "its labels are not the preset's"
