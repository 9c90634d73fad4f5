"""A run of Prune Once for All in miniature: lock, int8, files, graphs, report; all verbs on its folder; going on; what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from tiny_encoder import FAMILIES, make_encoder, make_model
from tiny_prune_ofa import SPARSITY, WITHOUT_GRAPHS, bench, tiny_prune_ofa
from tiny_task import rows
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from adasearch.deploy import load_deployment
from adasearch.encoder import from_hugging_face
from adasearch.encoder_problem import EncoderProblem, load_problem, train_dense
from adasearch.encoder_training import Workplace, is_part, train_recipe
from adasearch.errors import ConfigError, ModelError
from adasearch.export import save_student
from adasearch.files import read_json, write_json
from adasearch.graph_runtimes import ONNX_FILES
from adasearch.fit_config import steps_of
from adasearch.gate_values import GateValues
from adasearch.inspect_run import inspect
from adasearch.predict import predict_file
from adasearch.prune_files import prune_student
from adasearch.progress import Progress
from adasearch.prune_ofa_config import Int8Config, LockConfig, PruneOfaTaskConfig, TeachConfig
from adasearch.prune_ofa_forms import Int8Form
from adasearch.prune_ofa_run import prune_once_for_all
from adasearch.prune_ofa_source import Source, _lacks_head, open_source, pretraining_stages
from adasearch.prune_ofa_systems import prune_ofa_recipes
from adasearch.qdq_export import export_folder, zeros_of
from adasearch.quantgpt_config import QuantGptConfig
from adasearch.quantgpt_run import quantize_language_model
from adasearch.quantize import quantize
from adasearch.quantize_aware import stacked_layers
from adasearch.quantize_config import QuantizeConfig
from adasearch.report import Report
from adasearch.report_files import read_report, rebuild_report
from adasearch.runtimes import load_runtime
from adasearch.shrink_encoder import shrink_encoder
from adasearch.sparse_files import SparseModel
from adasearch.sparse_model import mean_sparsity, pattern_of, prune_once
from adasearch.sparse_pretraining_config import SparsePretrainingConfig
from adasearch.sparse_pretraining_run import pretrain_sparse
from adasearch.speed_table import build_tables
from adasearch.task_config import TransferConfig
from adasearch.tasks import load_task


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run without baselines."""
    return prune_once_for_all(tiny_prune_ofa(tmp_path_factory.mktemp("once"), baselines=False))


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return read_report(run)


@pytest.mark.parametrize(
    ("first", "call"),
    [
        ("prune_ofa_run.begin_encoders", lambda: prune_once_for_all(PruneOfaTaskConfig(task="sst2"))),
        ("sparse_pretraining_run.check_begun", lambda: pretrain_sparse(SparsePretrainingConfig(corpora=["ptb"]))),
        ("quantgpt_run.check_begun", lambda: quantize_language_model(QuantGptConfig(model="any"))),
    ],
)
def test_what_is_trained_after_a_run_has_the_threads_it_had(first: str, call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: Any, **__: Any) -> None:
        torch.set_num_threads(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"adasearch.{first}", begin)
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_the_pattern_survives_every_stage_exactly(run: Path) -> None:
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


def test_the_graph_agrees_and_the_small_file_computes_the_same(run: Path, report: Report, tmp_path: Path) -> None:
    assert report.find("student").agreement >= 0.975  # 40 texts: one may sit on the edge
    model = SparseModel.from_pretrained(run / "student" / "sparse")
    runtime = load_runtime("onnxruntime", run / "student", 1, "int8")
    tokens = AutoTokenizer.from_pretrained(run / "student")(["the film was good", "a poor plot"], return_tensors="pt", padding=True)
    found = runtime(*(tokens[name].numpy() for name in ("input_ids", "attention_mask")))
    expected = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits.detach()
    assert (torch.from_numpy(found) - expected).abs().max() < 0.05
    # those that serve the folder take this graph by themselves
    (tmp_path / "texts.txt").write_text("the film was good\na poor plot\n", encoding="utf-8")
    for how, options in (("auto", {}), ("int8", {"runtime": "onnxruntime", "precision": "int8"}), ("torch", {"runtime": "torch"})):
        predict_file(run / "student", tmp_path / "texts.txt", tmp_path / f"{how}.jsonl", calibrated=False, **options)
    auto, int8, rounded = ((tmp_path / f"{how}.jsonl").read_text() for how in ("auto", "int8", "torch"))
    assert auto == int8 != rounded, "in torch activations are not rounded"
    label = model.config.id2label[1]
    assert json.loads(auto.splitlines()[0])[f"probability_{label}"] == pytest.approx(float(torch.from_numpy(found).softmax(-1)[0, 1]), abs=1e-6)


def test_the_report_is_like_every_other_and_counts_from_the_files(run: Path, report: Report) -> None:
    assert [system.kind for system in report.systems] == ["teacher", "student", "sparse"]
    student, sparse = report.find("student"), report.find("sparse")
    assert student.graph_scores["accuracy"] == pytest.approx(student.score_mean, abs=0.026) and not sparse.graph_scores
    assert (student.precision, sparse.precision, student.runtime) == ("int8", "fp32", "onnxruntime")
    assert sparse.encoder_sparsity == pytest.approx(SPARSITY, abs=0.01) and student.encoder_sparsity >= sparse.encoder_sparsity
    assert student.size_ratios["nominal"] >= 4 / (1 - SPARSITY) > 0 and student.size_ratios["nominal"] > student.size_ratios["with_index"]
    assert student.sparse_bytes == (run / "student" / "sparse" / "sparse.safetensors").stat().st_size
    took = [read_json(run / "models" / f"{key}-42" / "facts.json")["train_seconds"] for key in ("sparse", "sparse_int8")]
    assert (sparse.train_seconds, student.train_seconds) == (took[0], took[1]) and took[0] < took[1], "int8 comes on top of the lock"
    ways = {(row["runtime"], row["precision"], row["option"]) for row in student.runtimes}
    assert ways == {("openvino", "int8", ""), ("openvino", "int8", "sparse weights")}
    assert len(student.runtimes) == 2 * len(student.timings) == 4
    text, page = ((run / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))
    for part in ("## Size", "## Every runtime", "## Prune Once for All", "Zeros alone", "in a file", "once for all"):
        assert (part in text) == (part not in ("once for all",)), part  # the sparse model of this run has no folder that tells its time
    for section in ("speed", "systems", "sizes", "runtimes", "deployments", "confusion", "disagreements", "method", "architecture", "training"):
        assert f'<section id="{section}"' in page, section
    assert {path.stem for path in (run / "figures").iterdir()} == {"zeros", "training", "comparison"}
    card = (run / "student" / "README.md").read_text(encoding="utf-8")
    assert "model_int8.onnx" in card and "sparse/" in card and "int8" in card


def test_a_run_goes_on_with_the_same_weights(tmp_path: Path) -> None:
    run = prune_once_for_all(tiny_prune_ofa(tmp_path, **WITHOUT_GRAPHS, baselines=False, max_steps=4))
    scores, again = read_report(run).find("sparse").scores, tmp_path / "again"
    shutil.copytree(run, again)
    for name in ("models/sparse_int8-42", "student", "report.json"):  # killed after the lock
        path = again / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    config = tiny_prune_ofa(
        tmp_path, **WITHOUT_GRAPHS, output_dir=str(again), baselines=True, direct=True, direct_more_steps=1, dense=True, max_steps=4
    )
    prune_once_for_all(config)
    assert read_json(again / "run.json")["config"]["direct_more_steps"] == 1
    before, after = (AutoModelForSequenceClassification.from_pretrained(folder / "student").state_dict() for folder in (run, again))
    assert all(torch.equal(before[name], after[name]) for name in before)
    found = read_report(again)  # what adds rows may differ from the settings it was begun with
    assert [system.kind for system in found.systems] == ["teacher", "student", "sparse", "direct", "dense", "dense_int8"]
    assert found.find("direct").encoder_sparsity == pytest.approx(SPARSITY, abs=0.01) and found.find("sparse").scores == scores
    assert found.find("student").note == "timed in float32" and found.find("student").precision == "fp32"
    assert [len(system.size_ratios) for system in found.systems] == [0, 4, 4, 4, 0, 4]
    with pytest.raises(ConfigError, match="other settings"):
        prune_once_for_all(dataclasses.replace(config, int8=Int8Config(per="tensor")))
    with pytest.raises(ConfigError, match="other settings .*direct_more_steps"):  # the folder has a model of it now
        prune_once_for_all(dataclasses.replace(config, direct_more_steps=2))


def test_every_verb_works_on_the_folder(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    graph = folder / "student" / "onnx" / "model_int8.onnx"
    zeros = zeros_of(graph)
    shutil.rmtree(graph.parent)
    assert [path.name for path in export_folder(folder / "student")] == ["model.onnx", "model_int8.onnx"] and zeros_of(graph) == zeros
    trained = graph.read_bytes()
    old = graph.with_name(ONNX_FILES["int8_embedding"])
    silent = onnx.load(graph)
    del silent.metadata_props[:]  # as one of before, which does not say what weights it was made of
    for kept in (True, False):  # of weights that were trained on, graphs of before would answer as before
        onnx.save(silent, old)
        write_json(folder / "student" / "deploy.json", {})
        when = (folder / "student" / "model.safetensors").stat().st_mtime + (10 if kept else -10)
        os.utime(old, (when, when))
        export_folder(folder / "student")
        assert old.exists() == kept and (folder / "student" / "deploy.json").exists() == kept
    old.unlink(missing_ok=True)
    quantize(folder, QuantizeConfig(precisions=["fp32", "int8"], runtimes=["onnxruntime"], max_drop=100.0, repeats=2))
    assert graph.read_bytes() == trained, "its scales were trained, not to be calibrated anew"
    assert {row["precision"] for row in read_json(folder / "student" / "deploy.json")["tried"]} == {"fp32", "int8"}
    for name in ("report.md", "report.html"):
        (folder / name).unlink()
    assert rebuild_report(folder) == folder / "report.html" and (folder / "report.md").is_file()
    shutil.rmtree(folder / "figures")
    assert "zeros in a layer" in inspect(folder, None) and (folder / "figures" / "zeros.svg").is_file()
    _, tables = build_tables([folder], published=False)
    assert any("sparse int8" in line for line in tables[1].lines for line in line)
    with pytest.raises(ModelError, match="choices: a student"):
        prune_student(folder / "student", tmp_path / "cut", size=10)


def test_orders_that_make_no_sense_are_refused(run: Path, tmp_path: Path) -> None:
    config = tiny_prune_ofa(run.parent, teacher=str(run / "teacher"))

    def begin(name: str, **changes: object) -> None:
        prune_once_for_all(dataclasses.replace(config, output_dir=str(tmp_path / name), **changes))

    for name, given in (("a", run), ("b", run / "student")):  # a run stands for its student
        with pytest.raises(ModelError, match="quantised already"):
            begin(name, sparse_model=str(given))
    with pytest.raises(ConfigError, match="has no zeros"):
        begin("c", sparse_model=str(run / "teacher"))
    with pytest.raises(ConfigError, match="none given"):
        begin("d", sparse_model=None)
    with pytest.raises(ModelError, match="sparse_model: .*absent has no tokenizer"):
        begin("e", sparse_model=str(tmp_path / "absent"))
    assert not [path for name in "abce" for path in (tmp_path / name).glob("run.json")], "what is mended goes on in the same folder"
    shutil.copytree(run.parent / "sparse", tmp_path / "deep")
    deep = AutoModel.from_config(AutoConfig.from_pretrained(run.parent / "sparse", num_hidden_layers=2))
    prune_once(deep, SPARSITY)
    deep.save_pretrained(tmp_path / "deep")
    shutil.copytree(run / "teacher", tmp_path / "deep_dense")
    labels = AutoConfig.from_pretrained(run / "teacher", num_hidden_layers=2)
    AutoModelForSequenceClassification.from_config(labels).save_pretrained(tmp_path / "deep_dense")
    sparse = {"sparse_model": str(tmp_path / "deep")}
    both = {**sparse, "model": str(tmp_path / "deep")}
    for index, (changes, says) in enumerate((
        (sparse, "^model: .*encoder' has 1 layers, .*; sparse_model '.*deep' has 2 layers, .*; choices: --model"),
        ({**sparse, "teach": TeachConfig(start="teacher"), "teacher": str(tmp_path / "deep_dense")}, "^model: .*encoder' has 1 layers"),
        ({**both, "teach": TeachConfig(layer_weight=1.0)}, "teach.layer_weight: .*deep has other layers"),
        ({**both, "teach": TeachConfig(start="teacher")}, "teach.start: .*deep has other layers"),
        ({"teach": TeachConfig(start="luck")}, "teach.start: 'luck'"), ({"teach": TeachConfig(dropout=1.0)}, "teach.dropout: 1.0"),
        ({"int8": Int8Config(exclude=["no_such"])}, "exclude: no layer's name holds 'no_such'"),
        ({"direct": True, "lock": LockConfig(warmup=0.3)}, "lock.warmup: 0.3 is more than half .*choices: up to 0.25, or direct false"),
        ({"direct": True, "pattern": "2:4"}, "sparsity"), ({"pattern": "bogus"}, "pattern: 'bogus'"),
    )):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            begin(f"f{index}", **changes)
        assert not (tmp_path / f"f{index}" / "models").exists(), "said before anything is trained"


def test_pruning_on_the_task_alone_takes_pattern_and_scope_of_the_sparse_model(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"config": {"pattern": "4x1", "scope": "global"}})
    made = Source(PruneOfaTaskConfig(), None, str(tmp_path))
    assert (made.pattern, made.scope) == ("4x1", "global")
    at_once = Source(PruneOfaTaskConfig(sparsity=0.5, pattern="2:4"), None, str(tmp_path))
    assert (at_once.pattern, at_once.scope) == ("2:4", "layer")


def test_a_wrong_sparse_model_is_refused_before_the_dense_one_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_prune_ofa(tmp_path, sparse_model=str(tmp_path / "absent"))
    with pytest.raises(ModelError, match="sparse_model: .*absent has no tokenizer"):
        prune_once_for_all(config)
    with pytest.raises(ConfigError, match="has no zeros"):
        prune_once_for_all(dataclasses.replace(config, sparse_model=config.model, output_dir=str(tmp_path / "dense")))
    with pytest.raises(ConfigError, match="pattern: 2:4 says how --sparsity prunes"):
        prune_once_for_all(dataclasses.replace(config, pattern="2:4", output_dir=str(tmp_path / "dense")))
    with monkeypatch.context() as patched, pytest.raises(ConfigError, match="export: int8 graphs need torch 2.8 or newer"):
        patched.delattr(torch.onnx, "ops")
        prune_once_for_all(tiny_prune_ofa(tmp_path, output_dir=str(tmp_path / "dense")))
    for name in ("run", "dense"):
        assert not (tmp_path / name / "teacher").exists() and not (tmp_path / name / "work").exists(), name


def test_a_model_that_was_cut_begins_with_nothing_that_the_whole_one_has_learned(run: Path, tmp_path: Path) -> None:
    """Its own task's model fits it, but not the pre-trained one, from which what fine-tuning added is told."""
    whole = from_hugging_face(AutoModelForSequenceClassification.from_pretrained(run / "teacher"))
    cut = shrink_encoder(whole, GateValues(heads=[torch.tensor([1.0, 0.0])]))
    save_student(cut, AutoTokenizer.from_pretrained(run / "teacher"), tmp_path / "cut")
    config = tiny_prune_ofa(
        run.parent, teacher=str(tmp_path / "cut"), sparse_model=str(tmp_path / "cut"), sparsity=0.5, output_dir=str(tmp_path / "run"),
        teach=TeachConfig(start="teacher"),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="teach.start: .*cut has other parameters than .*choices: sparse"):
        prune_once_for_all(config)


def test_zeros_of_a_dense_model_in_int8_are_counted_among_its_own_weights(run: Path) -> None:
    """The task's dense model may be larger than the one that was pruned."""
    config = tiny_prune_ofa(run.parent, teacher=str(run / "teacher"))
    problem = load_problem(config, load_task(config), run.parent / "again", Accelerator(cpu=True), Progress())
    larger = from_hugging_face(AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(run / "teacher", num_hidden_layers=3)))
    assert Int8Form(config, is_sparse=False).sparsity(problem, larger) == pytest.approx(0.0, abs=0.01)
    assert not is_part(problem, larger), "what is left of it in each layer is not drawn"
    assert Int8Form(config).sparsity(problem, problem.load(run / "student")) == pytest.approx(SPARSITY, abs=0.05)


def open_problem(config: PruneOfaTaskConfig, folder: Path) -> EncoderProblem:
    """The problem with the dense model ready, which is trained first where none is given."""
    problem = load_problem(config, load_task(config), folder, Accelerator(cpu=True), Progress())
    train_dense(config, problem)
    return problem


def test_lock_and_int8_learn_from_texts_without_labels_too(tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text("\n".join(row["text"] for row in rows(80, 7)), encoding="utf-8")
    transfer = TransferConfig(size=0, unlabeled_size=80, split_sentences=False)
    config = tiny_prune_ofa(tmp_path, baselines=False, unlabeled_file=str(more), transfer=transfer, **WITHOUT_GRAPHS)
    folder = prune_once_for_all(config)
    for key, epochs in (("sparse", config.lock.epochs), ("sparse_int8", config.int8.epochs)):
        history = read_json(folder / "models" / f"{key}-42" / "history.json")
        assert history[-1]["step"] == steps_of(epochs, 120 + 80, 16)
    assert any(note.startswith("taught on 80 texts beside the 120 labelled ones") for note in read_report(folder).notes)


def test_lock_can_begin_with_what_the_dense_model_has_learned(run: Path) -> None:
    """A sparse copy of the pre-trained model then is the dense fine-tuned one, but for its zeros; else only its own weights count."""
    config = tiny_prune_ofa(run.parent, teacher=str(run / "teacher"), output_dir=str(run.parent / "again"), baselines=False)
    problem = open_problem(config, run.parent / "again")
    dense, before = problem.dense().state_dict(), problem.pretrained(42).state_dict()
    own, names = open_source(config, problem).start(42)
    begun, _ = open_source(dataclasses.replace(config, teach=TeachConfig(start="teacher")), problem).start(42)
    pattern = pattern_of(own, names)
    assert pattern_of(begun, names).keys() == pattern.keys() and mean_sparsity(begun, names) == pytest.approx(SPARSITY, abs=0.01)
    for name, weight in begun.state_dict().items():
        kept = pattern.get(name.removesuffix(".weight"), torch.ones_like(weight, dtype=torch.bool))
        torch.testing.assert_close(weight, dense[name] * kept, atol=1e-6, rtol=0)
        torch.testing.assert_close(own.state_dict()[name], before[name] * kept, atol=0, rtol=0)


def test_a_sparse_model_without_a_pooler_has_that_of_the_model_it_was_made_of(run: Path, tmp_path: Path) -> None:
    bare = AutoModel.from_pretrained(run.parent / "sparse", add_pooling_layer=False)
    shutil.copytree(run.parent / "sparse", tmp_path / "bare")
    bare.save_pretrained(tmp_path / "bare")
    config = tiny_prune_ofa(run.parent, teacher=str(run / "teacher"), output_dir=str(tmp_path / "again"), sparse_model=str(tmp_path / "bare"))
    problem = open_problem(config, tmp_path / "again")
    model, _ = open_source(config, problem).start(7)
    assert torch.equal(model.head.dense.weight, problem.pretrained(3).head.dense.weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_head_s_first_layer_is_found_in_every_family(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    for name, saved, lacks in (
        ("theirs", model, False), ("ours", make_encoder(family), False), ("bare", model.base_model, family != "bert"),
        ("language", AutoModelForMaskedLM.from_config(model.config), True),
    ):  # fmt: skip
        saved.save_pretrained(tmp_path / name)
        assert _lacks_head(str(tmp_path / name)) == lacks, name
        saved.save_pretrained(tmp_path / "parts", max_shard_size="10KB")
        assert list((tmp_path / "parts").glob("model-00002-*")) and _lacks_head(str(tmp_path / "parts")) == lacks, name
        shutil.rmtree(tmp_path / "parts")


def test_the_graph_is_served_whatever_the_table_is_timed_in(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "student" / "deploy.json").unlink()
    prune_once_for_all(tiny_prune_ofa(run.parent, baselines=False, output_dir=str(folder), bench=bench("torch")))
    assert read_report(folder).find("student").runtime == "torch"
    chosen = load_deployment(folder / "student")
    assert (chosen.runtime, chosen.precision) == ("onnxruntime", "int8") and chosen.latency_ms_p50 > 0
    assert chosen.size_bytes == load_deployment(run / "student").size_bytes


def test_the_choice_that_is_saved_tells_scores_on_the_validation_examples(tmp_path: Path) -> None:
    """As quantising does, whose scores are the reference. Other shares of labels have other scores, whatever has been learned."""
    lines = [json.dumps(row) for row in rows(40, 3) if row["label"] == "positive"]
    (tmp_path / "test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    run = prune_once_for_all(tiny_prune_ofa(tmp_path, baselines=False, max_steps=4, test_file=str(tmp_path / "test.jsonl")))
    chosen = load_deployment(run / "student")
    found = quantize(run, QuantizeConfig(precisions=["fp32", "int8"], runtimes=[chosen.runtime], max_drop=100.0, repeats=2))
    (int8,) = (row["score"] for row in found.tried if row["precision"] == "int8")
    assert chosen.max_drop is None, "nothing was chosen by what it loses"
    assert (chosen.metric, chosen.score, chosen.score_fp32) == (found.metric, int8, found.score_fp32)
    assert read_report(run).find("student").scores[0] != chosen.score, "the report's is of the test examples"


def test_what_a_sparse_model_took_counts_the_runs_it_goes_on_from(tmp_path: Path) -> None:
    def write(name: str, first: float | None, second: float | None, **config: str) -> str:
        stages = {"teacher": {"steps": 1, "seconds": first}, "sparse": {"steps": 10, "seconds": second}}
        (tmp_path / name / "sparse").mkdir(parents=True)
        write_json(tmp_path / name / "sparse" / "config.json", {})
        write_json(tmp_path / name / "run.json", {"stages": stages, "config": config})
        return str(tmp_path / name)

    first = write("first", 2.0, 4.0)
    second = write("second", 1.0, 8.0, start=first)
    shared = write("shared", 0.0, 16.0, start=second, teacher=f"{first}/teacher")
    for path, steps, teacher, sparse in ((first, 10, 2.0, 4.0), (second, 20, 3.0, 12.0), (shared, 30, 2.0, 28.0)):
        found = pretraining_stages(Path(path))
        assert (found["sparse"]["steps"], found["teacher"]["seconds"], found["sparse"]["seconds"]) == (steps, teacher, sparse), path
    again = pretraining_stages(Path(write("again", 0.0, 32.0, start=shared, teacher=f"{shared}/teacher")))
    assert again["teacher"] == {"steps": 3, "seconds": 2.0}, "its teacher is the first run's, by way of the one that was given it"
    assert again["sparse"] == {"steps": 40, "seconds": 60.0}
    assert pretraining_stages(Path(write("unknown", None, 1.0, start=first)))["teacher"]["seconds"] is None
    assert pretraining_stages(Path(write("gone", 1.0, 1.0, start=str(tmp_path / "absent"))))["sparse"]["seconds"] is None
    assert pretraining_stages(tmp_path / "absent") == {}


def test_the_seconds_of_pretraining_are_those_of_both_its_stages_and_layers_teach_where_asked(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent / "sparse", tmp_path / "pretraining" / "sparse")
    stages = {"teacher": {"seconds": 2.5, "total_seconds": 9.0}, "sparse": {"seconds": 4.0}}
    write_json(tmp_path / "pretraining" / "run.json", {"stages": stages})
    config = tiny_prune_ofa(
        run.parent, **WITHOUT_GRAPHS, teacher=str(run / "teacher"), output_dir=str(tmp_path / "run"), sparse_model=str(tmp_path / "pretraining"),
        max_steps=1, baselines=False, direct=True, teach=TeachConfig(layer_weight=1.0),
    )  # fmt: skip
    prune_once_for_all(config)
    for kind, stage in (("sparse", "lock"), ("sparse_int8", "int8"), ("direct", "direct")):
        (path,) = (tmp_path / "run").rglob(f"{kind}-42/**/{stage}*/history.jsonl")
        assert json.loads(path.read_text().splitlines()[-1])["terms"]["layers"] > 0, "layers teach in every stage"
    assert read_json(tmp_path / "run" / "models" / "sparse-42" / "facts.json")["pretraining_seconds"] == 6.5
    assert read_report(tmp_path / "run").method["facts"]["time to make the sparse model, once for all tasks"] == "6 s"


GOLD_ALONE = TeachConfig(teacher_weight=0.0, gold_weight=0.7)
ALL_TEACH = TeachConfig(teacher_weight=0.7, gold_weight=0.3, temperature=3.0, layer_weight=0.5)


@pytest.mark.parametrize("teach", [TeachConfig(), ALL_TEACH, GOLD_ALONE], ids=["published", "all", "gold"])
def test_every_stage_learns_from_teacher_labels_and_layers_by_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teach: TeachConfig
) -> None:
    """What each stage is begun with, on eight of its own texts, against the terms written out from the dense model's outputs."""
    config = tiny_prune_ofa(tmp_path, **WITHOUT_GRAPHS, baselines=False, direct=True, teach=teach)
    problem = open_problem(config, tmp_path / "run")
    torch.nn.init.normal_(problem.teacher.model.classifier.weight)  # sure of something that no new head says
    fit, seen, expected = Workplace.fit, {}, {}

    @torch.no_grad()
    def written_out(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        own, dense = (each(**inputs, output_hidden_states=True) for each in (model, problem.teacher.model))
        p, q = ((output.logits / teach.temperature).softmax(-1) for output in (dense, own))
        mask = inputs["attention_mask"].bool()
        distances = [
            float((ours - theirs)[mask].norm() ** 2 / theirs[mask].norm() ** 2)
            for ours, theirs in zip(own.hidden_states[1:], dense.hidden_states[1:], strict=True)
        ]
        terms = {
            "kd": teach.teacher_weight * teach.temperature**2 * float((p * (p / q).log()).sum(-1).mean()),
            "ce": teach.gold_weight * float(F.cross_entropy(own.logits, batch["labels"])),
            "layers": teach.layer_weight * sum(distances) / len(distances),
        }
        return {name: term for name, term in terms.items() if term}

    def look(place: Workplace, model: torch.nn.Module, method: torch.nn.Module, stage: str, **options: Any) -> list[dict[str, Any]]:
        batch = options.get("examples", problem.train).collate(range(8))
        seen[stage] = {name: term.item() for name, term in method.loss(model.eval(), batch).items()}
        expected[stage] = written_out(model, batch)
        history = fit(place, model, method, stage, **options)
        assert all(record["terms"].keys() == seen[stage].keys() for record in history)
        return history

    monkeypatch.setattr(Workplace, "fit", look)
    if not teach.teacher_weight:
        monkeypatch.delattr(EncoderProblem, "teacher_logits")  # a teacher that is not listened to is not asked
    config = dataclasses.replace(config, max_steps=1)
    recipes = {recipe.key: recipe for recipe in prune_ofa_recipes(config, open_source(config, problem))}
    for key in ("sparse_int8", "direct"):
        train_recipe(recipes[key], problem, config, 42)
    assert seen.keys() == {"lock", "int8", "direct"}
    for stage, terms in seen.items():
        weights = {"kd": teach.teacher_weight, "ce": teach.gold_weight, "layers": teach.layer_weight}
        assert terms.keys() == {name for name, weight in weights.items() if weight} and min(terms.values()) > 1e-4, stage
        assert terms == pytest.approx(expected[stage], rel=1e-3), stage
