"""Augmentation: new texts made from the training texts in word-piece ids, for the teacher to label.

Nothing here knows a label, and nothing is tokenised again: a text is taken apart into its frame (``[CLS]``, ``[SEP]``)
and its segments (the sentences), changed at word boundaries, and put back into the same frame. Jiao et al. 2020
(TinyBERT, section 3.3) and Tang et al. 2019 found as much gain in such texts as in the distillation itself.

Dimensions: V vocabulary, D embedding width, K candidates, M masked words, B batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adasearch.errors import ModelError, loading
from adasearch.registry import Registry
from adasearch.task_config import TransferConfig
from adasearch.tokens import TokenStore
from adasearch.word_pieces import Pieces, Text, split_text

ONE_SIDE = 2 / 3  # of the pairs have only one of their sentences changed (Tang et al. 2019)
MLM_BATCH = 32  # texts a forward pass: 32 x 64 x 30,522 logits are 250 MB


def neighbours_table(
    embeddings: np.ndarray, candidates: int, pieces: Pieces, *, restrict: np.ndarray | None = None
) -> np.ndarray:
    """The ``candidates`` nearest pieces of each piece by cosine of ``embeddings`` (V, D), nearest first: (V, K) int32.

    Only pieces of the same kind are near: those that begin words for those that begin words, inner ones for inner ones;
    never the piece itself, a special or an unused one. Rows of such pieces, and of those outside ``restrict`` (the ids
    that occur), are -1, as are places beyond the last candidate. Made in blocks: the V x V cosines never exist at once.
    Raises ``ModelError`` when the table has no row for a piece that occurs.
    """
    size = min(len(embeddings), len(pieces.is_frozen_V))
    wanted = np.arange(size) if restrict is None else np.unique(restrict)
    if len(wanted) and wanted[-1] >= len(embeddings):
        raise ModelError(f"embeddings: no row for piece {wanted[-1]}; the table has {len(embeddings)} rows")
    wanted = wanted[wanted < size]
    wanted = wanted[~pieces.is_frozen_V[wanted]]
    usable = np.flatnonzero(~pieces.is_frozen_V[:size])
    unit_VD = torch.nn.functional.normalize(torch.from_numpy(np.array(embeddings[:size], dtype=np.float32)), dim=1)
    table_VK = np.full((len(embeddings), candidates), -1, dtype=np.int32)
    for is_inner in (False, True):
        rows, columns = (ids[pieces.is_inner_V[ids] == is_inner] for ids in (wanted, usable))
        k = min(candidates, len(columns) - 1)
        if k < 1:
            continue
        kept_DC = unit_VD[columns].T.contiguous()
        for block in np.split(rows, range(512, len(rows), 512)):
            cosine_BC = unit_VD[block] @ kept_DC
            cosine_BC[torch.arange(len(block)), torch.from_numpy(np.searchsorted(columns, block))] = -torch.inf
            table_VK[block, :k] = columns[cosine_BC.topk(k, dim=1).indices.numpy()]
    return table_VK


@dataclass(frozen=True)
class Material:
    """What an augmentation may draw from besides the text itself."""

    store: TokenStore
    sources: np.ndarray  # indices of the texts of ``store`` that are not empty
    pieces: Pieces
    config: TransferConfig
    table_VK: np.ndarray | None = None  # of ``neighbours_table``
    mlm: Any = None  # a masked language model (``AutoModelForMaskedLM``) in eval mode

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A random text that is not empty, (L,) int32."""
        return self.store[self.sources[rng.integers(len(self.sources))]]


Augmentation = Callable[[list[np.ndarray], list[np.random.Generator], Material], list[np.ndarray]]
AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation")  # their shares are the fields of ``TransferConfig``
OneText = Callable[[np.ndarray, np.random.Generator, Material], np.ndarray]


def for_each_text(name: str) -> Callable[[OneText], OneText]:
    """Register a function of one text (ids, rng, material) under ``name``."""

    def add(augment: OneText) -> OneText:
        def augment_all(
            texts: list[np.ndarray], rngs: list[np.random.Generator], material: Material
        ) -> list[np.ndarray]:
            return [augment(ids, rng, material) for ids, rng in zip(texts, rngs)]

        AUGMENTATIONS.register(name)(augment_all)
        return augment

    return add


def _sides(text: Text, rng: np.random.Generator) -> list[int]:
    """Which segments to change: one of them with probability ``ONE_SIDE``, else all."""
    count = len(text.segments)
    return [int(rng.integers(count))] if count > 1 and rng.random() < ONE_SIDE else list(range(count))


def _some(eligible: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Each eligible position with ``probability``, but at least one: a mere copy teaches nothing. (n,) bool."""
    chosen = eligible & (rng.random(len(eligible)) < probability)
    if not chosen.any() and eligible.any():
        chosen[rng.choice(np.flatnonzero(eligible))] = True
    return chosen


@for_each_text("neighbours")
def neighbours(ids: np.ndarray, rng: np.random.Generator, material: Material) -> np.ndarray:
    """Replace pieces, each with ``replace_probability``, by one of their nearest in the table, drawn uniformly."""
    text, table_VK = split_text(ids, material.pieces), material.table_VK
    segments = list(text.segments)
    for side in _sides(text, rng):
        segment = segments[side].copy()
        places = np.flatnonzero(_some(table_VK[segment, 0] >= 0, material.config.replace_probability, rng))
        near_MK = table_VK[segment[places]]
        pick_M = (rng.random(len(places)) * (near_MK >= 0).sum(1)).astype(np.int64)
        segment[places] = near_MK[np.arange(len(places)), pick_M]
        segments[side] = segment
    return text.rebuild(segments)


@for_each_text("fragments")
def fragments(ids: np.ndarray, rng: np.random.Generator, material: Material) -> np.ndarray:
    """Keep a random run of whole words: 2 to all but one of them, drawn uniformly (1 of 2; a single word stays)."""
    text = split_text(ids, material.pieces)
    segments = list(text.segments)
    for side in _sides(text, rng):
        starts = material.pieces.word_starts(segments[side])
        if (words := len(starts)) < 2:
            continue
        kept = int(rng.integers(min(2, words - 1), words))
        first = int(rng.integers(words - kept + 1))
        bounds = np.append(starts, len(segments[side]))
        segments[side] = segments[side][bounds[first] : bounds[first + kept]]
    return text.rebuild(segments)


@for_each_text("splices")
def splices(ids: np.ndarray, rng: np.random.Generator, material: Material) -> np.ndarray:
    """Join the first words of a text to the last words of another, both cut at the same share of their length.

    Half of the pairs instead keep their first sentence and take the second of another pair, which hardly belongs to it.
    """
    text, other = split_text(ids, material.pieces), split_text(material.draw(rng), material.pieces)
    segments = list(text.segments)
    if len(segments) > 1 and rng.random() < 0.5:
        return text.rebuild([*segments[:-1], other.segments[-1]])
    for side in _sides(text, rng):
        head, tail, share = segments[side], other.segments[min(side, len(other.segments) - 1)], rng.random()
        head_starts, tail_starts = material.pieces.word_starts(head), material.pieces.word_starts(tail)
        if not material.pieces.marks_ends:  # in byte-level BPE a text's first word has no mark and would stick
            tail_starts = tail_starts[~material.pieces.is_inner_V[tail[tail_starts]]]
        if not len(tail_starts):
            continue
        stop = max(1, round(share * len(head_starts)))
        first = min(len(tail_starts) - 1, round(share * len(tail_starts)))
        segments[side] = np.concatenate([head[: np.append(head_starts, len(head))[stop]], tail[tail_starts[first] :]])
    return text.rebuild(segments)


def _mask_words(
    ids: np.ndarray, rng: np.random.Generator, material: Material
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put one mask in the place of each drawn word: (ids, places of the masks (M,), the piece each stands for (M,)).

    Of a word of several pieces the marking one stands (the first, or the last where ends are marked): it has its kind.
    """
    pieces, text = material.pieces, split_text(ids, material.pieces)
    segments = list(text.segments)
    for side in _sides(text, rng):
        segment = segments[side].copy()
        starts = pieces.word_starts(segment)
        bounds = np.append(starts, len(segment))
        is_frozen = np.logical_or.reduceat(pieces.is_frozen_V[segment], starts)
        words = _some(~is_frozen, material.config.replace_probability, rng)
        marking = (bounds[1:] - 1 if pieces.marks_ends else starts)[words]
        keep = ~np.repeat(words, np.diff(bounds))
        keep[marking] = True
        segment[marking] = -segment[marking] - 1  # below zero: masked, and still says what it was
        segments[side] = segment[keep]
    masked = text.rebuild(segments)
    places = np.flatnonzero(masked < 0)
    originals = -masked[places] - 1
    masked[places] = pieces.mask_token_id
    return masked, places, originals


@torch.inference_mode()
def _propose(
    masked: list[np.ndarray], places: list[np.ndarray], originals: np.ndarray, material: Material
) -> np.ndarray:
    """The best pieces for every mask of a batch, of the original's kind but not the original: (M, K), -1 = none."""
    pieces, mlm = material.pieces, material.mlm
    ids_BL, mask_BL = TokenStore.from_lists(masked).pad(range(len(masked)), pieces.pad_token_id)
    rows, columns = np.repeat(np.arange(len(masked)), [len(place) for place in places]), np.concatenate(places)
    inputs = {"input_ids": ids_BL, "attention_mask": mask_BL}
    if getattr(mlm.config, "type_vocab_size", 1) > 1:  # BERT knows by it what stands behind the first separator
        inputs["token_type_ids"] = torch.zeros_like(ids_BL)
        for row, text in enumerate(split_text(ids, pieces) for ids in masked):
            inputs["token_type_ids"][row, len(text.frame[0]) + len(text.segments[0]) + 1 : len(masked[row])] = 1
    head = mlm.get_output_embeddings()  # D -> V is most of the work, and only the masked places need it
    hook = head.register_forward_pre_hook(lambda _, x: (x[0][rows, columns],) if x[0].dim() == 3 else None)
    try:
        logits = mlm(**{name: values.to(mlm.device) for name, values in inputs.items()}).logits
    finally:
        hook.remove()
    logits = logits[rows, columns] if logits.dim() == 3 else logits  # a model that takes the head's weights past the hook
    logits_MV = logits.float().cpu()[:, : len(pieces.is_inner_V)]
    inner_V, frozen_V = (np.asarray(flags)[: logits_MV.shape[1]] for flags in (pieces.is_inner_V, pieces.is_frozen_V))
    allowed_MV = (inner_V[None, :] == pieces.is_inner_V[originals][:, None]) & ~frozen_V
    allowed_MV[np.arange(len(originals)), originals] = False
    logits_MV = logits_MV.masked_fill(~torch.from_numpy(allowed_MV), -torch.inf)
    best = logits_MV.topk(min(material.config.candidates, logits_MV.shape[1]))
    return np.where(np.isfinite(best.values.numpy()), best.indices.numpy(), -1)


@AUGMENTATIONS.register("masked_lm")
def masked_lm(texts: list[np.ndarray], rngs: list[np.random.Generator], material: Material) -> list[np.ndarray]:
    """Replace words, each with ``replace_probability``, by one of a masked language model's best, drawn uniformly.

    All drawn words of a text are masked at once and each becomes one piece (TinyBERT masks them one by one and gives
    GloVe neighbours to words of several pieces). Texts are batched by length.
    """
    drawn = [_mask_words(ids, rng, material) for ids, rng in zip(texts, rngs)]
    order = [int(n) for n in np.argsort([len(ids) for ids, _, _ in drawn], kind="stable") if len(drawn[n][1])]
    for start in range(0, len(order), MLM_BATCH):
        batch = order[start : start + MLM_BATCH]
        masked, places, originals = (list(column) for column in zip(*(drawn[n] for n in batch)))
        proposals_MK = _propose(masked, places, np.concatenate(originals), material)
        for n, near_MK in zip(batch, np.split(proposals_MK, np.cumsum([len(place) for place in places])[:-1])):
            ids, place, original = drawn[n]
            pick_M = (rngs[n].random(len(place)) * (near_MK >= 0).sum(1)).astype(np.int64)
            chosen_M = near_MK[np.arange(len(place)), pick_M]
            ids[place] = np.where(chosen_M >= 0, chosen_M, original)
    return [ids for ids, _, _ in drawn]


def load_masked_lm(name: str, tokenizer: Any) -> Any:
    """The masked language model ``name`` in eval mode. ``ModelError`` if its vocabulary is not ``tokenizer``'s."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    with loading(f"transfer.masked_lm_model: {name!r} cannot be loaded"):
        own = AutoTokenizer.from_pretrained(name)
        model, report = AutoModelForMaskedLM.from_pretrained(name, output_loading_info=True)
    if report["missing_keys"]:  # a bare encoder: its head would be random, and so would the proposals
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelError(f"transfer.masked_lm_model: {name!r} has no masked language model's head ({missing} missing)")
    if own.get_vocab() != tokenizer.get_vocab() or tokenizer.mask_token_id is None:
        raise ModelError(
            f"transfer.masked_lm_model: {name!r} does not share the teacher's vocabulary and mask; "
            "choices: a model with the same tokenizer, or transfer.masked_lm 0"
        )
    return model.eval()
