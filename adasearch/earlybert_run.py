"""EarlyBERT on a task: search until the ticket is drawn, cut, train what is left; a random ticket beside it.

    pretrained + coefficients -> search -> ticket -> shrink (rewound) -> train

The ticket is plain data, ``ticket.json`` beside each model: from it and the checkpoint the smaller network is cut again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from adasearch.earlybert_config import EarlyBertConfig
from adasearch.encoder_layers import EncoderPreTrainedModel
from adasearch.encoder_problem import EncoderProblem
from adasearch.encoder_run import About, begin_encoders, run_recipes
from adasearch.encoder_training import Compressed, Outcome, Recipe, Workplace
from adasearch.files import write_json
from adasearch.fit_config import FitConfig, finetuning, steps_behind
from adasearch.gate_values import GateValues
from adasearch.methods.earlybert import FAMILIES, EarlyBert
from adasearch.methods.finetune_encoder import FinetuneEncoder
from adasearch.progress import Progress
from adasearch.shrink_encoder import shrink_encoder
from adasearch.ticket_plots import FILE as DISTANCES
from adasearch.tickets import mask_distances, random_ticket


def compress_earlybert(config: EarlyBertConfig, progress: Progress | None = None) -> Path:
    """EarlyBERT, and with ``random_ticket`` its control, on one task; returns the run's folder.

    Raises ``ConfigError``, ``DataError`` or ``ModelError`` before any training when request, data or models are wrong.
    """
    run, problem = begin_encoders(config, dataclasses.replace(ABOUT, summary=summary_of(config)), progress)
    _warn_of_few_checks(config, problem)
    return run_recipes(run, problem, earlybert_recipes(config))


def _warn_of_few_checks(config: EarlyBertConfig, problem: EncoderProblem) -> None:
    """Say before any training that the search will end before the detector has seen a full window."""
    if config.ticket.draw != "detector" or (problem.folder / "models").exists():
        return
    method, window = _search_method(config, problem), config.ticket.window
    if (checks := method.last_step // method.check_every) >= window:
        return
    longer = "a larger max_steps" if method.last_step == config.max_steps else "more ticket.epochs"
    problem.progress.warning(
        f"ticket.window: {window} masks in a row are to be alike, but a search of {method.last_step} steps that looks every {method.check_every}"
        f" sees {checks}: its ticket will be drawn as it is at the end; choices: {longer}, a smaller ticket.check_every or ticket.window,"
        " ticket.draw fixed"
    )


def _search_method(config: EarlyBertConfig, problem: EncoderProblem, seed: int = 0) -> EarlyBert:
    settings = config.ticket
    fit_config = finetuning(settings, problem.steps(settings.schedule_epochs, settings.batch_size), config.max_steps)
    return EarlyBert(fit_config, settings, problem.steps(1.0, settings.batch_size), problem.forward, problem.loss, seed=seed)


def earlybert_recipes(config: EarlyBertConfig) -> list[Recipe]:
    """The early-bird ticket, then the random one."""
    early = Recipe("student", "earlybert", "EarlyBERT", partial(train_earlybert, config))
    control = Recipe("random_ticket", "random_ticket", "random ticket", partial(train_random, config))
    return [early, control] if config.random_ticket else [early]


def train_earlybert(config: EarlyBertConfig, place: Workplace) -> Outcome:
    """Search, draw, train. ``facts``: steps of both, how the search ended, the distances of its tickets."""
    model = place.stage("search", lambda: _search(config, place))
    learned = place.facts["search_steps"] if config.train.start == "continue" else 0
    after = steps_behind(learned, len(place.problem.train), config.ticket.batch_size, config.train.batch_size)
    method = FinetuneEncoder(train_settings(config, place), place.problem.forward, place.problem.loss)
    place.fit(model, method, "train", after=after)
    files = ("ticket.json", *((DISTANCES,) if (place.folder / DISTANCES).exists() else ()))
    return Outcome(model, ("search", "train"), {"method": "earlybert", **place.facts}, files=files)


def train_random(config: EarlyBertConfig, place: Workplace) -> Outcome:
    """The same ratios and scopes with random scores: no search, the same training."""

    def draw() -> EncoderPreTrainedModel:
        model, settings = place.problem.pretrained(place.seed), config.ticket
        heads = random_ticket(model.config.heads, settings.head_ratio, settings.head_scope, place.seed)
        neurons = random_ticket(model.config.neurons, settings.neuron_ratio, settings.neuron_scope, place.seed)
        ticket = GateValues(heads=[mask.float() for mask in heads], neurons=[mask.float() for mask in neurons])
        _write_ticket(place, ticket)
        return shrink_encoder(model, ticket)

    model = place.stage("draw", draw)
    place.fit(model, FinetuneEncoder(train_settings(config, place), place.problem.forward, place.problem.loss), "train")
    return Outcome(model, ("train",), {"method": "random ticket"}, files=("ticket.json",))


def train_settings(config: EarlyBertConfig, place: Workplace) -> FitConfig:
    """Of the efficient training."""
    return place.fit_config(place.problem.steps(config.train.epochs, config.train.batch_size), config.train)


def _search(config: EarlyBertConfig, place: Workplace) -> EncoderPreTrainedModel:
    """The smaller network that the ticket leaves, with the weights it is to start from."""
    problem, settings = place.problem, config.ticket
    epoch = problem.steps(1.0, settings.batch_size)
    method = _search_method(config, problem, place.seed)
    model = problem.pretrained(place.seed)
    steps = place.fit(model, method, "search", evaluations=0)[-1]["step"]
    if settings.draw == "detector" and not bool(method.is_found):
        problem.progress.warning(
            f"{place.title}: the ticket had not settled within {settings.epochs:g} epochs ({steps} steps) and is drawn as it is;"
            " choices: more ticket.epochs, a smaller ticket.check_every, a larger ticket.threshold, ticket.draw fixed"
        )
    if settings.draw == "fixed" and method.fixed_step > method.last_step:
        problem.progress.warning(f"{place.title}: the search ended after {steps} steps, before ticket.draw_step; choices: more ticket.epochs, a smaller draw_step")
    ticket = method.draw().map(lambda mask: mask.cpu())
    distances = {family: mask_distances(method.seen(family).cpu()).tolist() for family in FAMILIES if int(method.checks) > 1}
    if distances:
        write_json(place.folder / DISTANCES, {"check_every": method.check_every, **distances})
    place.note(
        search_steps=steps, search_epochs=steps / epoch, is_settled=bool(method.is_found) if settings.draw == "detector" else None,
        last_mask_distances={family: rows[-1][-2] for family, rows in distances.items()},
    )  # fmt: skip
    _write_ticket(place, ticket)
    if config.train.start == "rewind":
        return shrink_encoder(problem.pretrained(place.seed), ticket)
    coefficients = method.coefficients().detach().map(lambda c: c.cpu())
    folded = GateValues(
        heads=[c * mask for c, mask in zip(coefficients.heads, ticket.heads)],
        neurons=[c * mask for c, mask in zip(coefficients.neurons, ticket.neurons)],
    )
    return shrink_encoder(model.cpu(), folded)


def _write_ticket(place: Workplace, ticket: GateValues) -> None:
    """The kept heads and neurons of each layer by number."""
    kept = {family: [torch.nonzero(mask).flatten().tolist() for mask in getattr(ticket, family)] for family in FAMILIES}
    write_json(place.folder / "ticket.json", {"seed": place.seed, **kept})


def _facts(trained: Sequence[Compressed]) -> dict[str, str]:
    """When the search ended, of all seeds."""
    found = [item.facts for item in trained if item.recipe.key == "earlybert"]
    steps, epochs = ([facts[name] for facts in found] for name in ("search_steps", "search_epochs"))
    settled = [facts["is_settled"] for facts in found if facts["is_settled"] is not None]  # None: nobody looked
    distances = [" and ".join(f"{value:.3f}" for value in facts["last_mask_distances"].values()) for facts in found]
    return {
        "search, steps": ", ".join(map(str, steps)),
        "search, share of an epoch": f"{np.mean(epochs):.2f}",
        **({"tickets that had settled": f"{sum(settled)} of {len(settled)}"} if settled else {}),
        **({"last two tickets differ by (heads and neurons)": ", ".join(distances)} if any(distances) else {}),
    }


def summary_of(config: EarlyBertConfig) -> str:
    """What a run with these settings does."""
    ticket = config.ticket
    ranked = " and ".join(name for name, ratio in (("heads", ticket.head_ratio), ("neurons", ticket.neuron_ratio)) if ratio)
    end = "until the ranking has settled" if ticket.draw == "detector" else "up to a fixed step"
    start = "from the pre-trained weights" if config.train.start == "rewind" else "on, from the weights that the search left"
    control = " The random ticket leaves as many, at random." if config.random_ticket else ""
    return (
        f"{ranked.capitalize()} are ranked by coefficients that learn beside the weights, {end}; the rest is cut away, and the smaller network"
        f" is trained {start}.{control}"
    )


ABOUT = About(  # its summary is that of a run with default settings
    "EarlyBERT", "earlybert", "[Chen et al. 2021](https://arxiv.org/abs/2101.00063)", summary_of(EarlyBertConfig()), _facts,
)  # fmt: skip
