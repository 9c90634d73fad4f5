"""A supernet taught before any task: uniformly drawn members see texts as the teacher does, without labels.

Each level of a member is led by a linear map to the pooled state of a layer of the teacher, and what its read-out would
classify to the teacher's sentence vector (hidden-state distillation, Jiao et al. 2020, section 3.1; of the sentence
vector, Reimers & Gurevych 2020). The maps are thrown away: what stays are embeddings, operations and the weights of levels.

Dimensions: B batch, P levels of the student (embeddings and cells), M the teacher's hidden size, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adasearch.fit_config import FitConfig
from adasearch.gates import gates_of
from adasearch.methods.base import Batch, Group, Method
from adasearch.supernet import Supernet


def direction_loss(found_BM: Tensor, wanted_BM: Tensor, cosine_weight: float) -> Tensor:
    """Squared error a dimension and 1 - cosine, shared out by ``cosine_weight``; the mean over examples, a scalar."""
    squared = (found_BM - wanted_BM).square().mean()
    return (1 - cosine_weight) * squared + cosine_weight * (1 - F.cosine_similarity(found_BM, wanted_BM)).mean()


class Warm(Method):
    """Uniformly drawn members of a supernet on ``teacher_states`` (B, P, M), the last of which is the sentence vector.

    Args:
        mean_PM: of the teacher's states over texts; they are standardised by it and ``scale_PM``, so that every dimension of
            every level counts alike.
        level_weight: share of the loss given to the levels.
        cosine_weight: see ``direction_loss``.
    """

    def __init__(
        self, config: FitConfig, mean_PM: Tensor, scale_PM: Tensor, level_weight: float = 0.5, cosine_weight: float = 0.5
    ):
        super().__init__(config, "single_label")
        self.level_weight, self.cosine_weight = level_weight, cosine_weight
        self.register_buffer("mean_PM", mean_PM)
        self.register_buffer("scale_PM", scale_PM)

    def attach(self, student: Supernet) -> None:
        levels, size = self.mean_PM.shape
        width = max(student.space.widths)
        assert levels == student.space.cells[1] + 1, "one state of the teacher for the embeddings and for each cell"
        self.level_maps = nn.ModuleList(nn.Linear(width, size) for _ in range(levels))
        self.sentence_map = nn.Linear(width, size)

    def groups(self, student: Supernet) -> list[Group]:
        gates = [gate.logits for gate in gates_of(student)]  # they choose nothing here
        return self.student_groups(student, student.trunk.embeddings.word, exclude=gates)

    def begin_step(self, student: Supernet, step: int, steps: int) -> None:
        for gate in gates_of(student):
            gate.is_frozen = True

    def loss(self, student: Supernet, batch: Batch) -> dict[str, Tensor]:
        output = student(batch["input_ids"], batch["attention_mask"])
        wanted_BPM = (batch["teacher_states"] - self.mean_PM) / self.scale_PM
        depth_weights = student.trunk.read_out.level_logits[output.drawn, : len(output.levels)].softmax(0)
        mixed_BD = sum(weight * level for weight, level in zip(depth_weights.unbind(), output.levels))
        sentence = direction_loss(self.sentence_map(mixed_BD.tanh()), wanted_BPM[:, -1], self.cosine_weight)
        levels = torch.stack(
            [
                direction_loss(self.level_maps[k](level.tanh()), wanted_BPM[:, k], self.cosine_weight)
                for k, level in enumerate(output.levels)
            ]
        ).mean()
        return {"sentence": (1 - self.level_weight) * sentence, "levels": self.level_weight * levels}

    def finish(self, student: Supernet) -> None:
        student.trunk.embeddings.word.sparse = False
        for gate in gates_of(student):
            gate.is_frozen = False
