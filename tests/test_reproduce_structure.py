"""The scripts that reproduce CoFi and EarlyBERT: whose settings a run has. No run is made here."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from adasearch.files import read_json

ROOT = Path(__file__).parents[1]
YAML = {
    "reproduce_cofi": "model: theirs\nthreads: 2\nseeds: [7]\ntarget_latency_ms: [3.0]\n",
    "reproduce_earlybert": "model: theirs\nthreads: 2\nseeds: [7]\n",
}


def settings(script: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Any:
    """What a script makes of its flags for its first task."""
    spec = importlib.util.spec_from_file_location(script, ROOT / "scripts" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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
