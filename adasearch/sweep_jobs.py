"""What a worker of a sweep does: one job in a process of its own, told to a log file, its error brought back as a line."""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass
from pathlib import Path

from threadpoolctl import threadpool_limits

import adasearch
from adasearch.cli import import_user_code
from adasearch.config import RunConfig
from adasearch.console import LogProgress, quiet_third_parties
from adasearch.errors import AdasearchError
from adasearch.files import read_json, write_json
from adasearch.pipeline import prepare_only, run, train
from adasearch.progress import Progress


@dataclass(frozen=True)
class Job:
    """A piece of work that may be lost and done again: it goes on from what its folder holds.

    Args:
        name: of the run, or of the preparation.
        kind: prepare (teacher and cache), train (search, student, controls) or measure (what is left of the run: all of it,
            or scores, times and report).
        config: of the run; ``output_dir`` is its folder.
        needs: the preparation that must be done first; its folder.
        modules: files with the user's operations, imported first.
        place: the folder that relative paths start from.
        log: the file that hears of the work.
    """

    name: str
    kind: str
    config: RunConfig
    needs: Path | None
    modules: tuple[str, ...]
    place: Path
    log: Path

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.config.output_dir)

    @property
    def is_done(self) -> bool:
        """Whether its result is there."""
        path = self.folder / "run.json"
        stage = {"measure": "report"}.get(self.kind, self.kind)
        return path.exists() and stage in read_json(path)["stages"]


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
                import_user_code(module)
            adasearch.register_student()
            with threadpool_limits(job.config.threads):  # of the libraries that are not torch
                _do(job, progress)
        except AdasearchError as error:
            progress.message(f"error: {error}")
            return Outcome(" ".join(str(error).split()))
        except Exception as error:  # the border of a process: one run's fault must not end the others
            stream.write(traceback.format_exc())
            return Outcome(f"{type(error).__name__}: {' '.join(str(error).split())} (traceback in {job.log})")
    return Outcome()


def _do(job: Job, progress: Progress) -> None:
    if job.needs is not None:
        link_preparation(job.needs, job.folder)
    {"prepare": prepare_only, "train": train, "measure": run}[job.kind](job.config, progress)


def link_preparation(prepared: Path, folder: Path) -> None:
    """Let a run's folder have the teacher and the cache of its preparation, as links.

    Nothing is written through them: files are replaced, never changed, so a run that makes one anew makes its own.
    """
    for source in (prepared / "teacher", *sorted((prepared / "cache").iterdir())):
        target = folder / source.relative_to(prepared)
        if not source.exists() or source.name.startswith(".") or os.path.lexists(target):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(os.path.relpath(source, target.parent), target_is_directory=source.is_dir())
