"""Every setting of a warm supernet, one field each with one meaning and its default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from adasearch.errors import ConfigError
from adasearch.fit_config import FitConfig, check_fit
from adasearch.settings import check_choice, check_range, check_seeds


@dataclass
class WarmFitConfig(FitConfig):
    """Training of the warm supernet."""

    steps: int = 4_000


@dataclass
class WarmConfig:
    """A supernet distilled on unlabelled texts, from which searches with that teacher start.

    Args:
        teacher: name or path of a checkpoint; ``demo`` is the packaged MiniLM.
        space: name of a YAML file of ``search_spaces/`` or a path to one.
        unlabeled_file: the texts: txt (one a line), csv, tsv, jsonl or parquet.
        text_column: column of the text, or of the first text of a pair.
        text_pair_column: column of the second text of a pair; the space's pair operations then learn as well.
        output_dir: folder of the warm supernet.
        texts: so many texts are used at most, the first ones.
        split_sentences: cut texts into sentences first; pairs are left as they are.
        max_seq_length: texts longer than this many word pieces are cut.
        pooling: mean (of a layer's tokens) or first (its first token): what the teacher's vectors are. mean for a model that
            was not fine-tuned, first says more of a fine-tuned classifier.
        level_weight: share of the loss given to the teacher's layers below the last; 0 = its sentence vector only.
        cosine_weight: share of each loss given to the angle; the rest is the squared error of standardised vectors.
        disk_gib: most disk that the teacher's vectors may take.
        seed: of weights, batches and drawn members.
        max_steps: caps the steps (for a quick look).
        threads: threads of training; all cores when absent.
        cpu: stay on the processor even where an accelerator is present.
        checkpoint_seconds: time between checkpoints.
        demo_assets: folder with the demo's two pinned archives, for machines without a package index.
        trust_remote_code: run modelling code that comes with the checkpoint.
        quiet: plain log lines instead of progress bars.
        fit: steps, batch size, learning rates.
    """

    teacher: str = "demo"
    space: str = "adasearch"
    unlabeled_file: str = ""
    text_column: str = "text"
    text_pair_column: str | None = None
    output_dir: str = "warm"
    texts: int = 1_000_000
    split_sentences: bool = True
    max_seq_length: int = 128
    pooling: str = "mean"
    level_weight: float = 0.5
    cosine_weight: float = 0.5
    disk_gib: float = 20.0
    seed: int = 42
    max_steps: int | None = None
    threads: int | None = None
    cpu: bool = False
    checkpoint_seconds: float = 60.0
    demo_assets: str | None = None
    trust_remote_code: bool = False
    quiet: bool = False
    fit: WarmFitConfig = field(default_factory=WarmFitConfig)

    mixed_precision = "no"  # no setting: a warm supernet is trained in full precision

    def check(self) -> None:
        """Raise ``ConfigError`` for what is wrong on its own."""
        if not self.unlabeled_file:
            raise ConfigError("unlabeled_file: no texts; choices: a .txt, .csv, .tsv, .jsonl or .parquet file")
        check_seeds("seed", [self.seed])
        check_choice("pooling", self.pooling, ("mean", "first"))
        for name, value, low, high in (
            ("level_weight", self.level_weight, 0, 1), ("cosine_weight", self.cosine_weight, 0, 1),
            ("texts", self.texts, 1, math.inf), ("max_seq_length", self.max_seq_length, 4, 1 << 20),
            ("disk_gib", self.disk_gib, 0, math.inf), ("max_steps", 1 if self.max_steps is None else self.max_steps, 1, math.inf),
        ):  # fmt: skip
            check_range(name, value, low, high)
        check_fit("fit", self.fit)
