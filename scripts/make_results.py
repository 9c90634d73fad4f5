"""Collect finished runs into results/: their report.json as measured, and results/README.md written from all of them.

    python scripts/make_results.py [RUN_FOLDER ...]     # seconds; without arguments only the page is rewritten

Each report names its command, commit, seeds and hardware. No number of a table is typed by hand.
"""

from __future__ import annotations

import argparse
import fnmatch
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from adasearch.files import read_json, write_json, write_text
from adasearch.formats import markdown_table

RESULTS = Path(__file__).resolve().parent.parent / "results"
HEADER = """# Results

Written by `scripts/make_results.py` from `runs/*.json`, which hold what the runs measured: do not edit by hand.
Scores are mean ± standard deviation over seeds on examples that no stage of a run learns from or chooses by. People did
look: the space's sizes and SST-2's target were set after looks at SST-2's validation sentences, the demo's budget and
the pairs' recipe after looks at held-out scores too (LOG.md says which). Speed is one text of the
given length on one thread, all systems of a table timed in turns in one process and one runtime; ratios between rows
are worth more than the milliseconds, which depend on the machine and on what else it does.
A command gives its table at the commit beneath it; settings files and code have changed since for some, and what was found to be wrong
since stands beneath a table as *before* (LOG.md tells of each). Speeds of CoFi's models are of the first seed's.

To repeat them from nothing, in the project's root, with a task's files at hand or from the hub:

    mkdir -p DIR/mrpc
    python -c "from datasets import load_dataset as load; [part.to_parquet(f'DIR/mrpc/{name}.parquet') for name, part in load('nyu-mll/glue', 'mrpc').items()]"
    python scripts/prepare_tasks.py --data_dir DIR --tasks mrpc    # runs/glue/: data with examples to choose by, a teacher
    DATA_DIR=runs/glue/data TEACHERS=runs/glue/teachers bash scripts/reproduce_adabert_glue.sh mrpc
    adasearch table runs/mrpc

(rte wants snli and mrpc beside it, sst2 imdb: texts without labels, and snli for rte's teacher.) Of the commands below,
`runs/latency-adasearch.json` is what `adasearch bench --build_lut true --space adasearch --runtime onnxruntime --output FILE` writes,
`runs/demo/cache/demo_model` what `bash scripts/demo.sh` leaves, `runs/teachers` an older `runs/glue/teachers`, `runs/<task>.architecture.json`
the `search/architecture.json` of an earlier run of the task, `runs/warm_pairs` a folder of `adasearch warm`
([docs](../docs/how-to-warm-start.md)), `runs/prune-ofa/sparse0.85` what its table's first command makes, `runs/language` what
`python scripts/train_small_language_models.py` does, and `../shared/data` or `shared_/data` is DIR.
"""
SEARCHED = ("sst2", "sst2_large", "mrpc", "rte", "qnli", "snli", "demo", "diagnosis_*")
MENDS = (  # what a table was made before, patterns of the tables that are concerned, and those among them that came later
    ("probes of the lower layers were right", (*SEARCHED, "pairs_mrpc", "ablation_*"), (
        "sst2", "ablation_sst2", "ablation_rte", "diagnosis_sst2", "mrpc", "qnli", "diagnosis_qnli", "demo", "rte", "snli", "diagnosis_snli_members",
    )),
    ("students began with fresh weights", SEARCHED, ("sst2", "diagnosis_sst2", "mrpc", "qnli", "demo", "rte", "snli", "diagnosis_snli_members")),
    ("searches heard of their price without drowning in it, and trained every depth alike", SEARCHED, ("rte", "snli", "mrpc", "diagnosis_snli_members")),
    ("a width gate behind layer norm was applied once", SEARCHED, ()),
    ("cut models were what their gates had learned", ("cofi_*", "methods*"), ("cofi_sst2", "cofi_mrpc", "cofi_long_sst2", "cofi_long_held_sst2", "cofi_long_runtimes")),
)  # fmt: skip
REMARKS = {  # what a table's own fields do not say
    "demo": "Two other trainings shared the two cores: the search takes 1.3 minutes where it has them to itself.",
    "snli": "Trained on 9,342 pairs, the small splits of SNLI, not on its 549,367.",
    "cofi_long_sst2": "By the command beneath with `quadratic_rate: 1` in its settings, as the file has it now.",
    "cofi_long_held_sst2": "By the command beneath with `quadratic_rate: 50` in its settings, the default: cofi_long_sst2 differs by this alone.",
}
FEWEST_RANKED = 5  # members of which a rank correlation says anything
THEMES = {  # heading -> patterns of the results' names, in this order
    "Students and their teachers": ("sst2", "sst2_large", "mrpc", "rte", "qnli", "snli", "demo"),
    "What the search is worth": ("diagnosis_*", "strategies_*", "pairs*", "ablation*", "warm*"),
    "Speed where it is deployed": ("sst2_runtimes", "latency"),
    "Transformers cut to size": ("cofi_*", "earlybert_*", "methods*"),
    "Sparse once, then int8": ("prune_ofa*",),
    "Language models of few bits": ("quantgpt_*", "low_bit*"),
    "What searching costs, and many runs": ("search_cost", "nni", "tune", "sweep*"),
    "More": ("*",),
}
PICTURES = {"Transformers cut to size": ("cofi",)}  # heading -> figures of more than one result


def collect(run: Path) -> None:
    """Copy a run's report, its architecture and figures under the name of its folder. A data set's texts stay where they are."""
    report = {key: value for key, value in read_json(run / "report.json").items() if key != "disagreements"}
    write_json(RESULTS / "runs" / f"{run.name}.json", report)
    figures = RESULTS / "figures" / run.name
    shutil.rmtree(figures, ignore_errors=True)
    figures.mkdir(parents=True)
    for picture in sorted((run / "figures").glob("*.png")):
        shutil.copy(picture, figures)
    shutil.copy(run / "search" / "architecture.json", figures)


def number(value: float | None, form: str, factor: float = 1.0, unit: str = "") -> str:
    """A formatted number with its unit, or a dash."""
    return "–" if value is None else format(value * factor, form) + unit


def score(system: dict[str, Any], metric: str) -> str:
    """Mean ± sd in percent."""
    found = system["metrics"].get(metric)
    if not found:
        return "–"
    return spread(found["mean"], found["sd"])


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table whose columns are all set flush left."""
    first, _, *rest = markdown_table(header, rows).split("\n")
    return [first.replace("|  |", "| |"), "|" + "---|" * len(header), *rest]


def table(report: dict[str, Any]) -> list[str]:
    """The honest table of one run."""
    metrics, systems = report["metrics"], report["systems"]
    teacher = next((s for s in systems if s["kind"] == "teacher"), None)
    titles = ["system", *metrics, "parameters", "MACs", "on disk", "p50 ms", "p90 ms", "× teacher", "texts/s (batch 32)"]
    rows = []
    for system in systems:
        faster = None
        if teacher and system["seq_len"] == teacher["seq_len"]:
            faster = teacher["latency_ms_p50"] / system["latency_ms_p50"]
        batched = next((t["texts_per_s"] for t in system["timings"] if t["batch_size"] == 32), None)
        rows.append([
            system["name"],
            *(score(system, metric) for metric in metrics),
            number(system["params"], ".2f", 1e-6, " M"),
            number(system["macs"], ".2f", 1e-6, " M"),
            number(system["size_bytes"], ".1f", 2**-20, " MiB"),
            number(system["latency_ms_p50"], ".2f"),
            number(system["latency_ms_p90"], ".2f"),
            number(faster, ".1f"),
            number(batched, ",.0f"),
        ])  # fmt: skip
    return table_lines(titles, rows)


def machine(found: dict[str, Any]) -> str:
    """Where a result is from: its command (behind the one that made its model, before the one that made its table), commit, processor and the versions that matter."""
    facts = found["hardware"]
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "transformers", "onnxruntime", "openvino") if facts.get(name))
    where = f"{facts['cpu']} ({facts['cpu_capability']}), {facts['cores_usable']} core{'s'[: facts['cores_usable'] > 1]}, Python {facts['python']}, {versions}"
    commands = ", then ".join(f"`{found[key]}`" for key in ("sparse_model_command", "command", "then") if found.get(key))
    return f"{commands}\n\nCommit {found['commit']}; {where}."


def by_theme(names: list[str]) -> dict[str, list[str]]:
    """The names under each heading that has any."""
    themes, left = {}, names
    for theme, patterns in THEMES.items():
        if own := list(dict.fromkeys(name for pattern in patterns for name in fnmatch.filter(left, pattern))):
            themes[theme], left = own, [name for name in left if name not in own]
    return themes


def made_before(name: str) -> list[str]:
    """What was mended after a table was made and would change it, as a line; none where nothing was."""

    def is_one(patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    found = [text for text, concerned, later in MENDS if is_one(concerned) and not is_one(later)]
    return ["", f"*Before* {'; '.join(found)}."] if found else []


def remarks(name: str) -> list[str]:
    """What is to be known of one table, as a line; none where it speaks for itself."""
    return ["", REMARKS[name]] if name in REMARKS else []


def section(name: str, report: dict[str, Any]) -> list[str]:
    """One run: table, what was searched, how to repeat it."""
    first, search = report["systems"][0], report["search"]
    majority = ", ".join(f"{m} {report['majority'][m] * 100:.1f}" for m in report["metrics"] if m in report["majority"])
    lines = [
        f"### {name}",
        "",
        f"A whole run on {report['task']}: the searched student beside its teacher and the plain baselines.",
        "",
        *table(report),
        "",
        f"Majority class: {majority}. Seeds {', '.join(map(str, report['seeds']))}. {first['runtime']} {first['precision']},"
        f" {first['threads']} thread, batch {first['batch_size']} × {first['seq_len']} word pieces.",
        "",
    ]
    if (RESULTS / "figures" / name / "cell.png").exists():
        lines += [f"![derived cell](figures/{name}/cell.png)", ""]
    operations = ", ".join(f"{count} × {operation}" for operation, count in search["operations"].items())
    lines.append(f"Space `{search['space']}`: {search['depth']} cells of width {search['width']}; {operations}.")
    if "seconds" in search:
        lines.append(f"Search: {search['steps']} steps, {search['seconds'] / 60:.1f} minutes, peak memory {search['peak_rss_bytes'] / 2**30:.2f} GiB.")
    return [*lines, *remarks(name), *made_before(name), "", machine(report), ""]


def benchmark(name: str, found: dict[str, Any]) -> list[str]:
    """A benchmark of scripts/: what was compared, the ratios, the settings."""
    settings = ", ".join(f"{key} {found[key]}" for key in ("space", "batch_size", "seq_len", "steps", "threads") if key in found)
    lines = [f"### {name}", "", f"{found['what'][:1].upper()}{found['what'][1:]}{f' ({settings})' if settings else ''}.", ""]
    lines += next(make for key, make in TABLES.items() if key in found)(found)
    kinds = ["", "_similarity", "/controls", "/front"]
    if len(found.get("ranking", {}).get("members", ())) >= FEWEST_RANKED:
        kinds.append("/ranking")
    for kind in kinds:
        if (RESULTS / "figures" / f"{name}{kind}.png").exists():
            lines += ["", f"![{name.replace('_', ' ')}](figures/{name}{kind}.png)"]
    return [*lines, *remarks(name), *made_before(name), "", machine(found), ""]


def ratio_table(found: dict[str, Any]) -> list[str]:
    """Named ratios; of those in groups the group's name stands first."""
    pairs = dict[str, float]()
    for key, value in found["ratios"].items():
        pairs |= {f"{key}: {inner}": ratio for inner, ratio in value.items()} if isinstance(value, dict) else {key: value}
    return table_lines(["ratio", ""], [[key.replace("_", " "), f"{value:.2f}"] for key, value in pairs.items()])


def study_table(found: dict[str, Any]) -> list[str]:
    """Trials an hour by workers; what became of a study on a server."""
    lines = []
    if "workers" in found:
        lines += table_lines(["workers", "trials an hour"], [[str(row["workers"]), f"{row['trials_per_hour']:.1f}"] for row in found["workers"]])
        lines += ["", f"The last row is {found['ratio']:.2f} times the first."]
    if server := found.get("postgres"):
        lines += ["", f"On a PostgreSQL server: {server['trials']} trials asked, {server['complete']} complete; {server['workers_killed']} worker"
                  f" killed, {server['trials_lost']} trial lost and run again."]  # fmt: skip
    return lines


def diagnosis_table(found: dict[str, Any]) -> list[str]:
    """The searched cells against their controls, then what the search knew."""
    rows = []
    for name, row in found["controls"].items():
        ahead = (number(row.get("searched_ahead"), "+.1f", 100), number(row.get("ahead_in_sds"), "+.1f"))
        rows.append([name.replace("_", " "), spread(row["mean"], row["sd"]), *ahead])
    lines = table_lines(["equal cost, equal retraining", found["metric"], "searched ahead, points", "in the control's sd"], rows)
    gaps = {key: mean(seed["gap"][key] for seed in found["seeds"]) for key in ("supernet_path", "derived", "retrained")}
    alike, entropy = found["agreement"], found["seeds"][0]["entropy"]
    lines += ["", "Validation texts, mean of the searches: " + ", ".join(f"{key.replace('_', ' ')} {100 * value:.1f}" for key, value in gaps.items()) + "."]
    if alike["searched"]:
        both = (number(alike[who]["both"], ".0f", 100, "%") for who in ("searched", "chance"))
        lines.append("Equal edges with equal operations in two seeds' cells: {}, of random members {}.".format(*both))
    for where, what in (("ranking", "random members"), ("front", "points of the front")):
        if len(found.get(where, {}).get("members", ())) >= FEWEST_RANKED:
            ranks = (f"{number(found[where][by]['spearman']['value'], '.2f')} by {by[3:]}" for by in ("by_score", "by_loss", "by_macs"))
            lines.append(f"Spearman over {len(found[where]['members'])} {what}, before and after training: {', '.join(ranks)}.")
    lines.append("Entropy left in the gates: " + ", ".join(f"{key} {100 * value:.0f}%" for key, value in entropy.items()) + ".")
    return lines


def pairs_table(found: dict[str, Any]) -> list[str]:
    """What each operation between two texts is worth."""
    rows = []
    for row in found["cells"]:
        gains = (spread(row[f"gain_over_{base}"]["mean"], row[f"gain_over_{base}"]["sd"]) for base in ("two_inputs", "joint"))
        rows.append([row["system"].replace("_", " "), str(row["width"]), f"{100 * row['mean']:.1f}", *gains])
    return table_lines(["one cell, equal MACs", "width", found["metric"], "ahead of two inputs", "ahead of one joint sequence"], rows)


def ablation_table(found: dict[str, Any]) -> list[str]:
    """What each lever gives on top of those above it."""
    return table_lines(["with all above", found["metric"], "texts", "parameters", "MACs"], [
        [row["row"].replace("_", " "), spread(row["mean"], row["spread"]), f"{row['texts']:,}", f"{row['params'] / 1e6:.2f} M", f"{row['macs'] / 1e6:.1f} M"]
        for row in found["rows"]
    ])  # fmt: skip


def strategies_table(found: dict[str, Any]) -> list[str]:
    """Strategies by their cells' scores, and what a search took."""
    return table_lines(["strategy", found["metric"], "edges that compare the texts", "MACs", "search s", "its memory", "student's training s"], [
        [
            row["strategy"].replace("_", " "), spread(row["score_mean"], row["score_sd"]), f"{100 * row['comparing_share']:.0f}%", f"{row['macs'] / 1e6:.1f} M",
            number(row["search_seconds"], ".0f"), number(row["search_peak_rss_bytes"], ".1f", 2**-30, " GiB"), number(row["train_seconds"], ".0f"),
        ]
        for row in found["strategies"]
    ])  # fmt: skip


def sweep_table(found: dict[str, Any]) -> list[str]:
    """What became of every run of a sweep."""
    rows = [[run, status, str(found["lost"][run])] for run, status in found["status"].items()]
    return table_lines(["run", "status", "times its process was lost"], rows)


def spread(centre: float, sd: float | None) -> str:
    """Percent, with its standard deviation where there is one."""
    return f"{100 * centre:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}")


def cofi_table(found: dict[str, Any]) -> list[str]:
    """CoFi's models: score, share of the dense model's, what is gone, speed."""
    first = found["rows"][0]
    speed = f"ms ({first['runtime']}, 1 × {first['seq_len']})"
    asked = [facts["latency"] for facts in found["models"].values() if facts.get("latency")]
    met = [f"{latency['measured_ms']:.2f} for {latency['target_ms']:g}" for latency in asked]
    said = ["", f"Milliseconds of a call at the task's own lengths, measured for asked, seed by seed: {', '.join(met)}."] if met else []
    lines = table_lines(["model", found["metric"], "of the dense model's", "encoder parameters gone", speed, "× dense", "training s"], [
        [
            row["name"], spread(row["score_mean"], row["score_sd"]), number(row["score_to_dense"], ".1f", 100, "%"), f"{100 * row['encoder_sparsity']:.1f}%",
            f"{row['latency_ms_p50']:.2f}", f"{row['speed_to_dense']:.1f}", number(row["train_seconds"], ".0f"),
        ]
        for row in found["rows"]
    ])  # fmt: skip
    return lines + said


def ticket_table(found: dict[str, Any]) -> list[str]:
    """EarlyBERT beside dense fine-tuning: score and the training time saved."""
    rows = []
    for key, row in found["summary"].items():
        saved = (f"{100 * row[name]:.0f}%" for name in ("time_saved_share", "cpu_time_saved_share"))
        name = next(one["system"] for one in found["rows"] if one["key"] == key)
        rows.append([name, spread(row["score_mean"], row["score_sd"]), f"{100 * row['encoder_sparsity']:.1f}%", f"{row['train_seconds']:.0f}", *saved])
    return table_lines(["system", found["metric"], "encoder parameters gone", "training s", "time saved", "processor time saved"], rows)


def methods_table(found: dict[str, Any]) -> list[str]:
    """AdaBERT and CoFi at equal latency."""
    rows = []
    for pair in found["equal_latency"]:
        student = (number(pair["adabert_score"], ".1f", 100), number(pair["adabert_latency_ms"], ".2f"))
        rows.append([pair["task"], pair["cofi"].removeprefix("CoFi "), f"{100 * pair['score']:.1f}", f"{pair['latency_ms']:.2f}", *student])
    lines = table_lines(["task", "CoFi", "score", "ms", "AdaBERT at most as slow: score", "ms"], rows)
    return [*lines, "", "AdaBERT stands for this project's searched students (space `adasearch`), which learned from texts without labels as well, whose"
            " teacher labelled them; CoFi, as published, from the labelled ones alone."]  # fmt: skip


def sparse_table(found: dict[str, Any]) -> list[str]:
    """Prune Once for All: scores of every task and their mean; of the first task's models sizes and speed."""
    tasks, kinds = (list(dict.fromkeys(row[key] for row in found["rows"])) for key in ("task", "kind"))
    rows = {(row["task"], row["kind"]): row for row in found["rows"]}
    heads = [f"{task} ({rows[task, kinds[0]]['metric']})" for task in tasks]
    titles = ["system", *heads, "mean", "zeros", "x smaller, nominal", "x smaller, whole file", f"ms ({tasks[0]})", "in"]
    cells = []
    for kind in kinds:
        first = rows[tasks[0], kind]
        known = [rows.get((task, kind)) for task in tasks]
        scores = ["–" if row is None else spread(row["score_mean"], row["score_sd"]) for row in known]
        sizes = [number(first["size_ratios"].get(name), ".1f") for name in ("nominal", "whole")]
        speed = [number(first["latency_ms_p50"], ".2f"), f"{first['runtime']} {first['precision']}, {first['batch_size']} × {first['seq_len']}"]
        zeros = number(first["encoder_sparsity"], ".1f", 100, "%")
        cells.append([kind.replace("_", " "), *scores, number(found["means"].get(kind), ".1f", 100), zeros, *sizes, *speed])
    lines, time = table_lines(titles, cells), found["time"]
    if time["saved_s"]:  # by more than one task
        lines += ["", f"One sparse model for {time['tasks']} tasks: {time['one_sparse_model_s']:,.0f} s of training; one for each task would take "
                  f"{time['one_for_each_task_s']:,.0f} s ({100 * time['saved_share']:.0f}% saved)."]  # fmt: skip
    return lines


def low_bit_table(found: dict[str, Any]) -> list[str]:
    """Systems and ablations of QuantGPT: the score over the seeds, and how much smaller the file is."""
    metric = found["metric"]
    rows = [["32", "full precision", f"{found['full_precision'][metric]:.2f}"]]
    rows += [[row["bits"], low_bit_name(row), f"{row[metric]['mean']:.2f} ± {row[metric]['sd']:.2f}"] for row in found["rows"]]
    return table_lines(["bits", "system", f"{metric}, {found['split']} split"], rows)


def low_bit_name(row: dict[str, Any]) -> str:
    """What a row is; at 2 bits with how many levels, since a fourth is worth more than any other difference."""
    name, has_two = row["name"], row["bits"].startswith("2-")
    if "LSQ" in name:
        return name if "three levels" in name or not has_two else "LSQ, four levels"
    levels = "four levels, the default" if "four levels" in name else "three levels"
    rest = name.replace("four levels at 2 bits", "").removeprefix("four levels, ")
    if row["group"] == "systems":
        return f"{name}, {levels}" if has_two and name == "QuantGPT" else name
    return ", ".join(part for part in ("QuantGPT", levels, rest) if part)


TABLES = {  # what only one form of result has, and the table made of it
    "full_precision": low_bit_table, "equal_latency": methods_table, "models": cofi_table, "summary": ticket_table,
    "points_lost": sparse_table, "ratios": ratio_table, "status": sweep_table, "controls": diagnosis_table, "left_out": ablation_table,
    "cells": pairs_table, "strategies": strategies_table, "postgres": study_table, "workers": study_table,
}  # fmt: skip


def main() -> None:
    """Collect, then rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of finished runs")
    for run in parser.parse_args().runs:
        collect(run)
    found = {path.stem: read_json(path) for path in sorted((RESULTS / "runs").glob("*.json"))}
    themes = by_theme(list(found))
    lines = [HEADER, *(f"- {theme}: " + ", ".join(f"[{name}](#{name})" for name in names) for theme, names in themes.items()), ""]
    for theme, names in themes.items():
        lines += [f"## {theme}", "", *(f"![{picture}](figures/{picture}.png)\n" for picture in PICTURES.get(theme, ()))]
        for name in names:
            lines += benchmark(name, found[name]) if "what" in found[name] else section(name, found[name])
    write_text(RESULTS / "README.md", "\n".join(lines))


if __name__ == "__main__":
    main()
