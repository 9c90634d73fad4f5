"""Settings of CoFi: coarse- and fine-grained structured pruning of a transformer, taught by its dense self."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from adasearch.encoder_config import TaughtRunConfig
from adasearch.errors import ConfigError
from adasearch.fit_config import FinetuneConfig, FitConfig, capped_steps, steps_of
from adasearch.settings import check_choice, check_idle, check_range, part_of
from adasearch.task_config import QUESTION_ANSWERING

FAMILIES = ("heads", "neurons", "layers", "hidden")
MATCHINGS = ("paper", "any", "ordered", "fixed")
ASK_WHO_LIVES = ("paper", "ordered")  # the matchings that do
DEFAULT_TARGET = 0.8  # of the sparsity, where no target is given
PHASES = ("prefinetune", "prune", "finetune")


@dataclass
class LatencyTargetConfig:
    """What a target in milliseconds is for, and the table it is predicted from.

    Args:
        table: file with the measured times of this kind of encoder on this machine; measured first, into the run's folder,
            when absent.
        runtime: onnxruntime, openvino or torch; auto takes onnxruntime where it is installed.
        threads: threads of that runtime.
        batch_size: texts a call.
        lengths: lengths in word pieces, each as frequent as the others; those of the task's training texts when absent.
        networks: encoders of random structure that are exported and timed for the table.
    """

    table: str | None = None
    runtime: str = "auto"
    threads: int = 1
    batch_size: int = 1
    lengths: list[int] | None = None
    networks: int = 36

    def check(self, longest: int) -> None:
        """Raise ``ConfigError`` for values out of range; ``longest`` is the longest text there may be."""
        check_choice("latency.runtime", self.runtime, ("auto", "onnxruntime", "openvino", "torch"))
        for name, low, high in (("threads", 1, 1024), ("batch_size", 1, 1 << 20), ("networks", 16, 10_000)):
            check_range(f"latency.{name}", getattr(self, name), low, high)
        if self.lengths == []:
            raise ConfigError("latency.lengths: the list is empty; choices: one or more whole numbers, or leave it out")
        for index, length in enumerate(self.lengths or []):
            check_range(f"latency.lengths[{index}]", length, 1, longest)


@dataclass
class CofiConfig(TaughtRunConfig):
    """CoFi on a task (Xia et al. 2022): prefinetune (distil the dense model), prune (gates under a constraint), finetune.

    Defaults are those of the published script for GLUE but for four: the epochs, the last fine-tuning's batch (64 there),
    the matching of layers (the paper's rule here, the script's is ``ordered``) and ``quadratic_rate`` (1 there). Published epochs, for the large tasks (SST-2, MNLI, QQP,
    QNLI): 1, 2, 20, 20; for the small ones: 4, 20, 100, 20. Ours fit one or two processor cores.

    Args:
        finetune: the dense fine-tuning.
        target_sparsity: shares of the encoder's parameters that go, embeddings not counted; one model is made for each.
            0.8 when there is no target at all.
        target_latency_ms: instead: milliseconds that one call may take, one model for each; see ``latency``.
        latency: what milliseconds are measured of.
        successive: prune to a target from where the target before ended (its weights, gates and multipliers), so that several
            cost one rising pruning. Each must be harder than the one before. The target rises from what is saved already, not
            from 0. Not as published, where each begins anew.
        families: what is gated: heads, neurons, layers (attention and feed-forward sublayers), hidden.
        prefinetune_epochs: distillation before there are gates.
        warmup_epochs: of those of pruning, so many in which the target rises linearly; the last step has the whole target.
        prune_epochs: pruning.
        finetune_epochs: distillation of the physically smaller model.
        min_prune_steps: where ``prune_epochs`` are fewer steps than this, all phases are longer by the same factor: gates move
            at most ``gate_learning_rate`` a step, so that small tasks would end before they have moved.
        batch_size: examples a step.
        learning_rate: peak for the weights before and while pruning (linear to zero).
        finetune_learning_rate: for the smaller model.
        finetune_schedule: of that: constant, as published, or linear.
        gate_learning_rate: for the gates' log alpha and the multipliers; constant, no weight decay.
        quadratic_rate: how many times as fast the multiplier of the squared gap learns. Published is 1: in a few thousand steps both
            multipliers then stay too small to hold a target, or swing around it.
        warmup: share of a phase in which the weights' learning rate rises; a constant one does not.
        weight_decay: AdamW's, on matrices.
        clip_norm: largest gradient norm of the weights.
        train_embeddings: learn the embeddings too; the published code keeps them.
        layer_weight: of the layers' distances to the teacher's.
        prediction_weight: of the distance between predictions.
        gold_weight: of the loss on gold labels; published 0. A text without a label counts with 0 in a batch's mean.
        temperature: of the predictions' distillation.
        teacher_layers: layers of the teacher that teach, counted from 0; up to four, evenly spaced, the last among them, when
            absent (2 5 8 11 of twelve).
        matching: which student layer learns from each: paper (the nearest that is alive), ordered (the same, but never two
            crosswise), any (the nearest, dead or alive), fixed (the one at the same height).
        alive: with paper and ordered: a layer is alive while it has its ffn, or either of its sublayers.
        gap: of the constraint: signed or absolute.
        sparsity_epsilon: how far the expected sparsity (or saved share of the time) may stay short of the target for a model to
            be taken; the best of these on the validation examples is, those that exceed it by no more before all others.
        neuron_drop: drop rate that neurons start with; published 0.5.
        exact_target: close or open the least certain parts, neurons last, so that a model that is scored or cut has the target's
            sparsity exactly, and not only on average.
        start: pretrained (``model``, into which the dense model is distilled first, as published) or dense (a copy of the dense
            model, which needs no prefinetuning: ``prefinetune_epochs`` may then be 0).
        keep_best: take the model of finetune's best evaluation, as published, not its last. Without a test file the validation
            examples are those of the final score too.
        evaluations: evaluations while pruning, and with ``keep_best`` in finetune, from which the best is chosen.
    """

    finetune: FinetuneConfig = field(default_factory=lambda: FinetuneConfig(epochs=3.0, learning_rate=5e-5))
    target_sparsity: list[float] | None = None
    target_latency_ms: list[float] | None = None
    latency: LatencyTargetConfig = field(default_factory=LatencyTargetConfig)
    successive: bool = False
    families: list[str] = field(default_factory=lambda: list(FAMILIES))
    prefinetune_epochs: float = 1.0
    warmup_epochs: float = 1.0
    prune_epochs: float = 4.0
    finetune_epochs: float = 3.0
    min_prune_steps: int = 2_000
    batch_size: int = 32
    learning_rate: float = 2e-5
    finetune_learning_rate: float = 2e-5
    finetune_schedule: str = "constant"
    gate_learning_rate: float = 0.01
    quadratic_rate: float = 50.0
    warmup: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    train_embeddings: bool = False
    layer_weight: float = 0.9
    prediction_weight: float = 0.1
    gold_weight: float = 0.0
    temperature: float = 2.0
    teacher_layers: list[int] | None = None
    matching: str = "paper"
    alive: str = "ffn"
    gap: str = "signed"
    sparsity_epsilon: float = 0.01
    neuron_drop: float = 0.5
    exact_target: bool = True
    start: str = "pretrained"
    keep_best: bool = True
    evaluations: int = 20

    @property
    def targets(self) -> list[tuple[str, float]]:
        """("sparsity", share) or ("latency", milliseconds), one for each model to be made."""
        if self.target_latency_ms is not None:
            return [("latency", ms) for ms in self.target_latency_ms]
        return [("sparsity", share) for share in self.target_sparsity or [DEFAULT_TARGET]]

    @property
    def is_taught(self) -> bool:
        """Whether a term of the loss is the dense model's."""
        return self.prediction_weight + self.layer_weight > 0

    def steps(self, examples: int) -> dict[str, int]:
        """Steps of each phase and, of pruning, of the target's rise ("warmup"), for a task of so many training examples."""
        longer = max(1.0, self.min_prune_steps / (self.prune_epochs * steps_of(1, examples, self.batch_size)))
        epochs = {"prefinetune": self.prefinetune_epochs, "prune": self.prune_epochs, "finetune": self.finetune_epochs}
        whole = {name: steps_of(count * longer, examples, self.batch_size) if count else 0 for name, count in epochs.items()}
        found = {name: capped_steps(steps, self.max_steps) for name, steps in whole.items()}
        rising = round(found["prune"] * self.warmup_epochs / self.prune_epochs)
        return {**found, "warmup": min(rising, found["prune"] - 1)}  # the last step has the whole target, so that a model can meet it

    def fit_config(self, phase: str, steps: int) -> FitConfig:
        """What the training loop reads in one of ``PHASES``."""
        rate = self.finetune_learning_rate if phase == "finetune" else self.learning_rate
        return part_of(FitConfig, self, steps=steps, learning_rate=rate)

    def schedule(self, phase: str) -> str:
        """How the weights' learning rate falls in a phase."""
        return self.finetune_schedule if phase == "finetune" else "linear"

    @property
    def longest(self) -> int:
        """Word pieces that an example may have at most; where only the data say whether they are questions, the larger of two."""
        longest = {True: self.question.max_seq_length, False: self.max_seq_length}
        if self.problem_type is None and not self.train_file:
            return max(longest.values())
        return longest[self.problem_type == QUESTION_ANSWERING]

    def check(self) -> None:
        """Raise ``ConfigError`` for whatever is wrong without looking at model or data."""
        super().check()
        self.latency.check(self.longest)
        for name, choices in (
            ("matching", MATCHINGS), ("alive", ("ffn", "either")), ("gap", ("signed", "absolute")),
            ("start", ("pretrained", "dense")),
            ("finetune_schedule", ("constant", "linear")),
        ):  # fmt: skip
            check_choice(name, getattr(self, name), choices)
        for name, low, high in (
            ("prefinetune_epochs", 0, 1e6), ("prune_epochs", 1e-6, 1e6), ("finetune_epochs", 0, 1e6),
            ("warmup_epochs", 0, self.prune_epochs), ("min_prune_steps", 0, 1e9), ("batch_size", 1, math.inf),
            ("learning_rate", 0, 10), ("finetune_learning_rate", 0, 10), ("gate_learning_rate", 1e-9, 10), ("quadratic_rate", 0, 1e6), ("warmup", 0, 1),
            ("weight_decay", 0, 10), ("clip_norm", 1e-9, math.inf), ("layer_weight", 0, 1e6), ("prediction_weight", 0, 1e6),
            ("gold_weight", 0, 1e6), ("temperature", 1e-3, 1e3), ("sparsity_epsilon", 0, 1), ("neuron_drop", 1e-6, 1 - 1e-6),
            ("evaluations", 1, 1e6),
        ):  # fmt: skip
            check_range(name, getattr(self, name), low, high)
        self._check_targets()
        self._check_lists()
        self._check_read()
        if not self.layer_weight + self.prediction_weight + self.gold_weight:
            raise ConfigError("layer_weight, prediction_weight, gold_weight: all are 0, so nothing is learned; choices: one above 0")

    def _check_targets(self) -> None:
        if self.target_sparsity is not None and self.target_latency_ms is not None:
            raise ConfigError("target_sparsity, target_latency_ms: both are given; choices: one of the two")
        for name, low, high in (("target_sparsity", 0, 0.99), ("target_latency_ms", 1e-6, 1e9)):
            found = getattr(self, name)
            if found == []:
                raise ConfigError(f"{name}: the list is empty; choices: one or more numbers, or leave it out")
            for index, target in enumerate(found or []):
                check_range(f"{name}[{index}]", target, low, high)
            if found and len(set(found)) < len(found):
                raise ConfigError(f"{name}: {found}: one is named twice; name every target once")
            if self.successive and found and found != sorted(found, reverse=name == "target_latency_ms"):
                raise ConfigError(f"{name}: {found}: with successive each target goes on from the one before; choices: from the mildest on")

    def _check_lists(self) -> None:
        for index, family in enumerate(self.families):
            check_choice(f"families[{index}]", family, FAMILIES)
        if not self.families:
            raise ConfigError(f"families: none is named; choices: {', '.join(FAMILIES)}")
        if len(set(self.families)) < len(self.families):
            raise ConfigError(f"families: {self.families}: one is named twice; name every family once")
        if self.exact_target and "neurons" not in self.families:
            raise ConfigError(
                "exact_target: neurons are what is closed or opened, but families leaves them out; choices: --exact_target false"
            )
        layers = self.teacher_layers
        if layers is not None and (not layers or layers != sorted(set(layers)) or layers[0] < 0):
            raise ConfigError(f"teacher_layers: {layers}; choices: ascending numbers from 0, such as 2 5 8 11, or leave it out")

    def _check_read(self) -> None:
        """Settings that nothing would read are refused."""
        if self.target_latency_ms is None:
            for name, value in vars(self.latency).items():
                usual = getattr(LatencyTargetConfig(), name)
                check_idle(f"latency.{name}", value, usual, "without target_latency_ms", "leave it out, or --target_latency_ms")
        if "neurons" not in self.families:
            check_idle("neuron_drop", self.neuron_drop, CofiConfig.neuron_drop, "where families leaves neurons out", "leave it out, or name neurons")
        if self.matching not in ASK_WHO_LIVES:
            choices = f"leave it out, or matching {' or '.join(ASK_WHO_LIVES)}"
            check_idle("alive", self.alive, CofiConfig.alive, f"with matching {self.matching}", choices)


def target_name(kind: str, target: float) -> str:
    """A target in words: "CoFi 95%" or "CoFi 3 ms"."""
    return f"CoFi {100 * target:g}%" if kind == "sparsity" else f"CoFi {target:g} ms"
