"""The whole sentence in miniature: every stage, the contracts on files and errors, and kills that change nothing."""

from __future__ import annotations

import csv
import json
import random
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from elsewhere import logits_without_adasearch
from hearing import Heard
from safetensors.torch import load_file
from tiny_task import BAD as BAD_WORDS
from tiny_task import FILLERS, GOOD, SPACE, rows, tiny_run, write_csv
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification, pipeline

import adasearch
from adasearch import systems
from adasearch.calibration import COLDEST, HOTTEST, fit_temperature
from adasearch.config import DistillConfig, FinetuneConfig, RetrainConfig, RunConfig, SearchConfig, TransferConfig
from adasearch.errors import AdasearchError, ConfigError, DataError, ModelError
from adasearch.files import write_json
from adasearch.finished import FinishedRun
from adasearch.pipeline import check_settings, prepare_only, retrain, run, search, train
from adasearch.predict import predict_file
from adasearch.prepare import Problem, prepare
from adasearch.progress import Progress
from adasearch.shrink import random_architecture
from adasearch.space import load_space
from adasearch.tasks import load_task

KINDS = ["teacher", "student", "student_no_kd", "random_architecture", "bag_of_embeddings", "tfidf"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two seeds."""
    return run(tiny_run(tmp_path_factory.mktemp("tiny"), seeds=[1, 2]))


def test_a_search_whose_weights_are_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"supernet.pt: is missing; choices: put it back, or another --output_dir with --architecture"):
        systems._read_search(None, tmp_path / "supernet.pt", tmp_path / "architecture.json")


def test_the_run_folder_holds_what_was_promised(finished: Path) -> None:
    for name in (
        "config.yaml", "run.json", "teacher/model.safetensors", "search/architecture.json", "search/history.jsonl",
        "student/config.json", "student/model.safetensors", "student/tokenizer.json", "student/README.md",
        "student/modeling_adasearch.py", "report.json", "report.md", "report.html", "figures/cell.svg", "figures/cell.png", "figures/search.png",
    ):  # fmt: skip
        assert (finished / name).is_file(), name
    assert not list(finished.rglob("checkpoint.pt")) and not list(finished.rglob("*.partial"))


def test_a_teacher_whose_outputs_stand_in_another_order_is_noticed_before_it_labels(tmp_path: Path) -> None:
    """Names as LABEL_0 tell no order: what it knows is then the wrong way round, and so is all that it would teach."""
    taught = prepare_only(tiny_run(tmp_path, finetune=FinetuneConfig(epochs=20, learning_rate=3e-3, batch_size=16)))
    model, tokenizer = (kind.from_pretrained(taught / "teacher") for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    turned = model.classifier.weight.data.flip(0), model.classifier.bias.data.flip(0)
    for name, (weight, bias) in {"as_it_is": (model.classifier.weight.data, model.classifier.bias.data), "turned": turned}.items():
        model.classifier.weight.data, model.classifier.bias.data = weight.contiguous(), bias.contiguous()
        model.config.id2label, model.config.label2id = {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        heard: list[str] = []
        progress = Progress()
        progress.warning = heard.append
        prepare_only(tiny_run(tmp_path, teacher=str(tmp_path / name), output_dir=str(tmp_path / f"run-{name}")), progress)
        assert any("no better than the constant answer on 40 validation examples" in text for text in heard) == (name == "turned"), heard
    assert "are its outputs in the order negative, positive?" in heard[0]
    model.config.id2label, model.config.label2id = {0: "Positive", 1: "Negative"}, {"Positive": 0, "Negative": 1}  # turned, and says so
    model.save_pretrained(tmp_path / "named")
    tokenizer.save_pretrained(tmp_path / "named")
    progress = Heard()
    prepare_only(tiny_run(tmp_path, teacher=str(tmp_path / "named"), output_dir=str(tmp_path / "run-named")), progress)
    assert not progress.warnings and any("its outputs were put in the task's: negative, positive" in text for text in progress.messages)


def test_another_teachers_cache_is_refused_before_the_settings_are_noted(tmp_path: Path) -> None:
    """A diagnosis has left it: what is refused may still go on with the teacher that it is of."""
    config = tiny_run(tmp_path)
    write_json(tmp_path / "run" / "cache" / "source.json", {"teacher": "another"})
    with pytest.raises(ConfigError, match="holds the word of another teacher .teacher was 'another'"):
        prepare_only(config)
    assert not (tmp_path / "run" / "run.json").exists()


def test_settings_of_a_latency_that_nobody_asked_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="search.latency_batch_size: 64 is of a latency.* or retrain.batch_size, search.batch_size"):
        check_settings(tiny_run(tmp_path, search=SearchConfig(latency_batch_size=64)))
    check_settings(tiny_run(tmp_path, search=SearchConfig(latency_batch_size=64, latency_target_ms=1.0)))


def test_the_report_counts_the_held_out_examples_one_by_one(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    teacher, student = report["systems"][:2]
    for kind, score in (("student", student["scores"][0]), ("teacher", teacher["scores"][0])):
        counts = np.array(report["confusion"][kind])
        assert counts.sum() == 40 and np.trace(counts) / 40 == pytest.approx(score), "the first seed's accuracy, counted otherwise"
    parted = report["disagreements"]
    assert parted["of"] == 40 and len(parted["examples"]) == parted["count"] <= 50
    right = parted["teacher_right"] - parted["student_right"]
    assert right == round(40 * (teacher["scores"][0] - student["scores"][0])), "two labels: one of the two is right where they part"
    ends = [point["score"] for point in report["cascade"]["curve"]]
    assert (ends[0], ends[-1]) == pytest.approx((student["scores"][0], teacher["scores"][0])) and report["cascade"]["fitted_on"] == 40
    assert all(system["task_texts_per_s"] > 0 for system in report["systems"]) and report["price_per_hour"] == 0.04
    assert all((system["tokenizer_texts_per_s"] or 0) > 0 for system in report["systems"] if system["seq_len"])
    assert all(system["tokenizer_texts_per_s"] is None for system in report["systems"] if not system["seq_len"])


def test_the_table_has_every_system_once_with_all_its_numbers(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert [system["kind"] for system in report["systems"]] == KINDS
    for system in report["systems"]:
        seeds = 2 if system["kind"] not in ("teacher", "tfidf") else 1
        assert len(system["scores"]) == seeds
        assert system["score_mean"] == pytest.approx(np.mean(system["scores"]))
        assert (system["score_sd"] is None) == (seeds == 1)
        assert system["latency_ms_p50"] > 0 and system["size_bytes"] > 0 and system["params"] > 0
        took = [json.loads(path.read_text())["seconds"] for path in (finished / "models").glob(f"{system['kind']}-[0-9]/training.json")]
        assert len(took) == (2 if seeds == 2 else 0) and system["train_seconds"] == (pytest.approx(np.mean(took)) if took else None)
    student = report["systems"][1]
    weights = load_file(finished / "student" / "model.safetensors")
    assert student["params"] == sum(t.numel() for name, t in weights.items() if "running_" not in name and "num_batches" not in name)
    assert report["ratios"]["student_vs_teacher"]["speed"] == pytest.approx(
        report["systems"][0]["latency_ms_p50"] / student["latency_ms_p50"]
    )


def test_students_hear_of_the_teacher_s_probes(finished: Path) -> None:
    """In the search and after it; what they are told of a text is what the teacher says of it alone."""
    search_history = [json.loads(line) for line in (finished / "search" / "history.jsonl").read_text().splitlines()]
    for history in (search_history, json.loads((finished / "models" / "student-1" / "history.json").read_text())):
        assert history and all(record["terms"]["probes"] > 0 for record in history)
    config = tiny_run(finished.parent, seeds=[1, 2])
    problem = prepare(config, load_task(config, seed=config.seed), finished, Accelerator(cpu=True), Progress())
    lesson = problem.lesson
    with torch.no_grad():
        for row in range(0, len(lesson), 9):
            logits, probes = problem.teacher.outputs(*lesson.tokens.pad([row], lesson.pad_token_id))
            np.testing.assert_allclose(lesson.teacher_logits[row], logits[0], rtol=1e-3, atol=1e-4)
            # so small a teacher's first tokens are nearly all alike: its probes are differences of large numbers
            np.testing.assert_allclose(lesson.probe_logits[row], probes[0], atol=0.01)


def test_every_seed_s_student_starts_as_the_supernet_left_it_and_goes_its_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without probes, whose student's side is drawn anew, seeds differ in the order of the texts and in dropout alone."""
    starts, ends, fit = [], [], systems.fit

    def weights(student: Any) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}

    def watched(student: Any, *args: Any, **options: Any) -> Any:
        starts.append(weights(student))
        history = fit(student, *args, **options)
        ends.append(weights(student))
        return history

    monkeypatch.setattr(systems, "fit", watched)
    config = tiny_run(
        tmp_path, seeds=[1, 2], controls=[], search=SearchConfig(steps=4, batch_size=16),
        retrain=RetrainConfig(steps=2, batch_size=16, inherit=True), distill=DistillConfig(probe_weight=0.0), finetune=FinetuneConfig(epochs=0.2, batch_size=16),
    )  # fmt: skip
    space = Path(config.space)
    space.write_text(space.read_text().replace("sample_edges: true", "sample_edges: true\nlearned_per_node: 1"))
    train(config)
    left = torch.load(tmp_path / "run" / "search" / "supernet.pt", weights_only=True)
    inherited = [name for name in starts[0] if name.startswith(("trunk.cells.", "trunk.embeddings."))]
    assert len(starts) == 2 and any(".edges." in name and starts[0][name].ndim > 1 for name in inherited)
    for name in inherited:
        whole = left[name][tuple(map(slice, starts[0][name].shape))]  # a width is a prefix
        assert torch.equal(starts[0][name], whole) and torch.equal(starts[1][name], whole), name
    cells = [name for name in inherited if ".edges." in name and name.endswith("weight")]
    assert any(not torch.equal(starts[0][name], ends[0][name]) for name in cells)
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in cells)


def test_the_student_is_a_hugging_face_model(finished: Path) -> None:
    folder = finished / "student"
    classify = pipeline("text-classification", model=str(folder))
    found = classify(["the film was great", "the film was awful"])
    assert {item["label"] for item in found} <= {"negative", "positive"}
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["great plot", "the cast was dull and poor"], padding=True, return_tensors="pt")
    before = model(**batch).logits
    model.save_pretrained(finished / "again")
    assert torch.equal(AutoModelForSequenceClassification.from_pretrained(finished / "again").eval()(**batch).logits, before)
    with pytest.raises(ConfigError, match="trained on single texts"):
        adasearch.TextClassifier(folder, runtime="torch").answer(["great"], ["plot"])


def test_the_student_works_where_adasearch_is_not_installed(finished: Path, tmp_path: Path) -> None:
    ids = torch.tensor([[2, 6, 14, 3]])
    ours = adasearch.load_student(finished / "student").eval()(ids).logits
    assert torch.equal(logits_without_adasearch(finished / "student", ids, tmp_path), ours)


def test_a_finished_run_trains_nothing_again(finished: Path) -> None:
    heard = Heard()
    config = tiny_run(finished.parent, seeds=[1, 2])
    before = (finished / "student" / "model.safetensors").read_bytes()
    run(config, heard)
    assert not [title for title in heard.titles if title.startswith(("train", "search", "fine-tune", "teacher labels", "transfer"))]
    assert (finished / "student" / "model.safetensors").read_bytes() == before


def test_a_folder_is_not_continued_with_other_settings(finished: Path) -> None:
    config = tiny_run(finished.parent, seeds=[1, 2], distill=DistillConfig(gamma=0.5))
    with pytest.raises(ConfigError, match="output_dir: .* holds a run with other settings .distill.gamma was 0.8, is 0.5.;"):
        run(config)


def test_seeds_are_added_behind_the_first_whose_model_was_handed_over(finished: Path) -> None:
    check_settings(tiny_run(finished.parent, seeds=[1, 2, 3]))
    with pytest.raises(ConfigError, match="output_dir: student/ of .* is the run's first model, student-1, and would be student-3"):
        check_settings(tiny_run(finished.parent, seeds=[3, 1]))


def test_killed_at_any_moment_the_same_command_ends_with_the_same_weights(finished: Path, tmp_path: Path) -> None:
    """SIGKILL, in a process of its own, in each of several pieces of work; then the undisturbed run's weights."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch; torch.set_num_threads(1)
from pathlib import Path
from tiny_task import tiny_run
from adasearch.pipeline import run
from adasearch.progress import Progress
class Kill(Progress):
    is_meant = False
    def stage(self, title, total=None, done=0):
        self.is_meant = title == sys.argv[1]
    def step(self, done, **metrics):
        if self.is_meant and done > 5:
            os.kill(os.getpid(), signal.SIGKILL)
run(tiny_run(Path({str(tmp_path)!r}), seeds=[1, 2], checkpoint_seconds=0.0), Kill())
"""
    stages = ("fine-tune the teacher", "search", "train random architecture, seed 1", "no stage")
    codes = [subprocess.run([sys.executable, "-c", code, stage], capture_output=True).returncode for stage in stages]
    assert codes == [-signal.SIGKILL] * 3 + [0]
    for name in ("teacher", "student", "models/student-2", "models/random_architecture-1", "models/bag_of_embeddings-2"):
        ours, whole = (load_file(folder / name / "model.safetensors") for folder in (tmp_path / "run", finished))
        assert ours.keys() == whole.keys()
        assert all(torch.equal(ours[key], whole[key]) for key in whole), name
    stages, undisturbed = (json.loads((folder / "run.json").read_text())["stages"] for folder in (tmp_path / "run", finished))
    assert "seconds" not in stages["search"] and undisturbed["search"]["seconds"] > 0, "of a resumed search only the end is known"
    took = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "run" / "models").glob("*/training.json")}
    assert len(took) == 8 and {name for name in took if "seconds" not in took[name]} == {"random_architecture-1"}, "of a resumed training only the end is known"


@torch.no_grad()
def logits_of(folder: Path, texts: list[str], pairs: list[str] | None = None) -> np.ndarray:
    """(N, C) of a saved model, text by text, by transformers alone."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    batches = (tokenizer(text, pair, return_tensors="pt") for text, pair in zip(texts, pairs or [None] * len(texts)))
    return np.concatenate([model(batch["input_ids"], batch["attention_mask"]).logits.numpy() for batch in batches])


def test_the_students_temperature_is_fitted_on_the_validation_examples_whatever_it_is_scored_on(tmp_path: Path) -> None:
    """A temperature of the examples that the scores are taken on would make them look more honest than they are."""
    config = tiny_run(tmp_path, controls=[], test_file=write_csv(tmp_path / "test.csv", 30, 6))
    folder = run(config)
    parts = {"validation": rows(40, 2), "test": rows(30, 6)}
    logits = {name: logits_of(folder / "student", [row["text"] for row in part]) for name, part in parts.items()}
    labels = {name: np.array([int(row["label"] == "positive") for row in part]) for name, part in parts.items()}
    fitted = {name: fit_temperature(logits[name], labels[name]) for name in parts}
    assert COLDEST < fitted["validation"] < HOTTEST and abs(fitted["test"] / fitted["validation"] - 1) > 0.05
    saved = json.loads((folder / "student" / "calibration.json").read_text())
    assert saved["temperature"] == pytest.approx(fitted["validation"], rel=1e-3)  # logits of padded batches differ in the last digits
    assert (saved["fitted_on"], saved["examples"]) == ("validation", 40)
    report = json.loads((folder / "report.json").read_text())
    assert (report["cascade"]["temperature"], report["cascade"]["fitted_on"]) == (saved["temperature"], 40)
    assert report["systems"][1]["scores"] == [pytest.approx((logits["test"].argmax(1) == labels["test"]).mean())]


def prepared(config: RunConfig) -> Problem:
    """What students of a run learn from."""
    folder = Path(config.output_dir)
    return prepare(config, load_task(config, seed=config.seed, cache=folder / "cache"), folder, Accelerator(cpu=True), Progress())


@torch.no_grad()
def test_texts_without_labels_join_the_lesson_with_the_teachers_word_on_them(tmp_path: Path) -> None:
    own = [row["text"] for row in rows(24, 9)]
    lines = [f"{own[0]}. {own[1]}", *own[2:]]  # cut into sentences
    finetune = FinetuneConfig(epochs=10, learning_rate=3e-3, batch_size=16)  # enough to say something else of every text
    config = tiny_run(tmp_path, finetune=finetune, unlabeled_file=_write(tmp_path / "more.txt", "\n".join(lines)))
    with torch.enable_grad():
        problem = prepared(config)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "teacher")
    expected = [tokenizer(f"{own[0]}."), *map(tokenizer, own[1:])]
    assert problem.made == 60 + 24 and len(problem.labelled) == 120
    added = problem.lesson.select(np.arange(len(problem.lesson) - 24, len(problem.lesson)))
    assert [added.tokens[index].tolist() for index in range(24)] == [text["input_ids"] for text in expected]
    assert (added.labels == -100).all()
    reference = logits_of(tmp_path / "run" / "teacher", [f"{own[0]}.", *own[1:]])
    np.testing.assert_allclose(added.teacher_logits, reference, atol=1e-5)
    assert np.ptp(reference, axis=0).min() > 0.01, "the test tells the texts apart"
    assert problem.different.select(np.arange(120 + 60, 204)).ids.tolist() == added.tokens.ids.tolist()

    few = prepared(replace(config, transfer=replace(config.transfer, unlabeled_size=10)))
    kept = [few.lesson.tokens[index].tolist() for index in range(len(few.lesson) - 10, len(few.lesson))]
    places = [[text["input_ids"] for text in expected].index(ids) for ids in kept]
    assert few.made == 60 + 10 and places == sorted(set(places)), "some of them, each once, in their order"


def tiny_kind(folder: Path, kind: str) -> tuple[RunConfig, list[dict[str, str]]]:
    """A run of pairs, sets of labels or scores, and its validation examples: all may be read off one or two words of a text."""

    def made(count: int, seed: int) -> list[dict[str, str]]:
        rng = random.Random(seed)
        found = []
        for index in range(count):
            good, bad = rng.choice(GOOD), rng.choice(BAD_WORDS)
            words = {"multi_label": ([good], [bad], [good, bad])[index % 3], "regression": [good] * (index % 3) + [bad] * (index // 3 % 3)}
            text, pair = (rng.choices(FILLERS, k=rng.randint(2, 4)) for _ in range(2))
            label = "different" if index % 2 else "same"
            if kind == "pairs":
                text.insert(rng.randrange(len(text)), good)
                pair.insert(rng.randrange(len(pair)), bad if index % 2 else good)
            else:
                text += words[kind]
                rng.shuffle(text)
                names = [name for name, those in (("negative", BAD_WORDS), ("positive", GOOD)) if set(text) & set(those)]
                label = "|".join(names) if kind == "multi_label" else str(0.5 * (index % 3) - 0.25 * (index // 3 % 3))
            found.append({"text": " ".join(text), **({"other": " ".join(pair)} if kind == "pairs" else {}), "label": label})
        return found

    files, parts = {}, {"train_file": made(120, 1), "validation_file": made(42, 2)}
    for name, part in parts.items():
        files[name] = str(folder / f"{name}.csv")
        with open(files[name], "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(part[0]))
            writer.writeheader()
            writer.writerows(part)
    config = tiny_run(folder, controls=["tfidf"], text_pair_column="other" if kind == "pairs" else None)
    return replace(config, **files), parts["validation_file"]


def predicted(folder: Path, file: str, **columns: str) -> list[dict[str, Any]]:
    """The rows that `predict` writes."""
    predict_file(folder / "student", Path(file), folder / "answers.jsonl", runtime="torch", **columns)
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("lacks", ["name", "template"])
def test_pairs_that_no_separator_parts_are_refused_before_the_teacher_learns(lacks: str, tmp_path: Path) -> None:
    """As GPT-2's tokenizer has it, also where a separator was named later: texts are joined as if they were one."""
    config, _ = tiny_kind(tmp_path, "pairs")
    tokenizer = AutoTokenizer.from_pretrained(config.teacher)
    if lacks == "name":
        tokenizer.sep_token = None
    else:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", 2)])
    tokenizer.save_pretrained(config.teacher)
    with pytest.raises(ModelError, match=f"^teacher: '{config.teacher}': its tokenizer puts no separator between two texts, and task 'tiny' is of"):
        run(config)
    assert not list(tmp_path.rglob("history.jsonl"))


def test_a_run_on_pairs_searches_among_operations_of_pairs_and_answers_pairs_alone(tmp_path: Path) -> None:
    config, examples = tiny_kind(tmp_path, "pairs")
    Path(config.space).write_text(SPACE + "pair_operations: [soft_alignment]\n", encoding="utf-8")
    folder = run(config)
    operations = {"conv3", "sep_conv3", "max_pool3", "skip", "soft_alignment"}
    history = [json.loads(line) for line in (folder / "search" / "history.jsonl").read_text().splitlines()]
    assert all(set(record["operations"]) == operations for record in history)
    assert any("soft_alignment" in name for name in torch.load(folder / "search" / "supernet.pt", weights_only=True))
    assert json.loads((folder / "student" / "config.json").read_text())["is_pair"] is True
    firsts, seconds = ([row[name] for row in examples] for name in ("text", "other"))
    logits = logits_of(folder / "student", firsts, seconds)
    turned = logits_of(folder / "student", firsts, seconds[::-1])
    assert np.abs(logits - turned).max() > 1e-3, "the second text is read"
    report = json.loads((folder / "report.json").read_text())
    gold = np.array([("different", "same").index(row["label"]) for row in examples])
    assert report["systems"][1]["scores"] == [pytest.approx((logits.argmax(1) == gold).mean())]
    assert [system["kind"] for system in report["systems"]] == ["teacher", "student", "tfidf"]
    answers = predicted(folder, config.validation_file, text_pair_column="other")
    assert [row["prediction"] for row in answers] == [("different", "same")[index] for index in logits.argmax(1)]
    with pytest.raises(ConfigError, match="text_pair_column: none given; the model was trained on pairs of texts"):
        predicted(folder, config.validation_file)
    with pytest.raises(ConfigError, match="pairs: none given; the model was trained on pairs of texts"):
        adasearch.TextClassifier(folder / "student", runtime="torch").answer(firsts)


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_a_run_on_sets_of_labels_or_scores_goes_from_search_to_prediction(tmp_path: Path, kind: str) -> None:
    config, examples = tiny_kind(tmp_path, kind)
    folder = run(config)
    logits = logits_of(folder / "student", [row["text"] for row in examples])
    student = next(system for system in json.loads((folder / "report.json").read_text())["systems"] if system["kind"] == "student")
    saved = json.loads((folder / "student" / "config.json").read_text())
    answers = [row["prediction"] for row in predicted(folder, config.validation_file)]
    problem = prepared(config)
    made = problem.lesson.labels[-problem.made :]
    assert problem.made == 60 and np.isnan(made).all() and not np.isnan(problem.labelled.labels).any()
    if kind == "regression":
        gold = np.array([float(row["label"]) for row in examples])
        assert saved["problem_type"] == "regression" and logits.shape == (42, 1)
        assert student["scores"] == [pytest.approx(np.corrcoef(logits[:, 0], gold)[0, 1], abs=1e-4)]
        np.testing.assert_allclose(answers, logits[:, 0], atol=1e-5)
        assert not (folder / "student" / "calibration.json").exists(), "a score has no probability"
        return
    gold = np.array([["negative" in row["label"], "positive" in row["label"]] for row in examples])
    yes = logits > 0
    assert saved["problem_type"] == "multi_label_classification" and saved["id2label"] == {"0": "negative", "1": "positive"}
    assert student["scores"] == [pytest.approx(2 * (yes & gold).sum() / (yes.sum() + gold.sum()))]
    assert answers == ["|".join(name for name, said in zip(("negative", "positive"), row) if said) for row in yes]
    found = json.loads((folder / "student" / "calibration.json").read_text())
    assert found["temperature"] == pytest.approx(fit_temperature(logits, gold.astype(np.float32)), rel=1e-3)


def test_soft_labels_take_the_teachers_place(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    for name in ("train_file", "validation_file"):
        path = Path(getattr(config, name))
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["text", "negative", "positive"])
            writer.writeheader()
            for row in rows(60, len(name)):
                p = 0.9 if row["label"] == "positive" else 0.1
                writer.writerow({"text": row["text"], "negative": 1 - p, "positive": p})
    soft = replace(
        config, teacher="none", tokenizer=config.teacher, soft_label_columns=["negative", "positive"], controls=["student_no_kd"],
        transfer=TransferConfig(size=0), retrain=RetrainConfig(steps=60, batch_size=16, learning_rate=1e-2),
    )  # fmt: skip
    folder = run(soft)
    report = json.loads((folder / "report.json").read_text())
    assert [system["name"] for system in report["systems"]] == ["student (searched)", "student, no soft labels"]
    assert not (folder / "teacher").exists() and report["held_out"] == 60 and not report["has_gold"]
    page, text = (folder / "report.html").read_text(encoding="utf-8"), (folder / "report.md").read_text(encoding="utf-8")
    assert "a small student</h1>" in page and ">no soft labels<" in page and "teacher's logits" not in page
    assert "The labels are the likeliest soft labels" in page and "Scores on the 60 held-out examples" in text


def _write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


SINGLE = "name: s\noperations: [conv3]\nwidths: [8]\ncells: [1, 1]\nnodes: 1\nedges_per_node: 2\nmacro: {attention_head_size: 8}\n"
BAD: dict[str, tuple[Any, type[AdasearchError], str]] = {
    "teacher with other labels": (
        lambda folder: {"teacher": str(_three_labels(folder))}, ModelError, "has 3 labels .* has 2 .negative, positive.",
    ),
    "teacher that is not there": (lambda folder: {"teacher": str(folder / "none")}, ModelError, "none' cannot be loaded"),
    "unknown operation": (
        lambda folder: {"space": _write(folder / "s.yaml", "name: s\noperations: [conv3, conv9]\n")}, ConfigError, "operations\\[1\\]: unknown operation 'conv9'",
    ),
    "unknown space": (lambda folder: {"space": "darts"}, ConfigError, "neither a packaged space nor a YAML file; choices: adabert"),
    "directory for a file": (lambda folder: {"train_file": str(folder)}, (ConfigError, DataError), "directory"),
    "missing column": (lambda folder: {"text_column": "sentence"}, (ConfigError, DataError), "no column 'sentence'; columns: text, label"),
    "one class only": (
        lambda folder: dict.fromkeys(("train_file", "validation_file"), _write(folder / "one.csv", "text,label\n" + "a,x\n" * 9)),
        DataError, "one",
    ),
    "constraint without target": (
        lambda folder: {"search": replace(tiny_run(folder).search, efficiency="constraint")}, ConfigError, "needs a target",
    ),
    "gamma out of range": (lambda folder: {"distill": DistillConfig(gamma=1.5)}, ConfigError, "distill.gamma: 1.5 is out of range"),
    "a latency table that is not there": (
        lambda folder: {"search": replace(tiny_run(folder).search, latency_table=str(folder / "no.json"))}, ConfigError, "no.json",
    ),
    "a transfer set of nothing": (
        lambda folder: {"transfer": TransferConfig(size=9, neighbours=0, fragments=0, splices=0)}, ConfigError, "every share is 0",
    ),
    "a masked language model that is not there": (
        lambda folder: {"transfer": TransferConfig(size=9, masked_lm=1, masked_lm_model=str(folder / "no"))}, ModelError, "masked_lm_model",
    ),
    "a space with a single member": (
        lambda folder: {"space": _write(folder / "s.yaml", SINGLE)}, ConfigError, "single member.*--controls '.student_no_kd, bag_of",
    ),
    "output folder is a file": (lambda folder: {"output_dir": _write(folder / "file", "")}, ConfigError, "is a file"),
}  # fmt: skip


def _three_labels(folder: Path) -> Path:
    config = BertConfig(vocab_size=23, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3)
    BertForSequenceClassification(config).save_pretrained(folder / "three")
    AutoTokenizer.from_pretrained(folder / "encoder").save_pretrained(folder / "three")
    return folder / "three"


def test_a_finished_run_is_read_from_any_folder_and_without_its_unlabelled_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    for name, seed in (("train", 0), ("valid", 1), ("more", 2)):
        write_csv(Path(f"{name}.csv"), 40, seed)
    config = replace(
        tiny_run(tmp_path), train_file="train.csv", validation_file="valid.csv", unlabeled_file="more.csv", test_file=None, output_dir="run",
        finetune=FinetuneConfig(epochs=0.2, batch_size=16),
    )  # fmt: skip
    prepare_only(config)
    Path("more.csv").unlink()
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "home" / "run"
    finished = FinishedRun(folder, json.loads((folder / "run.json").read_text())["config"])
    task = finished.task(instead="a file")
    assert len(task.train) == len(task.validation) == 40 and task.unlabeled is None
    write_csv(tmp_path / "home" / "valid.csv", 41, 1)
    with pytest.raises(ConfigError, match=r"its data cannot be read again \(.*validation: 40 -> 41 examples.*\); choices: a file$"):
        finished.task(instead="a file")


def test_a_preset_s_run_with_texts_of_other_columns_is_read_again(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("validation", 1)):
        (tmp_path / "sst2").mkdir(exist_ok=True)
        write_csv(tmp_path / "all.csv", 40, seed)
        table = pd.read_csv(tmp_path / "all.csv")
        pd.DataFrame({"sentence": table["text"], "label": (table["label"] == "positive").astype(int)}).to_parquet(tmp_path / "sst2" / f"{split}.parquet")
    pd.DataFrame({"review": ["a long film", "a dull film"], "stars": ["few", "many"]}).to_csv(tmp_path / "more.csv", index=False)
    settings = {"task": "sst2", "data_dir": str(tmp_path), "unlabeled_file": str(tmp_path / "more.csv"), "text_column": "review"}
    config = replace(tiny_run(tmp_path), **settings, train_file=None, validation_file=None, test_file=None, label_column="label", output_dir=str(tmp_path / "run"))
    prepare_only(config)
    task = FinishedRun(tmp_path / "run", json.loads((tmp_path / "run" / "run.json").read_text())["config"]).task(instead="a file")
    assert len(task.train) == 40 and task.unlabeled is None


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line_before_any_training(tmp_path: Path, name: str) -> None:
    change, error, message = BAD[name]
    tiny_run(tmp_path)  # makes the files

    class NoWork(Progress):
        def step(self, done: int, **metrics: Any) -> None:
            assert "loss" not in metrics

    with pytest.raises(error, match=message) as raised:
        run(tiny_run(tmp_path, **change(tmp_path)), NoWork())
    assert "\n" not in str(raised.value)


def test_a_target_that_no_member_reaches_is_refused_before_the_search(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    out_of_reach = replace(config.search, efficiency="constraint", target_macs=1.0)
    space = Path(config.space)
    space.write_text(space.read_text().replace("sample_edges: true", "sample_edges: true\nlearned_per_node: 1"))
    with pytest.raises(ConfigError, match=r"search.target_macs: 1 cannot be reached in space 'tiny' .*choices: [\d,]+ or more"):
        search(replace(config, search=out_of_reach))
    assert not (tmp_path / "run" / "teacher").exists(), "the teacher learned nothing for it"


def test_a_teacher_that_was_cut_short_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    """As a diagnosis with few steps leaves it, which has no run.json in that folder. An older version did not note the cap."""
    config = tiny_run(tmp_path)  # whose teacher takes 21 steps
    folder = prepare_only(replace(config, max_steps=5))
    (folder / "run.json").rename(folder / "diagnosis")
    with pytest.raises(ConfigError, match="holds the word of another teacher .max_steps was 5, is None.; choices: another --output_dir"):
        prepare_only(replace(config, max_steps=21))  # which cuts nothing
    source = tmp_path / "run" / "cache" / "source.json"
    write_json(source, {name: value for name, value in json.loads(source.read_text()).items() if name != "max_steps"})
    prepare_only(config)


def test_a_refused_request_goes_on_in_the_same_folder_once_it_is_mended(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    for change, says in (({"teacher": "techer"}, "techer"), ({"max_seq_length": 64}, "max_seq_length: 64: .* has positions for 32")):
        with pytest.raises(AdasearchError, match=says):
            run(replace(config, **change))
    with pytest.raises(ConfigError, match="architecture: none given and .* holds no search"):
        retrain(config)
    assert not (tmp_path / "run" / "run.json").exists()
    prepare_only(config)
    with pytest.raises(ConfigError, match="output_dir: .* belongs to something else .config.json, "):
        prepare_only(replace(config, output_dir=str(tmp_path / "encoder")))


def test_a_run_goes_on_with_its_own_data_alone_wherever_they_lie(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    teacher = prepare_only(config) / "teacher" / "model.safetensors"
    weights, path = teacher.read_bytes(), Path(config.train_file)
    moved = replace(config, train_file=str(path.rename(tmp_path / "moved.csv")))
    assert prepare_only(moved) and teacher.read_bytes() == weights
    found = FinishedRun(tmp_path / "run", json.loads((tmp_path / "run" / "run.json").read_text())["config"])
    assert len(found.task(instead="").train) == 120, "read where the file lies now"
    text = Path(moved.train_file).read_text()
    Path(moved.train_file).write_text(text.replace("positive", "-").replace("negative", "positive").replace("-", "negative"))
    for again in (lambda: prepare_only(moved), lambda: found.task(instead="")):
        with pytest.raises(ConfigError, match=r"run: the data have changed since \(train: other labels, 120 examples\)"):
            again()
    with pytest.raises(ConfigError, match=r"the data have changed since \(train: other labels, 120 examples; test: none -> 40 examples\)"):
        prepare_only(replace(moved, test_file=moved.validation_file))


def test_bilevel_constraint_and_given_architecture_run(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    search_config = replace(config.search, mode="bilevel", efficiency="constraint", target_macs=2_000.0)
    path = search(replace(config, search=search_config, output_dir=str(tmp_path / "searched")))
    done = run(replace(config, architecture=str(path), controls=[], output_dir=str(tmp_path / "given")))
    assert json.loads((done / "search" / "architecture.json").read_text()) == json.loads(path.read_text())


def test_a_random_member_of_another_space_than_the_given_architecture_s_is_told(tmp_path: Path) -> None:
    config = replace(tiny_run(tmp_path), controls=["random_architecture"])
    space = load_space(config.space)
    other = random_architecture(replace(space, widths=(48,)).for_task(is_pair=False), np.random.default_rng(0))
    write_json(tmp_path / "other.json", other.to_dict())
    notes = json.loads((run(replace(config, architecture=str(tmp_path / "other.json"))) / "report.json").read_text())["notes"]
    assert any("random_architecture is drawn from --space" in note for note in notes)
    assert any(re.fullmatch(r"the random architecture of seed 42 is the nearest in MACs that was drawn, \d+% off", note) for note in notes), notes


@pytest.mark.parametrize(("strategy", "is_told"), [("gumbel", True), ("random", False)])
def test_only_gates_that_learned_are_called_undecided(strategy: str, is_told: bool, tmp_path: Path) -> None:
    """Without gradients they stay as open as they began, and that says nothing of the search."""
    config = tiny_run(tmp_path)
    done = run(replace(config, controls=[], search=replace(config.search, strategy=strategy)))
    assert ("entropy" in json.loads((done / "report.json").read_text())["search"]) == is_told


def test_without_a_validation_file_some_training_texts_are_held_out(tmp_path: Path) -> None:
    config = replace(tiny_run(tmp_path), validation_file=None, train_file=write_csv(tmp_path / "all.csv", 100, 5), controls=[])
    assert len(json.loads((run(config) / "report.json").read_text())["systems"]) == 2
