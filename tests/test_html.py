"""report.html: says what the report says, trusts no text, needs no network; and, in headless Chromium, how it looks and acts."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from pictures import history
from reports import full_report, make_report

from adasearch import canvas, html
from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json, write_text
from adasearch.formats import format_ms
from adasearch.report import KINDS, Report, System
from adasearch.report_files import rebuild_report, write_html, write_report
from adasearch.verdict import cascade_sentence, disagreement_sentence, latency_sentence, usd_per_million, verdict, warnings

RESULTS = Path(__file__).parents[1] / "results" / "runs"
SECTIONS = ["speed", "systems", "deployments", "cascade", "confusion", "disagreements", "architecture", "search", "training", "use", "run"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS, SCHEMES = (1280, 375), ("light", "dark")


def write_run(folder: Path, report: Report) -> Path:
    """A run's folder as far as the page reads it; returns report.html."""
    write_report(folder, report)
    (folder / "search").mkdir()
    (folder / "search" / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in history()), encoding="utf-8")
    for seed in (1, 2):
        steps = [{"step": 10 * n, "loss": 1 / n, "validation": {"accuracy": 0.5 + n / 50}} for n in range(1, 9)]
        write_json(folder / "models" / f"student-{seed}" / "history.json", steps)
    figure, axes = canvas.new_canvas(8, 3)
    canvas.put_box(axes, 1, 1.5, 2, 1, "#0072B2")
    canvas.put_lines(axes, 2, 1.5, [canvas.head("conv <3>")])
    for name in html.PICTURES:
        canvas.save_figure(figure, folder / "figures" / name)
    return write_html(folder, report)


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a report with everything in it."""
    return write_run(tmp_path_factory.mktemp("run"), full_report())


def sections(page: str) -> list[str]:
    """The ids of the page's sections."""
    return re.findall(r'<section id="([a-z]+)"', page)


def words(page: str) -> str:
    """The text of a page without markup, spaces made one."""
    body = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", body)))


# --- the text of the page ------------------------------------------------------------------------------------------


def test_everything_that_is_known_has_its_section(report_file: Path) -> None:
    page, report = report_file.read_text(encoding="utf-8"), full_report()
    assert sections(page) == SECTIONS
    said = words(page).replace("\u00a0", " ")
    for text in (verdict(report), cascade_sentence(report), disagreement_sentence(report), *warnings(report), "temperature 1.40, fitted on 60",
                 latency_sentence(report), "Latency: -25% off.", "Kept: openvino int8", report.command, report.commit):  # fmt: skip
        assert text in said, text
    student = report.find("student")
    assert f"${usd_per_million(student, 0.04):.4f}" in said  # 0.04 * 1e6 / 2000 / 3600 = 0.0056 dollars
    assert usd_per_million(student, 0.04) == pytest.approx(0.04 * 1e6 / 2000 / 3600)
    assert "Cost per million texts assumes $0.040 for one core and hour" in said


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_not_known_has_no_section_and_no_hole(kind: str) -> None:
    bare = make_report(System("bare", kind), majority={}, seeds=[], hardware={}, search={}, command=None, commit=None, notes=[])
    page = html.html(bare)
    assert sections(page) == ["systems", "use", "run"]
    code = re.sub(r"<code>.*?</code>", "", page, flags=re.S)
    assert "None" not in words(code) and "nan" not in words(code).split()


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_reports_of_earlier_versions_still_make_a_page(path: Path) -> None:
    data = read_json(path)
    if "systems" not in data:
        pytest.skip(f"{path.name} is a benchmark, not a run's report")
    report = Report.from_dict(data, where=path.name)
    page = html.html(report)
    assert verdict(report) in words(page).replace("\u00a0", " ")
    for system in report.systems:
        assert system.name in words(page) and format_ms(system.latency_ms_p50) in words(page)


def test_texts_of_the_data_are_text_and_nothing_else() -> None:
    bad = '<img src=x onerror=alert(1)>"\'&{{ 7 * 7 }}'
    plain = full_report()
    found = dataclasses.replace(
        plain, task=bad, command=bad, commit=bad, notes=[bad], hardware={bad: bad}, search={"operations": {bad: 2}, "space": bad},
        systems=[dataclasses.replace(s, name=bad, note=bad) for s in plain.systems], confusion={"labels": [bad], "student": [[1]]},
        disagreements={**plain.disagreements, "examples": [{**item, "text": bad, "gold": bad, "pair": bad} for item in plain.disagreements["examples"]]},
        deployments={**plain.deployments, "runtime": bad, "tried": [{"runtime": bad, "precision": bad, "score": 0.5}]},
    )  # fmt: skip
    page = html.html(found)
    assert "<img" not in page and page.count("<script") == 1
    assert words(page).count(bad) > 20


def test_the_page_asks_for_nothing_outside(report_file: Path) -> None:
    page = report_file.read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href|action|poster|srcset|data)\s*=\s*["']([^"']*)""", page)
    assert links and [link for link in links if not link.startswith(("#", "data:"))] == []
    assert [url for url in re.findall(r"url\(([^)]*)\)", page) if not url.startswith("#")] == [] and "@import" not in page
    assert "default-src 'none'" in page


def test_only_our_script_may_run(report_file: Path) -> None:
    page = report_file.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert not re.search(r"<[^>]*\son\w+\s*=", re.sub(r"<script>.*</script>", "", page, flags=re.S))


def test_the_page_shows_the_choice_that_was_saved_last(tmp_path: Path) -> None:
    write_report(tmp_path, make_report())
    assert "deployments" not in sections(rebuild_report(tmp_path).read_text(encoding="utf-8"))
    write_json(tmp_path / "student" / "deploy.json", full_report().deployments)
    page = rebuild_report(tmp_path).read_text(encoding="utf-8")
    assert "deployments" in sections(page) and "Kept: openvino int8 on one thread: 0.60 ms at batch 1 × 128 word pieces." in words(page)
    assert "−0.2" in words(page)  # 87.8 of 88.0


@pytest.mark.parametrize(("name", "content"), [("student/deploy.json", "{"), ("student/deploy.json", "[]"), ("search/history.jsonl", "{"), ("figures/cell.svg", "<svg")])
def test_a_broken_file_is_named_and_nothing_is_written(name: str, content: str, tmp_path: Path) -> None:
    write_report(tmp_path, make_report())
    write_text(tmp_path / name, content)
    with pytest.raises(ConfigError, match=re.escape(name.rsplit("/")[-1])) as caught:
        write_html(tmp_path, make_report())
    assert "\n" not in str(caught.value) and not (tmp_path / "report.html").exists()


def test_a_picture_brings_nothing_but_its_shapes_and_shares_no_name() -> None:
    source = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 100 50" width="100pt">
    <metadata>m</metadata><script>alert(1)</script><defs><style>*{}</style><clipPath id="p1"><path d="M 0 0.123456
    L 1 1"/></clipPath></defs><g onload="alert(1)"><use xlink:href="#p1" clip-path="url(#p1)"/><a xlink:href="http://x/"><text>a &lt; b</text></a></g></svg>"""
    found = [html.inline_figure(source, name, "Title <&>") for name in ("one", "two")]
    ids = [set(re.findall(r'\bid="([^"]+)"', picture)) for picture in found]
    assert ids == [{"one-p1"}, {"two-p1"}]
    root = ET.fromstring(found[0])
    assert root.get("aria-label") == "Title <&>" and root.get("role") == "img" and "".join(root.itertext()).split() == ["a", "<", "b"]
    assert 'href="#one-p1"' in found[0] and "url(#one-p1)" in found[0] and "M 0 0.12 L 1 1" in found[0]
    for word in ("script", "style>", "metadata", "onload", "http://x"):
        assert word not in found[0], word


def test_commands_name_the_folder_and_survive_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "it's mine"
    folder.mkdir(parents=True)
    write_report(folder, make_report())
    said = words(write_html(folder, make_report()).read_text(encoding="utf-8"))
    assert str(tmp_path) not in said  # relative: the page is passed on
    assert """adasearch report 'runs/it'"'"'s mine'""" in said and '''pipeline("text-classification", "runs/it's mine/student")''' in said


# --- in a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium of this machine."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: report.html was NOT tested in a browser")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on the PATH: report.html was NOT tested in a browser")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root has none
        browser = driver.chromium.launch(executable_path=path, args=[*options, "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, report_file: Path) -> Iterator[Any]:
    """A function (width, scheme, ...) -> the page, whose complaints and requests are checked at the end."""
    contexts, heard, requests = [], [], []

    def opened(width: int = 1280, scheme: str = "light", path: Path = report_file, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert heard == [] and {url for url in requests if not url.startswith(("file:", "data:"))} == set()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_renders_without_complaint_and_fits_the_screen(width: int, scheme: str, open_page: Any) -> None:
    page = open_page(width, scheme)
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    assert page.locator("section").count() == len(SECTIONS) and page.locator("h1").count() == 1
    for name in ("svg.chart", "svg.picture", "table", "#examples li"):
        assert page.locator(f"{name}:visible").count() > 0, name
    wide = page.evaluate("""() => [...document.querySelectorAll("main *")].filter((e) =>
        !e.closest(".scroll, .picture-box, pre, svg") && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))""")
    assert wide == [], "only tables, pictures and code scroll, each in its own box"


# every visible text against what lies behind it: colours composited from the element up to the page
CONTRAST = """() => {
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (top, under) => top.slice(0, 3).map((value, i) => value * top[3] + under[i] * (1 - top[3]));
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (element) => element ? over(parse(getComputedStyle(element).backgroundColor), behind(element.parentElement))
    : matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest("svg.picture, script, .sr") || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), back = behind(element);
    const front = over(parse(element.closest("svg") ? style.fill : style.color), back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), `${element.tagName}.${element.className.baseVal ?? element.className}: ${element.textContent.slice(0, 40)}`]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_text_stands_out_from_what_is_behind_it(scheme: str, open_page: Any) -> None:
    found = open_page(1280, scheme).evaluate(CONTRAST)
    assert len(found) > 200
    assert [text for ratio, text in found if ratio < 4.5] == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pictures_are_dark_on_light_or_light_on_dark(scheme: str, open_page: Any, tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "picture.png"
    open_page(1280, scheme).locator("svg.picture").first.screenshot(path=path)
    grey = imread(path)[..., :3].mean(axis=2)
    assert (grey.mean() > 0.8, grey.min() < 0.3) == (True, True) if scheme == "light" else (grey.mean() < 0.3, grey.max() > 0.7) == (True, True)


@pytest.mark.parametrize(("column", "key"), [("latency", "latency_ms_p50"), ("accuracy", "score_mean"), ("system", "name")])
def test_the_table_sorts_both_ways_and_keeps_the_unknown_last(column: str, key: str, open_page: Any) -> None:
    page, report = open_page(), full_report()
    head = page.locator("#systems table").first.locator("thead th", has_text=column).first
    known = [s for s in report.systems if getattr(s, key) is not None]
    expected = [s.name for s in sorted(known, key=lambda s: getattr(s, key))]
    constant = report.majority["accuracy"]
    if column == "accuracy":
        expected.insert(sum(s.score_mean < constant for s in known), "constant answer")
    if column == "system":
        expected = sorted([*expected, "constant answer"], key=str.lower)

    def order() -> list[str]:
        names = page.locator("#systems table").first.locator("tbody th").all_inner_texts()
        return [name.split("\n")[0].strip() for name in names]

    before = order()
    seen = {}
    for _ in range(2):
        head.get_by_role("button").click()
        seen[head.get_attribute("aria-sort")] = order()
    assert seen["ascending"][: len(expected)] == expected and seen["descending"][: len(expected)] == expected[::-1]
    assert all(sorted(rows) == sorted(before) for rows in seen.values())
    assert page.locator("#systems table").first.locator("th[aria-sort]").count() == 1


def test_the_filter_shows_what_was_asked_for(open_page: Any) -> None:
    page, examples = open_page(), full_report().disagreements["examples"]
    items = page.locator("#examples li:visible")
    assert items.count() == 8 and page.locator("#shown").inner_text() == f"8 of {len(examples)} examples"
    page.get_by_role("button", name="Show 4 more").click()
    assert items.count() == len(examples) and not page.locator("#more").is_visible()
    assert page.get_by_text("<script>alert(1)</script> 0").is_visible()  # as text
    for who, label in (("student", "Student right"), ("teacher", "Teacher right"), ("neither", "Neither")):
        page.get_by_role("radio", name=label).check()
        sides = {"student": (True, False), "teacher": (False, True), "neither": (False, False)}[who]
        right = [e["text"] for e in examples if (e["student"] == e["gold"], e["teacher"] == e["gold"]) == sides]
        assert items.locator("blockquote").all_inner_texts() == right, who
    page.get_by_role("radio", name="All").check()
    page.get_by_label("Filter by words").fill("PLAIN words 1")
    assert items.count() == sum("plain words 1" in e["text"] for e in examples) > 0
    page.get_by_label("Filter by words").fill("in no text")
    assert items.count() == 0 and page.locator("#shown").inner_text() == f"0 of {len(examples)} examples"


def test_code_is_copied(open_page: Any) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the command").click()
    page.locator("button.copy", has_text="Copied").wait_for()  # no function that polls: the page's policy forbids to evaluate one
    assert page.evaluate("navigator.clipboard.readText()") == full_report().command


def test_without_scripts_everything_is_there(open_page: Any) -> None:
    page = open_page(java_script_enabled=False)
    assert page.locator("#examples li:visible").count() == len(full_report().disagreements["examples"])
    assert not page.locator(".filters").is_visible() and not page.locator("button.copy").first.is_visible()


def test_paper_is_white_and_holds_every_section(open_page: Any) -> None:
    page = open_page(688, "dark")  # A4 between its margins
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") == 688, "nothing can be scrolled on paper"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible() and page.locator("section:visible").count() == len(SECTIONS)
    assert page.pdf(format="A4").startswith(b"%PDF")
