"""A sparse pre-training's report, model card and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from adasearch.canvas import FAINT, INK, LINE_COLOURS, save_figure
from adasearch.encoder import FAMILIES
from adasearch.errors import ConfigError
from adasearch.files import read_json, write_text
from adasearch.formats import front_matter, markdown_table, origin_lines
from adasearch.histories import read_history
from adasearch.sparsity_plots import draw_zeros

SYSTEMS = {"model": "before", "teacher": "dense teacher", "sparse": "sparse"}


def scores_table(report: Mapping[str, Any]) -> str:
    """The model before, the prepared teacher, the sparse model: how well they guess hidden tokens, the last one's layers and zeros.

    A head that never learned has nothing to say of words; its guesses are left out.
    """
    guessers, distances = _guessers(report), report.get("layer_distances")
    forms = {"loss": "{:.3f}", "perplexity": "{:.2f}", "accuracy": "{:.1%}"} if guessers else {}
    titles = ["loss (nats)", "perplexity", "accuracy"] * bool(guessers) + ["layers' distance"] * bool(distances) + ["zeros in encoder layers"]
    lines = []
    for key, title in SYSTEMS.items():
        found = report["scores"].get(key)
        if found and (key in guessers or key != "model"):
            guesses = [form.format(found[f"mlm_{name}"]) if key in guessers else "" for name, form in forms.items()]
            distance = [f"{100 * mean(distances):.1f}%" if key == "sparse" else ""] * bool(distances)
            lines.append([title, *guesses, *distance, f"{100 * report['sparsity']:.2f}%" if key == "sparse" else ""])
    return markdown_table(["", *titles], lines)


def _guessers(report: Mapping[str, Any]) -> list[str]:
    """The systems whose head has learned to guess; reports of before say it of all together."""
    known = report.get("can_guess", True)
    return [key for key in SYSTEMS if (known[key] if isinstance(known, Mapping) else known)]


def report_text(report: Mapping[str, Any], folder: Path) -> str:
    """report.md."""
    config, schedule = report["config"], report["schedule"]
    sources = ", ".join([*config["corpora"], *(str(config[key]) for key in ("train_file", "stream") if config[key])])
    shares = report["sparsity_by_layer"].values()
    pictures = "\n".join(f"![{path.stem}](figures/{path.name})\n" for path in sorted((folder / "figures").glob("*.png")))
    return f"""# {Path(report["model"]).name}, {100 * report["sparsity"]:.2f}% sparse ({report["pattern"]}, {report["scope"]})

{scores_table(report)}

{_scored_on(report)} Zeros are exact ones in the weights of the
{len(shares)} linear layers of the transformer layers ({report["params_encoder_linear"]:,} of {report["params"]:,} parameters),
{100 * min(shares):.2f}% to {100 * max(shares):.2f}% a layer, counted in the saved folder. They are stored dense here: the file is as
large as before.

- text: {sources}; {report["train_tokens"]:,} tokens in blocks of {config["block_length"]}
- teacher: {_stage(report, "teacher")}
- student: {_stage(report, "sparse")}{f", from {config['start']}" if config.get("start") else ""}
- zeros: rising from step {schedule["start"]:,} to {schedule["end"]:,}; a new mask every {schedule["every"]:,} until {schedule["until"]:,}
- loss: {config["task_weight"]:g} x hidden tokens + {config["kd_weight"]:g} x teacher on {100 * config["distill_share"]:g}% of the tokens
  (T {config["temperature"]:g}){f" + {config['layer_weight']:g} x distance of the layers" if config.get("layer_weight") else ""}
- learning rate: {config["learning_rate"]:g}, {"rewound at every mask" if config["rewind"] else "linear"}
- precision: {report["precision"]}, seed {report["seed"]}
{origin_lines(report)}

{pictures}"""


def _scored_on(report: Mapping[str, Any]) -> str:
    what = "Hidden tokens of" if _guessers(report) else "Texts of"
    text = f"{what} {report['validation_blocks']:,} blocks that nothing learned from."
    if distances := report.get("layer_distances"):
        shares = ", ".join(f"{100 * distance:.1f}%" for distance in distances)
        text += f" Distance: squared, of the states from the dense teacher's, over the teacher's squares; by layer {shares}."
    return text


def _stage(report: Mapping[str, Any], name: str) -> str:
    facts = report["stages"].get(name, {})
    if not facts.get("steps"):
        return "as it was"
    took = "" if not facts.get("seconds") else f", {facts['seconds']:.0f} s ({facts['seconds_per_step']:.2f} s a step)"
    return f"{facts['steps']:,} steps of {report['config']['batch_size']} blocks{took}"


def model_card(report: Mapping[str, Any]) -> str:
    """README.md of the sparse model's folder."""
    tags = ["adasearch", "sparse", "prune-once-for-all"]
    can_guess = "sparse" in _guessers(report)
    how = ": `adasearch compress prune-ofa TASK --sparse_model path/to/sparse`" if report["model_type"] in FAMILIES else ", as below"
    front = {"library_name": "transformers", **({"pipeline_tag": "fill-mask"} if can_guess else {}), "license": "other", "tags": tags}
    return f"""{front_matter(front)}

# {Path(report["model"]).name}, {100 * report["sparsity"]:.0f}% sparse

A {report["class"]} whose transformer layers have {100 * report["sparsity"]:.2f}% zeros ({report["pattern"]}), made by
[Prune Once for All](https://arxiv.org/abs/2111.05754) as implemented in `adasearch`. It is to be fine-tuned on any task with its zeros
locked{how}.

```python
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

model = AutoModelForMaskedLM.from_pretrained("path/to/sparse"){"" if can_guess else "  # its head is random: only its layers were taught"}
model = AutoModelForSequenceClassification.from_pretrained("path/to/sparse", num_labels=2)  # its head, and a pooler, are new

from adasearch.sparse_model import bake_masks, lock_pattern

lock_pattern(model)  # before the first optimiser step
...
bake_masks(model)  # before it is saved
```

{scores_table(report)}

The licences of the model it was made from and of the text apply; they are not known here. What that model gets wrong or is biased in,
this one has learned.
"""


def read_pretraining(folder: Path) -> dict[str, Any] | None:
    """The report of a sparse pre-training's folder; None where it is another's, or there is none. Raises ``ConfigError``."""
    path = folder / "report.json"
    if not path.is_file():
        return None
    try:
        report = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: it cannot be read ({error}); choices: JSON as adasearch writes it") from error
    return report if isinstance(report, dict) and "sparsity_by_layer" in report else None


def write_pretraining(folder: Path, report: Mapping[str, Any], figures: bool = True) -> Path:
    """figures/, report.md and the model card; returns the path of report.md."""
    if figures:
        draw_figures(folder, report, folder / "figures")
    write_text(folder / "report.md", report_text(report, folder))
    write_text(folder / "sparse" / "README.md", model_card(report))
    return folder / "report.md"


def draw_figures(folder: Path, report: Mapping[str, Any], target: Path) -> list[Path]:
    """Zeros by layer, and the curves of both trainings; as SVG and PNG in ``target``."""
    paths = {name: folder / "work" / name / "history.jsonl" for name in ("teacher", "sparse")}
    histories = {name: read_history(path) if path.exists() else [] for name, path in paths.items()}
    written = draw_zeros({"sparse": report["sparsity_by_layer"]}, target / "zeros")
    return written + (save_figure(curves_figure(histories), target / "curves") if any(histories.values()) else [])


def curves_figure(histories: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """Loss terms, validation loss, sparsity and learning rate over the steps, a column for each training that there was."""
    histories = {name: records for name, records in histories.items() if records}
    rows = (("loss", _losses), ("sparsity", _sparsity), ("learning rate", _rates))
    figure = Figure(figsize=(5.2 * max(1, len(histories)), 6.4), facecolor="white", layout="constrained")
    for column, (name, records) in enumerate(histories.items()):
        for row, (label, values) in enumerate(rows):
            if not (curves := values(records)):  # a dense teacher has no zeros
                continue
            axes = figure.add_subplot(len(rows), max(1, len(histories)), row * len(histories) + column + 1)
            for index, (title, points) in enumerate(curves.items()):
                style = {"marker": "o", "markersize": 4} if title.startswith("validation") else {}
                axes.plot(*zip(*points), color=LINE_COLOURS[index % len(LINE_COLOURS)], linewidth=1.4, label=title, **style)
            axes.set_ylabel(label, size=8.5)
            if row == 0:
                axes.set_title("teacher" if name == "teacher" else "student", size=11, weight="bold", loc="left", color=INK)
                axes.legend(fontsize=8, frameon=False)
            if label == "sparsity":
                axes.set_ylim(0, 1)
            axes.set_xlabel("step" if row == len(rows) - 1 else "", size=8.5)
            axes.grid(color=FAINT, linewidth=0.3)
            _plain(axes)
    return figure


def _losses(records: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    names = [name for name in records[-1]["terms"] if any(r["terms"][name] for r in records)]
    found = {f"{name}, as weighed": [(r["step"], r["terms"][name]) for r in records] for name in names}
    scored = [r for r in records if "validation" in r]
    if "mlm" in names and scored:
        found["validation, hidden tokens"] = [(r["step"], r["validation"]["mlm_loss"]) for r in scored]
    if scored and "layers" in scored[-1]["validation"]:
        found["validation, layers"] = [(r["step"], r["validation"]["layers"]) for r in scored]
    return found


def _sparsity(records: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    return {"sparsity": [(r["step"], r["sparsity"]) for r in records]} if "sparsity" in records[-1] else {}


def _rates(records: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    return {"learning rate": [(r["step"], r["learning_rate"]) for r in records]}


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7.5, colors=INK)
