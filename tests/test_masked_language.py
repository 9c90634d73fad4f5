"""Text for a masked language model: packed without loss, hidden as told, a function of (seed, step, block) alone.

References: the tokenizer itself, counted frequencies, Hugging Face's own loss, autograd on the formula.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_masked import CLS, MASK, PAD, SEP, VOCABULARY, save_lines, save_masked, tiny_bert, tiny_blocks, tiny_masking
from tiny_words import tokenizer_of
from torch import Tensor
from transformers import (
    BertForMaskedLM, BertModel, DistilBertConfig, DistilBertForMaskedLM, MobileBertConfig, MobileBertForMaskedLM, PreTrainedModel, RobertaConfig,
    RobertaForMaskedLM,
)  # fmt: skip

from adasearch.corpora import Corpus
from adasearch.errors import ConfigError, DataError, ModelError
from adasearch.language_objectives import UNSCORED, softened_kl
from adasearch.masked_language import MaskedBlocks, Masking, Wrap, join_blocks, masked_blocks, streamed_blocks, text_stream
from adasearch.masked_model import EVALUATION_STEP, head_parameters, load_masked_model, masked_loss, score_masked, token_logits
from adasearch.masked_task import load_blocks
from adasearch.objectives import kl_loss
from adasearch.progress import Progress
from adasearch.sparse_pretraining_config import SparsePretrainingConfig

TEXTS = ("the good film was badly played .", "actors play the best plots !", "films")


def stream_of(blocks: MaskedBlocks) -> list[int]:
    """All tokens without special ones, read off the batches."""
    found = []
    for index in range(len(blocks)):
        batch = blocks.collate([index])
        row = batch["input_ids"][0][batch["attention_mask"][0] == 1].tolist()
        first, last = len(blocks.wrap.before), len(row) - len(blocks.wrap.after)
        assert tuple(row[:first]) == blocks.wrap.before and tuple(row[last:]) == blocks.wrap.after
        found += row[first:last]
    return found


@pytest.mark.parametrize("is_joined", [False, True])
def test_blocks_hold_the_whole_text_in_its_order(tmp_path: Path, is_joined: bool) -> None:
    tokenizer = tokenizer_of()
    blocks = masked_blocks(Corpus("texts", TEXTS, is_joined), tokenizer, 7, cache=tmp_path, name="a")
    between = [] if is_joined else [tokenizer.sep_token_id]
    expected = [token for text in TEXTS for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], *between]]
    assert stream_of(blocks) == expected
    assert blocks.wrap == Wrap((tokenizer.cls_token_id,), (tokenizer.sep_token_id,))
    lengths = [int(blocks.collate([i])["attention_mask"].sum()) for i in range(len(blocks))]
    assert set(lengths[:-1]) == {7} and lengths[-1] <= 7
    batch = blocks.collate([len(blocks) - 1, 0])
    assert batch["input_ids"].shape == (2, 7) and batch["index"].tolist() == [len(blocks) - 1, 0]
    assert (batch["input_ids"][0, lengths[-1] :] == tokenizer.pad_token_id).all()


def test_a_stream_gives_the_same_blocks_and_ends_in_time(tmp_path: Path) -> None:
    tokenizer = tokenizer_of()
    whole = stream_of(masked_blocks(Corpus("texts", TEXTS), tokenizer, 7, cache=tmp_path, name="a"))

    def stream(most: int, texts: object = TEXTS) -> MaskedBlocks:
        return streamed_blocks(texts, tokenizer, 7, most_tokens=most, identity=["texts"], cache=tmp_path, name="b")

    assert stream_of(stream(1000)) == whole
    assert stream_of(stream(11)) == whole[:11]
    read = []
    stream_of(stream(12, (read.append(i) or "film" for i in range(10**9))))  # never read to its end
    assert len(read) < 10_000
    assert stream_of(stream(11, iter(()))) == whole[:11]  # what is in the cache is not read again
    with pytest.raises(DataError, match="holds no text"):
        streamed_blocks([], tokenizer, 7, most_tokens=9, identity=["none"], cache=tmp_path, name="b")
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*.partial"))


def test_of_two_that_share_a_cache_one_reads_the_stream(tmp_path: Path) -> None:
    """The second begins while the first is in the middle: it waits, and finds what the first has written."""
    tokenizer, begun, go_on, found = tokenizer_of(), threading.Event(), threading.Event(), {}

    def slow() -> Iterator[str]:
        yield from TEXTS
        begun.set()
        assert go_on.wait(60)
        yield from TEXTS

    def read(name: str, texts: Iterable[str]) -> None:
        found[name] = stream_of(streamed_blocks(texts, tokenizer, 7, most_tokens=1000, identity=["twice"], cache=tmp_path, name="b"))

    first = threading.Thread(target=read, args=("first", slow()))
    second = threading.Thread(target=read, args=("second", iter(["another text"])))
    first.start()
    assert begun.wait(60)
    second.start()
    time.sleep(0.2)
    go_on.set()
    first.join(60)
    second.join(60)
    alone = streamed_blocks([*TEXTS, *TEXTS], tokenizer, 7, most_tokens=1000, identity=["alone"], cache=tmp_path, name="b")
    assert found["first"] == found["second"] == stream_of(alone)


def test_files_are_streamed_text_by_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one film\n\ntwo films\n")
    (tmp_path / "a.jsonl").write_text('{"words": "one film"}\n{"words": "two films"}\n')
    (tmp_path / "a.tsv").write_text("n\twords\n1\tone film\n2\ttwo films\n")
    assert list(text_stream(str(tmp_path / "a.txt"))) == ["one film", "two films"]
    for name in ("a.jsonl", "a.tsv"):
        assert list(text_stream(str(tmp_path / name), "words")) == ["one film", "two films"]
    (tmp_path / "B.TXT").write_text("one film")
    assert list(text_stream(str(tmp_path / "B.TXT"))) == ["one film"], "upper case is a file's, too, and no data set of the hub"
    with pytest.raises(DataError, match="no column 'text'; columns: words"):
        list(text_stream(str(tmp_path / "a.jsonl")))
    with pytest.raises(ConfigError, match="absent.txt"):
        list(text_stream(str(tmp_path / "absent.txt")))


def test_blocks_without_room_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="block_length: 3 is too short; expected: 4"):
        masked_blocks(Corpus("texts", TEXTS), tokenizer_of(), 3, cache=tmp_path, name="a")


def test_validation_blocks_are_no_training_blocks(tmp_path: Path) -> None:
    train, other = save_lines(tmp_path / "a.txt", 60), save_lines(tmp_path / "b.txt", 30, seed=1)
    shared = {"block_length": 8, "validation_blocks": 5}
    where = {"cache": tmp_path / "cache", "progress": Progress()}
    learned, scored = load_blocks(SparsePretrainingConfig(train_file=train, **shared), tokenizer_of(), **where)
    everything, _ = load_blocks(SparsePretrainingConfig(train_file=train, validation_file=other, **shared), tokenizer_of(), **where)
    assert len(scored) == 5 and stream_of(learned) + stream_of(scored) == stream_of(everything)
    config = SparsePretrainingConfig(train_file=train, validation_file=other, stream=other, **shared)
    twice, _ = load_blocks(config, tokenizer_of(), **where)
    assert stream_of(twice)[: len(stream_of(everything))] == stream_of(everything) and len(twice) > len(everything)
    with open(other, "a", encoding="utf-8") as file:
        file.write("\nthe best film")
    config = SparsePretrainingConfig(train_file=train, validation_file=str(tmp_path / "a.txt"), stream=other, **shared)
    longer, _ = load_blocks(config, tokenizer_of(), **where)
    assert stream_of(longer)[-4:-1] == tokenizer_of()("the best film", add_special_tokens=False)["input_ids"], "what was edited is read again"
    (tmp_path / "c.txt").write_text("film")
    with pytest.raises(DataError, match="makes 1 blocks of 8 tokens; expected: 4"):
        load_blocks(SparsePretrainingConfig(train_file=str(tmp_path / "c.txt"), **shared), tokenizer_of(), **where)


def many(count: int = 400) -> dict[str, Tensor]:
    return tiny_blocks(count, 14).collate(range(count))


def test_tokens_are_hidden_as_often_as_told_and_as_bert_has_them() -> None:
    batch = many()
    masked = Masking(MASK, VOCABULARY, (PAD, CLS, SEP, MASK), 0.15, 3)(batch, step=5)
    is_text = (batch["attention_mask"] == 1) & (batch["input_ids"] != CLS) & (batch["input_ids"] != SEP)
    is_hidden = masked["labels"] != UNSCORED
    assert not (is_hidden & ~is_text).any()
    assert torch.equal(masked["labels"][is_hidden], batch["input_ids"][is_hidden])
    assert torch.equal(masked["input_ids"][~is_hidden], batch["input_ids"][~is_hidden])
    count, hidden = int(is_text.sum()), int(is_hidden.sum())
    shown, was = masked["input_ids"][is_hidden], batch["input_ids"][is_hidden]
    # a block of 14 in which none falls (10% of them) gets one: 0.15 + 0.85^14 / 14; five standard deviations
    share = 0.15 + 0.85**14 / 14
    assert hidden / count == pytest.approx(share, abs=5 * (share * (1 - share) / count) ** 0.5)
    for found, expected in (
        ((shown == MASK).float().mean().item(), 0.8 + 0.1 / VOCABULARY),
        ((shown == was).float().mean().item(), 0.1 + 0.1 / VOCABULARY),
    ):
        assert found == pytest.approx(expected, abs=5 * (expected * (1 - expected) / hidden) ** 0.5)


def test_masking_depends_on_seed_step_and_block_alone() -> None:
    blocks, masking = tiny_blocks(), tiny_masking()
    whole = masking(blocks.collate([3, 11, 5]), 9, 0.4)
    for row, index in ((0, 3), (1, 11), (2, 5)):  # 11 is the short one: another padding, another place in the batch
        alone = masking(blocks.collate([index]), 9, 0.4)
        length = int(alone["attention_mask"].sum())
        for name in ("input_ids", "labels", "drawn_BL"):
            assert torch.equal(whole[name][row, :length], alone[name][0, :length]), name
    again = masking(blocks.collate([3, 11, 5]), 9, 0.4)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    for other in (masking(blocks.collate([3, 11, 5]), 10), tiny_masking(seed=8)(blocks.collate([3, 11, 5]), 9)):
        assert not torch.equal(whole["labels"], other["labels"])


def test_every_block_teaches_something() -> None:
    masked = tiny_masking(share=1e-9)(many(50), 0)
    assert ((masked["labels"] != UNSCORED).sum(1) == 1).all()
    empty = {"input_ids": torch.tensor([[CLS, SEP, PAD]]), "attention_mask": torch.tensor([[1, 1, 0]]), "index": torch.tensor([0])}
    assert (tiny_masking()(empty, 0)["labels"] == UNSCORED).all()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_all_tokens_is_drawn(share: float) -> None:
    batch = many()
    drawn, mask = tiny_masking()(batch, 2, share)["drawn_BL"], batch["attention_mask"] == 1
    assert not (drawn & ~mask).any()
    assert float(drawn.sum() / mask.sum()) == pytest.approx(share, abs=5 * (share * (1 - share) / int(mask.sum())) ** 0.5)


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    tokenizer = tokenizer_of()
    assert Masking.of(tokenizer, 0.15, 1).mask_token_id == tokenizer.mask_token_id
    tokenizer.mask_token = None
    with pytest.raises(ModelError, match="no mask token"):
        Masking.of(tokenizer, 0.15, 1)


def _models() -> list[PreTrainedModel]:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    distil = DistilBertConfig(vocab_size=VOCABULARY, n_layers=2, n_heads=2, dim=16, hidden_dim=32, max_position_embeddings=16)
    roberta = RobertaConfig(**sizes, max_position_embeddings=20, pad_token_id=0)
    mobile = MobileBertConfig(**sizes, embedding_size=16, intra_bottleneck_size=16, max_position_embeddings=16, num_feedforward_networks=1)
    return [tiny_bert(BertForMaskedLM), DistilBertForMaskedLM(distil), RobertaForMaskedLM(roberta), MobileBertForMaskedLM(mobile)]


@pytest.mark.parametrize("model", _models(), ids=lambda model: type(model).__name__)
def test_logits_of_chosen_tokens_are_those_of_all(model: PreTrainedModel) -> None:
    model.eval()
    batch = tiny_masking()(tiny_blocks().collate([0, 11, 4]), 0)
    whole = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    is_hidden = batch["labels"] != UNSCORED
    chosen = token_logits(model, batch, is_hidden)
    assert torch.allclose(chosen, whole.logits[is_hidden], atol=1e-6)
    assert masked_loss(chosen, batch["labels"][is_hidden]).item() == pytest.approx(whole.loss.item(), abs=1e-6)
    assert not model.get_output_embeddings()._forward_pre_hooks
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    head = {names[id(parameter)] for parameter in head_parameters(model)}
    assert head and not any("embeddings" in name or "layer." in name for name in head)


def test_scores_are_hugging_faces_loss_on_the_same_tokens() -> None:
    model, blocks, masking = tiny_bert(BertForMaskedLM).train(), tiny_blocks(), tiny_masking()
    found = score_masked(model, blocks, masking, Accelerator(cpu=True), batch_size=5)
    assert model.training
    model.eval()
    batch = masking(blocks.collate(range(len(blocks))), EVALUATION_STEP)
    whole = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    is_hidden = batch["labels"] != UNSCORED
    assert found["mlm_loss"] == pytest.approx(whole.loss.item(), rel=1e-5)
    assert found["mlm_perplexity"] == pytest.approx(np.exp(whole.loss.item()), rel=1e-5)
    right = (whole.logits.argmax(-1) == batch["labels"])[is_hidden].float().mean().item()
    assert found["mlm_accuracy"] == pytest.approx(right) and found["tokens"] == int(is_hidden.sum())


@pytest.mark.parametrize("tokens", [0, 1, 31, 70])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_vocabularys_kl_is_the_plain_one(tokens: int, temperature: float) -> None:
    student, teacher = torch.randn(tokens, 50, requires_grad=True), torch.randn(tokens, 50, requires_grad=True)
    found = softened_kl(student, teacher, temperature)
    (3.0 * found).backward()
    gradient, student.grad = student.grad, None
    plain = kl_loss(student, teacher.detach(), "single_label", temperature).sum() / max(1, tokens)
    (3.0 * plain).backward()
    assert found.item() == pytest.approx(plain.item(), abs=1e-6) and teacher.grad is None
    assert torch.allclose(gradient, student.grad, atol=1e-7)
    if tokens:
        assert softened_kl(student, student.detach(), temperature).item() == pytest.approx(0, abs=1e-7)


def test_a_checkpoint_without_a_head_gets_one(tmp_path: Path) -> None:
    save_masked(tmp_path / "body", BertModel)
    model, is_new = load_masked_model(str(tmp_path / "body"), dropout=0.0)
    assert is_new and isinstance(model, BertForMaskedLM)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert all(module.p == 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))
    body = BertModel.from_pretrained(tmp_path / "body")
    for name, tensor in model.bert.state_dict().items():
        assert torch.equal(tensor, body.state_dict()[name])
    model.save_pretrained(tmp_path / "whole")
    again, is_new = load_masked_model(str(tmp_path / "whole"))
    assert not is_new and all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ModelError, match="cannot be loaded as a masked language model"):
        load_masked_model(str(tmp_path / "absent"))


def test_blocks_of_several_corpora_stand_after_each_other(tmp_path: Path) -> None:
    first, second = tiny_blocks(3), tiny_blocks(5)
    joined, mapped = join_blocks([first, second]), join_blocks([first, second], tmp_path)
    assert len(joined) == 8 and stream_of(joined) == stream_of(first) + stream_of(second)
    assert join_blocks([first]) is first and join_blocks([first], tmp_path) is first
    assert isinstance(mapped.tokens.ids, np.memmap) and not isinstance(joined.tokens.ids, np.memmap)
    for mine, theirs in ((joined.tokens.ids, mapped.tokens.ids), (joined.tokens.offsets, mapped.tokens.offsets)):
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(written) == 2 and stream_of(join_blocks([first, second], tmp_path)) == stream_of(joined)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written, "written once"
    assert stream_of(join_blocks([second, first], tmp_path)) == stream_of(second) + stream_of(first)


def test_a_column_is_that_of_files_and_not_of_presets_or_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr("adasearch.masked_task.find_corpus", lambda name, text_column, **_: taken.append((name, text_column)) or {})
    monkeypatch.setattr("adasearch.masked_task.text_stream", lambda source, column: taken.append((Path(source).name, column)))

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adasearch.masked_task.streamed_blocks", stop)
    (tmp_path / "a.jsonl").write_text('{"words": "one film"}\n')
    (tmp_path / "a.TXT").write_text("one film\n")
    for stream in ("a.jsonl", "a.TXT"):
        config = SparsePretrainingConfig(
            corpora=["ptb", "owner/name"], train_file="t.csv", stream=str(tmp_path / stream), stream_tokens=9, text_column="words"
        )
        with pytest.raises(KeyboardInterrupt):
            load_blocks(config, tokenizer_of(), cache=tmp_path, progress=Progress())
    assert taken[:4] == [("ptb", None), ("owner/name", "words"), ("file", "words"), ("a.jsonl", "words")] and taken[-1] == ("a.TXT", "text")
