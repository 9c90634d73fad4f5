"""What a method is: hooks around the one training loop. Plain training on gold labels is the base class itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adasearch.fit_config import FitConfig
from adasearch.inherited import Inherited
from adasearch.objectives import task_loss

Batch = dict[str, Tensor]
BatchOf = Callable[[str], "dict[str, Tensor]"]  # the name of a split -> this step's batch of it
Phase = tuple[Sequence[str], str]  # (which groups learn, from which split); see ``Method.phases``


@dataclass
class Group:
    """Parameters that learn alike, with an optimiser of their own.

    ``params`` are torch parameter groups (weight decay differs between matrices and vectors); ``schedule`` is
    "cosine" or "linear" (both after a linear warm-up, down to zero) or "constant", or a function of the step that gives the
    share of the learning rate; ``settings`` go to the optimiser; ``is_clipped`` whether ``clip_norm`` is for it.
    """

    name: str
    params: list[dict[str, Any]]
    learning_rate: float
    schedule: str | Callable[[int], float] = "cosine"
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW
    settings: dict[str, Any] = field(default_factory=dict)
    is_clipped: bool = True


def weight_groups(modules: Sequence[nn.Module], weight_decay: float, exclude: Sequence[Tensor] = ()) -> list[dict[str, Any]]:
    """All parameters of ``modules`` but ``exclude``, decay on matrices only: vectors are biases, gains and gates."""
    left_out = {id(parameter) for parameter in exclude}
    params = [p for module in modules for p in module.parameters() if p.requires_grad and id(p) not in left_out]
    matrices, vectors = [p for p in params if p.ndim > 1], [p for p in params if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


class Method(nn.Module):
    """Hooks of the training loop, all with defaults. State that must survive a kill lives in buffers and parameters.

    Args:
        config: steps, batch size, learning rate and so on.
        problem_type: single_label, multi_label or regression.
    """

    schedule = "cosine"

    def __init__(self, config: FitConfig, problem_type: str):
        super().__init__()
        self.config, self.problem_type = config, problem_type

    def attach(self, student: nn.Module) -> None:
        """Put into the model what the method needs, before any optimiser exists."""

    def groups(self, student: nn.Module) -> list[Group]:
        """Who learns, and how."""
        params = weight_groups([student, self], self.config.weight_decay)
        return [Group("weights", params, self.config.learning_rate, self.schedule)]

    def student_groups(self, student: nn.Module, word_table: nn.Embedding, exclude: Sequence[Tensor] = ()) -> list[Group]:
        """"weights", and "embeddings": the word table, of which a batch touches a few rows.

        Its gradient is sparse and SparseAdam updates those rows alone (Adam's moments of the others rest): the step
        of a small student would else be spent on filling a gradient of millions of zeros.
        """
        word_table.sparse = True
        blocks = [part for module in student.modules() if isinstance(module, Inherited) for part in module.block]
        inherited = [parameter for part in blocks for parameter in part.parameters()]
        weights = weight_groups([student, self], self.config.weight_decay, [*exclude, word_table.weight, *inherited])
        if inherited:  # the rate at which convolutions learn from nothing would wipe out what a layer of the teacher knows
            slow = weight_groups(blocks, self.config.weight_decay)
            weights += [{**params, "rate": self.config.inherited_rate} for params in slow]
        rate = self.config.learning_rate
        table = [{"params": [word_table.weight]}]
        return [
            Group("weights", weights, rate, self.schedule),
            Group("embeddings", table, rate * self.config.embedding_rate, self.schedule, torch.optim.SparseAdam),
        ]

    def begin_step(self, student: nn.Module, step: int, steps: int) -> None:
        """Set what depends on the step (temperatures, frozen parts); must depend on nothing else."""

    def phases(self, step: int) -> list[Phase]:
        """Which groups (by name; "all") learn from which split in this step, in order."""
        return [(("all",), "train")]

    def before_loss(self, student: nn.Module, learners: Sequence[str], batch_of: BatchOf) -> None:
        """Before each phase's loss. A method that moves weights here puts them back in ``after_backward``."""

    def loss(self, student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Contributions to the loss by name, scalars; their sum is minimised."""
        logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return {"ce": task_loss(logits, batch["labels"], self.problem_type).mean()}

    def after_backward(self, student: nn.Module, learners: Sequence[str], batch_of: BatchOf) -> None:
        """Between a phase's gradients and the step they make: correct them here."""

    def weight(self, batch: Batch) -> float:
        """How many things in this batch the loss is a mean over; examples. Processes that share a batch count with it."""
        return len(batch["input_ids"])

    def measures(self, student: nn.Module) -> dict[str, Any]:
        """What the history should hold beside the loss, JSON-ready."""
        return {}

    def after_step(self, student: nn.Module, step: int) -> bool:
        """True ends the training early."""
        return False

    def finish(self, student: nn.Module) -> None:
        """Leave the model as it is meant to be used."""
