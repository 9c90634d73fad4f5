"""Settings of sparse pre-training (Prune Once for All, stages 1 and 2): a masked language model, made sparse once for all tasks."""

from __future__ import annotations

from dataclasses import dataclass, field

from adasearch.errors import ConfigError
from adasearch.fit_config import FitConfig
from adasearch.settings import PRECISIONS, check_choice, check_optional, check_range, check_report_to, check_seeds, part_of
from adasearch.sparse_pattern import SCOPES, Pattern
from adasearch.sparsity_schedule import SparsitySchedule, check_rewound


@dataclass
class SparsePretrainingConfig:
    """One model, one text corpus, one sparsity.

    Args:
        model: folder or hub id of any masked language model (BERT, RoBERTa, DistilBERT ...); ``demo`` is the packaged MiniLM,
            which is given a new head.
        teacher: folder of a prepared teacher, as ``<run>/teacher``, to be shared by runs; when absent ``model`` is prepared here.
        start: folder of an earlier sparse pre-training, or of its model, with which the student goes on instead of a copy of the
            teacher: for more zeros, or more steps. Its zeros stay, also where a layer or a group has more of them than ``sparsity``,
            ``scope`` and ``pattern`` ask for.
        corpora: text corpora by preset (wikitext2, wikitext103, ptb, imdb) or hub id ``owner/name[:configuration]``.
        data_dir: folder that holds ``<corpus>/{train,validation}.parquet``; the hub when absent.
        train_file: one more corpus: txt, csv, tsv, jsonl or parquet.
        validation_file: as train_file; scored while it trains.
        stream: one more corpus that is read once from its beginning and need not fit into memory: a file, or a hub id.
        stream_tokens: so many tokens are taken of it.
        text_column: column of the texts in files, in corpora that are no presets, and in the stream.
        output_dir: folder of the run; ``runs/prune-ofa-<model>-<sparsity>-<pattern>`` when absent.
        cache_dir: folder of tokens and of the packaged model, which runs may share; ``cache`` in the run's folder when absent.
        demo_assets: folder with the demo's pinned archives, for machines without a package index.
        block_length: tokens of a block, special ones included.
        mask_share: of the tokens, hidden to be guessed; 80% of them are shown as the mask, 10% as any token, 10% as they are.
        sparsity: share of zeros in the linear layers of the transformer layers.
        pattern: unstructured, N:M (N of every M inputs stay, as 2:4) or RxC (blocks of R outputs by C inputs, as 4x1).
        scope: this share of every layer, or of all together (global).
        initial_sparsity: at the first mask.
        prune_start: share of the steps after which the first mask is chosen.
        prune_end: share of the steps from which the sparsity is final; it rises along a cubic curve.
        prune_until: share of the steps up to which the mask is chosen anew; it rests for the others.
        prune_every: share of the steps between two masks.
        rewind: the learning rate begins its decay anew with every mask, so that it stays high while weights go.
        steps: of the student.
        teacher_steps: of the teacher's preparation; 0 takes the model as it is.
        head_warmup_steps: of the teacher's steps, in which its head learns alone; when absent a fifth of them for a new head.
        batch_size: blocks a step.
        learning_rate: peak for the student; published is 5e-5 for 100,000 steps of 256 blocks.
        teacher_learning_rate: peak for the teacher's preparation.
        warmup: share of the steps in which the learning rates rise.
        weight_decay: AdamW's, on matrices only.
        clip_norm: largest gradient norm.
        dropout: of both trainings; the model's own when absent.
        task_weight: of the masked-language loss of the student.
        kd_weight: of T^2 KL from the teacher's predictions.
        temperature: T.
        distill_share: random share of all tokens on which the teacher is asked, hidden or not; as published 1, smaller is
            cheaper.
        layer_weight: of the squared distance from the teacher's states, layer by layer, over their squares; the paper has no such term.
        evaluations: how often the validation text is scored while it trains.
        validation_blocks: so many blocks are scored; taken from the end of the training text where there is no validation text.
        seed: of batches, hidden tokens, dropout and a new head.
        threads: of torch; as torch chooses when absent.
        cpu: do not use an accelerator.
        mixed_precision: no, bf16, fp16, or auto: bf16 where the processor computes in it and it was measured faster.
        checkpoint_seconds: between two checkpoints.
        figures: draw sparsity and curves.
        report_to: where the curves go as well: none, or any of tensorboard, trackio, wandb; in ``tracking/`` of the run's folder.
        quiet: plain log lines instead of progress bars.
    """

    model: str = "demo"
    teacher: str | None = None
    start: str | None = None
    corpora: list[str] = field(default_factory=list)
    data_dir: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    stream: str | None = None
    stream_tokens: int = 10_000_000
    text_column: str | None = None
    output_dir: str | None = None
    cache_dir: str | None = None
    demo_assets: str | None = None
    block_length: int = 128
    mask_share: float = 0.15
    sparsity: float = 0.85
    pattern: str = "unstructured"
    scope: str = "layer"
    initial_sparsity: float = 0.0
    prune_start: float = 0.0
    prune_end: float = 0.5
    prune_until: float = 0.8
    prune_every: float = 0.01
    rewind: bool = True
    steps: int = 10_000
    teacher_steps: int = 2_000
    head_warmup_steps: int | None = None
    batch_size: int = 32
    learning_rate: float = 1e-4
    teacher_learning_rate: float = 1e-4
    warmup: float = 0.01
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    dropout: float | None = None
    task_weight: float = 0.5
    kd_weight: float = 0.5
    temperature: float = 2.0
    distill_share: float = 1.0
    layer_weight: float = 0.0
    evaluations: int = 4
    validation_blocks: int = 256
    seed: int = 42
    threads: int | None = None
    cpu: bool = False
    mixed_precision: str = "no"
    checkpoint_seconds: float = 60.0
    figures: bool = True
    report_to: str | list[str] = "none"
    quiet: bool = False

    @property
    def schedule(self) -> SparsitySchedule:
        """Sparsity by step."""
        return SparsitySchedule.of_shares(
            self.steps, self.sparsity, start=self.prune_start, end=self.prune_end, until=self.prune_until, every=self.prune_every,
            initial=self.initial_sparsity,
        )  # fmt: skip

    def fit_config(self, steps: int, learning_rate: float) -> FitConfig:
        """What the training loop reads."""
        return part_of(FitConfig, self, steps=steps, learning_rate=learning_rate)

    def check(self) -> None:
        """Raise ``ConfigError`` for whatever is wrong without looking at model or data."""
        if not (self.corpora or self.train_file or self.stream):
            raise ConfigError("corpora, train_file, stream: no text is given; choices: one of them or more, such as --corpora wikitext2")
        for index, name in enumerate(self.corpora):
            if name in self.corpora[:index]:
                raise ConfigError(f"corpora[{index}]: {name!r} is there already; name every corpus once")
        if self.data_dir and not self.corpora:
            raise ConfigError(f"data_dir: {self.data_dir!r} without corpora; choices: the folders in it that are to be read")
        if self.stream_tokens != SparsePretrainingConfig.stream_tokens and not self.stream:
            raise ConfigError(f"stream_tokens: {self.stream_tokens} without stream; choices: give both, or leave it out")
        if self.validation_file and not self.train_file:
            raise ConfigError(f"validation_file: {self.validation_file!r} without train_file; choices: give both, or leave it out")
        check_seeds("seed", [self.seed])
        check_choice("scope", self.scope, SCOPES)
        check_choice("mixed_precision", self.mixed_precision, ("auto", *PRECISIONS))
        check_report_to(self.report_to)
        for name, low, high in (
            ("stream_tokens", 2, 1e12), ("block_length", 4, 1 << 20), ("mask_share", 1e-3, 0.99), ("sparsity", 0.0, 0.999),
            ("initial_sparsity", 0.0, self.sparsity), ("prune_start", 0.0, self.prune_end), ("prune_end", 0.0, 0.95),
            ("prune_until", self.prune_end, 1.0), ("prune_every", 1e-6, 1.0), ("steps", 1, 1e9), ("teacher_steps", 0, 1e9),
            ("batch_size", 1, 1 << 20), ("learning_rate", 0, 1), ("teacher_learning_rate", 0, 1), ("warmup", 0, 0.9),
            ("weight_decay", 0, 10), ("clip_norm", 1e-6, 1e6), ("task_weight", 0, 1e3), ("kd_weight", 0, 1e3), ("layer_weight", 0, 1e3),
            ("temperature", 1e-3, 1e3), ("distill_share", 1e-3, 1), ("evaluations", 0, 1e6), ("validation_blocks", 1, 1e9),
            ("checkpoint_seconds", 0, 1e9),
        ):  # fmt: skip
            check_range(name, getattr(self, name), low, high)
        for name, low, high in (("dropout", 0, 0.99), ("threads", 1, 1024), ("head_warmup_steps", 0, self.teacher_steps)):
            check_optional(name, getattr(self, name), low, high)
        Pattern.parse(self.pattern).check(self.sparsity)
        free = 1 - (self.prune_end - self.prune_start)
        if self.rewind:
            check_rewound("warmup", self.warmup, free, "an earlier prune_end, or rewind false")
        if not self.task_weight and not self.kd_weight and not self.layer_weight:
            raise ConfigError("task_weight, kd_weight, layer_weight: all are 0, so nothing is learned; choices: one above 0")
        if self.teacher and self.head_warmup_steps:
            raise ConfigError(f"head_warmup_steps: {self.head_warmup_steps}, but a teacher is given; choices: one of the two")
