"""A smaller vocabulary against a tokenizer made from nothing with the same pieces, and against texts tokenised anew."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tiny_words import CHARACTERS, PIECES, SPECIAL, WORDS, oracle, random_text, tokenizer_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from adasearch.errors import ConfigError, ModelError
from adasearch.tokens import TokenStore
from adasearch.vocabulary import (
    choose_pieces,
    count_pieces,
    reduce_tokenizer,
    required_pieces,
    retokenise,
    split_word,
    start_rows,
    train_tokenizer,
    with_pieces,
)
from adasearch.word_pieces import pieces_of

KINDS = ("fast", "bert")
REQUIRED = len(SPECIAL) + 2 * len(CHARACTERS)


def store_of(tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None = None) -> TokenStore:
    return TokenStore.from_lists(tokenizer(texts, pairs)["input_ids"])


def some_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [random_text(rng) for _ in range(count)]


def some_kept(tokenizer: PreTrainedTokenizerBase, seed: int) -> np.ndarray:
    """What always stays and a random half of the rest."""
    chosen = np.random.default_rng(seed).random(len(PIECES)) < 0.5
    return np.flatnonzero(required_pieces(tokenizer) | chosen)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_reduced_tokenizer_is_the_one_made_from_nothing_with_its_pieces(kind: str, seed: int, tmp_path) -> None:
    whole = tokenizer_of(kind)
    kept = some_kept(whole, seed)
    reduced = reduce_tokenizer(whole, kept)
    reduced.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    expected = oracle([PIECES[index] for index in kept])
    texts, pairs = some_texts(60, seed), some_texts(60, seed + 100)
    for tokenizer in (reduced, again):
        assert len(tokenizer) == len(kept) and pieces_of(tokenizer) == [PIECES[index] for index in kept]
        for first, second in zip(texts, pairs):
            assert tokenizer(first)["input_ids"] == expected.encode(first).ids, first
            found, right = tokenizer(first, second, return_token_type_ids=True), expected.encode(first, second)
            assert found["input_ids"] == right.ids and found["token_type_ids"] == right.type_ids
        assert (tokenizer.pad_token_id, tokenizer.sep_token_id) == tuple(map(expected.token_to_id, ("[PAD]", "[SEP]")))
    assert type(reduced) is type(whole)


@pytest.mark.parametrize("seed", range(3))
def test_texts_of_kept_pieces_are_split_as_before_and_no_word_becomes_unknown(seed: int) -> None:
    whole = tokenizer_of()
    kept = some_kept(whole, seed)
    reduced, names = reduce_tokenizer(whole, kept), {PIECES[index] for index in kept}
    unchanged = 0
    for text in some_texts(200, seed):
        before, after = whole.tokenize(text), reduced.tokenize(text)
        if set(before) <= names:
            unchanged += 1
            assert after == before
        assert before.count("[UNK]") == after.count("[UNK]")
        assert "".join(after).replace("##", "") == "".join(before).replace("##", "")
    assert 0 < unchanged < 200


def test_what_always_stays_is_special_or_one_character() -> None:
    stays = [name for name, stay in zip(PIECES, required_pieces(tokenizer_of())) if stay]
    assert sorted(stays) == sorted([*SPECIAL, *CHARACTERS, *("##" + c for c in CHARACTERS)])


def test_the_most_frequent_pieces_stay() -> None:
    tokenizer = tokenizer_of()
    counts_V = np.zeros(len(PIECES), np.int64)
    for name, count in {"film": 5, "play": 3, "##ing": 3, "good": 1, "[unused0]": 0}.items():
        counts_V[PIECES.index(name)] = count

    def kept(**settings) -> set[str]:
        ids = choose_pieces(tokenizer, counts_V, **settings)
        assert (np.diff(ids) > 0).all()
        return {PIECES[index] for index in ids} - {PIECES[i] for i in np.flatnonzero(required_pieces(tokenizer))}

    assert kept() == {"film", "play", "##ing", "good"}
    assert kept(min_count=3) == {"film", "play", "##ing"}
    assert kept(size=REQUIRED + 2) == {"film", "play"}  # of equals the lower id
    assert kept(size=REQUIRED) == set() and len(kept(min_count=0)) == len(PIECES) - REQUIRED
    labelled_V = counts_V * 0
    labelled_V[PIECES.index("good")] = 1  # one of one labelled piece: frequency 1, all others' 0.2 at most
    assert kept(size=REQUIRED + 1, labelled_V=labelled_V) == {"good"}
    with pytest.raises(ConfigError, match=f"vocabulary.size: {REQUIRED - 1} has no room for the {REQUIRED} special"):
        kept(size=REQUIRED - 1)


def test_pieces_are_counted_over_all_texts() -> None:
    tokenizer = tokenizer_of()
    stores = [store_of(tokenizer, ["film film played"]), store_of(tokenizer, ["film", "played"])]
    counts = dict(zip(PIECES, count_pieces(stores, tokenizer).tolist()))
    assert {name: count for name, count in counts.items() if count} == {"[CLS]": 3, "[SEP]": 3, "film": 3, "play": 2, "##ed": 2}


@pytest.mark.parametrize("seed", range(2))
def test_ids_split_again_are_those_of_the_texts_tokenised_anew(seed: int) -> None:
    whole = tokenizer_of()
    reduced = reduce_tokenizer(whole, some_kept(whole, seed))
    texts, pairs = some_texts(80, seed), some_texts(80, seed + 50)
    for seconds in (None, pairs):
        before, expected = store_of(whole, texts, seconds), store_of(reduced, texts, seconds)
        after = retokenise(before, whole, reduced)
        assert np.array_equal(after.ids, expected.ids) and np.array_equal(after.offsets, expected.offsets)
    assert after.ids.dtype == np.int32 and not np.array_equal(after.offsets, before.offsets)


def test_texts_that_grow_are_cut_inside_their_frame() -> None:
    whole = tokenizer_of()
    reduced = reduce_tokenizer(whole, np.flatnonzero(required_pieces(whole)))  # only characters are left
    before = store_of(whole, ["playing films", "good"], ["the actor", "bad"])
    rows = [reduced.convert_ids_to_tokens(row) for row in retokenise(before, whole, reduced, max_length=10).pad([0, 1], 0)[0]]
    assert rows[0] == ["[CLS]", "p", "##l", "##a", "[SEP]", "t", "##h", "##e", "a", "[SEP]"]
    assert rows[1] == ["[CLS]", "g", "##o", "##o", "##d", "[SEP]", "b", "##a", "##d", "[SEP]"]


def test_an_empty_store_and_an_inner_piece_without_a_beginning() -> None:
    whole = tokenizer_of()
    reduced = reduce_tokenizer(whole, some_kept(whole, 0))
    assert len(retokenise(TokenStore.from_lists([]), whole, reduced)) == 0
    texts = [["[CLS]", "##ing", "film", "[SEP]", "##ed", "[SEP]"], [], ["good"], ["##ed"]]
    store = TokenStore.from_lists([PIECES.index(name) for name in text] for text in texts)
    after = retokenise(store, whole, reduced)
    words = ["".join(reduced.convert_ids_to_tokens(after[n].tolist())).replace("##", "") for n in range(len(after))]
    assert words == ["[CLS]ingfilm[SEP]ed[SEP]", "", "good", "ed"]


def test_splitting_agrees_with_the_librarys_and_goes_on_inside_a_word() -> None:
    model, ids = oracle(PIECES).model, {piece: index for index, piece in enumerate(PIECES)}
    for word in (*WORDS, "actoring", "filmplay", "Ω", "filmΩ"):
        expected = [token.value for token in model.tokenize(word)]
        assert (split_word(word, ids, "##") or ["[UNK]"]) == expected
    assert split_word("##playing", ids, "##") == ["##play", "##ing"]


def test_rows_are_kept_or_the_mean_of_what_a_piece_was() -> None:
    whole, word_VR = tokenizer_of(), torch.randn(len(PIECES) + 3, 4)  # some tables have more rows than there are pieces
    kept = some_kept(whole, 0)
    assert torch.equal(start_rows(word_VR, whole, reduce_tokenizer(whole, kept)), word_VR[torch.from_numpy(kept)])
    own = with_pieces(whole, [*SPECIAL, "film", "filmed", "##playable", "Ω"])
    rows = dict(zip(pieces_of(own), start_rows(word_VR, whole, own)))
    row = {name: word_VR[index] for index, name in enumerate(PIECES)}
    assert torch.equal(rows["film"], row["film"]) and torch.equal(rows["[SEP]"], row["[SEP]"])
    assert torch.allclose(rows["filmed"], (row["film"] + row["##ed"]) / 2)
    assert torch.allclose(rows["##playable"], (row["##play"] + row["##able"]) / 2)
    assert torch.equal(rows["Ω"], row["[UNK]"])


def test_an_own_vocabulary_knows_its_texts_and_agrees_on_words() -> None:
    whole, texts = tokenizer_of(), some_texts(300)
    own = train_tokenizer(whole, texts, 120)
    names = pieces_of(own)
    assert len(names) == 120 and "film" in names
    for order in (texts, texts[::-1]):
        assert names == pieces_of(train_tokenizer(whole, order, 120))
    singles = {name for name in names if len(name) == 1}
    assert {"##" + character for character in singles} == {name for name in names if len(name) == 3 and name[:2] == "##"}
    expected = oracle(names)
    fresh = some_texts(80, seed=9)
    for text in fresh:
        assert own(text)["input_ids"] == expected.encode(text).ids
    known = [text for text in fresh if "[UNK]" not in whole.tokenize(text)]
    after, right = retokenise(store_of(whole, known), whole, own), store_of(own, known)
    assert len(known) > 20 and np.array_equal(after.ids, right.ids) and np.array_equal(after.offsets, right.offsets)
    with pytest.raises(ConfigError, match=r"vocabulary.size: 20 has no room for 5 special pieces and the texts' \d+ characters"):
        train_tokenizer(whole, texts, 20)


def test_other_kinds_of_tokenizers_are_refused() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "[UNK]": 3}, [("a", "b")], unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    other = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    for attempt in (required_pieces, lambda t: reduce_tokenizer(t, np.arange(2)), lambda t: train_tokenizer(t, ["a"], 9)):
        with pytest.raises(ModelError, match="vocabulary: tokenizer .* is of kind 'BPE'; choices: WordPiece"):
            attempt(other)
