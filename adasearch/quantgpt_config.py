"""Settings of QuantGPT: a generative transformer to 2, 4 or 8 bits, with its full-precision self as the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adasearch.errors import ConfigError
from adasearch.fit_config import FitConfig
from adasearch.settings import PRECISIONS, check_choice, check_optional, check_range, check_seeds, part_of

NEGATIVES = ("teacher", "student", "vocabulary")
BANKS = ("position", "token", "none")
SCALES = {"dynamic_scale": "gamma_init", "pact": "clip_init", "lsq": "step_init"}  # quantiser -> its setting of ``scale_init``


@dataclass
class QuantGptConfig:
    """One model, one task, one choice of bits.

    Args:
        model: folder or hub id of a fine-tuned GPT-2 or BART; it is what is quantised, and the teacher.
        task: what the data are called: a preset (wikitext2, wikitext103, ptb, imdb; xsum, cnn_dailymail), a hub id
            ``owner/name[:configuration]``, or any name beside the files below.
        data_dir: folder that holds ``<task>/{train,validation,test}.parquet``; the hub when absent.
        train_file: txt, csv, tsv, jsonl or parquet.
        validation_file: as train_file; scored while it trains.
        test_file: as train_file; scored at the end. The validation split is where there is no test split.
        text_column: column of the texts, for a causal model.
        source_column: column of the sources, for a sequence-to-sequence model.
        target_column: column of the targets, for a sequence-to-sequence model.
        output_dir: folder of the run; ``runs/quantgpt-<model>-<bits>`` when absent.
        cache_dir: folder of tokens and of the full-precision model's scores, which runs may share; ``cache`` in the run's folder
            when absent.
        bits: of weights, token embeddings and activations, as 2-2-8; 32 leaves them as they are.
        quantizer: of the weights: dynamic_scale (QuantGPT), min_max, pact, lsq, twn, bwn, laq.
        per: one scale a tensor, or one a row.
        embedding_per: the same for the token embedding; as ``per`` when absent.
        scale_init: where learned scales start: a number or a name that the quantiser knows, as mse; its own default when
            absent. For dynamic_scale it is gamma, for pact the clip, for lsq the step.
        full_range: one level more below zero than above, -2..1 at 2 bits instead of -1..1. When absent dynamic_scale and lsq
            have it, the others not: the paper does not say, and it was the better (results/LOG.md).
        detach_mean: dynamic_scale lets no gradient flow to the weights through their mean.
        steps: optimiser steps.
        batch_size: blocks or pairs a step.
        block_length: tokens of a block, for a causal model.
        stride: tokens from one window of the evaluation to the next; half a block when absent.
        source_length: tokens of a source at most.
        target_length: tokens of a target at most.
        learning_rate: peak for the weights (linear warm-up, then linear to zero).
        scale_learning_rate: the same for the quantisers' learned scales, which have no weight decay.
        warmup: share of the steps in which the learning rates rise.
        weight_decay: AdamW's, on matrices only.
        clip_norm: largest gradient norm.
        dropout: of the student while it trains; its teacher's predictions say more than labels, so it needs little.
        distill: learn the teacher's predictions; gold tokens only when false.
        lambda_contrastive: weight of the contrastive term; 0 leaves it out.
        temperature: of the contrastive term.
        negatives: where a token's negatives come from: the teacher's states of the other tokens of its sequence, the
            student's of the same, or random rows of the word table.
        negatives_count: negatives a token; all other tokens of its sequence when absent.
        bank: what the student's states are remembered by and averaged with: the place in the training texts, the token's
            id, or none.
        bank_gib: most memory that the bank may take.
        momentum: share of the remembered state in the average.
        eval_texts: pairs to generate for when a sequence-to-sequence model is scored; all when 0.
        num_beams: beams of that generation; 1 is greedy.
        evaluations: how often the validation split is scored while it trains.
        seed: of batches, dropout and random negatives.
        threads: of torch; as torch chooses when absent.
        cpu: do not use an accelerator.
        mixed_precision: no, bf16 or fp16 while it trains; low-bit training is known to suffer from it.
        checkpoint_seconds: between two checkpoints.
        figures: draw weights, scales and similarities.
        quiet: plain log lines instead of progress bars.
    """

    model: str = ""
    task: str = "texts"
    data_dir: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    test_file: str | None = None
    text_column: str | None = None
    source_column: str | None = None
    target_column: str | None = None
    output_dir: str | None = None
    cache_dir: str | None = None
    bits: str = "2-2-8"
    quantizer: str = "dynamic_scale"
    per: str = "tensor"
    embedding_per: str | None = None
    scale_init: str | None = None
    full_range: bool | None = None
    detach_mean: bool = False
    steps: int = 2_000
    batch_size: int = 32
    block_length: int = 128
    stride: int | None = None
    source_length: int = 512
    target_length: int = 64
    learning_rate: float = 5e-4
    scale_learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    dropout: float = 0.0
    distill: bool = True
    lambda_contrastive: float = 0.1
    temperature: float = 0.1
    negatives: str = "teacher"
    negatives_count: int | None = None
    bank: str = "position"
    bank_gib: float = 4.0
    momentum: float = 0.5
    eval_texts: int = 500
    num_beams: int = 1
    evaluations: int = 4
    seed: int = 42
    threads: int | None = None
    cpu: bool = False
    mixed_precision: str = "no"
    checkpoint_seconds: float = 60.0
    figures: bool = True
    quiet: bool = False

    def fit_config(self) -> FitConfig:
        """What the training loop reads."""
        return part_of(FitConfig, self)

    def quantizer_options(self) -> dict[str, Any]:
        """Settings of the quantiser itself."""
        options: dict[str, Any] = {"detach_mean": True} if self.detach_mean else {}
        full_range = True if self.full_range is None and self.quantizer == "dynamic_scale" else self.full_range
        if full_range is not None:
            options["full_range"] = full_range
        if self.scale_init is not None:
            options[SCALES[self.quantizer]] = float(self.scale_init) if _is_number(self.scale_init) else self.scale_init
        return options

    def check(self) -> None:
        """Raise ``ConfigError`` for whatever is wrong without looking at model or data (bits and quantiser: see there)."""
        if not self.model:
            raise ConfigError("model: none given; choices: a folder or a hub id of a GPT-2 or BART")
        check_seeds("seed", [self.seed])
        check_choice("per", self.per, ("tensor", "row"))
        if self.embedding_per is not None:
            check_choice("embedding_per", self.embedding_per, ("tensor", "row"))
        if self.scale_init is not None and self.quantizer not in SCALES:
            raise ConfigError(f"scale_init: {self.scale_init}: {self.quantizer} learns no scale; choices: {', '.join(SCALES)}")
        if self.detach_mean and self.quantizer != "dynamic_scale":
            raise ConfigError(f"detach_mean: {self.quantizer} has no such mean; choices: dynamic_scale")
        check_choice("negatives", self.negatives, NEGATIVES)
        check_choice("bank", self.bank, BANKS)
        check_choice("mixed_precision", self.mixed_precision, PRECISIONS)
        if self.quantizer == "laq" and self.mixed_precision == "fp16":
            raise ConfigError("mixed_precision: fp16 scales the gradients that laq remembers, by more and more; choices: bf16, no")
        for name, low, high in (
            ("steps", 1, 1e9), ("batch_size", 1, 1 << 20), ("block_length", 2, 1 << 20), ("source_length", 2, 1 << 20),
            ("target_length", 2, 1 << 20), ("learning_rate", 0, 1), ("scale_learning_rate", 0, 1), ("warmup", 0, 1),
            ("weight_decay", 0, 10), ("clip_norm", 1e-6, 1e6), ("dropout", 0, 0.99), ("lambda_contrastive", 0, 1e6),
            ("temperature", 1e-3, 1e3), ("momentum", 0, 0.9999), ("bank_gib", 0, 1e6), ("eval_texts", 0, 1e9),
            ("num_beams", 1, 100), ("evaluations", 0, 1e6), ("checkpoint_seconds", 0, 1e9),
        ):  # fmt: skip
            check_range(name, getattr(self, name), low, high)
        for name, low, high in (("stride", 1, self.block_length), ("negatives_count", 1, 1 << 20), ("threads", 1, 1024)):
            check_optional(name, getattr(self, name), low, high)
        if self.data_dir and self.train_file:
            raise ConfigError(f"data_dir: {self.data_dir!r} and train_file: {self.train_file!r}; choices: one of the two")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
