"""The verbs that train: whole runs, their parts, many of them. Settings are the runs' own."""

from __future__ import annotations

from adasearch.config import RunConfig
from adasearch.errors import TrainingError
from adasearch.progress import Progress
from adasearch.sweep_config import SweepConfig
from adasearch.tune_config import TuneConfig
from adasearch.warm_config import WarmConfig


def do_run(config: RunConfig, progress: Progress) -> str:
    """The report, what to do next, and the run's folder."""
    from adasearch.html import commands, shown_path
    from adasearch.pipeline import run

    run_dir = run(config, progress)
    report, student = run_dir / "report.md", run_dir / "student"
    if not report.exists():  # a process that is not the one that reports
        return str(run_dir)
    next_steps = "\n".join(f"  {snippet.title}:\n    {snippet.code}" for snippet in commands(shown_path(student), run_dir)[:3])
    page = shown_path(run_dir / "report.html")
    return f"{report.read_text(encoding='utf-8')}\nThe same as a page, with the curves: {page}\n{next_steps}\n{run_dir}"


def do_search(config: RunConfig, progress: Progress) -> str:
    """The path of the architecture."""
    from adasearch.pipeline import search

    return str(search(config, progress))


def do_retrain(config: RunConfig, progress: Progress) -> str:
    """The student's folder."""
    from adasearch.pipeline import retrain

    return str(retrain(config, progress))


def do_tune(config: TuneConfig, progress: Progress) -> str:
    """The study's page, and its folder."""
    from adasearch.tune_study import tune

    return (tune(config, progress) / "tune.md").read_text(encoding="utf-8") + f"\n{config.folder}"


def do_sweep(config: SweepConfig, progress: Progress) -> str:
    """The table, and the sweep's folder. Raises ``TrainingError`` naming the runs that failed, after the table is printed."""
    from adasearch.sweep import sweep

    swept = sweep(config, progress)
    text = f"{swept.table}\n{swept.folder}"
    if swept.failed:
        print(text)
        raise TrainingError(
            f"{len(swept.failed)} of the sweep's runs failed: {', '.join(swept.failed)}; the same command tries them again,"
            f" logs are in {swept.folder / 'logs'}"
        )
    return text


def do_warm(config: WarmConfig, progress: Progress) -> str:
    """The warm supernet's folder."""
    from adasearch.warm_run import warm

    return str(warm(config, progress))
