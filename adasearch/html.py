"""report.html: everything a person wants to see of a run, in one file that needs no network and runs no foreign script."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
import shlex
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from adasearch.card import Snippet, is_reader, usage
from adasearch.errors import ConfigError
from adasearch.formats import format_bytes, format_count, format_ms, format_score, format_threads, format_usd, metric_name
from adasearch.histories import read_histories, read_history
from adasearch.html_charts import cascade_chart, comparison_charts, search_charts, training_charts
from adasearch.markdown import how_measured, price_note, search_facts
from adasearch.report import FIGURES, Report
from adasearch.report_tables import (
    cascade_table,
    confusion_tables,
    deployments_table,
    honest_table,
    operations_table,
    shapes_table,
    starts_table,
    times,
)
from adasearch.sparse_tables import RUNTIMES_NOTE, SIZES_NOTE, runtimes_table, sizes_table, zeros_sentences
from adasearch.verdict import (
    cascade_sentence,
    disagreement_sentence,
    latency_sentence,
    served_model,
    usd_per_million,
    verdict,
    warnings,
)

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
PAGE_WIDTH = 1080.0  # pixels between the margins of a section
PICTURES = ("structure", "zeros", "tickets", "pruning", "cell", "network")  # taken from figures/ as they are; the page draws the rest itself, to its width
STAND_IN = {  # what is drawn in a picture, for those who do not see it
    "structure": "The layers of each pruned model: its heads, its feed-forward neurons and its hidden dimensions that are left",
    "zeros": "For each layer the share of its weights that are 0, of each sparse model",
    "tickets": "Two squares of colours, for heads and for neurons: the share in which the tickets of two steps differ",
    "pruning": "Over the steps, for each model: target and share saved, open gates of each family, matched layers, multipliers",
    "cell": "The derived cell: its nodes and the operation on every edge",
    "network": "The network from embeddings through the cells to the read-out, with the parameters of each part",
}


@dataclass(frozen=True)
class KeyFigure:
    """A number at the top of the page and what it says."""

    number: str
    text: str


def html(report: Report, run_dir: Path | None = None) -> str:
    """The page. Of ``run_dir`` it takes figures/, the histories of search and training and the student's deploy.json,
    as far as they are there; whatever is missing has no section. Raises ``ConfigError`` where one cannot be read."""
    folder = None if run_dir is None else Path(run_dir)
    if folder is not None and (folder / "student" / "deploy.json").is_file():
        report = dataclasses.replace(report, deployments=_deployment(folder / "student"))
    runtimes = runtimes_table(report)  # which has all shapes
    environment = Environment(
        loader=PackageLoader("adasearch"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script, _, _ = environment.loader.get_source(environment, "report.js")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()  # the one script the page may run
    student = shown_path(folder / "student") if folder is not None else "path/to/student"
    return environment.get_template("report.html.j2").render(
        report=report, script=Markup(script), script_hash=allowed, metric=metric_name(report.metric),
        verdict=verdict(report), warnings=warnings(report), key_figures=key_figures(report),
        comparison=comparison_charts(report), honest=honest_table(report), how=how_measured(report), price=price_note(report),
        shapes=None if runtimes else shapes_table(report), starts=starts_table(report), deployments=deployments_table(report), deployed=_deployed(report),
        prediction=latency_sentence(report), cascade=cascade_chart(report), cascade_table=cascade_table(report),
        served=served_model(report), cascade_text=cascade_sentence(report), calibration=_calibration(report), confusion=confusion_tables(report),
        disagreement_text=disagreement_sentence(report), examples=report.disagreements.get("examples") or [],
        pictures=_pictures(folder), search_facts=search_facts(report.search), operations=operations_table(report.search),
        search=search_charts(_history(folder)), training=training_charts({} if folder is None else read_histories(folder), report.systems),
        sizes=sizes_table(report), sizes_note=SIZES_NOTE, runtimes=runtimes, runtimes_note=RUNTIMES_NOTE,
        zeros=zeros_sentences(report), snippets=usage(student, report), commands=commands(student, folder, is_reader(report)),
        hardware=_hardware(report),
    )  # fmt: skip


def shown_path(path: Path) -> str:
    """The path relative to where the command runs, if it lies below; a report is passed on, a home folder is not."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()


def key_figures(report: Report) -> list[KeyFigure]:
    """The few numbers that the page begins with, as far as they are known."""
    student, ratio = report.find("student"), report.ratios.get("student_vs_teacher") or {}
    if student is None:
        return []
    found = []
    if ratio.get("score") is not None:
        found.append(KeyFigure(f"{100 * ratio['score']:.1f}%", f"of the teacher's {metric_name(report.metric)}"))
    elif student.score_mean is not None:
        found.append(KeyFigure(format_score(student.score_mean, report.metric), metric_name(report.metric)))
    if ratio.get("speed") is not None:
        found.append(KeyFigure(times(ratio["speed"]), "the teacher's speed"))
    if student.latency_ms_p50 is not None:
        found.append(KeyFigure(f"{format_ms(student.latency_ms_p50)} ms", f"a call of {student.batch_size} × {student.seq_len}"))
    if ratio.get("size") is not None:
        found.append(KeyFigure(times(ratio["size"]), f"smaller: {format_bytes(student.size_bytes)}"))
    elif student.params is not None:
        found.append(KeyFigure(format_count(student.params), "parameters"))
    if student.size_ratios and student.sparse_bytes is not None:
        found.append(KeyFigure(times(student.size_ratios["whole"]), f"smaller as the sparse file: {format_bytes(student.sparse_bytes)}"))
    if (cost := usd_per_million(student, report.price_per_hour)) is not None:
        found.append(KeyFigure(format_usd(cost), "per million texts, assumed price"))
    return found


def commands(student: str, folder: Path | None, answers_questions: bool = False) -> list[Snippet]:
    """What one types to use the student and to write this page again."""
    name = shlex.quote(student)
    path = name if folder is None else shlex.quote(shown_path(folder))
    if answers_questions:
        files = "--input_file questions.jsonl --output_file answers.jsonl"
        found = [Snippet("Answer a file of questions", "sh", f"adasearch predict {name} {files}")]
    else:
        found = [
            Snippet("Label a file", "sh", f"adasearch predict {name} --input_file texts.csv --output_file labelled.csv"),
            Snippet("Serve it over HTTP", "sh", f"adasearch serve {name} --port 8000"),
            Snippet("Choose runtime and precision by measuring them here", "sh", f"adasearch quantize {path}"),
        ]
    if folder is not None:
        found.append(Snippet("Write this page again", "sh", f"adasearch report {path}"))
    return found


def inline_figure(source: str, name: str, title: str) -> Markup:
    """A picture written by matplotlib as an element of the page: no prologue, no metadata, no style sheet of its own,
    nothing that runs, its ids prefixed by ``name`` so that two pictures do not share any. Raises ``ConfigError``."""
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    try:
        root = ET.fromstring(source)
    except ET.ParseError as error:
        raise ConfigError(f"figures/{name}.svg: it cannot be read ({error}); adasearch inspect draws it again") from error
    unwanted = {f"{{{SVG}}}{tag}" for tag in ("metadata", "script", "style", "foreignObject")}
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in unwanted]:
            parent.remove(child)
        for key, value in list(parent.attrib.items()):
            if key.lower().startswith("on"):
                del parent.attrib[key]
            elif key == "id":
                parent.set(key, f"{name}-{value}")
            elif key == f"{{{XLINK}}}href":
                parent.set(key, f"#{name}-{value[1:]}") if value.startswith("#") else parent.attrib.pop(key)
            elif "url(" in value:
                parent.set(key, re.sub(r"url\([\"']?#?([^)\"']*)[\"']?\)", rf"url(#{name}-\1)", value))
            if key == "d":
                parent.set(key, re.sub(r"(\.\d\d)\d+", r"\1", " ".join(value.split())))
    width = float(root.get("viewBox", "0 0 0 0").split()[2])
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    shown = width * min(max(PAGE_WIDTH / max(width, 1.0), 1.0), 1.35)  # fills the page if it may, never smaller than drawn
    root.attrib |= {"class": "picture", "role": "img", "aria-label": title, "style": f"width: {shown:.0f}px"}
    return Markup(ET.tostring(root, encoding="unicode"))


def _pictures(folder: Path | None) -> list[tuple[str, Markup]]:
    found = []
    for name in PICTURES if folder is not None else ():
        path = folder / "figures" / f"{name}.svg"
        if path.is_file():
            found.append((FIGURES[name][1], inline_figure(path.read_text(encoding="utf-8"), name, STAND_IN[name])))
    return found


def _history(folder: Path | None) -> list[dict[str, Any]]:
    path = None if folder is None else folder / "search" / "history.jsonl"
    return read_history(path) if path is not None and path.is_file() else []


def _deployment(student: Path) -> dict[str, Any]:
    """The choice of runtime and precision that was saved last, which may be later than the report."""
    from adasearch.deploy import load_deployment  # torch and the runtimes: seconds, for this file alone

    return dataclasses.asdict(load_deployment(student))


def _deployed(report: Report) -> str:
    found = report.deployments
    if not found.get("runtime"):
        return ""
    how = f"{found['runtime']} {found.get('precision') or ''}".strip()
    speed = "" if found.get("latency_ms_p50") is None else f": {format_ms(found['latency_ms_p50'])} ms"
    shape = f" at batch {found['batch_size']} × {found['seq_len']} word pieces" if found.get("seq_len") else ""
    return f"Kept: {how} on {format_threads(found.get('threads'))}{speed}{shape}."


def _calibration(report: Report) -> str:
    """What the cascade's temperature was fitted on."""
    found = report.cascade
    if not found.get("fitted_on"):
        return "not fitted: too few validation examples"
    same = "; they are the held-out ones here" if found.get("is_held_out") else ""
    return f"temperature {found['temperature']:.2f}, fitted on {found['fitted_on']:,} validation examples{same}"


def _hardware(report: Report) -> list[tuple[str, str]]:
    known = {key: value for key, value in report.hardware.items() if value is not None}
    memory = known.pop("memory_bytes", None)
    facts = [(key.replace("_", " "), str(value)) for key, value in known.items()]
    return facts + ([("memory", f"{memory / 1e9:.1f} GB")] if memory else [])
