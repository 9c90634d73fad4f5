"""The candidate operations: what an edge of a cell may do to a text.

An operation maps (B, D, L) to (B, D, L). Its input is zero on padding; its output may be anything there, since the
node that sums it masks it again. All follow one order: ReLU, convolution, normalisation (DARTS; AdaBERT's code in TensorFlow. Its code in PyTorch has the convolution first).

Dimensions: B batch, D width, L tokens, H heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adasearch.architecture import Macro
from adasearch.cost import Axes, Axis, Cost, weights_cost
from adasearch.masked_norm import Context, make_norm
from adasearch.registry import Registry

OPERATIONS: Registry[Callable[[int, Macro], Operation]] = Registry("operation")
WIDTH = "width"
SHARPNESS = 0.1  # of an alignment: about 1 / sqrt(D), a dot product's usual scale


class Operation(nn.Module):
    """Base class of an edge's operation at ``width`` channels.

    Subclasses build their layers, define ``forward``, and need no more: cost and shrinking follow from ``axes()``.
    """

    def __init__(self, width: int, macro: Macro):
        super().__init__()
        self.width = width

    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        """(B, D, L) -> (B, D, L)."""
        raise NotImplementedError

    def axes(self) -> dict[str, Axes]:
        """The axis of each dimension of each parameter and buffer: those of size ``width`` lie on the width axis.

        Right wherever no other dimension has that size by chance; an operation of another kind overrides it.
        """
        tensors = [*self.named_parameters(), *self.named_buffers()]
        return {name: tuple(WIDTH if n == self.width else n for n in tensor.shape) for name, tensor in tensors}

    def cost(self, sizes: Mapping[str, Axis], length: float) -> Cost:
        """Parameters, and MACs for one text of ``length`` tokens."""
        parameters = dict(self.named_parameters())
        return weights_cost({name: axes for name, axes in self.axes().items() if name in parameters}, sizes, length)


class Convolution(Operation):
    """ReLU, full convolution over tokens, normalisation. AdaBERT's std conv and, with dilation 2, dil conv."""

    def __init__(self, width: int, macro: Macro, *, kernel: int, dilation: int = 1):
        super().__init__(width, macro)
        self.convolution = nn.Conv1d(width, width, kernel, padding="same", dilation=dilation, bias=False)
        self.norm = make_norm(width, macro)

    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        return self.norm(self.convolution(x_BDL.relu()), context)


class SeparableConvolution(Operation):
    """ReLU, one filter a channel, then a 1 x 1 mix of the channels, normalisation: kD + D^2 weights instead of kD^2."""

    def __init__(self, width: int, macro: Macro, *, kernel: int, dilation: int = 1):
        super().__init__(width, macro)
        self.depthwise = nn.Conv1d(width, width, kernel, padding="same", dilation=dilation, groups=width, bias=False)
        self.pointwise = nn.Conv1d(width, width, 1, bias=False)
        self.norm = make_norm(width, macro)

    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        return self.norm(self.pointwise(self.depthwise(x_BDL.relu())), context)


class GatedConvolution(Operation):
    """A convolution times the sigmoid of another, normalisation. Gated linear unit, Dauphin et al. 2017, eq. 1."""

    def __init__(self, width: int, macro: Macro, *, kernel: int):
        super().__init__(width, macro)
        self.value = nn.Conv1d(width, width, kernel, padding="same", bias=False)
        self.gate = nn.Conv1d(width, width, kernel, padding="same", bias=True)
        self.norm = make_norm(width, macro)

    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        return self.norm(self.value(x_BDL) * self.gate(x_BDL).sigmoid(), context)


class MaxPool(Operation):
    """Largest value of each channel in a window of real tokens, normalisation."""

    def __init__(self, width: int, macro: Macro, *, kernel: int):
        super().__init__(width, macro)
        self.kernel = kernel
        self.norm = make_norm(width, macro)

    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        lowest = torch.finfo(x_BDL.dtype).min
        x_BDL = x_BDL.masked_fill(context.mask_B1L == 0, lowest)
        pooled_BDL = F.max_pool1d(x_BDL, self.kernel, stride=1, padding=self.kernel // 2)
        return self.norm(pooled_BDL.masked_fill(context.mask_B1L == 0, 0.0), context)


class AveragePool(Operation):
    """Mean of each channel over the real tokens of a window, normalisation."""

    def __init__(self, width: int, macro: Macro, *, kernel: int):
        super().__init__(width, macro)
        self.kernel = kernel
        self.norm = make_norm(width, macro)

    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        window = {"kernel_size": self.kernel, "stride": 1, "padding": self.kernel // 2}
        share_B1L = F.avg_pool1d(context.mask_B1L, **window).clamp_min(1e-6)
        return self.norm(F.avg_pool1d(x_BDL, **window) / share_B1L, context)


class Attention(Operation):
    """Multi-head attention, normalisation; in a pair, tokens look at their own text and the other alike.

    Heads have a fixed size (``macro.attention_head_size``) so that a narrower width has fewer heads, not thinner ones.
    """

    def __init__(self, width: int, macro: Macro):
        super().__init__(width, macro)
        self.head_size = min(macro.attention_head_size, width)
        self.query = nn.Conv1d(width, width, 1)
        self.key = nn.Conv1d(width, width, 1, bias=False)  # a bias here shifts all scores of a query alike: no effect
        self.value = nn.Conv1d(width, width, 1)
        self.output = nn.Conv1d(width, width, 1, bias=False)
        self.norm = make_norm(width, macro)

    def visible(self, context: Context) -> Tensor:
        """Which tokens (last dimension) each token (one before) may look at: bool, broadcastable to (B, 1, L, L)."""
        return context.mask_B1L.bool()[:, :, None, :]

    def attend(self, x_BDL: Tensor, context: Context) -> Tensor:
        """The attention-weighted values, (B, D, L)."""
        def heads(y_BDL: Tensor) -> Tensor:
            return y_BDL.unflatten(1, (-1, self.head_size)).mT  # (B, H, L, K)

        q_BHLK, k_BHLK, v_BHLK = heads(self.query(x_BDL)), heads(self.key(x_BDL)), heads(self.value(x_BDL))
        mixed_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, attn_mask=self.visible(context))
        mixed_BDL = mixed_BHLK.mT.flatten(1, 2)
        return mixed_BDL if context.keep_D is None else mixed_BDL * context.keep_D[:, None]

    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        return self.norm(self.output(self.attend(x_BDL, context)), context)

    def cost(self, sizes: Mapping[str, Axis], length: float) -> Cost:
        products = 2 * length**2 * sizes[WIDTH].moment(1)  # scores and weighted values: L^2 K each, in every head
        return super().cost(sizes, length) + Cost(0.0, products)


def other_text(context: Context) -> Tensor:
    """Which tokens (last dimension) are real ones of the text that a token (one before) is not of, (B, L, L) bool."""
    other_BLL = context.second_BL[:, None, :] != context.second_BL[:, :, None]
    return other_BLL & context.mask_B1L.bool()


class SoftAlignment(Operation):
    """Each token of a text against what it aligns to in the *other* text: W [a ; x * a ; x - a], normalisation.

    The local inference of ESIM (Chen et al. 2017, eq. 11-15) as one edge of a cell. As there, tokens align by the
    product of their vectors as they are: equal words find each other before anything is learned. Projections of random
    weights, as in an attention, would have to learn that from a few thousand pairs. Where there is no second text,
    nothing is visible and the operation compares with zero.
    """

    def __init__(self, width: int, macro: Macro):
        super().__init__(width, macro)
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))
        self.output = nn.Conv1d(width, width, 1, bias=False)
        self.product = nn.Conv1d(width, width, 1, bias=False)
        self.difference = nn.Conv1d(width, width, 1, bias=False)
        self.norm = make_norm(width, macro)

    def scores(self, x_BDL: Tensor, context: Context) -> Tensor:
        """How well a token (one before the last dimension) fits another (the last), (B, L, L)."""
        return (self.sharpness * x_BDL).mT @ x_BDL

    def align(self, x_BDL: Tensor, context: Context) -> Tensor:
        """The softmax-weighted tokens of the other text, (B, D, L); zero where there is none."""
        other_BLL = other_text(context)
        has_other_BL1 = other_BLL.any(-1, keepdim=True)
        # a softmax over nothing is NaN: who sees nobody sees all, and is blanked afterwards
        scores_BLL = self.scores(x_BDL, context).masked_fill(~(other_BLL | ~has_other_BL1), torch.finfo(x_BDL.dtype).min)
        return x_BDL @ (scores_BLL.softmax(-1) * has_other_BL1.to(x_BDL.dtype)).mT

    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        aligned_BDL = self.align(x_BDL, context)
        compared = self.output(aligned_BDL) + self.product(x_BDL * aligned_BDL) + self.difference(x_BDL - aligned_BDL)
        return self.norm(compared.relu(), context)

    def cost(self, sizes: Mapping[str, Axis], length: float) -> Cost:
        products = 2 * length**2 * sizes[WIDTH].moment(1)  # scores and weighted tokens
        return super().cost(sizes, length) + Cost(0.0, products)


class Skip(Operation):
    """The input itself."""

    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        return x_BDL


class Zero(Operation):
    """Nothing: the edge is absent."""

    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        return torch.zeros_like(x_BDL)


def register_operation(name: str, **settings: int) -> Callable[[type[Operation]], type[Operation]]:
    """Class decorator: file an operation, with its settings, under the name that a space's YAML uses.

        @register_operation("my_conv9", kernel=9)
        class MyConvolution(Operation): ...
    """

    def add(cls: type[Operation]) -> type[Operation]:
        OPERATIONS.register(name)(lambda width, macro: cls(width, macro, **settings))
        return cls

    return add


for _kernel in (3, 5, 7):
    register_operation(f"conv{_kernel}", kernel=_kernel)(Convolution)
    register_operation(f"dilated_conv{_kernel}", kernel=_kernel, dilation=2)(Convolution)
    register_operation(f"sep_conv{_kernel}", kernel=_kernel)(SeparableConvolution)
    register_operation(f"dilated_sep_conv{_kernel}", kernel=_kernel, dilation=2)(SeparableConvolution)
    register_operation(f"gated_conv{_kernel}", kernel=_kernel)(GatedConvolution)
    register_operation(f"max_pool{_kernel}", kernel=_kernel)(MaxPool)
    register_operation(f"avg_pool{_kernel}", kernel=_kernel)(AveragePool)
register_operation("self_attention")(Attention)
register_operation("soft_alignment")(SoftAlignment)
register_operation("skip")(Skip)
register_operation("none")(Zero)
