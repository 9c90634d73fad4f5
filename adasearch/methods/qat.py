"""Quantisation-aware training: a task model learns to be itself in int8, from the dense model that teaches it.

Prune Once for All, stage 4 (Zafrir et al. 2021; specs c.6): the locked pattern and the distillation of fine-tuning go on.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from adasearch.methods.base import Group, weight_groups
from adasearch.prune_ofa_config import Int8Config
from adasearch.quantize_aware import Int8Layers, attach_int8, find_int8
from adasearch.taught_method import Taught


class QuantizeAware(Taught):
    """int8 weights and activations while training, the gradient straight through the rounding.

    Masks that the student has stay as they are and come before the rounding. The student keeps its quantisers when training
    ends: ``int8_twin`` and ``bake_int8`` make something of them.

    ``int8`` says what is quantised and how; the rest is as in ``Taught``.
    """

    def __init__(self, *args: Any, int8: Int8Config, **options: Any):
        super().__init__(*args, **options)
        self.int8, self.layers = int8, Int8Layers()

    def attach(self, student: PreTrainedModel) -> None:
        """Quantisers into the student, unless it has them already."""
        self.layers = find_int8(student)
        if not self.layers.weights:
            settings = self.int8
            self.layers = attach_int8(
                student, quantizer=settings.quantizer, per=settings.per, outputs=settings.outputs, exclude=settings.exclude,
                embeddings=settings.embeddings, momentum=settings.momentum,
            )  # fmt: skip

    def groups(self, student: PreTrainedModel) -> list[Group]:
        """"weights", and "scales" where a quantiser learns some: without weight decay."""
        scales, rate = self.layers.learned(), self.config.learning_rate
        groups = [Group("weights", weight_groups([student], self.config.weight_decay, exclude=scales), rate, self.schedule)]
        if scales:
            groups.append(Group("scales", [{"params": scales, "weight_decay": 0.0}], rate, self.schedule))
        return groups

    def begin_step(self, student: PreTrainedModel, step: int, steps: int) -> None:
        """Activations are rounded from ``delay`` on, their ranges rest from ``freeze`` on; both depend on the step alone."""
        for quantizer in self.layers.activations:
            quantizer.is_rounding = step >= self.int8.delay * steps
            quantizer.is_observing = step < max(1, self.int8.freeze * steps)

    def finish(self, student: PreTrainedModel) -> None:
        """Everything rounds: a delay longer than the training would leave a model that was never int8."""
        for quantizer in self.layers.activations:
            quantizer.is_rounding, quantizer.is_observing = True, True
