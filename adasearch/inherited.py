"""A candidate that is a layer of the teacher: its transformer block, pruned to a share of its heads and neurons.

In cell number k it is the teacher's layer number k, counted alike from 1; ``inherit_layers.py`` puts the weights in. A space
whose width is the teacher's hidden size takes it as it is. At any other width the text is led into the teacher's space
and back by two projections, which search and training may bend. Either way one space spans from convolutions to a few
layers of the teacher, and the budget decides.

Dimensions: B batch, D width, L tokens, M the teacher's hidden size, H heads kept, K head size, F neurons kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from adasearch.architecture import Macro
from adasearch.cost import Axes, Axis, Cost
from adasearch.errors import ConfigError
from adasearch.masked_norm import Context, make_norm
from adasearch.operations import WIDTH, Operation, register_operation

BLOCK_EPS = 1e-12  # of BERT's and DistilBERT's normalisations; RoBERTa has 1e-5, which is below what training moves


class Inherited(Operation):
    """A post-norm transformer block (Devlin et al. 2019) with ``percent`` of the teacher's heads and neurons, at least one of each.

    The keys have no bias: it shifts all scores of a query alike. Raises ``ConfigError`` when ``macro`` does not say the
    teacher's sizes.
    """

    def __init__(self, width: int, macro: Macro, *, percent: int):
        super().__init__(width, macro)
        size, heads, neurons = macro.teacher_size, macro.teacher_heads, macro.teacher_neurons
        if size is None or heads is None or neurons is None:
            raise ConfigError(
                f"operation 'inherited_{percent}': macro.teacher_size, teacher_heads and teacher_neurons are missing;"
                " give the teacher's hidden size, heads and feed-forward neurons"
            )
        self.percent, self.head_size = percent, size // heads
        self.heads, self.neurons = (math.ceil(count * percent / 100) for count in (heads, neurons))
        inner = self.heads * self.head_size
        self.up = nn.Linear(width, size, bias=False) if width != size else None
        self.query, self.value = nn.Linear(size, inner), nn.Linear(size, inner)
        self.key = nn.Linear(size, inner, bias=False)
        self.output = nn.Linear(inner, size)
        self.attention_norm = nn.LayerNorm(size, eps=BLOCK_EPS)
        self.widen, self.narrow = nn.Linear(size, self.neurons), nn.Linear(self.neurons, size)
        self.output_norm = nn.LayerNorm(size, eps=BLOCK_EPS)
        self.down = nn.Linear(size, width, bias=False) if width != size else None
        self.norm = make_norm(width, macro) if width != size else None

    @property
    def block(self) -> list[nn.Module]:
        """What holds the teacher's weights: it learns at a rate of its own."""
        return [self.query, self.key, self.value, self.output, self.attention_norm, self.widen, self.narrow, self.output_norm]

    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        x_BLM = x_BDL.mT if self.up is None else self.up(x_BDL.mT)

        def heads(y_BLI: Tensor) -> Tensor:
            return y_BLI.unflatten(-1, (self.heads, self.head_size)).transpose(1, 2)  # (B, H, L, K)

        q_BHLK, k_BHLK, v_BHLK = heads(self.query(x_BLM)), heads(self.key(x_BLM)), heads(self.value(x_BLM))
        visible_B11L = context.mask_B1L.bool()[:, :, None, :]
        mixed_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, attn_mask=visible_B11L)
        x_BLM = self.attention_norm(x_BLM + self.output(mixed_BHLK.transpose(1, 2).flatten(2)))
        x_BLM = self.output_norm(x_BLM + self.narrow(F.gelu(self.widen(x_BLM))))
        return x_BLM.mT if self.down is None else self.norm(self.down(x_BLM).mT, context)

    def axes(self) -> dict[str, Axes]:
        """Only what the projections and their normalisation have in the student's space lies on the width axis."""
        tensors = dict([*self.named_parameters(), *self.named_buffers()])
        own = {name: axes for name, axes in super().axes().items() if name.startswith("norm.")}
        if self.up is not None:
            size = self.up.out_features
            own |= {"up.weight": (size, WIDTH), "down.weight": (WIDTH, size)}
        return {name: own.get(name, tuple(tensor.shape)) for name, tensor in tensors.items()}

    def cost(self, sizes: Mapping[str, Axis], length: float) -> Cost:
        products = 2 * length**2 * self.heads * self.head_size  # scores and weighted values
        return super().cost(sizes, length) + Cost(0.0, float(products))


for _percent in (25, 50, 75, 100):
    register_operation(f"inherited_{_percent}", percent=_percent)(Inherited)
