"""What packed low-bit weights gain and cost: bytes on disk, memory, decoding speed, equal tokens. GPT-2 and BART base.

    python scripts/benchmark_low_bit.py

Time: about four minutes of one calm core; 4 GB of memory, 1.5 GB of disk while it runs. Weights are random: sizes and times
do not depend on them. Sizes are of whole safetensors files, headers and scales included, against the fp32 model's file.
Speed is that of greedy decoding with a cache, batch size 1, every system in turn. Memory is the most that a fresh
process held, loading included; "before" is what it held when its libraries were imported. Identity compares a packed
model, loaded from its file, with the fake-quantised model it was made of. Expected: 14.4x for GPT-2 and 13.4x for BART
at 2-2-8; all tokens equal.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.utils import logging

from adasearch.cold import peak_rss_bytes
from adasearch.low_bit import load_low_bit, pack_model
from adasearch.low_bit_size import file_size, size_table, size_totals
from adasearch.packed_modules import MEMORY
from adasearch.quantize_model import attach_quantizers, quantized_cache

BITS = ("8-8-8", "4-4-8", "2-2-8")
BASE = {"d_model": 768, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072, "encoder_layers": 6, "decoder_layers": 6}
PROMPT, SEED = 16, 42
CHILD = "--child"


def build(name: str) -> PreTrainedModel:
    """GPT-2 base or BART base with random weights."""
    torch.manual_seed(SEED)
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(eos_token_id=None, pad_token_id=0)).eval()
    return BartForConditionalGeneration(BartConfig(vocab_size=50265, encoder_attention_heads=12, decoder_attention_heads=12, **BASE)).eval()


def quantized(name: str, bits: str) -> PreTrainedModel:
    """The same with quantisers, their clips where TSLD starts."""
    model = build(name)
    attach_quantizers(model, bits, gamma_init=1.0)
    return model


def decode(model: PreTrainedModel, tokens: int) -> torch.Tensor:
    """Greedy tokens after a random prompt. No pair of tokens comes twice: random models would repeat one for ever."""
    ids_BL = torch.randint(1_000, 50_000, (1, PROMPT), generator=torch.Generator().manual_seed(SEED))
    settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "no_repeat_ngram_size": 2}
    return model.generate(ids_BL, attention_mask=torch.ones_like(ids_BL), **settings)


def load(kind: str, folder: Path) -> PreTrainedModel:
    """The fp32 model, or a low-bit one with ``kind`` of its weights kept."""
    return GPT2LMHeadModel.from_pretrained(folder).eval() if kind == "fp32" else load_low_bit(folder, kind)


def sizes(folder: Path) -> dict[str, Any]:
    """Both models written at every width; the folders stay."""
    found = {}
    for name in ("gpt2", "bart"):
        build(name).save_pretrained(folder / name / "fp32")
        fp32_bytes = file_size(folder / name / "fp32")
        found[name] = {"fp32": {"file_bytes": fp32_bytes}}
        for bits in BITS:
            pack_model(quantized(name, bits)).save_pretrained(folder / name / bits)
            rows = size_table(folder / name / bits)
            totals = size_totals(rows, file_size(folder / name / bits))
            found[name][bits] = {
                **totals, "file_to_fp32_file": fp32_bytes / totals["file_bytes"], "rows": [asdict(row) for row in rows],
            }  # fmt: skip
    return found


def identity(folder: Path, tokens: int) -> dict[str, Any]:
    """Greedy tokens of the fake-quantised and the packed model, and their logits for the whole text."""
    found = {}
    for name in ("gpt2", "bart"):
        model, packed = quantized(name, "2-2-8"), load_low_bit(folder / name / "2-2-8")
        with torch.inference_mode(), quantized_cache():
            expected, got = decode(model, tokens), decode(packed, tokens)
            texts = {"decoder_input_ids": expected} if name == "bart" else {}
            difference = (model(expected, **texts).logits - packed(expected, **texts).logits).abs().max()
        new = expected[0, -tokens:]
        found[name] = {
            "tokens": len(new), "equal_tokens": int((expected == got)[0, -tokens:].sum()), "distinct_tokens": len(new.unique()),
            "largest_logit_difference": float(difference),
        }  # fmt: skip
    return found


def speed(folder: Path, tokens: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of GPT-2, every system in turn, the order rotated each round."""
    models = {"fp32": load("fp32", folder / "fp32")}
    models |= {f"{bits} {memory}": load(memory, folder / bits) for bits in BITS for memory in MEMORY if memory == "packed" or bits == "2-2-8"}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    gc.disable()
    with torch.inference_mode():
        for name in models:
            decode(models[name], 2)
        for number in range(rounds):
            names = list(models)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                start = time.perf_counter()
                decode(models[name], tokens)
                seconds[name].append(time.perf_counter() - start)
    gc.enable()
    return {
        name: {"tokens_per_s": tokens / float(np.median(times)), "cv": float(np.std(times) / np.mean(times)), "rounds": rounds}
        for name, times in seconds.items()
    }


def child(kind: str, folder: Path, tokens: int) -> None:
    """A process of its own: load, decode, and say what that took."""
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    before, start = peak_rss_bytes(), time.perf_counter()
    model = load(kind, folder)
    loaded_s = time.perf_counter() - start
    with torch.inference_mode():
        decode(model, tokens)
    print(json.dumps({"before_rss_bytes": before, "peak_rss_bytes": peak_rss_bytes(), "load_s": loaded_s}))


def memory(folder: Path, tokens: int) -> dict[str, Any]:
    """GPT-2 in fresh processes: fp32, and 2-2-8 with each of its ways to keep weights."""
    found = {}
    for kind in ("fp32", *MEMORY):
        command = [sys.executable, __file__, CHILD, kind, str(folder / ("fp32" if kind == "fp32" else "2-2-8")), str(tokens)]
        facts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        found[kind] = {**facts, "model_rss_bytes": facts["peak_rss_bytes"] - facts["before_rss_bytes"]}
    return found


def main() -> None:
    """Measure, print, and write results/runs/low_bit_size.json."""
    from adasearch.files import write_json
    from adasearch.run_files import commit, script_command
    from adasearch.measure import hardware

    results = Path(__file__).resolve().parent.parent / "results" / "runs"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200, help="compared with the fake-quantised model's")
    parser.add_argument("--speed_tokens", type=int, default=32, help="decoded at a time")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=results / "low_bit_size.json")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size, same = sizes(folder), identity(folder, arguments.tokens)
        held = memory(folder / "gpt2", arguments.speed_tokens)
        fast = speed(folder / "gpt2", arguments.speed_tokens, arguments.rounds)
    ratios = {f"{model} {bits}: fp32 file to packed file": size[model][bits]["file_to_fp32_file"] for model in size for bits in BITS}
    ratios |= {f"gpt2 2-2-8 {kind}: fp32 memory to its": held["fp32"]["model_rss_bytes"] / held[kind]["model_rss_bytes"] for kind in MEMORY}
    ratios |= {f"gpt2 {name}: speed to fp32's": row["tokens_per_s"] / fast["fp32"]["tokens_per_s"] for name, row in fast.items() if name != "fp32"}
    ratios |= {f"{model}: equal greedy tokens": row["equal_tokens"] / row["tokens"] for model, row in same.items()}
    write_json(
        arguments.output,
        {
            "command": script_command(),
            "commit": commit(),
            "what": "packed low-bit GPT-2 base and BART base with random weights: size, memory, decoding speed, tokens",
            "ratios": ratios,
            "sizes": size, "identity": same, "memory": held, "decode": fast,
            "threads": 1, "prompt_tokens": PROMPT, "decoded_tokens": arguments.speed_tokens, "hardware": hardware(),
        },
    )  # fmt: skip
    for what, value in ratios.items():
        print(f"{what}: {value:.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
