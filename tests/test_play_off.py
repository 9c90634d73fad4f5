"""The play-off: halves stay, steps double, the best by its own short training wins, a killed one goes on, nothing held out is learned."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_task import tiny_run

import adasearch.play_off as subject
from adasearch import search_method
from adasearch.errors import ConfigError
from adasearch.pipeline import run, search
from adasearch.play_off import Finals, play_off, rounds_of
from adasearch.prepare import Problem
from adasearch.tokens import Examples, TokenStore


@pytest.mark.parametrize(
    ("members", "steps", "rounds"),
    [(1, 100, []), (2, 100, [(2, 100)]), (4, 100, [(4, 50), (2, 100)]), (5, 100, [(5, 25), (3, 50), (2, 100)]), (8, 40, [(8, 10), (4, 20), (2, 40)])],
)
def test_members_halve_and_steps_double(members: int, steps: int, rounds: list[tuple[int, int]]) -> None:
    assert rounds_of(members, steps) == rounds
    seen: list[int] = []

    def trial(member: int, each: int) -> float:
        seen.append(each)
        return -member

    assert play_off(range(members), trial, steps) == members - 1, "the best in every round"
    assert [(seen.count(each), each) for each in dict.fromkeys(seen)] == rounds


def test_a_late_bloomer_survives_what_it_can() -> None:
    """What counts is each round's own loss, not the one before."""
    losses = {("slow", 1): 2.0, ("fast", 1): 1.0, ("poor", 1): 3.0, ("bad", 1): 4.0, ("slow", 2): 0.1, ("fast", 2): 0.9}
    assert play_off(["fast", "slow", "poor", "bad"], lambda member, steps: losses[member, steps], 2) == "slow"


@pytest.mark.filterwarnings("ignore")
def test_the_winner_is_the_searchs_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run killed in its play-off ends with the same losses and the same winner, and trains no member twice."""
    config = tiny_run(tmp_path)
    config = replace(config, search=replace(config.search, finalists=4, finalist_share=0.5, efficiency="constraint", target_macs=3_000.0))
    whole = search(replace(config, output_dir=str(tmp_path / "whole")))
    entries = json.loads((whole.parent / "play_off.json").read_text())
    assert [sorted(map(int, entry["losses"])) for entry in entries].count([3, 6]) == 2 and len(entries) == 4
    last = [entry for entry in entries if "6" in entry["losses"]]
    best = min(last, key=lambda entry: entry["losses"]["6"])
    assert json.loads(whole.read_text()) == best["architecture"] and not (whole.parent / "play_off").exists()

    trained: list[int] = []
    train = Finals._trained

    def kill_third(finals: Finals, index: int, steps: int) -> Any:
        trained.append(index)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(finals, index, steps)

    monkeypatch.setattr(Finals, "_trained", kill_third)
    killed = replace(config, output_dir=str(tmp_path / "killed"))
    with pytest.raises(KeyboardInterrupt):
        search(killed)
    again = search(killed)
    assert json.loads((again.parent / "play_off.json").read_text()) == entries and again.read_text() == whole.read_text()
    assert len(trained) == 1 + 6, "the one that was killed, and every training once"


def test_what_is_held_out_is_learned_in_no_turn() -> None:
    labelled = Examples(TokenStore.from_lists([np.array([i]) for i in range(8)]), 0)
    made = Examples(TokenStore.from_lists([np.array([i]) for i in range(90, 94)]), 0)
    parts = SimpleNamespace(labelled=labelled, lesson=Examples.concatenate([labelled] * 3 + [made]), made=4)
    train, held = (Counter(int(part.tokens[i][0]) for i in range(len(part))) for part in Problem.hold_out(parts, 0.25, 3))
    assert len(held) == 2 and set(held.values()) == {1} and set(held) < set(range(8))
    assert train == Counter(3 * [i for i in range(8) if i not in held] + [90, 91, 92, 93])


@pytest.mark.filterwarnings("ignore")
def test_finalists_are_compared_on_what_they_did_not_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, int]] = []
    hold_out = Problem.hold_out
    monkeypatch.setattr(Problem, "hold_out", lambda problem, share, seed: asked.append((share, seed)) or hold_out(problem, share, seed))
    learned, fit = [], subject.fit

    def watched(student: Any, method: Any, splits: dict[str, Examples], *args: Any, **options: Any) -> Any:
        learned.append(splits["train"])
        return fit(student, method, splits, *args, **options)

    monkeypatch.setattr(subject, "fit", watched)
    monkeypatch.setattr(search_method, "fit", watched)
    config = tiny_run(tmp_path, controls=[], seed=5)
    folder = run(replace(config, search=replace(config.search, finalists=2)))
    assert asked == [(0.2, 5)] and len(learned) == 3 and learned[0] is learned[1] is learned[2], "nor did the search"
    report = json.loads((folder / "report.json").read_text())
    assert report["search"]["finalists"] == 2 and "finalists trained: 2" in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"finalists": 0}, "search.finalists"), ({"finalists": 2, "derive": "argmax"}, "search.finalists"),
        ({"finalists": 2, "finalist_share": 0.0}, "search.finalist_share"), ({"finalists": 2, "strategy": "one_shot"}, "front's knee"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    config = tiny_run(tmp_path)
    with pytest.raises(ConfigError, match=says):
        run(replace(config, search=replace(config.search, **settings)))
