"""Settings of measuring speed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from adasearch.errors import ConfigError
from adasearch.settings import check_choice, check_range

REFERENCE_SHAPES = ("bert_base", "distilbert", "tinybert4", "minilm6", "static_embeddings")  # built by references.py


@dataclass
class BenchConfig:
    """How speed is measured.

    Args:
        runtime: torch, torch_compile, onnxruntime or openvino; auto takes onnxruntime where it is installed. The same for every system.
        runtimes: of `adasearch bench`: several runtimes, each system timed in every one of them; ``runtime`` alone when empty. A run's
            own table is of one.
        precisions: of `adasearch bench`: fp32, bf16, int8, int8_embedding: each is timed in those runtimes that offer it. A run's own
            table is of fp32.
        threads: threads of the runtime.
        batch_sizes: batch sizes timed; the first is the one in the table.
        seq_lengths: lengths in word pieces timed; the first is the one in the table.
        repeats: timed calls of each system, interleaved with the others'.
        warmup: untimed calls of each before.
        reference: also time reference shapes with random weights (time only).
        references: which: bert_base, distilbert, tinybert4, minilm6, static_embeddings.
        stream_texts: texts a second are also measured on so many texts as long as the task's own; 0: not.
        cold_starts: fresh processes a system that load it and answer once, for start-up time and memory; 0: none.
        price_per_hour: US dollars that one core costs for an hour, to turn texts a second into cost per million texts. An
            assumption of the report, not a measurement; the default is about what a virtual core is rented for.
    """

    runtime: str = "auto"
    runtimes: list[str] = field(default_factory=list)
    precisions: list[str] = field(default_factory=lambda: ["fp32"])
    threads: int = 1
    batch_sizes: list[int] = field(default_factory=lambda: [1, 32])
    seq_lengths: list[int] = field(default_factory=lambda: [128, 32])
    repeats: int = 30
    warmup: int = 5
    reference: bool = True
    references: list[str] = field(default_factory=lambda: ["bert_base"])
    stream_texts: int = 128
    cold_starts: int = 1
    price_per_hour: float = 0.04


def check_bench(bench: BenchConfig, where: str = "") -> None:
    """Check the numbers that say how speed is measured; raises ``ConfigError``. ``where`` stands before their names."""
    for name, low, high in (
        ("threads", 1, 1024), ("repeats", 1, math.inf), ("warmup", 0, math.inf), ("stream_texts", 0, 1 << 20),
        ("cold_starts", 0, 100), ("price_per_hour", 0, math.inf),
    ):  # fmt: skip
        check_range(f"{where}{name}", getattr(bench, name), low, high)
    for name in ("batch_sizes", "seq_lengths"):
        if not getattr(bench, name):
            raise ConfigError(f"{where}{name}: the list is empty; choices: one or more whole numbers")
        for index, size in enumerate(getattr(bench, name)):
            check_range(f"{where}{name}[{index}]", size, 1, 1 << 20)
    for index, name in enumerate(bench.references):
        check_choice(f"{where}references[{index}]", name, REFERENCE_SHAPES)
        if name in bench.references[:index]:
            raise ConfigError(f"{where}references[{index}]: {name!r} is there already; name every shape once")


def check_run_bench(bench: BenchConfig) -> None:
    """Check how a run measures, which is in one runtime at fp32; raises ``ConfigError``."""
    check_choice("bench.runtime", bench.runtime, ("auto", "torch", "torch_compile", "onnxruntime", "openvino"))
    check_bench(bench, "bench.")
    if not bench.reference and bench.references != BenchConfig().references:
        raise ConfigError(f"bench.references: {', '.join(bench.references)}: not timed, bench.reference is false; choices: --bench.reference true")
    if bench.runtimes or bench.precisions != ["fp32"]:
        raise ConfigError(
            "bench.runtimes, bench.precisions: a run times its systems in one runtime at fp32; choices: bench.runtime here, "
            "these lists in `adasearch bench` and `adasearch quantize`"
        )
