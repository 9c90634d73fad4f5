"""A quantised language model's report and model card as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adasearch.formats import front_matter, markdown_table, origin_lines

LOADERS = {"gpt2": "AutoModelForCausalLM", "bart": "AutoModelForSeq2SeqLM"}


def scores_table(report: Mapping[str, Any]) -> str:
    """Both models: every metric, size, ratio."""
    metrics = [name for name in report["scores_quantized"] if name not in ("tokens", "texts", "nll")]
    header, lines = ["", *(f"**{name}**" if name == report["metric"] else name for name in metrics), "MiB", "smaller"], []
    for title, which, ratio in (("full precision", "full_precision", 1.0), (report["config"]["bits"], "quantized", report["size_ratio"])):
        scores = [f"{report[f'scores_{which}'][name]:.2f}" for name in metrics]
        lines.append([title, *scores, f"{report[f'size_mib_{which}']:.2f}", f"{ratio:.2f}x"])
    return markdown_table(header, lines)


def report_text(report: Mapping[str, Any], folder: Path) -> str:
    """report.md."""
    config = report["config"]
    terms = [*(["the teacher's predictions"] if config["distill"] else ["gold tokens"])]
    if config["lambda_contrastive"]:
        bank = f"bank {config['bank']}" if report.get("has_bank", True) else "no bank"  # which no token that is seen once would ask
        terms.append(f"{config['lambda_contrastive']:g} x contrastive term ({config['negatives']} negatives, {bank})")
    embedding = "" if config.get("embedding_per") in (None, config["per"]) else f", of the token embedding one a {config['embedding_per']}"
    took = "" if report["train_seconds"] is None else f", {report['train_seconds']:.0f} s of training"
    better = "higher" if report["higher_is_better"] else "lower"
    figures = sorted(path.name for path in (folder / "figures").glob("*.png"))
    pictures = "\n".join(f"![{Path(name).stem}](figures/{name})\n" for name in figures)
    return f"""# {Path(config["model"]).name} at {config["bits"]}: {report["task"]}

{scores_table(report)}

Scored on the {report["split"]} split; {better} {report["metric"]} is better. Bits are of weights, token embeddings and activations. The
size of full precision is that of its float32 tensors, the other that of the written file, scales and header included
({report["size_ratio_nominal"]:.2f}x without them). The quantised model was scored as it was read back from its files{_difference(report)}.

- quantiser: {config["quantizer"]}, one scale a {config["per"]}{embedding}
- learned from: {", ".join(terms)}
- steps: {report["steps"]:,} of {config["batch_size"]} examples{took}, seed {report["seed"]}
{origin_lines(report)}

{pictures}"""


def _difference(report: Mapping[str, Any]) -> str:
    found = report["packed_logits_max_difference"]
    if found is None:
        return ""
    return "; its logits are those of the trained one, bit by bit" if found == 0 else f"; its logits differ from the trained one's by up to {found:.2g}"


def model_card(report: Mapping[str, Any]) -> str:
    """README.md of the packed model's folder."""
    config, is_causal = report["config"], report["model_type"] == "gpt2"
    front = {
        "library_name": "transformers", "pipeline_tag": "text-generation" if is_causal else "text2text-generation", "license": "other",
        "tags": ["adasearch", "quantization", "low-bit"], "metrics": [report["metric"]],
    }  # fmt: skip
    loader = LOADERS[report["model_type"]]
    return f"""{front_matter(front)}

# {Path(config["model"]).name} at {config["bits"]}

A {report["model_type"].upper()} with {config["bits"]} bits (weights, token embeddings, activations) by
[QuantGPT](https://arxiv.org/abs/2203.10705) as implemented in `adasearch`: {report["size_mib_quantized"]:.1f} MiB,
{report["size_ratio"]:.1f} times smaller than in float32.

```python
import adasearch  # makes the low-bit classes known to transformers
from transformers import {loader}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/model")
model = {loader}.from_pretrained("path/to/model")
ids = model.generate(**tokenizer("A text", return_tensors="pt"), max_new_tokens=40)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
```

{scores_table(report)}

Scored on the {report["split"]} split of {report["task"]}. The licences of the model it was made from and of the data apply; they are not known
here. What that model gets wrong or is biased in, this one has learned.
"""
