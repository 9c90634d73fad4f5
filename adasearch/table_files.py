"""Tables as files: Markdown, CSV, LaTeX (booktabs), PNG. A table is text in cells; what it means is its maker's."""

from __future__ import annotations

import csv
import io
import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from adasearch.canvas import INK, PNG_DPI, new_canvas, text_width
from adasearch.errors import ConfigError
from adasearch.files import write_atomically, write_text
from adasearch.formats import markdown_table

FORMATS = ("md", "csv", "latex", "png")
LATEX = {  # character -> what LaTeX prints it from
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "×": r"$\times$", "†": r"$^\dagger$", "–": "--", '"': r"\textquotedbl{}",
}  # fmt: skip
SIZE, LINE, GAP, MARGIN = 8.0, 0.19, 0.16, 0.2  # points; inches: height of a line, between columns, around the picture
WRAP, HEADER_WRAP = {"cell": 34, "system": 34}, 11  # characters a line of a picture: in these columns, in the header


@dataclass(frozen=True)
class Table:
    """Cells as text. ``groups`` names the group of each line: lines of a group stand together under its name.

    ``text_columns`` are set flush left, the others are numbers; ``notes`` stand below.
    """

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...]
    notes: tuple[str, ...]
    text_columns: tuple[int, ...] = (0,)

    def grouped(self) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
        """Each group's name and lines, in order."""
        for name, members in itertools.groupby(zip(self.groups, self.lines), key=lambda item: item[0]):
            yield name, [line for _, line in members]


def to_markdown(tables: Sequence[Table]) -> str:
    """A section a table: one Markdown table a group, then the notes, which are said once where all share them."""
    parts = []
    for table in tables:
        parts.append(f"## {table.title}")
        for name, lines in table.grouped():
            header, *cells = ([_escape_markdown(cell) for cell in line] for line in (table.header, *lines))
            parts += [f"**{name}**", markdown_table(header, cells, table.text_columns)]
    notes = dict.fromkeys(note for table in tables for note in table.notes)
    return "\n\n".join([*parts, *notes]) + "\n"


def _escape_markdown(text: str) -> str:
    """One line in which neither ``*``, ``_``, ``<`` nor a backtick is markup; of bars the table takes care."""
    return re.sub(r"([\\*_`<\[])", r"\\\1", " ".join(text.split()))


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """A line a row; numbers in full, None empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


def to_latex(tables: Sequence[Table]) -> str:
    r"""``table*`` floats for ``\input``; they need booktabs and graphicx, whose ``\resizebox`` fits them to the page."""
    parts = [r"% needs \usepackage{booktabs,graphicx,textcomp} and \usepackage[T1]{fontenc}"]
    for table in tables:
        columns = "".join("l" if column in table.text_columns else "r" for column in range(len(table.header)))
        body = [r"\toprule", _latex_line(table.header)]
        for name, lines in table.grouped():
            body += [r"\midrule", rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{{escape_latex(name)}}}}} \\"]
            body += [_latex_line(line) for line in lines]
        notes = " ".join(escape_latex(note) for note in table.notes)
        parts.append("\n".join([
            r"\begin{table*}[t]", r"\centering", rf"\caption{{{escape_latex(table.title)}. {notes}}}",
            r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{{columns}}}", *body, r"\bottomrule",
            r"\end{tabular}}", r"\end{table*}",
        ]))  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(escape_latex(cell) for cell in cells) + r" \\"


def to_figure(table: Table) -> Figure:
    """The table as a picture, wide cells on several lines, as wide and high as it must be."""
    wrapped = {line: [_wrap(cell, WRAP.get(table.header[c], 60)) for c, cell in enumerate(line)] for line in table.lines}
    header = [_wrap(cell, HEADER_WRAP) for cell in table.header]
    widths = [
        1.03 * max(text_width(part, SIZE, "bold" if line is header else "normal") for line in (header, *wrapped.values()) for part in line[c])
        for c in range(len(table.header))
    ]
    lefts = [MARGIN + sum(widths[:c]) + GAP * c for c in range(len(widths))]
    width = lefts[-1] + widths[-1] + MARGIN
    letters = max(40, int((width - 2 * MARGIN) / text_width("n", SIZE - 1)))
    notes = [part for note in table.notes for part in textwrap.wrap(note, letters)]
    heights = [max(map(len, wrapped[line])) for line in table.lines]
    groups = len(list(table.grouped()))
    count = 2.4 + max(map(len, header)) + sum(heights) + 0.25 * len(heights) + 1.5 * groups + 0.9 * len(notes)
    figure, axes = new_canvas(width, count * LINE + 2 * MARGIN)
    y = count * LINE + MARGIN

    def put(line: Sequence[Sequence[str]], y: float, weight: str) -> None:
        for c, parts in enumerate(line):
            is_text = c in table.text_columns
            for number, part in enumerate(parts):
                place = {"ha": "left"} if is_text else {"ha": "right"}
                x = lefts[c] if is_text else lefts[c] + widths[c]
                axes.text(x, y - number * LINE, part, size=SIZE, weight=weight, color=INK, va="top", parse_math=False, **place)

    def rule(y: float, thickness: float) -> None:
        axes.plot([MARGIN, width - MARGIN], [y, y], color=INK, linewidth=thickness)

    axes.text(MARGIN, y, table.title, size=SIZE + 2, weight="bold", color=INK, va="top", parse_math=False)
    y -= 1.6 * LINE
    rule(y + 0.2 * LINE, 1.2)
    put(header, y, "bold")
    y -= max(map(len, header)) * LINE
    for name, lines in table.grouped():
        rule(y, 0.6)
        axes.text(MARGIN, y - 0.3 * LINE, name, size=SIZE, style="italic", color=INK, va="top", parse_math=False)
        y -= 1.5 * LINE
        for line in lines:
            put(wrapped[line], y, "normal")
            y -= (max(map(len, wrapped[line])) + 0.25) * LINE
    rule(y, 1.2)
    for number, note in enumerate(notes):
        axes.text(MARGIN, y - (0.4 + 0.9 * number) * LINE, note, size=SIZE - 1, color=INK, va="top", parse_math=False)
    return figure


def _wrap(text: str, letters: int) -> list[str]:
    """Lines of so many letters; a count stays with what is counted."""
    return textwrap.wrap(re.sub(r"\b(\d+) ", "\\1\u00a0", text), letters, break_on_hyphens=False) or [""]


def _save_png(figure: Figure, path: Path) -> None:
    settings = {"format": "png", "dpi": PNG_DPI, "metadata": {"Software": None}}
    write_atomically(path, lambda partial: figure.savefig(partial, **settings))


def write_tables(
    tables: Sequence[Table], rows: Sequence[dict[str, Any]], output_dir: Path, formats: Sequence[str], stem: str = "speed_table"
) -> tuple[str, list[Path]]:
    """Write ``<stem>.*`` in every format asked for; returns the Markdown and the paths. Raises ``ConfigError``."""
    for index, name in enumerate(formats):
        if name not in FORMATS:
            raise ConfigError(f"formats[{index}]: {name!r} is not known; choices: {', '.join(FORMATS)}")
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"output_dir: {output_dir} is a file; name a folder")
    text, written = to_markdown(tables), []
    made = {"md": lambda: text, "csv": lambda: to_csv(rows), "latex": lambda: to_latex(tables)}
    for name in dict.fromkeys(formats):
        if name == "png":
            for table in tables:
                written.append(output_dir / f"{stem}_{table.title.lower().replace(' ', '_')}.png")
                _save_png(to_figure(table), written[-1])
        else:
            written.append(output_dir / f"{stem}.{'tex' if name == 'latex' else name}")
            write_text(written[-1], made[name]())
    return text, written
