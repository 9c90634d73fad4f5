"""What a model's config says of its inputs, against models that are run: positions, segment ids, vocabulary."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hearing import Heard
from tiny import tiny_architecture, tiny_config
from tiny_encoder import FAMILIES, make_encoder, make_model
from tiny_encoder_run import question_settings, tiny_earlybert, tiny_settings
from tiny_task import tiny_run
from tiny_words import PIECES, tokenizer_of
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from adasearch.answers_file import QuestionAnswerer
from adasearch.classifier import TextClassifier
from adasearch.earlybert_run import compress_earlybert
from adasearch.encoder_problem import EncoderProblem
from adasearch.errors import ConfigError, ModelError
from adasearch.files import read_json, write_json
from adasearch.export import export_onnx, save_student
from adasearch.graph_runtimes import OnnxRuntime
from adasearch.model_inputs import COUNTS_FROM_PADDING, positions_of, read_literally, segment_ids, uses_token_types
from adasearch.pipeline import run as run_search
from adasearch.prune import encode
from adasearch.quantize_texts import Texts
from adasearch.runtimes import TorchRuntime
from adasearch.shrink import build_student
from adasearch.tasks import Task
from adasearch.teacher import Teacher, load_teacher
from adasearch.texts import Split, served_pieces, tokenize
from adasearch.vocabulary import reduce_tokenizer, retokenise

OURS = {"vocab_size": len(PIECES), "pad_token_id": PIECES.index("[PAD]")}
PAD, SEP_ID = {"pad_token_id": OURS["pad_token_id"], "embedding_rank": None}, PIECES.index("[SEP]")
FIRST, SECOND = ["film good", "the actor was bad", "plot"], ["bad plot", "good", "the film was the best"]


def nameless() -> PreTrainedTokenizerBase:
    """A tokenizer that names no segment ids, as a fast one of no class of its own."""
    tokenizer = tokenizer_of()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def batch_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """The pairs as ids and mask (B, L)."""
    return dict(tokenizer(FIRST, SECOND, padding=True, return_token_type_ids=False, return_tensors="pt"))


def halves(ids: list[int]) -> tuple[list[int], list[int]]:
    """The two texts of a pair, parted after the first separator as students part them."""
    place = ids.index(SEP_ID) + 1
    return ids[:place], ids[place:]


# --- segment ids


def test_pairs_are_served_as_they_were_scored_whatever_the_tokenizer_names(tmp_path: Path) -> None:
    model, tokenizer = make_encoder(**OURS), nameless()
    save_student(model, tokenizer, tmp_path / "student")
    with torch.inference_mode():
        scored = Teacher(model, tokenizer).logits(**batch_of(tokenizer)).numpy()
        alike = model(**batch_of(tokenizer)).logits.numpy()
    assert np.abs(scored - alike).max() > 0.01, "segments matter to this model"
    served, _ = TextClassifier(tmp_path / "student", runtime="torch", threads=1).logits(FIRST, SECOND)
    np.testing.assert_allclose(served, scored, atol=1e-5)
    texts = Texts(tokenizer, tokenizer(FIRST, SECOND)["input_ids"], is_pair=True)
    np.testing.assert_allclose(texts.logits_of(TorchRuntime(model, 1)), scored, atol=1e-5)


@pytest.mark.parametrize(("student", "teacher"), [("bert", "distilbert"), ("distilbert", "bert")])
def test_a_graph_is_fed_what_its_own_model_is_fed(student: str, teacher: str, tmp_path: Path) -> None:
    """Whichever of the two has segment ids; graphs differ from torch by rounding."""
    model, tokenizer = make_encoder(student, **OURS), tokenizer_of()
    problem = object.__new__(EncoderProblem)
    problem.teacher, problem.tokenizer = Teacher(make_model(teacher, **OURS), tokenizer), tokenizer
    runtime = OnnxRuntime(export_onnx(model, tmp_path / "model.onnx"), 1)
    batch = batch_of(tokenizer)
    with torch.inference_mode():
        expected = problem.forward(model, batch).logits
    torch.testing.assert_close(problem.graph_forward(runtime)(*batch.values()), expected, atol=1e-4, rtol=0)


def test_a_separator_written_into_a_single_text_begins_no_second_one(tmp_path: Path) -> None:
    """As Hugging Face counts segments: wherever a text is labelled, scored and served."""
    texts = ["film good [SEP] the actor was bad", "plot"]
    model, tokenizer = make_encoder(**OURS, is_pair=False), tokenizer_of()
    inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    assert (inputs["input_ids"][0] == tokenizer.sep_token_id).sum() == 2, "the tokenizer took it for its separator"
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    with torch.inference_mode():
        expected = model(**inputs).logits.numpy()
        scored = Teacher(model, tokenizer).logits(inputs["input_ids"], inputs["attention_mask"]).numpy()
        paired = model(**{**inputs, "token_type_ids": segment_ids(inputs["input_ids"], tokenizer, is_pair=True)}).logits.numpy()
    assert np.abs(paired - expected).max() > 0.01, "segments matter to this model"
    np.testing.assert_allclose(scored, expected, atol=1e-6)
    np.testing.assert_allclose(Texts(tokenizer, tokenizer(texts)["input_ids"], is_pair=False).logits_of(TorchRuntime(model, 1)), expected, atol=1e-5)
    for is_pair in (False, None):  # a model that does not say is asked with what it is given
        model.config.is_pair = is_pair
        save_student(model, tokenizer, tmp_path / str(is_pair))
        served, _ = TextClassifier(tmp_path / str(is_pair), runtime="torch", threads=1).logits(texts)
        np.testing.assert_allclose(served, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["fast", "bert"])
def test_a_special_token_written_into_a_pair_is_text_wherever_it_is_read(kind: str, tmp_path: Path) -> None:
    """The students find the second text by the first separator: it must be the tokenizer's own."""
    first, second = ["film [SEP] good", "[CLS] [PAD] the actor", "plot"], ["bad [SEP] plot", "good [MASK]", "film"]
    make_model("bert", **OURS).save_pretrained(tmp_path / "given")
    tokenizer_of(kind).save_pretrained(tmp_path / "given")
    split = Split(first, second)
    task = Task("pairs", "single_label", ("no", "yes"), ("accuracy",), split, split)
    tokenizer = load_teacher(str(tmp_path / "given"), task, is_finetuned=False).tokenizer
    store, _ = tokenize(split, tokenizer, 64, cache=tmp_path / "cache", name="train")
    expected = [ids.tolist() for ids in store]
    words = [[re.sub("##| ", "", tokenizer.decode(part, skip_special_tokens=True)) for part in halves(ids)] for ids in expected]
    assert words == [[re.sub(r"[][ ]", "", text.lower()) for text in pair] for pair in zip(first, second)], "brackets are unknown to it"
    student = build_student(tiny_architecture(), tiny_config(vocab_size=len(PIECES), sep_token_id=SEP_ID, is_pair=True, max_position_embeddings=64, **PAD))
    folder = save_student(student, tokenizer, tmp_path / "student")
    served, read = TextClassifier(folder, runtime="torch", threads=1), AutoTokenizer.from_pretrained(folder)
    assert [list(ids) for ids in served_pieces(served.tokenizer, first, second, served.limit)[0]] == read(first, second)["input_ids"] == expected
    assert [ids.tolist() for ids in encode(split, read, 64)] == expected
    smaller = reduce_tokenizer(read, np.arange(len(PIECES)))  # which writes and reads its files
    assert smaller(first, second)["input_ids"] == expected == [ids.tolist() for ids in retokenise(store, read, smaller)]
    alone = Tokenizer.from_file(str(folder / "tokenizer.json"))
    alone.encode_special_tokens = True  # as docs/serving.md says
    assert [encoding.ids for encoding in alone.encode_batch(list(zip(first, second)))] == expected


def test_single_texts_keep_the_special_tokens_that_are_written_into_them(tmp_path: Path) -> None:
    make_model("bert", **OURS).save_pretrained(tmp_path / "given")
    tokenizer_of().save_pretrained(tmp_path / "given")
    task = Task("texts", "single_label", ("no", "yes"), ("accuracy",), Split(["a"]), Split(["b"]))
    teacher = load_teacher(str(tmp_path / "given"), task, is_finetuned=False)
    assert teacher.tokenizer("film [SEP] plot")["input_ids"].count(SEP_ID) == 2


def test_tokens_that_were_kept_still_hold_where_no_special_token_is_written(tmp_path: Path) -> None:
    heard, tokenizer = Heard(), tokenizer_of()
    plain, marked = Split(["film"], ["good"]), Split(["film [sep]"], ["good [SEP]"])
    for split in (plain, marked):
        tokenize(split, tokenizer, 16, cache=tmp_path, name="train", progress=heard)
    read_literally(tokenizer)
    for split, count in ((plain, 2), (marked, 3), (marked, 3)):
        store, _ = tokenize(split, tokenizer, 16, cache=tmp_path, name="train", progress=heard)
        assert (store[0] == SEP_ID).sum() == 2 and len(heard.titles) == count


@pytest.mark.parametrize("kind", ["gpt2", "xlnet"])
def test_an_answer_does_not_depend_on_the_texts_beside_it(kind: str, tmp_path: Path) -> None:
    """Both tokenizers pad left: GPT-2's positions would move with the padding, XLNet's head reads the last position."""
    tokenizer, size = tokenizer_of(), {"vocab_size": len(PIECES), "pad_token_id": OURS["pad_token_id"], "num_labels": 3}
    torch.manual_seed(0)
    made = {"gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}, "xlnet": {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **size, **made[kind])).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {**read_json(tmp_path / "tokenizer_config.json"), "padding_side": "left"})
    texts = ["film", "the film was good and the plot was bad", "plot bad"]
    classifier = TextClassifier(tmp_path, runtime="torch", threads=1, batch_size=3)
    assert classifier.tokenizer.padding_side == "left"
    logits, _ = classifier.logits(texts)
    with torch.inference_mode():
        alone = torch.cat([model(**{"input_ids": tokenizer(text, return_tensors="pt")["input_ids"]}).logits for text in texts])
    np.testing.assert_allclose(logits, alone, atol=1e-5)


# --- positions


def runs(model: PreTrainedModel, length: int) -> bool:
    """Whether it takes a text of so many word pieces, none of them padding."""
    try:
        model(input_ids=torch.full((1, length), 5))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_runs_up_to_its_positions_and_no_further(family: str) -> None:
    for model in (make_model(family), make_encoder(family)):
        most = positions_of(model.config)
        assert most == {"roberta": 28}.get(family, 30)
        assert runs(model, most) and not runs(model, most + 1)


@pytest.mark.parametrize("kind", ["bert", "electra", *sorted({*COUNTS_FROM_PADDING} - {"esm", "ibert", "layoutlmv3", "lilt", "luke", "markuplm"})])
def test_so_does_a_model_of_every_kind(kind: str) -> None:
    """The kinds left out need other inputs or sizes than texts."""
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    own = {"longformer": {"attention_window": 4}, "xmod": {"languages": ["en_XX"], "default_language": "en_XX"}}
    model = AutoModel.from_config(AutoConfig.for_model(kind, **sizes, max_position_embeddings=14, **own.get(kind, {}))).eval()
    most = positions_of(model.config)
    assert runs(model, most) and not runs(model, 16 if kind == "longformer" else most + 1)  # which pads to whole windows


def test_a_long_text_is_cut_to_the_positions_there_are(tmp_path: Path) -> None:
    """RoBERTa's first positions stand for padding; its tokenizer knows no limit."""
    tokenizer = tokenizer_of()
    tokenizer.model_max_length = int(1e30)
    changes = {**OURS, "pad_token_id": OURS["pad_token_id"], "max_position_embeddings": OURS["pad_token_id"] + 21}
    save_student(make_encoder("roberta", **changes), tokenizer, tmp_path / "labels")
    save_student(make_encoder("roberta", "question_answering", **changes), tokenizer, tmp_path / "answers")
    classifier = TextClassifier(tmp_path / "labels", runtime="torch", threads=1)
    assert classifier.limit == 20 and classifier.answer(["film " * 50]).cut == 1
    answerer = QuestionAnswerer(tmp_path / "answers", runtime="torch", threads=1)
    assert answerer.windows.max_seq_length == 20 and len(answerer.answer(["the film"], ["actor " * 50]).answers) == 1


def without_limit(folder: Path) -> str:
    """A folder whose tokenizer takes texts of any length."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_texts_longer_than_the_positions_are_refused_before_any_training(tmp_path: Path) -> None:
    config = tiny_earlybert(tmp_path, max_seq_length=600)
    name = without_limit(tmp_path / "encoder")
    with pytest.raises(ConfigError, match=f"^max_seq_length: 600: model '{name}' has positions for 32; choices: up to 32$"):
        compress_earlybert(config)
    with pytest.raises(ConfigError, match=f"^max_seq_length: 600: model '{name}' has positions for 32; choices: up to 32$"):
        run_search(tiny_run(tmp_path, output_dir=str(tmp_path / "search"), max_seq_length=600))
    assert not list(tmp_path.rglob("history.jsonl")), "nothing was trained"


def test_so_are_the_teachers_and_questions(tmp_path: Path) -> None:
    short = tmp_path / "short"
    config = tiny_earlybert(tmp_path, max_seq_length=24)
    AutoTokenizer.from_pretrained(tmp_path / "encoder").save_pretrained(short)
    shape = AutoConfig.from_pretrained(tmp_path / "encoder", max_position_embeddings=20)
    AutoModelForSequenceClassification.from_config(shape).save_pretrained(short)
    config.teacher = str(short)
    with pytest.raises(ConfigError, match=f"^max_seq_length: 24: model '{short}' has positions for 20"):
        compress_earlybert(config)
    asked = tmp_path / "asked"
    asked.mkdir()
    settings: dict[str, Any] = {**tiny_settings(asked), **question_settings(asked)}
    settings["question"].max_seq_length = 65
    without_limit(asked / "base")
    with pytest.raises(ConfigError, match="^question.max_seq_length: 65: model .* has positions for 64"):
        compress_earlybert(tiny_earlybert(asked, **settings))


# --- vocabulary


def test_a_tokenizer_that_its_model_has_no_rows_for_is_refused(tmp_path: Path) -> None:
    config = tiny_earlybert(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "encoder")
    rows = len(tokenizer)
    tokenizer.add_tokens(["the plot"])
    tokenizer.save_pretrained(tmp_path / "encoder")
    says = f"'{tmp_path / 'encoder'}' has {rows} embeddings, its tokenizer {rows + 1} tokens"
    with pytest.raises(ModelError, match=f"^model: {says}"):
        compress_earlybert(config)
    with pytest.raises(ModelError, match=f"^teacher: {says}"):
        run_search(tiny_run(tmp_path, output_dir=str(tmp_path / "search")))


def test_segments_are_for_models_with_two_of_them() -> None:
    assert [uses_token_types(make_model(family).config) for family in FAMILIES] == [True, False, False]
