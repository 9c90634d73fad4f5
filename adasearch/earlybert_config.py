"""Settings of EarlyBERT: an early ticket of a transformer, by slimming coefficients, and its efficient training."""

from __future__ import annotations

from dataclasses import dataclass, field

from adasearch.encoder_config import EncoderRunConfig
from adasearch.errors import ConfigError
from adasearch.fit_config import FinetuneConfig, check_fit
from adasearch.settings import check_choice, check_idle, check_optional, check_range

SCOPES = ("layerwise", "global")
DRAWS = ("detector", "fixed")
OF_DRAW = {"detector": ("check_every", "window", "threshold"), "fixed": ("draw_step",)}  # settings that one kind of drawing alone reads


@dataclass
class TicketConfig:
    """The search for an early-bird ticket, and how it is drawn (EarlyBERT; Chen et al. 2021).

    Args:
        learning_rate: of weights and coefficients.
        batch_size: examples a step.
        schedule_epochs: the learning rate falls linearly as if the search took so many epochs.
        epochs: the search ends after so many epochs at the latest.
        warmup: share of the schedule in which the learning rate rises.
        weight_decay: AdamW's, on matrices; the coefficients have none.
        lambda_heads: weight of the sum of the heads' coefficients' magnitudes in the loss.
        lambda_neurons: the same for the neurons'.
        draw: detector (as soon as the mask has settled) or fixed (at ``draw_step``).
        draw_step: with fixed: steps, or below 1 a share of the first epoch.
        check_every: with detector: steps between two masks; a 25th of an epoch when absent, rounded down, so that a full
            window can be seen within a fifth of the first epoch.
        window: so many masks, the newest among them, must be alike.
        threshold: the largest share of differing elements at which two masks are alike; heads and neurons must both be.
        head_ratio: share of the heads that go.
        neuron_ratio: share of the neurons that go.
        head_scope: layerwise (the same share in every layer) or global (the weakest of all; one a layer stays).
        neuron_scope: the same for neurons.
        absolute: rank by magnitude instead of the signed coefficient.
    """

    learning_rate: float = 2e-5
    batch_size: int = 32
    schedule_epochs: float = 3.0
    epochs: float = 1.0
    warmup: float = 0.0
    weight_decay: float = 0.0
    lambda_heads: float = 1e-4
    lambda_neurons: float = 1e-4
    draw: str = "detector"
    draw_step: float = 0.2
    check_every: int | None = None
    window: int = 5
    threshold: float = 0.1
    head_ratio: float = 1 / 3
    neuron_ratio: float = 0.4
    head_scope: str = "layerwise"
    neuron_scope: str = "global"
    absolute: bool = False

    def check(self) -> None:
        """Raise ``ConfigError`` for values out of range."""
        check_fit("ticket", self)
        for name, choices in (("draw", DRAWS), ("head_scope", SCOPES), ("neuron_scope", SCOPES)):
            check_choice(f"ticket.{name}", getattr(self, name), choices)
        for name, low, high in (
            ("schedule_epochs", 1e-6, 1e6), ("epochs", 1e-6, self.schedule_epochs), ("lambda_heads", 0, 1e3), ("lambda_neurons", 0, 1e3),
            ("draw_step", 1e-9, 1e9), ("window", 2, 1000), ("threshold", 0, 1), ("head_ratio", 0, 0.99), ("neuron_ratio", 0, 0.99),
        ):  # fmt: skip
            check_range(f"ticket.{name}", getattr(self, name), low, high)
        check_optional("ticket.check_every", self.check_every, 1, 1e9)
        (other,) = (draw for draw in DRAWS if draw != self.draw)
        choices = f"leave it out, or --ticket.draw {other}"
        for name in OF_DRAW[other]:
            check_idle(f"ticket.{name}", getattr(self, name), getattr(TicketConfig, name), f"with ticket.draw {self.draw}", choices)
        if not self.head_ratio and not self.neuron_ratio:
            raise ConfigError("ticket.head_ratio, ticket.neuron_ratio: both are 0, so nothing is pruned; choices: one above 0")


@dataclass
class TrainConfig:
    """The efficient training of the ticket, a network that is physically smaller.

    Args:
        epochs: passes over the training examples.
        learning_rate: peak of AdamW's linear decay.
        batch_size: examples a step.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: AdamW's, on matrices.
        start: rewind (the pre-trained weights) or continue (the weights at the end of the search, coefficients folded in).
    """

    epochs: float = 2.0
    learning_rate: float = 4e-5
    batch_size: int = 32
    warmup: float = 0.0
    weight_decay: float = 0.0
    start: str = "rewind"

    def check(self) -> None:
        """Raise ``ConfigError`` for values out of range."""
        check_fit("train", self)
        check_range("train.epochs", self.epochs, 1e-6, 1e6)
        check_choice("train.start", self.start, ("rewind", "continue"))


@dataclass
class EarlyBertConfig(EncoderRunConfig):
    """EarlyBERT on a task: slimming coefficients, an early ticket, efficient training of what it leaves.

    Args:
        finetune: the dense fine-tuning it is compared with; EarlyBERT's authors train three epochs.
        ticket: search and drawing.
        train: efficient training.
        random_ticket: train a random ticket of the same ratios as well.
    """

    finetune: FinetuneConfig = field(
        default_factory=lambda: FinetuneConfig(epochs=3.0, learning_rate=2e-5, warmup=0.0, weight_decay=0.0)
    )
    ticket: TicketConfig = field(default_factory=TicketConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    random_ticket: bool = True

    def check(self) -> None:
        super().check()
        if self.unlabeled_file:
            raise ConfigError("unlabeled_file: EarlyBERT learns from labels alone; choices: leave it out, or --unlabeled_file of cofi or prune-ofa")
        self.ticket.check()
        self.train.check()
