"""The three files of a report: report.json as measured, report.md and report.html made from it."""

from __future__ import annotations

from pathlib import Path

from adasearch.files import write_json, write_text
from adasearch.html import html
from adasearch.markdown import markdown
from adasearch.report import Report, figures_of, read_report
from adasearch.sparse_pretraining_report import read_pretraining, write_pretraining


def write_report(run_dir: Path, report: Report) -> Path:
    """Write report.json, then report.md beside it; returns the latter. Raises ``ConfigError`` when it is not valid."""
    report.validate()
    write_json(Path(run_dir) / "report.json", report.to_dict())
    return _write_markdown(Path(run_dir), report)


def write_html(run_dir: Path, report: Report) -> Path:
    """Write report.html, with the pictures of figures/ and the curves of the run's histories in it; returns its path."""
    path = Path(run_dir) / "report.html"
    write_text(path, html(report, Path(run_dir)))
    return path


def rebuild_report(run_dir: Path) -> Path:
    """Write report.md and report.html again from report.json; returns the latter. Raises ``ConfigError``.

    A sparse pre-training has no systems to compare and no page: of it report.md and figures/ are written.
    """
    run_dir = Path(run_dir)
    run_dir = run_dir.parent if run_dir.is_file() else run_dir
    if pretraining := read_pretraining(run_dir):
        return write_pretraining(run_dir, pretraining)
    report = read_report(run_dir)
    _write_markdown(run_dir, report)
    return write_html(run_dir, report)


def _write_markdown(run_dir: Path, report: Report) -> Path:
    figures = figures_of(run_dir)
    if not any(s.score_mean is not None and s.latency_ms_p50 for s in report.systems):
        figures = [name for name in figures if name != "comparison"]  # there is no point to draw in it
    if report.search.get("depth") == 0:
        figures = [name for name in figures if name != "cell"]  # a bag of embeddings has none
    write_text(run_dir / "report.md", markdown(report, figures=figures))
    return run_dir / "report.md"
