"""Language-modelling data: nothing lost, nothing added, labels where they belong, errors that name the place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_language import TEXTS, byte_level, small_bart, small_gpt2

from adasearch.config import FitConfig
from adasearch.corpora import Corpus, Pairs, find_corpus, find_pairs
from adasearch.errors import ConfigError, DataError, ModelError
from adasearch.fit import fit
from adasearch.language import language_logits, language_outputs, tokenize_blocks, tokenize_pairs
from adasearch.language_objectives import UNSCORED
from adasearch.methods.language_model import LanguageModel
from adasearch.progress import Progress


@pytest.mark.parametrize("is_joined", [True, False])
def test_blocks_hold_the_texts_token_by_token(tmp_path: Path, is_joined: bool) -> None:
    tokenizer = byte_level(False)
    blocks = tokenize_blocks(Corpus("c", TEXTS, is_joined), tokenizer, 8, cache=tmp_path, name="train")
    between = "" if is_joined else "<|endoftext|>"
    assert tokenizer.decode(blocks.stream_T) == "".join(text + between for text in TEXTS)
    lengths = blocks.tokens.lengths
    assert set(lengths[:-1]) == {8} and 0 < lengths[-1] <= 8 and len(blocks) == len(lengths)
    assert blocks.words == 7 + 6 + 6


def test_a_batch_of_blocks_scores_all_but_padding_and_knows_its_examples(tmp_path: Path) -> None:
    tokenizer = byte_level(False)
    blocks = tokenize_blocks(Corpus("c", TEXTS), tokenizer, 9, cache=tmp_path, name="train")
    last = len(blocks) - 1
    short = len(blocks.tokens[last])
    assert short < 9
    batch = blocks.collate([last, 0])
    assert batch["index"].tolist() == [last, 0] and batch["index"].dtype == torch.int64
    assert batch["labels"][1].tolist() == batch["input_ids"][1].tolist() == blocks.tokens[0].tolist()
    assert batch["labels"][0].tolist() == [*blocks.tokens[last].tolist(), *[UNSCORED] * (9 - short)]
    assert batch["attention_mask"][0].tolist() == [1] * short + [0] * (9 - short)
    # the padding is end-of-text's id here, which is scored where it ends a text
    assert tokenizer.eos_token_id in batch["labels"][0].tolist()


def test_tokens_come_from_the_cache_until_something_changes(tmp_path: Path) -> None:
    tokenizer, corpus = byte_level(False), Corpus("c", TEXTS)
    first = tokenize_blocks(corpus, tokenizer, 8, cache=tmp_path, name="train")
    files = sorted(tmp_path.iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    again = tokenize_blocks(corpus, tokenizer, 8, cache=tmp_path, name="train")
    assert sorted(tmp_path.iterdir()) == files and [file.stat().st_mtime_ns for file in files] == times
    assert np.array_equal(first.stream_T, again.stream_T) and again.words == first.words
    for changed, length in ((Corpus("c", TEXTS[:2]), 8), (corpus, 9), (Corpus("c", TEXTS, is_joined=True), 8)):
        tokenize_blocks(changed, tokenizer, length, cache=tmp_path, name="train")
    assert len(list(tmp_path.iterdir())) == 4 * len(files)


def test_pairs_are_cut_counted_and_padded(tmp_path: Path) -> None:
    tokenizer = byte_level(True)
    texts = Pairs("p", (TEXTS[0], "cat", TEXTS[1]), ("a dog", TEXTS[0], "cat"))
    pairs, cut = tokenize_pairs(texts, tokenizer, 8, 6, cache=tmp_path, name="train")
    assert cut == sum(len(tokenizer(text)["input_ids"]) > 8 for text in texts.sources) + sum(
        len(tokenizer(text)["input_ids"]) > 6 for text in texts.targets
    )
    assert cut and pairs.tokens.lengths.max() == 8 and pairs.targets.lengths.max() == 6
    assert pairs.references == texts.targets  # whole, though their tokens are cut
    batch = pairs.collate([1, 2])
    assert batch["labels"][0].tolist() == pairs.targets[1].tolist() and batch["index"].tolist() == [1, 2]
    assert batch["labels"][1].tolist() == [*pairs.targets[2].tolist(), *[UNSCORED] * (6 - len(pairs.targets[2]))]
    picked = pairs.select(np.array([2, 0]))
    assert picked.references == ("cat", "a dog") and picked.targets[0].tolist() == pairs.targets[2].tolist()
    left = [tokenizer.decode(ids, skip_special_tokens=True).split() for ids in (pairs.targets[index] for index in range(3))]
    assert pairs.target_words == tuple(map(len, left)) and len(left[1]) < len(TEXTS[0].split()) and picked.target_words == (1, 2)
    assert tokenize_pairs(texts, tokenizer, 8, 6, cache=tmp_path, name="train")[1] == cut  # from the cache as well


def test_logits_are_those_transformers_computes_its_own_loss_from(tmp_path: Path) -> None:
    for is_paired in (False, True):
        tokenizer = byte_level(is_paired)
        if is_paired:
            texts = Pairs("p", TEXTS, TEXTS[::-1])
            examples, model = tokenize_pairs(texts, tokenizer, 20, 20, cache=tmp_path, name="p")[0], small_bart(len(tokenizer))
        else:
            examples, model = tokenize_blocks(Corpus("c", TEXTS), tokenizer, 9, cache=tmp_path, name="c"), small_gpt2(len(tokenizer))
        batch = examples.collate(range(3))
        model.eval()
        ours = LanguageModel(FitConfig()).loss(model, batch)["ce"]
        theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
        torch.testing.assert_close(ours, theirs.loss, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(language_logits(model, batch), theirs.logits, atol=1e-6, rtol=1e-5)
        assert language_outputs(model, batch, output_hidden_states=True).get("loss") is None


@pytest.mark.parametrize("is_paired", [False, True])
def test_fit_learns_a_text_by_heart(tmp_path: Path, is_paired: bool) -> None:
    tokenizer = byte_level(is_paired)
    if is_paired:
        texts = Pairs("p", TEXTS, TEXTS)
        examples, model = tokenize_pairs(texts, tokenizer, 30, 12, cache=tmp_path, name="p")[0], small_bart(len(tokenizer))
    else:
        examples, model = tokenize_blocks(Corpus("c", TEXTS), tokenizer, 8, cache=tmp_path, name="c"), small_gpt2(len(tokenizer))
    config = FitConfig(steps=60, batch_size=4, learning_rate=1e-2)
    history = fit(
        model, LanguageModel(config), {"train": examples}, config, seed=1, folder=tmp_path / "fit",
        accelerator=Accelerator(cpu=True), progress=Progress(), title="t",
    )  # fmt: skip
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_corpora_are_read_from_texts_and_tables(tmp_path: Path) -> None:
    plain = tmp_path / "a.txt"
    plain.write_text("one\n\ntwo\n", encoding="utf-8")
    table = write_jsonl(tmp_path / "b.jsonl", [{"body": "x"}, {"body": ""}, {"body": None}, {"body": " y\n"}])
    found = find_corpus("mine", files={"train": plain, "validation": table, "test": None}, text_column="body")
    assert found["train"].texts == ("one\n\ntwo\n",) and found["validation"].texts == ("x", " y\n") and set(found) == {"train", "validation"}
    assert not found["train"].is_joined
    assert find_corpus("mine", files={"train": table}, text_column="body", is_joined=True)["train"].is_joined


def test_presets_know_their_column_and_kind(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "xsum").mkdir()
    pq.write_table(pa.table({"text": ["", " = A = \n", " b c \n"]}), tmp_path / "wikitext2" / "train.parquet")
    pq.write_table(pa.table({"document": ["a b"], "summary": ["a"]}), tmp_path / "xsum" / "train.parquet")
    corpus = find_corpus("wikitext2", data_dir=str(tmp_path))["train"]
    assert corpus.texts == (" = A = \n", " b c \n") and corpus.is_joined
    pairs = find_pairs("xsum", data_dir=str(tmp_path))["train"]
    assert (pairs.sources, pairs.targets) == (("a b",), ("a",))


def test_errors_name_the_place_the_value_and_the_choices(tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "b.jsonl", [{"text": "x", "n": 3, "empty": ""}])
    other = tmp_path / "b.xyz"
    other.write_text("x")
    with pytest.raises(ConfigError, match=r"task: 'wikitex2' is not known \(did you mean 'wikitext2'\?\); choices: wikitext2, .*train_file"):
        find_corpus("wikitex2")
    with pytest.raises(ConfigError, match="task: 'xsun' is not known .*'xsum'.*cnn_dailymail"):
        find_pairs("xsun")
    with pytest.raises(ConfigError, match=r"train_file: .*unknown suffix '.xyz'; choices: .txt, .csv"):
        find_corpus("mine", files={"train": other})
    with pytest.raises(ConfigError, match="validation_file: given without train_file"):
        find_corpus("mine", files={"validation": table})
    with pytest.raises(DataError, match="text_column: no column 'body'; columns: text, n, empty"):
        find_corpus("mine", files={"train": table}, text_column="body")
    with pytest.raises(DataError, match="line 1: column 'n': 3 is not a text"):
        find_corpus("mine", files={"train": table}, text_column="n")
    with pytest.raises(DataError, match="column 'empty' holds no text"):
        find_corpus("mine", files={"train": table}, text_column="empty")
    with pytest.raises(DataError, match="line 1: column 'empty': empty text"):
        find_pairs("mine", files={"train": table}, source_column="text", target_column="empty")
    with pytest.raises(ConfigError, match="block_length: 1 is too short"):
        tokenize_blocks(Corpus("c", TEXTS), byte_level(False), 1, cache=tmp_path, name="c")
    with pytest.raises(ConfigError, match="target_length: 1 is too short"):
        tokenize_pairs(Pairs("p", TEXTS, TEXTS), byte_level(True), 5, 1, cache=tmp_path, name="c")
    with pytest.raises(ModelError, match="no padding token"):
        tokenize_pairs(Pairs("p", TEXTS, TEXTS), byte_level(False), 5, 5, cache=tmp_path, name="c")
