"""GDAS: one sampled path, its gradient through what was picked alone. Dong & Yang 2019.

Our ``gumbel`` runs its cells in the same way, which it has from GDAS. What differs is the rest: here every gate, depth and
width too, hears of the loss through its picked element only (``gumbel`` tells the depth the loss of every exit, as AdaBERT
does), and the temperature falls in a straight line (the paper's from 10 to 0.1: ``temperature_start``, ``temperature_end``).
No cell runs beyond the drawn depth, so that a step costs a little less. The paper's architecture learns from held-out
texts, ``search.mode bilevel``; AdaBERT's from the same batch. Edges are drawn where the space draws them; GDAS keeps all.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from adasearch.search_method import STRATEGIES, SearchMethod
from adasearch.supernet import Draw, Supernet, SupernetOutput


@STRATEGIES.register("gdas")
class Gdas(SearchMethod):
    """Hard in the forward pass, exactly a member of the space; backward through the picked elements' relaxed weights."""

    published_mode = "bilevel"

    def temperature(self, done: float) -> float:
        start, end = self.config.temperature_start, self.config.temperature_end
        return start + (end - start) * done

    def draw(self, student: Supernet) -> Draw:
        return dataclasses.replace(student.draw(), every_exit=False)

    def mix(self, exits: list[dict[str, Tensor]], output: SupernetOutput) -> dict[str, Tensor]:
        """The drawn exit's terms times its weight, which is 1 and has a gradient; the probes (``worth_of``) without."""
        weight = output.depth_weights[output.drawn]
        return {name: term if name == "probes" else term * weight for name, term in exits[output.drawn].items()}
