"""Fixed networks: a teacher on gold labels, a student on its teacher."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from adasearch.fit_config import DistillConfig, FitConfig
from adasearch.methods.base import Batch, Group, Method
from adasearch.objectives import Distillation, task_loss


class Finetune(Method):
    """A checkpoint on gold labels: linear warm-up and decay, as BERT's authors fine-tune."""

    schedule = "linear"

    def __init__(self, config: FitConfig, problem_type: str, forward: Callable[[Tensor, Tensor], Tensor]):
        super().__init__(config, problem_type)
        self.forward_teacher = forward  # (input_ids, attention_mask) -> logits, segment ids included

    def loss(self, student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = self.forward_teacher(batch["input_ids"], batch["attention_mask"])
        return {"ce": task_loss(logits, batch["labels"], self.problem_type).mean()}


class Distill(Method):
    """A derived student on gold labels and, where the batch has them, its teacher's logits and probes."""

    def __init__(self, config: FitConfig, distill: DistillConfig, problem_type: str, num_labels: int, width: int, depth: int):
        super().__init__(config, problem_type)
        self.objective = Distillation(distill, problem_type, num_labels, width, depth)

    def groups(self, student: nn.Module) -> list[Group]:
        return self.student_groups(student, student.get_input_embeddings())

    def finish(self, student: nn.Module) -> None:
        student.get_input_embeddings().sparse = False
        student.fold_embeddings()

    def loss(self, student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        output = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return self.objective(output.logits, list(output.hidden_states[:-1]), batch)
