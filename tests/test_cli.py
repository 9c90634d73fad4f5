"""The command line: settings from flags and files, errors in one line, exit codes."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import adasearch
from adasearch import cli, report_verbs, student_verbs, verbs
from adasearch.arguments import element_type, settings_fields
from adasearch.config import BenchConfig, RunConfig
from adasearch.errors import ConfigError, DataError, ModelError, TrainingError
from adasearch.progress import Progress

VERBS = tuple(verbs.VERBS)
ROOT = Path(__file__).parents[1]
REQUIRED = {"export": ["s"], "predict": ["s"], "serve": ["s"], "inspect": ["p"], "report": ["r"], "prune": ["s"]}  # leading arguments these verbs need


def settings(verb: str, *arguments: str) -> Any:
    return cli.parse(verb, arguments)[0]


def add_verb(monkeypatch: pytest.MonkeyPatch, call: Callable[[Any, Progress], str]) -> None:
    """A verb ``try``, added the way a verb is added."""
    monkeypatch.setitem(verbs.VERBS, "try", verbs.Verb("try something", report_verbs.EnvSettings, call, needs_student=False))


@pytest.mark.parametrize("verb", VERBS)
def test_without_flags_every_setting_has_its_default(verb: str) -> None:
    leading = REQUIRED.get(verb, [])
    assert settings(verb, *leading) == verbs.VERBS[verb].settings(*leading)


def test_every_setting_can_be_given_by_flag_and_by_file(tmp_path: Path) -> None:
    """Each setting in turn, with a value that is not its default: the flag, the file and the dataclass agree."""
    values = {bool: ("true", True), int: ("7", 7), float: ("0.375", 0.375), str: ("abc", "abc")}
    for key, kind in settings_fields(RunConfig):
        if dataclasses.is_dataclass(kind):
            continue
        element = element_type(kind)
        plain = next(part for part in (element, kind, *typing.get_args(kind)) if part in values)
        text, value = values[plain]
        flag, expected = ((text, text), [value, value]) if element else ((text,), value)
        if kind is bool and setting(RunConfig(), key):
            flag, expected = ("false",), False
        assert setting(RunConfig(), key) != expected
        by_flag = settings("run", f"--{key}", *flag)
        file = tmp_path / "c.yaml"
        group, _, name = key.rpartition(".")
        inner = f"{name}: {'[' + ', '.join(flag) + ']' if element else flag[0]}"
        file.write_text(f"{group}:\n  {inner}\n" if group else inner)
        assert setting(by_flag, key) == expected and by_flag == settings("run", "--config", str(file)), key


def setting(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_printed_as_config_reads_back_the_same(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leading = REQUIRED.get(verb, [])
    assert cli.main([verb, *leading, "--quiet", "--print_config"]) == 0
    file = tmp_path / "config.yaml"
    file.write_text(capsys.readouterr().out)
    assert settings(verb, "--config", str(file)) == settings(verb, *leading, "--quiet")


def test_flags_override_files_and_later_files_earlier_ones(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("task: sst2\nseed: 1\nsearch:\n  steps: 10\n  beta: 2\n")
    second.write_text("search: {steps: 20}\n")
    flags = ["--search.steps=30", "--config", str(first), f"--config={second}"]
    config = settings("run", *flags)
    assert (config.task, config.seed, config.search.steps, config.search.beta) == ("sst2", 1, 30, 2.0)
    assert settings("run", *flags[1:]).search.steps == 20
    assert settings("run", "rte", *flags).task == "rte"


def test_lists_switches_and_leading_arguments_are_written_as_people_write_them() -> None:
    config = settings("run", "sst2", "--quiet", "--seeds", "1", "2", "3", "--cpu", "false", "--controls", "tfidf")
    assert (config.task, config.quiet, config.cpu) == ("sst2", True, False)
    assert (config.seeds, config.controls) == ([1, 2, 3], ["tfidf"])
    assert settings("run", "--seeds", "[4, 5]").seeds == settings("run", "--seeds=[4,5]").seeds == [4, 5]
    assert settings("run", "--seeds", "4").seeds == [4] and settings("run", "--controls").controls == []
    assert settings("run", "--task", "007", "--text_column", "no").task == "007"
    assert settings("run", "--soft_label_columns", "p, q", "1").soft_label_columns == ["p, q", "1"]
    assert settings("run", "--search.target_macs", "1e6").search.target_macs == 1e6
    assert settings("bench", "a", "b c", "--batch_sizes", "1", "--json").models == ["a", "b c"]
    assert settings("predict", "s", "--input_file", "-", "--output_file", "o.csv").input_file == "-"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--search.stepz", "4"], "'search.stepz' (did you mean 'search.steps'?); choices: search.steps, search.b"),
        (["--search", "no.yaml"], "search: 'no.yaml' cannot be read; choices: a YAML file of its settings; --search.KEY VALUE for one of them"),
        (["--teachr", "x"], "unknown setting 'teachr' (did you mean 'teacher'?); choices: task, data_dir"),
        (["--sea", "4"], "unknown setting 'sea'"),
        (["--search.steps", "many"], "adasearch run: search.steps: 'many' does not fit; expected int"),
        (["--search.steps", "1.5"], "search.steps: '1.5' does not fit; expected int"),
        (["--seeds", "1", "x"], "does not fit; expected list[int] or null"),
        (["--quiet", "maybe"], "'maybe' belongs to no flag"),
        (["--teacher"], "--teacher needs a value; expected str"),
        (["--teacher", "--quiet"], "--teacher needs a value; expected str"),
        (["sst2", "rte"], "takes one TASK; got sst2 rte"),
        (["-q"], "'-q' belongs to no flag"),
        (["--search.mode", "bilvel"], "search.mode: 'bilvel' is not known; choices: joint, bilevel"),
        (["--config", "absent.yaml"], "--config absent.yaml: cannot be read (No such file or directory)"),
        (["--import", "no_such_module_of_ours"], "--import no_such_module_of_ours: cannot be imported"),
        (["--import", "absent_ops.py"], "--import absent_ops.py: no such file"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_line_with_place_value_and_choices(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", *arguments]) == 2
    out, err = capsys.readouterr()
    assert says in err and err.startswith("error: ") and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("search: {stepz: 7}", "c.yaml: unknown setting 'search.stepz' (did you mean 'search.steps'?)"),
        ("serch: {steps: 7}", "c.yaml: unknown setting 'serch' (did you mean 'search'?); choices: task, "),
        ("seed:\n  x: 1", "c.yaml: unknown setting 'seed.x'"),
        ("search:\n  steps: many", "c.yaml: search.steps: 'many' does not fit; expected int"),
        ("seed: null", "c.yaml: seed: null does not fit; expected int"),
        ("search:", "c.yaml: search: null does not fit; expected SearchConfig"),
        ("[1, 2", "c.yaml: is not YAML"),
        ("just words", "c.yaml: holds str, not settings"),
        ("", "c.yaml: holds NoneType, not settings"),
        ("- 1", "c.yaml: holds list, not settings"),
    ],
)
def test_bad_files_are_named(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert cli.main(["run", "--config", str(tmp_path / "c.yaml")]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_verbs_are_checked_and_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serch"]) == 2
    assert "unknown verb 'serch' (did you mean 'search'?); choices: run, search," in capsys.readouterr().err
    assert cli.main(["env", "now"]) == 2
    assert "adasearch env: takes flags only; got now" in capsys.readouterr().err
    assert cli.main(["export"]) == 2 and "student" in capsys.readouterr().err
    assert cli.main(["export", "nowhere"]) == 2 and "student: nowhere is no model folder" in capsys.readouterr().err
    assert cli.main([]) == 2 and cli.main(["--help"]) == 0 and cli.main(["--version"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in verbs.VERBS) and f"adasearch {adasearch.__version__}\n" in out


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains_every_setting(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: adasearch {verb} ")
    for key, kind in settings_fields(verbs.VERBS[verb].settings):
        if not dataclasses.is_dataclass(kind):
            found = re.search(rf"--{re.escape(key)}\+? \S+ (?!--)(.+?) \((?:required, )?type: ", text)
            assert found and "--" not in found.group(1), f"{verb} --{key}: no words in the settings' docstring"


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ConfigError("space: 'x' is not known"), 2, "error: space: 'x' is not known\n"),
        (DataError("a.csv:\n  row 3: empty"), 2, "error: a.csv: row 3: empty\n"),
        (ModelError("teacher: 3 labels, the task has 2"), 1, "error: teacher: 3 labels, the task has 2\n"),
        (TrainingError("loss is not finite at step 7"), 1, "error: loss is not finite at step 7\n"),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on from what was saved\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/sys/x"), 1, "error: /sys/x: Permission denied; choices: mend that; what was"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 1, "error: runs/x: the disk is full; what was"),
    ],
)
def test_exit_codes_and_one_clear_line(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any, progress: Progress) -> str:
        progress.stage("search", total=10)
        raise error

    add_verb(monkeypatch, fail)
    assert cli.main(["try"]) == code
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err and "search: stopped" in err


def test_a_script_ends_like_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise ConfigError("task: 'sts' is no task of pairs")

    assert cli.explained(refuse) == 2
    assert capsys.readouterr().err == "error: task: 'sts' is no task of pairs\n"
    assert cli.explained(lambda: None) == 0 and cli.explained(lambda: sys.exit(3)) == 3


def test_a_termination_ends_like_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    add_verb(monkeypatch, lambda settings, progress: signal.raise_signal(signal.SIGTERM))
    assert cli.main(["try"]) == 128 + signal.SIGTERM
    assert "stopped; the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_errors_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ValueError("bug"), PermissionError(errno.EACCES, "denied")):

        def fail(_: Any, progress: Progress, error: Exception = error) -> str:
            raise error

        add_verb(monkeypatch, fail)
        with pytest.raises(type(error)):
            cli.main(["try"])


def test_results_go_to_standard_output_and_progress_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(_: Any, progress: Progress) -> str:
        progress.message("on the way")
        return "the result"

    add_verb(monkeypatch, work)
    assert cli.main(["try"]) == 0
    assert capsys.readouterr() == ("the result\n", "on the way\n")


def test_users_code_is_imported_before_anything_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = "import inspect\nWHO = 'file'\ndef f(): pass\nSOURCE = inspect.getsource(f)\n"
    (tmp_path / "users_ops_file.py").write_text(source)
    (tmp_path / "users_ops_module.py").write_text("WHO = 'module'\n")
    seen: list[str] = []

    def look(_: Any, progress: Progress) -> str:
        seen.extend(sys.modules[name].WHO for name in ("users_ops_file", "users_ops_module"))
        return ""

    add_verb(monkeypatch, look)
    try:
        assert cli.main(["try", "--import", "users_ops_file.py", "--import", "users_ops_module"]) == 0
        assert seen == ["file", "module"] and sys.modules["users_ops_file"].SOURCE == "def f(): pass\n"
        with pytest.raises(ConfigError, match="a module named 'users_ops_file' is loaded already"):
            cli.import_user_code(str(tmp_path / "users_ops_file.py"))
    finally:
        for name in ("users_ops_file", "users_ops_module"):
            sys.modules.pop(name, None)


def test_a_module_that_does_not_parse_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "users_broken_ops.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match="cannot be imported"):
        cli.import_user_code(str(tmp_path / "users_broken_ops.py"))
    assert "users_broken_ops" not in sys.modules


def test_bench_settings_are_those_of_a_run_and_need_models(capsys: pytest.CaptureFixture[str]) -> None:
    names = {key.name for key in dataclasses.fields(report_verbs.BenchSettings)}
    own = names - {key.name for key in dataclasses.fields(BenchConfig)}
    assert {"models", "lengths_from", "json", "quiet"} <= own
    assert cli.main(["bench"]) == 2 and "models: no folder to time" in capsys.readouterr().err
    for request, says in (
        (["some", "--batch_size", "8"], "batch_size: it is not read without --build_lut; choices: --batch_sizes"),
        (["--build_lut", "--seq_lengths", "16"], "seq_lengths: it is not read with --build_lut; choices: --lengths"),
        (["--build_lut", "--runtimes", "torch"], "runtimes: it is not read with --build_lut; choices: --runtime"),
        (["nowhere", "--reference", "false", "--references", "bert_base"], "references: it is not read with --reference false"),
        (["nowhere", "--reference", "false"], "models: nowhere"),  # the verb's own default of the shapes is no request
    ):
        assert cli.main(["bench", *request]) == 2 and says in capsys.readouterr().err


def test_rows_become_an_aligned_table() -> None:
    rows = [
        {"name": "a", "params": 5, "timings": [{"batch_size": 1, "latency_ms_p50": 1.23456}, {"batch_size": 32}]},
        {"name": "long", "params": 12},
    ]
    assert student_verbs.format_rows(rows).splitlines() == [
        "name  params  batch_size  latency_ms_p50",
        "a     5       1           1.235",
        "a     5       32",
        "long  12",
    ]


def test_questions_in_files_are_refused_as_those_of_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    for settings in (["--task", "squad"], ["--train_file", "q.jsonl", "--problem_type", "question_answering"]):
        assert cli.main(["run", *settings]) == 2
        told = capsys.readouterr().err
        assert "is extractive question answering; adasearch run makes students that classify" in told and "compress cofi" in told


def test_env_tells_versions_as_lines_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    assert cli.main(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"] == torch.__version__ and facts["torch_threads"] == torch.get_num_threads()
    assert cli.main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(facts)
    assert not any(mark in line for line in lines for mark in ("[", "None"))


def test_help_and_bad_usage_need_no_torch() -> None:
    """They answer at once; that the package alone registers the student is test_project's."""
    code = (
        "import sys; sys.argv = ['/x/bin/adasearch']\n"
        "from adasearch.cli import main\n"
        "codes = [main(a) for a in (['--help'], ['run', '--help'], ['run', '--print_config'], ['run', '--sed', '1'])]\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'{codes} {heavy}' if heavy or codes != [0, 0, 0, 2] else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--print_config"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "adasearch", *arguments],
            cwd=ROOT, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert done.returncode == 141 and done.stderr == ""
