"""Settings of Prune Once for All on a task: a sparse model, its fine-tuning under lock, int8, what is saved and timed."""

from __future__ import annotations

from dataclasses import dataclass, field

from adasearch.encoder_config import TaughtRunConfig
from adasearch.errors import ConfigError
from adasearch.fit_config import check_fit
from adasearch.settings import check_choice, check_optional, check_range
from adasearch.sparse_pattern import SCOPES, Pattern
from adasearch.sparsity_schedule import check_rewound

QUANTIZERS = ("min_max", "dynamic_scale", "lsq", "pact")
OUTPUTS = ("published", "all", "none")
FORMATS = ("smallest", "bitmap", "index", "delta", "dense")
COMPRESSIONS = ("none", "zstd", "zlib", "lzma")
STARTS = ("sparse", "teacher")
DIRECT_FREE = 0.5  # share of its steps in which `direct` does not prune


@dataclass
class LockConfig:
    """Fine-tuning with the pattern locked.

    Args:
        epochs: passes over the training examples; published are 8 or 9, which takes hours on a processor.
        learning_rate: peak of AdamW's linear warm-up and decay; published are 1e-4 (BERT-base) to 1.8e-4 (DistilBERT).
        batch_size: examples a step.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: AdamW's, on matrices.
    """

    epochs: float = 3.0
    learning_rate: float = 1e-4
    batch_size: int = 32
    warmup: float = 0.05
    weight_decay: float = 0.01


@dataclass
class Int8Config:
    """Quantisation-aware training, with the lock still on.

    Args:
        epochs: passes over the training examples; published are 2 or 3.
        learning_rate: peak; published are 1e-6 to 1e-5.
        batch_size: examples a step.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: AdamW's, on matrices.
        quantizer: of the weights: min_max (as published), or dynamic_scale, lsq, pact, which learn theirs.
        per: one scale of weights a tensor (as published), or one a row, for each output unit.
        outputs: which layers' outputs are rounded: published (not where they are added to a residual, are attention's values
            or the task's logits), all, none.
        exclude: layers left in float32, by parts of their names.
        embeddings: the word table in int8 as well, with a scale for each row.
        momentum: weight of the newest batch in an activation's range.
        delay: share of the steps after which activations are rounded; their ranges are learned before.
        freeze: share of the steps after which their ranges rest.
    """

    epochs: float = 1.0
    learning_rate: float = 1e-5
    batch_size: int = 32
    warmup: float = 0.05
    weight_decay: float = 0.01
    quantizer: str = "min_max"
    per: str = "tensor"
    outputs: str = "published"
    exclude: list[str] = field(default_factory=list)
    embeddings: bool = False
    momentum: float = 0.01
    delay: float = 0.0
    freeze: float = 1.0


@dataclass
class TeachConfig:
    """What is learned in both stages.

    Args:
        teacher_weight: of T^2 KL from the dense model's predictions; regression: squared error.
        gold_weight: of the loss against gold labels; published is 0.
        temperature: T.
        layer_weight: of the squared distance from the dense model's states, layer by layer, over their squares, in all stages and
            in ``direct``; the paper has no such term. Not for a model of another depth or width than the dense one.
        start: where lock and ``direct`` begin: sparse (the weights that are given, with a new head, as published), or teacher: with
            the head of the task's dense model, and with what its fine-tuning has added to the pre-trained weights
            (a task vector, Ilharco et al. 2023) wherever there is no zero.
        dropout: of lock, int8 and ``direct``; the model's own when absent. Few passes over the examples want none.
    """

    teacher_weight: float = 1.0
    gold_weight: float = 0.0
    temperature: float = 2.0
    layer_weight: float = 0.0
    start: str = "sparse"
    dropout: float | None = None


@dataclass
class PruneOfaTaskConfig(TaughtRunConfig):
    """A sparse model on one task, then in int8.

    Args:
        sparse_model: folder of the sparse model, or of the run of `adasearch compress prune-ofa-pretrain` that made it; any encoder
            with zeros in its weights will do. A CoFi-pruned encoder or a searched student that is dense can be given with
            ``sparsity``.
        sparsity: prune by magnitude, at once, before the pattern is locked; 0 takes the zeros that are there.
        pattern: of ``sparsity``: unstructured, N:M as 2:4, RxC as 4x1.
        scope: of ``sparsity``: this share of every layer, or of all together (global).
        baselines: also make a dense model in int8, calibrated without training, to be scored and timed beside.
        dense: also fine-tune ``model`` densely with every seed, by the settings of ``finetune``.
        direct: also prune ``model`` on this task alone, by magnitude, gradually, to the same sparsity.
        direct_epochs: of that; ``lock.epochs`` when absent.
        direct_more_steps: on top of these: with those of sparse pre-training both ways to a sparse model have equal total steps.
        lock: fine-tuning with the pattern locked.
        int8: quantisation-aware training.
        teach: distillation from the task's dense model.
        export: write ONNX graphs, check them and time them, where onnx, onnxscript and onnxruntime are installed.
        format: of the sparse file: smallest of bitmap, index, delta, dense for each layer, or one of them.
        compression: of the sparse file: none, zlib, lzma, or zstd (pip install 'adasearch[compression]').
    """

    sparse_model: str | None = None
    sparsity: float = 0.0
    pattern: str = "unstructured"
    scope: str = "layer"
    baselines: bool = True
    dense: bool = False
    direct: bool = False
    direct_epochs: float | None = None
    direct_more_steps: int = 0
    lock: LockConfig = field(default_factory=LockConfig)
    int8: Int8Config = field(default_factory=Int8Config)
    teach: TeachConfig = field(default_factory=TeachConfig)
    export: bool = True
    format: str = "smallest"
    compression: str = "none"

    @property
    def is_taught(self) -> bool:
        """Whether a term of the loss is the dense model's."""
        return self.teach.teacher_weight + self.teach.layer_weight > 0

    def check(self) -> None:
        super().check()
        if not self.sparse_model:
            raise ConfigError(
                "sparse_model: none given; choices: a folder that `adasearch compress prune-ofa-pretrain` wrote, or an encoder's or"
                " student's with --sparsity"
            )
        for name, stage in (("lock", self.lock), ("int8", self.int8)):
            check_fit(name, stage)
            check_range(f"{name}.epochs", stage.epochs, 1e-6, 1e6)
        for name, value, choices in (
            ("int8.quantizer", self.int8.quantizer, QUANTIZERS), ("int8.per", self.int8.per, ("tensor", "row")),
            ("int8.outputs", self.int8.outputs, OUTPUTS), ("scope", self.scope, SCOPES), ("format", self.format, FORMATS),
            ("compression", self.compression, COMPRESSIONS), ("teach.start", self.teach.start, STARTS),
        ):  # fmt: skip
            check_choice(name, value, choices)
        for name, value, low, high in (
            ("sparsity", self.sparsity, 0, 0.999), ("int8.momentum", self.int8.momentum, 1e-6, 1), ("int8.delay", self.int8.delay, 0, 1),
            ("int8.freeze", self.int8.freeze, 0, 1), ("teach.teacher_weight", self.teach.teacher_weight, 0, 1e3),
            ("teach.gold_weight", self.teach.gold_weight, 0, 1e3), ("teach.temperature", self.teach.temperature, 1e-3, 1e3),
            ("teach.layer_weight", self.teach.layer_weight, 0, 1e3),
        ):  # fmt: skip
            check_range(name, value, low, high)
        check_optional("direct_epochs", self.direct_epochs, 1e-6, 1e6)
        check_optional("teach.dropout", self.teach.dropout, 0, 0.99)
        check_range("direct_more_steps", self.direct_more_steps, 0, 1e9)
        if self.direct:
            check_rewound("lock.warmup", self.lock.warmup, DIRECT_FREE, "or direct false")
        Pattern.parse(self.pattern).check(self.sparsity)
        for name in ("pattern", "scope"):
            if not self.sparsity and getattr(self, name) != getattr(PruneOfaTaskConfig, name):
                raise ConfigError(
                    f"{name}: {getattr(self, name)} says how --sparsity prunes, and the zeros that are there are taken as they are; choices:"
                    " --sparsity above 0, or leave it out"
                )
        if not self.teach.teacher_weight and not self.teach.gold_weight:
            raise ConfigError("teach.teacher_weight, teach.gold_weight: both are 0, so nothing says what the answers are; choices: one above 0")
