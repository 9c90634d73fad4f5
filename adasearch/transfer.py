"""The transfer set: a stream of augmented texts that can be cut anywhere, and its cached, resumable store.

Dimensions: V vocabulary, K candidates, L tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from adasearch.augment import AUGMENTATIONS, Material
from adasearch.errors import ConfigError, DataError
from adasearch.files import fingerprint, read_json, write_json
from adasearch.progress import Progress
from adasearch.task_config import TransferConfig
from adasearch.tokens import TokenStore
from adasearch.word_pieces import Pieces, shorten

BLOCK = 256  # items made together; the masked language model's batches are cut from a block, wherever a stream starts
CHUNK = 10_000  # texts a cache file: what a kill costs at most
EFFORT = 5  # items tried for each one asked for, before a data set too small for the size is given up
_STREAM = 0x7472  # keeps these random numbers apart from every other use of the run's seed


def shares(config: TransferConfig) -> dict[str, float]:
    """The share of every augmentation above 0, adding up to 1. Raises ``ConfigError`` for none or a negative one."""
    asked = {name: float(getattr(config, name, 0.0)) for name in AUGMENTATIONS}
    for name, share in asked.items():
        if not 0 <= share < float("inf"):
            raise ConfigError(f"transfer.{name}: {share!r} is out of range; choices: 0 or more")
    if not (total := sum(asked.values())):
        choices = ", ".join(sorted(asked))
        raise ConfigError(f"transfer: size is {config.size} but every share is 0; choices to raise: {choices}")
    return {name: share / total for name, share in asked.items() if share > 0}


def stream_transfer(
    store: TokenStore,
    config: TransferConfig,
    pieces: Pieces,
    table_VK: np.ndarray | None,
    *,
    seed: int,
    max_length: int,
    mlm: Any = None,
    start: int = 0,
) -> Iterator[np.ndarray]:
    """Endless new texts, (L,) int32 each with 1 <= L <= ``max_length``, from number ``start`` on.

    Text number n is a pure function of (seed, n) and the arguments: cut the stream anywhere and go on from there.
    Repeats and copies of training texts can occur. Raises ``ConfigError`` at once for impossible settings and
    ``DataError`` for a store without one word.
    """
    weights = shares(config)
    if mlm is not None:
        mlm.eval()  # dropout would draw from torch's random numbers, not from (seed, n)
    if config.candidates < 1:
        raise ConfigError(f"transfer.candidates: {config.candidates!r} is out of range; choices: 1 or more")
    if "masked_lm" in weights and (mlm is None or pieces.mask_token_id is None):
        raise ConfigError(
            f"transfer.masked_lm: {config.masked_lm} needs transfer.masked_lm_model and a tokenizer with a mask token; "
            "choices: give both, or 0"
        )
    assert table_VK is not None or "neighbours" not in weights, "neighbours needs the table of neighbours_table"
    plain = TokenStore(np.asarray(store.ids), np.asarray(store.offsets))  # slices of a memory map are slow to make
    words_before = np.concatenate([[0], np.cumsum(~pieces.is_frame_V[plain.ids])])
    sources = np.flatnonzero(np.diff(words_before[plain.offsets]) > 0)
    if not len(sources):
        raise DataError(f"transfer.size: {config.size} texts cannot be made from {len(store)} texts without one word")
    material = Material(plain, sources, pieces, config, table_VK, mlm)
    names, edges = list(weights), np.cumsum(list(weights.values()))[:-1]

    def make(block: int) -> list[np.ndarray]:
        rngs = [np.random.default_rng((seed, _STREAM, n)) for n in range(block * BLOCK, (block + 1) * BLOCK)]
        kinds = np.searchsorted(edges, [rng.random() for rng in rngs], side="right")
        made = [shorten(material.draw(rng), pieces, max_length) for rng in rngs]
        for kind, name in enumerate(names):
            members = np.flatnonzero(kinds == kind)
            results = AUGMENTATIONS[name]([made[n] for n in members], [rngs[n] for n in members], material)
            for n, result in zip(members, results):
                made[n] = shorten(result, pieces, max_length)
        return made

    blocks = itertools.chain.from_iterable(make(block) for block in itertools.count(start // BLOCK))
    return itertools.islice(blocks, start % BLOCK, None)


def _digest(ids: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(ids, dtype=np.int32), digest_size=8).digest()


def build_transfer(
    store: TokenStore,
    config: TransferConfig,
    pieces: Pieces,
    table_VK: np.ndarray | None,
    *,
    seed: int,
    max_length: int,
    cache: Path,
    progress: Progress,
    mlm: Any = None,
    chunk: int = CHUNK,
) -> TokenStore:
    """``config.size`` different texts that are no training text, kept in ``cache``; made once, resumed after a kill.

    The result does not depend on interruptions. The shares are of the tries: a short text has few fragments that are
    new. Where the training texts do not yield so many within ``EFFORT`` tries each, there are fewer and ``progress`` is
    warned. Raises what ``stream_transfer`` raises.
    """
    if not config.size:
        return TokenStore.from_lists([])
    table = np.zeros(0, np.int32) if table_VK is None else table_VK
    inputs = (store.ids, store.offsets, pieces.is_frame_V, pieces.is_frozen_V, pieces.is_inner_V, table)
    name = f"transfer-{fingerprint(dataclasses.asdict(config), seed, max_length, *inputs)}"
    whole = TokenStore.load(cache, name)
    if whole is not None:
        return whole
    parts: list[TokenStore] = []
    tried = 0
    while (state := cache / f"{name}.{len(parts)}.json").exists():
        tried = read_json(state)["tried"]
        parts.append(TokenStore.load(cache, f"{name}.{len(parts)}"))
    texts = stream_transfer(store, config, pieces, table_VK, seed=seed, max_length=max_length, mlm=mlm, start=tried)
    seen = {_digest(text[n]) for text in (store, *parts) for n in range(len(text))}
    done = sum(len(part) for part in parts)
    progress.stage("transfer set", total=config.size, done=done)
    while done < config.size and tried < EFFORT * config.size:
        fresh: list[np.ndarray] = []
        while len(fresh) < min(chunk, config.size - done) and tried < EFFORT * config.size:
            text, tried = next(texts), tried + 1
            if (digest := _digest(text)) not in seen:
                seen.add(digest)
                fresh.append(text)
                if len(fresh) % BLOCK == 0:
                    progress.step(done + len(fresh))
        part = TokenStore.from_lists(fresh)
        part.save(cache, f"{name}.{len(parts)}")
        write_json(cache / f"{name}.{len(parts)}.json", {"tried": tried})  # last: only now the chunk counts
        parts.append(part)
        done += len(part)
        progress.step(done)
    if done < config.size:
        progress.warning(
            f"transfer.size: {done} different texts were found in {tried} tries, not {config.size}; "
            f"{len(store)} training texts yield no more"
        )
    whole = TokenStore.concatenate(parts)
    whole.save(cache, name)
    for n in range(len(parts)):
        for ending in ("json", "ids.npy", "offsets.npy"):
            (cache / f"{name}.{n}.{ending}").unlink(missing_ok=True)
    return whole
