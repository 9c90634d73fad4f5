"""Laws of tasks: what is read equals what was written, and every bad input is one line with its place and choices."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hearing import Heard
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from adasearch.chunks import RowFile
from adasearch.config import TaskConfig
from adasearch.errors import AdasearchError, ConfigError, DataError, ModelError
from adasearch.sources import PRESETS
from adasearch.tables import read_table
from adasearch.tasks import Task, demo_task, hold_out, load_task
from adasearch.texts import Split, split_sentences, tokenize

WORDS = "the film is good bad long fine dull".split()


def _rows(count: int = 40) -> pd.DataFrame:
    """Texts with commas, quotes, line breaks and empty-looking words; labels neg and pos in turn."""
    odd = ["plain", "a, b", 'say "hi"', "two\nlines", "NA", "null", "caf\u00e9 \u2028 x", "12"]
    texts = [odd[i % 8] if i % 8 == 4 else f"{odd[i % 8]} {i}" for i in range(count)]
    return pd.DataFrame({"text": texts, "label": ["neg", "pos"] * (count // 2)})


def _write(frame: pd.DataFrame, path: Path) -> str:
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")), encoding="utf-8")
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


def _jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def _csv(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def _load(train: str, **settings: Any) -> Task:
    return load_task(TaskConfig(train_file=train, **settings))


def _error(train: str, **settings: Any) -> str:
    """The one line that loading ends with."""
    with pytest.raises(AdasearchError) as caught:
        _load(train, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- files ---


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_reads_the_same(tmp_path: Path, suffix: str) -> None:
    frame = _rows()
    train, test = _write(frame, tmp_path / f"train{suffix}"), _write(frame[:7], tmp_path / f"test{suffix}")
    task = _load(train, validation_file=train, test_file=test)
    assert task.train.texts == frame["text"].tolist()
    assert (task.label_names, task.problem_type, task.is_pair) == (("neg", "pos"), "single_label", False)
    assert task.train.labels.tolist() == [0, 1] * 20 and task.train.labels.dtype == np.int64
    assert task.held_out is task.test and len(task.test) == 7
    assert any("taken for single_label" in note for note in task.notes)


def test_columns_without_a_name_that_hold_nothing_are_left_out(tmp_path: Path) -> None:
    """Excel adds them behind the last."""
    path = _csv(tmp_path / "t.csv", "text,label,,\n" + "fine,a,,\ndull,b,,\n" * 5)
    assert set(read_table(Path(path), "train_file").columns) == {"text", "label"} and len(_load(path, validation_file=path).train) == 10
    assert [row.values for row in RowFile(Path(path), ("text",), "input_file").rows()][0] == {"text": "fine", "label": "a"}


def test_lists_as_a_program_writes_them_are_no_names(tmp_path: Path) -> None:
    lines = "".join(f"film {i},\"['a', 'b']\"\n" for i in range(6))
    message = _error(_csv(tmp_path / "t.csv", f"text,label\n{lines}"), problem_type="multi_label")
    assert "\"['a', 'b']\" is a list as a program writes it; expected: the labels of each example by name, such as spam|urgent" in message


def test_what_was_guessed_shows_stray_labels(tmp_path: Path) -> None:
    def note(*labels: str) -> str:
        path = _csv(tmp_path / "t.csv", "text,label\n" + "".join(f"film {i},{label}\n" for i, label in enumerate(labels)))
        return next(note for note in _load(path, validation_file=path).notes if "taken for" in note)

    assert note(*["pos", "neg"] * 3, "pos").endswith("taken for single_label with 2 labels (pos 4, neg 3); problem_type overrules it")
    assert "; is 'nan' a label?" in note(*["pos", "neg", "nan"] * 2) and "'spam' stands in several spellings" in note(*["Spam", "spam", "ham"] * 2)
    assert "'caf\u00e9' stands in several spellings" in note(*["caf\u00e9", "cafe\u0301", "tea"] * 2), "an accent is a character or a mark of its own"


def test_an_empty_gold_column_beside_soft_labels_is_none(tmp_path: Path) -> None:
    path = _csv(tmp_path / "t.csv", "text,label,p_no,p_yes\n" + "fine,,0.1,0.9\ndull,,0.8,0.2\n" * 5)
    task = _load(path, validation_file=path, soft_label_columns=["p_no", "p_yes"])
    assert task.label_names == ("no", "yes") and any("is empty: the likeliest soft label stands in" in note for note in task.notes)
    nothing = _csv(tmp_path / "none.csv", "text,label\n" + "fine,\ndull,\n" * 5)
    assert "no label in 10 examples" in _error(nothing, problem_type="multi_label")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data_dir": "somewhere"}, "data_dir: somewhere is not read where a file is named"),
        ({"task": "sst2", "train_file": None, "text_column": "message"}, "text_column: 'message' is not read: task 'sst2' has sentence, label"),
        ({"task": "demo", "train_file": None, "data_dir": "d", "label_column": "y"}, "the demo brings its own data, for which there is no data_dir, no label_column"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    path = _csv(tmp_path / "t.csv", "text,label\nfine,a\ndull,b\n")
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_task(TaskConfig(**{"train_file": path, **settings}))


def test_line_numbers_count_header_and_quoted_line_breaks(tmp_path: Path) -> None:
    path = _csv(tmp_path / "t.csv", 'text,label\n"two\nlines",a\n\n,b\nfine,a\none,two,three\nfine,b\n" ",c\n')
    message = _error(path)
    empty, long = "column 'text': empty text", "3 fields where the header has 2"
    assert message.startswith(f"{path}: 3 bad rows: line 5: {empty}; line 7: {long}; line 9: {empty}. Mend them")
    table = read_table(Path(path), "train_file")
    assert list(table.numbers) == [2, 5, 6, 8, 9]


def test_bad_rows_are_all_counted_and_five_are_shown(tmp_path: Path) -> None:
    good = [{"text": "fine", "label": i % 2} for i in range(20)]
    path = _jsonl(tmp_path / "t.jsonl", good + [{"text": None, "label": 0}] * 4 + [{"text": " ", "label": 1}] * 4)
    message = _error(path)
    assert "8 bad rows: line 21: column 'text': no text;" in message
    assert "line 25: column 'text': empty text; and 3 more." in message
    task = _load(path, validation_file=path, skip_bad_rows=True)
    assert len(task.train) == len(task.validation) == 20
    assert sum("left out" in note and "8 bad rows" in note for note in task.notes) == 2


@pytest.mark.parametrize("tags", [("a", "b"), ("a|b", "b")])
def test_a_label_of_rows_that_are_left_out_is_none(tmp_path: Path, tags: tuple[str, str]) -> None:
    rows = "".join(f"film {i},{tags[i % 2]}\n" for i in range(20))
    path = _csv(tmp_path / "t.csv", f"text,label\n{rows} ,weird\n ,weird\n")
    for settings in ({}, {"validation_file": _csv(tmp_path / "v.csv", f"text,label\n{rows}")}):
        task = _load(path, skip_bad_rows=True, **settings)
        assert task.label_names == ("a", "b") and not any("weird" in note for note in task.notes)


@pytest.mark.parametrize("settings", [{"text_pair_column": "text"}, {"label_column": "text"}, {"soft_label_columns": ["p", "p"]}])
def test_a_column_is_one_thing_only(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = _csv(tmp_path / "t.csv", "text,label,p\n" + "fine,a,0.5\ndull,b,0.5\n" * 9)
    with pytest.raises(ConfigError, match=r"text_pair_column, .*: '(text|p)' stands there twice; choices: a column of its own for each"):
        _load(path, **settings)


def test_numbers_that_no_float_holds_are_names_and_no_amounts(tmp_path: Path) -> None:
    for digits in (400, 5_000):  # Python reads no whole number of more than 4,300
        ids = ["9" * digits, "1" + "0" * digits]
        rows = "".join(f"film {i},{ids[i % 2]}\n" for i in range(20))
        assert set(_load(_csv(tmp_path / "t.csv", f"text,label\n{rows}")).label_names) == set(ids)
    amounts = [{"text": f"film {i}", "label": i} for i in range(20)]
    amounts = _jsonl(tmp_path / "r.jsonl", [*amounts, {"text": "film", "label": 10**400}, {"text": "film", "label": 1e39}])
    message = _error(amounts, problem_type="regression")
    assert "line 21: column 'label': label '1000" in message and message.count("is too large for float32") == 1
    shares = [{"text": f"film {i}", "p_a": 1 - i % 2, "p_b": i % 2} for i in range(20)]
    soft = _jsonl(tmp_path / "s.jsonl", [*shares, {"text": "film", "p_a": 10**400, "p_b": 0}])
    assert "line 21: column 'p_a': soft label 1000" in _error(soft, soft_label_columns=["p_a", "p_b"])


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["1E3", "1000", "2E1"], ("2E1", "1000", "1E3")),  # by size, and each its own
        (["1A5", "1B5", "1E5"], ("1A5", "1B5", "1E5")),
        (["1.0", "2.0"], ("1", "2")),
    ],
)
def test_codes_that_could_be_numbers_keep_their_names(tmp_path: Path, cells: list[str], names: tuple[str, ...]) -> None:
    rows = "".join(f"film {row},{cells[row % len(cells)]}\n" for row in range(30))
    path = _csv(tmp_path / "t.csv", f"text,label\n{rows}")
    task = _load(path, validation_file=path)
    assert task.label_names == names and len(task.train) == 30
    assert [names[label] for label in task.validation.labels[: len(cells)]] == [cell.removesuffix(".0") for cell in cells]


def test_amounts_may_be_written_with_exponents(tmp_path: Path) -> None:
    cells = ["1e-3", "0.5", "2E-1", "1"]
    path = _csv(tmp_path / "t.csv", "text,label\n" + "".join(f"film {row},{cells[row % 4]}\n" for row in range(20)))
    task = _load(path, validation_file=path)
    assert task.problem_type == "regression" and task.train.labels[:4].tolist() == pytest.approx([0.001, 0.5, 0.2, 1])


def test_an_unclosed_quote_is_never_a_row_to_leave_out(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('text,label\n"unclosed, question\n' + "good,1\n" * 120)
    for skip in (False, True):
        with pytest.raises(DataError, match=r"t.csv: the quote opened in line 2 is never closed; lines 2-122 cannot be told apart") as error:
            _load(path, skip_bad_rows=skip)
        assert "skip_bad_rows" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("absent.csv", None, r"train_file: .*absent.csv: no such file"),
        ("folder.csv", "folder", r"train_file: .* is a directory; expected: a file, .csv, .tsv, .jsonl, .parquet"),
        ("t.xlsx", b"x", r"unknown suffix '.xlsx'; choices: .csv, .tsv, .jsonl, .parquet"),
        ("t.csv", b"", r"t.csv: the file is empty"),
        ("t.csv", b"text,label\n", r"t.csv: no examples"),
        ("t.csv", b"text,label\nok,1\ncaf\xe9,0\n", r"t.csv: line 3: byte 0xe9 is not UTF-8"),
        ("t.csv", b'text,label\nok,1\n"open,0\nx,1\n', r"t.csv: the quote opened in line 3 is never closed; lines 3-4 cannot be told apart; choices: close it, or"),
        ("t.csv", b'text,label\nok,1\n"open,0\n', r"1 bad row: line 3: cannot be read \(unexpected end of data"),
        ("t.csv", b'text,label\n"open,0\nx,1\n"b",0\nc,1\n', r"1 bad row: line 2: .*lines 2-4 are taken for one row"),
        ("t.csv", b"text,text\na,b\n", r"line 1: a column name stands twice: text, text"),
        ("t.csv", b"text,label,,\na,1,,\nb,2,,x\nc,1,,\n", r"1 bad row: line 3: a field in a column without a name"),
        ("t.tsv", b'text\tlabel\n"I came.\tpos\nI saw."\tneg\nfine\tpos\n', r"1 bad row: line 2: a quoted field runs over tabs and lines"),
        ("t.jsonl", b'{"text": "a", "label": [0.0, 1.0]}\n{"text": "b", "label": [1.0, 1.0]}\n', r"lists of 0 and 1; expected: the labels of each"),
        ("t.csv", b"body,label\nok,1\nno,0\n", r"t.csv: text_column: no column 'text'; columns: body, label"),
        ("t.csv", b"text,stars\nok,1\nno,0\n", r"t.csv: label_column: no column 'label'; columns: text, stars"),
        ("t.csv", b"text;label\nok;1\nno;0\n", r"columns: text;label; the file seems to be separated by ';'; save it with commas"),
        ("t.csv", b"text\tlabel\nok\t1\n", r"the file seems to be separated by tabs; name it .tsv"),
        ("t.csv", b"Text,label\nok,1\nno,0\n", r"no column 'text'; columns: Text, label; did you mean 'Text'\?"),
        ("t.csv", b"text,label\nok,\nno,1\nna,0\n", r"line 2: column 'label': no label"),
        ("t.csv", b"text,label\na,pos\nb,neg\nc,3\nd,pos\n", r"line 4: column 'label': 3 is a number where .* text"),
        ("t.csv", b"text,label\na,1\nb,1\nc,1\n", r"column 'label': only one class, '1', in 3 examples"),
        ("t.csv", b"text,label\na,x\nb,x\nc,y\n", r"1 of 2 labels have one example only: y; each needs two, one of which is held out; choices: "),
        ("t.csv", b"text,label\na,4\nb,4\nc,5\n", r"only: 5; each needs two, .*if they are amounts: problem_type regression"),
        ("t.csv", b"text,label\na,this is\nb,a text\nc,by mistake\n", r"3 of 3 values stand in one row only: it looks like a text column; label_column\?"),
        ("t.jsonl", b'{"text": "a", "label": 1}\n{"text": \n[1]\n', r"2 bad rows: line 2: no JSON .*; line 3: a JSON"),
        ("t.jsonl", b"oops\n", r"1 bad row: line 1: no JSON"),
        ("t.jsonl", b'{"text": "a", "label": 1}\n{"text": 5, "label": 0}', r"line 2: column 'text': 5 is not a text"),
        ("t.jsonl", b'{"text": "\\ud83d", "label": 1}\n{"text": "b", "label": 0}', r"line 1: column 'text': half"),
        ("t.jsonl", b'{"text": "a", "label": {}}\n{"text": "b", "label": {}}', r"labels are a dict; expected: texts"),
        ("t.parquet", b"PAR0", r"t.parquet: no parquet file can be read"),
    ],
)
def test_bad_file_is_one_clear_line(tmp_path: Path, name: str, content: bytes | str | None, expected: str) -> None:
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    assert pytest.raises(AdasearchError, _load, str(path)).match(expected)
    assert "\n" not in _error(str(path))


def test_a_class_of_one_example_is_left_out_or_kept_where_nothing_is_held_out(tmp_path: Path) -> None:
    """Numbers of the other classes close up; the test file loses its rows of that class as well."""
    rows = [("a", "x"), ("b", "rare"), ("c", "z"), ("d", "x"), ("e", "z")]
    train = _csv(tmp_path / "t.csv", "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    test = _csv(tmp_path / "test.csv", "text,label\nf,rare\ng,z\n")
    task = _load(train, test_file=test, skip_bad_rows=True)
    assert task.label_names == ("x", "z") and "left out: 1 of 3 labels have one example only: rare" in task.notes
    found = {text: task.label_names[label] for split in (task.train, task.validation) for text, label in zip(split.texts, split.labels)}
    assert found == {text: label for text, label in rows if label != "rare"}
    assert task.test.texts == ["g"] and task.test.labels.tolist() == [1]
    kept = _load(train, validation_file=test)
    assert kept.label_names == ("rare", "x", "z") and any("one example only: rare" in note for note in kept.notes)


def test_label_that_training_does_not_know(tmp_path: Path) -> None:
    train = _write(_rows(), tmp_path / "train.csv")
    held = _csv(tmp_path / "held.csv", "text,label\nfine,pos\nodd,maybe\n")
    message = _error(train, validation_file=held)
    assert f"{held}: 1 bad row: line 3: column 'label': unknown label 'maybe'; known: neg, pos" in message
    assert len(_load(train, validation_file=held, skip_bad_rows=True).validation) == 1


# --- labels ---


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([10, 9, 10, 9, -1, -1], ("-1", "9", "10")),
        ([1.0, 0.0, 1.0, 0.0], ("0", "1")),
        ([True, False, True, False], ("False", "True")),
        (["b", "a", "b", "a"], ("a", "b")),
        (["2", "10", "2", "10"], ("2", "10")),
        (["x1", "007", "x1", "007"], ("007", "x1")),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_labels_are_sorted(tmp_path: Path, values: list[Any], names: tuple[str, ...], suffix: str) -> None:
    """Numbers by size, all else by letter."""
    frame = pd.DataFrame({"text": [f"t{i}" for i in range(len(values))], "label": values})
    path = _write(frame, tmp_path / f"t{suffix}")
    task = _load(path, validation_file=path)
    assert task.label_names == names
    spelled = [str(int(v)) if type(v) is float else str(v) for v in values]
    assert [task.label_names[label] for label in task.train.labels] == spelled


def test_numbers_with_fractions_are_regression(tmp_path: Path) -> None:
    path = _csv(tmp_path / "t.csv", "text,label\na,1\nb,2.5\nc,-3e-1\n")
    task = _load(path, validation_file=path)
    assert (task.problem_type, task.label_names, task.metric) == ("regression", ("score",), "pearson")
    np.testing.assert_array_equal(task.train.labels, np.array([1, 2.5, -0.3], np.float32))
    assert _load(path, validation_file=path, metric="spearmanr").metrics == ("spearmanr", "pearson", "mse")


def test_regression_labels_are_finite_and_not_all_equal(tmp_path: Path) -> None:
    path = _csv(tmp_path / "t.csv", "text,label\na,1.5\nb,inf\nc,2\nd,many\n")
    message = _error(path, problem_type="regression")
    assert "line 3: column 'label': label 'inf' is not a finite number; line 5: column 'label': label 'many'" in message
    rows = pd.DataFrame({"text": ["a", "b", "c"], "label": [0.5, np.inf, np.nan]})
    message = _error(_write(rows, tmp_path / "t.parquet"))
    assert "row 2: column 'label': label inf is not a finite number; row 3: column 'label': no label" in message
    assert "only one value, 2.5, in 2" in _error(_csv(tmp_path / "s.csv", "text,label\na,2.5\nb,2.5\n"))


@pytest.mark.parametrize("as_list", [True, False])
def test_multi_label_sets(tmp_path: Path, as_list: bool) -> None:
    """Lists, or names joined by a bar; an empty set is a label too. Expected: the indicator matrix by hand."""
    sets = [["b", "a"], ["c"], [], ["a"], ["c", "b"]]
    labels = sets if as_list else ["|".join(tags) for tags in sets]
    frame = pd.DataFrame({"text": list("vwxyz"), "label": labels})
    path = _write(frame, tmp_path / ("t.jsonl" if as_list else "t.csv"))
    task = _load(path, validation_file=path)
    assert (task.problem_type, task.label_names, task.metric) == ("multi_label", ("a", "b", "c"), "f1_micro")
    expected = [[1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1]]
    np.testing.assert_array_equal(task.train.labels, np.array(expected, np.float32))


def test_multi_label_numbers_may_stand_alone(tmp_path: Path) -> None:
    path = _csv(tmp_path / "t.csv", "text,label\na,1|10\nb,2\nc,10\n")
    task = _load(path, validation_file=path)
    assert task.label_names == ("1", "2", "10")
    assert task.train.labels.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]


def test_class_labels_of_a_parquet_file_keep_their_names(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["good", "bad", "ugly"])})
    data = Dataset.from_dict({"text": list("abcdef"), "label": [0, 1, 2, 2, 1, 0]}, features=features)
    data.to_parquet(str(tmp_path / "t.parquet"))
    task = _load(str(tmp_path / "t.parquet"), validation_file=str(tmp_path / "t.parquet"))
    assert task.label_names == ("good", "bad", "ugly") and task.train.labels.tolist() == [0, 1, 2, 2, 1, 0]


# --- soft labels ---


def test_soft_labels_are_matched_by_name(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": ("neg", "pos")[i % 2], "p_pos": 0.1 * i, "p_neg": 1 - 0.1 * i} for i in range(8)]
    rows[3]["label"] = None  # the teacher knows; gold does not
    path = _jsonl(tmp_path / "t.jsonl", rows)
    task = _load(path, validation_file=path, soft_label_columns=["p_pos", "p_neg"])
    np.testing.assert_allclose(task.train.soft_labels, [[1 - 0.1 * i, 0.1 * i] for i in range(8)], atol=1e-6)
    assert task.train.labels.tolist() == [0, 1, 0, -100, 0, 1, 0, 1]


def test_likeliest_soft_label_stands_in_for_gold(tmp_path: Path) -> None:
    path = _csv(tmp_path / "t.csv", "text,spam,ham\na,0.9,0.1\nb,0.2,0.8\nc,0.3,0.7\n")
    task = _load(path, validation_file=path, soft_label_columns=["spam", "ham"])
    assert task.label_names == ("spam", "ham") and task.train.labels.tolist() == [0, 1, 1]
    assert any("stands in" in note for note in task.notes)


@pytest.mark.parametrize("share", [0.5, 0.4])
def test_soft_labels_that_stand_in_for_gold_ones_are_no_gold(tmp_path: Path, share: float) -> None:
    rows = [{"text": f"film {row}", "p_a": share if row % 2 else 0.9, "p_b": 0.2 + 0.6 * (row % 3 == 0)} for row in range(40)]
    path = _jsonl(tmp_path / "t.jsonl", rows)
    task = _load(path, validation_file=path, soft_label_columns=["p_a", "p_b"], problem_type="multi_label")
    assert not task.has_gold and task.train.labels[1].tolist() == [0, 0]


def test_only_examples_with_a_label_count_as_scored(tmp_path: Path) -> None:
    rows = [{"text": f"film {row}", "label": ("a", "b")[row % 2] if row < 12 else None, "a": 0.5, "b": 0.5} for row in range(40)]
    path = _jsonl(tmp_path / "t.jsonl", rows)
    task = _load(path, validation_file=path, soft_label_columns=["a", "b"])
    assert len(task.held_out) == 40 and task.scored == 12


def test_bad_soft_labels_are_named(tmp_path: Path) -> None:
    rows = ["a,x,nan,0.5", "b,y,-0.1,1.1", "c,x,0.5,0.4", "d,y,half,1", "e,x,0.9995,0"]
    path = _csv(tmp_path / "t.csv", "\n".join(["text,label,x,y", *rows]))
    message = _error(path, soft_label_columns=["x", "y"])
    assert "4 bad rows: line 2: column 'x': soft label 'nan' is not a probability; choices: 0 to 1; line 3: " in message
    assert "line 3: column 'x': soft label '-0.1' is not a probability" in message
    assert "line 4: column 'x+y': the soft labels sum to 0.9, not 1; line 5: column 'x': soft label 'half'" in message
    assert "columns: no column 'z'; columns: text, label, x, y" in _error(path, soft_label_columns=["x", "z"])
    path = _csv(tmp_path / "p.csv", "\n".join(["text,label,x,y", "a,x,0.2,0.1", "b,y,0.3,0.1", "c,x,0.5,0.5"]))
    message = _error(path, soft_label_columns=["x", "y"])
    assert "in 2 of 3 rows they sum to less than 1 (line 2: 0.3); is a label's column missing in soft_label_columns?" in message
    assert "1 columns (x) for the 2 labels of column 'label' (x, y)" in _error(path, soft_label_columns=["x"])


@pytest.mark.parametrize("cells", ["93%,5%,2%", "high,low,low"])
def test_soft_labels_that_are_no_numbers_are_not_summed(tmp_path: Path, cells: str) -> None:
    rows = [f"t{i},{cells}" for i in range(20)]
    path = _csv(tmp_path / "t.csv", "\n".join(["text,x,y,z", *rows]))
    message = _error(path, soft_label_columns=["x", "y", "z"])
    assert f"20 bad rows: line 2: column 'x': soft label '{cells.split(',')[0]}' is not a number" in message and "sum to" not in message
    path = _csv(tmp_path / "few.csv", "\n".join(["text,x,y,z", *rows, "a,0.2,0.1,0", "b,0.3,0.1,0.1"]))  # of what can be read, all are short
    assert "in 2 of 2 rows they sum to less than 1 (line 22: 0.3)" in _error(path, soft_label_columns=["x", "y", "z"])


@pytest.mark.parametrize(("labels", "digits"), [(2, 2), (4, 3), (10, 3), (20, 3), (5, 2)])
def test_rounded_probabilities_are_taken_and_made_whole(tmp_path: Path, labels: int, digits: int) -> None:
    """Rounding moves the sum of many labels far; a row that is off by more is still refused."""
    exact_NC = np.random.default_rng(labels).dirichlet(np.ones(labels), size=200)
    names = [f"p_{index}" for index in range(labels)]
    rows = [{"text": f"t{row}", **{name: f"{share:.{digits}f}" for name, share in zip(names, shares)}} for row, shares in enumerate(exact_NC)]
    path = _write(pd.DataFrame(rows), tmp_path / "t.csv")
    found_NC = _load(path, validation_file=path, soft_label_columns=names).train.soft_labels
    np.testing.assert_allclose(found_NC.sum(1), 1, atol=1.1e-3)
    np.testing.assert_allclose(found_NC, exact_NC, atol=0.5 * (labels + 1) * 10.0**-digits)
    rows[0].update(dict.fromkeys(names, "0.1") | {names[0]: "0.2" if labels == 10 else "0.1"})
    assert "1 bad row" in _error(_write(pd.DataFrame(rows), tmp_path / "off.csv"), soft_label_columns=names)


# --- splits and sources ---


def test_examples_without_a_gold_label_are_not_held_out(tmp_path: Path) -> None:
    """There is nothing to score in them; the soft labels teach."""
    rows = [{"text": f"t{i}", "label": ("neg", "pos")[i % 2] if i < 40 else None, "p_neg": 0.5, "p_pos": 0.5} for i in range(400)]
    task = _load(_jsonl(tmp_path / "t.jsonl", rows), soft_label_columns=["p_neg", "p_pos"])
    assert Counter(task.validation.labels.tolist()) == {0: 2, 1: 2} and len(task.train) == 396


def test_held_out_examples_are_stratified_and_drawn_by_seed(tmp_path: Path) -> None:
    labels = ["a"] * 100 + ["b"] * 50 + ["c"] * 2
    path = _write(pd.DataFrame({"text": [f"t{i}" for i in range(152)], "label": labels}), tmp_path / "t.csv")
    tasks = [load_task(TaskConfig(train_file=path), seed=seed) for seed in (1, 1, 2)]
    assert Counter(tasks[0].validation.labels.tolist()) == {0: 10, 1: 5, 2: 1}
    assert sorted(tasks[0].train.texts + tasks[0].validation.texts) == sorted(f"t{i}" for i in range(152))
    assert tasks[0].validation.texts == tasks[1].validation.texts != tasks[2].validation.texts
    assert tasks[0].metrics == ("accuracy", "f1_macro")  # 63% of the held-out examples are of one class


def test_fewer_training_examples_keep_the_classes_and_grow_into_one_another(tmp_path: Path) -> None:
    """A learning curve needs draws that differ in size alone: of each class its share, the smaller within the larger, held-out texts as before."""
    labels = ["a"] * 100 + ["b"] * 50 + ["c"] * 10
    path = _write(pd.DataFrame({"text": [f"t{i}" for i in range(160)], "label": labels}), tmp_path / "t.csv")
    whole = _load(path)
    sizes = (16, 40, 144)
    few, more, all_of_them = (_load(path, max_train_examples=size) for size in sizes)
    assert Counter(whole.train.labels.tolist()) == {0: 90, 1: 45, 2: 9}
    assert Counter(few.train.labels.tolist()) == {0: 10, 1: 5, 2: 1}
    assert [len(task.train) for task in (few, more, all_of_them)] == list(sizes)
    assert {*few.train.texts} < {*more.train.texts} < {*all_of_them.train.texts} == {*whole.train.texts}
    assert few.train.texts == sorted(few.train.texts, key=whole.train.texts.index), "in their order"
    assert few.validation.texts == whole.validation.texts, "held out as if all were learned from"
    assert any("16 of 144 training examples" in note for note in few.notes) and not any("max_train" in note for note in all_of_them.notes)
    again, other = (load_task(TaskConfig(train_file=path, max_train_examples=16), seed=seed) for seed in (42, 1))
    assert again.train.texts == few.train.texts and {*other.train.texts} != {*few.train.texts}


def test_a_draw_without_one_of_the_labels_says_how_many_it_takes(tmp_path: Path) -> None:
    labels = ["a"] * 100 + ["b"] * 20
    path = _write(pd.DataFrame({"text": [f"t{i}" for i in range(120)], "label": labels}), tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"max_train_examples: of 2 examples none has the label 'b'; choices: (\d+) or more") as told:
        _load(path, max_train_examples=2)
    enough = int(re.search(r"(\d+) or more", str(told.value))[1])
    assert {*_load(path, max_train_examples=enough).train.labels.tolist()} == {0, 1}
    with pytest.raises(DataError, match="none has the label"):
        _load(path, max_train_examples=enough - 1)


def test_fewer_examples_of_numbers_and_of_texts_without_a_gold_label(tmp_path: Path) -> None:
    numbers = _write(pd.DataFrame({"text": [f"t{i}" for i in range(60)], "label": [i / 7 for i in range(60)]}), tmp_path / "n.csv")
    assert len(_load(numbers, max_train_examples=20).train) == 20
    rows = [{"text": f"t{i}", "label": ("neg", "pos")[i % 2] if i < 40 else None, "p_neg": 0.5, "p_pos": 0.5} for i in range(400)]
    soft = _load(_jsonl(tmp_path / "t.jsonl", rows), soft_label_columns=["p_neg", "p_pos"], max_train_examples=44)
    assert Counter(soft.train.labels.tolist()) == {-100: 40, 0: 2, 1: 2} and len(soft.train.soft_labels) == 44


def _held_out_by_rows(labels: np.ndarray, seed: int) -> list[int]:
    """The rows that are held out where no text stands in two of them, drawn class by class."""
    generator = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)] if labels.dtype == np.int64 else [np.arange(len(labels))]
    return sorted(row for rows in classes for row in generator.permutation(rows)[: max(round(0.1 * len(rows)), 1)].tolist())


@pytest.mark.parametrize("labels", [np.arange(101) % 3, np.linspace(0, 1, 101, dtype=np.float32)], ids=["classes", "numbers"])
def test_texts_that_all_differ_are_held_out_row_by_row(labels: np.ndarray) -> None:
    _, held = hold_out(Split([str(row) for row in range(len(labels))], labels=labels), seed=5)
    assert [int(text) for text in held.texts] == _held_out_by_rows(labels, 5)


def test_a_text_is_held_out_in_all_its_rows_or_in_none() -> None:
    repeated = Split([f"film {row % 20}" for row in range(200)], labels=np.arange(200) % 2)
    train, held = hold_out(repeated, seed=1)
    assert len(held) == 20 and not {*train.texts} & {*held.texts} and Counter(held.labels.tolist()) == {0: 10, 1: 10}
    # one text is most of a class: the others are held out; a class of one text alone is parted by rows
    skewed = Split([*["the same"] * 50, *map(str, range(10)), "alone", "alone"], labels=np.array([0] * 60 + [1] * 2))
    train, held = hold_out(skewed, seed=1)
    assert sum(text.isdigit() for text in held.texts) == 6 and held.texts.count("alone") == 1 and "the same" not in held.texts
    big = Split([*["a"] * 20, *["b"] * 30], labels=np.zeros(50, np.int64))
    assert hold_out(big, seed=1)[1].texts == ["a"] * 20, "neither fits into a tenth: the one with fewer rows"
    pairs = Split(["a", "a", "a", "b"] * 5, [*"xxyz"] * 5, labels=np.zeros(20, np.int64))
    train, held = hold_out(pairs, seed=1)
    assert not {*zip(train.texts, train.pairs)} & {*zip(held.texts, held.pairs)}, "both texts make a pair"


def test_copies_across_the_splits_are_counted(tmp_path: Path) -> None:
    train = _csv(tmp_path / "t.csv", "text,other,label\na,1,x\na,1,x\nb,2,y\nc,3,y\n")
    held = _csv(tmp_path / "v.csv", "text,other,label\na,1,x\nb,9,y\nd,4,x\na,1,y\n")
    said = "held-out texts also stand in the training texts"
    assert any(note.startswith(f"3 of 4 {said}") for note in _load(train, validation_file=held).notes)
    assert any(note.startswith(f"2 of 4 {said}") for note in _load(train, validation_file=held, text_pair_column="other").notes)
    assert not any(said in note for note in _load(_write(_rows(), tmp_path / "all.csv")).notes)
    tested = _load(train, validation_file=held, test_file=_csv(tmp_path / "e.csv", "text,other,label\ne,1,x\nf,1,y\n"))
    assert any(note.startswith("3 of 4 validation texts also stand in the training texts") for note in tested.notes), "it is chosen by"
    assert not any(said in note for note in tested.notes)


def test_preset_from_a_folder_with_hidden_test_labels(tmp_path: Path) -> None:
    (tmp_path / "mrpc").mkdir()
    for split, labels in {"train": [0, 1, 1, 0, -1], "validation": [1, 0], "test": [-1, -1]}.items():
        texts = [f"{split} {i}" for i in range(len(labels))]
        frame = pd.DataFrame({"sentence1": texts, "sentence2": texts[::-1], "label": labels, "idx": range(len(labels))})
        frame.to_parquet(tmp_path / "mrpc" / f"{split}.parquet")
    task = load_task(TaskConfig(task="mrpc", data_dir=str(tmp_path)))
    assert task.is_pair and task.train.pairs == ["train 4", "train 3", "train 2", "train 1"]
    assert (task.label_names, task.metrics) == (("not_equivalent", "equivalent"), ("accuracy", "f1"))
    assert task.test is None and task.held_out is task.validation
    assert any("1 rows without a label" in note for note in task.notes)
    assert any("labels are hidden" in note for note in task.notes)
    for name, expected in (("rte", "rte is not a folder; folders in .*: mrpc"), ("mrcp", "did you mean 'mrpc'")):
        config = TaskConfig(task=name, data_dir=str(tmp_path) if name == "rte" else None)
        assert pytest.raises(ConfigError, load_task, config).match(expected)


def test_glue_presets_are_complete() -> None:
    glue = {name: preset for name, preset in PRESETS.items() if preset.hub.startswith("nyu-mll/glue:")}
    assert set(glue) == {"sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "cola", "stsb"}
    assert all(preset.hub.endswith(f":{name}") for name, preset in glue.items())
    assert {name for name, preset in glue.items() if preset.pair is None} == {"sst2", "cola"}
    assert {name: preset.metrics[0] for name, preset in glue.items() if preset.metrics[0] != "accuracy"} == {
        "cola": "matthews_correlation",
        "stsb": "pearson",
    }


# Text columns and label names in the order of their numbers, as the data cards have them (nyu-mll/glue's: ``glue.py`` of ``datasets``)
PUBLISHED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sst2": (("sentence",), ("negative", "positive")),
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment")),
    "rte": (("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "stsb": (("sentence1", "sentence2"), ("score",)),
    "snli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "imdb": (("text",), ("neg", "pos")),
    "rotten_tomatoes": (("text",), ("neg", "pos")),
    "ag_news": (("text",), ("World", "Sports", "Business", "Sci/Tech")),
    "squad": (("question", "context"), ("start", "end")),
}


def test_presets_have_the_published_columns_and_order_of_labels() -> None:
    """A published label is a number: names in another order would turn every prediction's meaning round, and no score would show it."""
    found = {name: ((preset.text, *([preset.pair] if preset.pair else [])), preset.label_names) for name, preset in PRESETS.items()}
    assert found == PUBLISHED


def test_hub_data_set_with_its_own_label_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``datasets`` reads a folder called like a hub id as that data set; no network."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["yes", "no"])})
    for split, labels in {"train": [0, 1] * 20, "dev": [1, 0, -1], "test": [-1, -1]}.items():
        texts = [f"{split} {i}" for i in range(len(labels))]
        data = Dataset.from_dict({"text": texts, "label": labels}, features=features)
        data.to_parquet(str(tmp_path / "someone" / "answers" / f"{split}.parquet"))
    monkeypatch.chdir(tmp_path)
    task = load_task(TaskConfig(task="someone/answers"))
    assert task.label_names == ("yes", "no") and task.train.labels.tolist() == [0, 1] * 20
    assert task.validation.texts == ["dev 0", "dev 1"] and task.test is None


def test_demo_is_split_once_and_for_all() -> None:
    reviews = [(f"review {i}", rating) for i, rating in enumerate(np.linspace(-4, 4, 101).round(2).tolist())]
    task = demo_task(reviews)
    parts = (task.train, task.validation, task.test)
    assert [len(part) for part in parts] == [81, 10, 10]
    answers = {text: bool(label) for part in parts for text, label in zip(part.texts, part.labels)}
    assert answers == {text: rating > 0 for text, rating in reviews}
    assert demo_task(reviews).test.texts == task.test.texts


@pytest.mark.parametrize("task", ["sst2", "nyu-mll/glue:sst2", "nobody/nothing"])
def test_hub_that_cannot_be_reached_names_the_alternatives(task: str) -> None:
    """The tests run with the hub's own offline flag."""
    with pytest.raises(DataError, match="cannot be had from the hub .*--data_dir, or --train_file"):
        load_task(TaskConfig(task=task))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"task": "."}, "task: '.' is not known; choices: .* with --data_dir .*, where it holds train.parquet; or --train_file FILE"),
        ({"task": "sst3"}, "task: 'sst3' is not known .did you mean 'sst2'.*choices: demo, sst2, .*--train_file"),
        ({"task": "data/absent.csv"}, "train_file: data/absent.csv: no such file"),
        ({"task": "demo", "test_file": "t.csv", "problem_type": "regression"}, "for which there is no test_file, no problem_type; choices: leave it out"),
        ({}, "task: none named; begin with: adasearch run demo; or --train_file FILE"),
        ({"validation_file": "a.csv"}, "given without train_file"),
        ({"problem_type": "ranking"}, "problem_type: 'ranking' is not known; choices: single_label"),
    ],
)
def test_request_that_cannot_be_met(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_task(TaskConfig(**settings))


def test_unlabeled_texts(tmp_path: Path) -> None:
    train = _write(_rows(), tmp_path / "train.csv")
    texts = _csv(tmp_path / "more.txt", "first text\n\n  second text \n")
    assert _load(train, unlabeled_file=texts).unlabeled.texts == ["first text", "second text"]
    more = _jsonl(tmp_path / "more.jsonl", [{"text": "x y"}, {"text": ""}])
    assert "line 2: column 'text': empty text" in _error(train, unlabeled_file=more)
    unlabeled = _load(train, unlabeled_file=more, skip_bad_rows=True).unlabeled
    assert unlabeled.texts == ["x y"] and unlabeled.labels is None
    pairs = _csv(tmp_path / "pairs.csv", "text,other,label\n" + "".join(f"a{i},b{i},{i % 2}\n" for i in range(20)))
    assert "a line holds no pair of texts" in _error(pairs, text_pair_column="other", unlabeled_file=texts)
    assert _load(pairs, text_pair_column="other", unlabeled_file=pairs).unlabeled.pairs[:2] == ["b0", "b1"]


@pytest.mark.parametrize(
    ("header", "row", "taken"),
    [
        ("review,text", "mine,other", "review"),  # the task's own comes first
        ("text,title", "mine,other", "text"),
        ("id,body,stars", "7,mine,2.5", "body"),  # the only one with more than numbers in it
        ("title,body", "other,mine", None),
        ("id,stars", "7,2.5", None),
    ],
)
def test_unlabeled_texts_are_found_where_the_column_has_another_name(
    tmp_path: Path, header: str, row: str, taken: str | None
) -> None:
    train = _write(_rows().rename(columns={"text": "review"}), tmp_path / "train.csv")
    more = _csv(tmp_path / "more.csv", f"{header}\n{row}\n{row.replace('mine', '12')}\n")
    settings = {"text_column": "review", "unlabeled_file": more}
    if taken is None:
        expected = f"{more}: text_column: no column 'review'; columns: {header.replace(',', ', ')}"
        assert expected in _error(train, **settings)
        return
    task = _load(train, **settings)
    assert task.unlabeled.texts == ["mine", "12"]
    note = f"{more}: no column 'review': the texts are taken from column {taken!r}"
    assert [line for line in task.notes if "are taken from" in line] == ([] if taken == "review" else [note])


def test_unlabeled_texts_of_a_preset_and_of_pairs(tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    frame = _rows().assign(label=[0, 1] * 20).rename(columns={"text": "sentence"})
    frame.to_parquet(tmp_path / "sst2" / "train.parquet")
    for name, taken in (("sentence", None), ("text", "text"), ("body", "body"), ("asked", None)):
        more = _jsonl(tmp_path / "more.jsonl", [{name: "mine", "stars": 2}, {name: "yours", "stars": None}])
        column = {"text_column": "asked"} if name == "asked" else {}
        config = TaskConfig(task="sst2", data_dir=str(tmp_path), unlabeled_file=more, **column)
        task = load_task(config)
        assert task.unlabeled.texts == ["mine", "yours"]
        assert [line.split()[-1] for line in task.notes if "are taken from" in line] == ([repr(taken)] if taken else [])
    pairs = _csv(tmp_path / "pairs.csv", "first,second,label\n" + "".join(f"a{i},b{i},{i % 2}\n" for i in range(20)))
    columns = {"text_column": "first", "text_pair_column": "second"}
    more = _csv(tmp_path / "more.csv", "question,second\nq,s\n")
    unlabeled = _load(pairs, **columns, unlabeled_file=more).unlabeled
    assert (unlabeled.texts, unlabeled.pairs) == (["q"], ["s"])
    alone = _csv(tmp_path / "alone.csv", "second\ns\n")  # a pair's second text is no first one
    assert "no column 'first'; columns: second" in _error(pairs, **columns, unlabeled_file=alone)


def test_select_keeps_everything_together() -> None:
    split = Split(list("abcd"), list("ABCD"), np.arange(4), np.eye(4, dtype=np.float32)).select([3, 1])
    assert (split.texts, split.pairs) == (["d", "b"], ["D", "B"])
    assert split.labels.tolist() == split.soft_labels.argmax(1).tolist() == [3, 1]


# --- sentences and tokens ---


def test_sentences_by_hand() -> None:
    text = 'Mr. Smith saw J. R. Doe there. "A fine day!" he said<br /><br />Then no more of it? Yes. <br>One last line'
    first, rest = "Mr. Smith saw J. R. Doe there.", ['"A fine day!"', "Then no more of it?", "One last line"]
    assert split_sentences([text]) == [first, *rest]
    assert split_sentences(["w " * 60 + "\n" + "w " * 61, "Two words. Three more words."]) == [" ".join("w" * 60), "Three more words."]
    assert split_sentences(["w " * 61, "two words", " "]) == [" ".join("w" * 61), "two words"], "texts without a sentence are kept whole"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64)


@pytest.mark.parametrize("is_pair", [False, True])
def test_tokens_are_the_tokenizers_own(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, is_pair: bool) -> None:
    """More texts than one chunk; each equals the tokenizer's answer to that text alone, cut where it is too long."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 9, (2, 2100))
    texts, others = ([" ".join(generator.choice(WORDS, size)) for size in row] for row in sizes)
    examples = list(zip(texts, others)) if is_pair else [(text,) for text in texts]
    store, cut = tokenize(Split(texts, others if is_pair else None), tokenizer, 8, cache=tmp_path, name="train")
    whole = [tokenizer(*example)["input_ids"] for example in examples]
    alone = [tokenizer(*example, truncation=True, max_length=8)["input_ids"] for example in examples]
    assert [ids.tolist() for ids in store] == alone
    assert cut == sum(len(ids) > 8 for ids in whole) > 0


def test_texts_are_tokenized_once(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    split, listener = Split([" ".join(WORDS[:n]) for n in (1, 3, 8)]), Heard()
    first = tokenize(split, tokenizer, 6, cache=tmp_path, name="train", progress=listener)
    tokenizer(["the film"], padding="max_length", max_length=9, truncation=True)  # leaves its settings in the tokenizer
    second = tokenize(split, tokenizer, 6, cache=tmp_path, name="train", progress=listener)
    assert listener.titles == ["tokenize train"]
    assert second[1] == first[1] == 1 and isinstance(second[0].ids, np.memmap)
    assert second[0].ids.tolist() == first[0].ids.tolist()
    tokenize(split, tokenizer, 7, cache=tmp_path, name="train", progress=listener)
    tokenize(split.select([0, 2]), tokenizer, 6, cache=tmp_path, name="train", progress=listener)
    tokenizer.add_tokens(["longer"])
    tokenize(split, tokenizer, 6, cache=tmp_path, name="train", progress=listener)
    assert len(listener.titles) == 4  # another length, other texts, another vocabulary


def test_tokenizer_that_cannot_do_it(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="max_seq_length: 65 is too long; tokenizer .* takes up to 64"):
        tokenize(Split(["the"]), tokenizer, 65, cache=tmp_path, name="train")

    with pytest.raises(ModelError, match="ByT5Tokenizer.* has no fast version"):  # bytes, in plain Python
        tokenize(Split(["the"]), ByT5Tokenizer(), 16, cache=tmp_path, name="train")


def test_a_field_of_any_length_is_read(tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text(f'text,label\n"{"word " * 40_000}",yes\n', encoding="utf-8")  # the csv module alone stops at 131,072
    assert len(read_table(tmp_path / "long.csv", "train_file").columns["text"][0]) == 200_000


# Lines and texts that both readers must find, None where the line is no row; or what both refuse the file with
TABLES: dict[str, tuple[bytes, list[tuple[int, str | None]] | str]] = {
    "a byte order mark": (b"\xef\xbb\xbftext,n\na,1\n", [(2, "a")]),
    "a byte order mark before a quoted name": (b'\xef\xbb\xbf"text",n\na,1\n', [(2, "a")]),
    "carriage returns before line feeds": (b"text,n\r\na,1\r\n\r\nb,2\r\n", [(2, "a"), (4, "b")]),
    "a quoted line break": (b'text,n\n"a\nb",1\nc,2\n', [(2, "a\nb"), (4, "c")]),
    "a quoted carriage return and line feed": (b'text,n\r\n"a\r\nb",1\r\nc,2\r\n', [(2, "a\r\nb"), (4, "c")]),
    "line breaks of other alphabets": ("text,n\na\u2028b\x85c\x0cd,1\ne,2\n".encode(), [(2, "a\u2028b\x85c\x0cd"), (3, "e")]),
    "a short row": (b"text,n\na,1\nb\nc,3\n", [(2, "a"), (3, None), (4, "c")]),
    "a long row": (b"text,n\na,1\nb,2,3\nc,3\n", [(2, "a"), (3, None), (4, "c")]),
    "a quote that never ends": (b'text,n\na,1\n"b,2\nc,3\n', "the quote opened in line 3 is never closed; lines 3-4 cannot be told apart"),
    "a quote that never ends in the last line": (b'text,n\na,1\n"b,2\n', [(2, "a"), (3, None)]),
    "letters behind a quote": (b'text,n\n"a"b,1\nc,2\n', [(2, None), (3, "c")]),
    "empty lines": (b"\n\ntext,n\n\na,1\n\n\nb,2\n\n", [(5, "a"), (8, "b")]),
    "blanks around the names": (b" text , n\n a ,1\n", [(2, " a ")]),
    "an empty text in quotes": (b'text\na\n""\nb\n', [(2, "a"), (3, ""), (4, "b")]),
    "a carriage return alone": (b"text,n\na\rb,1\nc,2\n", [(2, None), (3, "c")]),
    "a quoted carriage return alone": (b'text,n\n"a\rb",1\nc,2\n', [(2, "a\rb"), (3, "c")]),
    "a name that stands twice": (b"text,n,text\na,1,b\n", "a column name stands twice: text, n, text"),
    "a name that stands twice but for blanks": (b"text,text \na,b\n", "a column name stands twice: text, text"),
}


@pytest.mark.parametrize("name", TABLES)
def test_what_learns_and_what_predicts_read_the_same_rows(tmp_path: Path, name: str) -> None:
    """``read_table`` takes a file whole, ``RowFile`` as a stream: a text that one of them has and the other has not is lost unseen."""
    content, expected = TABLES[name]
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    if isinstance(expected, str):
        for read in (lambda: read_table(path, "train_file"), lambda: list(RowFile(path, ("text",)).rows())):
            assert pytest.raises(DataError, read).match(expected)
        return
    table, stream = read_table(path, "train_file"), list(RowFile(path, ("text",)).rows())
    whole = [*zip(table.numbers, table.columns["text"]), *((number, None) for number, _ in table.broken)]
    assert sorted(whole, key=lambda row: row[0]) == expected
    assert [(row.number, None if row.problem else row.values["text"]) for row in stream] == expected


def test_a_quoted_text_of_a_csv_may_hold_tabs_and_lines(tmp_path: Path) -> None:
    """Only in tsv they would be other rows' fields."""
    path = tmp_path / "t.csv"
    path.write_bytes(b'text,label\n"a\tb\nc",1\nd,0\n')
    assert read_table(path, "train_file").columns["text"] == ["a\tb\nc", "d"]
    assert [(row.number, row.values.get("text"), row.problem) for row in RowFile(path, ("text",)).rows()] == [(2, "a\tb\nc", None), (4, "d", None)]
