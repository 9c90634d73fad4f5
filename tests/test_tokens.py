"""Laws of the token store, the examples and the sampler: nothing lost, nothing twice, the same step the same batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adasearch.fit_config import steps_behind
from adasearch.tokens import BUCKET_BATCHES, BatchSampler, Examples, TokenStore

PAD = 9
TEXTS = [[1, 2, 3], [4], [], [5, 6], [7, 8, 1, 2]]


@pytest.fixture
def store() -> TokenStore:
    return TokenStore.from_lists(TEXTS)


def texts_of(store: TokenStore) -> list[list[int]]:
    return [store[n].tolist() for n in range(len(store))]


def example_set(store: TokenStore, **arrays: np.ndarray) -> Examples:
    return Examples(store, PAD, **arrays)


def test_texts_come_back_as_they_went_in(store: TokenStore) -> None:
    assert texts_of(store) == TEXTS and store.lengths.tolist() == [3, 1, 0, 2, 4]
    assert store.ids.dtype == np.int32 and store.offsets.dtype == np.int64
    assert texts_of(TokenStore.from_lists([])) == []
    assert texts_of(TokenStore.from_lists(np.array(text) for text in TEXTS)) == TEXTS  # a generator will do


def test_select_and_concatenate_are_those_of_lists(store: TokenStore) -> None:
    picked = [4, 0, 0, 2]
    assert texts_of(store.select(np.array(picked))) == [TEXTS[n] for n in picked]
    joined = TokenStore.concatenate([store, TokenStore.from_lists([]), store.select(np.array([3]))])
    assert texts_of(joined) == [*TEXTS, TEXTS[3]]
    assert joined.ids.dtype == np.int32 and joined.offsets.dtype == np.int64


def test_pad_agrees_with_torch(store: TokenStore) -> None:
    chosen = [3, 0, 4]
    ids_BL, mask_BL = store.pad(chosen, PAD)
    tensors = [torch.tensor(TEXTS[n]) for n in chosen]
    reference = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=PAD)
    assert torch.equal(ids_BL, reference) and torch.equal(mask_BL, (reference != PAD).long())
    assert ids_BL.dtype == mask_BL.dtype == torch.int64
    ids_BL, mask_BL = store.pad(np.array([2]), PAD)  # an empty text is read as one place of padding, as where it is served
    assert ids_BL.tolist() == [[PAD]] and mask_BL.tolist() == [[1]]


def test_saved_store_is_mapped_back(store: TokenStore, tmp_path: Path) -> None:
    assert TokenStore.load(tmp_path, "train") is None
    store.save(tmp_path, "train")
    loaded = TokenStore.load(tmp_path, "train")
    assert texts_of(loaded) == TEXTS and isinstance(loaded.ids, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        loaded.ids[0] = 0
    assert all(torch.equal(a, b) for a, b in zip(loaded.pad([0, 4], PAD), store.pad([0, 4], PAD)))
    assert texts_of(TokenStore.concatenate([loaded, store])) == [*TEXTS, *TEXTS]
    assert texts_of(loaded.select(np.array([4, 1]))) == [TEXTS[4], TEXTS[1]]
    (tmp_path / "train.offsets.npy").unlink()  # written last: without it the store is not whole
    assert TokenStore.load(tmp_path, "train") is None


def test_empty_store_survives_the_disk(tmp_path: Path) -> None:
    TokenStore.from_lists([]).save(tmp_path, "none")
    assert len(TokenStore.load(tmp_path, "none")) == 0


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        (np.array([0, 1, -100, 1, 0]), torch.int64),
        (np.array([0.5, 1, np.nan, 1, 0], np.float32), torch.float32),
        (np.eye(5, 3, dtype=np.float32), torch.float32),
    ],
    ids=["single_label", "regression", "multi_label"],
)
def test_collate_keeps_the_labels_type(store: TokenStore, labels: np.ndarray, dtype: torch.dtype) -> None:
    batch = example_set(store, labels=labels).collate([3, 0, 2])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["labels"].dtype == dtype
    np.testing.assert_array_equal(batch["labels"].numpy(), labels[[3, 0, 2]])


def test_collate_gives_teacher_logits_in_single_precision(store: TokenStore, tmp_path: Path) -> None:
    """Also from half-precision files that are mapped, not read."""
    probes = np.arange(5 * 2 * 3, dtype=np.float16).reshape(5, 2, 3) / 8
    np.save(tmp_path / "probes.npy", probes)
    mapped = np.load(tmp_path / "probes.npy", mmap_mode="r")
    batch = example_set(store, teacher_logits=np.ones((5, 3), np.float32), probe_logits=mapped).collate([4, 1])
    assert "labels" not in batch and batch["probe_logits"].dtype == batch["teacher_logits"].dtype == torch.float32
    np.testing.assert_array_equal(batch["probe_logits"].numpy(), probes[[4, 1]].astype(np.float32))


def test_examples_select_and_concatenate_take_all_arrays_along(store: TokenStore) -> None:
    labels, logits = np.arange(5), np.arange(10, dtype=np.float32).reshape(5, 2)
    whole = example_set(store, labels=labels, teacher_logits=logits)
    halves = [whole.select(np.array([0, 3])), whole.select(np.array([1, 2, 4]))]
    joined = Examples.concatenate(halves)
    order = [0, 3, 1, 2, 4]
    assert texts_of(joined.tokens) == [TEXTS[n] for n in order] and joined.pad_token_id == PAD
    assert joined.labels.tolist() == order and joined.probe_logits is None
    np.testing.assert_array_equal(joined.teacher_logits, logits[order])
    with pytest.raises(AssertionError, match="labels: known in some parts only"):
        Examples.concatenate([whole, example_set(store, teacher_logits=logits)])


def test_in_order_gives_every_example_once_longest_first() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 103)
    store = TokenStore.from_lists([[n] * length for n, length in enumerate(lengths)])
    examples = example_set(store, labels=np.arange(103))
    indices, widths = [], []
    for chosen, batch in examples.in_order(10):
        assert batch["labels"].tolist() == chosen.tolist() == batch["input_ids"][:, 0].tolist()
        indices.extend(chosen.tolist())
        widths.append(batch["input_ids"].shape[1])
    assert sorted(indices) == list(range(103))
    assert widths == sorted(widths, reverse=True) and widths[0] == lengths.max()


LENGTHS = np.random.default_rng(1).geometric(0.07, 1_003).clip(3, 64)  # about 14 word pieces, as in single sentences


def test_a_batch_depends_on_seed_and_step_only() -> None:
    forward = BatchSampler(LENGTHS, 8, seed=3)
    steps = range(3 * forward.batches_per_epoch)
    batches = [forward(step).tolist() for step in steps]
    shuffled = BatchSampler(LENGTHS, 8, seed=3)
    for step in np.random.default_rng(0).permutation(len(steps))[:60]:  # another order, a resumed run
        assert shuffled(int(step)).tolist() == batches[step]
    other = BatchSampler(LENGTHS, 8, seed=4)
    assert [other(step).tolist() for step in steps] != batches
    assert batches[: forward.batches_per_epoch] != batches[forward.batches_per_epoch : 2 * forward.batches_per_epoch]


@pytest.mark.parametrize(("count", "batch_size"), [(1_003, 8), (1_000, 8), (16, 8), (8, 8), (5, 8), (1, 8), (7, 1)])
def test_an_epoch_draws_each_example_at_most_once(count: int, batch_size: int) -> None:
    sampler = BatchSampler(LENGTHS[:count], batch_size, seed=0)
    size = min(batch_size, count)
    assert sampler.batches_per_epoch == count // size
    for epoch in range(3):
        start = epoch * sampler.batches_per_epoch
        batches = [sampler(start + step) for step in range(sampler.batches_per_epoch)]
        assert all(len(batch) == size for batch in batches)
        drawn = np.concatenate(batches)
        assert len(set(drawn.tolist())) == len(drawn) == count // size * size


def test_those_left_out_of_an_epoch_are_drawn_by_chance_not_by_length() -> None:
    """15 examples in batches of 8: 7 are left out. Over 400 epochs each is left out 187 times, sd 10."""
    sampler, left_out = BatchSampler(np.arange(1, 16), 8, seed=0), np.zeros(15)
    for epoch in range(400):
        left_out += ~np.isin(np.arange(15), sampler(epoch))
    assert np.abs(left_out - 400 * 7 / 15).max() < 4.5 * np.sqrt(400 * 7 / 15 * 8 / 15)


def padding_share(lengths_SB: np.ndarray) -> float:
    return 1 - lengths_SB.sum() / (lengths_SB.max(1).sum() * lengths_SB.shape[1])


def test_batches_hold_texts_of_similar_length_in_mixed_order() -> None:
    sampler = BatchSampler(LENGTHS, 8, seed=0)
    drawn_SB = np.stack([LENGTHS[sampler(step)] for step in range(sampler.batches_per_epoch)])
    random_SB = LENGTHS[np.random.default_rng(0).permutation(len(LENGTHS))[: drawn_SB.size]].reshape(drawn_SB.shape)
    assert padding_share(random_SB) > 0.4
    assert padding_share(drawn_SB) < 0.1
    means = drawn_SB.mean(1)
    assert len(means) > 2 * BUCKET_BATCHES  # more than one bucket
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3  # not from short to long
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.3


@pytest.mark.parametrize(
    ("lengths", "most"), [(np.full(2_000, 10), 0.02), (np.arange(2_000), 0.5)], ids=["equal", "distinct"]
)
def test_companions_in_a_batch_change_from_epoch_to_epoch(lengths: np.ndarray, most: float) -> None:
    """Sorting by length must not freeze the batches: two epochs have few pairs in common."""
    sampler = BatchSampler(lengths, 8, seed=0)

    def pairs(epoch: int) -> set[tuple[int, int]]:
        steps = range(epoch * sampler.batches_per_epoch, (epoch + 1) * sampler.batches_per_epoch)
        return {(a, b) for step in steps for a in sampler(step).tolist() for b in sampler(step).tolist() if a < b}

    assert len(pairs(0) & pairs(1)) < most * len(pairs(0))


def test_selections_are_those_of_lists_whatever_their_runs() -> None:
    """Runs of neighbours are copied at once: single texts, runs, repeats, jumps back and empty texts among them."""
    generator = np.random.default_rng(0)
    texts = [generator.integers(0, 9, generator.integers(0, 4)).tolist() for _ in range(30)]
    store = TokenStore.from_lists(texts)
    for _ in range(50):
        parts = [np.arange(start, min(30, start + length)) for start, length in generator.integers(0, 30, (4, 2))]
        picked = np.concatenate(parts)
        assert texts_of(store.select(picked)) == [texts[n] for n in picked]
    assert texts_of(store.select(np.zeros(0, np.int64))) == []
    assert texts_of(store.select(np.array([-1, 3]))) == [texts[-1], texts[3]]


@pytest.mark.parametrize(("before", "now"), [(8, 8), (8, 4), (4, 8), (8, 5)])
def test_a_stage_behind_another_meets_no_text_twice_in_a_pass(before: int, now: int) -> None:
    lengths, learned = np.arange(50), 4  # two thirds of a pass, in batches of 8
    after = steps_behind(learned, 50, before, now)
    sampler = BatchSampler(lengths, now, seed=1)
    steps = 50 // now - (after % (50 // now))  # to the end of the pass that it begins in
    met = np.concatenate([sampler(after + step) for step in range(steps)])
    assert len(set(met.tolist())) == len(met)
    if before == now:
        earlier = np.concatenate([sampler(step) for step in range(learned)])
        assert after == learned and not set(met.tolist()) & set(earlier.tolist())
    else:
        assert steps == 50 // now, "a whole pass"
