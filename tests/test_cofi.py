"""CoFi: what is saved against what is there, the lesson's terms, and whole tiny trainings: target met, cut exactly, resumed."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from hearing import Heard, KillAt, Killed
from tiny_encoder import HEADS, HIDDEN, LAYERS, NEURONS, batch_for, every_gate, forward, make_encoder, make_model
from tiny_encoder_run import tiny_settings
from tiny_task import rows, write_csv
from tokenizers import normalizers
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from adasearch import cofi_run, encoder_training
from adasearch import fit as fit_module
from adasearch.budget import Budget, fill_budget, fill_neurons
from adasearch.cofi_budget import budget_for, open_table
from adasearch.cofi_config import CofiConfig, LatencyTargetConfig
from adasearch.cofi_checks import check_chain
from adasearch.cofi_run import Best, cofi_recipes, compress_cofi, train_cofi
from adasearch.config import FinetuneConfig, FitConfig
from adasearch.encoder import axes_of, from_hugging_face
from adasearch.encoder_latency import PARTS, EncoderLatency, EncoderLatencyTable, EncoderShape
from adasearch.encoder_latency_bench import shape_of
from adasearch.encoder_problem import EncoderProblem, load_problem, train_dense
from adasearch.encoder_training import Outcome, Recipe, Workplace, train_recipe
from adasearch.errors import ConfigError
from adasearch.files import read_json, write_folder, write_json
from adasearch.fit import clip_gradients, make_optimizer, set_learning_rate
from adasearch.hard_concrete import StructureGates
from adasearch.lagrangian import ramp
from adasearch.latency_bench import deployment_here
from adasearch.layer_matching import LayerDistillation
from adasearch.methods.cofi import CofiPrune, Guide, alive_layers, neuron_importance
from adasearch.progress import Progress
from adasearch.shrink_encoder import shrink_encoder
from adasearch.structure import Axes, GateValues
from adasearch.fit_config import steps_of
from adasearch.task_config import TransferConfig
from adasearch.tasks import load_task
from adasearch.tokens import BatchSampler

SHAPE = EncoderShape(HIDDEN, HIDDEN // HEADS, (HEADS,) * LAYERS, (NEURONS,) * LAYERS)
LATENCY = EncoderLatency(SHAPE, tuple(0.1 + 0.01 * n for n in range(len(PARTS))))


def pruning(task: str = "single_label", **changes: Any) -> tuple[CofiPrune, Any, dict[str, Any]]:
    """A method, its student (another than the teacher) and a batch."""
    config = CofiConfig(**{"alive": "either", **changes})
    torch.manual_seed(1)
    teacher, student = make_model(task=task), make_encoder(task=task, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    guide = Guide(teacher, forward, lambda output, batch: output.logits.sum() * 0)
    layers = LayerDistillation(HIDDEN, HIDDEN, LAYERS, LAYERS, [0, 1])
    method = CofiPrune(config, FitConfig(steps=10), "linear", task, guide, layers, Budget(axes_of(student), 0.6), 4)
    method.attach(student)
    return method, student, batch_for(teacher, task)


@pytest.mark.parametrize("latency", [None, LATENCY], ids=["parameters", "time"])
def test_what_certain_gates_save_is_what_the_cut_model_lacks(latency: EncoderLatency | None) -> None:
    model = make_encoder()
    budget = Budget(axes_of(model), 0.5, latency)
    for name, values in every_gate(model).items():
        cut = axes_of(shrink_encoder(model, values))
        if latency is None:
            expected = 1 - float(cut.expected_params() / budget.axes.expected_params())
        else:
            expected = 1 - float(latency.predict(cut.expected_sizes()) / latency.predict(budget.axes.expected_sizes()))
        assert float(budget.saved(values.kept())) == pytest.approx(expected, abs=1e-6), name


def test_a_target_in_milliseconds_is_a_share_of_the_dense_time() -> None:
    axes = axes_of(make_encoder())
    whole = float(LATENCY.predict(axes.expected_sizes()))
    assert Budget.of_time(axes, 0.3 * whole, LATENCY).target == pytest.approx(0.7)


def test_expected_time_rises_with_every_gate() -> None:
    method, student, _ = pruning()
    budget = Budget(axes_of(student), 0.5, LATENCY)
    with torch.no_grad():
        for gate in method.gates.gates():
            gate.log_alpha_S.uniform_(-1, 1)
    budget.milliseconds(method.gates.open_probability()).backward()
    assert all((gate.log_alpha_S.grad > 0).all() for gate in method.gates.gates())


@pytest.mark.parametrize("target", [0.05, 0.3, 0.6, 0.8])
@pytest.mark.parametrize("closed", [False, True], ids=["all sublayers", "one closed"])
def test_neurons_fill_the_budget_like_brute_force(target: float, closed: bool) -> None:
    model = make_encoder()
    budget = Budget(axes_of(model), target)
    gates = StructureGates(budget.axes)
    with torch.no_grad():
        for gate in gates.gates():
            gate.log_alpha_S.uniform_(-1.0, 3.0)
        gates.mha.log_alpha_S.fill_(2.0)
        gates.ffn.log_alpha_S.copy_(torch.tensor([2.0, -2.0 if closed else 2.0]))
    before = gates.deterministic()
    after = fill_neurons(before, gates, budget, target)
    for name in ("mha_N", "ffn_N", "hidden_D"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    assert all(torch.equal(one, other) for one, other in zip(before.heads, after.heads))
    found = float(budget.saved(after.kept()))

    # by hand: every neuron of an open sublayer but its strongest, from the weakest on, one more at a time
    open_layers = [0] if closed else [0, 1]
    ranked = sorted(
        (gates.neurons[n].log_alpha_S[f].item(), n, f) for n in open_layers for f in range(NEURONS)
        if f != int(gates.neurons[n].log_alpha_S.argmax())
    )
    savings = []
    for count in range(len(ranked) + 1):
        kept = [torch.ones(NEURONS) for _ in range(LAYERS)]
        for _, n, f in ranked[:count]:
            kept[n][f] = 0
        values = GateValues(before.mha_N, before.ffn_N, before.heads, kept, before.hidden_D)
        savings.append(float(budget.saved(values.kept())))
    enough = [saved for saved in savings if saved >= target]
    assert found == pytest.approx(min(enough) if enough else max(savings))
    for n in open_layers:  # a neuron that is kept has its own soft value, an opened one that was mostly closed is there whole
        soft, is_kept, was_kept = (0.8 * gates.neurons[n].log_alpha_S / (2 / 3)).sigmoid(), after.neurons[n] != 0, before.neurons[n] != 0
        expected = torch.where(was_kept | (gates.neurons[n].open_probability() >= 0.5), soft, torch.ones_like(soft))
        assert torch.equal(after.neurons[n][is_kept], expected[is_kept])


def test_what_gates_closed_too_much_is_opened_whole_the_most_important_first() -> None:
    """Gates at their lower clamp are all equally certain: neither a layer's place nor a value near 0 may decide."""
    model = make_encoder(intermediate_size=50)
    budget = Budget(axes_of(model), 0.5)
    gates = StructureGates(budget.axes)
    with torch.no_grad():
        for gate in gates.neurons:
            gate.log_alpha_S.fill_(math.log(0.01))
            gate.log_alpha_S[0] = 4.0
        for layer in model.encoder.layers:
            layer.ffn.input.weight.mul_(torch.linspace(0.5, 2.0, 50)[torch.randperm(50), None])
    before = gates.deterministic()
    after = fill_budget(gates, budget, 0.5, neuron_importance(model))
    weights = [layer.ffn.input.weight.norm(dim=1) * layer.ffn.output.weight.norm(dim=0) for layer in model.encoder.layers]
    opened = [(new != 0) & (old == 0) for new, old in zip(after.neurons, before.neurons)]
    assert all(0 < int(layer.sum()) < 40 for layer in opened), "both layers have some, neither all"
    assert all((new[layer] == 1).all() for new, layer in zip(after.neurons, opened))
    closed = torch.cat([weight[new == 0] for weight, new in zip(weights, after.neurons)])
    assert torch.cat([weight[layer] for weight, layer in zip(weights, opened)]).min() >= closed.max()


def certain_gates(model: Any, **levels: float) -> StructureGates:
    """Gates at their upper clamp, but for those of the families named."""
    gates = StructureGates(axes_of(model))
    with torch.no_grad():
        for gate in gates.gates():
            gate.log_alpha_S.fill_(math.log(100))
        for name, level in levels.items():
            for gate in getattr(gates, name):
                gate.log_alpha_S.fill_(level)
    return gates


@pytest.mark.parametrize("function", [fill_budget, fill_neurons])
def test_of_equally_certain_parts_the_finest_and_least_important_are_closed(function: Any) -> None:
    """Gates at their upper clamp are all equally certain: neither a family's nor a layer's place may decide."""
    model = make_encoder(intermediate_size=50)
    gates, weights = certain_gates(model), [torch.rand(50) + 1, torch.rand(50) + 1]
    budget, before = Budget(axes_of(model), 0.3), gates.deterministic()
    args = (gates, budget, 0.3, weights)
    after = function(*args) if function is fill_budget else function(before, *args)
    for name in ("mha_N", "ffn_N", "heads", "hidden_D"):
        assert all(torch.equal(*pair) for pair in zip(getattr(before, name), getattr(after, name))), name
    closed = [neurons == 0 for neurons in after.neurons]
    assert all(0 < int(layer.sum()) < 50 for layer in closed), "both layers lose some, neither all"
    goes, stays = (torch.cat([weight[mask == is_closed] for weight, mask in zip(weights, closed)]) for is_closed in (True, False))
    assert goes.max() < stays.min() and float(budget.saved(after.kept())) == pytest.approx(0.3, abs=0.01)


def test_no_layer_loses_its_last_neuron_through_neurons_alone() -> None:
    """The first layer's are all less important than the second's, and equally certain; its own gate is open."""
    model = make_encoder(intermediate_size=50)
    gates, weights = certain_gates(model, neurons=1.0), [torch.rand(50), torch.rand(50) + 1]
    before = gates.deterministic()
    without = dataclasses.replace(before, neurons=[torch.zeros(50), before.neurons[1].clone()])
    target = float(Budget(axes_of(model), 0.5).saved(without.kept())) + 0.05
    after = fill_budget(gates, Budget(axes_of(model), target), target, weights)
    assert int((after.neurons[0] != 0).sum()) == 1 and after.neurons[0][weights[0].argmax()] != 0
    assert after.kept().ffn_N.tolist() == [1, 1]


def test_the_neuron_that_stays_is_one_that_is_there() -> None:
    """Of equal gates the deterministic values close some by their places: what stays must not be one of those."""
    model = make_encoder()
    gates = certain_gates(model, neurons=0.0)
    before = gates.deterministic()
    assert all(neurons[0] == 0 and neurons.any() for neurons in before.neurons)
    after = fill_neurons(before, gates, Budget(axes_of(model), 0.99), 0.99, [torch.arange(NEURONS).flip(0).float()] * LAYERS)
    assert [int((neurons != 0).sum()) for neurons in after.neurons] == [1] * LAYERS


def test_the_last_hidden_dimension_stays_whatever_is_short_of_the_target() -> None:
    """Of equally certain gates hidden dimensions close before heads, and of a call's time all of them may save too little."""
    model = make_encoder(intermediate_size=50)
    most_of_it = {"head": 0.5, "head x hidden": 0.05, "neuron x hidden": 0.001}
    latency = EncoderLatency(SHAPE, tuple(most_of_it.get(part, 0.0) for part in PARTS))
    values = fill_budget(certain_gates(model), Budget(axes_of(model), 0.5, latency), 0.5)
    assert int((values.hidden_D != 0).sum()) == 1
    assert shrink_encoder(model, values).config.hidden_size == 1


def test_a_doubtful_sublayer_goes_before_neurons_that_are_certain() -> None:
    model = make_encoder()
    gates = StructureGates(axes_of(model))
    with torch.no_grad():
        for gate in gates.gates():
            gate.log_alpha_S.fill_(4.0)
        gates.mha.log_alpha_S[0] = -0.5  # open a little more often than not
    before = gates.deterministic()
    without = dataclasses.replace(before, mha_N=torch.tensor([0.0, 1.0]))
    target = float(Budget(axes_of(model), 0.5).saved(without.kept()))
    after = fill_budget(gates, Budget(axes_of(model), target), target - 1e-6)
    assert before.mha_N[0] != 0 and after.mha_N[0] == 0
    assert torch.equal(after.hidden_D, before.hidden_D), "nothing that is certain changes its value"
    assert all(torch.equal(old, new) for old, new in zip(before.neurons, after.neurons))


@pytest.mark.parametrize("level", [-3.0, 0.0, 3.0])
@pytest.mark.parametrize("target", [0.1, 0.4, 0.7, 0.95])
def test_whatever_the_gates_say_the_budget_is_met(level: float, target: float) -> None:
    model = make_encoder(intermediate_size=200)  # as in real models, neurons make up most of it
    budget = Budget(axes_of(model), target)
    gates = StructureGates(budget.axes)
    with torch.no_grad():
        for gate in gates.gates():
            gate.log_alpha_S.copy_(level + torch.randn(gate.size))
        gates.ffn.log_alpha_S += 2
    before = [gate.log_alpha_S.clone() for gate in gates.gates()]
    values = fill_budget(gates, budget, target)
    neuron = 2 * HIDDEN / float(budget.axes.expected_params())
    assert abs(float(budget.saved(values.kept())) - target) <= max(0.005, neuron)
    assert shrink_encoder(model, values)  # something is left
    assert all(torch.equal(one, gate.log_alpha_S) for one, gate in zip(before, gates.gates())), "the gates stay as they are"


def test_alive_layers_are_those_with_open_sublayers() -> None:
    model = make_encoder()
    values = axes_of(model).ones()
    values.ffn_N = torch.tensor([0.0, 1.0])
    values.heads[1] = torch.zeros(HEADS)
    assert alive_layers(model, values, "ffn") == [False, True] and alive_layers(model, values, "either") == [True, True]
    values.mha_N = torch.zeros(LAYERS)
    assert alive_layers(model, values, "either") == [False, True]
    cut = shrink_encoder(model, values)
    assert alive_layers(cut, None, "ffn") == [False, True] and alive_layers(cut, None, "either") == [False, True]
    assert alive_layers(model, None, "ffn") == [True, True]


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression", "question_answering"])
def test_every_kind_of_task_has_a_lesson_that_is_zero_for_the_teacher_itself(task: str) -> None:
    method, student, batch = pruning(task)
    terms = method.lesson(student, batch, None)
    assert set(terms) == {"prediction", "layers"} and all(term.item() > 1e-4 for term in terms.values())
    terms["prediction"].backward()
    head = student.qa_outputs if task == "question_answering" else student.head.classifier
    assert head.weight.grad.abs().sum() > 0, "one logit, too, is taught (a softmax of it would say nothing)"
    same = method.lesson(from_hugging_face(method.guide.model), batch, None)
    assert all(term.item() == pytest.approx(0, abs=1e-6) for term in same.values())


@torch.no_grad()
def test_the_lesson_s_terms_are_those_written_out_each_times_its_own_weight() -> None:
    method, student, batch = pruning(prediction_weight=0.3, layer_weight=0.05, gold_weight=0.7, temperature=3.0)
    method._guide = (dataclasses.replace(method.guide, loss=lambda output, batch: F.cross_entropy(output.logits, batch["labels"])),)
    torch.nn.init.normal_(method.layers.projection.weight, std=0.3)
    torch.nn.init.normal_(method.layers.projection.bias)
    own, target = (forward(model, batch, output_hidden_states=True) for model in (student.eval(), method.guide.model))
    p, q = ((output.logits / 3).softmax(-1) for output in (target, own))
    mask, layers = batch["attention_mask"].bool(), method.layers.projection
    mapped = [F.linear(states, layers.weight, layers.bias)[mask] for states in own.hidden_states[1:]]
    nearest = [min(F.mse_loss(states, taught[mask]).item() for states in mapped) for taught in target.hidden_states[1:]]
    expected = {
        "prediction": 0.3 * 9 * (p * (p / q).log()).sum(-1).mean().item(),  # the teacher's p first: KL is not symmetric
        "layers": 0.05 * sum(nearest),
        "ce": 0.7 * F.cross_entropy(own.logits, batch["labels"]).item(),
    }
    assert {name: term.item() for name, term in method.lesson(student, batch, None).items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("changes", "asked", "has_states"), [
    ({}, 1, True), ({"prediction_weight": 0.0}, 1, True), ({"layer_weight": 0.0}, 1, False),
    ({"layer_weight": 0.0, "prediction_weight": 0.0, "gold_weight": 1.0}, 0, False),
])  # fmt: skip
def test_a_lesson_computes_what_its_terms_need(changes: dict[str, float], asked: int, has_states: bool) -> None:
    method, student, batch = pruning(**changes)
    calls: list[tuple[Any, bool]] = []

    def watched(model: Any, batch: dict[str, Any], **inputs: Any) -> Any:
        calls.append((model, inputs["output_hidden_states"]))
        return forward(model, batch, **inputs)

    method._guide = (dataclasses.replace(method.guide, forward=watched),)
    method.lesson(student, batch, method.gates())
    assert [model for model, _ in calls] == [student, method.guide.model][: 1 + asked] and {states for _, states in calls} == {has_states}


def test_the_teacher_is_no_part_of_what_learns_or_is_saved() -> None:
    method, student, batch = pruning()
    assert not any(parameter.requires_grad for parameter in method.guide.model.parameters())
    names = set(method.state_dict())
    assert {name.split(".")[0] for name in names} == {"layers", "gates", "lagrangian"}
    groups = {group.name: group for group in method.groups(student)}
    learning = {id(p) for part in groups["weights"].params for p in part["params"]}
    assert not any(id(parameter) in learning for parameter in student.encoder.embeddings.parameters()), "as published"
    assert id(method.layers.projection.weight) in learning
    counted = sum(len(part["params"]) for group in groups.values() for part in group.params)
    whole = sum(p.requires_grad for module in (student, method) for p in module.parameters())
    assert counted == whole, "each parameter in one group"
    assert groups["multipliers"].settings == {"maximize": True}
    assert all(part["weight_decay"] == 0 for name in ("gates", "multipliers") for part in groups[name].params)
    method.finish(student)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_the_weights_alone_are_clipped() -> None:
    method, student, batch = pruning()
    sum(method.loss(student, batch).values()).backward()
    for group in method.groups(student):
        parameters = [tensor for part in group.params for tensor in part["params"]]
        before = torch.nn.utils.get_total_norm([tensor.grad for tensor in parameters if tensor.grad is not None])
        clip_gradients(make_optimizer(group, torch.device("cpu")), group, 1e-9)
        after = torch.nn.utils.get_total_norm([tensor.grad for tensor in parameters if tensor.grad is not None])
        assert before > 1e-4 and (after < 1e-8 if group.name == "weights" else after == before), group.name


def missed_target(quadratic_rate: float) -> float:
    """How far the gates are from a target that has risen, at most, while a noisy task pulls them open."""
    method, student, _ = pruning(quadratic_rate=quadratic_rate, gate_learning_rate=0.05)
    groups = [group for group in method.groups(student) if group.name != "weights"]
    optimizers = [(group, make_optimizer(group, torch.device("cpu"))) for group in groups]
    method.warmup_steps, missed = 60, []
    for step in range(180):
        method.begin_step(student, step, 180)
        for _, optimizer in optimizers:
            optimizer.zero_grad()
        method.lagrangian(method.budget.saved(method.gates.open_probability()) - method.target).backward()
        for gate in method.gates.gates():
            gate.log_alpha_S.grad += 0.02 * (torch.randn(gate.size) - 0.3)
        for group, optimizer in optimizers:
            set_learning_rate(optimizer, group, step, method.config)
            optimizer.step()
        method.after_step(student, step)
        missed.append(abs(method.expected_saved() - method.target))
    return max(missed[120:])


def test_a_fast_quadratic_multiplier_holds_the_target_that_a_slow_one_swings_around() -> None:
    slow, fast = missed_target(1.0), missed_target(50.0)
    assert fast < 0.02 and slow > 3 * fast, (slow, fast)


def test_a_step_raises_what_is_saved_while_it_is_short_of_the_target() -> None:
    method, student, batch = pruning()
    optimizers = {
        group.name: group.optimizer(group.params, lr=0.2, **group.settings) for group in method.groups(student) if group.name != "weights"
    }
    with torch.no_grad():
        for gate in method.gates.gates():
            gate.log_alpha_S.uniform_(0.5, 1.5)  # within reach of a few steps
    before = method.expected_saved()
    for step in range(6, 26):  # past the ramp
        method.begin_step(student, step, 30)
        sum(method.loss(student, batch).values()).backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        method.after_step(student, step)
    assert method.target == 0.6 and method.lagrangian.linear < 0 < method.lagrangian.quadratic
    assert method.expected_saved() > before + 0.05
    measured = method.measures(student)
    assert measured["expected_saved"] == pytest.approx(method.expected_saved()) and set(measured["open"]) == {
        "mha_N", "ffn_N", "heads", "neurons", "hidden_D",
    }  # fmt: skip


def test_a_draw_is_the_same_for_the_lesson_as_the_gates_say() -> None:
    """The student under gates is what the lesson sees: with all gates frozen open it is the student itself."""
    method, student, batch = pruning()
    for gate in method.gates.gates():
        gate.is_frozen = True
    student.eval()
    with_gates, without = method.lesson(student, batch, method.gates()), method.lesson(student, batch, None)
    assert with_gates["layers"].item() == pytest.approx(without["layers"].item(), rel=1e-5)


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> EncoderProblem:
    """The tiny task with a dense model of it."""
    folder = tmp_path_factory.mktemp("cofi")
    config = settings(folder)
    found = load_problem(config, load_task(config), folder / "run", Accelerator(cpu=True), Progress())
    train_dense(config, found)
    return found


def settings(folder: Path, **changes: Any) -> CofiConfig:
    made = {
        "batch_size": 16, "finetune": FinetuneConfig(epochs=1, learning_rate=1e-3, batch_size=16), "learning_rate": 1e-3,
        "gate_learning_rate": 0.3, "prefinetune_epochs": 1.0, "warmup_epochs": 1.0, "prune_epochs": 6.0, "finetune_epochs": 1.0,
        "min_prune_steps": 0, "evaluations": 4, "target_sparsity": [0.6],
    }  # fmt: skip
    model = folder / "wide"
    if not model.exists():  # as in real models, neurons make up most of it
        shared = tiny_settings(folder)
        AutoTokenizer.from_pretrained(shared["model"]).save_pretrained(model)
        torch.manual_seed(0)
        BertModel(BertConfig.from_pretrained(shared["model"], intermediate_size=200, num_attention_heads=4)).save_pretrained(model)
    made["model"] = str(model)
    config = CofiConfig(**tiny_settings(folder, **{**made, **changes}))
    config.check()
    return config


def train(problem: EncoderProblem, config: CofiConfig, folder: Path, progress: Progress | None = None) -> Outcome:
    own = dataclasses.replace(problem, folder=folder, progress=progress or Progress())
    place = Workplace(own, config, 5, folder / "work", "tiny")
    place.folder.mkdir(parents=True, exist_ok=True)
    kind, target = config.targets[0]
    return train_cofi(config, kind, target, place)


@pytest.mark.parametrize("target", [0.5, 0.8])
def test_a_training_reaches_its_target_and_is_cut_exactly(problem: EncoderProblem, tmp_path: Path, target: float) -> None:
    config = settings(tmp_path, target_sparsity=[target], finetune_epochs=0.0)
    outcome = train(problem, config, tmp_path)
    whole, left = (float(axes_of(model).expected_params()) for model in (problem.pretrained(5), outcome.model))
    assert 1 - left / whole == pytest.approx(outcome.facts["sparsity"], abs=1e-6), "what is said is what is there"
    neuron = 2 * 16 / whole
    assert abs(outcome.facts["sparsity"] - target) < max(0.005, neuron), "within half a point, or a neuron where that is more"
    assert outcome.facts["left"]["neurons"] == outcome.model.config.neurons
    assert outcome.stages == ("prune",)


def test_a_kill_in_any_phase_changes_nothing(problem: EncoderProblem, tmp_path: Path) -> None:
    config = settings(tmp_path, checkpoint_seconds=0.02, prune_epochs=3.0, evaluations=2)
    whole = train(problem, config, tmp_path / "whole")
    for phase, at in (("prefinetune", 4), ("prune", 5), ("prune", 16), ("finetune", 5)):
        folder = tmp_path / f"{phase}-{at}"
        with pytest.raises(Killed):
            train(problem, config, folder, KillAt(at, f": {phase}"))
        resumed = train(problem, config, folder)
        ours, theirs = whole.model.state_dict(), resumed.model.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours), (phase, at)
        kept = {key: value for key, value in whole.facts.items() if "seconds" not in key}
        assert {key: value for key, value in resumed.facts.items() if "seconds" not in key} == kept


@pytest.mark.parametrize(("metric", "scores", "best"), [
    ("accuracy", (0.5, 0.8, 0.6), 0.8), ("mse", (0.5, 0.2, 0.6), 0.2), ("exact_match", (0.5, 0.8, 0.6), 0.8),
])  # fmt: skip
def test_the_best_that_was_offered_is_kept_whatever_came_after(tmp_path: Path, metric: str, scores: tuple[float, ...], best: float) -> None:
    kept = Best(SimpleNamespace(folder=tmp_path, problem=SimpleNamespace(task=SimpleNamespace(metric=metric))), "phase")
    assert kept.take() is None
    for score in scores:
        model, layers = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        torch.nn.init.constant_(model.weight, score)
        torch.nn.init.constant_(layers.weight, -score)
        kept.offer({metric: score, "loss": -score}, model, layers=layers.state_dict(), told=str(score))
    found = kept.take()
    assert found["validation"] == {metric: best, "loss": -best} and found["told"] == str(best)
    assert (found["model"]["weight"].item(), found["layers"]["weight"].item()) == pytest.approx((best, -best))


def test_the_model_that_is_kept_is_read_once_and_only_by_who_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = SimpleNamespace(folder=tmp_path, problem=SimpleNamespace(task=SimpleNamespace(metric="accuracy")))
    read, load, model = [], cofi_run._load, torch.nn.Linear(1, 1)
    monkeypatch.setattr(cofi_run, "_load", lambda path: read.append(path) or load(path))
    first = Best(place, "phase")
    for score, is_near in ((0.7, True), (0.9, False), (0.6, True)):
        first.offer({"accuracy": score}, model, is_near=is_near)
    assert not read
    again = Best(place, "phase")
    for score, is_near in ((0.6, True), (0.95, False), (0.65, True)):
        again.offer({"accuracy": score}, model, is_near=is_near)
    assert len(read) == 1 and again.take()["validation"] == {"accuracy": 0.7}
    again.offer({"accuracy": 0.8}, model)
    assert again.take()["validation"] == {"accuracy": 0.8}


def test_each_phase_hands_on_its_best_evaluation(problem: EncoderProblem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores peak in the middle, where neither the first model is, nor the last, nor the one with the worst score."""
    config = settings(tmp_path, prune_epochs=1.0, warmup_epochs=0.2, sparsity_epsilon=1.0, families=["heads", "neurons"])
    listener, offer, peak = Heard(), Best.offer, 2
    scored: dict[str, list[dict[str, torch.Tensor]]] = {"prefinetune": [], "prune": [], "finetune": []}
    maps: dict[str, dict[str, torch.Tensor]] = {}  # between the layers, at the peak

    def copy_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def scores(self: EncoderProblem, model: torch.nn.Module, examples: Any) -> dict[str, float]:
        seen = scored[listener.titles[-1].rpartition(": ")[2]]
        seen.append(copy_of(model))
        return {self.task.metric: 1 / (1 + abs(len(seen) - 1 - peak))}

    def offered(self: Best, scores: dict[str, float], model: torch.nn.Module, **facts: Any) -> None:
        if scores[self.metric] == 1 and "layers" in facts:
            maps[self.path.parent.name] = {name: tensor.clone() for name, tensor in facts["layers"].items()}
        offer(self, scores, model, **facts)

    def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

    monkeypatch.setattr(EncoderProblem, "scores", scores)
    monkeypatch.setattr(Best, "offer", offered)
    outcome = train(problem, config, tmp_path, listener)
    for phase in ("prune", "finetune"):
        assert len(scored[phase]) > peak + 1 and not same(scored[phase][peak], scored[phase][-1]), phase
    pruned = problem.load(tmp_path / "work" / "prune-model")
    assert same(pruned.state_dict(), scored["prune"][peak]) and same(outcome.model.state_dict(), scored["finetune"][peak])
    assert same(torch.load(tmp_path / "work" / "layers.pt", weights_only=True), maps["prune"]), "the map of that moment goes on"
    assert outcome.facts["validation_after_prune"] == outcome.facts["validation"] == {problem.task.metric: 1.0}


def test_the_best_model_stays_until_its_stage_is_kept(
    problem: EncoderProblem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tmp_path, prune_epochs=1.0, warmup_epochs=0.5, sparsity_epsilon=1.0)
    unsaved = ["prune-model", "finetune-model"]

    def killed_once(path: Path, write: Any) -> None:
        if path.name in unsaved:
            unsaved.remove(path.name)
            raise Killed
        write_folder(path, write)

    monkeypatch.setattr(encoder_training, "write_folder", killed_once)
    for phase in ("prune", "finetune"):
        with pytest.raises(Killed):
            train(problem, config, tmp_path)
        assert (tmp_path / "work" / phase / "best.pt").exists(), phase
    train(problem, config, tmp_path)
    assert not list(tmp_path.rglob("best.pt"))


def test_targets_of_a_seed_share_the_prefinetuned_student(problem: EncoderProblem, tmp_path: Path) -> None:
    config = settings(tmp_path, target_sparsity=[0.5, 0.8], finetune_epochs=0.0, prune_epochs=0.5, warmup_epochs=0.2)
    own = dataclasses.replace(problem, folder=tmp_path)
    first, second = cofi_recipes(config)
    assert (first.kind, first.name, second.kind, second.key) == ("student", "CoFi 50%", "pruned", "cofi-sparsity-0.8")
    for recipe in (first, second):
        place = Workplace(own, config, 5, tmp_path / recipe.key, recipe.name)
        place.folder.mkdir()
        recipe.train(place)
    saved = list(tmp_path.rglob("prefinetune-model"))
    assert len(saved) == 1 and saved[0].parent.parent == own.cache


def test_every_target_s_time_is_that_of_the_whole_way(problem: EncoderProblem, tmp_path: Path) -> None:
    """The first to need the prefinetuned student spends the time itself; to the others it is added, where it is known."""
    config = settings(tmp_path, target_sparsity=[0.5, 0.6, 0.7, 0.8], max_steps=2)
    own = dataclasses.replace(problem, folder=tmp_path / "run")
    first, second, third, fourth = cofi_recipes(config)
    known = own.cache / "cofi-prefinetune-5" / "facts.json"

    def took(recipe: Recipe) -> list[float | None]:
        facts = train_recipe(recipe, own, config, 5).facts
        return [facts.get(name) for name in ("train_seconds", "train_cpu_seconds")]

    alone = took(first)
    facts = read_json(known)
    assert 0 < facts["prefinetune_seconds"] < alone[0] < 1_000 and 0 < facts["prefinetune_cpu_seconds"] < alone[1] < 1_000
    write_json(known, {**facts, "prefinetune_seconds": 1_000.0, "prefinetune_cpu_seconds": 2_000.0})
    beside = took(second)
    assert 1_000 < beside[0] < 2_000 < beside[1] < 3_000
    write_json(known, {"prefinetune_seconds": 1_000.0})  # as an older version noted it
    assert took(third)[0] > 1_000 and took(third)[1] is None
    write_json(known, {})
    assert took(fourth) == [None, None], "prefinetuning was interrupted"


def test_successive_targets_are_one_rising_pruning(problem: EncoderProblem, tmp_path: Path) -> None:
    config = settings(
        tmp_path, target_sparsity=[0.4, 0.6, 0.8], successive=True, finetune_epochs=0.0, prune_epochs=3.0, checkpoint_seconds=0.02
    )
    recipes = cofi_recipes(config)

    def place(name: str, recipe: Recipe, progress: Progress | None = None) -> Workplace:
        folder = tmp_path / name
        own = dataclasses.replace(problem, folder=folder, progress=progress or Progress())
        made = Workplace(own, config, 5, folder / recipe.key, recipe.name)
        made.folder.mkdir(parents=True, exist_ok=True)
        return made

    outcomes, states = [], []
    for recipe in recipes:
        outcomes.append(recipe.train(place("whole", recipe)))
        left = list(tmp_path.glob("whole/cache/cofi-pruning-*.pt"))
        assert len(left) == 1, "what is gone on from is kept, the rest is not"
        states.append(torch.load(left[0], weights_only=True))
    for outcome, target in zip(outcomes, (0.4, 0.6, 0.8)):
        assert outcome.facts["sparsity"] == pytest.approx(target, abs=0.01)
    histories = [
        [json.loads(line) for line in (tmp_path / "whole" / recipe.key / "prune" / "history.jsonl").read_text().splitlines()]
        for recipe in recipes
    ]
    for before, after in zip(histories, histories[1:]):
        assert after[0]["target"] == pytest.approx(before[-1]["expected_saved"], abs=0.05), "the target rises on, not again from 0"
        assert after[0]["multipliers"][1] >= before[-1]["multipliers"][1] > 0, "this multiplier never falls"
    with pytest.raises(Killed):  # and a kill in the second changes nothing
        for recipe in recipes[:2]:
            recipe.train(place("killed", recipe, KillAt(5, ": prune") if recipe is recipes[1] else None))
    resumed = [recipe.train(place("killed", recipe)) for recipe in recipes[1:]]
    for ours, theirs in zip(outcomes[1:], resumed):
        whole, again = ours.model.state_dict(), theirs.model.state_dict()
        assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_target_between_those_that_are_done_is_refused(tmp_path: Path) -> None:
    """Its pruning would go on from one that another target has gone on from."""
    config = settings(tmp_path, target_sparsity=[0.4, 0.6, 0.8], successive=True, seeds=[5])

    def touch(path: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")

    check_chain(config, tmp_path)
    touch("models/cofi-sparsity-0.4-5/scores.json")
    with pytest.raises(ConfigError, match="target_sparsity: 0.6 would go on from the pruning at 0.4, which is gone"):
        check_chain(config, tmp_path)
    touch("cache/cofi-pruning-sparsity-0.6-5.pt")
    with pytest.raises(ConfigError, match="0.6 would go on"):
        check_chain(config, tmp_path)  # its finished model was deleted; what it was pruned from has been gone since
    touch("work/cofi-sparsity-0.6-5/prune-model/config.json")  # killed while 0.6 was fine-tuned
    check_chain(config, tmp_path)
    touch("models/cofi-sparsity-0.6-5/scores.json")
    check_chain(config, tmp_path)  # 0.8 is next
    touch("models/cofi-sparsity-0.8-5/scores.json")
    (tmp_path / "cache" / "cofi-pruning-sparsity-0.6-5.pt").unlink()
    check_chain(config, tmp_path)  # all is done
    with pytest.raises(ConfigError, match="0.7 would go on"):
        check_chain(dataclasses.replace(config, target_sparsity=[0.4, 0.6, 0.7, 0.8]), tmp_path)


def test_a_target_before_one_that_is_half_pruned_is_refused(problem: EncoderProblem, tmp_path: Path) -> None:
    """What is half pruned goes on from where it began, with the batches of then, or not at all."""
    config = settings(
        tmp_path, target_sparsity=[0.4, 0.8], successive=True, finetune_epochs=0.0, prune_epochs=3.0, checkpoint_seconds=0.02, seeds=[5]
    )
    own = dataclasses.replace(problem, folder=tmp_path)
    first, second = cofi_recipes(config)
    train_recipe(first, own, config, 5)
    assert read_json(tmp_path / "models" / f"{first.key}-5" / "facts.json")["pruned_after"] == []
    with pytest.raises(Killed):
        train_recipe(second, dataclasses.replace(own, progress=KillAt(8, ": prune")), config, 5)
    assert (tmp_path / "work" / f"{second.key}-5" / "prune" / "checkpoint.pt").exists()
    check_chain(config, tmp_path)
    between = dataclasses.replace(config, target_sparsity=[0.4, 0.6, 0.8])
    with pytest.raises(ConfigError, match=r"target_sparsity: 0.8 has been begun after \[0.4\] .* would go on after \[0.4, 0.6\]; choices: "):
        check_chain(between, tmp_path)
    with pytest.raises(ConfigError, match=r"0.8 has been begun after \[0.4\] .* would go on after \[0.2, 0.4\]"):
        check_chain(dataclasses.replace(config, target_sparsity=[0.2, 0.4, 0.8]), tmp_path)
    shutil.rmtree(tmp_path / "work" / f"{second.key}-5")  # as the message says
    check_chain(between, tmp_path)


@pytest.mark.parametrize(("max_steps", "choice"), [(None, "more prune_epochs or min_prune_steps"), (3, "a larger max_steps")])
def test_a_target_that_is_missed_is_said(problem: EncoderProblem, tmp_path: Path, max_steps: int | None, choice: str) -> None:
    progress = Heard()
    config = settings(tmp_path, gate_learning_rate=1e-6, finetune_epochs=0.0, prune_epochs=1.0, exact_target=False, max_steps=max_steps)
    outcome = train(problem, config, tmp_path, progress)
    missed, cut = progress.warnings
    assert "the target was not met" in missed and f"choices: {choice}, a larger gate_learning_rate" in missed
    assert cut.endswith("60.0% was asked for; with exact_target false gates are cut as they stand")
    assert outcome.facts["sparsity"] < 0.3 and outcome.facts["validation_after_prune"] is None
    assert outcome.facts["met_by_gates"] is False and outcome.facts["expected_saved"] < 0.59, "of the 0.6 that were asked for"


def test_a_target_that_is_met_is_no_miss_however_near_gates_were_to_come(problem: EncoderProblem, tmp_path: Path) -> None:
    progress = Heard()
    train(problem, settings(tmp_path, sparsity_epsilon=0.0, finetune_epochs=0.0), tmp_path, progress)
    assert not [text for text in progress.warnings if "could be cut" in text]


def test_a_share_of_the_time_is_told_in_milliseconds_too() -> None:
    axes = axes_of(make_encoder())
    whole = float(LATENCY.predict(axes.expected_sizes()))
    assert Budget.of_time(axes, 0.25 * whole, LATENCY).describe(0.75) == f"75.0% of a call's time ({0.25 * whole:.3g} ms left)"
    assert Budget(axes, 0.6).describe(0.6) == "60.0%"


@pytest.mark.parametrize(("changes", "says"), [
    ({}, "Attention and feed-forward sublayers, heads, neurons and hidden dimensions are gated; the gates learn, under a constraint on what they"
     " keep, beside the weights, which learn the dense model's predictions and layers. What is left is cut out and distilled once more."),
    ({"families": ["neurons", "heads"], "layer_weight": 0.0, "gold_weight": 1.0, "finetune_epochs": 0.0}, "Heads and neurons are gated; the gates"
     " learn, under a constraint on what they keep, beside the weights, which learn the dense model's predictions, and gold labels. What is left is"
     " cut out."),
    ({"families": ["neurons"], "layer_weight": 0.0, "prediction_weight": 0.0, "gold_weight": 1.0}, "Neurons are gated; the gates learn, under a"
     " constraint on what they keep, beside the weights, which learn gold labels. What is left is cut out and trained once more."),
])  # fmt: skip
def test_what_is_said_of_the_method_is_what_the_settings_make_of_it(
    changes: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cofi_run, "run_recipes", lambda run, problem, recipes: run.about.summary)  # which the report shows
    assert compress_cofi(settings(tmp_path, target_sparsity=[0.1], **changes)) == says


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, "CoFi 95%: the gates of 2 of 3 seeds saved 92.4% by themselves on average, 95.0% was asked for; the rest was cut off after pruning"),
    ({"saved": 0.93}, "CoFi 95%: the gates of 2 of 3 seeds saved 92.4% by themselves on average, 95.0% was asked for; 93.0% was cut off"),
    ({"target": {"latency": 1.5}}, "CoFi 95%: the gates of 2 of 3 seeds saved 92.4% of a call's time by themselves on average, 95.0% was asked"
     " for; the rest was cut off after pruning"),
])  # fmt: skip
def test_a_target_that_gates_have_missed_is_a_note_of_the_report(changes: dict[str, Any], expected: str) -> None:
    met = {"target": {"sparsity": 0.95}, "asked_for": 0.95, "saved": 0.95, "expected_saved": 0.951, "met_by_gates": True}
    older = {**met, "expected_saved": 0.93, "validation_after_prune": None, **changes}  # from before facts said it themselves
    del older["met_by_gates"]
    short = {**met, "expected_saved": 0.918, "met_by_gates": False, **changes}
    trained = [SimpleNamespace(recipe=SimpleNamespace(name="CoFi 95%"), facts=facts) for facts in (met, older, short)]
    assert cofi_run.ABOUT.notes(trained) == [expected] and cofi_run.ABOUT.notes(trained[:1]) == []


@pytest.mark.parametrize(("changes", "says"), [
    ({"target_sparsity": [0.5], "target_latency_ms": [3.0]}, "both are given; choices: one of the two"),
    ({"target_sparsity": []}, "target_sparsity: the list is empty"),
    ({"target_sparsity": [0.8, 0.5], "successive": True}, "choices: from the mildest on"),
    ({"target_latency_ms": [1.0, 2.0], "successive": True}, "choices: from the mildest on"),
    ({"target_sparsity": [0.5, 1.5]}, r"target_sparsity\[1\]: 1.5 is out of range"),
    ({"target_sparsity": [0.5, 0.5]}, "one is named twice"),
    ({"families": ["heads", "toes"]}, r"families\[1\]: 'toes' is not known; choices: heads"),
    ({"families": ["heads", "neurons", "heads"]}, r"families: .*: one is named twice; name every family once"),
    ({"families": ["heads"], "exact_target": False, "neuron_drop": 0.1}, "neuron_drop: 0.1 has no effect where families leaves neurons out; choices: "),
    ({"families": ["heads"]}, "exact_target: neurons are what is closed"),
    ({"matching": "nearest"}, "matching: 'nearest' is not known; choices: paper"),
    ({"teacher_layers": [3, 1]}, "teacher_layers: .* choices: ascending"),
    ({"warmup_epochs": 9.0, "prune_epochs": 4.0}, "warmup_epochs: 9.0 is out of range"),
    ({"layer_weight": 0.0, "prediction_weight": 0.0}, "so nothing is learned"),
    ({"target_latency_ms": [-1.0]}, r"target_latency_ms\[0\]"),
    ({"latency": LatencyTargetConfig(threads=2)}, "latency.threads: 2 has no effect without target_latency_ms; choices: leave it out, or --target"),
    ({"matching": "any", "alive": "either"}, "alive: 'either' has no effect with matching any; choices: leave it out, or matching paper or ordered"),
])  # fmt: skip
def test_what_is_wrong_is_said_before_anything_begins(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        CofiConfig(**changes).check()


def test_budgets_are_epochs_stretched_alike_for_small_tasks_and_capped() -> None:
    config = CofiConfig(prefinetune_epochs=1, warmup_epochs=1, prune_epochs=4, finetune_epochs=2, min_prune_steps=2_000)
    assert config.steps(64_000) == {"prefinetune": 2_000, "prune": 8_000, "finetune": 4_000, "warmup": 2_000}
    assert config.steps(3_200) == {"prefinetune": 500, "prune": 2_000, "finetune": 1_000, "warmup": 500}, "100 steps an epoch, 5 times"
    config.max_steps = 100
    assert config.steps(64_000) == {"prefinetune": 100, "prune": 100, "finetune": 100, "warmup": 25}
    assert config.fit_config("finetune", 7).learning_rate == config.finetune_learning_rate and config.schedule("finetune") == "constant"


@pytest.mark.parametrize("changes", [{}, {"max_steps": 1}, {"prune_epochs": 1.0 + 1e-9}])
def test_a_target_that_rises_all_the_time_is_there_in_the_last_step(changes: dict[str, Any]) -> None:
    steps = CofiConfig(**{"prune_epochs": 1.0, "warmup_epochs": 1.0, "min_prune_steps": 0, **changes}).steps(640)
    assert ramp(0.8, steps["prune"] - 1, steps["warmup"]) == 0.8 and steps["warmup"] == steps["prune"] - 1


def test_lengths_are_those_of_windows_where_there_are_questions(problem: EncoderProblem, tmp_path: Path) -> None:
    def check(length: int, **changes: Any) -> None:
        CofiConfig(target_latency_ms=[1.0], latency=LatencyTargetConfig(lengths=[length]), **changes).check()

    check(384, problem_type="question_answering", train_file="a.jsonl")
    check(384, task="squad")
    for length, changes in ((385, {"task": "squad"}), (129, {"problem_type": "single_label"}), (129, {"train_file": "a.csv"})):
        with pytest.raises(ConfigError, match=rf"latency.lengths\[0\]: {length} is out of range"):
            check(length, **changes)
    with pytest.raises(ConfigError, match=r"latency.lengths\[0\]: 17 is out of range; choices: 1 to 16"):  # known by the data alone
        open_table(dataclasses.replace(settings(tmp_path), latency=LatencyTargetConfig(lengths=[17])), problem)


def refused(folder: Path, **changes: Any) -> str:
    """What is said of a run that is refused; nothing of it has been trained."""
    with pytest.raises(ConfigError) as said:
        compress_cofi(settings(folder, **changes))
    assert not [name for name in ("teacher", "work", "models") if (folder / "run" / name).exists()], "before any training"
    return str(said.value)


def test_all_targets_are_looked_at_before_any_training(tmp_path: Path) -> None:
    whole = shape_of(from_hugging_face(BertForSequenceClassification.from_pretrained(settings(tmp_path).model)).config)
    table = EncoderLatencyTable(deployment_here("torch", 1, 1), whole, (8,), {part: [0.1] for part in PARTS})
    write_json(tmp_path / "table.json", table.to_dict())
    latency = LatencyTargetConfig(table=str(tmp_path / "table.json"), runtime="torch", lengths=[8])
    said = refused(tmp_path, target_latency_ms=[10.0, 0.0001], target_sparsity=None, latency=latency)
    assert "target_latency_ms: 0.0001: the dense encoder takes" in said


@pytest.mark.parametrize(("families", "target", "most"), [(["neurons"], 0.9, "0.8"), (["heads"], 0.5, "0.1")])
def test_what_the_families_have_not_is_said_before_any_training(families: list[str], target: float, most: str, tmp_path: Path) -> None:
    said = refused(tmp_path, families=families, target_sparsity=[target], exact_target=False)
    assert re.match(rf"target_sparsity: {target}: of families {families[0]} no more than {most}\d\d of the encoder's", said)


def test_the_shortest_time_is_that_of_what_stays() -> None:
    """Without a gate on sublayers a neuron a layer stays, and with it what a sublayer takes; and what gates leave that are never closed for sure."""
    parts = {part: [1.0 if part == "ffn" else 0.1] for part in PARTS}
    table, axes = EncoderLatencyTable(deployment_here("torch", 1, 1), SHAPE, (8,), parts), axes_of(make_encoder())
    for families, least in ((["neurons"], 4.8), (["neurons", "layers"], 0.2)):
        config = CofiConfig(families=families, sparsity_epsilon=1.0)  # gates may stop short of the target as far as they like
        with pytest.raises(ConfigError) as said:
            budget_for(config, axes, 1e-3, table, {8: 1.0})
        assert float(re.search(r"nearly nothing of it (\S+) ms", str(said.value))[1]) == pytest.approx(least), families
    with pytest.raises(ConfigError) as said:
        budget_for(dataclasses.replace(config, sparsity_epsilon=0.01), axes, 0.21, table, {8: 1.0})
    budget = Budget.of_time(axes, 0.21, table.at({8: 1.0}))
    by_gates = float(budget.milliseconds(as_closed_as_can_be(axes, families))) - 0.01 * float(budget.milliseconds(GateValues()))
    assert 0.21 < by_gates == pytest.approx(float(re.search(r"nearly nothing of it (\S+) ms", str(said.value))[1]), rel=1e-3)
    assert budget_for(dataclasses.replace(config, sparsity_epsilon=0.01), axes, by_gates + 1e-3, table, {8: 1.0}).target < 1


def as_closed_as_can_be(axes: Axes, families: list[str]) -> GateValues:
    """The probabilities of gates after training has pushed them down without end."""
    gates = StructureGates(axes, families)
    with torch.no_grad():
        for gate in gates.gates():
            gate.log_alpha_S.fill_(-100.0)
    gates.clamp_()
    return gates.open_probability().detach()


@pytest.mark.parametrize(("families", "reached"), [
    (["heads", "neurons"], 0.953), (["neurons"], 0.635), (["neurons", "hidden"], 0.982), (["heads", "neurons", "layers", "hidden"], 0.9999),
])  # fmt: skip
def test_no_more_is_asked_for_than_gates_can_save_by_themselves(families: list[str], reached: float) -> None:
    """Of BERT-base, whose heads and neurons could all be cut: no gate is ever closed for sure, so that they save less on average."""
    axes, config = Axes(768, 64, [12] * 12, [3072] * 12), CofiConfig(families=families, sparsity_epsilon=0.005)
    most = float(Budget(axes, 0.5).saved(as_closed_as_can_be(axes, families)))
    assert most == pytest.approx(reached, abs=5e-4)
    assert budget_for(config, axes, min(0.99, most + 0.0049), None, {}).target >= min(0.99, most)
    if most + 0.0051 < 0.99:
        with pytest.raises(ConfigError) as said:
            budget_for(config, axes, most + 0.0051, None, {})
        named = float(re.search(r"no more than (\S+) of the encoder's parameters can be saved", str(said.value))[1])
        assert most + 0.0035 < named <= most + 0.005 and budget_for(config, axes, named, None, {}), "what is named can be asked for"


def test_teacher_layers_are_counted_before_any_training(tmp_path: Path) -> None:
    assert "teacher_layers: 2: the teacher has 2 layers; choices: 0 to 1" in refused(tmp_path, teacher_layers=[2])


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 3}, {"intermediate_size": 32}], ids=["layers", "neurons"])
def test_a_start_of_another_size_than_the_model_is_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    model = settings(tmp_path).model
    labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    BertForSequenceClassification(BertConfig.from_pretrained(model, **changes, **labels)).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "other")
    said = refused(tmp_path, start="dense", teacher=str(tmp_path / "other"))
    assert said.startswith(f"model: '{model}' has 2 layers, 8 heads of 4, 400 neurons, 16 hidden dimensions; teacher '{tmp_path / 'other'}' has")


def test_a_choice_by_the_examples_that_are_scored_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cofi_run, "run_recipes", lambda run, problem, recipes: problem.notes)  # which the report shows
    test = {"test_file": write_csv(tmp_path / "test.csv", 20, 3)}
    for name, changes, is_told in (("a", {}, True), ("b", test, False), ("c", {"evaluations": 1}, False)):
        notes = compress_cofi(settings(tmp_path, output_dir=str(tmp_path / name), **changes))
        assert any("was chosen by the examples it is scored on" in note for note in notes) == is_told, name


def test_which_network_is_cut_is_told_where_the_teacher_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cofi_run, "run_recipes", lambda run, problem, recipes: problem.notes)
    model = settings(tmp_path).model
    labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    for name, layers in (("alike", 2), ("deeper", 3)):
        BertForSequenceClassification(BertConfig.from_pretrained(model, num_hidden_layers=layers, **labels)).save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / name)
        notes = compress_cofi(settings(tmp_path, teacher=str(tmp_path / name), output_dir=str(tmp_path / "run" / name)))
        said = [note for note in notes if note.startswith("what is cut is")]
        expected = f"what is cut is model '{model}', of 2 layers and 16 hidden dimensions; the teacher, of 3 and 16, teaches it and stays as it is"
        assert said == ([expected] if layers == 3 else [])


def test_a_teachers_layer_that_is_not_there_is_refused(problem: EncoderProblem, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="teacher_layers: 2: the teacher has 2 layers; choices: 0 to 1"):
        train(problem, settings(tmp_path, teacher_layers=[2]), tmp_path)


def test_phases_and_targets_are_one_stream_of_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of an epoch are different parts: no phase of a model meets an example again before all have been met."""
    met: dict[str, list[tuple[int, ...]]] = {}
    batch_of, stage = fit_module.Training._batch, []

    class Watched(BatchSampler):
        def __call__(self, step: int) -> np.ndarray:
            indices = super().__call__(step)
            met.setdefault(stage[-1], []).append(tuple(indices.tolist()))
            return indices

    def batch(training: Any, split: str) -> Any:
        stage.append("/".join(training.folder.parts[-2:]))
        return batch_of(training, split)

    monkeypatch.setattr(fit_module, "BatchSampler", Watched)
    monkeypatch.setattr(fit_module.Training, "_batch", batch)
    config = settings(
        tmp_path, batch_size=8, prefinetune_epochs=0.2, prune_epochs=0.3, warmup_epochs=0.1, finetune_epochs=0.2, target_sparsity=[0.3, 0.5],
        successive=True, evaluations=1, seeds=[5],
    )  # fmt: skip
    problem = load_problem(config, load_task(config), tmp_path / "run", Accelerator(cpu=True), Progress())
    train_dense(config, problem)
    met.clear()
    for recipe in cofi_recipes(config):
        train_recipe(recipe, problem, config, 5)
    stages = {name.replace("cofi-", "").replace("-5", ""): sum(batches, ()) for name, batches in met.items()}
    assert list(stages) == ["prefinetune/prefinetune", "sparsity-0.3/prune", "sparsity-0.3/finetune", "sparsity-0.5/prune", "sparsity-0.5/finetune"]
    pre, prune, tune, prune_on, tune_on = stages.values()
    for way in (pre + prune + tune, pre + prune + prune_on + tune_on):
        assert len(way) == len(set(way)), "each once"


def test_a_wrong_teacher_is_told_before_it_teaches(tmp_path: Path) -> None:
    config = settings(tmp_path)
    first = load_problem(config, load_task(config), tmp_path / "run", Accelerator(cpu=True), Progress())
    train_dense(dataclasses.replace(config, finetune=FinetuneConfig(epochs=20, learning_rate=3e-3, batch_size=16)), first)
    head = first.teacher.model.classifier
    for name, turn in (("as_it_is", False), ("turned", True)):
        with torch.no_grad():
            for tensor in (head.weight, head.bias) if turn else ():
                tensor.copy_(tensor.flip(0))
        first.teacher.model.save_pretrained(tmp_path / name)
        first.tokenizer.save_pretrained(tmp_path / name)
        given, heard = dataclasses.replace(config, teacher=str(tmp_path / name)), Heard()
        train_dense(given, load_problem(given, load_task(given), tmp_path / f"run-{name}", Accelerator(cpu=True), heard))
        assert any("the teacher is no better than the constant answer" in text for text in heard.warnings) == turn


def test_texts_without_labels_are_read_as_all_others_are(tmp_path: Path) -> None:
    """With the tokenizer of the teacher, which is that of the models made: another one may have the same vocabulary and other rules."""
    config = settings(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    model = BertForSequenceClassification(BertConfig.from_pretrained(config.model, id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1}))
    model.save_pretrained(tmp_path / "given")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("film", "movie")
    tokenizer.save_pretrained(tmp_path / "given")
    (tmp_path / "more.txt").write_text("the film was good", encoding="utf-8")
    transfer = TransferConfig(size=0, unlabeled_size=9)
    config = dataclasses.replace(config, teacher=str(tmp_path / "given"), unlabeled_file=str(tmp_path / "more.txt"), transfer=transfer)
    problem = load_problem(config, load_task(config), tmp_path / "run", Accelerator(cpu=True), Progress())
    assert list(problem.extra[0][0]) == problem.tokenizer("the film was good")["input_ids"] != AutoTokenizer.from_pretrained(config.model)("the film was good")["input_ids"]


def test_the_teacher_teaches_texts_without_labels_as_well(tmp_path: Path) -> None:
    """Those of a file and those made of the training texts stand behind the labelled ones, which are repeated up to their share."""
    others = rows(30, 7)
    (tmp_path / "more.txt").write_text("\n".join(row["text"] for row in others), encoding="utf-8")
    transfer = TransferConfig(size=50, unlabeled_size=20, split_sentences=False, labelled_share=0.8)
    config = settings(tmp_path, unlabeled_file=str(tmp_path / "more.txt"), transfer=transfer)
    problem = load_problem(config, load_task(config), tmp_path / "run", Accelerator(cpu=True), Progress())
    train_dense(config, problem)
    lesson, taught, labelled = problem.lesson, problem.taught(), len(problem.train)
    repeated = 3  # 0.8 / 0.2 of the 70 others are 280 of 120 labelled ones: 2.3 times
    assert len(lesson) == len(taught) == repeated * labelled + 70 and len(problem.everything) == labelled + 70
    assert np.array_equal(lesson.labels[: repeated * labelled], np.tile(problem.train.labels, repeated)), "labels are those of the texts"
    assert (lesson.labels[repeated * labelled :] == -100).all()
    texts = {tuple(lesson.tokens[index]) for index in range(len(lesson) - 20, len(lesson))}
    assert texts <= {tuple(problem.tokenizer(row["text"], truncation=True, max_length=16)["input_ids"]) for row in others}
    expected = problem.outputs(problem.teacher.logits, lesson)
    np.testing.assert_allclose(taught.teacher_logits, expected, atol=1e-5)
    assert problem.notes[-1].startswith("taught on 70 texts beside the 120 labelled ones")

    outcome = train(problem, config, tmp_path)
    assert outcome.facts["steps"]["finetune"] == steps_of(1.0, len(lesson), 16)


def test_texts_without_labels_change_what_is_learned(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("\n".join(row["text"] for row in rows(60, 7)), encoding="utf-8")
    weights = []
    for size in (0, 60):
        changes = {"unlabeled_file": str(tmp_path / "more.txt")} if size else {}
        config = settings(tmp_path, max_steps=3, transfer=TransferConfig(size=0, unlabeled_size=size), **changes)
        problem = load_problem(config, load_task(config), tmp_path / f"run-{size}", Accelerator(cpu=True), Progress())
        problem.teacher.model.eval().requires_grad_(False)
        weights.append(train(problem, config, tmp_path / str(size)).model.state_dict())
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unlabeled_file": "more.txt"}, "unlabeled_file: more.txt would not be read, transfer.unlabeled_size is 0"),
        ({"transfer": TransferConfig(size=0, unlabeled_size=9)}, "transfer.unlabeled_size: 9, but task 'tiny' has no texts without labels"),
        ({"transfer": TransferConfig(size=-1)}, "transfer.size: -1 is out of range"),
        (
            {"transfer": TransferConfig(size=9), "layer_weight": 0.0, "prediction_weight": 0.0, "gold_weight": 1.0},
            "transfer: gold labels alone are learned from, which its texts have not",
        ),
    ],
)
def test_texts_without_labels_are_asked_for_or_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        compress_cofi(dataclasses.replace(settings(tmp_path), **changes))
    assert not (tmp_path / "run" / "teacher").exists()
