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
from adasearch import derive, search_method, systems
from adasearch.config import FinetuneConfig
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


def lesson(repeats: int = 3) -> SimpleNamespace:
    """Twenty texts of five words, that many times, and forty made ones: two of every text, with one or with four other words."""
    generator = np.random.default_rng(0)
    texts = [np.arange(10 * n, 10 * n + 5) for n in range(20)]
    texts[19] = np.array([*texts[18][:4], 189])  # labelled, and nearly the same
    made = [np.concatenate([text[changed:], generator.integers(300, 400, changed)]) for text in texts for changed in (1, 4)]
    labelled, extra = (Examples(TokenStore.from_lists(part), 0) for part in (texts, made))
    tokenizer = SimpleNamespace(all_special_ids=[0])
    whole = Examples.concatenate([labelled] * repeats + [extra])
    different = TokenStore.concatenate([labelled.tokens, extra.tokens])
    return SimpleNamespace(labelled=labelled, lesson=whole, made=40, tokenizer=tokenizer, different=different)


def texts_of(part: Examples) -> Counter[tuple[int, ...]]:
    return Counter(tuple(part.tokens[n].tolist()) for n in range(len(part)))


@pytest.mark.parametrize("is_bilevel", [False, True])
def test_what_members_are_compared_on_is_learned_in_no_turn_and_in_no_near_copy(is_bilevel: bool) -> None:
    problem = lesson()
    whole, parts = texts_of(problem.lesson), Problem.search_splits(problem, 0.4, 3, is_bilevel)
    train, valid, known, compared = (texts_of(part) for part in (parts.train, parts.valid, parts.known, parts.compared))
    assert len(compared) == (4 if is_bilevel else 8) and len(valid) == (4 if is_bilevel else 0)
    assert set(compared.values()) == {1} and not set(compared) & (set(known) | set(valid))
    copies = {other for other in whole for text in compared if other != text and len(set(other) & set(text)) >= 3}  # of five: 0.43 of all different words
    assert len(copies) == len(compared) + 2 and not copies & (set(known) | set(valid))
    assert known == Counter({text: times for text, times in whole.items() if text not in compared and text not in copies})
    assert train == Counter({text: times for text, times in known.items() if text not in valid})
    again = Problem.search_splits(problem, 0.4, 3, is_bilevel)
    assert texts_of(again.compared) == compared != texts_of(Problem.search_splits(problem, 0.4, 4, is_bilevel).compared)


def test_where_all_is_alike_something_is_left_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = lesson()
    monkeypatch.setattr("adasearch.near_copies.SIMILAR", 0.0)
    for share, gone in ((0.1, 0.25), (0.2, 0.3), (0.5, 0.75)):
        assert len(texts_of(Problem.search_splits(problem, share, 3).known)) == 60 - round(gone * 60)
    monkeypatch.setattr("adasearch.prepare.MOST_COPIES", 1.0)
    assert len(Problem.search_splits(problem, 0.5, 3, is_bilevel=True).valid) == 5, "the architecture has its texts whatever they are like"
    monkeypatch.setattr("adasearch.prepare.TEXTS", 3)
    assert len(Problem.search_splits(problem, 0.5, 3).compared) == 3


@pytest.mark.filterwarnings("ignore")
def test_finalists_are_compared_on_what_they_did_not_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned, weighed, fit, weigh = [], [], subject.fit, subject.member_loss

    def watched(student: Any, method: Any, splits: dict[str, Examples], *args: Any, **options: Any) -> Any:
        learned.append(splits["train"])
        return fit(student, method, splits, *args, **options)

    def watched_loss(student: Any, method: Any, texts: Examples, *args: Any, **options: Any) -> float:
        weighed.append(texts)
        return weigh(student, method, texts, *args, **options)

    for module in (subject, search_method):
        monkeypatch.setattr(module, "fit", watched)
    for module in (subject, derive):
        monkeypatch.setattr(module, "member_loss", watched_loss)
    config = tiny_run(tmp_path, controls=[], seed=5)
    folder = run(replace(config, search=replace(config.search, finalists=2)))
    assert len(learned) == 3 and len(weighed) > 3
    assert not any(set(texts_of(one)) & set(texts_of(other)) for one in learned for other in weighed), "nor did the search"
    report = json.loads((folder / "report.json").read_text())
    assert report["search"]["finalists"] == 2 and "finalists trained: 2" in (folder / "report.md").read_text()


def test_a_bilevel_search_learns_its_architecture_from_texts_that_its_weights_never_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen(Exception):
        """Nothing more is wanted of this search."""

    def watched(student: Any, method: Any, splits: dict[str, Examples], *args: Any, **options: Any) -> None:
        raise Seen(splits)

    monkeypatch.setattr(search_method, "fit", watched)
    config = tiny_run(tmp_path, finetune=FinetuneConfig(epochs=0.2, batch_size=16))
    with pytest.raises(Seen) as caught:
        search(replace(config, search=replace(config.search, mode="bilevel")))
    (splits,) = caught.value.args
    train, valid = splits["train"], splits["valid"]
    gold = train.select(np.flatnonzero(train.labels >= 0))  # a made text may say by chance what a labelled one says
    assert set(splits) == {"train", "valid"} and len(valid) >= 12 and len(gold) > 60 and (valid.labels >= 0).all()
    assert not set(texts_of(gold)) & set(texts_of(valid))


@pytest.mark.filterwarnings("ignore")
def test_a_killed_play_off_keeps_its_members_when_others_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that are measured may come in another order, or be others, when the search is derived again."""
    config = tiny_run(tmp_path)
    config = replace(config, search=replace(config.search, finalists=3, finalist_share=0.5))
    whole = search(replace(config, output_dir=str(tmp_path / "whole")))
    train, count = Finals._trained, []

    def kill_second(finals: Finals, index: int, steps: int) -> Any:
        count.append(index)
        if len(count) == 2:
            raise KeyboardInterrupt
        return train(finals, index, steps)

    killed = replace(config, output_dir=str(tmp_path / "killed"))
    with monkeypatch.context() as patch:
        patch.setattr(Finals, "_trained", kill_second)
        with pytest.raises(KeyboardInterrupt):
            search(killed)
    found = systems.finalists
    monkeypatch.setattr(systems, "finalists", lambda *args: found(*args)[::-1][:2])
    assert search(killed).read_text() == whole.read_text()


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
