"""Predictions of files, against the same model called by hand one text at a time."""

from __future__ import annotations

import functools
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hearing import Heard, KillAt, Killed
from safetensors.torch import load_file, save_file
from tiny_classifier import TEXTS, make_classifier
from tokenizers import processors
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from adasearch import chunks, predict
from adasearch.calibration import Calibration
from adasearch.cascade import Cascade
from adasearch.classifier import TextClassifier, open_runtime
from adasearch.errors import ConfigError, DataError, ModelError, TrainingError
from adasearch.parts import write_stream
from adasearch.predict import load_student, predict_file
from adasearch.progress import Progress
from adasearch.score_models import score_models
from adasearch.settings import cores_here
from adasearch.texts import served_pieces

PAIRS = ["bad", "the end", "a film", "good", "", "very", "the"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier(tmp_path_factory.mktemp("made") / "student")


@pytest.fixture()
def student(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "student"))


@functools.lru_cache(maxsize=4)
def loaded(folder: Path) -> tuple[PreTrainedTokenizerFast, BertForSequenceClassification]:
    return PreTrainedTokenizerFast.from_pretrained(folder), BertForSequenceClassification.from_pretrained(folder).eval()


def by_hand(folder: Path, text: str, pair: str | None = None) -> np.ndarray:
    """Logits (C,) of one text without padding: the reference."""
    tokenizer, model = loaded(folder)
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


def test_folders_and_files_may_be_named_by_strings(student: Path, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.csv", pd.DataFrame({"text": TEXTS})), tmp_path / "out.csv"
    assert predict_file(str(student), str(source), str(target), runtime="torch") == len(TEXTS) == len(read(target))
    assert TextClassifier(str(student), runtime="torch").labels == ["neg", "neu", "pos"]


def test_what_is_trained_afterwards_has_the_threads_it_had(student: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", pd.DataFrame({"text": TEXTS[:2], "label": ["neg", "pos"]}))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        predict_file(student, source, tmp_path / "out.csv", runtime="torch", threads=1)
        assert torch.get_num_threads() == 3
        score_models([student], source, runtime="torch", threads=1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


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
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a good film\nbad\n")))
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
    assert heard.done == [2, 3] and "1 of 3 texts are longer than 16 word pieces" in heard.warnings[0]


@pytest.mark.parametrize(
    ("name", "content", "column", "says"),
    [
        ("in.csv", b"words\na\n", "text", "no column 'text'; columns: words"),
        ("in.doc", b"", "text", "cannot read '.doc'; choices: .csv, .tsv, .jsonl, .parquet, .txt"),
        ("in.csv", b"", "text", "is not a csv file"),
        ("in.csv", b"text,label\ra,b\rc,d\r", "text", "lone carriage returns end its lines; save it with line feeds"),
        ("in.csv", b'"text" ,label\na,b\n', "text", "its header cannot be read"),
        ("in.csv", b"text\n\xff\xfe\n", "text", "is not a csv file"),
        ("in.txt", b"\xff\xfe\n", "text", "is not a txt file"),
        ("in.parquet", b"PAR", "text", "is not a parquet file"),
        ("in.jsonl", b'{"text": "a"}\n{"text"\n', "text", "1 bad row: line 2: no JSON"),
        ("in.jsonl", b'{"text": "a"}\n["a"]\n', "text", "1 bad row: line 2: holds list, not an object. Mend them"),
        ("in.jsonl", b'{"text": "a"}\n{"text": null}\n{"text": 3}', "text", "2 bad rows: line 2: column 'text': no text; line 3:"),
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
    with pytest.raises(DataError, match="in.csv: is a folder; choices: a file, .csv"):
        predict_file(student, tmp_path / "in.csv", tmp_path / "out.csv", runtime="torch")


def test_bad_requests_name_the_value_and_the_choices(student: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", pd.DataFrame({"text": TEXTS}))
    for change, says in (
        ({"runtime": "tpu"}, "runtime: 'tpu' is not known; choices: auto, onnxruntime"),
        ({"output_file": tmp_path / "out.xls"}, "cannot write '.xls'; choices: .csv, .tsv, .jsonl, .parquet"),
        ({"output_file": source}, "is the input file"),
        ({"batch_size": 0}, "batch_size: 0 is out of range"),
        ({"threads": 0}, f"threads: 0 on {cores_here()} core"),
        ({"threads": 1000}, f"choices: 1 to {cores_here()}, or leave it out"),
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


def test_weights_that_are_cut_or_missing_are_an_error_and_no_answer(student: Path) -> None:
    path = student / "model.safetensors"
    whole = path.read_bytes()
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}  # not of the file, which is written over
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="no sequence classifier can be loaded"):
        load_student(student)
    save_file({name: tensor for name, tensor in weights.items() if "classifier.weight" not in name}, path, {"format": "pt"})
    with pytest.raises(ModelError, match="its weights lack .*classifier.weight, which would be random"):
        load_student(student)
    save_file({name: tensor[:1] if "classifier.weight" in name else tensor for name, tensor in weights.items()}, path, {"format": "pt"})
    with pytest.raises(ModelError, match="no sequence classifier can be loaded"):
        load_student(student)


def test_a_model_that_was_not_exported_answers_in_the_precisions_of_torch(student: Path) -> None:
    runtimes = [open_runtime(student, "auto", precision, 1) for precision in (None, "fp32", "bf16")]
    assert [(runtime.name, runtime.precision) for runtime in runtimes] == [("torch", "fp32"), ("torch", "fp32"), ("torch", "bf16")]


def test_answers_may_lie_in_the_models_own_folder(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no part of the model: what was begun goes on, and is found whole."""
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 3)
    source, target = write(tmp_path / "in.csv", pd.DataFrame({"text": TEXTS})), student / "out.csv"
    with pytest.raises(Killed):
        predict_file(student, source, target, batch_size=1, runtime="torch", progress=KillAt(4))
    for _ in range(2):
        assert predict_file(student, source, target, batch_size=1, runtime="torch") == 7


@pytest.fixture()
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three rows, so that seven texts have several."""
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 3)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("killed_at", [1, 4, 7])
@pytest.mark.usefixtures("small_chunks")
def test_a_killed_run_goes_on_and_ends_the_same(student: Path, tmp_path: Path, suffix: str, killed_at: int) -> None:
    source = write(tmp_path / f"in{suffix}", pd.DataFrame({"id": range(7), "text": TEXTS}))
    predict_file(student, source, tmp_path / f"whole{suffix}", batch_size=1, runtime="torch")

    target = tmp_path / f"out{suffix}"
    with pytest.raises(Killed):
        predict_file(student, source, target, batch_size=1, runtime="torch", progress=KillAt(killed_at))
    assert not target.exists()
    heard = Heard()
    assert predict_file(student, source, target, batch_size=1, runtime="torch", progress=heard) == 7
    kept = (killed_at - 1) // 3 * 3  # whole chunks
    assert heard.stages[0] == ("predict", 7, kept) and heard.done == list(range(kept + 1, 8))
    assert target.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"in{suffix}", f"out{suffix}", f"whole{suffix}", f".out{suffix}.job.json", f".whole{suffix}.job.json", "student"]
    )


@pytest.mark.usefixtures("small_chunks")
def test_nothing_else_goes_on_in_its_place(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in.csv", pd.DataFrame({"text": TEXTS, "other": TEXTS}))
    target = tmp_path / "out.csv"
    run = {"student_dir": student, "input_file": source, "output_file": target, "runtime": "torch"}
    with pytest.raises(Killed):
        predict_file(**run, progress=KillAt(4))
    for change, says in (
        ({"text_column": "other"}, "text_column was 'text', is 'other'"),
        ({"skip_bad_rows": True}, "skip_bad_rows was False, is True"),
        ({"calibrated": False}, "calibrated was True, is False"),
        ({"student_dir": make_classifier(tmp_path / "second")}, "begun otherwise \\(model was"),
        ({"cascade_teacher": tmp_path / "second", "cascade_share": 0.5}, "cascade_teacher was None"),
    ):
        with pytest.raises(ConfigError, match=f".out.csv.parts holds an unfinished run.*{says}"):
            predict_file(**{**run, **change})
    content = source.read_text()
    source.write_text(content.replace("film", "plot"))
    with pytest.raises(ConfigError, match="begun otherwise \\(input was"):
        predict_file(**run)
    source.write_text(content)
    assert predict_file(**run, batch_size=2, threads=1) == 7  # these change no answer


@pytest.mark.usefixtures("small_chunks")
def test_no_other_file_is_written_over(student: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", pd.DataFrame({"text": TEXTS}))
    target = tmp_path / "labelled.csv"
    run = {"student_dir": student, "input_file": source, "output_file": target, "runtime": "torch"}
    mine = "text,label\nby people,1\n"
    target.write_text(mine)
    choices = "would be overwritten; choices: another --output_file, or --overwrite true"
    for of in (run, {**run, "input_file": Path("-")}):
        with pytest.raises(ConfigError, match=f"output_file: .*labelled.csv is there already and {choices}"):
            predict_file(**of)
    assert target.read_text() == mine

    with pytest.raises(Killed):
        predict_file(**run, overwrite=True, progress=KillAt(4))
    assert target.read_text() == mine
    assert predict_file(**run, overwrite=True) == 7  # goes on with what it was allowed to begin
    made = target.read_bytes()
    heard = Heard()
    assert predict_file(**run, threads=1, progress=heard) == 7
    assert heard.done == [] and heard.messages == [f"{target} is there already, made with the same input, model and settings"]
    with pytest.raises(ConfigError, match=rf"labelled.csv was made otherwise \(calibrated was True, is False\) and {choices}"):
        predict_file(**run, calibrated=False)
    assert target.read_bytes() == made
    assert predict_file(**run, calibrated=False, overwrite=True) == 7

    target.write_text(target.read_text() + "by hand,neg,0,0,0\n")  # changed since: the user's own now
    with pytest.raises(ConfigError, match="is there already"):
        predict_file(**run, calibrated=False)
    assert "by hand" in target.read_text()


@pytest.mark.usefixtures("small_chunks")
def test_chunks_are_answered_one_at_a_time(student: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", pd.DataFrame({"text": TEXTS}))
    seen: list[tuple[int, int]] = []

    class Watching(Progress):
        def step(self, done: int, **metrics: float | int | str) -> None:
            seen.append((done, len(list((tmp_path / ".out.parquet.parts").glob("0*")))))
            assert metrics["texts_per_s"] >= 0

    predict_file(student, source, tmp_path / "out.parquet", runtime="torch", progress=Watching())
    assert seen == [(3, 0), (6, 1), (7, 2)]  # what was answered is on disk before more is read
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 3


def test_long_texts_make_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_CHARACTERS", 10)
    rows = [chunks.Row(n, {"t": "x" * size}) for n, size in enumerate([4, 4, 4, 11, 1, 9, 1])]
    assert [[row.number for row in chunk] for chunk in chunks.in_chunks(rows, ("t",))] == [[0, 1], [2], [3], [4, 5], [6]]


BAD = {
    "in.csv": ("text,n\ngood,1\nbad\n\"the\nend\",2\n\ngood,3,4\n", "line 3: 1 fields where the header has 2; line 7: 3 fields"),
    "in.jsonl": ('{"text": "good", "n": 1}\n{"text": null}\n\n{"text": "the\\nend", "n": 2}\n{"text": "\\ud800"}\n3\n{"t\n{"n": 1}\n',
                 "line 2: column 'text': no text; line 5: column 'text': half a character"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_refused_or_counted(student: Path, tmp_path: Path, name: str) -> None:
    content, says = BAD[name]
    source, target = tmp_path / name, tmp_path / "out.jsonl"
    source.write_text(content)
    with pytest.raises(DataError) as error:
        predict_file(student, source, target, runtime="torch")
    assert says in str(error.value) and "or leave them out with --skip_bad_rows" in str(error.value)
    heard = Heard()
    assert predict_file(student, source, target, runtime="torch", skip_bad_rows=True, progress=heard) == 2
    assert says in heard.warnings[0] and heard.warnings[0].startswith("left out: ")
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["text"], int(row["n"])) for row in rows] == [("good", 1), ("the\nend", 2)]


def test_an_unclosed_quote_is_never_a_row_to_leave_out(student: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text('text,n\n"unclosed, question\n' + "good,1\n" * 120)
    for skip in (False, True):
        with pytest.raises(DataError, match="input_file: .*in.csv: the quote opened in line 2 is never closed; lines 2-122 cannot be") as error:
            predict_file(student, source, tmp_path / "out.csv", runtime="torch", skip_bad_rows=skip)
        assert "skip_bad_rows" not in str(error.value)


def test_a_row_group_without_a_text_names_its_row(student: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", pd.DataFrame({"text": ["good", None, "bad"], "n": [1, 2, 3]}))
    with pytest.raises(DataError, match="1 bad row: row 2: column 'text': no text"):
        predict_file(student, source, tmp_path / "out.parquet", runtime="torch")
    predict_file(student, source, tmp_path / "out.parquet", runtime="torch", skip_bad_rows=True)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["n"].to_pylist() == [1, 3] and str(table.schema.field("n").type) == "int64"


def test_bytes_before_and_line_breaks_within_cells_are_no_trouble(student: Path, tmp_path: Path) -> None:
    cells = ['a "good" film', "the\nend", "the\r\nend", "bad,\rbad", " good "]
    table = pd.DataFrame({"text": cells, "n": ["1", "", "007", "null", "x"]})
    (tmp_path / "in.csv").write_bytes(b"\xef\xbb\xbf" + table.to_csv(index=False, quoting=1).encode())
    predict_file(student, tmp_path / "in.csv", tmp_path / "middle.tsv", runtime="torch")
    middle = (tmp_path / "middle.tsv").read_bytes().replace(b"prediction", b"p1").replace(b"probability", b"q1")
    (tmp_path / "middle2.tsv").write_bytes(middle)
    predict_file(student, tmp_path / "middle2.tsv", tmp_path / "out.parquet", runtime="torch")
    found = pd.read_parquet(tmp_path / "out.parquet")
    assert found["text"].tolist() == cells and found["n"].tolist() == table["n"].tolist()
    assert found["p1"].tolist() == found["prediction"].tolist()


def test_values_of_any_kind_pass_through(student: Path, tmp_path: Path) -> None:
    rows = [{"text": "good", "a": {"x": [1, None]}, "b": 1}, {"text": "bad", "b": 0.5, "c": "\ud800"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    predict_file(student, tmp_path / "in.jsonl", tmp_path / "out.jsonl", runtime="torch")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [{key: row[key] for key in row if not key.startswith("pr")} for row in found] == rows
    rows[1].pop("c")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    predict_file(student, tmp_path / "in.jsonl", tmp_path / "out.parquet", runtime="torch")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["b"].to_pylist() == [1.0, 0.5] and table["a"].to_pylist() == [{"x": [1, None]}, None]
    (tmp_path / "in.jsonl").write_text('{"text": "good", "b": 1}\n{"text": "good", "b": "x"}\n')
    with pytest.raises(DataError, match="column 'b' has no type that parquet knows .*choices: an output_file that ends in .jsonl"):
        predict_file(student, tmp_path / "in.jsonl", tmp_path / "mixed.parquet", runtime="torch")


@pytest.mark.parametrize(("name", "content"), [("in.jsonl", ""), ("in.txt", ""), ("in.tsv", "id\ttext\n")])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_files_without_rows_give_files_without_rows(student: Path, tmp_path: Path, name: str, content: str, suffix: str) -> None:
    (tmp_path / name).write_text(content)
    assert predict_file(student, tmp_path / name, tmp_path / f"out{suffix}", runtime="torch") == 0
    table = read(tmp_path / f"out{suffix}")
    assert len(table) == 0 and list(table.columns)[-4:-2] == ["prediction", "probability_neg"] and "text" in table.columns


def test_columns_are_not_overwritten(student: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", pd.DataFrame({"text": TEXTS, "probability_neu": TEXTS}))
    with pytest.raises(DataError, match="column 'probability_neu' is there already"):
        predict_file(student, source, tmp_path / "out.csv", runtime="torch")


def test_the_saved_temperature_moves_probabilities_and_no_prediction(student: Path, tmp_path: Path) -> None:
    Calibration(2.5, "validation", 100, 1.0, 0.9, 0.2, 0.1).save(student)
    source = write(tmp_path / "in.txt", pd.DataFrame({"text": TEXTS}))
    found = {}
    for calibrated, temperature in ((True, 2.5), (False, 1.0)):
        predict_file(student, source, tmp_path / f"{calibrated}.csv", runtime="torch", calibrated=calibrated)
        found[calibrated] = read(tmp_path / f"{calibrated}.csv")
        expected = [(torch.from_numpy(by_hand(student, text)) / temperature).softmax(-1)[2].item() for text in TEXTS]
        np.testing.assert_allclose(found[calibrated]["probability_pos"], expected, atol=1e-5)
    assert found[True]["prediction"].tolist() == found[False]["prediction"].tolist()


@pytest.mark.usefixtures("small_chunks")
def test_the_unsure_part_of_every_chunk_goes_to_the_teacher(student: Path, tmp_path: Path) -> None:
    teacher = make_classifier(tmp_path / "teacher")
    source = write(tmp_path / "in.txt", pd.DataFrame({"text": TEXTS}))
    heard = Heard()
    predict_file(
        student, source, tmp_path / "out.csv", runtime="torch", cascade_teacher=teacher, cascade_share=0.34, progress=heard
    )
    table = read(tmp_path / "out.csv")
    assert [table["answered_by"][part].tolist().count("teacher") for part in (slice(0, 3), slice(3, 6), slice(6, 7))] == [1, 1, 0]
    assert heard.messages == ["the teacher answered 2 of 7 texts (28.6%)"]
    for row in table.to_dict("records"):
        by = {"student": student, "teacher": teacher}[row["answered_by"]]
        expected = torch.from_numpy(by_hand(by, row["text"])).softmax(-1)
        assert row["probability_pos"] == pytest.approx(expected[2].item(), abs=1e-5)
    cascade = Cascade(TextClassifier(student, runtime="torch"), TextClassifier(teacher, runtime="torch"), threshold=0.7)
    predict_file(student, source, tmp_path / "out2.csv", runtime="torch", cascade_teacher=teacher, cascade_threshold=0.7)
    assert read(tmp_path / "out2.csv")["prediction"].tolist() == cascade.answer(TEXTS).predictions


def test_cascades_are_checked_first(student: Path, tmp_path: Path) -> None:
    run = {"student_dir": student, "input_file": tmp_path / "absent.csv", "output_file": tmp_path / "o.csv"}
    for change, says in (
        ({"cascade_teacher": student}, "a teacher needs one of the two"),
        ({"cascade_teacher": student, "cascade_share": 2.0}, "cascade_share: 2.0 is out of range"),
        ({"cascade_teacher": tmp_path, "cascade_share": 0.5}, "cascade_teacher: .* is no model folder"),
        ({"cascade_threshold": 0.5}, "cascade_teacher: none given"),
        ({"input_file": Path("-"), "text_pair_column": "b"}, "text_pair_column: 'b': lines of standard input have one"),
    ):
        with pytest.raises(ConfigError, match=says):
            predict_file(**{**run, **change})


def test_a_model_of_pairs_answers_no_single_text_nor_the_other_way_round(student: Path, tmp_path: Path) -> None:
    pairs, single = (make_classifier(tmp_path / name, is_pair=name == "pairs") for name in ("pairs", "single"))
    source = write(tmp_path / "in.csv", pd.DataFrame({"text": TEXTS, "other": TEXTS}))
    for folder, columns, says in (
        (pairs, {}, "text_pair_column: none given; the model was trained on pairs of texts; choices: "),
        (single, {"text_pair_column": "other"}, "text_pair_column: given; the model was trained on single texts; choices: "),
    ):
        with pytest.raises(ConfigError, match=says):
            predict_file(folder, source, tmp_path / "out.csv", **columns)
        with pytest.raises(ConfigError, match=says.replace("text_pair_column", "pairs")):
            TextClassifier(folder, runtime="torch").answer(TEXTS, TEXTS if columns else None)
    for folder, columns in ((pairs, {"text_pair_column": "other"}), (single, {}), (student, {}), (student, {"text_pair_column": "other"})):
        predict_file(folder, source, tmp_path / f"{folder.name}-{len(columns)}.csv", **columns)  # a model that does not say takes both
    with pytest.raises(ModelError, match="cascade: the student was trained on single texts, the teacher on pairs of texts"):
        Cascade(TextClassifier(single, runtime="torch"), TextClassifier(pairs, runtime="torch"), threshold=0.5)


def test_a_broken_model_is_an_error_not_a_prediction(student: Path, tmp_path: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(student)
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    model.save_pretrained(student)
    source = write(tmp_path / "in.txt", pd.DataFrame({"text": TEXTS}))
    with pytest.raises(ModelError, match="logits are not finite"):
        predict_file(student, source, tmp_path / "out.csv", runtime="torch")


def test_a_text_without_any_piece_is_a_text(student: Path) -> None:
    """A tokenizer without special tokens has nothing to say of an empty text."""
    classifier = TextClassifier(student, runtime="torch")
    classifier.tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    alone, beside = classifier.answer(["", ""]), classifier.answer(["", "a good film"])
    np.testing.assert_allclose(alone.logits_NC[0], beside.logits_NC[0], atol=1e-5)
    assert np.isfinite(alone.logits_NC).all()


def test_the_tokenizer_is_the_one_transformers_calls(student: Path) -> None:
    """The fast way to word pieces gives those of the usual call, cut pairs and empty texts included."""
    classifier = TextClassifier(student, runtime="torch")
    texts, pairs = [*TEXTS, "very " * 30, "a " * 12], [*PAIRS, "the end", "film " * 12]
    for second in (None, pairs):
        usual = PreTrainedTokenizerFast.from_pretrained(student)(texts, second, truncation=True, max_length=16)
        ids, is_cut_N = served_pieces(classifier.tokenizer, texts, second, classifier.limit)
        assert ids == usual["input_ids"] and np.flatnonzero(is_cut_N).tolist() == ([len(TEXTS), len(TEXTS) + 1] if second else [len(TEXTS)])
        for rows, batch in classifier._batches(ids, second is not None):
            for types, row in zip(batch["token_type_ids"], rows):
                assert types[: len(ids[row])].tolist() == usual["token_type_ids"][row]


def test_a_full_disk_leaves_what_was_done(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in.txt", pd.DataFrame({"text": TEXTS}))

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chunks, "CHUNK_ROWS", 3)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(TrainingError, match="No space left on device"):
            predict_file(student, source, tmp_path / "out.csv", runtime="torch")
    assert predict_file(student, source, tmp_path / "out.csv", runtime="torch") == 7


def test_pictures_in_a_models_folder_change_no_answer(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_text("graph")
    before = predict._fingerprint(tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "cell.svg").write_text("drawn")
    assert predict._fingerprint(tmp_path) == before
    (tmp_path / "onnx" / "model.onnx").write_text("another")
    assert predict._fingerprint(tmp_path) != before


def test_one_tag_is_a_set_of_labels_and_no_score(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "toxic", "multi_label_classification", labels=1)
    model = TextClassifier(folder, runtime="torch", threads=1)
    answers = model.answer(["good film", "bad film", "the end"])
    assert model.labels == ["neg"] and model.is_multi_label and answers.probabilities_NC.shape == (3, 1)
    assert answers.predictions == ["neg" if logit > 0 else "" for logit in answers.logits_NC[:, 0]]
    amounts = TextClassifier(make_classifier(tmp_path / "stars", "regression", labels=1), runtime="torch", threads=1)
    assert amounts.labels == [] and amounts.answer(["good film"]).probabilities_NC is None


def test_a_tokenizer_without_padding_is_refused_in_words(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            settings = json.loads((folder / name).read_text())
            settings.pop("pad_token", None)
            (folder / name).write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="its tokenizer has no padding token, so texts make no batch"):
        TextClassifier(folder, runtime="torch")


def test_a_stream_is_utf_8_whatever_the_locale() -> None:
    schema, rows = pa.schema([("text", pa.string())]), [{"text": "café ☕"}]
    for encoding in ("ascii", "latin-1", "utf-8"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        stream.write("first ")
        write_stream(stream, rows, schema)
        assert stream.buffer.getvalue() == 'first {"text": "café ☕"}\n'.encode()
    write_stream(text := io.StringIO(), rows, schema)  # one without bytes
    assert text.getvalue() == '{"text": "café ☕"}\n'
