"""The last word of a search: its best members are trained for a short while each, and half of them stay, again and again.

Weights that all members share rank them roughly; a short training of its own tells more, and costs less than a whole one.
Successive halving (Jamieson & Talwalkar 2016), each round's trainings from the beginning with a schedule of their own, so that
the last round's are what a whole training would be on fewer steps. The labelled texts that members are compared on are kept from
these trainings and from the search, and so are the texts that augmentation made near to them.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

from adasearch.architecture import Architecture, Space
from adasearch.comparison import comparison_texts, member_loss
from adasearch.config import RunConfig
from adasearch.files import read_json, write_json
from adasearch.fit import fit
from adasearch.fit_config import capped_steps
from adasearch.methods.distill import Distill
from adasearch.prepare import Problem, SearchSplits
from adasearch.progress import Progress
from adasearch.search_method import SearchMethod
from adasearch.starts import new_student
from adasearch.student import AdasearchForSequenceClassification
from adasearch.supernet import Supernet
from adasearch.tokens import Examples

Member = TypeVar("Member")


def rounds_of(members: int, steps: int) -> list[tuple[int, int]]:
    """(how many play, for how many steps each) by round: members halve, steps double up to ``steps``; none of a single member."""
    count = max(0, math.ceil(math.log2(members)))
    return [(math.ceil(members / 2**turn), max(1, round(steps * 2.0 ** (turn + 1 - count)))) for turn in range(count)]


def play_off(members: Sequence[Member], trial: Callable[[Member, int], float], steps: int) -> Member:
    """The member that is left. ``trial`` trains one for so many steps and gives its loss; of equals the earlier one stays."""
    left = list(members)
    for _, each in rounds_of(len(members), steps):
        losses = [trial(member, each) for member in left]
        order = sorted(range(len(left)), key=losses.__getitem__)
        left = [left[index] for index in order[: math.ceil(len(left) / 2)]]
    return left[0]


@dataclasses.dataclass
class Finals:
    """The play-off of a search's finalists, in ``folder``, which keeps its members: a killed one goes on with the same."""

    config: RunConfig
    problem: Problem
    space: Space
    supernet: Supernet
    method: SearchMethod
    found: list[Architecture]
    splits: SearchSplits
    folder: Path
    accelerator: Accelerator
    progress: Progress

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """Every member with its losses by steps: ``play_off.json``, from which a killed play-off goes on."""
        if not self.path.exists():
            write_json(self.path, [{"architecture": member.to_dict(), "losses": {}} for member in self.found])
        return read_json(self.path)

    @cached_property
    def members(self) -> list[Architecture]:
        """Those of ``entries``: where members are measured a search that goes on may find others."""
        return [Architecture.from_dict(entry["architecture"], where=str(self.path)) for entry in self.entries]

    @cached_property
    def compared(self) -> Examples:
        """The texts that members are compared on."""
        return comparison_texts(self.splits.compared, self.config.seed)

    @property
    def path(self) -> Path:
        """Of the losses."""
        return self.folder / "play_off.json"

    def winner(self) -> Architecture:
        """Play."""
        steps = capped_steps(self.config.retrain.steps, self.config.max_steps)
        chosen = play_off(range(len(self.members)), self.trial, max(1, round(self.config.search.finalist_share * steps)))
        write_json(self.path, self.entries)
        shutil.rmtree(self.folder / "play_off", ignore_errors=True)
        return self.members[chosen]

    def trial(self, index: int, steps: int) -> float:
        """A member's loss on the held-out texts after so many steps, the price of its cost included where there is one."""
        losses = self.entries[index]["losses"]
        if str(steps) not in losses:
            student = self._trained(index, steps)
            loss = member_loss(student, self.method, self.compared, is_trained=True)
            losses[str(steps)] = loss + self.method.member_penalty(self.members[index])
            write_json(self.path, self.entries)
            shutil.rmtree(self._work(index, steps))
        return losses[str(steps)]

    def _work(self, index: int, steps: int) -> Path:
        return self.folder / "play_off" / f"{index}-{steps}"

    def _trained(self, index: int, steps: int) -> AdasearchForSequenceClassification:
        config, member, task = self.config, self.members[index], self.problem.task
        torch.manual_seed(config.seed)
        student = new_student(member, config, self.problem, self.space, self.supernet, self.folder.parent / "cache", self.progress)
        settings = dataclasses.replace(config.retrain, steps=steps)
        method = Distill(settings, config.distill, task.problem_type, task.num_labels, member.width, max(1, member.depth))
        fit(
            student, method, {"train": self.splits.known}, settings, seed=config.seed, folder=self._work(index, steps),
            accelerator=self.accelerator, progress=self.progress, title=f"play-off, member {index + 1} of {len(self.members)}",
            checkpoint_seconds=config.checkpoint_seconds,
        )  # fmt: skip
        return student.cpu().eval()
