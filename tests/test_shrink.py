"""Laws of shrinking: the student cut out of a supernet computes what the supernet does; its data alone rebuild it.

Dimensions: V vocabulary, R width of the teacher's table.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import (
    VOCAB,
    batch_of,
    make_certain,
    random_supernet,
    randomise,
    texts,
    tiny_architecture,
    tiny_config,
    tiny_space,
)

from adasearch.architecture import Architecture
from adasearch.member_cost import architecture_cost
from adasearch.shrink import build_student, inherit_embeddings, random_architecture, random_architecture_like, shrink
from adasearch.supernet import Supernet

LENGTH = 20
FAMILIES = (
    "conv5",
    "dilated_sep_conv3",
    "gated_conv3",
    "self_attention",
    "soft_alignment",
    "max_pool3",
    "avg_pool3",
    "skip",
)


@pytest.mark.parametrize("share_cells", [True, False], ids=["shared", "unshared"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("inputs", ["joint", "two"])
@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
@torch.no_grad()
def test_the_shrunk_student_is_the_supernet_in_eval(share_cells: bool, norm: str, inputs: str, pooling: str) -> None:
    cell_output = {"mean": "attentive", "max": "sum", "attention": "mean"}[pooling]
    macro = {"norm": norm, "inputs": inputs, "pooling": pooling, "cell_output": cell_output}
    space = tiny_space(macro, operations=FAMILIES, share_cells=share_cells, cells=(2, 3))
    supernet = Supernet(space, tiny_config()).eval()
    batch = batch_of(texts(7, (4, 6), 2), padding=2)
    for width in space.widths:
        for depth in (2, 3):
            randomise(supernet)  # weights, statistics and all gates
            for gate, choice in ((supernet.width_gate, width), (supernet.depth_gate, depth)):
                gate.logits[0, gate.choices.index(choice)] = 9.0
            architecture = supernet.decide()
            assert (architecture.width, architecture.depth) == (width, depth)
            # in float64, where rounding cannot hide a wrong term; the weights are the same float32 numbers in both
            student, output = shrink(supernet, architecture).eval().double(), supernet.double()(*batch)
            result = student(*batch)
            supernet.float()
            for ours, hard in zip(
                (result.logits, *result.hidden_states), (output.logits[output.drawn], *output.levels)
            ):
                kept = hard[:, : ours.shape[1]]
                assert torch.allclose(ours, kept, atol=1e-9, rtol=1e-9)
                assert not hard[:, ours.shape[1] :].any()
            assert len(result.hidden_states) == len(output.levels) == depth + 1


@torch.no_grad()
def test_the_shrunk_student_is_the_supernet_at_a_certain_draw_in_training() -> None:
    """Also with batch statistics, and the statistics it leaves behind."""
    supernet = random_supernet(tiny_space(edges_per_node=1)).train()
    make_certain(supernet, depth=2, width=8)
    student = shrink(supernet, supernet.decide()).train()
    batch = batch_of(texts(7, (4, 6), 2))
    assert torch.allclose(supernet(*batch).logits[1], student(*batch).logits, atol=1e-4)
    again = shrink(supernet, supernet.decide()).state_dict()
    for name, tensor in student.state_dict().items():
        assert torch.allclose(again[name], tensor, atol=1e-5), name


@pytest.mark.parametrize("width", [8, 12])
def test_the_json_rebuilds_the_student(width: int) -> None:
    architecture = random_architecture(tiny_space(share_cells=False, widths=(width,)), np.random.default_rng(3))
    again = Architecture.from_dict(json.loads(json.dumps(architecture.to_dict())))
    config = tiny_config(problem_type="multi_label_classification")
    one, other = build_student(architecture, config), build_student(again, config)
    assert again == architecture and one.architecture == architecture
    shapes = [{name: tensor.shape for name, tensor in student.state_dict().items()} for student in (one, other)]
    assert shapes[0] == shapes[1]
    other.load_state_dict(one.state_dict())
    assert config.architecture is None and one.config.problem_type == config.problem_type and one.config.num_labels == 3


def test_shrinking_leaves_the_supernet_as_it_was() -> None:
    supernet = random_supernet(tiny_space())
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    student = shrink(supernet, supernet.decide())
    randomise(student)
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())


def test_random_members_are_members_and_uniform() -> None:
    space = tiny_space(operations=("conv3", "skip", "none"), never_derived=("none",), nodes=2, edges_per_node=2)
    generator = np.random.default_rng(0)
    drawn = [random_architecture(space, generator, seed=9) for _ in range(600)]
    for architecture in drawn:
        assert len(set(architecture.cells)) == 1 and architecture.width in space.widths and architecture.seed == 9
        Architecture.from_dict(architecture.to_dict())  # checks the sources
        for node, edges in enumerate(architecture.cells[0]):
            sources = [edge.source for edge in edges]
            assert sources == sorted(set(sources)) and len(sources) == 2 and max(sources) < node + 2
    # 600 draws: five standard deviations of a share are 0.1
    assert np.mean([a.depth for a in drawn]) == pytest.approx(2.0, abs=0.17)
    assert np.mean([a.width == 8 for a in drawn]) == pytest.approx(0.5, abs=0.1)
    assert np.mean([name == "conv3" for a in drawn for name in a.operations]) == pytest.approx(0.5, abs=0.05)
    assert all("none" not in a.operations for a in drawn)
    unshared = random_architecture(tiny_space(share_cells=False, cells=(3, 3)), generator)
    assert len(set(unshared.cells)) > 1


@pytest.mark.parametrize("least", [1, 2])
def test_random_members_learn_where_the_space_says_so(least: int) -> None:
    space, generator = (
        tiny_space(operations=("conv3", "skip", "max_pool3"), learned_per_node=least),
        np.random.default_rng(0),
    )
    counts = [
        sum(edge.operation == "conv3" for edge in node)
        for _ in range(400) for node in random_architecture(space, generator).cells[0]
    ]  # fmt: skip
    # two edges of three operations: one pair has two convolutions, four pairs have one; five deviations of 800 are 0.07
    assert min(counts) == least and (least == 2 or np.mean(np.equal(counts, 2)) == pytest.approx(1 / 5, abs=0.08))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_random_control_costs_the_same(seed: int) -> None:
    space = tiny_space(nodes=3)
    architecture = random_supernet(space).decide()
    control = random_architecture_like(architecture, space, LENGTH, seed)
    ours, target = (architecture_cost(a, LENGTH).macs for a in (control, architecture))
    assert abs(ours - target) <= 0.05 * target and control.seed == seed
    assert (control.cells, control.width) != (architecture.cells, architecture.width)
    assert random_architecture_like(architecture, space, LENGTH, seed) == control  # the seed's alone


def test_the_random_control_is_the_nearest_where_none_is_near() -> None:
    space = tiny_space(operations=("conv3", "skip"), widths=(8,), cells=(1, 1), nodes=1)
    wide = tiny_architecture(width=12, cells=3)  # out of that space's reach
    control = random_architecture_like(wide, space, LENGTH, seed=0, draws=50)
    assert control.operations == ["conv3", "conv3"]


@pytest.mark.parametrize("size", [3, 8])
def test_inherited_embeddings_lose_the_least(size: int) -> None:
    """Reference: the truncated singular value decomposition (Eckart & Young 1936)."""
    config = tiny_config(embedding_rank=6)
    architecture = tiny_architecture(width=8, embedding_size=size if size < 8 else None)
    student = build_student(architecture, config)
    word_VR = torch.randn(VOCAB, 6) @ torch.diag(torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.1])) @ torch.randn(6, 6)
    position = torch.randn(10, 6)
    untouched = student.trunk.embeddings.position.weight[10:].clone()
    inherit_embeddings(student.trunk, word_VR, position)
    embeddings = student.trunk.embeddings
    assert torch.equal(embeddings.word.weight, word_VR) and torch.equal(embeddings.position.weight[:10], position)
    assert torch.equal(embeddings.position.weight[10:], untouched)
    rows = min(size, 6)
    leading = embeddings.projection.weight.detach()[:rows]
    assert torch.allclose(leading @ leading.T, torch.eye(rows), atol=1e-5)
    u, s, vh = torch.linalg.svd(word_VR.double(), full_matrices=False)
    best_VR = (u[:, :rows] * s[:rows]) @ vh[:rows]
    # the Gram matrix is formed in float32: directions are good to about 1e-5 of the table's norm
    assert torch.allclose(word_VR @ leading.T @ leading, best_VR.float(), atol=1e-4 * s[0].item())
    smaller = build_student(tiny_architecture(width=8, embedding_size=2), config)
    inherit_embeddings(smaller.trunk, word_VR, None)
    assert torch.allclose(smaller.trunk.embeddings.projection.weight, leading[:2], atol=1e-5)
