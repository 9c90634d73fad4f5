"""A finished run read back from its folder: student, task, and the texts it learned from, with nothing computed anew."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adasearch.errors import ConfigError, DataError
from adasearch.files import fingerprint, read_json
from adasearch.lesson import lesson_rows, soft_label_logits
from adasearch.metrics import with_unknown
from adasearch.run_files import DATA_FILES, check_same_data, model_in
from adasearch.settings import part_of
from adasearch.sources import find_preset
from adasearch.task_config import QUESTION_SUFFIXES, TaskConfig
from adasearch.tasks import Task, load_task
from adasearch.tokens import Examples, TokenStore


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run and the settings it was made with."""

    folder: Path
    config: dict[str, Any]

    @property
    def is_own_vocabulary(self) -> bool:
        """Whether its students have a vocabulary other than the teacher's."""
        return self.config.get("vocabulary", {}).get("kind", "teacher") != "teacher"

    def metrics_of(self, problem_type: str) -> dict[str, Any]:
        """What ``choose_metrics`` asks of a run, for labels that are not its own: the metric that it was given, and those of its preset."""
        preset = find_preset(str(self.config.get("task")))
        return {"asked": self.config.get("metric"), "own": preset.metrics if preset and preset.problem_type == problem_type else ()}

    def task(self, data_dir: str | None = None, *, instead: str) -> Task:
        """Its task, loaded again without the unlabelled texts; ``data_dir`` where the data have moved.

        Files that the run was given by a path from where it was begun are found from anywhere. Raises what ``load_task`` and, for data that
        have changed, ``check_same_data`` raise; it says what the user may give ``instead``.
        """
        try:
            return self._task(data_dir)
        except (ConfigError, DataError) as error:
            why = str(error).split("; choices:")[0]  # those of a run that goes on
            raise type(error)(f"{self.folder}: its data cannot be read again ({why}); choices: {instead}") from error

    def _task(self, data_dir: str | None) -> Task:
        saved = part_of(TaskConfig, self.config)
        is_file = Path(saved.task).suffix.lower() in QUESTION_SUFFIXES
        places = (*DATA_FILES, "data_dir", *(("task",) if is_file else ()))
        found = {name: self._found(getattr(saved, name)) for name in places if getattr(saved, name)}
        changes = {**found, "unlabeled_file": None, **({} if data_dir is None else {"data_dir": data_dir})}
        if saved.unlabeled_file and not saved.train_file and find_preset(saved.task):  # the columns may be that file's; the preset's are known
            changes |= {name: getattr(TaskConfig, name) for name in ("text_column", "text_pair_column", "label_column")}
        settings = dataclasses.replace(saved, **changes)
        seed = self.config.get("data_seed")
        task = load_task(settings, seed=self.config["seed"] if seed is None else seed, cache=self.folder / "cache")
        check_same_data(self.folder / "run.json", task.data, ("train", "validation", "test"))
        return task

    def _found(self, given: str) -> str:
        """A path of the run's settings, from where the run was begun; where that leads nowhere now, from here."""
        path = self.folder / "run.json"
        begun_in = read_json(path).get("directory") if path.exists() else None
        there = Path(begun_in or ".") / given
        return str(there) if there.exists() else given

    def stores(self, kind: str) -> list[TokenStore]:
        """The texts of one kind in the student's pieces, all that lie in the cache: train, transfer or unlabeled."""
        name = f"student_{kind}" if self.is_own_vocabulary else kind
        # a fingerprint has 16 characters; parts of an unfinished set have a number behind it
        paths = sorted((self.folder / "cache").glob(f"{name}-{'?' * 16}.offsets.npy"))
        return [TokenStore.load(path.parent, path.name.removesuffix(".offsets.npy")) for path in paths]

    def lesson(self, task: Task) -> Examples:
        """What its students learned from, with the teacher's logits or the soft labels in their place; probes are left out.

        Raises ``ConfigError`` when the cache holds no texts that fit the teacher's outputs.
        """
        if self.is_own_vocabulary:
            raise ConfigError(
                f"{self.folder}: its students have a vocabulary of their own, and what the teacher said of their texts is"
                " not kept beside them; choices: a run with the teacher's vocabulary"
            )
        soft = None if task.train.soft_labels is None else soft_label_logits(task.train.soft_labels, task.problem_type)
        found = next(self._taught(task, soft), None)
        if found is None:
            raise ConfigError(f"{self.folder}/cache: no teacher's outputs for the run's texts; choices: a whole run's folder")
        tokens, logits = found
        if soft is not None:
            logits = np.concatenate([soft, logits[len(soft) :]])
        known = Examples(tokens, self._pad_token_id(), with_unknown(task.train.labels, len(tokens)), logits)
        share = self.config.get("transfer", {}).get("labelled_share", 0.3)
        return known.select(lesson_rows(len(task.train), len(known), share))

    def _taught(self, task: Task, soft: np.ndarray | None) -> Iterator[tuple[TokenStore, np.ndarray]]:
        """The lesson's texts and what the teacher said of them; of a run without a teacher the training texts and their soft labels."""
        for tokens in self._candidates(task):
            path = self.folder / "cache" / f"teacher-{fingerprint(tokens.ids, tokens.offsets)}.npy"
            if path.is_file():
                yield tokens, np.load(path, mmap_mode="r")
            elif self.config.get("teacher") == "none" and soft is not None:
                yield tokens, soft

    def _candidates(self, task: Task) -> Iterator[TokenStore]:
        """Every way to put a lesson's texts together from the stores there are; an old one may lie beside the right one."""
        train = [store for store in self.stores("train") if len(store) == len(task.train)]
        extra = [[*self.stores(kind), None] for kind in ("transfer", "unlabeled")]
        for parts in itertools.product(train, *extra):
            yield TokenStore.concatenate([part for part in parts if part is not None])

    def _pad_token_id(self) -> int:
        return read_json(self.folder / "student" / "config.json")["pad_token_id"]


def find_run(path: Path) -> tuple[Path, FinishedRun | None]:
    """The student's folder and its run: of a run's folder, of its ``student/`` or of one of its ``models/``.

    The run is None for a student that lies elsewhere. Raises ``ConfigError`` when there is no student.
    """
    student = Path(model_in(path))
    if not (student / "config.json").is_file():
        raise ConfigError(f"student: {student}: no student's folder (config.json is missing); choices: runs/<name>, runs/<name>/student")
    for folder in student.resolve().parents[:2]:
        if (folder / "run.json").is_file():
            config = read_json(folder / "run.json")["config"]
            return student, FinishedRun(folder, config) if "task" in config else None  # a language model's run has none
    return student, None
