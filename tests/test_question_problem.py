"""Question answering as a problem of the methods that make transformers smaller: models, loss, scores, the teacher's word.

References: the reader's own functions on Hugging Face's model.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_questions import find_questions, random_questions, save_reader, tokenizer_with_limit
from transformers import AutoConfig, AutoModelForQuestionAnswering, BertForQuestionAnswering

from adasearch.answers import best_answers
from adasearch.answers_file import QuestionAnswerer
from adasearch.config import FinetuneConfig
from adasearch.encoder_config import EncoderRunConfig
from adasearch.encoder_layers import EncoderForQuestionAnswering
from adasearch.encoder_problem import load_problem, train_dense
from adasearch.errors import ConfigError, ModelError
from adasearch.export import save_student
from adasearch.files import read_json, write_json
from adasearch.gate_values import GateValues
from adasearch.progress import Progress
from adasearch.question_answering import cut_windows
from adasearch.question_config import QuestionConfig
from adasearch.question_problem import QuestionProblem
from adasearch.questions import Questions
from adasearch.reader import Reader, score_reader, spans_of
from adasearch.shrink_encoder import shrink_encoder
from adasearch.span_objectives import span_loss
from adasearch.sparse_files import save_sparse
from adasearch.sparse_model import prune_once
from adasearch.tasks import load_task

WINDOWS = QuestionConfig(max_seq_length=32, doc_stride=8, max_question_length=10, glance=5)


def save_questions(path: Path, questions: Questions) -> str:
    columns = zip(questions.ids, questions.texts, questions.contexts, questions.answers, questions.starts)
    rows = [
        {"id": name, "question": text, "context": context, "answers": {"text": list(answers), "answer_start": [start]}}
        for name, text, context, answers, start in columns
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config_of(folder: Path, **changes: object) -> EncoderRunConfig:
    """A run on 60 questions with a tiny pre-trained model without a head."""
    if not (folder / "base").exists():
        reader = save_reader(folder / "base")
        BertForQuestionAnswering.from_pretrained(reader).bert.save_pretrained(folder / "base")
    settings = {
        "train_file": save_questions(folder / "train.jsonl", find_questions(60)), "problem_type": "question_answering",
        "validation_file": save_questions(folder / "validation.jsonl", find_questions(12, seed=4)), "model": str(folder / "base"),
        "finetune": FinetuneConfig(epochs=2, learning_rate=1e-2, batch_size=8), "question": WINDOWS, "evaluate": 1,
        "mixed_precision": "no", "cpu": True,
    }  # fmt: skip
    return EncoderRunConfig(**{**settings, **changes})


def open_questions(folder: Path, config: EncoderRunConfig) -> QuestionProblem:
    config.check()
    problem = load_problem(config, load_task(config), folder / "run", Accelerator(cpu=True), Progress())
    train_dense(config, problem)
    assert isinstance(problem, QuestionProblem)
    return problem


def test_a_problem_of_questions(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    problem = open_questions(tmp_path, config)
    assert (len(problem.train), len(problem.validation), len(problem.held_out)) == (60, 5, 12)
    assert isinstance(problem.teacher.model, BertForQuestionAnswering)
    history = [json.loads(line) for line in (tmp_path / "run" / "work" / "teacher" / "history.jsonl").read_text().splitlines()]
    assert history[-1]["terms"]["ce"] < history[0]["terms"]["ce"] and set(history[-1]["validation"]) == {"f1", "exact_match"}

    dense, accelerator = problem.dense().eval(), Accelerator(cpu=True)
    assert isinstance(dense, EncoderForQuestionAnswering)
    teacher = Reader(problem.teacher.model, problem.tokenizer)
    expected_T2 = spans_of(teacher.spans, problem.held_out, accelerator)
    assert np.allclose(problem.logits(dense, problem.held_out), expected_T2, atol=1e-5), "our encoder says what Hugging Face's does"
    scores = problem.scores(dense, problem.held_out)
    assert scores == score_reader(teacher.spans, problem.held_out, WINDOWS, accelerator) and set(scores) == {"f1", "exact_match"}

    batch = problem.taught().collate([3, 7, 1])
    with torch.inference_mode():
        output = problem.forward(dense, batch)
        logits_B2L = torch.stack([output.start_logits, output.end_logits], 1)
        expected = span_loss(logits_B2L, batch["labels"], batch["attention_mask"]).mean()
        assert problem.loss(output, batch).item() == pytest.approx(expected.item())
    is_real = batch["attention_mask"][:, None].bool()
    assert torch.allclose((logits_B2L * is_real), batch["teacher_logits"], atol=1e-5)

    dense.save_pretrained(tmp_path / "saved")
    assert np.array_equal(problem.logits(problem.load(tmp_path / "saved"), problem.held_out), problem.logits(dense, problem.held_out))
    heads = [problem.pretrained(seed).qa_outputs.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])

    again = open_questions(tmp_path, config)
    assert np.array_equal(again.teacher_logits(), problem.teacher_logits())
    given = open_questions(tmp_path / "other", config_of(tmp_path, teacher=str(tmp_path / "run" / "teacher")))
    assert np.array_equal(given.logits(given.dense(), given.held_out), problem.logits(problem.dense(), problem.held_out))


def test_a_saved_reader_is_asked_as_it_was_scored(tmp_path: Path) -> None:
    windows = QuestionConfig(max_seq_length=24, doc_stride=3, max_question_length=6, n_best=4, max_answer_length=2, glance=5)
    problem = open_questions(tmp_path, config_of(tmp_path, question=windows))
    dense = problem.dense().eval()
    values = GateValues(heads=[torch.tensor([0.0, 1.0])] * 2, neurons=[torch.ones(32)] * 2)
    save_student(shrink_encoder(dense, values), problem.tokenizer, tmp_path / "cut")
    prune_once(dense, 0.5)
    save_student(dense, problem.tokenizer, tmp_path / "dense")
    save_sparse(dense, tmp_path / "sparse")
    problem.tokenizer.save_pretrained(tmp_path / "sparse")
    told = dataclasses.replace(windows, glance=QuestionConfig().glance)
    for name in ("dense", "cut"):
        assert QuestionAnswerer(tmp_path / name, runtime="torch").windows == told, name
    assert QuestionConfig.load_saved(AutoConfig.from_pretrained(tmp_path / "sparse").question) == told
    assert AutoModelForQuestionAnswering.from_pretrained(tmp_path / "dense").config.question == told.saved()

    asked = random_questions(9, seed=5, words=(20, 60))  # of several windows
    examples = cut_windows(asked, problem.tokenizer, windows)
    expected = best_answers(problem.logits(dense, examples), examples, windows)
    found = QuestionAnswerer(tmp_path / "dense", runtime="torch").answer(asked.texts, asked.contexts).answers
    assert len(examples) > 9 and [(one.text, one.start) for one in found] == [(one.text, one.start) for one in expected]
    assert problem.pretrained(1).config.question == problem.load(tmp_path / "cut").config.question == told.saved()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"doc_stride": 32}, "question.doc_stride: 32 is out of range"), ({"n_best": "4"}, "are no settings of windows"),
        ({"other": 1}, "choices: whole numbers for max_seq_length,"),
    ],
)  # fmt: skip
def test_a_folder_without_windows_is_asked_as_published_and_a_damaged_one_refused(tmp_path: Path, change: dict[str, object], says: str) -> None:
    folder = save_reader(tmp_path / "reader", max_position_embeddings=512)
    tokenizer_with_limit(512).save_pretrained(folder)
    assert QuestionAnswerer(folder, runtime="torch").windows == QuestionConfig()
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "question": {"max_seq_length": 32, "doc_stride": 8}})
    assert QuestionAnswerer(folder, runtime="torch").windows == QuestionConfig(max_seq_length=32, doc_stride=8)
    write_json(folder / "config.json", {**config, "question": {**WINDOWS.saved(), **change}})
    with pytest.raises(ModelError, match=f"reader: config.json: .*{says}"):
        QuestionAnswerer(folder, runtime="torch")


def test_a_length_for_other_tasks_is_refused_and_cut_questions_are_told(tmp_path: Path) -> None:
    config = config_of(tmp_path, max_seq_length=64)
    with pytest.raises(ConfigError, match=r"^max_seq_length: 64 has no effect on questions, .*; choices: --question.max_seq_length$"):
        load_problem(config, load_task(config), tmp_path / "run", Accelerator(cpu=True), Progress())
    config = config_of(tmp_path, question=dataclasses.replace(WINDOWS, max_question_length=1))
    problem = load_problem(config, load_task(config), tmp_path / "run", Accelerator(cpu=True), Progress())
    assert "train: 60 of 60 questions are longer than question.max_question_length 1 and were cut" in problem.notes


def test_settings_of_windows_are_checked_with_the_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="question.n_best: 0 is out of range"):
        config_of(tmp_path, question=QuestionConfig(n_best=0)).check()
