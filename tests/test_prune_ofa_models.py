"""Prune Once for All on other models and tasks: a structurally pruned encoder, a searched student, questions."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hearing import Heard
from tiny import tiny_architecture, tiny_config
from tiny_encoder import make_model
from tiny_prune_ofa import IN_TORCH, WITHOUT_GRAPHS, tiny_prune_ofa, tiny_questions_run
from tiny_task import WORDS
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from adasearch.answers_file import QuestionAnswerer
from adasearch.architecture import Edge
from adasearch.encoder_layers import EncoderForQuestionAnswering
from adasearch.encoder_problem import load_problem
from adasearch.errors import ConfigError, ModelError
from adasearch.export import save_student
from adasearch.files import read_json
from adasearch.gate_values import GateValues
from adasearch.int8_modules import int8_layers
from adasearch.predict import predict_file
from adasearch.progress import Progress
from adasearch.prune_files import prune_student
from adasearch.prune_ofa_config import Int8Config, PruneOfaTaskConfig
from adasearch.prune_ofa_run import prune_once_for_all
from adasearch.prune_ofa_source import Source, open_source
from adasearch.prune_ofa_systems import calibrate_dense
from adasearch.report_files import read_report
from adasearch.shrink_encoder import shrink_encoder
from adasearch.sparse_files import SparseModel
from adasearch.sparse_model import prune_once, sparsity_of
from adasearch.student import AdasearchForSequenceClassification
from adasearch.tasks import load_task
from adasearch.tokens import Examples, TokenStore


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that has its own dense model."""
    return prune_once_for_all(tiny_prune_ofa(tmp_path_factory.mktemp("once"), **WITHOUT_GRAPHS, baselines=False, max_steps=2))


def test_an_encoder_pruned_by_structure_is_masked_then_quantised(run: Path, tmp_path: Path) -> None:
    whole = AutoModelForSequenceClassification.from_pretrained(run / "models" / "sparse-42")
    with torch.no_grad():
        for name in sparsity_of(whole):
            whole.get_submodule(name).weight.add_(0.01)  # what structural pruning leaves has no zeros
    heads, neurons = [torch.tensor([1.0, 0.0])], [(torch.arange(32) < 20).float()]
    cut = shrink_encoder(whole, GateValues(heads=heads, neurons=neurons))
    save_student(cut, AutoTokenizer.from_pretrained(run / "student"), tmp_path / "cofi" / "student")
    settings = {"teacher": str(run / "teacher"), "sparse_model": str(tmp_path / "cofi"), "sparsity": 0.5, "baselines": False, "max_steps": 2}
    settings |= WITHOUT_GRAPHS
    folder = prune_once_for_all(tiny_prune_ofa(run.parent, output_dir=str(tmp_path / "run"), **settings))
    found = AutoModelForSequenceClassification.from_pretrained(folder / "models" / "sparse-42")
    assert list(found.config.heads) == [1] and all(share == pytest.approx(0.5, abs=0.01) for share in sparsity_of(found).values())
    assert torch.allclose(found.head.dense.weight, cut.head.dense.weight, atol=0.01), "its head has learned this task before"
    whole_weights, left = 4 * 16 * 16 + 2 * 16 * 32, 4 * 16 * 8 + 2 * 16 * 20
    report = read_report(folder)
    assert report.find("sparse").encoder_sparsity == pytest.approx(1 - 0.5 * left / whole_weights, abs=1e-3), "cut off or 0"
    assert (folder / "figures" / "structure.svg").is_file() and "Zeros alone" not in (folder / "report.md").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="direct: .* smaller"):
        prune_once_for_all(tiny_prune_ofa(run.parent, output_dir=str(tmp_path / "direct"), **settings, direct=True))


def test_the_texts_that_ranges_come_from_are_those_that_there_were() -> None:
    """Of a task with fewer than are asked for it is these."""
    examples = Examples(TokenStore.from_lists([[2, 5, 6, 3]] * 40), 0)
    problem = SimpleNamespace(train=examples, dense=lambda: make_model("bert"), forward=lambda model, batch: model(**batch))
    outcome = calibrate_dense(PruneOfaTaskConfig(), SimpleNamespace(problem=problem))
    assert outcome.facts["calibrated_texts"] == 40


def test_layers_that_int8_leaves_out_are_saved_with_their_zeros(run: Path, tmp_path: Path) -> None:
    """They have a mask and no quantiser; both the folder and the small file must hold plain weights of them."""
    settings = {"teacher": str(run / "teacher"), "baselines": False, "max_steps": 2, "output_dir": str(tmp_path / "run"), **WITHOUT_GRAPHS}
    folder = prune_once_for_all(tiny_prune_ofa(run.parent, **settings, int8=Int8Config(exclude=["attention.query"], batch_size=16)))
    sparse, int8 = (AutoModelForSequenceClassification.from_pretrained(folder / "models" / f"{key}-42") for key in ("sparse", "sparse_int8"))
    (name,) = [name for name in sparsity_of(int8) if name.endswith("attention.query")]
    was_zero = sparse.get_submodule(name).weight == 0
    assert was_zero.float().mean() > 0.7 and torch.equal(int8.get_submodule(name).weight == 0, was_zero)
    small = SparseModel.from_pretrained(folder / "student" / "sparse")
    assert torch.equal(small.get_submodule(name).weight, int8.get_submodule(name).weight)


def test_a_searched_student_is_masked_then_quantised(run: Path, tmp_path: Path) -> None:
    given = searched(tmp_path / "searched", run)
    config = tiny_prune_ofa(
        run.parent, **IN_TORCH, teacher=str(run / "teacher"), output_dir=str(tmp_path / "run"), sparse_model=given,
        sparsity=0.5, baselines=False, max_steps=2,
    )  # fmt: skip
    folder = prune_once_for_all(config)
    report = read_report(folder)
    assert report.find("sparse").encoder_sparsity == pytest.approx(0.5, abs=0.02) and report.find("student").agreement >= 0.95
    assert {path.stem for path in (folder / "figures").iterdir()} >= {"zeros", "network"}
    found = SparseModel.from_pretrained(folder / "student" / "sparse")
    assert {type(layer).__name__ for layer in int8_layers(found).values()} == {"Int8Conv1d", "Int8Linear"}
    with pytest.raises(ModelError, match="quantised already"):
        prune_student(folder / "student", tmp_path / "cut", size=10, texts_file=str(run.parent / "train.csv"))


def searched(folder: Path, run: Path, names: list[str] | None = None, macro: dict[str, Any] | None = None, **changes: Any) -> str:
    """A searched student of random weights with those label names, as a run leaves it."""
    torch.manual_seed(1)
    labels = {} if names is None else {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    shape = {"vocab_size": len(WORDS), "sep_token_id": 3, "num_labels": 2, "embedding_rank": None, **labels, **changes}
    student = AdasearchForSequenceClassification(tiny_config(tiny_architecture(cells=1, **(macro or {})), **shape))
    save_student(student, AutoTokenizer.from_pretrained(run / "teacher"), folder / "student")
    return str(folder)


def test_a_searched_student_s_outputs_are_put_in_the_order_of_the_task(run: Path, tmp_path: Path) -> None:
    """Else it would learn one order and answer with the names of the other."""
    given = searched(tmp_path / "searched", run, ["Positive", "NEGATIVE"], problem_type="single_label_classification", is_pair=False)
    config = tiny_prune_ofa(
        run.parent, **WITHOUT_GRAPHS, teacher=str(run / "teacher"), output_dir=str(tmp_path / "run"), sparse_model=given,
        sparsity=0.5, baselines=False, max_steps=2,
    )  # fmt: skip
    task, progress = load_task(config), Heard()
    problem = load_problem(config, task, tmp_path / "other", Accelerator(cpu=True), progress)
    model, names = open_source(config, problem).sparse(42)
    old = AutoModelForSequenceClassification.from_pretrained(Path(given) / "student")
    prune_once(old, 0.5, names=names)
    old_NC, new_NC = (problem.logits(one, problem.held_out) for one in (old, model))
    assert np.allclose(new_NC, old_NC[:, ::-1], atol=1e-5) and not np.allclose(new_NC, old_NC, atol=1e-3)
    assert any("its outputs were put in the task's: negative, positive" in text for text in progress.messages)
    folder = prune_once_for_all(config)
    for name in ("student", "models/sparse-42"):
        saved = read_json(folder / name / "config.json")
        assert saved["id2label"] == {"0": "negative", "1": "positive"} and saved["label2id"] == {"negative": 0, "positive": 1}, name
    assert "its outputs were put in the task's: negative, positive" in (folder / "report.md").read_text(encoding="utf-8")


def test_a_searched_student_without_names_takes_those_of_the_task_and_one_of_another_task_is_refused(run: Path, tmp_path: Path) -> None:
    config = tiny_prune_ofa(run.parent, teacher=str(run / "teacher"), sparsity=0.5, output_dir=str(tmp_path / "run"))
    problem = load_problem(config, load_task(config), tmp_path / "run", Accelerator(cpu=True), Progress())

    def begin(name: str, *args: Any, **changes: Any) -> Source:
        return open_source(dataclasses.replace(config, sparse_model=searched(tmp_path / name, run, *args, **changes)), problem)

    model, _ = begin("nameless").sparse(42)
    told = model.config.id2label, model.config.problem_type, model.config.is_pair
    assert told == ({0: "negative", 1: "positive"}, "single_label_classification", False)
    for name, (names, changes, says) in enumerate((
        (["cat", "dog"], {}, r"has 2 labels .cat, dog., task 'tiny' has 2 .negative, positive.; choices: a student of this task"),
        (["negative", "neutral", "positive"], {"num_labels": 3}, "has 3 labels .negative, neutral, positive., task 'tiny' has 2"),
        (["negative", "positive"], {"problem_type": "multi_label_classification"}, "of problem type multi_label_classification, task 'tiny' asks for single"),
        (["negative", "positive"], {"is_pair": True}, "student of pairs of texts: True, task 'tiny' asks for False"),
    )):  # fmt: skip
        with pytest.raises(ConfigError, match=f"sparse_model: .*{says}"):
            begin(str(name), names, **changes)


def test_a_searched_student_that_only_pools_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no weights that could be 0, asked for or not."""
    pools = ((Edge(0, "max_pool3"), Edge(1, "avg_pool3")), (Edge(1, "max_pool3"), Edge(2, "skip")))
    architecture = dataclasses.replace(tiny_architecture(), cells=(pools,))
    monkeypatch.setattr(sys.modules[__name__], "tiny_architecture", lambda **_: architecture)
    config = tiny_prune_ofa(run.parent, teacher=str(run / "teacher"), sparse_model=searched(tmp_path / "pools", run))
    problem = load_problem(config, load_task(config), tmp_path / "run", Accelerator(cpu=True), Progress())
    for sparsity in (0.0, 0.5):
        with pytest.raises(ModelError, match="sparse_model: .*pools has no linear layer or convolution in its layers"):
            open_source(dataclasses.replace(config, sparsity=sparsity), problem)


def test_a_sparse_model_with_too_few_positions_is_refused(run: Path, tmp_path: Path) -> None:
    """Before anything is trained; a student without a table of positions reads on."""
    config = tiny_prune_ofa(run.parent, teacher=str(run / "teacher"), sparsity=0.5, output_dir=str(tmp_path / "run"))
    problem = load_problem(config, load_task(config), tmp_path / "run", Accelerator(cpu=True), Progress())
    for has_table in (True, False):
        given = searched(tmp_path / f"table-{has_table}", run, macro={"position_embeddings": has_table}, max_position_embeddings=8)
        with nullcontext() if not has_table else pytest.raises(ConfigError, match="max_seq_length: 16: model '.*True' has positions for 8; choices: up to 8"):
            open_source(dataclasses.replace(config, sparse_model=given), problem)


def test_questions_are_answered_in_int8(tmp_path: Path) -> None:
    folder = prune_once_for_all(tiny_questions_run(tmp_path, **IN_TORCH, baselines=False, max_steps=4))
    student = read_report(folder).find("student")
    assert set(student.metrics) == {"f1", "exact_match"} and student.agreement >= 0.75  # of 8 questions
    assert {row["precision"] for row in student.runtimes} == {"int8"}, "timed in the runtimes that read its graph"
    assert isinstance(SparseModel.from_pretrained(folder / "student" / "sparse"), EncoderForQuestionAnswering)
    (tmp_path / "asked.jsonl").write_text('{"question": "the film", "context": "the film was good actor bad"}\n', encoding="utf-8")
    predict_file(folder / "student", tmp_path / "asked.jsonl", tmp_path / "answers.jsonl", precision="int8")
    assert "answer_start" in (tmp_path / "answers.jsonl").read_text(encoding="utf-8")
    assert QuestionAnswerer(folder / "student").windows.max_seq_length == 32, "as it was scored"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "QuestionAnswerer" in page and "text-classification" not in page and "adasearch serve" not in page
