"""Streams: the task's lengths, how they are batched, and rates against a clock that the systems themselves move."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adasearch import streams
from adasearch.errors import ConfigError, DataError
from adasearch.files import write_json
from adasearch.progress import Progress
from adasearch.runtimes import Runtime
from adasearch.streams import draw_lengths, lengths_of_task, own_lengths, read_lengths, split_batches, time_streams, tokenizer_rates
from adasearch.texts import Split
from adasearch.tokens import TokenStore

LENGTHS = [4] * 50 + [6] * 30 + [20] * 20


class Clocked(Runtime):
    """A runtime whose calls take a millisecond a token computed, on a clock of its own making; it keeps the masks."""

    name, precision, threads, vocab_size = "clocked", "fp32", 1, 60

    def __init__(self, clock: list[float], pace: float = 1e-3):
        self.clock, self.pace, self.masks = clock, pace, []

    def __call__(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> np.ndarray:
        assert input_ids.dtype == attention_mask.dtype == np.int64 and (input_ids[attention_mask == 1] >= 30).all()
        self.clock[0] += input_ids.size * self.pace
        self.masks.append(attention_mask)
        return np.zeros((len(input_ids), 2), np.float32)


def test_drawn_lengths_have_the_distribution_of_the_given() -> None:
    drawn = draw_lengths(LENGTHS, 10)
    assert sorted(drawn) == [4] * 5 + [6] * 3 + [20] * 2
    assert list(drawn) != sorted(drawn) and np.array_equal(drawn, draw_lengths(LENGTHS, 10))
    assert draw_lengths([7], 3).tolist() == [7, 7, 7]
    many = draw_lengths(LENGTHS, 10_000)
    assert many.mean() == pytest.approx(np.mean(LENGTHS))


def test_batches_hold_every_text_once_and_sorted_ones_pad_least() -> None:
    drawn = draw_lengths(LENGTHS, 50)
    padded = {}
    for is_sorted in (False, True):
        batches = split_batches(drawn, 8, is_sorted)
        assert [len(batch) for batch in batches] == [8] * 6 + [2]
        assert sorted(np.concatenate(batches)) == sorted(drawn)
        padded[is_sorted] = sum(len(batch) * batch.max() for batch in batches)
    assert padded[True] < padded[False]
    least = sum(len(batch) * batch.max() for batch in np.split(np.sort(drawn)[::-1], [8, 16, 24, 32, 40, 48]))
    assert padded[True] == least


def test_a_model_with_other_pieces_is_timed_at_their_lengths() -> None:
    now = [0.0]
    systems = {"theirs": Clocked(now), "own": Clocked(now)}
    longer = [2 * length for length in LENGTHS]
    found = time_streams(systems, LENGTHS, [1, 8], texts=50, clock=lambda: now[0], own={"own": longer})
    for theirs, own in zip(found["theirs"], found["own"]):
        assert own.mean_tokens == 2 * theirs.mean_tokens and own.texts_per_s == pytest.approx(theirs.texts_per_s / 2)
        assert own.padding_share == pytest.approx(theirs.padding_share)


def test_own_lengths_are_those_of_a_student_with_its_own_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    for name, lengths in (("held_out", [1, 2]), ("student_held_out", [3, 5])):
        TokenStore.from_lists([[1] * length for length in lengths]).save(tmp_path / "cache", f"{name}-x")
    for name, kind in (("student", "adasearch"), ("teacher", "bert")):
        write_json(tmp_path / name / "config.json", {"model_type": kind})
    assert own_lengths(tmp_path / "student").tolist() == [3, 5] and own_lengths(tmp_path / "teacher") is None
    assert own_lengths(tmp_path.parent / "elsewhere") is None


def test_rates_are_texts_over_the_time_of_a_pass() -> None:
    now = [0.0]
    system = Clocked(now)
    found = time_streams({"a": system}, LENGTHS, [1, 8], texts=50, clock=lambda: now[0])["a"]
    assert [(f.batch_size, f.is_sorted) for f in found] == [(1, False), (8, False), (8, True)]
    drawn = draw_lengths(LENGTHS, 50)
    for timing in found:
        computed = sum(len(b) * int(b.max()) for b in split_batches(drawn, timing.batch_size, timing.is_sorted))
        assert timing.texts_per_s == pytest.approx(50 / (computed * 1e-3))
        assert timing.padding_share == pytest.approx(1 - drawn.sum() / computed)
        assert timing.mean_tokens == pytest.approx(drawn.mean()) and timing.texts == 50
        assert timing.texts_per_s_cv == pytest.approx(0, abs=1e-9)
    assert found[0].padding_share == 0
    assert {int(mask.sum(1).max()) for mask in system.masks} == {4, 6, 20}  # padded to the longest of a batch, no more
    everything = sum(int(mask.sum()) for mask in system.masks)
    assert everything == drawn.sum() * sum(1 + timing.passes for timing in found)  # and one untimed pass each
    assert all((np.diff(mask, axis=1) <= 0).all() for mask in system.masks)  # texts first, padding after


def test_slow_systems_make_fewer_passes() -> None:
    now = [0.0]
    tokens = int(draw_lengths(LENGTHS, 50).sum())
    paces = {"fast": 1e-6, "slow": streams.SECONDS_PER_STREAM / tokens / 3.5, "slowest": streams.SECONDS_PER_STREAM}
    found = time_streams({n: Clocked(now, p) for n, p in paces.items()}, LENGTHS, [1], texts=50, clock=lambda: now[0])
    assert {name: rows[0].passes for name, rows in found.items()} == {"fast": streams.MOST_PASSES, "slow": 3, "slowest": 1}


def test_raw_texts_are_read_as_they_come() -> None:
    now, sizes = [0.0], []

    def factory(batch: int, length: int) -> Callable[[], None]:
        def call() -> None:
            now[0] += 0.5
            sizes.append(batch)

        return call

    found = time_streams({"raw": factory, "a": Clocked(now)}, LENGTHS, [8], texts=20, clock=lambda: now[0])
    assert [(f.is_sorted, f.runtime, f.padding_share) for f in found["raw"]] == [(False, "python", None)]
    assert found["raw"][0].texts_per_s == pytest.approx(20 / 1.5) and sizes[:3] == [8, 8, 4]
    assert len(found["a"]) == 2


@pytest.mark.parametrize(("lengths", "texts"), [([], 5), ([0, 3], 5), ([3], 0)])
def test_nothing_to_draw_from_is_refused(lengths: list[int], texts: int) -> None:
    with pytest.raises(ConfigError, match="lengths: .* choices: 1 or more of each"):
        time_streams({}, lengths, [1], texts=texts)


def test_lengths_are_read_from_a_run_or_a_file(tmp_path: Path) -> None:
    store = TokenStore.from_lists([[5] * count for count in (3, 9, 4)])
    store.save(tmp_path / "run" / "cache", "held_out-abc")
    assert read_lengths(tmp_path / "run").tolist() == [3, 9, 4]
    assert lengths_of_task(tmp_path / "run" / "student", None, Progress()).tolist() == [3, 9, 4]
    assert lengths_of_task(tmp_path / "run" / "models" / "student-1", None, Progress()).tolist() == [3, 9, 4]
    assert lengths_of_task(tmp_path / "elsewhere" / "student", None, Progress()) is None
    (tmp_path / "lengths.txt").write_text("12\n7\n")
    assert read_lengths(tmp_path / "lengths.txt").tolist() == [12, 7]


@pytest.mark.parametrize(
    ("content", "message"), [("12\n-3", "'-3' is no length"), ("", "no length"), ("0", "'0' is no length"), (None, "cannot be read")]
)
def test_files_without_lengths_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "lengths.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_lengths(path)
    with pytest.raises(DataError, match="no lengths .* choices: a run's folder"):
        read_lengths(tmp_path)


class Reader:
    """A tokenizer written in Python: a millisecond a letter, on a clock of its own making."""

    def __init__(self, clock: list[float]):
        self.clock, self.read, self.parallel = clock, [], None

    def __deepcopy__(self, memo: dict) -> Reader:
        return self

    def __call__(self, texts: list[str], pairs: list[str] | None, truncation: bool, max_length: int) -> dict[str, list[list[int]]]:
        self.read, self.parallel = [*zip(texts, pairs or [""] * len(texts))], os.environ.get("TOKENIZERS_PARALLELISM")
        self.clock[0] += 1e-3 * sum(len(first) + len(second) for first, second in self.read)
        return {"input_ids": [[1] * min(max_length, len(text)) for text in texts]}


@pytest.mark.parametrize("before", [None, "true"])
def test_a_tokenizer_s_rate_is_of_texts_as_long_as_the_task_s_on_one_thread(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if before is not None:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
    clock = [0.0]
    one, other = Reader(clock), Reader(clock)
    split = Split(["a" * length for length in LENGTHS], pairs=["b" * 2] * len(LENGTHS))
    found = tokenizer_rates({"student": one, "bag": one, "teacher": other}, split, 5, texts=10, clock=lambda: clock[0])
    assert sorted(len(first) for first, _ in one.read) == [4] * 5 + [6] * 3 + [20] * 2
    seconds = 1e-3 * (sum(len(first) for first, _ in one.read) + 2 * 10)
    assert found == pytest.approx(dict.fromkeys(("student", "bag", "teacher"), 10 / seconds))
    assert one.parallel == "false" and os.environ.get("TOKENIZERS_PARALLELISM") == before


def test_a_tokenizer_that_is_timed_stays_as_it_was() -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    assert tokenizer_rates({"it": tokenizer}, Split(["a a a", "b"]), 2, texts=3)["it"] > 0
    assert tokenizer.backend_tokenizer.truncation is None and tokenizer("a b a")["input_ids"] == [1, 0, 1]


def test_a_tokenizer_without_texts_is_refused() -> None:
    with pytest.raises(ConfigError, match="texts: 0 texts, 128 to draw"):
        tokenizer_rates({}, Split([]), 5)
