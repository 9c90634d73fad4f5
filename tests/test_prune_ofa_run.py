"""A whole run of Prune Once for All in miniature: lock, int8, files, graphs, report; going on after a kill; what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from adasearch.config import BenchConfig, FinetuneConfig
from adasearch.errors import ConfigError, ModelError
from adasearch.export import save_student
from adasearch.files import read_json
from adasearch.int8_modules import int8_layers
from adasearch.prune_ofa_run import prune_once_for_all
from adasearch.prune_ofa_systems import agreement
from adasearch.prune_ofa_task_config import Int8Config, LockConfig, PruneOfaTaskConfig
from adasearch.quantize_aware import stacked_layers
from adasearch.runtimes import load_runtime
from adasearch.sparse_files import SparseModel
from adasearch.sparse_model import prune_once, sparsity_of
from adasearch.student import AdasearchForSequenceClassification
from tests.tiny import tiny_architecture, tiny_config
from tests.tiny_task import WORDS, write_csv, write_teacher

SPARSITY = 0.8


def a_config(folder: Path, **changes: Any) -> PruneOfaTaskConfig:
    """A run that takes seconds."""
    encoder, sparse = folder / "encoder", folder / "sparse"
    if not sparse.exists():
        write_teacher(encoder)
        shutil.copytree(encoder, sparse)
        model = AutoModel.from_pretrained(sparse)
        prune_once(model, SPARSITY)
        model.save_pretrained(sparse)
    settings: dict[str, Any] = {
        "task": "tiny", "train_file": write_csv(folder / "train.csv", 96, 1), "validation_file": write_csv(folder / "validation.csv", 40, 2),
        "max_seq_length": 16, "model": str(encoder), "sparse_model": str(sparse), "output_dir": str(folder / "run"), "cpu": True, "threads": 1,
        "mixed_precision": "no", "evaluate": 1, "quiet": True, "finetune": FinetuneConfig(epochs=3, learning_rate=1e-3, batch_size=16),
        "lock": LockConfig(epochs=3, learning_rate=1e-3, batch_size=16), "int8": Int8Config(epochs=2, learning_rate=1e-4, batch_size=16, per="row"),
        "bench": BenchConfig(seq_lengths=[8], batch_sizes=[1], repeats=2, warmup=1, reference=False, cold_starts=0, stream_texts=0),
    }  # fmt: skip
    return PruneOfaTaskConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("once")
    return folder / "run", prune_once_for_all(a_config(folder, baselines=False))


def test_the_pattern_survives_every_stage_exactly(finished: tuple[Path, dict[str, Any]]) -> None:
    run, _ = finished
    source = AutoModel.from_pretrained(run.parent / "sparse")
    zeros = sorted(int((source.get_submodule(name).weight == 0).sum()) for name in stacked_layers(source))
    sparse = AutoModelForSequenceClassification.from_pretrained(run / "models" / "sparse-42")
    assert sorted(int((sparse.get_submodule(name).weight == 0).sum()) for name in stacked_layers(sparse)) == zeros
    int8 = AutoModelForSequenceClassification.from_pretrained(run / "models" / "sparse_int8-42")
    for name in stacked_layers(int8):
        was_zero = sparse.get_submodule(name).weight == 0
        assert (int8.get_submodule(name).weight[was_zero] == 0).all()
        levels = int8.get_submodule(name).weight / (int8.get_submodule(name).weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127)
        assert (levels - levels.round()).abs().max() < 1e-3, "weights lie on their row's grid"


def test_the_graph_agrees_and_the_small_file_computes_the_same(finished: tuple[Path, dict[str, Any]]) -> None:
    run, report = finished
    rows = {row["kind"]: row for row in report["rows"]}
    assert list(rows) == ["dense", "sparse", "sparse_int8"]
    assert min(rows["sparse_int8"]["agreement"]) >= 0.975  # 40 texts: one may sit on the edge
    model = SparseModel.from_pretrained(run / "student" / "sparse")
    runtime = load_runtime("onnxruntime", run / "student", 1, "int8")
    tokens = AutoTokenizer.from_pretrained(run / "student")(["the film was good", "a poor plot"], return_tensors="pt", padding=True)
    found = runtime(*(tokens[name].numpy() for name in ("input_ids", "attention_mask")))
    expected = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits.detach()
    assert (torch.from_numpy(found) - expected).abs().max() < 0.05


def test_the_report_counts_from_the_files(finished: tuple[Path, dict[str, Any]]) -> None:
    run, report = finished
    rows = {row["kind"]: row for row in report["rows"]}
    assert rows["sparse"]["sparsity"] == pytest.approx(SPARSITY, abs=0.01)
    ratios = rows["sparse_int8"]["size"]["ratios"]
    assert ratios["nominal"] >= 0.98 * 4 / (1 - SPARSITY) and ratios["nominal"] > ratios["with_index"]
    assert rows["sparse_int8"]["size"]["file_bytes"] == (run / "student" / "sparse" / "sparse.safetensors").stat().st_size
    names = {(row["name"], row["runtime"], row["option"]) for row in report["timings"]}
    assert ("sparse int8", "onnxruntime", "") in names and ("dense fp32", "onnxruntime", "") in names
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "## Speed" in text and "nominal" in text and "Zeros alone" in text


def test_a_run_goes_on_with_the_same_weights(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run, report = finished
    again = tmp_path / "run"
    shutil.copytree(run, again)
    for name in ("models/sparse_int8-42", "student", "report.json"):  # killed after the lock
        path = again / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    config = dataclasses.replace(a_config(run.parent), output_dir=str(again), baselines=True, direct=True, export=False)
    found = prune_once_for_all(config)
    before, after = (AutoModelForSequenceClassification.from_pretrained(folder / "student").state_dict() for folder in (run, again))
    assert all(torch.equal(before[name], after[name]) for name in before)
    rows = {row["kind"]: row for row in found["rows"]}  # what adds rows may differ from the settings it was begun with
    assert list(rows) == ["dense", "dense_int8", "direct", "sparse", "sparse_int8"]
    assert rows["direct"]["sparsity"] == pytest.approx(SPARSITY, abs=0.01)
    assert rows["sparse"]["scores"] == [row for row in report["rows"] if row["kind"] == "sparse"][0]["scores"]
    with pytest.raises(ConfigError, match="other settings"):
        prune_once_for_all(dataclasses.replace(config, int8=Int8Config(per="tensor")))
    assert read_json(again / "models" / "sparse_int8-42" / "facts.json")["sparsity"] == pytest.approx(SPARSITY, abs=0.01)


def test_orders_that_make_no_sense_are_refused(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run, _ = finished
    config = dataclasses.replace(a_config(run.parent), teacher=str(run / "teacher"))
    with pytest.raises(ModelError, match="quantised already"):
        prune_once_for_all(dataclasses.replace(config, output_dir=str(tmp_path / "a"), sparse_model=str(run / "student")))
    with pytest.raises(ConfigError, match="has no zeros"):
        prune_once_for_all(dataclasses.replace(config, output_dir=str(tmp_path / "b"), sparse_model=str(run / "teacher")))
    with pytest.raises(ConfigError, match="none given"):
        prune_once_for_all(dataclasses.replace(config, output_dir=str(tmp_path / "c"), sparse_model=None))


def test_a_dense_encoder_of_ours_is_masked_then_quantised(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run, _ = finished
    dense = tmp_path / "dense"  # what structural pruning leaves: our encoder, fine-tuned, without zeros
    shutil.copytree(run / "models" / "sparse-42", dense)
    model = AutoModelForSequenceClassification.from_pretrained(dense)
    with torch.no_grad():
        for name in stacked_layers(model):
            model.get_submodule(name).weight.add_(0.01)
    model.save_pretrained(dense)
    config = dataclasses.replace(
        a_config(run.parent), teacher=str(run / "teacher"), output_dir=str(tmp_path / "run"), sparse_model=str(dense), sparsity=0.5, baselines=False,
        export=False,
    )  # fmt: skip
    report = prune_once_for_all(config)
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "models" / "sparse-42")
    assert all(share == pytest.approx(0.5, abs=0.01) for share in sparsity_of(found).values())
    assert report["rows"][-1]["kind"] == "sparse_int8"


def test_a_searched_student_is_masked_then_quantised(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run, _ = finished
    torch.manual_seed(1)
    shape = {"vocab_size": len(WORDS), "sep_token_id": 3, "num_labels": 2, "embedding_rank": None}
    student = AdasearchForSequenceClassification(tiny_config(tiny_architecture(), **shape))
    save_student(student, AutoTokenizer.from_pretrained(run / "teacher"), tmp_path / "student")
    config = dataclasses.replace(
        a_config(run.parent), teacher=str(run / "teacher"), output_dir=str(tmp_path / "run"), sparse_model=str(tmp_path / "student"), sparsity=0.5,
        baselines=False, export=False,
    )  # fmt: skip
    report = prune_once_for_all(config)
    assert report["rows"][-1]["sparsity"] == pytest.approx(0.5, abs=0.02)
    found = SparseModel.from_pretrained(tmp_path / "run" / "student" / "sparse")
    assert {type(layer).__name__ for layer in int8_layers(found).values()} == {"Int8Conv1d", "Int8Linear"}


def test_agreement_by_hand() -> None:
    torch.manual_seed(0)
    expected = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [0.0, 3.0]]).numpy()
    found = torch.tensor([[0.0, 0.5], [0.0, 1.0], [2.0, 1.5], [1.0, 3.0]]).numpy()
    assert agreement(expected, found, "single_label") == 0.75
    assert agreement(expected - 0.75, found - 0.75, "multi_label") == 0.25
    assert agreement(expected[:, :1], expected[:, :1] + [[0.0], [0.01], [0.03], [0.0]], "regression") == 0.75
