"""Predictions of files, against the same model called by hand one text at a time."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from adasearch.errors import ConfigError, DataError, ModelError
from adasearch.predict import load_student, predict_file
from adasearch.progress import Progress

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "bad", "film", "very", ",", "the", "end"]
TEXTS = ["a good film", "bad", "the end , very very bad", "", "a very good , good film", "null", 'say "film", end']
PAIRS = ["bad", "the end", "a film", "good", "", "very", "the"]


class Heard(Progress):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.done: list[int] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def step(self, done: int, **metrics: float | int | str) -> None:
        self.done.append(done)


def make_classifier(folder: Path, problem_type: str = "single_label_classification", labels: int = 3) -> Path:
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=16, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, num_labels=labels, problem_type=problem_type, initializer_range=1.0,
        id2label=dict(enumerate(["neg", "neu", "pos"][:labels])),
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture()
def student(tmp_path: Path) -> Path:
    return make_classifier(tmp_path / "student")


def by_hand(folder: Path, text: str, pair: str | None = None) -> np.ndarray:
    """Logits (C,) of one text without padding: the reference."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        # lists of one: called with plain strings the tokenizer takes an empty second text for none
        return model(**tokenizer([text], [pair] if pair is not None else None, return_tensors="pt")).logits[0].numpy()


def write(path: Path, table: pd.DataFrame) -> Path:
    if path.suffix == ".txt":
        path.write_text("\n".join(table["text"]) + "\n", encoding="utf-8")
    elif path.suffix in (".csv", ".tsv"):
        table.to_csv(path, index=False, sep="," if path.suffix == ".csv" else "\t")
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    return path


def read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".jsonl":
        return pd.read_json(path, lines=True, dtype=False)
    return pd.read_csv(path, sep="," if path.suffix == ".csv" else "\t", keep_default_na=False)


@pytest.mark.parametrize("suffix_in", [".csv", ".tsv", ".jsonl", ".parquet", ".txt"])
@pytest.mark.parametrize("suffix_out", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_row_gets_what_the_model_says_of_it_alone(
    student: Path, tmp_path: Path, suffix_in: str, suffix_out: str
) -> None:
    source = write(tmp_path / f"in{suffix_in}", pd.DataFrame({"text": TEXTS}))
    target = tmp_path / f"out{suffix_out}"
    assert predict_file(student, source, target, batch_size=3, runtime="torch") == len(TEXTS)
    table = read(target)
    assert table["text"].tolist() == TEXTS
    expected = np.stack([torch.from_numpy(by_hand(student, text)).softmax(-1).numpy() for text in TEXTS])
    found = table[["probability_neg", "probability_neu", "probability_pos"]].to_numpy(dtype=np.float64)
    np.testing.assert_allclose(found, expected, atol=1e-5)  # padding changes the order of sums, no more
    assert table["prediction"].tolist() == [["neg", "neu", "pos"][index] for index in expected.argmax(-1)]
    assert len(set(table["prediction"])) > 1, "the test's model says the same of everything and proves nothing"


def test_pairs_keep_their_segments_and_other_columns_stay(student: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", pd.DataFrame({"id": ["007"] * 7, "q": TEXTS, "r": PAIRS}))
    predict_file(student, source, tmp_path / "out.parquet", "q", "r", batch_size=2, runtime="torch")
    table = pd.read_parquet(tmp_path / "out.parquet")
    expected = [torch.from_numpy(by_hand(student, *pair)).softmax(-1)[0].item() for pair in zip(TEXTS, PAIRS)]
    np.testing.assert_allclose(table["probability_neg"], expected, atol=1e-5)
    assert table["id"].tolist() == ["007"] * 7


def test_multi_label_joins_what_is_above_one_half(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "student", "multi_label_classification")
    source = write(tmp_path / "in.txt", pd.DataFrame({"text": TEXTS}))
    predict_file(folder, source, tmp_path / "out.jsonl", runtime="torch")
    table = read(tmp_path / "out.jsonl")
    for text, row in zip(TEXTS, table.to_dict("records")):
        share = 1 / (1 + np.exp(-by_hand(folder, text)))
        assert row["prediction"] == "|".join(name for name, s in zip(["neg", "neu", "pos"], share) if s > 0.5)
        np.testing.assert_allclose(row["probability_pos"], share[2], atol=1e-5)


def test_regression_gives_the_score(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "student", "regression", labels=1)
    source = write(tmp_path / "in.txt", pd.DataFrame({"text": TEXTS}))
    predict_file(folder, source, tmp_path / "out.parquet", runtime="torch")
    table = pd.read_parquet(tmp_path / "out.parquet")
    np.testing.assert_allclose(table["prediction"], [by_hand(folder, text)[0] for text in TEXTS], atol=1e-5)
    assert list(table.columns) == ["text", "prediction"]


def test_onnxruntime_says_the_same_and_auto_takes_it(student: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    # a graph that no torch model would give, so that it shows who ran: logits = [length, 0, token types]
    helper, int64, float32 = onnx.helper, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", [name], [f"{name}_f"], to=float32) for name in ("attention_mask", "token_type_ids")
    ] + [
        helper.make_node("ReduceSum", ["attention_mask_f", "axis"], ["length"], keepdims=1),
        helper.make_node("ReduceSum", ["token_type_ids_f", "axis"], ["second"], keepdims=1),
        helper.make_node("Sub", ["length", "length"], ["zero"]),
        helper.make_node("Concat", ["length", "zero", "second"], ["logits"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info(name, int64, ["b", "l"]) for name in ("attention_mask", "token_type_ids")]
    outputs = [helper.make_tensor_value_info("logits", float32, ["b", 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [helper.make_tensor("axis", int64, [1], [1])])
    (student / "onnx").mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, student / "onnx/model.onnx")
    source = write(tmp_path / "in.csv", pd.DataFrame({"text": TEXTS, "r": PAIRS}))
    predict_file(student, source, tmp_path / "out.parquet", "text", "r", batch_size=2)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(student)
    for row in pd.read_parquet(tmp_path / "out.parquet").to_dict("records"):
        pieces = tokenizer([row["text"]], [row["r"]])
        logits = torch.tensor([float(len(pieces["input_ids"][0])), 0.0, float(sum(pieces["token_type_ids"][0]))])
        assert row["probability_pos"] == pytest.approx(logits.softmax(-1)[2].item(), abs=1e-6)


def test_standard_streams_are_lines_in_and_json_lines_out(
    student: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a good film\nbad\n"))
    assert predict_file(student, Path("-"), Path("-"), runtime="torch") == 2
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["a good film", "bad"]
    for row in rows:
        assert sum(value for key, value in row.items() if key.startswith("probability_")) == pytest.approx(1)


def test_an_empty_file_gives_an_empty_file(student: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", pd.DataFrame({"text": []}))
    assert predict_file(student, source, tmp_path / "out.csv", runtime="torch") == 0
    assert (tmp_path / "out.csv").read_text().startswith("text,prediction,probability_neg")


def test_long_texts_are_cut_and_counted_and_the_longest_come_first(student: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.txt", pd.DataFrame({"text": ["bad", "very " * 40, "good"]}))
    heard = Heard()
    predict_file(student, source, tmp_path / "out.csv", batch_size=2, runtime="torch", progress=heard)
    assert heard.done == [2, 3] and "1 of 3 texts fill all 16 word pieces" in heard.warnings[0]


@pytest.mark.parametrize(
    ("name", "content", "column", "says"),
    [
        ("in.csv", b"words\na\n", "text", "no column 'text'; columns: words"),
        ("in.doc", b"", "text", "cannot read '.doc'; choices: .csv, .tsv, .jsonl, .parquet, .txt"),
        ("in.csv", b"", "text", "is not a csv file"),
        ("in.csv", b"text\n\xff\xfe\n", "text", "is not a csv file"),
        ("in.txt", b"\xff\xfe\n", "text", "is not a txt file"),
        ("in.parquet", b"PAR", "text", "is not a parquet file"),
        ("in.jsonl", b'{"text": "a"}\n{"text"\n', "text", "is not a jsonl file (line 2"),
        ("in.jsonl", b'{"text": "a"}\n["a"]\n', "text", "line 2: holds list"),
        ("in.jsonl", b'{"text": "a"}\n{"text": null}\n{"text": 3}', "text", "2 of 3 values are not texts (row 2: None"),
        ("absent.csv", None, "text", "cannot be read (No such file or directory)"),
    ],
)
def test_bad_files_name_the_place_and_the_choices(
    student: Path, tmp_path: Path, name: str, content: bytes | None, column: str, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        predict_file(student, tmp_path / name, tmp_path / "out.csv", column, runtime="torch")
    assert says in str(error.value) and name in str(error.value)
    assert not (tmp_path / "out.csv").exists()


def test_a_folder_is_not_a_file(student: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").mkdir()
    with pytest.raises(DataError, match="Is a directory"):
        predict_file(student, tmp_path / "in.csv", tmp_path / "out.csv", runtime="torch")


def test_bad_requests_name_the_value_and_the_choices(student: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", pd.DataFrame({"text": TEXTS}))
    for change, says in (
        ({"runtime": "tpu"}, "runtime: 'tpu' is not known; choices: auto, onnxruntime, torch"),
        ({"output_file": tmp_path / "out.xls"}, "cannot write '.xls'; choices: .csv, .tsv, .jsonl, .parquet"),
        ({"output_file": source}, "is the input file"),
        ({"batch_size": 0}, "batch_size: 0 is out of range"),
        ({"student_dir": tmp_path}, "is no model folder"),
    ):
        with pytest.raises(ConfigError) as error:
            predict_file(**{"student_dir": student, "input_file": source, "output_file": tmp_path / "o.csv", **change})
        assert says in str(error.value)


def test_a_student_that_was_not_exported_says_how_to(student: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    source = write(tmp_path / "in.csv", pd.DataFrame({"text": TEXTS}))
    with pytest.raises(ModelError, match="adasearch export"):
        predict_file(student, source, tmp_path / "o.csv", runtime="onnxruntime")


def test_a_damaged_student_is_an_error_about_the_student(student: Path) -> None:
    (student / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no sequence classifier can be loaded"):
        load_student(student)
