"""The one training loop: schedules, exact resumption after a kill at any step, failures that keep what was saved."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hearing import KillAt, Killed
from tiny import tiny_config, tiny_space
from tiny_fit import examples, run

from adasearch.config import DistillConfig, FitConfig, SearchConfig
from adasearch.errors import TrainingError
from adasearch.fit import Training, fit, learning_rate_factor
from adasearch.methods.adabert import AdaBert
from adasearch.methods.base import Group, Method
from adasearch.methods.distill import Distill
from adasearch.progress import Progress
from adasearch.shrink import build_student
from adasearch.stopwatch import Stopwatch
from adasearch.supernet import Supernet

STEPS = 9


def search_parts(**settings: Any) -> tuple[Supernet, AdaBert, SearchConfig]:
    """A supernet with dropout, so that random numbers matter, and its method."""
    torch.manual_seed(1)
    config = SearchConfig(steps=STEPS, batch_size=8, arch_warmup=0.3, **settings)
    supernet = Supernet(tiny_space({"dropout": 0.2}), tiny_config())
    return supernet, AdaBert(config, DistillConfig(), "single_label", 3, 6.0), config


def student_parts() -> tuple[torch.nn.Module, Distill, FitConfig]:
    """A student, whose word table has sparse gradients, and its method."""
    torch.manual_seed(0)
    student = build_student(Supernet(tiny_space(), tiny_config()).decide(), tiny_config())
    config = FitConfig(steps=STEPS, batch_size=8, learning_rate=1e-2)
    return student, Distill(config, DistillConfig(), "single_label", 3, student.architecture.width, student.architecture.depth), config


@pytest.mark.parametrize("settings", [{}, {"mode": "bilevel"}, {"efficiency": "constraint", "target_params": 500.0}], ids=str)
@pytest.mark.parametrize("kill_at", [1, 4, STEPS - 1])
def test_a_killed_search_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path, settings: dict, kill_at: int) -> None:
    whole = search_parts(**settings)
    history = run(tmp_path / "whole", whole)
    with pytest.raises(Killed):
        run(tmp_path / "killed", search_parts(**settings), KillAt(kill_at))
    again = search_parts(**settings)
    resumed = run(tmp_path / "killed", again)
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, again[0].state_dict()[name]), name
    assert resumed == history
    assert (tmp_path / "whole" / "history.jsonl").read_text() == (tmp_path / "killed" / "history.jsonl").read_text()


def test_a_stage_goes_on_behind_the_batches_of_the_stages_before(tmp_path: Path) -> None:
    """Two stages of 3 and 4 steps draw what one of 7 draws, each once; after a kill, too. Their random numbers are other ones."""

    class Seen(Method):
        def __init__(self, config: FitConfig):
            super().__init__(config, "single_label")
            self.met: list[tuple[int, ...]] = []
            self.draws: list[float] = []

        def groups(self, student: torch.nn.Module) -> list[Group]:
            return [Group("weights", [{"params": list(student.parameters())}], 1e-3, "constant")]

        def loss(self, student: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
            self.met.append(tuple(batch["labels"].tolist()))
            self.draws.append(float(torch.rand(())))
            return {"ce": student.weight.sum()}

    data = dataclasses.replace(examples(), labels=np.arange(40))

    def stage(steps: int, name: str, after: int = 0, progress: Progress | None = None) -> Seen:
        config = FitConfig(steps=steps, batch_size=5)
        method = Seen(config)
        fit(
            torch.nn.Linear(1, 1), method, {"train": data}, config, seed=3, folder=tmp_path / name, accelerator=Accelerator(cpu=True),
            progress=progress or Progress(), title="test", after=after, checkpoint_seconds=0.0,
        )  # fmt: skip
        return method

    whole, first, second = stage(7, "whole"), stage(3, "first"), stage(4, "second", after=3)
    assert first.met + second.met == whole.met and len({label for batch in whole.met for label in batch}) == 35
    assert first.draws == whole.draws[:3] and not set(second.draws) & set(whole.draws)
    with pytest.raises(Killed):
        stage(4, "killed", after=3, progress=KillAt(2))
    resumed = stage(4, "killed", after=3)
    assert resumed.met == second.met[-len(resumed.met) :] and resumed.draws == second.draws[-len(resumed.draws) :]


def test_seeds_reproduce_and_differ(tmp_path: Path) -> None:
    first, second = search_parts(), search_parts()
    run(tmp_path / "a", first), run(tmp_path / "b", second)
    assert all(torch.equal(a, b) for a, b in zip(first[0].state_dict().values(), second[0].state_dict().values()))
    model, method, config = search_parts()
    fit(model, method, {"train": examples()}, config, seed=4, folder=tmp_path / "c", accelerator=Accelerator(cpu=True), progress=Progress(), title="")
    assert not torch.equal(model.depth_gate.logits, first[0].depth_gate.logits)


def test_the_architecture_is_still_while_it_warms_up_and_moves_after(tmp_path: Path) -> None:
    model, method, config = search_parts()
    before = model.depth_gate.logits.detach().clone()

    class Watch(Progress):
        def step(self, done: int, **metrics: Any) -> None:
            moved = not torch.equal(model.depth_gate.logits, before)
            assert moved == (done > math.ceil(0.3 * STEPS)), done

    run(tmp_path, (model, method, config), Watch())


def test_history_terms_sum_to_the_loss(tmp_path: Path) -> None:
    for record in run(tmp_path, search_parts()):
        assert record["loss"] == pytest.approx(sum(record["terms"].values()))
        assert sum(record["operations"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kill_before", [None, 1, 4, 5])
def test_a_record_is_the_mean_of_the_steps_since_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_before: int | None) -> None:
    """Also of steps before a kill that fell between two records, and of those left over at the end."""
    monkeypatch.setattr("adasearch.fit.HISTORY_RECORDS", 2)
    seen: dict[int, dict[str, float]] = {}

    def watched(kill: int | None) -> tuple[torch.nn.Module, Distill, FitConfig]:
        model, method, config = student_parts()
        loss, begin_step, now = method.loss, method.begin_step, []

        def begin(student: torch.nn.Module, step: int, steps: int) -> None:
            if step == kill:
                raise Killed
            now[:] = [step]
            begin_step(student, step, steps)

        def measured(student: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
            terms = loss(student, batch)
            assert now[0] not in seen, "no step is made twice"
            seen[now[0]] = {name: term.item() for name, term in terms.items()}
            return terms

        method.begin_step, method.loss = begin, measured
        return model, method, config

    if kill_before is not None:
        with pytest.raises(Killed):
            run(tmp_path, watched(kill_before))
    history = run(tmp_path, watched(None))
    assert [record["step"] for record in history] == [4, 8, 9]
    for record, steps in zip(history, (range(4), range(4, 8), range(8, 9))):
        means = {name: np.mean([seen[step][name] for step in steps]) for name in ("ce", "kd", "probes")}
        assert record["terms"] == pytest.approx(means, rel=1e-6) and record["loss"] == pytest.approx(sum(means.values()), rel=1e-6)


def test_constraint_drives_the_cost_to_its_target(tmp_path: Path) -> None:
    torch.manual_seed(0)
    supernet = Supernet(tiny_space(), tiny_config())
    start = supernet.expected_cost(6.0).params.item()
    target = 0.5 * start
    config = SearchConfig(steps=150, batch_size=8, arch_warmup=0.0, efficiency="constraint", target_params=target, arch_learning_rate=0.1)
    method = AdaBert(config, DistillConfig(), "single_label", 3, 6.0)
    run(tmp_path, (supernet, method, config), checkpoint_seconds=1e9)
    assert supernet.expected_cost(6.0).params.item() < 1.1 * target


def test_the_multiplier_of_a_constraint_rises_while_it_is_missed_and_falls_to_zero_at_most(tmp_path: Path) -> None:
    """By 0.05 times the gap, a share of what may be spent, which falls to the target over half of the architecture's 6.3 steps; a cost far
    below its target has a gap of -1 and is no merit."""
    model, method, config = search_parts(efficiency="constraint", target_params=1e9)
    method.multiplier.data.fill_(0.12)
    seen = [record["multiplier"] for record in run(tmp_path / "met", (model, method, config), checkpoint_seconds=1e9)]
    assert seen == pytest.approx([0.12, 0.12, 0.12, 0.07, 0.02, 0.0, 0.0, 0.0, 0.0], abs=1e-5), "the warm-up's three steps leave it"
    model, method, config = search_parts(efficiency="constraint", target_params=1_500.0)
    share = model.expected_cost(6.0, is_derived=True).params.item() / 1_500
    gap = share / (share + (1 - share) * (1 - 6 / 6.3) / 0.5) - 1  # of the fourth step, where six of nine are left
    seen = [record["multiplier"] for record in run(tmp_path / "missed", (model, method, config), checkpoint_seconds=1e9)]
    assert seen[:4] == pytest.approx([0.0, 0.0, 0.0, 0.05 * gap], rel=1e-3) and seen == sorted(seen) and seen[-1] > seen[3] > 0


def test_a_large_beta_makes_the_mean_member_cheaper(tmp_path: Path) -> None:
    supernet = Supernet(tiny_space(nodes=1), tiny_config())
    config = SearchConfig(steps=25, batch_size=8, arch_warmup=0.0, beta=100.0, arch_learning_rate=0.1)
    before = supernet.expected_cost(6.0).macs.item()
    run(tmp_path, (supernet, AdaBert(config, DistillConfig(), "single_label", 3, 6.0), config), checkpoint_seconds=1e9)
    assert supernet.expected_cost(6.0).macs.item() < 0.6 * before


def test_every_step_has_its_scheduled_rate_and_a_clipped_gradient(tmp_path: Path) -> None:
    """Gradients (30, 40) of norm 50 are clipped to 5, so (3, 4); that of the other group, 7, is not. SGD steps by rate times gradient."""

    class Steep(Method):
        def __init__(self, config: FitConfig):
            super().__init__(config, "single_label")
            self.free = torch.nn.Parameter(torch.zeros(()))
            self.places: list[tuple[float, ...]] = []

        def groups(self, student: torch.nn.Module) -> list[Group]:
            params = [{"params": [student.weight]}, {"params": [student.bias], "rate": 0.1}]
            own = [{"params": [self.free]}]
            return [
                Group("weights", params, 2.0, "linear", torch.optim.SGD),
                Group("own", own, 3.0, lambda step: 1 / (1 + step), torch.optim.SGD, is_clipped=False),
            ]

        def begin_step(self, student: torch.nn.Module, step: int, steps: int) -> None:
            self.places.append((student.weight.item(), student.bias.item(), self.free.item()))

        def loss(self, student: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
            return {"ce": (30 * student.weight + 40 * student.bias).sum() + 7 * self.free}

    config = FitConfig(steps=5, batch_size=8, warmup=0.4, clip_norm=5.0)
    model, method = torch.nn.Linear(1, 1), Steep(config)
    history = run(tmp_path, (model, method, config))
    method.begin_step(model, 5, 5)
    moved = -np.diff(np.array(method.places), axis=0)
    shares = np.array([1 / 2, 1, 1, 2 / 3, 1 / 3])  # two steps up, three down
    np.testing.assert_allclose(moved[:, 0], 3 * 2.0 * shares, rtol=1e-4)
    np.testing.assert_allclose(moved[:, 1], 4 * 2.0 * 0.1 * shares, rtol=1e-4)
    np.testing.assert_allclose(moved[:, 2], 7 * 3.0 / np.arange(1, 6), rtol=1e-4)
    assert [record["learning_rate"] for record in history] == pytest.approx(2.0 * shares)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Diverges(Method):
        def loss(self, student: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
            self.calls = getattr(self, "calls", 0) + 1
            value = student.weight.sum() * 0 + (math.nan if self.calls == 5 else 1.0)
            return {"ce": value}

    config = FitConfig(steps=9, batch_size=8)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 4 \(ce nan\)"):
        run(tmp_path, (torch.nn.Linear(2, 2), Diverges(config, "single_label"), config))
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 4


def test_training_a_student_lowers_its_loss_and_folds_its_table(tmp_path: Path) -> None:
    torch.manual_seed(0)
    supernet = Supernet(tiny_space(), tiny_config())
    student = build_student(supernet.decide(), tiny_config())
    config = FitConfig(steps=80, batch_size=16, learning_rate=1e-2)
    method = Distill(config, DistillConfig(), "single_label", 3, student.architecture.width, student.architecture.depth)
    history = run(tmp_path, (student, method, config), checkpoint_seconds=1e9)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert student.config.embedding_rank is None and not student.get_input_embeddings().sparse


def test_matrices_decay_and_vectors_do_not(tmp_path: Path) -> None:
    """Nothing pulls but decay: a step takes the share rate x decay of every matrix, and no bit of a bias or gain."""

    class Nothing(Method):
        def loss(self, student: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
            return {"none": 0 * sum(parameter.sum() for parameter in student.parameters())}

    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Conv1d(4, 3, 2), torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(1, 2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    config = FitConfig(steps=1, batch_size=8, learning_rate=0.1, warmup=0.0, weight_decay=0.5)
    run(tmp_path, (model, Nothing(config, "single_label"), config))
    for name, parameter in model.named_parameters():
        left = 0.95 if name in ("0.weight", "1.weight", "2.weight") else 1.0
        torch.testing.assert_close(parameter.detach(), left * before[name], rtol=1e-6 if left < 1 else 0, atol=0, msg=name)


@pytest.fixture
def fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerators that say fp16 and compute in fp32, so that all that is left of it is the scaled loss."""
    AcceleratorState._reset_state()  # that of an earlier test may compute in bf16
    monkeypatch.setattr(Accelerator, "mixed_precision", property(lambda self: "fp16"))


@pytest.mark.parametrize("parts", [student_parts, search_parts], ids=lambda parts: parts.__name__)
def test_the_scaled_loss_of_fp16_makes_the_same_steps(tmp_path: Path, fp16: None, parts: Callable[[], tuple]) -> None:
    plain, scaled, seen = parts(), parts(), []
    history = run(tmp_path / "plain", plain)
    watch_gradients(scaled[1], seen)
    assert run(tmp_path / "scaled", scaled, is_mixed=True) == history
    for name, tensor in plain[0].state_dict().items():
        assert torch.equal(tensor, scaled[0].state_dict()[name]), name
    assert torch.load(tmp_path / "scaled" / "checkpoint.pt", weights_only=True)["scaler"]["scale"] == 65536
    assert 0 < max(seen) < 100, "methods correct gradients that are not scaled"


def watch_gradients(method: Method, sizes: list[float]) -> None:
    """Keep the largest gradient that ``after_backward`` sees in each phase."""
    after_backward = method.after_backward

    def watched(student: torch.nn.Module, *rest: Any) -> None:
        gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
        sizes.extend(float((each.coalesce().values() if each.is_sparse else each).abs().max()) for each in gradients)
        after_backward(student, *rest)

    method.after_backward = watched


def test_a_step_whose_gradients_overflow_is_left_out_and_the_scale_survives_a_kill(tmp_path: Path, fp16: None) -> None:
    def overflowing() -> tuple[torch.nn.Module, Distill, FitConfig]:
        model, method, config = student_parts()
        table, begin = model.get_input_embeddings().weight, method.begin_step

        def begin_step(student: torch.nn.Module, step: int, steps: int) -> None:
            begin(student, step, steps)
            seen[step] = {name: tensor.detach().clone() for name, tensor in student.named_parameters()}
            for tensor in (table, next(p for p in student.parameters() if p is not table and p.ndim > 1)):
                if step == 2:
                    handles.append(tensor.register_hook(lambda gradient: gradient * math.inf))
            while step == 3 and handles:
                handles.pop().remove()

        method.begin_step = begin_step
        return model, method, config

    seen: dict[int, dict[str, torch.Tensor]] = {}
    handles: list[Any] = []
    whole = overflowing()
    run(tmp_path / "whole", whole, is_mixed=True)
    assert all(torch.equal(seen[2][name], tensor) for name, tensor in seen[3].items()), "step 2 overflows"
    for step in (1, 4):
        assert not any(torch.equal(seen[step - 1][name], tensor) for name, tensor in seen[step].items() if tensor.ndim > 1), step
    with pytest.raises(Killed):
        run(tmp_path / "killed", overflowing(), KillAt(5), is_mixed=True)
    assert torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["scaler"]["scale"] == 32768
    again = overflowing()
    run(tmp_path / "killed", again, is_mixed=True)
    assert torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["scaler"]["scale"] == 32768
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, again[0].state_dict()[name]), name


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rate_schedules(schedule: str) -> None:
    factors = [learning_rate_factor(step, 100, 0.1, schedule) for step in range(100)]
    if schedule == "constant":
        assert set(factors) == {1.0}
        return
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    rest = [i / 90 for i in range(90)]
    expected = [1 - x for x in rest] if schedule == "linear" else [0.5 * (1 + math.cos(math.pi * x)) for x in rest]
    assert factors[10:] == pytest.approx(expected)


def test_the_watch_rests_while_a_model_is_scored_and_a_checkpoint_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, method, config = search_parts()
    watch, seen, save = Stopwatch(), {"scored": set(), "saved": set(), "learned": set()}, Training._save

    def is_running() -> bool:
        return watch._since is not None

    def saved(training: Training) -> None:
        seen["saved"].add(is_running())
        save(training)

    def evaluate(_: torch.nn.Module) -> dict[str, float]:
        seen["scored"].add(is_running())
        return {}

    monkeypatch.setattr(Training, "_save", saved)
    with watch.running():
        fit(
            model, method, {"train": examples()}, config, seed=3, folder=tmp_path, accelerator=Accelerator(cpu=True), progress=Progress(),
            title="test", checkpoint_seconds=0.0, evaluate=evaluate, evaluations=2, on_step=lambda: seen["learned"].add(is_running()), watch=watch,
        )  # fmt: skip
    assert seen == {"scored": {False}, "saved": {False}, "learned": {True}}


@pytest.mark.parametrize(("steps", "asked", "times"), [(12, 4, [3, 6, 9, 12]), (15, 8, [1, 3, 5, 7, 9, 11, 13, 15]), (5, 9, [1, 2, 3, 4, 5])])
def test_a_training_is_evaluated_as_often_as_asked_for(steps: int, asked: int, times: list[int], tmp_path: Path) -> None:
    model, at = torch.nn.Linear(1, 1), []

    class Counted(Method):
        def groups(self, student: torch.nn.Module) -> list[Group]:
            return [Group("weights", [{"params": list(student.parameters())}], 0.1, "constant", torch.optim.SGD)]

        def loss(self, student: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
            return {"ce": (student.weight**2).sum()}

    history = fit(
        model, Counted(FitConfig(steps=steps, batch_size=4), "single_label"), {"train": examples()}, FitConfig(steps=steps, batch_size=4),
        seed=3, folder=tmp_path, accelerator=Accelerator(cpu=True), progress=Progress(), title="test", evaluations=asked,
        evaluate=lambda model: at.append(1) or {"turns": len(at)},
    )  # fmt: skip
    assert [record["step"] for record in history if "validation" in record] == times and len(at) == len(times)


def test_gradients_that_are_not_finite_are_never_learned(tmp_path: Path) -> None:
    """The loss of sqrt(w^2) is 0 where w is, and its gradient is none: one step on, and a checkpoint would hold NaN for ever."""

    class Kinked(Method):
        def groups(self, student: torch.nn.Module) -> list[Group]:
            return [Group("weights", [{"params": [student.weight]}], 0.1, "constant", torch.optim.SGD)]

        def loss(self, student: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
            return {"ce": (student.weight**2).sum().sqrt() * 1.0}

    config = FitConfig(steps=5, batch_size=8, warmup=0.0)
    model, method = torch.nn.Linear(1, 1), Kinked(config, "single_label")
    torch.nn.init.zeros_(model.weight)
    with pytest.raises(TrainingError, match="gradients are not finite at step 0; a smaller learning rate helps"):
        run(tmp_path, (model, method, config), checkpoint_seconds=0.0)
    assert model.weight.item() == 0.0 and not (tmp_path / "checkpoint.pt").exists()
