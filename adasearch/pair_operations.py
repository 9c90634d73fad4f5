"""Operations between the two texts of a pair, beside the soft alignment of ``operations.py``.

All of them see the other text alone: where there is none they compare with zero. None learns from nothing to compare:
each starts from a comparison of the vectors as they are, which a few thousand pairs would not teach random projections.

Dimensions: B batch, D width, L tokens, P perspectives, S sides (the first text, the second).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adasearch.architecture import Macro
from adasearch.cost import Axes, Axis, Cost, weights_cost
from adasearch.masked_norm import Context, make_norm
from adasearch.operations import WIDTH, Operation, SoftAlignment, other_text, register_operation

PERSPECTIVES = 8  # BiMPM has 20 in a far wider network; each costs L^2 D
SMALLEST_NORM = 1e-6  # a zero vector's cosine with anything is 0


def sides(context: Context) -> Tensor:
    """Which real tokens are of the first text and which of the second, (B, 2, L) bool."""
    real_BL, second_BL = context.mask_B1L[:, 0].bool(), context.second_BL
    return torch.stack([real_BL & ~second_BL, real_BL & second_BL], 1)


class CrossAttention(SoftAlignment):
    """Soft alignment by learned projections that start as the identity: W [a ; x * a ; x - a], normalisation.

    Before anything is learned it is ``soft_alignment``. What it can learn beyond: which words answer each other without
    being alike (a question's "when" and a year), which a product of the vectors as they are cannot say.
    """

    def __init__(self, width: int, macro: Macro):
        super().__init__(width, macro)
        self.query = nn.Conv1d(width, width, 1, bias=False)
        self.key = nn.Conv1d(width, width, 1, bias=False)
        for layer in (self.query, self.key):
            nn.init.dirac_(layer.weight)

    def scores(self, x_BDL: Tensor, context: Context) -> Tensor:
        query_BDL = self.sharpness * self.query(x_BDL)
        if context.keep_D is not None:  # a projection fills dropped channels again
            query_BDL = query_BDL * context.keep_D[:, None]
        return query_BDL.mT @ self.key(x_BDL)


class PairCompare(Operation):
    """Each token against the other text as a whole, its largest value in every channel: no product of lengths.

    W x + V [g ; m * g ; |m - g|], ReLU, normalisation; m is the largest of the token's own text, g that of the other.
    The comparison of InferSent (Conneau et al. 2017, section 3.1), given back to every token. The part in V is the same
    for all tokens of a text and is computed once.
    """

    def __init__(self, width: int, macro: Macro):
        super().__init__(width, macro)
        self.token = nn.Conv1d(width, width, 1, bias=False)
        self.other = nn.Conv1d(width, width, 1, bias=False)
        self.product = nn.Conv1d(width, width, 1, bias=False)
        self.difference = nn.Conv1d(width, width, 1, bias=False)
        self.norm = make_norm(width, macro)

    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        side_BSL = sides(context)
        lowest = torch.finfo(x_BDL.dtype).min
        pooled_BDS = torch.stack(
            [x_BDL.masked_fill(~side_B1L, lowest).amax(-1) for side_B1L in side_BSL.split(1, 1)], -1
        )
        pooled_BDS = pooled_BDS * side_BSL.any(-1)[:, None].to(x_BDL.dtype)  # a text that is not there is zero
        other_BDS = pooled_BDS.flip(-1)
        whole_BDS = self.other(other_BDS) + self.product(pooled_BDS * other_BDS) + self.difference((pooled_BDS - other_BDS).abs())
        second_B1L = context.second_BL[:, None].to(x_BDL.dtype)
        told_BDL = whole_BDS[:, :, :1] * (1 - second_B1L) + whole_BDS[:, :, 1:] * second_B1L
        return self.norm((self.token(x_BDL) + told_BDL).relu(), context)

    def cost(self, sizes: Mapping[str, Axis], length: float) -> Cost:
        once = {"other.weight", "product.weight", "difference.weight"}  # of each text's vector: twice a pair
        parameters = {name: self.axes()[name] for name, _ in self.named_parameters()}
        return weights_cost({name: axes for name, axes in parameters.items() if name not in once}, sizes, length) + weights_cost(
            {name: parameters[name] for name in once}, sizes, 2
        )


class MaxMatching(Operation):
    """How well each token is matched by the best token of the other text, from several perspectives; both ways at once.

    cos(w_p * x_i, w_p * x_j), the largest over the other text's j, for P weightings w_p: the max-pooling matching of
    BiMPM (Wang, Hamza & Florian 2017, section 3.2). W x + V m, ReLU, normalisation. The first weighting starts at one,
    the plain cosine; the others near it, since equal ones would stay equal.
    """

    def __init__(self, width: int, macro: Macro):
        super().__init__(width, macro)
        self.perspectives = nn.Parameter(torch.ones(PERSPECTIVES, width))
        with torch.no_grad():
            self.perspectives[1:] += 0.5 * torch.randn(PERSPECTIVES - 1, width)
        self.token = nn.Conv1d(width, width, 1, bias=False)
        self.match = nn.Conv1d(PERSPECTIVES, width, 1, bias=False)
        self.norm = make_norm(width, macro)

    def axes(self) -> dict[str, Axes]:
        """As ever, but for the perspectives, whose number may be a width's."""
        own = {"perspectives": (PERSPECTIVES, WIDTH), "match.weight": (WIDTH, PERSPECTIVES, 1)}
        return {**super().axes(), **own}

    def matches(self, x_BDL: Tensor, context: Context) -> Tensor:
        """The largest cosine with a token of the other text, (B, P, L); 0 where there is none."""
        weights_PD = self.perspectives.square()
        norms_BPL = (weights_PD @ x_BDL.square()).clamp_min(SMALLEST_NORM**2).sqrt()
        weighted_BPLD = x_BDL.mT[:, None] * weights_PD[:, None]
        products_BPLL = weighted_BPLD @ x_BDL[:, None]
        cosines_BPLL = products_BPLL / (norms_BPL[:, :, :, None] * norms_BPL[:, :, None, :])
        other_B1LL = other_text(context)[:, None]
        best_BPL = cosines_BPLL.masked_fill(~other_B1LL, -2.0).amax(-1)  # below any cosine
        return best_BPL * other_B1LL.any(-1).to(x_BDL.dtype)

    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        return self.norm((self.token(x_BDL) + self.match(self.matches(x_BDL, context))).relu(), context)

    def cost(self, sizes: Mapping[str, Axis], length: float) -> Cost:
        products = PERSPECTIVES * length**2 * sizes[WIDTH].moment(1)  # every token with every other, from every side
        return super().cost(sizes, length) + Cost(0.0, products)


register_operation("cross_attention")(CrossAttention)
register_operation("pair_compare")(PairCompare)
register_operation("max_matching")(MaxMatching)
