"""A supernet trained by one of NNI's one-shot strategies in its sequential engine. Needs the extra ``nni``.

NNI brings the strategy and the loop (PyTorch Lightning's); ours are the network's weights, the loss, its price, the batches
and the optimisers. What NNI counts in epochs (warm-up, temperature) is counted in *rounds* here, ``ROUNDS`` a search,
and checkpoints are made between them: Lightning's own would be pickles, and NNI numbers its architecture parameters in
the order of a set, which is another in every process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from accelerate import Accelerator
from nni.nas.evaluator.pytorch import Lightning, LightningModule, Trainer
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.oneshot.pytorch.sampling import RandomSamplingLightningModule
from nni.nas.space import RawFormatModelSpace
from nni.nas.strategy import DARTS, GumbelDARTS, Proxyless, RandomOneShot
from torch import Tensor

from adasearch.errors import TrainingError
from adasearch.files import write_atomically, write_text
from adasearch.fit import (
    HISTORY_RECORDS, checked_loss, clip_gradients, learning_rate_factor, make_optimizer, restore_rng, rng_state, set_learning_rate,
)  # fmt: skip
from adasearch.methods.base import Group
from adasearch.nni_cost import CostProfiler
from adasearch.nni_network import SupernetSpace
from adasearch.progress import Progress
from adasearch.search_config import SearchConfig
from adasearch.supernet import Supernet
from adasearch.tokens import BatchSampler, Examples
from adasearch.tracking import track

if TYPE_CHECKING:
    from adasearch.methods.nni_search import NniSearch

ROUNDS = 20  # a stair of the temperature every 5% of the search
NEVER = 1 << 30  # NNI writes its probabilities to Lightning's loggers every so many steps; there are none


class Batches:
    """The batches of one round. Number n depends on (seed, n) alone, as in ``fit``."""

    def __init__(self, examples: Examples, batch_size: int, seed: int, round_of_steps: Callable[[], range]):
        self.examples, self.round_of_steps = examples, round_of_steps
        self.sampler = BatchSampler(examples.tokens.lengths, batch_size, seed)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self.examples.collate(self.sampler(step)) for step in self.round_of_steps())


class Together(torch.optim.Optimizer):
    """The optimisers of several groups as the single one that NNI allows, with the clipping of ``fit``."""

    def __init__(self, groups: list[Group], clip_norm: float, device: torch.device):
        self.groups, self.clip_norm = groups, clip_norm
        self.parts = {group.name: make_optimizer(group, device) for group in groups}
        super().__init__([params for part in self.parts.values() for params in part.param_groups], {})

    def schedule(self, step: int, config: SearchConfig) -> None:
        """Set the learning rates of a step."""
        for group in self.groups:
            set_learning_rate(self.parts[group.name], group, step, config)

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step of each."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.groups:
            part = self.parts[group.name]
            if not clip_gradients(part, group, self.clip_norm):
                raise TrainingError(f"search: the gradients of {group.name!r} are not finite; a smaller learning rate helps; the last checkpoint is kept")
            part.step()
        return loss


class Lesson(LightningModule):
    """The loss of a batch, for NNI's strategies: they ask for it once for the architecture and once for the weights."""

    def __init__(self, method: NniSearch, student: Supernet):
        super().__init__()
        self.method, self.config = method, method.config
        self.optimizer = Together(method.groups(student), method.config.clip_norm, method.multiplier.device)
        self.profiler = CostProfiler(student, method.choices, method.probabilities, method.length)
        self.ends = np.linspace(0, self.config.steps, min(ROUNDS, self.config.steps) + 1).round().astype(int).tolist()
        self.window: dict[str, float] = {}

    @property
    def round_of_steps(self) -> range:
        """The steps of the round that Lightning is in."""
        return range(*self.ends[self.trainer.current_epoch : self.trainer.current_epoch + 2])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """What the weights learn by; NNI adds its own for the architecture."""
        return self.optimizer

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss. Strategies that learn an architecture number their phases: even ones are the architecture's."""
        is_arch = self.method.learns_architecture and batch_idx % 2 == 0
        step = self.round_of_steps[batch_idx // 2 if self.method.learns_architecture else batch_idx]
        terms = self.method.terms(self.model(batch["input_ids"], batch["attention_mask"]), batch)
        if is_arch:
            self.method.is_warm = True
            begin = self.ends[warm_up(self)]
            self.method.learned = (step - begin) / max(1, self.config.steps - begin)  # a target falls with it
            terms["efficiency"] = self.method.price(self.profiler)
        else:
            self.optimizer.schedule(step, self.config)
            self.window["count"] = self.window.get("count", 0) + 1
        loss = checked_loss(terms, "search", step)
        for name, value in terms.items():
            if not is_arch or name == "efficiency":  # the rest of that phase is the same loss on held-out texts
                self.window[name] = self.window.get(name, 0.0) + float(value.detach())
        return loss


class Keeper(pl.Callback):
    """History, progress, checkpoints between rounds, and the multiplier of a constraint."""

    def __init__(
        self, lesson: Lesson, student: Supernet, folder: Path, accelerator: Accelerator, progress: Progress, checkpoint_seconds: float
    ):
        self.lesson, self.method, self.student, self.folder = lesson, lesson.method, student, folder
        self.accelerator, self.progress, self.checkpoint_seconds = accelerator, progress, checkpoint_seconds
        self.history: list[dict[str, Any]] = []
        self.saved = time.monotonic()

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on from a checkpoint, if there is one."""
        if self._checkpoint.exists():
            self._load(trainer)
        self.progress.stage("search", self.lesson.config.steps, self.lesson.ends[trainer.current_epoch])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After both phases of a step."""
        self.method.raise_multiplier()
        config, step = self.lesson.config, self.lesson.round_of_steps[batch_idx] + 1
        if step % max(1, config.steps // HISTORY_RECORDS) == 0 or step == config.steps:
            record = self._record(trainer, step)
            self.history.append(record)
            write_text(self.folder / "history.jsonl", "".join(json.dumps(each) + "\n" for each in self.history))
            track(self.accelerator, self.folder.name, record)
            self.progress.step(step, loss=record["loss"], **record["terms"])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Between two rounds."""
        after = trainer.current_epoch + 1
        if after < len(self.lesson.ends) - 1 and time.monotonic() - self.saved > self.checkpoint_seconds:
            self._save(trainer, after)
            self.saved = time.monotonic()

    def _record(self, trainer: pl.Trainer, step: int) -> dict[str, Any]:
        lesson, main = self.lesson, self.lesson.optimizer.groups[0]
        count = lesson.window.pop("count")
        terms = {name: total / count for name, total in lesson.window.items()}
        lesson.window = {}
        factor = learning_rate_factor(step - 1, lesson.config.steps, lesson.config.warmup, main.schedule)
        temperature = next((module.tau for module in lesson.model.modules() if hasattr(module, "tau")), 1.0)  # GumbelDARTS has one
        is_warm = not self.method.learns_architecture or trainer.current_epoch >= warm_up(lesson)
        measured = self.method.told(lesson.profiler, float(temperature), is_warm)
        return {"step": step, "loss": sum(terms.values()), "terms": terms, "learning_rate": main.learning_rate * factor, **measured}

    def _arch(self, trainer: pl.Trainer) -> dict[Any, Any]:
        """State of NNI's optimiser, by parameter."""
        return next((each.state for each in trainer.optimizers if getattr(each, "is_arch_optimizer", False)), {})

    def _save(self, trainer: pl.Trainer, after: int) -> None:
        arch = self._arch(trainer)
        state = {
            "round": after,
            "model": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimizers": {name: part.state_dict() for name, part in self.lesson.optimizer.parts.items()},
            "alphas": {label: alpha.detach() for label, alpha in self.method.alphas.items()},
            "arch": {label: dict(arch[alpha]) for label, alpha in self.method.alphas.items() if alpha in arch},
            "history": json.dumps(self.history),
            "window": self.lesson.window,
            **rng_state(self.accelerator.device),
        }
        write_atomically(self._checkpoint, lambda path: torch.save(state, path))

    @torch.no_grad()
    def _load(self, trainer: pl.Trainer) -> None:
        state = torch.load(self._checkpoint, map_location=self.accelerator.device, weights_only=True)
        self.student.load_state_dict(state["model"])
        self.method.load_state_dict(state["method"])
        for name, part in self.lesson.optimizer.parts.items():
            part.load_state_dict(state["optimizers"][name])
        arch = self._arch(trainer)
        for label, alpha in self.method.alphas.items():
            alpha.copy_(state["alphas"][label])
            if label in state["arch"]:
                arch[alpha] = state["arch"][label]
        self.history, self.lesson.window = json.loads(state["history"]), state["window"]
        restore_rng(state)
        done = trainer.fit_loop.epoch_progress.current  # of which Lightning's number of the epoch is made
        done.ready = done.started = done.processed = done.completed = state["round"]


class Seeded(RandomSamplingLightningModule):
    """NNI's uniform paths from torch's seeded generator; its own come from the system's entropy."""

    def resample(self) -> dict[str, str]:
        """Draw a member and set every choice to it."""
        sample = {label: values[int(torch.randint(len(values), ()))] for label, values in self.model.choices.open.items()}
        for module in self.supernet_modules():
            module.resample(memo=sample)
        return sample


class SeededRandomOneShot(RandomOneShot):
    """RandomOneShot with that."""

    def configure_oneshot_module(self, training_module: LightningModule) -> Seeded:
        return Seeded(training_module, self.filter)


def warm_up(lesson: Lesson) -> int:
    """Rounds in which the weights learn alone."""
    return round(lesson.config.arch_warmup * (len(lesson.ends) - 1))


def one_shot_strategy(name: str, lesson: Lesson) -> DARTS | RandomOneShot:
    """NNI's strategy "darts", "gumbel_darts", "proxyless" or "random_one_shot" with the settings of a search."""
    if name == "random_one_shot":
        return SeededRandomOneShot()
    config = lesson.config
    settings = {"arc_learning_rate": config.arch_learning_rate, "warmup_epochs": warm_up(lesson), "log_prob_every_n_step": NEVER}
    if name == "gumbel_darts":
        return GumbelDARTS(temperature=(float(config.temperature_start), float(config.temperature_end)), **settings)
    return {"darts": DARTS, "proxyless": Proxyless}[name](**settings)


def train(
    name: str, method: NniSearch, student: Supernet, splits: dict[str, Examples], *, seed: int, folder: Path, accelerator: Accelerator,
    progress: Progress, checkpoint_seconds: float,
) -> None:  # fmt: skip
    """Train the supernet in place by NNI's strategy ``name``; ``method.alphas`` are its architecture parameters, by label.

    Raises ``TrainingError`` when the loss is not finite.
    """
    torch.manual_seed(seed)
    method.attach(student)
    student.to(accelerator.device), method.to(accelerator.device)
    lesson = Lesson(method, student)
    device = accelerator.device
    trainer = Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type), devices=1 if device.index is None else [device.index],
        max_epochs=len(lesson.ends) - 1, limit_val_batches=0, num_sanity_val_steps=0, default_root_dir=str(folder), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Keeper(lesson, student, folder, accelerator, progress, checkpoint_seconds)],
    )  # fmt: skip
    size = method.config.batch_size
    loaders = {
        split: Batches(examples, size, seed + index, lambda: lesson.round_of_steps)
        for index, (split, examples) in enumerate(splits.items())
    }
    evaluator = Lightning(lesson, trainer, train_dataloaders=loaders["train"], val_dataloaders=loaders.get("valid", loaders["train"]))
    network, strategy = SupernetSpace(student, method.choices), one_shot_strategy(name, lesson)
    strategy.initialize(RawFormatModelSpace(network, evaluator), SequentialExecutionEngine())
    method.alphas = {str(module.label): module._arch_alpha for module in network.modules() if hasattr(module, "_arch_alpha")}
    student.train()
    strategy.run()
    student.eval()
