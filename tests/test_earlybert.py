"""EarlyBERT's search: the loss and its gradient, coefficients apart from weights, and when and how the search ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_encoder import forward
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from adasearch.config import FitConfig
from adasearch.earlybert_config import EarlyBertConfig, TicketConfig, TrainConfig
from adasearch.encoder import from_hugging_face
from adasearch.encoder_layers import EncoderForSequenceClassification
from adasearch.errors import ConfigError
from adasearch.fit import fit
from adasearch.gate_values import GateValues
from adasearch.methods.earlybert import EarlyBert
from adasearch.objectives import task_loss
from adasearch.progress import Progress
from adasearch.tokens import Examples, TokenStore

HEADS, NEURONS, LAYERS = 4, 12, 2
STEPS_PER_EPOCH = 10


def encoder() -> EncoderForSequenceClassification:
    """Two layers of random weights, dropout off."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=NEURONS,
        max_position_embeddings=12, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.5,
    )  # fmt: skip
    return from_hugging_face(BertForSequenceClassification(config))


def examples() -> Examples:
    """Forty texts whose first word says the label."""
    generator = np.random.default_rng(0)
    texts = [generator.integers(4, 20, generator.integers(3, 9)) for _ in range(40)]
    return Examples(TokenStore.from_lists(texts), 0, np.array([int(text[0] > 11) for text in texts]))


def loss(output: Any, batch: dict[str, Tensor]) -> Tensor:
    return task_loss(output.logits, batch["labels"], "single_label").mean()


def method(steps: int = 30, rate: float = 1e-2, decay: float = 0.0, **changes: Any) -> EarlyBert:
    ticket = TicketConfig(learning_rate=rate, **{"check_every": 1, "head_ratio": 0.25, **changes})
    config = FitConfig(steps=steps, batch_size=4, learning_rate=rate, warmup=0.0, weight_decay=decay, clip_norm=1e9)
    return EarlyBert(config, ticket, STEPS_PER_EPOCH, forward, loss)


def search(this: EarlyBert, folder: Path) -> int:
    """Train; the steps taken."""
    return fit(
        encoder(), this, {"train": examples()}, this.config, seed=1, folder=folder, accelerator=Accelerator(cpu=True),
        progress=Progress(), title="search",
    )[-1]["step"]  # fmt: skip


def test_the_loss_is_the_task_s_and_the_weighed_magnitudes() -> None:
    this, model, batch = method(lambda_heads=0.3, lambda_neurons=0.2), encoder(), examples().collate(range(8))
    this.attach(model)
    with torch.no_grad():
        this.heads[1][2], this.neurons[0][5] = -2.0, 0.5
    terms = {name: term.detach() for name, term in this.loss(model, batch).items()}
    assert float(terms["l1_heads"]) == pytest.approx(0.3 * (LAYERS * HEADS + 1))
    assert float(terms["l1_neurons"]) == pytest.approx(0.2 * (LAYERS * NEURONS - 0.5))
    gates = GateValues(heads=[torch.ones(HEADS) for _ in range(LAYERS)], neurons=[torch.ones(NEURONS) for _ in range(LAYERS)])
    gates.heads[1][2], gates.neurons[0][5] = -2.0, 0.5
    assert float(terms["ce"]) == pytest.approx(loss(forward(model, batch, gates=gates), batch).item())


def test_a_coefficient_s_gradient_is_the_loss_s_slope_and_lambda_s_sign() -> None:
    this, model, batch = method(lambda_heads=0.3, lambda_neurons=0.2), encoder().double(), examples().collate(range(8))
    this.attach(model)
    this.double()
    sum(this.loss(model, batch).values()).backward()
    for family, layer, index in (("heads", 0, 1), ("heads", 1, 3), ("neurons", 0, 7), ("neurons", 1, 0)):
        coefficient = getattr(this, family)[layer]
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                coefficient[index] += step
                values.append(float(sum(this.loss(model, batch).values())))
                coefficient[index] -= step
        assert float(coefficient.grad[index]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-5), (family, layer)


def test_at_the_start_the_network_is_the_pretrained_one() -> None:
    this, model, batch = method(), encoder().eval(), examples().collate(range(8))
    this.attach(model)
    assert torch.allclose(forward(model, batch, gates=this.coefficients()).logits, forward(model, batch).logits, atol=1e-6)


def test_coefficients_learn_apart_and_never_decay(tmp_path: Path) -> None:
    this = method(steps=5, decay=0.5, lambda_heads=0.0, lambda_neurons=0.0, draw="fixed", draw_step=5)
    this.task_loss = lambda output, batch: 0 * loss(output, batch)  # nothing pulls but decay
    groups = {}
    original = this.groups
    this.groups = lambda student: groups.setdefault("all", original(student))
    model = encoder()
    before = model.encoder.layers[0].ffn.input.weight.detach().clone()
    fit(
        model, this, {"train": examples()}, this.config, seed=1, folder=tmp_path, accelerator=Accelerator(cpu=True),
        progress=Progress(), title="search",
    )  # fmt: skip
    assert [group.name for group in groups["all"]] == ["weights", "coefficients"]
    own = {id(parameter) for params in groups["all"][0].params for parameter in params["params"]}
    assert not own & {id(parameter) for parameter in this.parameters()}
    assert all(torch.equal(c, torch.ones_like(c)) for c in (*this.heads, *this.neurons))
    assert (model.encoder.layers[0].ffn.input.weight.abs() < before.abs()).all()


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"threshold": 1.0}, 5),  # any five tickets are alike: the window is full after five checks
        ({"threshold": 1.0, "window": 3, "check_every": 2}, 6),
        ({"threshold": 0.0, "lambda_heads": 0.0, "neuron_ratio": 0.5, "epochs": 0.8}, 8),  # never alike: the last step
        ({"draw": "fixed", "draw_step": 0.2}, 2),  # of an epoch of ten steps
        ({"draw": "fixed", "draw_step": 7}, 7),
        ({"draw": "fixed", "draw_step": 999}, 10),  # not beyond ticket.epochs
    ],
)
def test_the_search_really_ends(changes: dict[str, Any], steps: int, tmp_path: Path) -> None:
    rate = 0.3 if changes.get("threshold") == 0.0 else 1e-2  # so fast that tickets keep changing
    this = method(rate=rate, **changes)
    assert search(this, tmp_path) == steps
    assert bool(this.is_found) == (changes.get("threshold") == 1.0)


@pytest.mark.parametrize(("steps_per_epoch", "every"), [(77, 3), (2105, 84), (100, 4), (25, 1), (7, 1)])  # the first is RTE's
def test_a_full_window_can_be_seen_within_a_fifth_of_the_first_epoch(steps_per_epoch: int, every: int) -> None:
    this = EarlyBert(FitConfig(steps=9_999), TicketConfig(), steps_per_epoch, forward, loss)
    assert this.check_every == every and (every == 1 or this.ticket_config.window * every <= steps_per_epoch / 5)


def test_what_was_seen_stays_as_it_was_when_the_coefficients_move_on() -> None:
    this, model = method(), encoder()
    this.attach(model)
    seen = []
    for _ in range(3):
        with torch.no_grad():
            for coefficient in (*this.heads, *this.neurons):
                coefficient.copy_(torch.randn_like(coefficient))
        this._check()
        drawn = this.draw()
        seen.append({"heads": torch.cat(drawn.heads).bool(), "neurons": torch.cat(drawn.neurons).bool()})
    for family in ("heads", "neurons"):
        assert torch.equal(this.seen(family), torch.stack([entry[family] for entry in seen])), "a record, not the live parameters"
    assert int(this.seen("heads")[0].sum()) == LAYERS * 3 and int(this.seen("neurons")[0].sum()) == round(0.6 * LAYERS * NEURONS)


def test_heads_and_neurons_must_both_have_settled() -> None:
    for moving in ("heads", "neurons"):
        this = method(window=2, threshold=0.0)
        this.attach(encoder())
        found = []
        for check in range(4):
            with torch.no_grad():
                for coefficient in getattr(this, moving):
                    coefficient.copy_(torch.arange(len(coefficient)).roll(check).float())
            found.append(this._check())
        assert not any(found), f"{moving} change at every check"
        this._check()
        assert this._check(), "nothing changed since the last one"


def test_a_search_that_is_interrupted_draws_the_same_ticket(tmp_path: Path) -> None:
    settings = {"threshold": 0.0, "lambda_heads": 0.0, "window": 8, "epochs": 1.0}
    whole, resumed = method(rate=0.05, **settings), method(rate=0.05, **settings)
    assert search(whole, tmp_path / "whole") == 10

    class Stop(Exception):
        pass

    def stop(steps: list[int]) -> None:
        steps.append(1)
        if len(steps) == 6:
            raise Stop

    taken: list[int] = []
    with pytest.raises(Stop):
        fit(
            encoder(), method(rate=0.05, **settings), {"train": examples()}, whole.config, seed=1, folder=tmp_path / "half",
            accelerator=Accelerator(cpu=True), progress=Progress(), title="search", checkpoint_seconds=0.0, on_step=lambda: stop(taken),
        )  # fmt: skip
    assert search(resumed, tmp_path / "half") == 10
    for family in ("heads", "neurons"):
        assert torch.equal(whole.seen(family), resumed.seen(family))
        assert all(torch.equal(a, b) for a, b in zip(getattr(whole, family), getattr(resumed, family)))


@pytest.mark.parametrize(
    ("config", "place"),
    [
        (EarlyBertConfig(ticket=TicketConfig(head_ratio=1.0)), "ticket.head_ratio"),
        (EarlyBertConfig(ticket=TicketConfig(head_ratio=0, neuron_ratio=0)), "ticket.neuron_ratio"),
        (EarlyBertConfig(ticket=TicketConfig(draw="soon")), "ticket.draw"),
        (EarlyBertConfig(ticket=TicketConfig(window=1)), "ticket.window"),
        (EarlyBertConfig(ticket=TicketConfig(draw_step=0.1)), "ticket.draw_step: 0.1 has no effect with ticket.draw detector"),
        (EarlyBertConfig(ticket=TicketConfig(draw="fixed", window=3)), "ticket.window: 3 has no effect with ticket.draw fixed"),
        (EarlyBertConfig(ticket=TicketConfig(epochs=5.0)), "ticket.epochs"),
        (EarlyBertConfig(train=TrainConfig(start="again")), "train.start"),
        (EarlyBertConfig(seeds=[]), "seeds"),
        (EarlyBertConfig(seeds=[1, 1]), "seeds"),
        (replace(EarlyBertConfig(), soft_label_columns=["p"]), "soft_label_columns"),
        (replace(EarlyBertConfig(), unlabeled_file="more.txt"), "unlabeled_file: EarlyBERT learns from labels alone"),
        (replace(EarlyBertConfig(), finetune=replace(EarlyBertConfig().finetune, batch_size=0)), "finetune.batch_size"),
    ],
)
def test_wrong_settings_are_refused_with_their_place(config: EarlyBertConfig, place: str) -> None:
    with pytest.raises(ConfigError, match=place.replace(".", r"\.")):
        config.check()


def test_published_constants_are_the_defaults() -> None:
    config = EarlyBertConfig()
    ticket = config.ticket
    assert (ticket.head_ratio, ticket.head_scope, ticket.neuron_ratio, ticket.neuron_scope) == (1 / 3, "layerwise", 0.4, "global")
    assert (ticket.lambda_heads, ticket.lambda_neurons, ticket.draw_step, ticket.window, ticket.threshold) == (1e-4, 1e-4, 0.2, 5, 0.1)
    assert (ticket.learning_rate, config.train.learning_rate, config.train.epochs, ticket.schedule_epochs) == (2e-5, 4e-5, 2.0, 3.0)
    config.check()
