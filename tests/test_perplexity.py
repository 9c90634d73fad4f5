"""Perplexity against a loop that scores one token at a time, ROUGE against cases worked by hand."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_language import TEXTS, byte_level, small_bart, small_gpt2

from adasearch.corpora import Pairs
from adasearch.errors import ConfigError, DataError
from adasearch.language import tokenize_pairs
from adasearch.perplexity import perplexity, target_perplexity, windows
from adasearch.rouge import generate_texts, rouge

STREAM = np.random.default_rng(0).integers(0, 50, 45)


@pytest.mark.parametrize(("length", "block", "stride"), [(45, 16, 8), (45, 16, 16), (45, 16, 1), (45, 16, 5), (10, 16, 4), (2, 2, 1), (32, 16, 8)])
def test_windows_score_every_token_once_with_context(length: int, block: int, stride: int) -> None:
    plan = list(windows(length, block, stride))
    scored = [token for _, end, first in plan for token in range(first, end)]
    unscored = {begin for begin, _, _ in plan} if stride == block else {0}
    assert scored == [token for token in range(length) if token not in unscored]
    assert all(end - begin <= block for begin, end, _ in plan)
    for begin, _, first in plan[1:]:
        assert first - begin >= max(1, block - stride)


@pytest.mark.parametrize("stride", [1, 5, 8, 16])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_perplexity_is_that_of_a_direct_loop(stride: int, batch_size: int) -> None:
    """Hugging Face's own loop (guide "Perplexity of fixed-length models"), its loss taken back to a sum."""
    model = small_gpt2(50).eval()
    ids_1T = torch.from_numpy(STREAM)[None]
    total, count, previous = 0.0, 0, 0
    for begin in range(0, 45, stride):
        end = min(begin + 16, 45)
        window = ids_1T[:, begin:end]
        labels = window.clone()
        labels[:, : -(end - previous)] = -100
        scored = int((labels[:, 1:] != -100).sum())  # a model's own loss is the mean over these
        with torch.no_grad():
            total += model(window, labels=labels).loss.item() * scored
        count, previous = count + scored, end
        if end == 45:
            break
    found = perplexity(model, STREAM, block_length=16, stride=stride, batch_size=batch_size, words=20)
    assert found["tokens"] == count
    assert found["nll"] == pytest.approx(total / count, rel=1e-5)  # float32 sums in another order
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    # what windows side by side leave unscored counts as the mean: words are of all tokens
    assert found["word_perplexity"] == pytest.approx(math.exp(total / count * 44 / 20), rel=1e-4)


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large() -> None:
    model = small_gpt2(50)
    torch.nn.init.zeros_(model.transformer.wte.weight)  # the tied head: all logits are equal
    assert perplexity(model, STREAM, block_length=16)["perplexity"] == pytest.approx(50, rel=1e-5)


def test_the_model_keeps_its_mode_and_dropout_is_off() -> None:
    model = small_gpt2(50).train()
    model.transformer.drop.p = 0.9
    first = perplexity(model, STREAM, block_length=16)
    assert model.training and first == perplexity(model, STREAM, block_length=16)


def test_a_broken_model_is_infinitely_perplexed() -> None:
    model = small_gpt2(50)
    torch.nn.init.normal_(model.transformer.wte.weight, std=1e4)
    found = perplexity(model, STREAM, block_length=16, words=45)
    assert found["nll"] > 1e3 and found["perplexity"] == found["word_perplexity"] == math.inf


def test_what_cannot_be_measured_is_refused() -> None:
    model = small_gpt2(50)
    for stride in (0, 17):
        with pytest.raises(ConfigError, match=rf"stride: {stride} is not possible; choices: 1 to block_length \(16\)"):
            perplexity(model, STREAM, block_length=16, stride=stride)
    with pytest.raises(ConfigError, match="block_length: 33 is too long; the model has 32 positions"):
        perplexity(model, STREAM, block_length=33)
    with pytest.raises(DataError, match="1 tokens"):
        perplexity(model, STREAM[:1], block_length=16)


def test_target_perplexity_is_that_of_one_pair_at_a_time(tmp_path: Path) -> None:
    tokenizer = byte_level(True)
    pairs, _ = tokenize_pairs(Pairs("p", TEXTS, TEXTS[::-1]), tokenizer, 20, 20, cache=tmp_path, name="p")
    model = small_bart(len(tokenizer)).eval()
    total, count = 0.0, 0
    for index in range(3):  # alone, so without any padding
        batch = pairs.collate([index])
        with torch.no_grad():
            loss = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.item()
        total, count = total + loss * batch["labels"].numel(), count + batch["labels"].numel()
    found = target_perplexity(model, pairs, batch_size=2)
    assert found["tokens"] == count and found["nll"] == pytest.approx(total / count, rel=1e-5)
    assert found["word_perplexity"] == pytest.approx(math.exp(total / sum(pairs.target_words)), rel=1e-4)
    assert "word_perplexity" not in target_perplexity(model, dataclasses.replace(pairs, target_words=()))


def test_generated_texts_are_those_of_each_source_alone(tmp_path: Path) -> None:
    tokenizer = byte_level(True)
    sources = ("a", "cat dog", *TEXTS)  # of very different lengths: padding that was read would tell
    pairs, _ = tokenize_pairs(Pairs("p", sources, sources), tokenizer, 20, 20, cache=tmp_path, name="p")
    model = small_bart(len(tokenizer)).train()
    for weight in model.parameters():  # large, so that texts differ
        torch.nn.init.normal_(weight, std=0.5)
    model.final_logits_bias[:, :3] = -1e3  # and none ends before it begins
    for num_beams in (1, 2):
        written = generate_texts(model, pairs, tokenizer, max_new_tokens=12, num_beams=num_beams, batch_size=5)
        for index in range(5):
            ids = torch.from_numpy(pairs.tokens[index].astype(np.int64))[None]
            model.eval()
            alone = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, num_beams=num_beams, do_sample=False)
            assert written[index] == tokenizer.decode(alone[0], skip_special_tokens=True).strip()
        model.train()
    assert len(set(written)) > 1 and model.training


def test_rouge_of_cases_worked_by_hand() -> None:
    assert rouge(["the cat sat"], ["the cat sat"]) == {"rouge1": 100, "rouge2": 100, "rougeL": 100}
    # "the cat" of three and four words; one of two and three bigrams; the longest common run of words in order is 2
    found = rouge(["the cat ran"], ["the cat sat down"])
    assert found["rouge1"] == pytest.approx(200 * 2 / (3 + 4)) and found["rouge2"] == pytest.approx(200 * 1 / (2 + 3))
    assert found["rougeL"] == pytest.approx(200 * 2 / 7)
    both = rouge(["the cat ran", "dog"], ["the cat sat down", "cat"])
    assert both["rouge1"] == pytest.approx(100 * 2 / 7)  # the mean of the texts' own
    assert set(rouge(["a\nb"], ["b\na"])) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
    # lines are compared one by one, so their order does not matter; for rougeL it does
    assert rouge(["a\nb"], ["b\na"])["rougeLsum"] == 100 and rouge(["a\nb"], ["b\na"])["rougeL"] == pytest.approx(50)


def test_rouge_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="1 predictions for 2 references"):
        rouge(["a"], ["a", "b"])
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(ConfigError, match=r"'rouge-score' is not installed; pip install 'adasearch\[generation\]'"):
        rouge(["a"], ["a"])
