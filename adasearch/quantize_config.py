"""Settings of choosing runtime and precision."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class QuantizeConfig:
    """How a model's runtime and precision are chosen: everything this machine offers is tried, scored and timed.

    Args:
        calibration_file: texts whose activations set the int8 ranges (txt, csv, tsv, jsonl, parquet); the run's training
            texts when absent.
        validation_file: labelled texts on which the scores are compared; the run's validation examples when absent.
        text_column: column of the text, or of the first text of a pair, in both files.
        text_pair_column: column of the second text of a pair.
        label_column: column of the gold label.
        calibration: minmax, percentile or entropy: how ranges follow from activations.
        calibration_texts: so many texts are drawn at most.
        validation_texts: so many examples are scored at most.
        max_drop: points (hundredths of the metric) that may be lost against torch in fp32; in regression of R² as well, since
            a correlation sees no wrong offset or scale.
        runtimes: those to try; all that are here when empty.
        precisions: those to try; all that the runtimes offer here when empty.
        threads: threads of every runtime.
        batch_size: texts a timed call.
        seq_length: word pieces of a text timed; the first of the run's bench.seq_lengths when absent, else 128.
        max_seq_length: texts are cut to so many word pieces; the run's when absent, else as many as the model takes.
        repeats: timed calls of each, interleaved with the others'.
        warmup: untimed calls of each before.
        seed: draws the texts.
    """

    calibration_file: str | None = None
    validation_file: str | None = None
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    calibration: str = "minmax"
    calibration_texts: int = 512
    validation_texts: int = 5_000
    max_drop: float = 0.5
    runtimes: list[str] = field(default_factory=list)
    precisions: list[str] = field(default_factory=list)
    threads: int = 1
    batch_size: int = 1
    seq_length: int | None = None
    max_seq_length: int | None = None
    repeats: int = 30
    warmup: int = 5
    seed: int = 42
