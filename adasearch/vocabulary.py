"""A smaller vocabulary: which pieces of a WordPiece tokenizer a task needs, and what becomes of tokenizer, table, texts.

Two ways to one. *Reduced*: some pieces of the old vocabulary, with their rows. *Own*: a vocabulary trained on the task's
texts, whose rows start from those of the old pieces they consist of. Normalisation and the cutting into words stay the
old tokenizer's, so old and new agree on what a word is, and texts that exist as ids alone can be split again.

Dimensions: V pieces, R width of the word table.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, trainers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from adasearch.errors import ConfigError, ModelError
from adasearch.tokens import TokenStore
from adasearch.word_pieces import Pieces, pieces_of, shorten

# SST-2's student without new training at 10,000 rows of 30,522: 0.3 points lost with 0.2, 0.7 with next to nothing, 1.0
# where the million pieces of labelled texts and the 3.7 million of others counted alike (a text is 0.1 points)
OTHERS_WEIGHT = 0.2
MOST_CHARACTERS = 1_000  # of an own vocabulary, the most frequent, as the library's own default
OWN_MIN_COUNT = 2  # a pair of pieces that occurs once is no piece of a language


def rules_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer as the plain data of its ``tokenizer.json``. Raises ``ModelError`` unless it is a WordPiece."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"model": {"type": "slow"}}
    if (kind := rules["model"].get("type")) != "WordPiece":
        raise ModelError(
            f"vocabulary: tokenizer {tokenizer.name_or_path!r} is of kind {kind!r}; choices: WordPiece"
            " (BERT, DistilBERT, MiniLM, ELECTRA), or keep the teacher's vocabulary"
        )
    return rules | {"truncation": None, "padding": None}  # left over from the last call


def required_pieces(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Which pieces stay whatever is counted, (V,) bool: special and added ones and all single characters, ``c`` and ``##c``.

    With the characters, a word that the old vocabulary could split never becomes unknown.
    """
    rules = rules_of(tokenizer)
    prefix, names = rules["model"]["continuing_subword_prefix"], pieces_of(tokenizer)
    special = special_pieces(rules)
    return np.array([name in special or len(name.removeprefix(prefix)) == 1 for name in names])


def special_pieces(rules: dict[str, Any]) -> list[str]:
    """Names that are never split and never made by splitting: special and added pieces, [UNK] among them; by id."""
    names = [token["content"] for token in sorted(rules["added_tokens"], key=lambda token: token["id"])]
    return list(dict.fromkeys([*names, rules["model"]["unk_token"]]))


def count_pieces(stores: Iterable[TokenStore], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """How often each piece occurs, (V,) int64."""
    size = len(pieces_of(tokenizer))
    return sum((np.bincount(store.ids, minlength=size) for store in stores), np.zeros(size, np.int64))


def choose_pieces(
    tokenizer: PreTrainedTokenizerBase, counts_V: np.ndarray, *, labelled_V: np.ndarray | None = None,
    size: int | None = None, min_count: int = 1,
) -> np.ndarray:  # fmt: skip
    """Ids that stay, ascending: the required ones, and of the others those counted ``min_count`` times or more.

    With ``size`` at most so many in all, and of the others the most frequent, of equals the lower id. Where it is known
    how often each stands in the labelled texts (``labelled_V``, a part of ``counts_V``), a piece's frequency there
    counts fully, that in the rest at ``OTHERS_WEIGHT``. Raises ``ConfigError`` as ``check_size`` does.
    """
    check_size(tokenizer, size)
    required_V = required_pieces(tokenizer)
    others = np.flatnonzero(~required_V & (counts_V >= min_count))
    frequency_V = counts_V
    if labelled_V is not None:
        rest_V = counts_V - labelled_V
        frequency_V = labelled_V / max(1, labelled_V.sum()) + OTHERS_WEIGHT * rest_V / max(1, rest_V.sum())
    others = others[np.argsort(-frequency_V[others], kind="stable")]
    room = len(others) if size is None else size - int(required_V.sum())
    return np.sort(np.concatenate([np.flatnonzero(required_V), others[:room]]))


def check_size(tokenizer: PreTrainedTokenizerBase, size: int | None) -> None:
    """Raise ``ConfigError`` when special pieces and single characters alone are more than ``size``."""
    least = int(required_pieces(tokenizer).sum())
    if size is not None and size < least:
        raise ConfigError(
            f"vocabulary.size: {size} has no room for the {least} special pieces and single characters, which always stay;"
            f" choices: {least} or more"
        )


def reduce_tokenizer(tokenizer: PreTrainedTokenizerBase, kept: np.ndarray) -> PreTrainedTokenizerBase:
    """The tokenizer with the pieces of these ids alone, numbered in this order; all else as it was."""
    names = pieces_of(tokenizer)
    return with_pieces(tokenizer, [names[index] for index in kept])


def with_pieces(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> PreTrainedTokenizerBase:
    """The tokenizer with these pieces, which must hold every special and added one; a piece's id is its place."""
    rules, ids = rules_of(tokenizer), {name: index for index, name in enumerate(names)}
    added = {token["content"] for token in rules["added_tokens"]}
    was_in_model = rules["model"]["vocab"]
    rules["model"]["vocab"] = {name: i for name, i in ids.items() if name in was_in_model or name not in added}
    rules["added_tokens"] = [{**token, "id": ids[token["content"]]} for token in rules["added_tokens"]]
    rules["added_tokens"].sort(key=lambda token: token["id"])
    rules["post_processor"] = _renumbered(rules["post_processor"], ids)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(rules, ensure_ascii=False), encoding="utf-8")
        for name in ("vocab.txt", "added_tokens.json"):  # older versions write them beside it, with the old ids
            (Path(folder) / name).unlink(missing_ok=True)
        settings = Path(folder) / "tokenizer_config.json"
        data = json.loads(settings.read_text(encoding="utf-8"))
        data.pop("added_tokens_decoder", None)  # likewise
        settings.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        made = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    made.name_or_path = tokenizer.name_or_path
    return made


def _renumbered(part: Any, ids: dict[str, int]) -> Any:
    """A post-processor's data with the ids of its special pieces looked up anew."""
    if part is None:
        return None
    if part["type"] == "Sequence":
        return {**part, "processors": [_renumbered(inner, ids) for inner in part["processors"]]}
    if part["type"] == "TemplateProcessing":
        special = {
            key: {**token, "ids": [ids[name] for name in token["tokens"]]} for key, token in part["special_tokens"].items()
        }
        return {**part, "special_tokens": special}
    if part["type"] in ("BertProcessing", "RobertaProcessing"):
        return {**part, **{key: [part[key][0], ids[part[key][0]]] for key in ("sep", "cls")}}
    raise ModelError(f"vocabulary: post-processor {part['type']!r} is not known; choices: TemplateProcessing, BertProcessing")


def train_tokenizer(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], size: int) -> PreTrainedTokenizerBase:
    """A WordPiece of at most ``size`` pieces learned from the texts, else like the given one; equal texts, equal pieces.

    It has the same special pieces and the texts' characters, ``c`` and ``##c``: a word of known characters is never
    unknown. Raises ``ConfigError`` when ``size`` has no room for them.
    """
    rules, backend, texts = rules_of(tokenizer), Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), list(texts)
    prefix, special = rules["model"]["continuing_subword_prefix"], special_pieces(rules)
    normalize = backend.normalizer.normalize_str if backend.normalizer is not None else str
    counts = Counter(character for text in texts for character in normalize(text) if not character.isspace())
    single = sorted(sorted(counts, key=lambda character: (-counts[character], character))[:MOST_CHARACTERS])
    # the trainer numbers what it meets in the order of a hash table, and of equal pairs merges the lower numbers first:
    # characters inside of words are given to it beforehand
    always = [*special, *(prefix + character for character in single)]
    if size < len(always) + len(single):
        raise ConfigError(
            f"vocabulary.size: {size} has no room for {len(special)} special pieces and the texts' {len(single)} characters"
            f" at the beginning and inside of words; choices: {len(always) + len(single)} or more"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=OWN_MIN_COUNT, special_tokens=always, initial_alphabet=single,
        limit_alphabet=len(single), continuing_subword_prefix=prefix, show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(texts, trainer)
    learned = backend.get_vocab(with_added_tokens=False)
    return with_pieces(tokenizer, sorted(learned, key=learned.get))


def start_rows(word_VR: Tensor, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> Tensor:
    """Rows of the new vocabulary: a piece that the old one has keeps its row, any other the mean of its old pieces'."""
    rules, ids = rules_of(old), old.get_vocab()
    prefix, unknown = rules["model"]["continuing_subword_prefix"], rules["model"]["unk_token"]
    rows = []
    for name in pieces_of(new):
        parts = [name] if name in ids else split_word(name, ids, prefix)
        rows.append(word_VR[[ids[part] for part in parts or [unknown]]].mean(0))
    return torch.stack(rows)


def split_word(name: str, vocabulary: dict[str, int], prefix: str) -> list[str]:
    """The longest pieces one after another, as WordPiece splits; a name with ``prefix`` goes on inside a word.

    Empty when no piece fits somewhere. (The library's own splitting always begins at a word's beginning.)
    """
    rest, mark, parts = name.removeprefix(prefix), prefix if name.startswith(prefix) else "", []
    while rest:
        end = next((end for end in range(len(rest), 0, -1) if mark + rest[:end] in vocabulary), 0)
        if not end:
            return []
        parts.append(mark + rest[:end])
        rest, mark = rest[end:], prefix
    return parts


def retokenise(
    store: TokenStore, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, max_length: int | None = None
) -> TokenStore:
    """Texts in the old tokenizer's ids as the new one would have them: pieces are joined to words and split again.

    Row n stays row n. Special pieces are looked up by name; what was unknown stays unknown. With ``max_length`` texts
    that have grown are cut, longest segment first. For tokenizers that agree on words (``with_pieces``).
    """
    rules, names = rules_of(old), pieces_of(old)
    prefix, special = rules["model"]["continuing_subword_prefix"], set(special_pieces(rules))
    ids_new, model = new.get_vocab(), new.backend_tokenizer.model
    special_V = np.array([name in special for name in names])
    inner_V = np.array([name.startswith(prefix) for name in names]) & ~special_V
    ids, offsets = np.asarray(store.ids), np.asarray(store.offsets)
    begins = ~inner_V[ids]
    begins[1:] |= special_V[ids[:-1]]
    begins[offsets[:-1][np.diff(offsets) > 0]] = True
    bounds = np.append(np.flatnonzero(begins), len(ids))
    known: dict[bytes, list[int]] = {}

    def split(word: np.ndarray) -> list[int]:
        if special_V[word[0]]:
            return [ids_new[names[word[0]]]]
        text = "".join(names[index].removeprefix(prefix) for index in word)
        return [token.id for token in model.tokenize(text)]

    pieces: list[int] = []
    grown = np.zeros(len(bounds), np.int64)  # new pieces before each word
    for place, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:])):
        word = ids[start:stop]
        key = word.tobytes()
        if key not in known:
            known[key] = split(word)
        pieces += known[key]
        grown[place + 1] = len(pieces)
    made = TokenStore(np.array(pieces, np.int32), grown[np.searchsorted(bounds, offsets)])
    if max_length is None or int(made.lengths.max(initial=0)) <= max_length:
        return made
    kinds = Pieces.from_tokenizer(new)
    return TokenStore.from_lists(shorten(made[n], kinds, max_length) for n in range(len(made)))
