"""The scripts that reproduce CoFi and EarlyBERT, and the one that compares: whose settings a run has, what is told of it. No run is made here."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hearing import Killed

from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json
from adasearch.settings import to_dict

ROOT = Path(__file__).parents[1]
YAML = {
    "reproduce_cofi": "model: theirs\nthreads: 2\nseeds: [7]\ntarget_latency_ms: [3.0]\n",
    "reproduce_earlybert": "model: theirs\nthreads: 2\nseeds: [7]\n",
}


def load(script: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(script, ROOT / "scripts" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings(script: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Any:
    """What a script makes of its flags for its first task."""
    module = load(script)
    monkeypatch.setattr(sys, "argv", [script, *flags])
    args = module.arguments()
    return module.settings(args, args.tasks[0])


@pytest.mark.parametrize("script", YAML)
def test_alone_a_script_has_its_own_settings(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(script, monkeypatch)
    assert (config.task, config.model, config.seeds, config.threads) == ("sst2", "demo", [1, 2, 3], 1)
    assert script != "reproduce_cofi" or config.targets == [("sparsity", share) for share in (0.6, 0.8, 0.9, 0.95)]


@pytest.mark.parametrize("script", YAML)
def test_a_file_s_settings_hold_until_others_are_typed(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.yaml").write_text(YAML[script])
    config = settings(script, monkeypatch, "--config", str(tmp_path / "own.yaml"))
    assert (config.model, config.seeds, config.threads) == ("theirs", [7], 2)
    assert script != "reproduce_cofi" or config.targets == [("latency", 3.0)]
    typed = ("--model", "ours", "--seeds", "4", "5", "--threads", "3")
    config = settings(script, monkeypatch, "--config", str(tmp_path / "own.yaml"), *typed)
    assert (config.model, config.seeds, config.threads) == ("ours", [4, 5], 3)


@pytest.mark.parametrize("results", ["cofi_sst2", "cofi_mrpc", "cofi_long_sst2", "earlybert_sst2"])
def test_a_recorded_command_means_what_it_meant(results: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = read_json(ROOT / "results" / "runs" / f"{results}.json")
    _, script, *flags = shlex.split(kept["command"])
    monkeypatch.chdir(ROOT)
    config = settings(Path(script).stem, monkeypatch, *flags)
    assert config.seeds == kept["seeds"] and config.threads == 1 and config.model == "runs/demo/cache/demo_model"
    if results.startswith("cofi"):
        assert [share for _, share in config.targets] == [one["target"]["sparsity"] for name, one in kept["models"].items() if name.endswith("-1")]


@pytest.mark.parametrize(("flags", "says"), [
    (("--threads", "2"), "threads was 1, is 2"), (("--turn", "5"), "turn_steps was 20, is 5"), ((), None),
])  # fmt: skip
def test_seeds_that_were_timed_otherwise_are_not_averaged(
    flags: tuple[str, ...], says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("reproduce_earlybert")
    monkeypatch.setattr(sys, "argv", ["reproduce_earlybert", "--work_dir", str(tmp_path), "--seeds", "1", "2", "3", *flags])
    args = module.arguments()
    seeds = tmp_path / "sst2" / "seeds"
    write_json(seeds / "1.json", [{"seed": 1}])  # of a version that did not note it
    write_json(seeds / "2.json", [{"seed": 2, "timed": {"threads": 1, "cpu": module.hardware()["cpu"], "turn_steps": 20}}])

    def opened(*_: Any, **__: Any) -> Any:
        raise Killed

    monkeypatch.setattr(module, "open_encoders", opened)
    with pytest.raises(ConfigError if says else Killed, match=says):
        module.run_task(args, "sst2", module.Progress())


def test_finished_runs_of_other_settings_are_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("reproduce_quantgpt_wikitext2")
    typed = ["reproduce_quantgpt", "--model", "m", "--output_dir", str(tmp_path), "--seeds", "1", "--bits", "8-8-8", "--ablations"]
    monkeypatch.setattr(module.Matrix, "_one", lambda self, job: pytest.fail("nothing is to be run"))

    def run(*flags: str) -> None:
        monkeypatch.setattr(sys, "argv", [*typed, *flags])
        matrix = module.Matrix(module.arguments())
        for *_, folder, asked in matrix.plan():
            if not (folder / "report.json").exists():
                write_json(folder / "run.json", {"config": to_dict(matrix.config(folder, asked))})
                write_json(folder / "report.json", {})
        matrix.run([(folder, asked) for *_, folder, asked in matrix.plan()])

    run()
    run("--block_length", "128")  # the default
    for flags, says in ((("--steps", "700"), "steps was 600, is 700"), (("--learning_rate", "2e-3"), "learning_rate was 0.001, is 0.002")):
        with pytest.raises(ConfigError, match=says):
            run(*flags)


def test_a_run_s_log_does_not_keep_it_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there before the run, which takes no folder that holds something else."""
    module = load("reproduce_quantgpt_wikitext2")
    monkeypatch.setattr(sys, "argv", ["reproduce_quantgpt", "--model", "m", "--output_dir", str(tmp_path), "--seeds", "1", "--ablations"])
    matrix = module.Matrix(module.arguments())
    *_, folder, asked = matrix.plan()[0]

    def begin(*_: Any, **__: Any) -> SimpleNamespace:
        module.check_begun(folder, matrix.config(folder, asked), module.FREE)
        write_json(folder / "report.json", {"metric": "perplexity", "score_quantized": 9.0})
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(module.subprocess, "run", begin)
    matrix._one((folder, asked))


def test_results_tell_what_the_gates_saved_by_themselves(tmp_path: Path) -> None:
    module = load("reproduce_cofi")
    costs = {"latency_ms_p50": 2.0, "score_mean": 0.8}
    kinds = {"dense": "teacher", "CoFi 95%": "student", "CoFi 90%": "pruned"}
    systems = [{**dict.fromkeys(module.FIELDS), **costs, "name": name, "kind": kind} for name, kind in kinds.items()]
    report = {"task": "sst2", "metric": "accuracy", "seeds": [1, 11], "systems": systems, "commit": "abc", "hardware": {}}
    write_json(tmp_path / "report.json", report)
    for target, seed, saved, is_met in (
        (0.95, 1, 0.92, False), (0.95, 11, 0.951, True), (0.9, 1, 0.905, True), (0.9, 11, 0.899, True), (0.9, 2, 0.1, False),
    ):  # fmt: skip
        facts = {"target": {"sparsity": target}, "expected_saved": saved, "met_by_gates": is_met}
        write_json(tmp_path / "models" / f"cofi-sparsity-{target}-{seed}" / "facts.json", facts)
    dense, *pruned = module.collect(tmp_path)["rows"]
    assert "gates_saved" not in dense
    assert [(row["name"], row["gates_saved"], row["met_by_gates"]) for row in pruned] == [
        ("CoFi 95%", [0.92, 0.951], [False, True]), ("CoFi 90%", [0.905, 0.899], [True, True]),
    ]  # fmt: skip


@pytest.mark.parametrize("split", ["validation", "test"])
def test_methods_are_compared_on_the_same_examples_or_not_at_all(split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, runs = load("compare_methods"), [tmp_path / "adabert" / "rte", tmp_path / "cofi" / "rte"]
    scored = {"examples": 277, "texts": "abc", "labels": "def"}

    def noted(*data: dict[str, Any] | None) -> None:
        for run, one in zip(runs, data):
            write_json(run / "run.json", {} if one is None else {"data": one})

    monkeypatch.setattr(sys, "argv", ["compare_methods", "--tasks", "rte", "--adabert", str(runs[0].parent), "--cofi", str(runs[1].parent)])
    same = {"validation": {"examples": 9, "texts": "v", "labels": "v"}, split: scored}
    noted({**same, "train": {"examples": 2_490}}, same)
    module.check_same_examples(runs)
    noted(None, same)  # by a version that noted no data
    module.check_same_examples(runs)
    for name, value in (("texts", "other"), ("labels", "other"), ("examples", 200)):
        noted({**same, split: {**scored, name: value}}, same)
        with pytest.raises(ConfigError, match="--tasks: .*adabert/rte and .*cofi/rte were scored on other examples .*; choices: runs on the same"):
            module.main()


def test_models_cut_for_a_latency_are_compared_as_well(tmp_path: Path) -> None:
    module, run = load("compare_methods"), tmp_path / "mrpc"
    row = {"scores": [0.8], "score_mean": 0.8, "params": 1, "macs": 1}
    systems = [{**row, "name": name, "kind": kind} for name, kind in (("dense", "teacher"), ("CoFi 3 ms", "student"), ("CoFi 1.5 ms", "pruned"))]
    write_json(run / "report.json", {"task": "mrpc", "metric": "f1", "seeds": [1], "systems": systems})
    folders = [run / "models" / f"cofi-latency-{target}-1" for target in ("3", "1.5")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert [(one["name"], one["folders"]) for one in module.systems_of(run, "cofi")] == [("CoFi 3 ms", folders[:1]), ("CoFi 1.5 ms", folders[1:])]


def write_search(folder: Path, strategy: str, seed: int, score: float, **operations: int) -> None:
    """What is read of a finished run: its settings, its search, its student's score."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"space: adasearch\nsearch: {{strategy: {strategy}, mode: joint}}\n")
    search = {"seconds": 100.0 * seed, "peak_rss_bytes": 2**30, "depth": 1, "width": 96, "operations": operations}
    student = {"kind": "student", "score_mean": score, "train_seconds": 50.0, "macs": 1e7, "latency_ms_p50": 1.0}
    write_json(folder / "report.json", {
        "task": "mrpc", "metric": "accuracy", "seeds": [seed], "hardware": {}, "systems": [{"kind": "teacher"}, student], "search": search,
    })  # fmt: skip


def test_strategies_are_rows_over_their_seeds_once_all_runs_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    module, sweep = load("compare_strategies"), tmp_path / "sweep"
    monkeypatch.setattr(sys, "argv", ["compare_strategies", str(sweep), "--results_dir", str(tmp_path)])
    with pytest.raises(ConfigError, match="no sweep.json"):
        module.main()
    write_search(sweep / "runs" / "a", "gumbel", 1, 0.78, soft_alignment=3, conv3=3)
    write_search(sweep / "runs" / "b", "gumbel", 2, 0.80, soft_alignment=6)
    write_search(sweep / "runs" / "c", "random", 1, 0.70, skip=6)
    states = {name: {"status": "done"} for name in "abc"}
    noted = {"command": "adasearch sweep", "commit": "abc", "runs": {"prepared": {"is_preparation": True, "status": "done"}, **states}}
    write_json(sweep / "sweep.json", {**noted, "runs": {**states, "c": {"status": "failed"}}})
    with pytest.raises(ConfigError, match="not finished: c; choices: the sweep's own command"):
        module.main()
    write_json(sweep / "sweep.json", noted)
    module.main()
    gumbel, random = read_json(tmp_path / "runs" / "strategies_mrpc.json")["strategies"]
    assert (gumbel["strategy"], gumbel["score_mean"], gumbel["comparing_share"]) == ("gumbel", pytest.approx(0.79), pytest.approx(0.75))
    assert gumbel["score_sd"] == pytest.approx(0.02 / 2**0.5) and gumbel["search_seconds"] == pytest.approx(150)
    assert (random["strategy"], random["score_sd"], random["comparing_share"]) == ("random", None, 0)
    assert "gumbel        79.0 ± 1.4   search 150 s" in capsys.readouterr().out
