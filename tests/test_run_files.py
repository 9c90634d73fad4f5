"""A run's folder goes on with the settings it was begun with; what it says of itself is written once."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState

import adasearch
from adasearch import accelerator, cli, encoder_run, pipeline
from adasearch.cofi_config import CofiConfig
from adasearch.config import RunConfig
from adasearch.diagnosis_run import DiagnosisConfig, diagnose
from adasearch.earlybert_config import EarlyBertConfig
from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json, write_text
from adasearch.prune_ofa_config import PruneOfaTaskConfig
from adasearch.quantgpt_config import QuantGptConfig
from adasearch.quantgpt_run import quantize_language_model
from adasearch.questions import Questions
from adasearch.run_files import (
    begin_run, begun_precision, check_folder, check_reopening, check_same_data, check_same_inputs, commit, differences, digests, hand_over,
    model_in, note_settings, note_stage, only_one, refuse_run, stage_facts,
    typed_command,
)  # fmt: skip
from adasearch.sparse_pretraining_config import SparsePretrainingConfig
from adasearch.sparse_pretraining_run import pretrain_sparse
from adasearch.sweep import sweep
from adasearch.sweep_config import SweepConfig
from adasearch.tasks import Task
from adasearch.texts import Split
from adasearch.tune_config import TuneConfig
from adasearch.tune_study import tune
from adasearch.user_code import import_user_code
from adasearch.warm_config import WarmConfig
from adasearch.warm_run import warm

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
        ({"fit": {"steps": 11, "rate": 0.1}}, "fit.steps was 10, is 11"),
        ({"words": {"good": 1}}, "words.good was None, is 1"),
        ({"fit": {"steps": 11, "rate": 0.2}, "seed": 7}, "seed was 42, is 7; fit.steps was 10, is 11; fit.rate was 0.1, is 0.2"),
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
    with pytest.raises(ConfigError, match=r"\(fit.rate was 0.1, is 0.2\)"):
        check_reopening(tmp_path, changed(fit={"steps": 10, "rate": 0.2}), DEFAULTS, FREE)


def test_a_new_folder_is_free(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        check_folder(folder, "run.json")
        check_reopening(folder, changed(seed=7), DEFAULTS, FREE)


def test_a_folder_that_belongs_to_something_else_is_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "b", "c", "d"):
        (tmp_path / "other" / name).mkdir(parents=True)
    with pytest.raises(ConfigError) as error:
        check_folder(tmp_path / "other", "run.json")
    assert str(error.value) == (
        f"output_dir: {tmp_path / 'other'} belongs to something else (a.csv, b, c, ...); choices: another --output_dir, new or empty"
    )
    check_folder(tmp_path / "other", "run.json", "b")
    check_folder(begun(tmp_path / "other"), "run.json")
    with pytest.raises(ConfigError, match=r"belongs to something else \(config.yaml, run.json\)"):
        check_folder(begun(tmp_path / "run"), "study.json")


def test_what_comes_before_a_runs_mark_refuses_nothing(tmp_path: Path) -> None:
    (tmp_path / "run" / "cache").mkdir(parents=True)
    (tmp_path / "run" / "teacher").symlink_to(tmp_path, target_is_directory=True)
    for name in (".lock", "slurm-1.out", "nohup.log"):
        (tmp_path / "run" / name).touch()
    check_folder(tmp_path / "run", "run.json")


def test_a_place_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="output_dir: .*file is a file; a folder is expected"):
        check_folder(tmp_path / "file", "run.json")
    with pytest.raises(ConfigError, match="cannot be written, .*file is no folder open for writing"):
        check_folder(tmp_path / "file" / "below" / "it", "run.json")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # of root's folders root itself is always told that it may
    with pytest.raises(ConfigError, match=f"cannot be written, {tmp_path} is no folder open for writing"):
        check_folder(tmp_path / "new", "run.json")


def data_of(labels: Sequence[int], texts: str = "abcd", names: tuple[str, ...] = ("no", "yes"), test: str = "") -> dict[str, Any]:
    train, held = Split([*texts], labels=np.array(labels)), Split(["e"], labels=np.array([0]))
    return Task("t", "single_label", names, ("accuracy",), train, held, test=Split([*test], labels=np.zeros(len(test))) if test else None).data


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (data_of([0, 1, 0, 0]), "train: other labels, 4 examples"),
        (data_of([0, 1, 0, 1], "abce"), "train: other texts, 4 examples"),
        (data_of([0, 1, 0], "abc"), "train: 4 -> 3 examples"),
        (data_of([0, 1, 0, 1], test="xy"), "test: none -> 2 examples"),
        (data_of([0, 1, 0, 1], names=("bad", "good")), "train: other labels, 4 examples; validation: other labels, 1 examples"),
    ],
)
def test_data_that_have_changed_are_refused_and_named(tmp_path: Path, now: dict[str, Any], says: str) -> None:
    before = data_of([0, 1, 0, 1])
    check_same_data(tmp_path / "run.json", before)
    begin_run(tmp_path, DEFAULTS, "no", data=before)
    check_same_data(tmp_path / "run.json", data_of([0, 1, 0, 1]))
    with pytest.raises(ConfigError) as error:
        check_same_data(tmp_path / "run.json", now)
    assert f"{tmp_path}: the data have changed since ({says}), and" in str(error.value)
    begun(tmp_path / "older")
    check_same_data(tmp_path / "older" / "run.json", now)  # nobody knows what it was begun with


def test_answers_tell_questions_apart() -> None:
    first, other = (Questions(["q"], ["c d"], answers=[(answer,)], starts=[start]) for answer, start in (("c", 0), ("d", 2)))
    tasks = [Task("t", "question_answering", ("start", "end"), ("f1",), one, one) for one in (first, other)]
    assert tasks[0].data["train"]["texts"] == tasks[1].data["train"]["texts"]
    assert tasks[0].data["train"]["labels"] != tasks[1].data["train"]["labels"]


def test_data_may_move_where_they_are_known(tmp_path: Path) -> None:
    defaults = {**DEFAULTS, "train_file": None}
    before, now = {**DEFAULTS, "train_file": "a.csv"}, {**DEFAULTS, "train_file": "b/a.csv"}
    begin_run(tmp_path / "older", before, "no")
    with pytest.raises(ConfigError, match="train_file was 'a.csv'"):
        check_reopening(tmp_path / "older", now, defaults, FREE)
    begin_run(tmp_path, before, "no", data=data_of([0, 1, 0, 1]))
    check_reopening(tmp_path, now, defaults, FREE)
    begin_run(tmp_path, now, "no")
    assert read_json(tmp_path / "run.json")["config"] == now == yaml.safe_load((tmp_path / "config.yaml").read_text())


def test_all_commands_are_kept_and_the_last_is_the_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in ("search", "run", "search", "retrain", "run"):
        monkeypatch.setattr(sys, "argv", ["adasearch", verb, "t"])
        begun(tmp_path)
    about = read_json(tmp_path / "run.json")
    assert about["command"] == "adasearch run t"
    assert about["commands"] == ["adasearch search t", "adasearch retrain t", "adasearch run t"]


def test_only_three_differences_are_named() -> None:
    assert differences({}, dict.fromkeys("abcd", 1)) == "a was None, is 1; b was None, is 1; c was None, is 1"
    assert differences({"a": 1}, {"a": 1}) == differences({"a": 1}, {"a": 2}, "a") == ""


def test_a_run_is_begun_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/adasearch", "run", "a task"])
    begin_run(tmp_path, changed(seed=1), "bf16", hardware={"cores": 2})
    begin_run(tmp_path, changed(seed=2), "no")
    about = read_json(tmp_path / "run.json")
    assert about == {
        "command": "adasearch run 'a task'", "commands": ["adasearch run 'a task'"], "commit": commit(), "config": changed(seed=1), "precision": "bf16",
        "directory": str(Path.cwd()), "hardware": {"cores": 2}, "stages": {},
    }  # fmt: skip
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == changed(seed=1)


@pytest.mark.parametrize("begun_in", ["no", "bf16"])
def test_a_run_goes_on_in_the_precision_that_was_measured_when_it_began(tmp_path: Path, begun_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(mixed_precision="auto", cpu=True, threads=1)
    assert begun_precision(tmp_path) is None
    begin_run(tmp_path, DEFAULTS, begun_in)
    monkeypatch.setattr(accelerator, "_bf16_gain", lambda: {"no": 9.0, "bf16": 0.5}[begun_in])  # today it would be the other
    AcceleratorState._reset_state(reset_partial_state=True)
    assert accelerator.make_accelerator(config, begun_precision(tmp_path)).mixed_precision == begun_in
    AcceleratorState._reset_state(reset_partial_state=True)


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


def test_a_runs_folder_stands_for_its_model_but_not_where_it_has_several(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {})
    assert model_in(tmp_path) == str(tmp_path), "nothing is there yet: whoever loads it says so"
    for name in ("teacher", "student"):
        write_json(tmp_path / name / "config.json", {})
    assert model_in(tmp_path) == model_in(tmp_path / "student") == str(tmp_path / "student")
    refuse_run("teacher", str(tmp_path / "teacher"))
    refuse_run("teacher", "bert-base-uncased")
    with pytest.raises(ConfigError, match=f"teacher: .* is a run's folder; choices: {tmp_path}/teacher, {tmp_path}/student"):
        refuse_run("teacher", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        (["predict", "{run}"], "adasearch.predict.predict_file"),
        (["serve", "{run}"], "adasearch.serve.serve"),
        (["export", "{run}"], "adasearch.qdq_export.export_folder"),
        (["bench", "{run}"], "adasearch.bench.bench_folders"),
    ],
)
def test_every_verb_that_uses_a_model_takes_its_runs_folder(
    arguments: list[str], called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(called, lambda first, *_, **__: taken.append(first) or [])
    monkeypatch.setattr("adasearch.bench_ratios.format_bench", str)
    write_json(tmp_path / "student" / "config.json", {})
    assert cli.main([word.format(run=tmp_path) for word in arguments]) == 0
    assert taken in ([tmp_path / "student"], [[tmp_path / "student"]])


def test_a_run_notices_when_what_a_setting_names_has_changed(tmp_path: Path) -> None:
    folder, teacher, space = tmp_path / "run", tmp_path / "teacher", tmp_path / "space.yaml"
    teacher.mkdir()
    (teacher / "model.safetensors").write_bytes(b"old weights")
    space.write_text("nodes: 3")
    inputs = {"teacher": teacher, "space": space, "architecture": None, "model": Path("owner/name"), "digest": "as given"}
    assert set(digests(inputs)) == {"teacher", "space", "digest"}  # a name of the hub is not read
    check_same_inputs(folder / "run.json", inputs)  # not begun
    folder.mkdir()
    write_json(folder / "run.json", {})
    check_same_inputs(folder / "run.json", inputs)  # begun by a version that noted none
    write_json(folder / "run.json", {"inputs": digests(inputs)})
    (teacher / "README.md").write_text("other words")
    check_same_inputs(folder / "run.json", inputs)
    (teacher / "model.safetensors").write_bytes(b"new weights")
    with pytest.raises(ConfigError, match=f"another content of teacher {teacher},"):
        check_same_inputs(folder / "run.json", inputs)
    with pytest.raises(ConfigError, match="space.*, digest,"):
        space.write_text("nodes: 4")
        (teacher / "model.safetensors").write_bytes(b"old weights")
        check_same_inputs(folder / "run.json", {**inputs, "digest": "another"})
    check_same_inputs(folder / "run.json", {"teacher": tmp_path / "moved"})  # nothing to compare


def test_a_run_notices_when_the_users_code_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that --import names and what it imports from beside it; what is not imported now is not asked."""
    names, folder = ("code_of_a_user", "helper_of_a_user"), tmp_path / "run"
    monkeypatch.syspath_prepend(tmp_path / "code")

    def imported(code: str, helper: str) -> None:
        for name in names:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        for name, text in zip(names, (f"import difflib, {names[1]}\n{code}", helper)):
            write_text(tmp_path / "code" / f"{name}.py", text)
        import_user_code(str(tmp_path / "code" / f"{names[0]}.py"))

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file is read again, however fast it was edited
    try:
        imported("A = 1", "B = 1")
        begin_run(folder, DEFAULTS, "no", inputs={"space": "a digest"})
        assert set(read_json(folder / "run.json")["inputs"]) == {"space", *(f"--import {name}" for name in names)}
        imported("A = 1", "B = 1")
        check_same_inputs(folder / "run.json", {"space": "a digest"})
        imported("A = 2", "B = 1")
        with pytest.raises(ConfigError, match="run: begun with another content of --import code_of_a_user, and what was learned"):
            check_same_inputs(folder / "run.json", {})
        imported("A = 1", "B = 2")
        with pytest.raises(ConfigError, match="another content of --import helper_of_a_user, and"):
            check_same_inputs(folder / "run.json", {})
    finally:
        for name in names:
            sys.modules.pop(name, None)
    check_same_inputs(folder / "run.json", {})


def test_models_in_runs_folders_and_tokenizers_are_among_what_a_run_is_made_of(tmp_path: Path) -> None:
    """A run's folder holds no weights itself; what was begun without their digests goes on."""
    for name in ("run/sparse", "tokens"):
        (tmp_path / name).mkdir(parents=True)
        write_json(tmp_path / name / "config.json", {})
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    run, tokens = str(tmp_path / "run"), str(tmp_path / "tokens")
    given = [encoder_run.inputs_of(PruneOfaTaskConfig(sparse_model=path)) for path in (run, f"{run}/sparse")]
    assert digests(given[0]) == digests(given[1]) and set(digests(given[0])) == {"sparse_model"}
    write_json(tmp_path / "old" / "run.json", {"inputs": {"model": "1"}})
    write_json(tmp_path / "new" / "run.json", {"inputs": digests(given[0])})
    (tmp_path / "run" / "sparse" / "model.safetensors").write_bytes(b"others")
    check_same_inputs(tmp_path / "old" / "run.json", {"sparse_model": given[0]["sparse_model"], "model": "1"})
    with pytest.raises(ConfigError, match="another content of sparse_model .*sparse"):
        check_same_inputs(tmp_path / "new" / "run.json", given[0])
    space = SimpleNamespace(digest="space")
    found = [digests(pipeline.inputs_of(RunConfig(teacher=teacher, tokenizer=tokens), space)) for teacher in ("none", "demo")]
    assert set(found[0]) == {"tokenizer", "space"} and set(found[1]) == {"space"}


def test_a_student_of_another_architecture_makes_room(tmp_path: Path) -> None:
    for name, cells in (("first", [1]), ("second", [2])):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "config.json", {"architecture": cells})
    hand_over(tmp_path / "first", tmp_path / "student")
    (tmp_path / "student" / "README.md").write_text("made since")
    hand_over(tmp_path / "first", tmp_path / "student")
    assert (tmp_path / "student" / "README.md").exists()
    hand_over(tmp_path / "second", tmp_path / "student")
    assert read_json(tmp_path / "student" / "config.json") == {"architecture": [2]} and not (tmp_path / "student" / "README.md").exists()


def test_so_does_a_pruned_encoder_of_another_structure(tmp_path: Path) -> None:
    cut = {"model_type": "adasearch-encoder", "hidden_size": 8, "heads": [2, 1], "neurons": [5, 6]}
    for number, changes in enumerate(({}, {}, {"heads": [2, 2]}, {"neurons": [6, 5]}, {"hidden_size": 7})):
        cut |= changes
        model = tmp_path / f"model-{number}"
        model.mkdir()
        write_json(model / "config.json", cut)
        hand_over(model, tmp_path / "student")
        assert read_json(tmp_path / "student" / "config.json") == cut
        assert (tmp_path / "student" / "README.md").exists() == (number == 1), "what is alike stays, with what was made since"
        (tmp_path / "student" / "README.md").write_text("made since")


def test_a_kill_between_the_first_two_files_locks_nobody_out(tmp_path: Path) -> None:
    begin_run(tmp_path, changed(seed=1), "no")
    (tmp_path / "config.yaml").unlink()  # written second
    check_folder(tmp_path, "run.json")
    begin_run(tmp_path, changed(seed=1), "no")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == changed(seed=1)


def test_one_process_at_a_time_is_at_work_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs" / "one"
    with only_one(folder):
        (folder / "kept.txt").write_text("work")
        with pytest.raises(ConfigError, match="another process is at work in .*one; choices: wait for it, or another --output_dir"), only_one(folder):
            pass
        monkeypatch.setenv("RANK", "1")  # of several that torchrun started the main one holds the lock for all
        with only_one(folder):
            pass
        monkeypatch.delenv("RANK")
    with only_one(folder):  # free again, however the block ended
        pass
    with pytest.raises(KeyError), only_one(folder):
        raise KeyError
    with only_one(folder):
        assert (folder / "kept.txt").exists()
    with pytest.raises(ConfigError), only_one(tmp_path / "refused"):
        raise ConfigError("before any work")
    assert not (tmp_path / "refused").exists()
    (tmp_path / "file").write_text("no folder")
    with only_one(tmp_path / "file" / "run"):  # what is wrong with the place is said by who checks it
        pass



def test_runs_of_other_precisions_follow_each_other_in_one_process() -> None:
    for precision in ("bf16", "no", "bf16"):
        config = RunConfig(mixed_precision=precision, cpu=True, threads=1)
        assert accelerator.make_accelerator(config).mixed_precision == precision


def test_python_callers_are_told_what_works_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of torchrun would delete each other's files; only ``compress``, ``search`` and ``retrain`` of a run share the work."""
    folder = {"output_dir": str(tmp_path / "run")}
    calls = [
        lambda: adasearch.compress_cofi(CofiConfig(task="sst2", **folder)), lambda: adasearch.compress_earlybert(EarlyBertConfig(task="sst2", **folder)),
        lambda: adasearch.prune_once_for_all(PruneOfaTaskConfig(task="sst2", sparse_model="none", **folder)),
        lambda: pretrain_sparse(SparsePretrainingConfig(model="none", **folder)), lambda: quantize_language_model(QuantGptConfig(model="none", **folder)),
        lambda: warm(WarmConfig(teacher="none", **folder)), lambda: tune(TuneConfig(task="sst2", **folder)),
        lambda: sweep(SweepConfig(tasks=["sst2"], **folder)), lambda: diagnose(DiagnosisConfig(task="sst2", **folder)),
    ]  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "2")
    for call in calls:
        with pytest.raises(ConfigError, match="works in one process, torchrun has started 2; choices for several: run, search, retrain"):
            call()
    assert not (tmp_path / "run").exists()


def test_a_finished_run_s_settings_are_those_it_was_last_started_with(tmp_path: Path) -> None:
    """Where and with how many threads it ran is of the machine; what was added to its table is of the run."""
    begin_run(tmp_path, changed(controls=["tfidf"], threads=1), "no")
    note_settings(tmp_path, changed(controls=["tfidf", "student_no_kd"], threads=2))
    config = read_json(tmp_path / "run.json")["config"]
    assert (config["controls"], config["threads"]) == (["tfidf", "student_no_kd"], 1)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config
