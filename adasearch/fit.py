"""The one training loop: teachers, searches, students and controls all go through ``fit``.

A run is a pure function of model, examples, config and seed: batches depend on (seed, step) alone, the steps counted on
from stage to stage of a model, and a checkpoint holds everything else that moves. So a run killed at any moment ends, when
started again, with the same weights.

Where torchrun has started several processes, each takes its share of every batch (``distributed``); the main one alone
evaluates and writes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from adasearch.distributed import Processes, agree, mixed_seed
from adasearch.errors import TrainingError
from adasearch.files import write_atomically, write_text
from adasearch.fit_config import FitConfig
from adasearch.methods.base import Group, Method
from adasearch.outputs import autocast
from adasearch.progress import Progress
from adasearch.stopwatch import Stopwatch
from adasearch.tokens import BatchSampler, Examples
from adasearch.tracking import track

HISTORY_RECORDS = 100  # so many lines a run, each the mean of the steps since the last
Evaluate = Callable[[nn.Module], dict[str, float]]


def learning_rate_factor(step: int, steps: int, warmup: float, schedule: str | Callable[[int], float]) -> float:
    """Share of the peak learning rate at ``step`` of ``steps``: linear warm-up, then cosine or linear to zero, or as a function says."""
    if callable(schedule):
        return schedule(step)
    if schedule == "constant":
        return 1.0
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return 1.0 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(group: Group, device: torch.device) -> torch.optim.Optimizer:
    """A group's optimiser with the group's settings, fused where the device can."""
    fused = {"fused": True} if group.optimizer is torch.optim.AdamW and device.type in ("cpu", "cuda") else {}
    return group.optimizer(group.params, lr=group.learning_rate, **fused, **group.settings)


def set_learning_rate(optimizer: torch.optim.Optimizer, group: Group, step: int, config: FitConfig) -> None:
    """The learning rates of a step."""
    factor = learning_rate_factor(step, config.steps, config.warmup, group.schedule)
    for params in optimizer.param_groups:
        params["lr"] = group.learning_rate * factor * params.get("rate", 1.0)


def clip_gradients(optimizer: torch.optim.Optimizer, group: Group, clip_norm: float) -> bool:
    """All gradients of a group's optimiser to that norm at most, where the group is clipped. Whether the norm was finite."""
    if not group.is_clipped or isinstance(optimizer, torch.optim.SparseAdam):  # Adam is blind to a gradient's scale; a table needs no clip
        return True
    norm = nn.utils.clip_grad_norm_([tensor for params in optimizer.param_groups for tensor in params["params"]], clip_norm)
    return bool(norm.isfinite())


def checked_loss(terms: Mapping[str, Tensor], where: str | Path, step: int) -> Tensor:
    """The sum of the terms. Raises ``TrainingError`` when it is not finite."""
    loss = sum(terms.values())
    if not torch.isfinite(loss):
        raise TrainingError(
            f"{where}: the loss is {loss.item()} at step {step}"
            f" ({', '.join(f'{name} {value.item():.4g}' for name, value in terms.items())});"
            " a smaller learning rate helps; the last checkpoint is kept"
        )
    return loss


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """torch's random numbers, for a checkpoint."""
    cuda = {"cuda_rng": torch.cuda.get_rng_state()} if device.type == "cuda" else {}
    mps = {"mps_rng": torch.mps.get_rng_state()} if device.type == "mps" else {}
    return {"rng": torch.get_rng_state(), **cuda, **mps}


def restore_rng(state: Mapping[str, Any]) -> None:
    """Go on with the random numbers of a checkpoint."""
    torch.set_rng_state(state["rng"].cpu())
    if "cuda_rng" in state:
        torch.cuda.set_rng_state(state["cuda_rng"].cpu())
    if "mps_rng" in state:
        torch.mps.set_rng_state(state["mps_rng"].cpu())


def seed_after(seed: int, steps: int) -> int:
    """The seed of a stage that goes on after so many steps of others with ``seed``: the same one after none."""
    return mixed_seed(seed, steps) if steps else seed


def fit(
    model: nn.Module,
    method: Method,
    splits: Mapping[str, Examples],
    config: FitConfig,
    *,
    seed: int,
    folder: Path,
    accelerator: Accelerator,
    progress: Progress,
    title: str,
    after: int = 0,
    evaluate: Evaluate | None = None,
    evaluations: int = 0,
    checkpoint_seconds: float = 60.0,
    is_mixed: bool = False,
    on_step: Callable[[], None] | None = None,
    watch: Stopwatch | None = None,
    name: str | None = None,
) -> list[dict[str, Any]]:
    """Train ``model`` in place for ``config.steps`` steps and return the history.

    Args:
        splits: examples by name; ``method.phases`` says which are used.
        folder: receives ``history.jsonl`` and, while it runs, ``checkpoint.pt``; an interrupted run goes on from it.
        after: batches that the model has learned from in earlier stages, with this seed and these examples; this one goes on behind
            them, with random numbers of its own. Else stages of a part of an epoch would all see the same part.
        is_mixed: compute in the accelerator's mixed precision; worth it for teachers, too small a gain for students.
        evaluate: called ``evaluations`` times, evenly spread and at the end; its metrics go into the history.
        on_step: called after every step, when all that belongs to it is done.
        watch: a stopwatch that runs; it rests while the model is scored and checkpoints are written.
        name: what trackers call its curves, one of a kind in the run; the folder's name when absent.

    Raises ``TrainingError`` when the loss is not finite (the last checkpoint is kept) or the disk is full.
    """
    run = Training(model, method, splits, config, seed, folder, accelerator, progress, checkpoint_seconds, is_mixed, after, name)
    return run.train(title, evaluate, evaluations, on_step, nullcontext if watch is None else watch.paused)


class Training:
    """The state of one call of ``fit``: what a checkpoint holds and what can be rebuilt."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        splits: Mapping[str, Examples],
        config: FitConfig,
        seed: int,
        folder: Path,
        accelerator: Accelerator,
        progress: Progress,
        checkpoint_seconds: float,
        is_mixed: bool,
        after: int = 0,
        name: str | None = None,
    ):
        own_seed = seed_after(seed, after)
        torch.manual_seed(own_seed)
        method.attach(model)
        self.model, self.method = model.to(accelerator.device), method.to(accelerator.device)
        self.splits, self.config, self.folder = splits, config, folder
        self.accelerator, self.progress, self.checkpoint_seconds = accelerator, progress, checkpoint_seconds
        self.is_mixed, self.after, self.name = is_mixed, after, name or folder.name
        # fp16 knows no small gradients: the loss is scaled up, a step whose gradients overflow is left out. Else it does nothing
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=is_mixed and accelerator.mixed_precision == "fp16")
        self.processes = Processes(accelerator, own_seed)
        self.samplers = {
            name: BatchSampler(examples.tokens.lengths, config.batch_size, seed + index)
            for index, (name, examples) in enumerate(splits.items())
        }
        for sampler in self.samplers.values():
            self.processes.check(sampler.batch_size, str(folder))
        self.groups = method.groups(model)
        self.optimizers = {group.name: make_optimizer(group, accelerator.device) for group in self.groups}
        self.step, self.history = 0, []
        self.window: dict[str, float] = {}
        self._resume()
        if (main := agree(self.step)) != self.step:  # they would wait for each other's other steps for ever
            raise TrainingError(
                f"{folder}: this process goes on at step {self.step}, the main one at {main:g}: it does not see the same checkpoint;"
                " all must have the same folder"
            )
        self.processes.join(self.model, self.method)

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def _resume(self) -> None:
        if not self._checkpoint.exists():
            return
        device = self.accelerator.device
        location = "cpu" if device.type == "cpu" else device  # one of several processes is on "cpu:0", which torch.load does not know
        # weights_only: tensors and plain data, never code
        state = torch.load(self._checkpoint, map_location=location, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.method.load_state_dict(state["method"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.history, self.window = state["step"], json.loads(state["history"]), state["window"]
        restore_rng(state)

    def _save(self) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "method": self.method.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "history": json.dumps(self.history),
            "window": self.window,
            **rng_state(self.accelerator.device),
        }
        write_atomically(self._checkpoint, lambda path: torch.save(state, path))

    def train(
        self, title: str, evaluate: Evaluate | None, evaluations: int, on_step: Callable[[], None] | None,
        resting: Callable[[], AbstractContextManager[None]],
    ) -> list[dict[str, Any]]:  # fmt: skip
        """All steps that are left, with records, evaluations and checkpoints; the history."""
        steps = self.config.steps
        log_every = max(1, steps // HISTORY_RECORDS)
        when = {max(1, steps * turn // evaluations) for turn in range(1, evaluations + 1)} if evaluations and evaluate else set()
        self.progress.stage(title, steps, self.step)
        saved = time.monotonic()
        stopped = False
        while self.step < steps and not stopped:
            self._add(self.train_step())
            stopped = self.method.after_step(self.model, self.step)
            self.step += 1
            is_last = self.step == steps or stopped
            record = self._record() if self.step % log_every == 0 or is_last else None
            if self.processes.is_main and when and (is_last or self.step in when):
                record = record or self._record()
                with resting():
                    record["validation"] = evaluate(self.model)
                self.model.train()
            if record:
                self.history.append(record)
                if self.processes.is_main:
                    self._write_history()
                    track(self.accelerator, self.name, record)
                self.progress.step(self.step, **self._shown(record))
            if self.processes.is_main and time.monotonic() - saved > self.checkpoint_seconds and not is_last:
                with resting():
                    self._save()
                saved = time.monotonic()
            if on_step is not None:
                on_step()
        self.processes.leave()
        self.method.finish(self.model)
        self.model.eval()
        return self.history

    def train_step(self) -> dict[str, float]:
        """One optimiser step on batch ``self.step`` (which it leaves as it is); the loss terms of the train split."""
        self.model.train()
        self.processes.begin_step(self.step)
        self.method.begin_step(self.model, self.step, self.config.steps)
        shown: dict[str, float] = {}
        for learners, split in self.method.phases(self.step):
            self.method.before_loss(self.model, learners, self._batch)
            batch = self._batch(split)
            learning = [group for group in self.groups if "all" in learners or group.name in learners]
            for optimizer in self.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            with autocast(self.accelerator, self.is_mixed):
                terms = self.processes.weigh(self.method.loss(self.model, batch), self.method.weight(batch))
            whole = self.processes.whole(terms)
            checked_loss(whole, self.folder, self.step)
            self.scaler.scale(sum(terms.values())).backward()
            self.processes.sum_gradients(tensor for group in learning for params in group.params for tensor in params["params"])
            for group in learning:  # after the sum: all processes then see the same overflow
                self.scaler.unscale_(self.optimizers[group.name])
            self.method.after_backward(self.model, learners, self._batch)
            for group in learning:
                self._update(group)
            self.scaler.update()
            if split == "train":
                shown = {name: float(value) for name, value in whole.items()}
        return shown

    def _batch(self, split: str) -> dict[str, Tensor]:
        """This process's share of the step's batch of a split."""
        batch = self.splits[split].collate(self.processes.own(self.samplers[split](self.after + self.step)))
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    def _update(self, group: Group) -> None:
        optimizer = self.optimizers[group.name]
        set_learning_rate(optimizer, group, self.step, self.config)
        is_finite = clip_gradients(optimizer, group, self.config.clip_norm)
        if not is_finite and not self.scaler.is_enabled():  # one step with them, and the next checkpoint would be of NaN
            raise TrainingError(
                f"{self.folder}: gradients are not finite at step {self.step}; a smaller learning rate helps; the last checkpoint is kept"
            )
        if any(tensor.grad is not None for params in optimizer.param_groups for tensor in params["params"]):  # the scaler wants one
            self.scaler.step(optimizer)

    def _add(self, terms: dict[str, float]) -> None:
        self.window["count"] = self.window.get("count", 0) + 1
        for name, value in terms.items():
            self.window[name] = self.window.get(name, 0.0) + value

    def _record(self) -> dict[str, Any]:
        count = self.window.pop("count")
        terms = {name: total / count for name, total in self.window.items()}
        self.window = {}
        main = self.groups[0]
        factor = learning_rate_factor(self.step - 1, self.config.steps, self.config.warmup, main.schedule)
        record = {"step": self.step, "loss": sum(terms.values()), "terms": terms, "learning_rate": main.learning_rate * factor}
        return {**record, **self.method.measures(self.model)}

    @staticmethod
    def _shown(record: dict[str, Any]) -> dict[str, float]:
        return {"loss": record["loss"], **record["terms"], **record.get("validation", {})}

    def _write_history(self) -> None:
        write_text(self.folder / "history.jsonl", "".join(json.dumps(record) + "\n" for record in self.history))
