"""What quantisation does to a language model, as pictures: its weights, its scales, how alike its tokens become.

The last is QuantGPT's diagnosis (Tao et al. 2022): in a model of few bits the states of different tokens
become homogeneous.

Dimensions: L tokens of a text, D hidden.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from adasearch.canvas import INK, LINE_COLOURS
from adasearch.errors import ConfigError
from adasearch.quantize_model import token_tables

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PANELS = 24  # most weights that one picture shows
COLUMNS = 4
BINS = 81
MOST_STEMS = 16  # more levels than these are drawn as a curve
TAIL = 0.001  # share of the weights left of and right of the picture: a single far one would squeeze the others
MOST_TOKENS = 24  # of a text whose tokens are compared: they can still be read
BEFORE, AFTER = "#B9B9B9", LINE_COLOURS[0]
MARKERS = "osD^vPX*<>hd"


def weights_figure(before: Mapping[str, Tensor], after: Mapping[str, Tensor], title: str) -> Figure:
    """Each weight's distribution before and after, a panel a module. Raises ``ConfigError`` when there is none.

    ``after`` holds the quantised values under the names of ``before``. Of more than ``PANELS`` weights some are shown, evenly
    spread.
    """
    names = [name for name in after if name in before]
    if not names:
        raise ConfigError("weights: none is quantised, so there is no distribution to draw")
    if len(names) > PANELS:
        names = [names[i] for i in np.linspace(0, len(names) - 1, PANELS).round().astype(int)]
    rows = math.ceil(len(names) / COLUMNS)
    figure = Figure(figsize=(11, 1.0 + 1.65 * rows), facecolor="white", layout="constrained")
    figure.suptitle(title, size=12, weight="bold", color=INK, x=0.012, ha="left")
    for index, name in enumerate(names):
        ax = figure.add_subplot(rows, COLUMNS, index + 1)
        _distribution(ax, before[name].detach().flatten().cpu().numpy(), after[name].detach().flatten().cpu().numpy())
        ax.set_title(short_name(name), size=8.5, loc="left", color=INK)
    handles = [
        Patch(color=BEFORE, label="full precision, density (its peak at 1)"),
        Line2D([], [], color=AFTER, marker="o", markersize=4, linewidth=1.6, label="quantised: share of the weights at a level"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=2, fontsize=8.5, frameon=False)
    return figure


def _distribution(ax: Axes, before_N: np.ndarray, after_N: np.ndarray) -> None:
    levels_K, counts_K = np.unique(after_N, return_counts=True)
    low, high = np.quantile(before_N, [TAIL, 1 - TAIL])
    reach = 1.05 * max(abs(low), abs(high), *((abs(levels_K[[0, -1]])) if len(levels_K) <= MOST_STEMS else (0.0,)))
    edges = np.linspace(-reach, reach, BINS + 1)
    density, _ = np.histogram(before_N, edges)
    ax.fill_between((edges[1:] + edges[:-1]) / 2, density / max(1, density.max()), color=BEFORE, linewidth=0, step="mid")
    if len(levels_K) <= MOST_STEMS:
        ax.vlines(levels_K, 0, counts_K / len(after_N), color=AFTER, linewidth=1.6)
        ax.plot(levels_K, counts_K / len(after_N), "o", color=AFTER, markersize=3.5)
    else:
        found, _ = np.histogram(after_N, edges)
        ax.step((edges[1:] + edges[:-1]) / 2, found / max(1, found.max()), color=AFTER, linewidth=1.2, where="mid")
    ax.set(xlim=(-reach, reach), ylim=(0, 1.06))
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=7, colors=INK)
    ax.xaxis.set_major_locator(MaxNLocator(3, symmetric=True))
    ax.set_yticks([0, 1])


def short_name(weight: str) -> str:
    """``transformer.h.3.attn.c_attn.weight`` -> ``3 attn.c_attn``; ``model.decoder.layers.0.fc1.weight`` -> ``decoder 0 fc1``."""
    stack, layer, kind = place_of(weight)
    return " ".join(part for part in (stack, None if layer is None else str(layer), kind) if part)


def place_of(weight: str) -> tuple[str, int | None, str]:
    """Stack ("" where there is one only), layer (None outside the layers) and kind of a weight, by its name."""
    found = re.fullmatch(r"(.*?)\.(\d+)\.(.*?)(\.weight)?", weight)
    if found is None:
        return "", None, {"wte": "token embedding", "shared": "token embedding"}.get(weight.split(".")[-2], weight.removesuffix(".weight"))
    stack = next((side for side in ("encoder", "decoder") if side in found.group(1)), "")
    return stack, int(found.group(2)), found.group(3)


def scales_figure(scales: Mapping[str, float], title: str, label: str, start: Mapping[str, float] | None = None) -> Figure:
    """One number a module, over the layers, a line for each kind of module; where it began in pale.

    Raises ``ConfigError`` when there is none.
    """
    if not scales:
        raise ConfigError("scales: there is none to draw")
    places = {name: place_of(name) for name in scales}
    stacks = sorted({stack for stack, layer, _ in places.values() if layer is not None})
    figure = Figure(figsize=(6.2 * max(1, len(stacks)), 4.2), facecolor="white", layout="constrained")
    figure.suptitle(title, size=12, weight="bold", color=INK, x=0.012, ha="left")
    shared: Axes | None = None
    for index, stack in enumerate(stacks or [""]):
        ax = figure.add_subplot(1, max(1, len(stacks)), index + 1, sharey=shared)
        shared = shared or ax
        kinds = list(dict.fromkeys(kind for s, layer, kind in places.values() if s == stack and layer is not None))
        for number, kind in enumerate(kinds):
            style = {"color": LINE_COLOURS[number % len(LINE_COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 5}
            for values, alpha, name in ((start, 0.3, None), (scales, 1.0, kind)):
                at = {places[n][1]: v for n, v in (values or {}).items() if n in places and places[n][0] == stack and places[n][2] == kind}
                ax.plot(list(at), list(at.values()), alpha=alpha, linewidth=1.4, label=name, linestyle="-" if name else ":", **style)
        for name, value in scales.items():
            if places[name][1] is None:
                ax.axhline(value, color=INK, linewidth=1.1, linestyle="--", label=places[name][2])
        ax.set_title(stack, size=9.5, weight="bold", loc="left", color=INK)
        ax.set_xlabel("layer" + (" (pale: early in the training)" if start else ""), size=8.5)
        ax.set_ylabel(label if ax is shared else "", size=8.5)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8, colors=INK)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.margins(y=0.12)
        ax.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@torch.inference_mode()
def token_similarity(model: PreTrainedModel, ids_L: Tensor, of: str = "states") -> np.ndarray:
    """Cosines between the tokens of a text, (L, L): of their last "states", or of their "embeddings".

    A sequence-to-sequence model reads the text as its source and as its target. The model is left as it is found.
    """
    was_training = model.training
    model.eval()
    ids_1L = ids_L[None].to(model.device)
    if of == "embeddings":
        states_LD = token_tables(model)[-1](ids_1L)[0]  # the decoder's, where a BART has several
    else:
        decoder = {"decoder_input_ids": ids_1L} if model.config.is_encoder_decoder else {}
        output = model(input_ids=ids_1L, output_hidden_states=True, use_cache=False, **decoder)
        states_LD = (output.get("decoder_hidden_states") or output.get("hidden_states"))[-1][0]
    model.train(was_training)
    unit_LD = F.normalize(states_LD.float(), dim=-1)
    return (unit_LD @ unit_LD.mT).cpu().numpy()


def mean_similarity(cosines_LL: np.ndarray) -> float:
    """Mean cosine of different tokens: 1 where all are alike."""
    count = len(cosines_LL)
    return float((cosines_LL.sum() - np.trace(cosines_LL)) / max(1, count * (count - 1)))


def similarity_figure(
    models: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, text: str, kinds: Sequence[str] = ("embeddings", "states")
) -> Figure:
    """Cosines between the tokens of one text, a column for each model, a row for the token embeddings and for the last states.

    Only different tokens are shown, each where it stands first: equal ones are alike in any model. Raises ``ConfigError`` for a
    text of fewer than two of them.
    """
    most = min(model.config.max_position_embeddings for model in models.values())
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:most]
    first = {token: place for place, token in reversed(list(enumerate(ids)))}
    places = sorted(first.values())[:MOST_TOKENS]
    if len(places) < 2:
        raise ConfigError(f"text: {text!r} has {len(places)} different tokens; expected: 2 or more")
    words = [tokenizer.decode([ids[place]]).strip() or "␣" for place in places]
    figure = Figure(figsize=(1.2 + 3.6 * len(models), 0.9 + 3.7 * len(kinds)), facecolor="white", layout="constrained")
    figure.suptitle("Cosine similarity of different tokens", size=12, weight="bold", color=INK, x=0.012, ha="left")
    axes, image = [], None
    for row, kind in enumerate(kinds):
        for column, (name, model) in enumerate(models.items()):
            ax = figure.add_subplot(len(kinds), len(models), row * len(models) + column + 1)
            cosines_LL = token_similarity(model, torch.tensor(ids), kind)[np.ix_(places, places)]
            image = ax.imshow(cosines_LL, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            what = {"embeddings": "token embeddings", "states": "last states"}[kind]
            ax.set_title(f"{name}: {what}\nmean {mean_similarity(cosines_LL):.2f}", size=9.5, weight="bold", loc="left", color=INK)
            ax.set_xticks(range(len(words)), words, rotation=90, size=6.5)
            ax.set_yticks(range(len(words)), words if column == 0 else [], size=6.5)
            ax.tick_params(length=0, pad=1.5)
            axes.append(ax)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure
