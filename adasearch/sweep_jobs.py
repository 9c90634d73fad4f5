"""What a worker of a sweep does: one job in a process of its own, told to a log file, its error brought back as a line."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

import adasearch
from adasearch.config import RunConfig
from adasearch.console import LogProgress, quiet_third_parties
from adasearch.errors import AdasearchError, one_line
from adasearch.files import read_json, write_json
from adasearch.pipeline import prepare_only, run, time_only, train
from adasearch.progress import Progress
from adasearch.run_files import completed
from adasearch.settings import to_dict
from adasearch.user_code import import_once

# of the settings that may change in a folder (``pipeline.FREE``), those that what a job leaves depends on
DEPENDS = {"prepare": (), "table": (), "train": ("controls", "seeds"), "measure": ("controls", "seeds", "bench", "report_examples")}


@dataclass(frozen=True)
class Job:
    """A piece of work that may be lost and done again: it goes on from what its folder holds.

    Args:
        name: of the run, or of the preparation.
        kind: prepare (teacher and cache), table (of latencies), train (search, student, controls) or measure (what is left of the
            run: all of it, or scores, times and report).
        config: of the run; ``output_dir`` is its folder.
        needs: the preparation that must be done first; its folder.
        modules: the user's files, and names of modules, imported first.
        place: the folder that relative paths start from.
        log: the file that hears of the work.
        table: the folder of the latency table that the search reads, which must be measured first.
    """

    name: str
    kind: str
    config: RunConfig
    needs: Path | None
    modules: tuple[str, ...]
    place: Path
    log: Path
    table: Path | None = None

    @property
    def needed(self) -> list[str]:
        """Names of the jobs that must be done first."""
        return [folder.name for folder in (self.needs, self.table) if folder is not None]

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.config.output_dir)

    @property
    def is_done(self) -> bool:
        """Whether its result is there, and made with the settings that are asked for."""
        path = self.folder / "run.json"
        state = read_json(path) if path.exists() else {"stages": {}}
        if {"measure": "report"}.get(self.kind, self.kind) not in state["stages"]:
            return False
        made = _done_with(state)[self.kind]
        return made is not None and _telling(self.kind, completed(made, to_dict(RunConfig()))) == _telling(self.kind, to_dict(self.config))

    def begin(self) -> None:
        """Forget what the result was made with: if the job is lost, nobody knows whether it is the old one or the new."""
        self._note({self.kind: None})

    def end(self) -> None:
        """Note what the result was made with; who measures has trained what was missing."""
        kinds = ("train", "measure") if self.kind == "measure" else (self.kind,)
        self._note({kind: _telling(kind, to_dict(self.config)) for kind in kinds})

    def _note(self, changes: Mapping[str, Any]) -> None:
        path = self.folder / "run.json"
        if path.exists():
            state = read_json(path)
            write_json(path, {**state, "done_with": {**_done_with(state), **changes}})


def _done_with(state: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Kind of job -> what it was last done with; of a run.json that does not tell, what the run was begun with."""
    return state.get("done_with") or {kind: _telling(kind, state["config"]) for kind in DEPENDS}


def _telling(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that the result of such a job depends on; one that an older version did not know is left out."""
    return {key: settings[key] for key in DEPENDS[kind] if key in settings}


@dataclass(frozen=True)
class Outcome:
    """How a job ended: ``error`` is a line, None where all went well. ``is_lost``: its process ended without a word."""

    error: str | None = None
    is_lost: bool = False


def perform(job: Job) -> Outcome:
    """Do the job in this process."""
    os.chdir(job.place)
    quiet_third_parties()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "a", encoding="utf-8") as stream, LogProgress(stream) as progress:
        progress.message(f"{job.kind} {job.name}: process {os.getpid()}")
        try:
            write_json(job.log.with_suffix(".worker.json"), {"pid": os.getpid(), "kind": job.kind})
            for module in job.modules:
                import_once(module)
            adasearch.register_student()
            with threadpool_limits(job.config.threads):  # of the libraries that are not torch
                _do(job, progress)
        except AdasearchError as error:
            progress.message(f"error: {error}")
            return Outcome(one_line(error, 2_000))
        except Exception as error:  # the border of a process: one run's fault must not end the others
            stream.write(traceback.format_exc())
            return Outcome(f"{type(error).__name__}: {one_line(error, 2_000)} (traceback in {job.log})")
    return Outcome()


def _do(job: Job, progress: Progress) -> None:
    job.begin()
    if job.needs is not None:
        link_preparation(job.needs, job.folder)
    if job.table is not None:
        link(job.table / "search" / "latency.json", job.folder / "search" / "latency.json")
    {"prepare": prepare_only, "table": time_only, "train": train, "measure": run}[job.kind](job.config, progress)
    job.end()


def link_preparation(prepared: Path, folder: Path) -> None:
    """Let a run's folder have the teacher and the cache of its preparation, as links.

    Nothing is written through them: files are replaced, never changed, so a run that makes one anew makes its own.
    """
    for source in (prepared / "teacher", *sorted((prepared / "cache").iterdir())):
        if not source.name.startswith("."):
            link(source, folder / source.relative_to(prepared))


def link(source: Path, target: Path) -> None:
    """A relative link to what is there, unless something lies in its place."""
    if source.exists() and not os.path.lexists(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(os.path.relpath(source, target.parent), target_is_directory=source.is_dir())
