"""Questions read, cut into windows, learned and answered.

References: Hugging Face's own windows, the text between characters, spans tried one by one, Hugging Face's own loss.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from hearing import Heard
from tiny_encoder import FAMILIES, make_model
from tiny_questions import find_questions, random_questions, save_reader, tiny_reader, tokenizer_with_limit
from tiny_words import PIECES as WORDS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerFast

from adasearch import answers
from adasearch.answers import NOTHING, best_answers, best_spans, score_answers, window_spans
from adasearch.config import FitConfig, RunConfig, TaskConfig
from adasearch.encoder import from_hugging_face
from adasearch.errors import ConfigError, DataError, ModelError
from adasearch.fit import fit
from adasearch.methods.reading import FinetuneReader
from adasearch.pipeline import check_settings
from adasearch.predict import predict_file
from adasearch.progress import Progress
from adasearch.question_answering import (
    FIRST, NO_ANSWER, PIECES, PLACE, QUESTION, QuestionExamples, cut_windows, tokenize_questions,
)  # fmt: skip
from adasearch.question_config import QuestionConfig
from adasearch.questions import Questions, _answers, asks_questions
from adasearch.reader import Reader, cached_spans, load_reader, needs_answers, score_reader, spans_of
from adasearch.span_objectives import span_kl_loss, span_loss
from adasearch.tasks import load_task

TINY = QuestionConfig(max_seq_length=32, doc_stride=8, max_question_length=10)


def windows_of(questions: Questions, config: QuestionConfig = TINY) -> QuestionExamples:
    return cut_windows(questions, tokenizer_with_limit(), config)


def one(context: str, answer: str, start: int | None = None) -> Questions:
    """A single question."""
    return Questions(["the film"], [context], answers=[(answer,)], starts=[context.index(answer) if start is None else start], ids=["0"])


def gold_logits(examples: QuestionExamples) -> np.ndarray:
    """A reader that knows: 9 at the answer's tokens in windows that hold it, 0 elsewhere."""
    logits_T2 = np.zeros((int(examples.tokens.offsets[-1]), 2), np.float32)
    for index, positions in enumerate(examples.labels):
        if positions[0] != NO_ANSWER:
            for side in (0, 1):
                examples.of_window(logits_T2, index)[positions[side], side] = 9
    return logits_T2


# --- windows


@pytest.mark.parametrize("stride", [0, 1, 8, 15])
def test_windows_are_hugging_faces(stride: int) -> None:
    questions, tokenizer = random_questions(40), tokenizer_with_limit()
    config = QuestionConfig(max_seq_length=48, doc_stride=stride, max_question_length=29)
    keep = [n for n, text in enumerate(questions.texts) if len(tokenizer.tokenize(text)) < 29]  # longer ones we cut, it does not
    questions = questions.select(keep)
    examples = cut_windows(questions, tokenizer, config)
    theirs = tokenizer(
        questions.texts, questions.contexts, truncation="only_second", max_length=48, stride=stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    assert len(examples) == len(theirs["input_ids"]) > len(questions)
    for index, ids in enumerate(theirs["input_ids"]):
        assert examples.tokens[index].tolist() == ids
        assert examples.windows_W5[index, QUESTION] == theirs["overflow_to_sample_mapping"][index]
        spans = [span for span, side in zip(theirs["offset_mapping"][index], theirs.sequence_ids(index)) if side == 1]
        assert examples.characters(index).tolist() == [list(span) for span in spans]
        assert theirs.sequence_ids(index).index(1) == examples.windows_W5[index, PLACE]


def test_a_question_as_long_as_is_read_is_not_cut() -> None:
    texts = ["film " * pieces for pieces in (9, 10, 11)]  # of which 10 are read
    assert windows_of(Questions(texts, ["the actor was good"] * 3)).cut_questions == 1


def test_labels_are_the_answer_s_tokens() -> None:
    questions = random_questions(60, seed=1)
    examples = windows_of(questions)
    held = set()
    for index, (start, end) in enumerate(examples.labels):
        number = examples.windows_W5[index, QUESTION]
        spans, place = examples.characters(index), examples.windows_W5[index, PLACE]
        first, last = questions.starts[number], questions.starts[number] + len(questions.answers[number][0])
        inside = len(spans) and spans[0, 0] <= first and last <= spans[-1, 1]
        assert (start != NO_ANSWER) == inside, "a window knows the answer exactly when it holds all of its characters"
        if inside:
            held.add(number)
            found = questions.contexts[number][spans[start - place, 0] : spans[end - place, 1]]
            assert found == questions.answers[number][0]
        else:
            assert end == NO_ANSWER
    assert len(held) == len(questions), "with answers shorter than the overlap some window holds each"
    assert (examples.labels[:, 0] == NO_ANSWER).any()


def test_an_answer_across_the_border_of_a_window_is_in_the_next() -> None:
    room = TINY.max_seq_length - 2 - 3  # the question's two pieces, [CLS] and two [SEP]
    words = ["film"] * room + ["bad"] * room
    words[room - 2 : room + 2] = ["good", "plot", "was", "best"]
    context = " ".join(words)
    examples = windows_of(one(context, "plot was best"))
    starts = examples.windows_W5[:, FIRST].tolist()
    assert starts == [0, room - 8, 2 * (room - 8)] and (examples.windows_W5[:, PIECES] <= room).all()
    place = examples.windows_W5[0, PLACE]
    assert examples.labels.tolist() == [[0, 0], [place + 7, place + 9], [0, 0]]
    # without an overlap no window holds it
    assert not windows_of(one(context, "plot was best"), dataclasses.replace(TINY, doc_stride=0)).labels.any()


@pytest.mark.parametrize(
    ("context", "answer"),
    [
        ("zebra film", "zebra"),  # first token
        ("film zebra", "zebra"),  # last token
        ("zebra", "zebra"),
        ("film    good     plot", "good     plot"),  # repeated blanks
        ("  film good", "film"),
        ("film good  ", "good"),
        ("the café, café!", "café, café"),  # accents, marks
        ("the cafe\u0301 film", "cafe\u0301"),  # an accent of its own: two characters, one letter
        ("film 日本 good", "日本"),  # unknown to the tokenizer
        ("the plots filmed", "plots filmed"),
        ("film\u00a0good\nplot", "good\nplot"),
        ("good film!", "!"),  # a piece that ends where the answer begins is not part of it
        ("the filmed plot", "ed"),
        ("FILM Good pLOT", "Good"),  # lower case for the reader, not in the answer
    ],
)
def test_the_gold_answer_comes_back_as_it_stands_in_the_context(context: str, answer: str) -> None:
    examples = windows_of(one(context, answer))
    assert [found.text for found in best_answers(gold_logits(examples), examples, TINY)] == [answer]


def test_an_answer_inside_a_piece_widens_to_it() -> None:
    examples = windows_of(one("film good plot", "oo"))
    (found,) = best_answers(gold_logits(examples), examples, TINY)
    assert (found.text, found.start, found.end) == ("good", 5, 9)


def test_bytes_of_one_character_share_its_place() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {piece: number for number, piece in enumerate(["<s>", "<pad>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(ids, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", model_max_length=512)
    context = "ab 日本 😀 yz"
    examples = cut_windows(one(context, "日本 😀"), tokenizer, QuestionConfig(64, 8, 10))
    assert examples.tokens[0][[0, 9, 10, -1]].tolist() == [0, 2, 2, 2], "RoBERTa has two separators between the texts"
    first, last = examples.labels[0] - examples.windows_W5[0, PLACE]
    # a, b; blank and the first byte of 日 ...: ten bytes of three characters and a blank each before 日 and 😀
    assert context[examples.characters(0)[first, 0] : examples.characters(0)[last, 1]].strip() == "日本 😀"
    assert [found.text.strip() for found in best_answers(gold_logits(examples), examples, TINY)] == ["日本 😀"]


def test_long_questions_are_cut_and_contexts_never() -> None:
    questions = Questions(["film " * 30], ["good " * 50], answers=[("good",)], starts=[0], ids=["0"])
    examples = windows_of(questions)
    assert (examples.windows_W5[:, PLACE] == 1 + 10 + 1).all() and (examples.tokens.lengths <= 32).all()
    covered = {piece for window in examples.windows_W5 for piece in range(window[FIRST], window[FIRST] + window[PIECES])}
    assert covered == set(range(50))


def test_windows_are_cut_once_and_mapped(tmp_path: Path) -> None:
    questions, tokenizer = random_questions(12), tokenizer_with_limit()
    first = tokenize_questions(questions, tokenizer, TINY, cache=tmp_path, name="train")
    heard = Heard()
    again = tokenize_questions(questions, tokenizer, TINY, cache=tmp_path, name="train", progress=heard)
    direct = cut_windows(questions, tokenizer, TINY)
    assert not heard.titles and isinstance(again.tokens.ids, np.memmap) and isinstance(again.labels, np.memmap)
    for examples in (first, again):
        assert np.array_equal(examples.tokens.ids, direct.tokens.ids) and np.array_equal(examples.tokens.offsets, direct.tokens.offsets)
        for name in ("windows_W5", "pieces_P2", "contexts_C1", "labels_W2"):
            assert np.array_equal(getattr(examples, name), getattr(direct, name)), name
    names = {path.name for path in tmp_path.iterdir()}
    moved = dataclasses.replace(questions, starts=[start + 1 for start in questions.starts])
    for other, config in ((moved, TINY), (questions, dataclasses.replace(TINY, doc_stride=9))):
        tokenize_questions(other, tokenizer, config, cache=tmp_path, name="train")
        assert names < {path.name for path in tmp_path.iterdir()}, "other answers or settings are other windows"
        names = {path.name for path in tmp_path.iterdir()}
    unlabelled = dataclasses.replace(questions, starts=[])
    assert tokenize_questions(unlabelled, tokenizer, TINY, cache=tmp_path, name="train").labels is None


def test_how_many_questions_were_cut_is_known_of_windows_from_files_too(tmp_path: Path) -> None:
    contexts = ["the actor was good"] * 3
    questions, tokenizer = Questions(["film " * 30, "film", "film " * 10], contexts), tokenizer_with_limit()
    says = "train: 1 of 3 questions are longer than question.max_question_length 10 and were cut"
    for is_older in (False, False, True, False):  # a version that did not count them wrote no .json
        for path in tmp_path.glob("*.json") if is_older else ():
            path.unlink()
        notes: list[str] = []
        assert tokenize_questions(questions, tokenizer, TINY, cache=tmp_path, name="train", notes=notes).cut_questions == 1
        assert notes == [says]
    notes.clear()
    assert tokenize_questions(Questions(["film"], contexts[:1]), tokenizer, TINY, cache=tmp_path, name="other", notes=notes).cut_questions == 0
    assert not notes


def test_a_batch_has_what_is_known_padded() -> None:
    examples = windows_of(random_questions(10))
    logits_T2 = np.random.default_rng(0).normal(size=(len(examples.tokens.ids), 2)).astype(np.float32)
    taught = dataclasses.replace(examples, teacher_logits_T2=logits_T2)
    order = np.random.default_rng(1).permutation(len(examples))
    for part, indices in ((taught, [3, 0, 5]), (taught.select(order), [1, 2, 0])):
        batch = part.collate(indices)
        assert batch["teacher_logits"].shape == (3, 2, batch["input_ids"].shape[1])
        for row, index in enumerate(indices):
            window = index if part is taught else order[index]
            length = int(batch["attention_mask"][row].sum())
            own = slice(examples.tokens.offsets[window], examples.tokens.offsets[window + 1])
            assert torch.equal(batch["teacher_logits"][row, :, :length], torch.from_numpy(logits_T2[own].T))
            assert not batch["teacher_logits"][row, :, length:].any()
            assert batch["labels"][row].tolist() == examples.labels[window].tolist()
    assert [len(rows) for rows, _ in examples.in_order(4)][:-1] == [4] * (math.ceil(len(examples) / 4) - 1)


def test_brackets_alone_make_no_json_of_an_answer() -> None:
    """csv has no lists: a text by itself is the only answer."""
    for text in ("[note]", "{sic", "[1"):
        assert _answers(text) == ((text,), ())
    assert _answers('{"text": ["good"], "answer_start": [3]}') == (("good",), (3,))
    with pytest.raises(ValueError, match="are no answers; expected"):
        _answers("[1]")


def test_a_spread_is_a_smaller_task_of_its_own() -> None:
    questions = random_questions(30)
    examples = windows_of(questions)
    part = examples.spread(4)
    chosen = [0, 9, 19, 29]
    assert part.questions.ids == [f"q{n}" for n in chosen] and set(part.windows_W5[:, QUESTION]) == {0, 1, 2, 3}
    direct = windows_of(questions.select(chosen))
    assert np.array_equal(part.tokens.ids, direct.tokens.ids) and np.array_equal(part.labels, direct.labels)
    assert score_answers(gold_logits(part), part, TINY)["exact_match"] == 1.0
    assert examples.spread(30) is examples


def test_what_leaves_no_room_is_said_before_work(tmp_path: Path) -> None:
    tokenizer, questions = tokenizer_with_limit(64), random_questions(2)
    for config, says in (
        (QuestionConfig(), "^question.max_seq_length: 384 is too long: .* up to 64; choices"),
        (QuestionConfig(32, 20, 10), "^question.max_seq_length: 32 leaves 19 pieces .* more than question.doc_stride 20"),
        (QuestionConfig(32, 8, 0), "^question.max_question_length: 0 is out of range"),
        (QuestionConfig(32, 8, 4, n_best=0), "^question.n_best: 0 is out of range"),
    ):
        with pytest.raises(ConfigError, match=says):
            tokenize_questions(questions, tokenizer, config, cache=tmp_path, name="x")
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")), pad_token="[UNK]")
    with pytest.raises(ModelError, match="does not begin with a special token"):
        tokenize_questions(questions, bare, TINY, cache=tmp_path, name="x")


# --- answers


def tried(starts: np.ndarray, ends: np.ndarray, place: int, pieces: int, n_best: int, longest: int) -> list[tuple[float, int, int]]:
    """Every pair of the likeliest starts and ends, tried one by one."""
    def likeliest(values: np.ndarray) -> list[int]:
        return sorted(range(pieces), key=lambda piece: (-values[place + piece], piece))[:n_best]

    pairs = [
        (float(starts[place + a]) + float(ends[place + b]), a, b)
        for a, b in itertools.product(likeliest(starts), likeliest(ends)) if 0 <= b - a < longest
    ]  # fmt: skip
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))[:n_best]


@pytest.mark.parametrize("seed", range(8))
def test_spans_of_a_window_are_those_found_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    length, place = int(rng.integers(5, 40)), 3
    # rounded, so that there are ties
    starts, ends = rng.normal(size=(2, length)).round(1).astype(np.float32)
    starts[:place] = ends[-1:] = 99  # the question's tokens and the last [SEP] are never part of an answer
    for n_best, longest in ((1, 30), (3, 2), (20, 4), (40, 30)):
        found = window_spans(starts, ends, place, length - place - 1, n_best, longest)
        assert found == tried(starts, ends, place, length - place - 1, n_best, longest)


def test_an_answer_begins_with_its_word_whatever_the_tokenizer_counts_to_it() -> None:
    """DeBERTa-v2's offsets hold the blank before a word."""
    [answer] = answers._ranked({(6, 10): 1.0}, "She is Ada.", 1)
    assert (answer.text, answer.start, answer.end) == ("Ada", 7, 10)


def test_the_best_window_wins_and_text_is_counted_once() -> None:
    words = [f"{word} {other}" for word in ("film", "good", "plot") for other in ("the", "was", "act", "bad") * 4]
    examples = windows_of(one(" ".join(words), "plot the"))
    assert len(examples) > 1
    logits_T2 = np.full((len(examples.tokens.ids), 2), -5.0, np.float32)
    shared = int(examples.windows_W5[1, FIRST])  # the first piece of the second window stands in the first as well
    for window, score in ((0, 1.0), (1, 3.0)):
        token = examples.windows_W5[window, PLACE] + shared - examples.windows_W5[window, FIRST]
        examples.of_window(logits_T2, window)[token] = score
    examples.of_window(logits_T2, 0)[0] = 50  # [CLS] is no answer
    ranked = best_spans(logits_T2, examples, TINY)[0]
    begin, end = examples.characters(1)[0]
    assert (ranked[0].start, ranked[0].end, ranked[0].score) == (begin, end, 6.0)
    assert len({(answer.start, answer.end) for answer in ranked}) == len(ranked) == TINY.n_best
    assert sum(answer.probability for answer in ranked) == pytest.approx(1.0)
    odds = ranked[0].probability / ranked[1].probability
    assert odds == pytest.approx(math.exp(ranked[0].score - ranked[1].score))


def test_no_span_is_no_answer_and_nan_is_no_logit() -> None:
    examples = windows_of(one("film good plot", "good"))
    logits_T2, place = np.zeros((len(examples.tokens.ids), 2), np.float32), examples.windows_W5[0, PLACE]
    logits_T2[place + 2, 0] = logits_T2[place, 1] = 9  # the likeliest start is after the likeliest end
    strict = dataclasses.replace(TINY, n_best=1)
    assert best_answers(logits_T2, examples, strict) == [NOTHING]
    assert score_answers(logits_T2, examples, strict) == {"f1": 0.0, "exact_match": 0.0}
    logits_T2[0] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        best_answers(logits_T2, examples, TINY)


def test_gold_logits_score_one() -> None:
    examples = windows_of(random_questions(40, seed=3))
    assert score_answers(gold_logits(examples), examples, TINY) == {"f1": 1.0, "exact_match": 1.0}


# --- losses, readers, training


def test_the_loss_is_hugging_faces_and_knows_no_padding() -> None:
    examples, model = windows_of(random_questions(8, seed=2)), tiny_reader().eval()
    reader = Reader(model, tokenizer_with_limit())
    batch = examples.collate(range(len(examples)))
    losses_B = span_loss(reader.spans(batch["input_ids"], batch["attention_mask"]), batch["labels"], batch["attention_mask"])
    for index in range(len(examples)):
        alone = examples.collate([index])  # without padding theirs and ours are the same
        start, end = alone["labels"].unbind(1)
        types = reader.token_types(alone["input_ids"])
        loss = model(alone["input_ids"], attention_mask=alone["attention_mask"], start_positions=start, end_positions=end, **types).loss
        assert losses_B[index].item() == pytest.approx(loss.item(), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("labels", [1, 3])
def test_a_classifier_of_any_number_of_labels_becomes_a_reader(family: str, labels: int, tmp_path: Path) -> None:
    make_model(family, num_labels=labels, problem_type=None, vocab_size=len(WORDS), pad_token_id=WORDS.index("[PAD]")).save_pretrained(tmp_path)
    tokenizer_with_limit().save_pretrained(tmp_path)
    model = load_reader(str(tmp_path), is_finetuned=False).model
    assert model.qa_outputs.weight.shape == (2, 16) and type(from_hugging_face(model)).__name__ == "EncoderForQuestionAnswering"


@pytest.mark.parametrize("temperature", [1.5, 2.0, 3.0])
def test_divergence_of_spans_rounds_no_half_precision_logits_again(temperature: float) -> None:
    """A quotient in bfloat16 moves the logits by more than student and teacher differ."""
    teacher = (6 * torch.randn(3, 2, 40)).bfloat16()
    student = (teacher + 0.05 * torch.randn(3, 2, 40)).bfloat16()
    mask = torch.ones(3, 40, dtype=torch.long)
    assert torch.equal(span_kl_loss(student, teacher, mask, temperature), span_kl_loss(student.float(), teacher.float(), mask, temperature))


def test_divergence_of_spans() -> None:
    student, teacher = torch.randn(3, 2, 7, requires_grad=True), torch.randn(3, 2, 7)
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[0, 4:] = 0
    assert span_kl_loss(teacher, teacher, mask, 3.0).abs().max() < 1e-6
    found_B = span_kl_loss(student, teacher, mask, 2.0)
    for row, length in enumerate((4, 7, 7)):
        p, q = ((values[row, :, :length] / 2.0).softmax(-1) for values in (teacher, student))
        by_hand = 4.0 * (p * (p.log() - q.log())).sum(-1).mean()
        assert found_B[row].item() == pytest.approx(by_hand.item(), abs=1e-6)
    found_B.sum().backward()
    assert student.grad.isfinite().all() and not student.grad[0, :, 4:].any() and student.grad[1].any()
    positions = torch.tensor([[1, 2]])
    certain = torch.full((1, 2, 7), -1e9)
    certain[0, 0, 1] = certain[0, 1, 2] = 0.0
    assert span_loss(certain, positions, mask[1:2]).item() == 0.0


def test_outputs_come_token_by_token_and_survive_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, accelerator = windows_of(random_questions(9)), Accelerator(cpu=True)
    reader = Reader(tiny_reader().eval(), tokenizer_with_limit())
    logits_T2 = spans_of(reader.spans, examples, accelerator, batch_size=4)
    for index in range(len(examples)):
        batch = examples.collate([index])
        alone = reader.spans(batch["input_ids"], batch["attention_mask"])[0].mT.detach().numpy()
        assert np.allclose(examples.of_window(logits_T2, index), alone, atol=1e-5)
    monkeypatch.setattr("adasearch.outputs.CHUNK", 5)
    calls = []

    def until(limit: int) -> Any:
        def forward(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            calls.append(len(ids))
            if len(calls) > limit:
                raise KeyboardInterrupt
            return reader.spans(ids, mask)

        return forward

    with pytest.raises(KeyboardInterrupt):
        cached_spans(until(1), examples, tmp_path, "teacher", accelerator, Progress(), "teacher reads", is_mixed=False)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.0.npy"]
    calls.clear()
    cached = cached_spans(until(99), examples, tmp_path, "teacher", accelerator, Progress(), "teacher reads", is_mixed=False)
    assert np.allclose(cached, logits_T2, atol=1e-5) and sum(calls) == len(examples) - 5
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.npy"]


def train(folder: Path, steps: int, examples: QuestionExamples) -> Reader:
    reader = Reader(tiny_reader(seed=1), tokenizer_with_limit())
    config = FitConfig(steps=steps, batch_size=16, learning_rate=5e-3)
    method = FinetuneReader(config, reader.spans)
    folder.mkdir()
    history = fit(
        reader.model, method, {"train": examples}, config, seed=0, folder=folder, accelerator=Accelerator(cpu=True),
        progress=Progress(), title="read",
    )  # fmt: skip
    assert set(history[-1]["terms"]) == {"ce"}
    return reader


def test_a_reader_learns_to_find_what_is_asked_for(tmp_path: Path) -> None:
    examples, accelerator = windows_of(find_questions(200)), Accelerator(cpu=True)
    held_out = windows_of(find_questions(60, seed=9))
    before = score_reader(Reader(tiny_reader(seed=1).eval(), tokenizer_with_limit()).spans, held_out, TINY, accelerator)
    reader = train(tmp_path / "gold", 60, examples)
    after = score_reader(reader.spans, held_out, TINY, accelerator)
    assert before["exact_match"] < 0.5 and after["exact_match"] > 0.95, (before, after)


def test_readers_are_loaded_as_what_they_are(tmp_path: Path) -> None:
    save_reader(tmp_path / "reader")
    reader = load_reader(str(tmp_path / "reader"), is_finetuned=True)
    assert reader.model.qa_outputs.out_features == 2 and not needs_answers(str(tmp_path / "reader"), "auto")
    assert needs_answers(str(tmp_path / "reader"), "always")
    reader.model.base_model.save_pretrained(tmp_path / "base")
    reader.tokenizer.save_pretrained(tmp_path / "base")
    assert needs_answers(str(tmp_path / "base"), "auto")
    with pytest.raises(ModelError, match="has no head for question answering"):
        load_reader(str(tmp_path / "base"), is_finetuned=True)
    assert load_reader(str(tmp_path / "base"), is_finetuned=False).model.config.architectures
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_reader(str(tmp_path / "nothing"), is_finetuned=False)


# --- reading


def squad(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows as the hub has them; two questions a context."""
    rows = []
    for n in range(first, first + count):
        context = f"The plot number {n // 2} was good."
        answer = {"text": ["plot", f"plot number {n // 2}"], "answer_start": [4, 4]}
        rows.append({"id": str(n), "title": "t", "context": context, "question": f"What was good {n}?", "answers": answer})
    return rows


def published(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The same as SQuAD's own file."""
    paragraphs = []
    for row in rows:
        answers = [{"text": text, "answer_start": start} for text, start in zip(*row["answers"].values())]
        paragraphs.append({"context": row["context"], "qas": [{"id": row["id"], "question": row["question"], "answers": answers}]})
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / name
    if path.suffix == ".json":
        path.write_text(json.dumps(published(rows)), encoding="utf-8")
    elif path.suffix == ".parquet":
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_every_format_gives_the_same_questions(tmp_path: Path) -> None:
    loaded = []
    for name in ("a.json", "a.jsonl", "a.parquet"):
        files = {"train_file": write(tmp_path, name, squad(8)), "validation_file": write(tmp_path, f"v{name}", squad(4, 20))}
        loaded.append(load_task(TaskConfig(problem_type="question_answering", **files)))
    for split in ("squad/train.parquet", "squad/validation.parquet"):
        write(tmp_path, split, squad(8) if "train" in split else squad(4, 20))
    loaded.append(load_task(TaskConfig(task="squad", data_dir=str(tmp_path))))
    for task in loaded:
        assert (task.problem_type, task.metrics, task.num_labels, task.is_pair) == ("question_answering", ("f1", "exact_match"), 2, True)
        assert task.train == loaded[0].train and task.held_out == task.validation == loaded[0].validation
    assert loaded[0].train.answers[3] == ("plot", "plot number 1") and loaded[0].train.starts == [4] * 8
    assert load_task(TaskConfig(task="squad", data_dir=str(tmp_path), metric="exact_match")).metrics == ("exact_match", "f1")


def test_contexts_are_held_out_whole(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", squad(40))
    tasks = [load_task(TaskConfig(problem_type="question_answering", train_file=path), seed=seed) for seed in (1, 1, 2)]
    for task in tasks:
        assert len(task.validation) == 4 and len(task.train) == 36
        assert not set(task.train.contexts) & set(task.validation.contexts)
        assert any("held out" in note for note in task.notes)
    assert tasks[0].validation == tasks[1].validation != tasks[2].validation
    fewer = load_task(TaskConfig(problem_type="question_answering", train_file=path, max_train_examples=7), seed=1)
    assert len(fewer.train) == 7 and {*fewer.train.ids} < {*tasks[0].train.ids} and fewer.validation == tasks[0].validation


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answers": {"text": [], "answer_start": []}}, "line 2: column 'answers': no answer: .*SQuAD 2.0"),
        ({"answers": {"text": ["film"], "answer_start": [4]}}, "answer 'film' does not stand at character 4"),
        ({"answers": {"text": ["plot"], "answer_start": []}}, "no answer_start"),
        ({"answers": {"text": ["plot", "good"], "answer_start": [4]}}, "for 2 answers"),
        ({"answers": [{"answer_start": 4}]}, "are no answers; expected"),
        ({"answers": 7}, "is no answer; expected"),
        ({"answers": {"text": [" "], "answer_start": [3]}}, "an answer is empty"),
        ({"context": "  "}, "column 'context': empty text"),
        ({"question": None}, "column 'question': no text"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    rows = squad(6)
    rows[1] = {**rows[1], **change}
    files = {"train_file": write(tmp_path, "a.jsonl", rows), "validation_file": write(tmp_path, "v.jsonl", squad(2, 20))}
    with pytest.raises(DataError, match=says):
        load_task(TaskConfig(problem_type="question_answering", **files))
    task = load_task(TaskConfig(problem_type="question_answering", skip_bad_rows=True, **files))
    assert len(task.train) == 5 and any("left out" in note for note in task.notes)


def test_what_is_scored_needs_no_place(tmp_path: Path) -> None:
    rows = [{**row, "answers": {"text": row["answers"]["text"]}} for row in squad(4, 20)]
    files = {"train_file": write(tmp_path, "a.jsonl", squad(6)), "validation_file": write(tmp_path, "v.jsonl", rows)}
    task = load_task(TaskConfig(problem_type="question_answering", **files))
    assert task.validation.starts == [-1] * 4 and windows_of(task.validation).labels is None


def test_requests_that_cannot_be_met(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", squad(6))
    (tmp_path / "bad.json").write_text('{"data": [{"paragraphs": [{"context": "x"}]}]}', encoding="utf-8")
    for settings, error, says in (
        ({"train_file": path, "metric": "accuracy"}, ConfigError, "metric: 'accuracy' .* choices: f1, exact_match"),
        ({"train_file": path, "soft_label_columns": ["p"]}, ConfigError, "soft_label_columns: not for question answering"),
        ({"train_file": path, "text_column": "asked"}, DataError, "no column 'asked'; columns: id, title, context, question"),
        ({"train_file": str(tmp_path / "bad.json")}, DataError, r"data\[0\].paragraphs\[0\].qas: no list"),
        ({"train_file": str(tmp_path / "none.json")}, ConfigError, "no such file"),
    ):
        with pytest.raises(error, match=says):
            load_task(TaskConfig(problem_type="question_answering", **settings))
    assert asks_questions(TaskConfig(task="rajpurkar/squad")) and not asks_questions(TaskConfig(task="squad", train_file=path))
    for config in (RunConfig(task="squad"), RunConfig(problem_type="question_answering", train_file=path)):
        with pytest.raises(ConfigError, match="extractive question answering; .* choices: adasearch compress cofi"):
            check_settings(config)


# --- a file of questions


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_a_file_of_questions_is_answered(tmp_path: Path, suffix: str) -> None:
    folder, questions = save_reader(tmp_path / "reader"), random_questions(7, seed=5, words=(1, 60))
    rows = [{"context": context, "n": n, "question": text} for n, (text, context) in enumerate(zip(questions.texts, questions.contexts))]
    source = tmp_path / f"in{suffix}"
    if suffix == ".csv":
        lines = [f'"{row["context"]}",{row["n"]},"{row["question"]}"\n' for row in rows]
        source.write_text("context,n,question\n" + "".join(lines), encoding="utf-8")
    else:
        write(tmp_path, source.name, rows)
    assert predict_file(folder, source, tmp_path / "out.jsonl", runtime="torch", batch_size=3) == 7
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    config = QuestionConfig(max_seq_length=64, doc_stride=21, max_question_length=10)  # 384, 128 and 64 in proportion
    examples = cut_windows(questions, tokenizer_with_limit(), config)
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    expected = best_answers(spans_of(Reader(model, tokenizer_with_limit()).spans, examples, Accelerator(cpu=True)), examples, config)
    assert len(examples) > 7
    for row, given, answer in zip(found, rows, expected):
        assert row["context"] == given["context"] and int(row["n"]) == given["n"]
        assert (row["prediction"], row["answer_start"], row["answer_end"]) == (answer.text, answer.start, answer.end)
        assert row["probability"] == pytest.approx(answer.probability, abs=1e-4)
        assert row["context"][row["answer_start"] : row["answer_end"]] == row["prediction"] != ""


def test_columns_may_have_other_names_and_must_be_there(tmp_path: Path) -> None:
    folder = save_reader(tmp_path / "reader")
    source = Path(write(tmp_path, "in.jsonl", [{"asked": "the film", "text": "good plot"}]))
    predict_file(folder, source, tmp_path / "out.jsonl", "asked", "text", runtime="torch")
    with pytest.raises(DataError, match="no column 'question'; columns: asked, text"):
        predict_file(folder, source, tmp_path / "out2.jsonl", runtime="torch")
    with pytest.raises(ConfigError, match="a cascade is for single labels"):
        predict_file(folder, source, tmp_path / "out2.jsonl", "asked", "text", runtime="torch", cascade_teacher=folder, cascade_share=0.1)
