"""Laws of the transfer set, with a real WordPiece and a real byte-level BPE tokenizer trained here."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hearing import Heard, KillAt, Killed
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from adasearch.augment import (
    AUGMENTATIONS,
    ONE_SIDE,
    Material,
    fragments,
    load_masked_lm,
    masked_lm,
    neighbours,
    neighbours_table,
    splices,
)
from adasearch.config import TransferConfig
from adasearch.errors import ConfigError, DataError, ModelError
from adasearch.progress import Progress
from adasearch.tokens import TokenStore
from adasearch.transfer import build_transfer, shares, stream_transfer
from adasearch.word_pieces import Pieces, shorten, split_text

SENTENCES = [
    "the film was wonderfully acted and never boring",
    "a dull, lifeless story told without any feeling",
    "she plays the unforgettable heroine of this thriller",
    "nobody laughed during the endless second half",
    "the director's earlier films were far more interesting",
    "an overlong but beautiful journey through winter",
    "every joke lands and the ending surprises",
    "it drags, it repeats itself, and then it stops",
]
PAIRS = [(SENTENCES[i], SENTENCES[(i * 3 + 1) % 8]) for i in range(8)]


@pytest.fixture(scope="module")
def wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
    tokenizer.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=110, special_tokens=special))
    marks = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", marks)
    tokenizer.decoder = decoders.WordPiece()
    names = {f"{name.strip('[]').lower()}_token": name for name in special[:5]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.fixture(scope="module")
def byte_bpe() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip


@pytest.fixture(params=["wordpiece", "byte_bpe"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.getfixturevalue(request.param)


def encode(tokenizer: Any, texts: list[Any]) -> TokenStore:
    return TokenStore.from_lists(
        [tokenizer(*text)["input_ids"] if isinstance(text, tuple) else tokenizer(text)["input_ids"] for text in texts]
    )


def make(tokenizer: Any, texts: list[Any], **settings: Any) -> Material:
    """The material of ``texts`` with a table of random embeddings."""
    store, pieces = encode(tokenizer, texts), Pieces.from_tokenizer(tokenizer)
    config = TransferConfig(**{"candidates": 4, **settings})
    embeddings = np.random.default_rng(7).normal(size=(len(tokenizer), 8))
    table_VK = neighbours_table(embeddings, config.candidates, pieces)
    return Material(store, np.arange(len(store)), pieces, config, table_VK)


def words_of(tokenizer: Any, segment: np.ndarray) -> list[str]:
    """Reference for the word boundaries: the tokenizer's own decoder, cut at spaces (for texts without punctuation)."""
    return tokenizer.decode(segment).split()


PLAIN = [text for text in SENTENCES if "," not in text and "'" not in text]


def test_pieces_know_both_kinds_of_vocabulary(wordpiece: Any, byte_bpe: Any) -> None:
    cases = ((wordpiece, lambda name: name.startswith("##")), (byte_bpe, lambda name: not name.startswith("Ġ")))
    for tokenizer, is_inner in cases:
        pieces = Pieces.from_tokenizer(tokenizer)
        for name, index in tokenizer.get_vocab().items():
            special = index in tokenizer.all_special_ids or name == "[unused1]"
            assert pieces.is_frozen_V[index] == special, name
            assert pieces.is_inner_V[index] == (is_inner(name) and not special), name
        assert pieces.mask_token_id == tokenizer.mask_token_id
        assert pieces.pad_token_id == tokenizer.pad_token_id
        frame = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
        assert set(np.flatnonzero(pieces.is_frame_V).tolist()) == frame  # [UNK] and [MASK] are part of the text


def test_marks_at_the_ends_of_words() -> None:
    model = models.WordLevel({"<unk>": 0, "th@@": 1, "in@@": 2, "k": 3, "so": 4}, unk_token="<unk>")
    pieces = Pieces.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>"))
    assert pieces.word_starts(np.array([4, 1, 2, 3, 0, 1, 3])).tolist() == [0, 1, 4, 5]  # so think <unk> thk


@pytest.mark.parametrize("texts", [SENTENCES, PAIRS], ids=["single", "pair"])
def test_rebuild_undoes_split(tokenizer: Any, texts: list[Any]) -> None:
    pieces = Pieces.from_tokenizer(tokenizer)
    store = encode(tokenizer, texts)
    for n in range(len(store)):
        text = split_text(store[n], pieces)
        sides = texts[n] if isinstance(texts[n], tuple) else (texts[n],)
        assert np.array_equal(text.rebuild(), store[n])
        assert [tokenizer.decode(segment) for segment in text.segments] == [
            tokenizer.decode(tokenizer(side, add_special_tokens=False)["input_ids"]) for side in sides
        ]


def test_rebuild_undoes_split_of_any_sequence(wordpiece: Any) -> None:
    """Without a frame, empty, padded, with an empty side: whatever is given comes back."""
    pieces, rng = Pieces.from_tokenizer(wordpiece), np.random.default_rng(0)
    for length in (0, 1, 2, 5, 9):
        for _ in range(50):
            ids = rng.integers(0, 9, length).astype(np.int32)  # pieces 0..5 are special
            text = split_text(ids, pieces)
            assert np.array_equal(text.rebuild(), ids)
            assert all(len(segment) and not pieces.is_frame_V[segment].any() for segment in text.segments)
            assert all(pieces.is_frame_V[part].all() for part in text.frame)
            assert len(text.frame) == len(text.segments) + 1


def test_words_begin_where_the_decoder_puts_spaces(tokenizer: Any) -> None:
    pieces, store = Pieces.from_tokenizer(tokenizer), encode(tokenizer, PLAIN)
    for n, text in enumerate(PLAIN):
        segment = split_text(store[n], pieces).segments[0]
        words = np.split(segment, pieces.word_starts(segment)[1:])
        assert [tokenizer.decode(word).strip().replace("##", "") for word in words] == text.split()
        assert max(len(word) for word in words) > 1  # else the test would show nothing


def test_shorten_cuts_the_longest_segment_and_keeps_the_frame(tokenizer: Any) -> None:
    pieces, ids = Pieces.from_tokenizer(tokenizer), encode(tokenizer, [("the film", SENTENCES[4])])[0]
    before = split_text(ids, pieces)
    frame = len(ids) - sum(map(len, before.segments))
    small = len(before.segments[0])
    for length in range(frame + 2, len(ids) + 3):
        after = split_text(shorten(ids, pieces, length), pieces)
        assert len(after.rebuild()) == min(length, len(ids))
        assert [part.tolist() for part in after.frame] == [part.tolist() for part in before.frame]
        assert all(np.array_equal(new, old[: len(new)]) for new, old in zip(after.segments, before.segments))
        assert len(after.segments[0]) == min(small, (min(length, len(ids)) - frame) // 2)
    with pytest.raises(ConfigError, match=f"max_seq_length: {frame + 1} leaves no room.*choices: {frame + 2} or more"):
        shorten(ids, pieces, frame + 1)


def test_neighbours_are_those_of_brute_force(tokenizer: Any) -> None:
    pieces = Pieces.from_tokenizer(tokenizer)
    embeddings = np.random.default_rng(3).normal(size=(len(tokenizer) + 2, 16))  # padded tables are common
    occurring = np.array([*range(0, len(tokenizer), 3)])
    table_VK = neighbours_table(embeddings, 5, pieces, restrict=occurring)
    assert table_VK.shape == (len(tokenizer) + 2, 5) and table_VK.dtype == np.int32
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    for piece in range(len(embeddings)):
        if piece not in occurring or pieces.is_frozen_V[piece]:
            assert (table_VK[piece] == -1).all()
            continue
        near = np.argsort(-(unit @ unit[piece]))
        allowed = [
            other for other in near
            if other < len(tokenizer) and other != piece and not pieces.is_frozen_V[other]
            and pieces.is_inner_V[other] == pieces.is_inner_V[piece]
        ]  # fmt: skip
        assert table_VK[piece].tolist() == allowed[:5]


def test_more_candidates_than_pieces_leaves_places_empty() -> None:
    is_inner = np.array([False, False, False, False, True])
    is_frozen = np.array([True, False, False, False, False])
    pieces = Pieces(is_frozen, is_frozen, is_inner)
    table_VK = neighbours_table(np.eye(5, 4)[:, ::-1] + 0.1, 3, pieces)
    assert sorted(table_VK[1].tolist()) == [-1, 2, 3] and table_VK[1, -1] == -1
    assert table_VK[4].tolist() == [-1, -1, -1]  # the only inner piece has nobody of its kind
    with pytest.raises(ModelError, match="no row for piece 9; the table has 5 rows"):
        neighbours_table(np.eye(5), 3, pieces, restrict=np.array([1, 9]))


def test_neighbours_come_from_the_table_and_specials_stay(tokenizer: Any) -> None:
    material, rng = make(tokenizer, [*SENTENCES, *PAIRS], replace_probability=0.5), np.random.default_rng(0)
    special = material.pieces.is_frozen_V
    for _ in range(100):
        ids = material.draw(rng)
        made = neighbours(ids, rng, material)
        assert made.dtype == np.int32 and len(made) == len(ids) and (made != ids).any()
        assert np.array_equal(special[ids], special[made]) and np.array_equal(ids[special[ids]], made[special[ids]])
        for old, new in zip(ids[made != ids], made[made != ids]):
            assert new in material.table_VK[old]


def test_unknown_and_mask_pieces_inside_a_text_stay(wordpiece: Any) -> None:
    material, rng = make(wordpiece, ["the film [MASK] was ☃ boring"], replace_probability=1.0), np.random.default_rng(0)
    ids = material.store[0]
    assert wordpiece.mask_token_id in ids and wordpiece.unk_token_id in ids
    made = neighbours(ids, rng, material)
    assert np.array_equal(made == ids, material.pieces.is_frozen_V[ids])


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.9])
def test_share_of_replaced_pieces_and_even_draw(wordpiece: Any, probability: float) -> None:
    """20,000 pieces: four standard deviations of the share are 4·sqrt(p(1-p)/20000) < 0.015."""
    material = make(wordpiece, PLAIN, replace_probability=probability)
    body = np.tile(material.store[0][1:-1], 20_000 // (len(material.store[0]) - 2))
    ids = np.concatenate([[wordpiece.cls_token_id], body, [wordpiece.sep_token_id]]).astype(np.int32)
    made = neighbours(ids, np.random.default_rng(0), material)
    assert abs((made != ids).mean() - probability) < 0.015
    piece = ids[1]
    counts = np.array([(made[ids == piece] == near).sum() for near in material.table_VK[piece]])
    assert counts.sum() == (made[ids == piece] != piece).sum()
    assert np.abs(counts / counts.sum() - 1 / 4).max() < 4 * np.sqrt(0.25 * 0.75 / counts.sum())


def test_fragments_are_runs_of_whole_words(tokenizer: Any) -> None:
    material, rng = make(tokenizer, PLAIN), np.random.default_rng(0)
    seen = {n: set() for n in range(len(PLAIN))}
    for step in range(400):
        n = step % len(PLAIN)
        made = split_text(fragments(material.store[n], rng, material), material.pieces)
        words, whole = words_of(tokenizer, made.segments[0]), PLAIN[n].split()
        assert any(words == whole[i : i + len(words)] for i in range(len(whole)))
        seen[n].add(len(words))
    for n, text in enumerate(PLAIN):
        assert seen[n] == set(range(2, len(text.split())))


def test_fragment_of_a_short_text_keeps_a_word(tokenizer: Any) -> None:
    material, rng = make(tokenizer, ["boring", "boring story"]), np.random.default_rng(0)
    assert np.array_equal(fragments(material.store[0], rng, material), material.store[0])
    made = [fragments(material.store[1], rng, material) for _ in range(30)]
    assert {tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in made} == {"boring", "story"}


def test_splices_join_a_head_and_a_tail_at_word_boundaries(tokenizer: Any) -> None:
    material, rng = make(tokenizer, PLAIN), np.random.default_rng(0)
    texts = [text.split() for text in PLAIN]
    lengths = []
    for step in range(300):
        made = split_text(splices(material.store[step % len(PLAIN)], rng, material), material.pieces)
        words, head = words_of(tokenizer, made.segments[0]), texts[step % len(PLAIN)]
        assert any(
            words == head[:cut] + other[start:]
            for other in texts for cut in range(1, len(head) + 1) for start in range(len(other))
        ), words  # fmt: skip
        lengths.append(len(words))
    assert min(lengths) >= 2
    assert abs(np.mean(lengths) - np.mean([len(text) for text in texts])) < 1  # as long as the texts they are made of


@pytest.mark.parametrize("name", ["neighbours", "fragments", "splices"])
def test_pairs_keep_two_segments_and_change_one_mostly(tokenizer: Any, name: str) -> None:
    material = make(tokenizer, PAIRS, replace_probability=0.5)
    rngs = [np.random.default_rng(seed) for seed in range(600)]
    texts = [material.store[seed % len(PAIRS)] for seed in range(600)]
    changed = np.zeros((600, 2), bool)
    for n, made in enumerate(AUGMENTATIONS[name](texts, rngs, material)):
        old, new = split_text(texts[n], material.pieces), split_text(made, material.pieces)
        assert [part.tolist() for part in new.frame] == [part.tolist() for part in old.frame]
        changed[n] = [not np.array_equal(a, b) for a, b in zip(old.segments, new.segments)]
    if name != "splices":  # a splice may fall on the pair itself
        assert changed.any(1).all()
        assert abs((changed.sum(1) == 1).mean() - ONE_SIDE) < 4 * np.sqrt(ONE_SIDE * (1 - ONE_SIDE) / 600)
        assert abs((changed[:, 0] & ~changed[:, 1]).mean() - ONE_SIDE / 2) < 0.08


def test_half_of_the_spliced_pairs_recombine_sentences(tokenizer: Any) -> None:
    material, rng = make(tokenizer, PAIRS), np.random.default_rng(0)
    seconds = {tuple(split_text(material.store[n], material.pieces).segments[1]) for n in range(len(PAIRS))}
    recombined = 0
    for step in range(400):
        old = split_text(material.store[step % len(PAIRS)], material.pieces)
        new = split_text(splices(old.rebuild(), rng, material), material.pieces)
        same_first, foreign = np.array_equal(old.segments[0], new.segments[0]), tuple(new.segments[1]) in seconds
        recombined += same_first and foreign
    assert 0.42 < recombined / 400 < 0.62  # a half, and now and then a splice whose seam lies at an end


@pytest.fixture(scope="module")
def tiny_mlm(wordpiece: Any) -> BertForMaskedLM:
    torch.manual_seed(1)
    shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    return BertForMaskedLM(BertConfig(vocab_size=len(wordpiece), **shape)).eval()


def test_masked_lm_changes_only_words_it_masked(wordpiece: Any, tiny_mlm: BertForMaskedLM) -> None:
    """Word by word, each is what it was or one other piece that begins a word."""
    material = dataclasses.replace(make(wordpiece, [*PLAIN, *PAIRS], replace_probability=0.4), mlm=tiny_mlm)
    texts = [material.store[n % len(material.store)] for n in range(60)]
    made = masked_lm(texts, [np.random.default_rng(n) for n in range(60)], material)
    pieces, replaced, total = material.pieces, 0, 0
    for old_ids, new_ids in zip(texts, made):
        old, new = split_text(old_ids, pieces), split_text(new_ids, pieces)
        assert not np.array_equal(old_ids, new_ids) and wordpiece.mask_token_id not in new_ids
        assert [part.tolist() for part in new.frame] == [part.tolist() for part in old.frame]
        for before, after in zip(old.segments, new.segments):
            assert not pieces.is_frozen_V[after].any()
            old_words = np.split(before, pieces.word_starts(before)[1:])
            new_words = np.split(after, pieces.word_starts(after)[1:])
            assert len(old_words) == len(new_words)
            for was, now in zip(old_words, new_words):
                total += 1
                if not np.array_equal(was, now):
                    replaced += 1
                    assert len(now) == 1 and not pieces.is_inner_V[now[0]] and now[0] != was[0]
    assert 0.2 < replaced / total < 0.5


def test_masked_lm_draws_from_the_models_best(wordpiece: Any, tiny_mlm: BertForMaskedLM) -> None:
    """One masked word: the draws over many seeds are the k best allowed logits of that very sentence, no others."""
    material = dataclasses.replace(make(wordpiece, PLAIN, candidates=3, replace_probability=1.0), mlm=tiny_mlm)
    cls, sep, mask = wordpiece.cls_token_id, wordpiece.sep_token_id, wordpiece.mask_token_id
    with torch.no_grad():
        logits = tiny_mlm(torch.tensor([[cls, mask, sep]])).logits[0, 1].numpy()
    barred = material.pieces.is_frozen_V | material.pieces.is_inner_V
    best = [piece for piece in np.argsort(-logits) if not barred[piece]]
    text = np.array([cls, best[1], sep], np.int32)  # the model would like to keep this word, and may not
    made = masked_lm([text] * 60, [np.random.default_rng(n) for n in range(60)], material)
    assert all(len(ids) == 3 for ids in made) and {int(ids[1]) for ids in made} == {best[0], best[2], best[3]}


def test_masked_lm_sees_the_second_sentence_as_such(wordpiece: Any, tiny_mlm: BertForMaskedLM) -> None:
    """The segment ids of a pair are the tokenizer's own."""
    seen: list[torch.Tensor] = []

    def listen(model: Any, args: Any, inputs: dict[str, torch.Tensor]) -> None:
        seen.append(inputs["token_type_ids"])

    hook = tiny_mlm.register_forward_pre_hook(listen, with_kwargs=True)
    material = make(wordpiece, [("boring story", "the film was")], replace_probability=0.0)
    material = dataclasses.replace(material, mlm=tiny_mlm)
    made = masked_lm([material.store[0]], [np.random.default_rng(0)], material)[0]
    hook.remove()
    first, second = split_text(made, material.pieces).segments
    assert seen[0][0].tolist() == [0] * (len(first) + 2) + [1] * (len(second) + 1)


def test_load_masked_lm_refuses_another_vocabulary_and_bare_encoders(
    wordpiece: Any, byte_bpe: Any, tiny_mlm: BertForMaskedLM, tmp_path: Path
) -> None:
    tiny_mlm.save_pretrained(tmp_path / "mlm")
    wordpiece.save_pretrained(tmp_path / "mlm")
    loaded = load_masked_lm(str(tmp_path / "mlm"), wordpiece)
    assert not loaded.training
    with pytest.raises(ModelError, match="does not share the teacher's vocabulary"):
        load_masked_lm(str(tmp_path / "mlm"), byte_bpe)
    tiny_mlm.bert.save_pretrained(tmp_path / "bare")
    wordpiece.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="has no masked language model's head"):
        load_masked_lm(str(tmp_path / "bare"), wordpiece)
    with pytest.raises(ModelError, match="masked_lm_model: .* cannot be loaded"):
        load_masked_lm(str(tmp_path / "absent"), wordpiece)


MIXED = dict(neighbours=2.0, fragments=1.0, splices=1.0)


def test_any_item_is_a_function_of_seed_and_number(wordpiece: Any, tiny_mlm: BertForMaskedLM) -> None:
    material = make(wordpiece, [*SENTENCES, *PAIRS], masked_lm=1.0, **MIXED)

    def stream(start: int, seed: int = 5) -> Any:
        return stream_transfer(
            material.store, material.config, material.pieces, material.table_VK,
            seed=seed, max_length=20, mlm=tiny_mlm, start=start,
        )  # fmt: skip

    whole = [ids.tolist() for ids in islice(stream(0), 700)]
    for start in (1, 255, 256, 300, 640):
        assert [ids.tolist() for ids in islice(stream(start), 40)] == whole[start : start + 40]
    assert [ids.tolist() for ids in islice(stream(0, seed=6), 50)] != whole[:50]
    assert all(3 <= len(ids) <= 20 for ids in whole)
    assert max(map(len, whole)) == 20  # some had to be cut


def test_shares_are_normalised_and_kept(wordpiece: Any) -> None:
    expected = {"neighbours": 0.5, "fragments": 0.25, "splices": 0.25}
    assert shares(TransferConfig(neighbours=2, fragments=1, splices=1)) == expected
    with pytest.raises(ConfigError, match="size is 50000 but every share is 0; choices to raise: fragments, masked"):
        shares(TransferConfig(neighbours=0, fragments=0, splices=0))
    with pytest.raises(ConfigError, match=r"transfer.splices: -0.1 is out of range; choices: 0 or more"):
        shares(TransferConfig(splices=-0.1))
    material = make(wordpiece, [SENTENCES[0]], neighbours=3, fragments=1, splices=0)
    stream = stream_transfer(material.store, material.config, material.pieces, material.table_VK, seed=0, max_length=64)
    same_length = np.mean([len(ids) == len(material.store[0]) for ids in islice(stream, 2_000)])
    assert abs(same_length - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 2_000)  # fragments are always shorter


def test_impossible_requests_fail_before_the_first_text(wordpiece: Any) -> None:
    material = make(wordpiece, SENTENCES)
    arguments = dict(pieces=material.pieces, table_VK=material.table_VK, seed=0, max_length=20)
    with pytest.raises(ConfigError, match="masked_lm: 0.5 needs transfer.masked_lm_model"):
        stream_transfer(material.store, dataclasses.replace(material.config, masked_lm=0.5), **arguments)
    with pytest.raises(ConfigError, match="transfer.candidates: 0 is out of range"):
        stream_transfer(material.store, dataclasses.replace(material.config, candidates=0), **arguments)
    empty = TokenStore.from_lists([[wordpiece.cls_token_id, wordpiece.sep_token_id]])
    with pytest.raises(DataError, match="cannot be made from 1 texts without one word"):
        stream_transfer(empty, material.config, **arguments)


def build(material: Material, cache: Path, progress: Progress, *, chunk: int = 300, seed: int = 1) -> TokenStore:
    return build_transfer(
        material.store, material.config, material.pieces, material.table_VK,
        seed=seed, max_length=20, cache=cache, progress=progress, chunk=chunk,
    )  # fmt: skip


def test_interrupted_build_ends_with_the_same_texts(wordpiece: Any, tmp_path: Path) -> None:
    material = make(wordpiece, SENTENCES, size=1_000, **MIXED)
    whole = build(material, tmp_path / "whole", Heard())
    for stop_at in (300, 600, 1_000):
        with pytest.raises(Killed):
            build(material, tmp_path / "cut", KillAt(stop_at))
    resumed = Heard()
    cut = build(material, tmp_path / "cut", resumed)
    assert resumed.stages == [("transfer set", 1_000, 1_000)]  # went on where the chunks ended
    other_chunks = build(material, tmp_path / "other", Heard(), chunk=170)
    from_cache = build(material, tmp_path / "whole", KillAt(0))
    for store in (cut, other_chunks, from_cache):
        assert np.array_equal(store.ids, whole.ids) and np.array_equal(store.offsets, whole.offsets)
    assert not np.array_equal(build(material, tmp_path / "whole", Heard(), seed=2).ids, whole.ids)
    assert len(list((tmp_path / "cut").iterdir())) == 2  # the chunks are gone


def test_built_texts_are_new_and_different(wordpiece: Any, tmp_path: Path) -> None:
    material = make(wordpiece, SENTENCES, size=1_000, **MIXED)
    made = build(material, tmp_path, Heard())
    texts = [tuple(made[n]) for n in range(len(made))]
    assert len(texts) == 1_000 == len(set(texts))
    assert not set(texts) & {tuple(material.store[n]) for n in range(len(material.store))}
    assert all(3 <= len(text) <= 20 for text in texts)


def test_too_little_material_ends_with_a_warning(wordpiece: Any, tmp_path: Path) -> None:
    """Three words have two fragments of two words, and no third text can come of them."""
    material = make(wordpiece, ["the film was"], size=30, neighbours=0, fragments=1, splices=0)
    progress = Heard()
    made = build(material, tmp_path, progress)
    found = {wordpiece.decode(made[n], skip_special_tokens=True) for n in range(len(made))}
    assert found == {"the film", "film was"} and len(made) == 2
    told = "transfer.size: 2 different texts were found in 150 tries, not 30; 1 training texts yield no more"
    assert progress.warnings == [told]


def test_nothing_asked_nothing_made(wordpiece: Any, tmp_path: Path) -> None:
    material = make(wordpiece, SENTENCES, size=0)
    assert len(build(material, tmp_path, Heard())) == 0 and not list(tmp_path.iterdir())
