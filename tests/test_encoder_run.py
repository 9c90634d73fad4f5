"""A transformer made smaller on a task, in miniature, by EarlyBERT: files, table, ways out, kills, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from hearing import Heard, KillAt, Killed
from safetensors.torch import load_file
from tiny_encoder import make_encoder
from tiny_encoder_run import question_settings, tiny_earlybert
from tiny_task import rows
from transformers import (
    AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification,
    GPT2Config, GPT2Model, pipeline,
)  # fmt: skip

import adasearch
from adasearch import earlybert_run, encoder_problem, encoder_report, fit, teacher_training
from adasearch.classifier import TextClassifier
from adasearch.cli import main
from adasearch.cofi_config import CofiConfig
from adasearch.config import FinetuneConfig
from adasearch.earlybert_config import EarlyBertConfig, TicketConfig, TrainConfig
from adasearch.earlybert_run import ABOUT, compress_earlybert, earlybert_recipes
from adasearch.encoder import axes_of
from adasearch.encoder_layers import EncoderForSequenceClassification
from adasearch.encoder_problem import EncoderProblem, load_problem
from adasearch.encoder_run import open_encoders, run_encoders
from adasearch.encoder_training import Compressed, Recipe, Workplace, dense_recipe, train_recipe
from adasearch.errors import ConfigError, ModelError
from adasearch.files import read_json
from adasearch.gate_values import GateValues
from adasearch.honest_rows import Row
from adasearch.measure import count_macs, count_params, set_threads
from adasearch.methods.finetune_encoder import FinetuneEncoder
from adasearch.progress import Progress
from adasearch.quantize import quantize
from adasearch.report_files import read_report
from adasearch.shrink_encoder import shrink_encoder
from adasearch.stopwatch import Stopwatch
from adasearch.tasks import load_task
from adasearch.teacher_training import finetune
from adasearch.texts import Split, tokenize
from adasearch.tokens import BatchSampler, Examples
from adasearch.turns import take_turns


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files of the finished run lie."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    """A finished run with two seeds, of a method that says something of its models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(earlybert_run, "ABOUT", dataclasses.replace(ABOUT, notes=lambda trained: [f"{len(trained)} models were made"]))
        return compress_earlybert(tiny_earlybert(home, seeds=[1, 2]))


def test_the_run_folder_holds_what_was_promised(finished: Path) -> None:
    models = [f"models/{key}-{seed}" for key in ("earlybert", "random_ticket") for seed in (1, 2)]
    for name in (
        "config.yaml", "run.json", "teacher/model.safetensors", "teacher/training.json", "student/config.json", "student/tokenizer.json",
        "student/README.md", "student/modeling_adasearch.py", "structure.json", "report.json", "report.md", "report.html",
        "figures/structure.svg", "figures/structure.png", "figures/tickets.svg", "figures/training.svg", "figures/comparison.svg",
        *(f"{model}/{file}.json" for model in models for file in ("scores", "history", "facts", "ticket")),
        *(f"{model}/model.safetensors" for model in models),
    ):  # fmt: skip
        assert (finished / name).is_file(), name
    assert not list(finished.rglob("checkpoint.pt")) and not list(finished.rglob("*.partial")) and not list(finished.rglob("*-model"))
    same = [(finished / folder / "model.safetensors").read_bytes() for folder in ("student", "models/earlybert-1", "models/earlybert-2")]
    assert same[0] == same[1] != same[2], "the first seed's is handed over"


def test_the_table_tells_what_every_model_is_and_took(finished: Path) -> None:
    report = read_report(finished)
    assert [system.kind for system in report.systems] == ["teacher", "student", "random_ticket"]
    for system in report.systems:
        assert system.latency_ms_p50 > 0 and system.size_bytes > 0 and system.params > 0 and system.train_seconds > 0
        assert len(system.scores) == (1 if system.kind == "teacher" else 2)
    dense, student = report.systems[:2]
    facts = [read_json(finished / "models" / f"earlybert-{seed}" / "facts.json") for seed in (1, 2)]
    assert student.train_seconds == pytest.approx(np.mean([entry["train_seconds"] for entry in facts]))
    assert facts[0]["search_steps"] == 3 and facts[0]["is_settled"] and set(facts[0]["last_mask_distances"]) == {"heads", "neurons"}
    distances = read_json(finished / "models" / "earlybert-1" / "mask_distances.json")
    assert len(distances["heads"]) == len(distances["neurons"]) == 3 and distances["check_every"] == 1

    def linear(folder: str) -> int:  # an own count: matrices and biases of the layers' linear maps
        state = load_file(finished / folder / "model.safetensors")
        return sum(t.numel() for name, t in state.items() if ".layer" in name and "norm" not in name.lower())

    assert student.encoder_sparsity == pytest.approx(1 - linear("student") / linear("teacher")) and dense.encoder_sparsity == 0
    state = load_file(finished / "student" / "model.safetensors")
    assert student.params == sum(tensor.numel() for tensor in state.values())
    text = (finished / "report.md").read_text()
    assert report.notes[-1] == "4 models were made" and "- 4 models were made" in text
    assert "| encoder sparsity, % | training, s |" in text and "tickets that had settled: 2 of 2" in text
    page = (finished / "report.html").read_text()
    assert 'id="method"' in page and "encoder sparsity" in page and "What is left in each layer" in page


@pytest.mark.parametrize("is_alike", [True, False])
def test_sizes_and_costs_are_means_over_the_seeds_where_their_shapes_differ(is_alike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"1": make_encoder(), "2": make_encoder() if is_alike else make_encoder(intermediate_size=8), "3": make_encoder()}

    def model_row(run: Any, name: str, kind: str, model: Any, graph: Path, folder: Path, length: int, note: str, precision: str) -> Row:
        return Row(name, kind, None, {"params": count_params(model)[0], "macs": count_macs(model, length), "size_bytes": 10_000, "note": note})

    monkeypatch.setattr(encoder_report, "model_row", model_row)
    run = SimpleNamespace(config=SimpleNamespace(bench=SimpleNamespace(runtime="torch")))
    problem = SimpleNamespace(load=lambda folder: models[folder.name], whole_axes=axes_of(models["1"]))
    recipe = Recipe("student", "key", "name", lambda place: None)
    items = [Compressed(recipe, int(name), Path(name), {}, {}) for name in models]
    row, _ = encoder_report._row(run, problem, items, models["1"], 9)
    whole, left = (float(axes_of(models[name]).expected_params()) for name in ("1", "2"))
    assert row.facts["encoder_sparsity"] == pytest.approx((1 - left / whole) / 3)
    params, macs = ([count(model) for model in models.values()] for count in (lambda m: count_params(m)[0], lambda m: count_macs(m, 9)))
    assert row.facts["params"] == round(sum(params) / 3) and row.facts["macs"] == round(sum(macs) / 3)
    assert row.facts["size_bytes"] == 10_000 + 4 * (row.facts["params"] - params[0])
    assert row.facts["note"] == ("" if is_alike else "timed: seed 1's model; shapes differ by seed")


def test_what_is_trained_after_a_report_has_the_threads_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(*parts: Any) -> None:
        set_threads(1)
        raise Killed

    monkeypatch.setattr(encoder_report, "_systems", timed)
    (tmp_path / "scores-teacher.json").write_text("{}")
    problem = SimpleNamespace(load=lambda folder: None, is_asked=True, cache=tmp_path)
    trained = [SimpleNamespace(recipe=SimpleNamespace(key="key"), folder=None, scores={})]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(Killed):
            encoder_report.report_encoders(None, problem, trained)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_scores_are_those_of_the_saved_files(finished: Path) -> None:
    lines = (finished.parent / "validation.csv").read_text().splitlines()[1:]
    texts, labels = zip(*(line.rsplit(",", 1) for line in lines))
    for kind, folder in (("teacher", "teacher"), ("student", "student"), ("random_ticket", "models/random_ticket-1")):
        model = AutoModelForSequenceClassification.from_pretrained(finished / folder)
        tokenizer = AutoTokenizer.from_pretrained(finished / folder)
        with torch.no_grad():
            logits = model(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits
        right = [model.config.id2label[int(row.argmax())] == label for row, label in zip(logits, labels)]
        assert np.mean(right) == pytest.approx(read_report(finished).find(kind).scores[0]), kind


def test_the_ticket_alone_rebuilds_the_network_s_shape(finished: Path) -> None:
    _, problem = open_encoders(tiny_earlybert(finished.parent, seeds=[1, 2]), ABOUT)
    for folder in sorted((finished / "models").iterdir()):
        ticket = read_json(folder / "ticket.json")
        whole = problem.pretrained(ticket["seed"])
        sizes = {"heads": whole.config.heads, "neurons": whole.config.neurons}
        masks = {
            name: [torch.isin(torch.arange(size), torch.tensor(kept)).float() for size, kept in zip(sizes[name], ticket[name])]
            for name in sizes
        }
        small, saved = shrink_encoder(whole, GateValues(**masks)), problem.load(folder)
        assert {name: t.shape for name, t in small.state_dict().items()} == {name: t.shape for name, t in saved.state_dict().items()}
        assert saved.config.heads == [1, 1] and sum(saved.config.neurons) == 64 - round(0.4 * 64)


def test_the_student_is_a_hugging_face_model_and_the_verbs_take_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classify = pipeline("text-classification", str(finished / "student"))
    assert classify("the film was great")[0]["label"] in ("positive", "negative")
    (tmp_path / "texts.txt").write_text("the film was great\na dull plot\n")
    files = ["--input_file", str(tmp_path / "texts.txt"), "--output_file", str(tmp_path / "out.jsonl")]
    assert main(["predict", str(finished / "student"), *files, "--quiet"]) == 0
    labels = [json.loads(line)["prediction"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert labels == [entry["label"] for entry in classify(["the film was great", "a dull plot"])]
    assert read_json(finished / "student" / "config.json")["is_pair"] is False, "what it was trained on, which predict asks for"
    capsys.readouterr()
    assert main(["inspect", str(finished), "--output_dir", str(tmp_path / "figures")]) == 0
    told = capsys.readouterr().out
    assert "1 of 2" in told and (tmp_path / "figures" / "structure.png").is_file()
    assert main(["inspect", str(finished / "student"), "--output_dir", str(tmp_path / "alone")]) == 0
    assert main(["report", str(finished)]) == 0
    assert main(["table", str(finished), "--output_dir", str(tmp_path / "tables"), "--formats", "md"]) == 0
    assert "EarlyBERT" in capsys.readouterr().out


def test_a_finished_run_trains_nothing_again_and_adds_seeds(finished: Path) -> None:
    heard = Heard()
    before = (finished / "models" / "earlybert-1" / "model.safetensors").read_bytes()
    compress_earlybert(tiny_earlybert(finished.parent, seeds=[1, 2]), heard)
    assert not [title for title in heard.titles if "train" in title or "search" in title or "tune" in title]
    assert (finished / "models" / "earlybert-1" / "model.safetensors").read_bytes() == before
    with pytest.raises(ConfigError, match="student/ of .* is the run's first model, earlybert-1, and would be earlybert-2"):
        compress_earlybert(tiny_earlybert(finished.parent, seeds=[2, 1]), heard)


def test_killed_in_any_stage_the_same_command_ends_with_the_same_weights(finished: Path, tmp_path: Path) -> None:
    settings = {"seeds": [1], "checkpoint_seconds": 0.0, "model": str(finished.parent / "encoder"), "random_ticket": True}
    config = tiny_earlybert(tmp_path, **settings)
    for stage, step in (
        ("fine-tune the teacher", 9), ("EarlyBERT, seed 1: search", 2), ("EarlyBERT, seed 1: train", 5),
        ("random ticket, seed 1: train", 11),
    ):  # fmt: skip
        with pytest.raises(Killed):
            compress_earlybert(config, KillAt(step, stage))
    compress_earlybert(config)
    for folder in ("teacher", "student", "models/random_ticket-1"):
        whole, resumed = (load_file(root / folder / "model.safetensors") for root in (finished, tmp_path / "run"))
        assert all(torch.equal(whole[name], resumed[name]) for name in whole), folder
    assert read_report(tmp_path / "run").find("student").train_seconds is None, "the time of an interrupted training is not known"


def test_a_run_goes_on_with_its_own_settings_or_not_at_all(finished: Path) -> None:
    with pytest.raises(ConfigError, match="with other settings.*ticket"):
        compress_earlybert(tiny_earlybert(finished.parent, seeds=[1, 2], ticket=TicketConfig(head_ratio=0.1)))


def test_a_teacher_is_shared_and_continued_weights_carry_the_coefficients(finished: Path, tmp_path: Path) -> None:
    early = tiny_earlybert(
        tmp_path, teacher=str(finished / "teacher"), model=str(finished.parent / "encoder"), random_ticket=False,
        train=TrainConfig(epochs=1, learning_rate=0.0, batch_size=16, start="continue"),
    )  # fmt: skip
    run = compress_earlybert(early)
    assert not (run / "teacher").exists()
    dense, student = read_report(run).systems
    assert dense.scores == read_report(finished).systems[0].scores and dense.train_seconds > 0, "its time travels with it"
    assert student.kind == "student" and student.encoder_sparsity > 0.3
    # a learning rate of 0 leaves what the search left: weights that have moved away from the pre-trained ones
    _, problem = open_encoders(early, ABOUT)
    tables = [model.encoder.embeddings.word_embeddings.weight for model in (problem.load(run / "student"), problem.pretrained(42))]
    assert (tables[0] - tables[1]).abs().max() > 1e-4


@pytest.mark.parametrize("start", ["rewind", "continue"])
def test_what_is_left_starts_from_the_pretrained_weights_or_from_what_the_search_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """With a learning rate of 0 the trained model is its own start."""
    config = tiny_earlybert(
        tmp_path, train=TrainConfig(epochs=1, learning_rate=0.0, batch_size=16, start=start),
        ticket=TicketConfig(learning_rate=0.1, batch_size=16, head_ratio=0.5, draw="fixed", draw_step=5),  # coefficients far from 1
    )  # fmt: skip
    _, problem = open_encoders(config, ABOUT, with_teacher=False)
    fit, searched = Workplace.fit, {}

    def keep(place: Workplace, model: Any, method: Any, stage: str, **options: Any) -> list[dict[str, Any]]:
        history = fit(place, model, method, stage, **options)
        searched.setdefault(stage, (model.eval(), method))
        return history

    monkeypatch.setattr(Workplace, "fit", keep)
    trained = train_recipe(earlybert_recipes(config)[0], problem, config, 1)
    ticket, found = read_json(trained.folder / "ticket.json"), problem.load(trained.folder)
    model, method = searched["search"]
    pretrained, masks = problem.pretrained(1), {}
    for family, sizes in (("heads", pretrained.config.heads), ("neurons", pretrained.config.neurons)):
        masks[family] = [torch.isin(torch.arange(size), torch.tensor(kept)).float() for size, kept in zip(sizes, ticket[family])]
    if start == "rewind":
        expected = shrink_encoder(pretrained, GateValues(**masks)).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
        return
    with torch.no_grad():
        batch = problem.train.collate(range(8))
        gates = GateValues(**{family: [c * mask for c, mask in zip(getattr(method, family), masks[family])] for family in masks})
        expected, unweighed = (problem.forward(model, batch, gates=values).logits for values in (gates, GateValues(**masks)))
        torch.testing.assert_close(problem.forward(found, batch).logits, expected, atol=1e-5, rtol=0)
    assert (unweighed - expected).abs().max() > 1e-4, "the coefficients make a difference"


def test_models_that_cannot_be_pruned_are_refused_before_any_training(finished: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished.parent / "encoder")
    GPT2Model(GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=1, n_positions=16)).save_pretrained(tmp_path / "gpt")
    tokenizer.save_pretrained(tmp_path / "gpt")
    with pytest.raises(ModelError, match="no encoder of ours.*choices"):
        compress_earlybert(tiny_earlybert(tmp_path, model=str(tmp_path / "gpt")))
    sizes = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    other = BertForSequenceClassification(BertConfig(**sizes, id2label={0: "negative", 1: "positive"}))
    other.save_pretrained(tmp_path / "other")
    tokenizer.add_tokens(["else"])
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="another vocabulary.*choices"):
        compress_earlybert(tiny_earlybert(tmp_path, teacher=str(tmp_path / "other"), output_dir=str(tmp_path / "run2")))
    assert not (tmp_path / "run" / "work").exists() and not (tmp_path / "run2" / "models").exists()


def test_the_dense_model_s_time_is_that_of_its_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watches: list[Stopwatch] = []
    while_writing: dict[str, bool] = {}

    def new_watch() -> Stopwatch:
        watches.append(Stopwatch())
        return watches[-1]

    def listen(module: Any, name: str) -> None:
        write = getattr(module, name)

        def listening(path: Path, *rest: Any) -> None:
            if watches:
                while_writing[path.name] = watches[0]._since is not None
            write(path, *rest)

        monkeypatch.setattr(module, name, listening)

    monkeypatch.setattr(encoder_problem, "Stopwatch", new_watch)
    listen(fit, "write_atomically")
    listen(teacher_training, "write_folder")
    _, problem = open_encoders(tiny_earlybert(tmp_path, checkpoint_seconds=0.0, max_steps=2), ABOUT)
    assert while_writing == {"checkpoint.pt": False, "teacher": False}
    assert len(watches) == 1 and problem.teacher_training["seconds"] == watches[0].wall_s > 0


def test_every_seed_has_its_own_course_of_training(tmp_path: Path) -> None:
    """From the same weights: the order of the texts and dropout alone differ, and the same seed repeats itself."""
    config = tiny_earlybert(tmp_path)
    _, problem = open_encoders(config, ABOUT, with_teacher=False)
    ends = []
    for name, seed in (("first", 1), ("other", 2), ("again", 1)):
        place = Workplace(problem, config, seed, tmp_path / name, name)
        model = problem.pretrained(7)
        place.fit(model, FinetuneEncoder(place.fit_config(2, config.finetune), problem.forward, problem.loss), "train", evaluations=0)
        ends.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(ends[0], ends[2]) and (ends[0] - ends[1]).abs().max() > 1e-3


def test_a_ticket_of_a_fixed_step_has_not_failed_to_settle(tmp_path: Path) -> None:
    config = tiny_earlybert(tmp_path, max_steps=2, ticket=TicketConfig(batch_size=16, head_ratio=0.5, draw="fixed", draw_step=1))
    _, problem = open_encoders(config, ABOUT, with_teacher=False)
    trained = train_recipe(earlybert_recipes(config)[0], problem, config, 1)
    assert trained.facts["is_settled"] is None and "tickets that had settled" not in ABOUT.facts([trained])
    seen = [dataclasses.replace(trained, facts={**trained.facts, "is_settled": is_settled}) for is_settled in (True, False)]
    assert ABOUT.facts(seen)["tickets that had settled"] == "1 of 2"
    late = dataclasses.replace(config, ticket=dataclasses.replace(config.ticket, draw_step=50))
    for early_or_late, said in ((config, 0), (late, 1)):
        heard = Heard()
        train_recipe(earlybert_recipes(early_or_late)[0], dataclasses.replace(problem, folder=tmp_path / f"late{said}", progress=heard), early_or_late, 1)
        assert sum("before ticket.draw_step" in warning for warning in heard.warnings) == said


@pytest.mark.parametrize(("ticket", "max_steps", "choice"), [
    ({"check_every": 1, "window": 8}, None, "more ticket.epochs"), ({"check_every": 2, "window": 3}, 5, "a larger max_steps"),
    ({"check_every": 1, "window": 7}, None, None), ({"draw": "fixed", "draw_step": 5}, 3, None),
])  # fmt: skip
def test_a_search_too_short_for_its_detector_is_told_before_any_training(
    ticket: dict[str, Any], max_steps: int | None, choice: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch has seven steps."""
    monkeypatch.setattr(earlybert_run, "run_recipes", lambda run, problem, recipes: run.folder)
    heard = Heard()
    run = compress_earlybert(tiny_earlybert(tmp_path, ticket=TicketConfig(batch_size=16, **ticket), max_steps=max_steps), heard)
    said = [text for text in heard.warnings if text.startswith("ticket.window")]
    assert len(said) == (choice is not None) and all(f"choices: {choice}, a smaller ticket.check_every" in text for text in said)
    assert not (run / "teacher").exists()


@pytest.mark.parametrize(("changes", "says"), [
    ({}, "Heads and neurons are ranked by coefficients that learn beside the weights, until the ranking has settled; the rest is cut away, and the"
     " smaller network is trained from the pre-trained weights. The random ticket leaves as many, at random."),
    ({"ticket": TicketConfig(draw="fixed", head_ratio=0.0), "train": TrainConfig(start="continue"), "random_ticket": False}, "Neurons are ranked by"
     " coefficients that learn beside the weights, up to a fixed step; the rest is cut away, and the smaller network is trained on, from the weights"
     " that the search left."),
])  # fmt: skip
def test_what_is_said_of_the_method_is_what_the_settings_make_of_it(
    changes: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(earlybert_run, "run_recipes", lambda run, problem, recipes: run.about.summary)  # which the report shows
    assert compress_earlybert(tiny_earlybert(tmp_path, **changes)) == says


def test_side_by_side_trainings_end_as_alone_and_count_their_own_time(finished: Path, tmp_path: Path) -> None:
    config = tiny_earlybert(tmp_path, model=str(finished.parent / "encoder"))
    _, problem = open_encoders(config, ABOUT, with_teacher=False)
    assert not (tmp_path / "run" / "teacher").exists()
    recipes = [dense_recipe(config), *earlybert_recipes(config)]
    trained = take_turns({r.key: lambda tick, r=r: train_recipe(r, problem, config, 1, tick) for r in recipes}, 4)
    for key in ("earlybert", "random_ticket"):
        alone, beside = (load_file(root / "models" / f"{key}-1" / "model.safetensors") for root in (finished, tmp_path / "run"))
        assert all(torch.equal(alone[name], beside[name]) for name in alone), key
    assert all(item.facts["train_seconds"] > 0 for item in trained.values())
    assert isinstance(problem.load(trained["dense"].folder), EncoderForSequenceClassification)
    assert trained["dense"].scores["accuracy"] >= 0.5


def test_a_reader_of_questions_is_cut_down_too(tmp_path: Path) -> None:
    config = tiny_earlybert(tmp_path, **question_settings(tmp_path), random_ticket=False)
    run = compress_earlybert(config)
    assert AutoTokenizer.from_pretrained(run / "teacher").model_max_length == config.question.max_seq_length != config.max_seq_length
    report = read_report(compress_earlybert(config))  # its dense model, as it was saved, reads the same windows
    assert report.metrics == ["f1", "exact_match"] and [system.kind for system in report.systems] == ["teacher", "student"]
    assert report.systems[1].encoder_sparsity > 0.3 and report.systems[1].latency_ms_p50 > 0
    model = AutoModelForQuestionAnswering.from_pretrained(run / "student")
    assert type(model).__name__ == "EncoderForQuestionAnswering" and (run / "figures" / "structure.svg").is_file()
    assert "question-answering" in (run / "student" / "README.md").read_text().split("---")[1]
    for path in (run, run / "student"):
        with pytest.raises(ConfigError, match="its model answers questions, and quantize scores labels alone; choices: .*prune-ofa"):
            quantize(path)


def test_a_model_is_served_at_the_length_it_was_scored_at(finished: Path) -> None:
    """Texts of 30 words, of which it was taught to read 16 word pieces; its base reads 32."""
    config = tiny_earlybert(finished.parent, seeds=[1, 2])
    problem = load_problem(config, load_task(config, seed=config.seed), finished, Accelerator(cpu=True), Progress())
    texts = [" ".join([row["text"]] * 10)[:200] for row in rows(6, 5)]
    store, cut = tokenize(Split(texts), problem.tokenizer, 16, cache=finished.parent / "long", name="long")
    assert cut == len(texts) and problem.tokenizer.model_max_length == 16, "the dense model is served so, too"
    expected = problem.logits(problem.load(finished / "student"), Examples(store, problem.tokenizer.pad_token_id))
    served, _ = TextClassifier(finished / "student", runtime="torch", threads=1).logits(texts)
    np.testing.assert_allclose(served, expected, atol=1e-5)


@pytest.mark.parametrize(("examples", "batch_size"), [(120, 16), (100, 32), (7, 16), (64, 64), (33, 32)])
def test_epochs_are_counted_alike_by_all(examples: int, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many batches as the sampler makes of an epoch, times three."""
    expected = 3 * BatchSampler(np.full(examples, 5), batch_size, 0).batches_per_epoch
    settings = EarlyBertConfig(finetune=FinetuneConfig(epochs=3, batch_size=batch_size))
    taught = []
    monkeypatch.setattr(teacher_training, "fit", lambda model, method, splits, config, **options: taught.append(config.steps))
    teacher, main = SimpleNamespace(model=None, logits=None), SimpleNamespace(is_main_process=False, wait_for_everyone=lambda: None)
    finetune(settings, SimpleNamespace(problem_type="single_label"), teacher, range(examples), None, Path(), main, Progress())
    problem = object.__new__(EncoderProblem)
    problem.train = range(examples)
    cofi = CofiConfig(finetune_epochs=3, batch_size=batch_size, min_prune_steps=0)
    assert [taught[0], problem.steps(3, batch_size), cofi.steps(examples)["finetune"]] == [expected] * 3


def test_the_loss_is_the_mean_of_torch_s_own() -> None:
    problem, logits = object.__new__(EncoderProblem), torch.randn(5, 3)
    one, many, value = torch.tensor([0, 2, 1, 1, 0]), torch.randint(0, 2, (5, 3)).float(), torch.randn(5)
    for problem_type, scored, labels, expected in (
        ("single_label", logits, one, F.cross_entropy(logits, one)),
        ("multi_label", logits, many, F.binary_cross_entropy_with_logits(logits, many)),
        ("regression", logits[:, :1], value, F.mse_loss(logits[:, 0], value)),
    ):  # fmt: skip
        problem.task = SimpleNamespace(problem_type=problem_type)
        assert problem.loss(SimpleNamespace(logits=scored), {"labels": labels}).item() == pytest.approx(expected.item()), problem_type


def test_recipes_without_a_main_one_are_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="recipes"):
        run_encoders(tiny_earlybert(tmp_path), earlybert_recipes(tiny_earlybert(tmp_path))[1:], ABOUT)
    assert adasearch.__version__


def test_a_dense_model_with_its_labels_in_another_order_is_put_in_the_tasks(tmp_path: Path) -> None:
    """What is cut down from it, and what it teaches, then speaks of the task's labels; a note says so."""
    config = tiny_earlybert(tmp_path, teacher=str(tmp_path / "given"))
    names = {"id2label": {0: "positive", 1: "negative"}, "label2id": {"positive": 0, "negative": 1}}
    AutoModelForSequenceClassification.from_pretrained(config.model, **names, initializer_range=1.0).save_pretrained(tmp_path / "given")
    AutoTokenizer.from_pretrained(config.model).save_pretrained(tmp_path / "given")
    progress = Heard()
    problem = load_problem(config, load_task(config, seed=config.seed), tmp_path / "run", Accelerator(cpu=True), progress)
    given = AutoModelForSequenceClassification.from_pretrained(tmp_path / "given")
    old_NC, teacher_NC, dense_NC = (problem.logits(model, problem.held_out) for model in (given, problem.teacher.model, problem.dense()))
    assert np.allclose(teacher_NC, old_NC[:, ::-1], atol=1e-5) and np.allclose(dense_NC, old_NC[:, ::-1], atol=1e-4)
    assert problem.dense().config.id2label == {0: "negative", 1: "positive"} and abs(old_NC[:, 0] - old_NC[:, 1]).max() > 1e-3
    (note,) = [note for note in problem.notes if "its outputs were put in the task's: negative, positive" in note]
    assert note in progress.messages
