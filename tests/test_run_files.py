"""A run's folder goes on with the settings it was begun with; what it says of itself is written once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json
from adasearch.run_files import begin_run, check_reopening, commit, differences, hand_over, note_stage, stage_facts, typed_command

DEFAULTS: dict[str, Any] = {"task": "demo", "seed": 42, "quiet": False, "fit": {"steps": 10, "rate": 0.1}, "words": {}}
FREE = ("quiet",)


def changed(**settings: Any) -> dict[str, Any]:
    return {**DEFAULTS, **settings}


def begun(folder: Path, **settings: Any) -> Path:
    begin_run(folder, changed(**settings), "no")
    return folder


@pytest.mark.parametrize("settings", [{}, {"seed": 7}, {"fit": {"steps": 3, "rate": 0.1}}, {"words": {"good": 1}}])
def test_the_same_settings_go_on(tmp_path: Path, settings: dict[str, Any]) -> None:
    check_reopening(begun(tmp_path / "run", **settings), changed(**settings), DEFAULTS, FREE)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"seed": 7}, "seed was 42, is 7"),
        ({"fit": {"steps": 11, "rate": 0.1}}, "fit was {'steps': 10, 'rate': 0.1}, is {'steps': 11, 'rate': 0.1}"),
        ({"words": {"good": 1}}, "words was {}, is {'good': 1}"),
        ({"seed": 7, "task": "sst2"}, "task was 'demo', is 'sst2'; seed was 42, is 7"),
    ],
)
def test_other_settings_are_refused_and_named(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    folder = begun(tmp_path / "run")
    with pytest.raises(ConfigError) as error:
        check_reopening(folder, changed(quiet=True, **settings), DEFAULTS, FREE)
    assert str(error.value) == f"output_dir: {folder} holds a run with other settings ({says}); choices: another --output_dir, or delete it"
    check_reopening(folder, changed(quiet=True, **settings), DEFAULTS, (*FREE, *settings))  # free ones may differ


def test_a_run_of_another_version_is_judged_by_what_both_know(tmp_path: Path) -> None:
    older = {"task": "demo", "quiet": False, "fit": {"steps": 10, "gone": 1}, "gone": 2}
    write_json(tmp_path / "run.json", {"config": older})
    check_reopening(tmp_path, DEFAULTS, DEFAULTS, FREE)  # it ran at the defaults of what it did not know
    with pytest.raises(ConfigError, match="seed was 42, is 7"):
        check_reopening(tmp_path, changed(seed=7), DEFAULTS, FREE)
    with pytest.raises(ConfigError, match=r"fit was \{'steps': 10, 'rate': 0.1\}"):
        check_reopening(tmp_path, changed(fit={"steps": 10, "rate": 0.2}), DEFAULTS, FREE)


def test_a_file_is_no_folder_and_a_new_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="output_dir: .*file is a file; a folder is expected"):
        check_reopening(tmp_path / "file", DEFAULTS, DEFAULTS, FREE)
    check_reopening(tmp_path / "absent", changed(seed=7), DEFAULTS, FREE)
    check_reopening(tmp_path, changed(seed=7), DEFAULTS, FREE)


def test_only_three_differences_are_named() -> None:
    assert differences({}, dict.fromkeys("abcd", 1)) == "a was None, is 1; b was None, is 1; c was None, is 1"
    assert differences({"a": 1}, {"a": 1}) == differences({"a": 1}, {"a": 2}, "a") == ""


def test_a_run_is_begun_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/adasearch", "run", "a task"])
    begin_run(tmp_path, changed(seed=1), "bf16", hardware={"cores": 2})
    begin_run(tmp_path, changed(seed=2), "no")
    about = read_json(tmp_path / "run.json")
    assert about == {
        "command": "adasearch run 'a task'", "commit": commit(), "config": changed(seed=1), "precision": "bf16",
        "hardware": {"cores": 2}, "stages": {},
    }  # fmt: skip
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == changed(seed=1)


def test_a_stage_keeps_what_was_noted_first(tmp_path: Path) -> None:
    begun(tmp_path)
    assert stage_facts(tmp_path, "train") == {}
    note_stage(tmp_path, "train", seconds=3.0)
    note_stage(tmp_path, "train", seconds=None)
    note_stage(tmp_path, "report")
    assert stage_facts(tmp_path, "train") == {"done": True, "seconds": 3.0} and stage_facts(tmp_path, "report") == {"done": True}


@pytest.mark.parametrize(
    ("program", "says"),
    [("/x/adasearch", "adasearch"), ("/x/adasearch/__main__.py", "adasearch"), ("scripts/demo.py", "demo.py")],
)
def test_the_command_is_what_was_typed(program: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--seed", "1"])
    assert typed_command() == f"{says} --seed 1"


def test_a_model_is_handed_over_once_and_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_json(tmp_path / name / "config.json", {"name": name})
        write_json(tmp_path / name / "inner" / "deep.json", name)
        hand_over(tmp_path / name, tmp_path / "student")
    assert read_json(tmp_path / "student" / "config.json") == {"name": "first"}
    assert read_json(tmp_path / "student" / "inner" / "deep.json") == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second", "student"]
