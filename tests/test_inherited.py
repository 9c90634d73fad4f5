"""Inherited layers against the teacher's own: whole ones compute the same, pruned ones what a masked teacher computes.

Dimensions: B batch, L tokens, M hidden size, H heads, F neurons.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import PAD, VOCAB, batch_of, randomise, texts, tiny_config, tiny_macro, tiny_space
from tiny_task import tiny_run
from torch import Tensor
from transformers import (
    BertConfig, BertForSequenceClassification, DistilBertConfig, DistilBertForSequenceClassification, PreTrainedModel,
    RobertaConfig, RobertaForSequenceClassification,
)  # fmt: skip

from adasearch.architecture import Architecture, Edge
from adasearch.config import DistillConfig, RetrainConfig
from adasearch.errors import ConfigError, ModelError
from adasearch.export import export_student
from adasearch.inherit_layers import Importance, check_inherited, importance, inherit_layers, layers_of
from adasearch.methods.distill import Distill
from adasearch.pipeline import check, run
from adasearch.shrink import build_student, inherit_embeddings, shrink
from adasearch.space import load_space, space_from_dict
from adasearch.starts import check_starts
from adasearch.student import AdasearchForSequenceClassification
from adasearch.supernet import Supernet
from adasearch.teacher import tables_of

SIZE, HEADS, NEURONS, LAYERS = 16, 4, 24, 2
SIZES = {"teacher_size": SIZE, "teacher_heads": HEADS, "teacher_neurons": NEURONS}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # float32, two normalised layers


def make_teacher(kind: str) -> PreTrainedModel:
    """Two layers, random weights; every part of them differs from its neighbours."""
    common = {"vocab_size": VOCAB, "max_position_embeddings": 24, "pad_token_id": PAD, "num_labels": 3}
    bert = {"hidden_size": SIZE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": NEURONS}
    if kind == "distilbert":
        distilbert = {"dim": SIZE, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": NEURONS}
        teacher = DistilBertForSequenceClassification(DistilBertConfig(**common, **distilbert))
    elif kind == "roberta":
        common |= {"max_position_embeddings": 26}
        teacher = RobertaForSequenceClassification(RobertaConfig(**common, **bert, type_vocab_size=1, layer_norm_eps=1e-12))
    else:
        teacher = BertForSequenceClassification(BertConfig(**common, **bert))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return teacher.eval()


def student_of(teacher: PreTrainedModel, operations: list[str], worth: Importance, width: int = SIZE) -> AdasearchForSequenceClassification:
    """One cell of one edge for each operation, filled from the teacher."""
    cells = tuple(((Edge(1, name),),) for name in operations)
    architecture = Architecture("tiny", "0" * 16, cells, width, tiny_macro(**SIZES, norm="layer", cell_output="sum"))
    student = build_student(architecture, tiny_config(embedding_rank=SIZE))
    inherit_embeddings(student.trunk, *tables_of(teacher))
    student.trunk.embeddings.norm.eps = 1e-12  # theirs; the students' own 1e-5 shows in the fifth digit
    assert inherit_layers(student.trunk, teacher, worth) == sum(name.startswith("inherited") for name in operations)
    return student.eval()


def states_of(student: AdasearchForSequenceClassification, ids_BL: Tensor, mask_BL: Tensor) -> list[Tensor]:
    """Token states after the embeddings and every cell, (B, L, M)."""
    first, second, context = student.trunk.inputs(ids_BL, mask_BL)
    states = [second.mT]
    for cell, path in zip(student.trunk.cells, student.paths):
        first, second = second, cell(first, second, context, path)
        states.append(second.mT)
    return states


def any_worth() -> Importance:
    return Importance(torch.rand(LAYERS, HEADS), torch.rand(LAYERS, NEURONS))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
@torch.no_grad()
def test_whole_layers_compute_what_the_teacher_does(kind: str) -> None:
    teacher = make_teacher(kind)
    student = student_of(teacher, ["inherited_100"] * LAYERS, any_worth())
    ids_BL, mask_BL = batch_of(texts(7, 4, 11))
    expected = teacher(input_ids=ids_BL, attention_mask=mask_BL, output_hidden_states=True).hidden_states
    for ours, theirs in zip(states_of(student, ids_BL, mask_BL), expected):
        real = mask_BL.bool()
        assert torch.allclose(ours[real], theirs[real], **CLOSE)


@torch.no_grad()
def test_pruned_layers_are_the_teacher_without_its_least_heads_and_neurons() -> None:
    teacher, worth = make_teacher("bert"), any_worth()
    student = student_of(teacher, ["inherited_50", "inherited_25"], worth)
    for layer, (heads, neurons), heads_H, neurons_F in zip(
        layers_of(teacher), ((2, 12), (1, 6)), worth.heads_NH, worth.neurons_NF
    ):
        width = SIZE // HEADS
        for head in heads_H.argsort()[: HEADS - heads].tolist():  # what is not read is as good as gone
            layer["output"].weight[:, head * width : (head + 1) * width] = 0
        layer["narrow"].weight[:, neurons_F.argsort()[: NEURONS - neurons]] = 0
    ids_BL, mask_BL = batch_of(texts(7, 4, 11))
    expected = teacher(input_ids=ids_BL, attention_mask=mask_BL, output_hidden_states=True).hidden_states
    real = mask_BL.bool()
    assert torch.allclose(states_of(student, ids_BL, mask_BL)[-1][real], expected[-1][real], **CLOSE)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_importance_is_the_change_of_the_loss_to_first_order(kind: str) -> None:
    """Against finite differences: each head's and neuron's output shrunk by a little, example by example."""
    teacher = make_teacher(kind).double()
    rows, labels = texts(7, 4, 9), torch.tensor([0, 2, 1])
    batches = [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for (ids, mask), label in ((batch_of(rows[:2]), labels[:2]), (batch_of(rows[2:]), labels[2:]))
    ]

    def logits(ids: Tensor, mask: Tensor) -> Tensor:
        return teacher(input_ids=ids, attention_mask=mask).logits

    teacher.requires_grad_(False)
    worth = importance(teacher, logits, batches, "single_label")
    step, width = 1e-5, SIZE // HEADS
    for number, layer in enumerate(layers_of(teacher)):
        for name, index, columns, found in (
            ("output", 2, slice(2 * width, 3 * width), worth.heads_NH), ("narrow", 5, slice(5, 6), worth.neurons_NF),
        ):  # fmt: skip
            total = 0.0
            for row, label in zip(rows, labels):
                losses = []
                for sign in (1, -1):
                    layer[name].weight[:, columns] *= 1 + sign * step
                    losses.append(torch.nn.functional.cross_entropy(logits(*batch_of([row])), label[None]))
                    layer[name].weight[:, columns] /= 1 + sign * step
                total += abs(float(losses[0] - losses[1])) / (2 * step)
            assert float(found[number, index]) == pytest.approx(total, rel=1e-4)
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())


@torch.no_grad()
def test_at_another_width_the_layer_stands_between_the_students_own_projections() -> None:
    teacher = make_teacher("bert")
    student = student_of(teacher, ["inherited_100"], any_worth(), width=8)
    operation = next(iter(student.trunk.cells[0].edges["1_to_2"].values()))
    seen_DM = student.trunk.embeddings.projection.weight
    assert torch.equal(operation.down.weight, seen_DM) and torch.equal(operation.up.weight, seen_DM.mT)
    assert torch.allclose(seen_DM @ seen_DM.mT, torch.eye(8), atol=1e-5)  # up after down is the identity


@torch.no_grad()
def test_a_shrunk_student_keeps_the_layers() -> None:
    space = tiny_space(operations=("conv3", "inherited_50", "skip"), cells=(1, 2), macro={"norm": "layer", **SIZES})
    supernet = Supernet(space, tiny_config(embedding_rank=SIZE))
    randomise(supernet)
    inherit_layers(supernet.trunk, make_teacher("bert"), any_worth())
    cells = (((Edge(0, "inherited_50"), Edge(1, "conv3")), (Edge(1, "skip"), Edge(2, "inherited_50"))),) * 2
    member = Architecture(space.name, space.digest, cells, 8, space.macro)
    student = shrink(supernet, member)
    ours, whole = student.state_dict(), supernet.state_dict()
    names = [name for name in ours if "inherited_50" in name]
    assert names
    for name in names:
        assert torch.equal(ours[name], whole[name][tuple(map(slice, ours[name].shape))])
    assert ours["trunk.cells.0.edges.0_to_2.inherited_50.query.weight"].shape == (8, SIZE)  # 2 of 4 heads of 4, not the width


def test_inherited_layers_learn_at_their_own_rate() -> None:
    student = student_of(make_teacher("bert"), ["inherited_100", "conv3"], any_worth())
    config = RetrainConfig(inherited_rate=0.1)
    weights = Distill(config, DistillConfig(), "single_label", 3, SIZE, 2).groups(student)[0]
    learning = [(id(p), params.get("rate", 1.0)) for params in weights.params for p in params["params"]]
    rates = dict(learning)
    assert len(rates) == len(learning), "every parameter learns once"
    for name, parameter in student.named_parameters():
        if "word" not in name:
            assert rates.get(id(parameter)) == (0.1 if "inherited" in name else 1.0), name


def test_a_space_that_does_not_fit_the_teacher_is_refused() -> None:
    space = load_space("inherited")
    config = BertConfig(hidden_size=384, num_attention_heads=12, intermediate_size=1536, num_hidden_layers=6)
    check_inherited(space, config, "teacher")
    check_inherited(load_space("adasearch"), None, "teacher")
    with pytest.raises(ConfigError, match="needs a teacher; choices: --teacher"):
        check_inherited(space, None, "teacher")
    with pytest.raises(ConfigError, match="macro.teacher_size: 384, but my/teacher has 768; choices: 768"):
        check_inherited(space, BertConfig(), "my/teacher")
    config.num_hidden_layers = 1
    with pytest.raises(ConfigError, match="cell k inherits layer k; choices: up to 1"):
        check_inherited(space, config, "teacher")
    config.hidden_act = "relu"
    with pytest.raises(ModelError, match="'relu'; inherited ones have 'gelu'"):
        check_inherited(space, config, "teacher")
    config.model_type = "gpt2"
    with pytest.raises(ModelError, match="'gpt2' model cannot be inherited; choices: bert"):
        check_inherited(space, config, "teacher")
    base = {"name": "x", "operations": ["inherited_50", "conv3"]}
    with pytest.raises(ConfigError, match="x.yaml: inherited operations need macro.teacher_size"):
        space_from_dict(base, "x.yaml")
    with pytest.raises(ConfigError, match=r"mix the teacher's 64 with others.*choices: \[64\] alone"):
        sizes = {"teacher_size": 64, "teacher_heads": 2, "teacher_neurons": 8}
        space_from_dict({**base, "widths": [32, 64], "macro": sizes}, "x.yaml")


def test_a_whole_run_with_inherited_layers(tmp_path: Path) -> None:
    """Search, student and random member in a space of the teacher's width; the graph, and the weights that were there first."""
    space = tmp_path / "layers.yaml"
    space.write_text(
        "name: layers\ncells: [1, 2]\nnodes: 1\nedges_per_node: 1\nsample_edges: true\nshare_cells: false\nwidths: [16]\n"
        "operations: [inherited_50, inherited_100]\n"
        "macro: {cell_output: sum, attention_head_size: 8, teacher_size: 16, teacher_heads: 2, teacher_neurons: 32}\n",
        encoding="utf-8",
    )
    config = tiny_run(tmp_path, controls=["random_architecture", "student_no_kd"])
    config.space = str(space)
    config.search.inherited_rate = config.retrain.inherited_rate = 1e-9  # as good as held still
    folder = run(config)
    export_student(folder / "student")
    teacher = load_file(folder / "teacher" / "model.safetensors")
    member = Architecture.load(folder / "search" / "architecture.json")
    student = load_file(folder / "student" / "model.safetensors")
    (edge,) = member.cells[0][0]
    name = f"trunk.cells.0.edges.{edge.source}_to_2.{edge.operation}.widen.weight"
    theirs = teacher["bert.encoder.layer.0.intermediate.dense.weight"]
    assert all((row - theirs).abs().amax(1).min() < 1e-5 for row in student[name])  # every neuron is one of the teacher's
    untaught = load_file(folder / "models" / "student_no_kd-42" / "model.safetensors")
    assert all((row - theirs).abs().amax(1).min() > 1e-2 for row in untaught[name]), "the control without a teacher has none of its layers"
    assert len(list((folder / "cache").glob("worth-*.pt"))) == 1
    given, plain = str(folder / "search" / "architecture.json"), load_space("adasearch")
    with pytest.raises(ConfigError, match=f"architecture: .* has '{edge.operation}', which needs a teacher"):
        check_starts(replace(config, architecture=given, teacher="none"), plain, plain, tmp_path)
    BertConfig(hidden_size=24, num_attention_heads=2, intermediate_size=32, num_hidden_layers=2).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="architecture.json': macro.teacher_size: 16, but teacher .*other has 24"):
        check_starts(replace(config, architecture=given, teacher=str(tmp_path / "other")), plain, plain, tmp_path)
    wrong = tiny_run(tmp_path, output_dir=str(tmp_path / "wrong"), space="inherited")
    with pytest.raises(ConfigError, match="macro.teacher_size: 384, but teacher .* has 16; choices: 16"):
        check(wrong)
    assert not (tmp_path / "wrong").exists()
