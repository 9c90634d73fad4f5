"""Costs against hand-worked numbers; timings against a clock that the systems themselves move."""

from __future__ import annotations

import gc
import json
import platform
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from adasearch import honest, measure
from adasearch.bench_config import BenchConfig
from adasearch.errors import ConfigError, ModelError
from adasearch.honest_rows import Row, measure_rows
from adasearch.progress import Progress
from adasearch.runtimes import TorchRuntime, available_runtimes, load_classifier
from tiny_classifier import make_classifier

TINY = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 32, "num_labels": 3}  # fmt: skip


class Machine:
    """A clock, and systems whose calls take a known time on it and are written down."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def clock(self) -> float:
        return self.now

    def system(self, name: str, seconds: Callable[[int, int], float]) -> Callable[[int, int], Callable[[], None]]:
        def factory(batch: int, length: int) -> Callable[[], None]:
            def call() -> None:
                self.now += seconds(batch, length)
                self.calls.append((name, gc.isenabled()))

            return call

        return factory


def test_a_timing_is_percentiles_of_calls() -> None:
    seconds = [0.001 * i for i in (5, 1, 3, 2, 4)]
    timing = measure.Timing.from_seconds(seconds, batch_size=6, seq_len=8, threads=1, runtime="torch", precision="fp32")
    assert timing.latency_ms_p50 == pytest.approx(3.0)
    assert timing.latency_ms_p90 == pytest.approx(4.6)  # 0.9 of the way from 1 to 5
    assert timing.latency_cv == pytest.approx(np.sqrt(2) / 3)
    assert timing.texts_per_s == pytest.approx(6 / 0.003) and timing.repeats == 5


def test_systems_take_turns_in_a_rotating_order_with_the_collector_off() -> None:
    machine = Machine()
    systems = {name: machine.system(name, lambda batch, length: 0.1 * batch + 0.01 * length) for name in "abc"}
    timings = measure.time_systems(systems, [(1, 2), (4, 2)], repeats=4, warmup=2, clock=machine.clock)
    order = "".join(name for name, _ in machine.calls)
    once = "aabbcc" + "abc" + "bca" + "cab" + "abc"  # two calls to warm up each, then four rounds
    assert order == once * 2
    assert [enabled for _, enabled in machine.calls] == ([True] * 6 + [False] * 12) * 2 and gc.isenabled()
    for name in "abc":
        assert [(t.batch_size, t.repeats) for t in timings[name]] == [(1, 4), (4, 4)]
        assert [t.latency_ms_p50 for t in timings[name]] == pytest.approx([120.0, 420.0])
        assert timings[name][1].texts_per_s == pytest.approx(4 / 0.42)


def test_a_call_that_is_compiled_first_is_timed_like_any_other() -> None:
    machine, left = Machine(), [100 * measure.SECONDS_PER_SHAPE]
    systems = {"compiled": machine.system("compiled", lambda batch, length: left.pop() if left else 0.001)}
    timing = measure.time_systems(systems, [(1, 1)], repeats=20, warmup=3, clock=machine.clock)["compiled"][0]
    assert timing.repeats == 20 and timing.latency_ms_p50 == pytest.approx(1.0)
    assert len(machine.calls) == 1 + 3 + 2 * 20, "compiled, warmed up, and primed each time"


def test_short_calls_are_primed_and_long_ones_are_rationed() -> None:
    machine = Machine()
    durations = {"short": 0.001, "long": measure.SECONDS_PER_SHAPE / 8, "longest": measure.SECONDS_PER_SHAPE}
    systems = {name: machine.system(name, lambda batch, length, s=s: s) for name, s in durations.items()}
    timings = measure.time_systems(systems, [(1, 1)], repeats=20, warmup=3, clock=machine.clock)
    assert {name: rows[0].repeats for name, rows in timings.items()} == {
        "short": 20,
        "long": 8,
        "longest": measure.FEWEST_REPEATS,
    }
    names = [name for name, _ in machine.calls]
    assert names.count("short") == 3 + 2 * 20  # warm-up, then an untimed call before each timed one
    # the longest has one more: its first may have compiled something
    assert names.count("long") == 3 + 8 and names.count("longest") == 2 + measure.FEWEST_REPEATS
    rounds = "".join(name[:5] for name in names[8:]).split("shortshort")[1:]
    shares = [part.replace("longe", "").count("long") for part in rounds]
    assert sum(shares[:10]) == 4  # spread evenly over the rounds


def test_the_collector_comes_back_when_a_system_fails() -> None:
    machine, calls = Machine(), []

    def factory(batch: int, length: int) -> Callable[[], None]:
        def call() -> None:
            machine.now += 1.0
            calls.append(gc.isenabled())
            if len(calls) == 3:
                raise ModelError("fails")

        return call

    with pytest.raises(ModelError, match="fails"):
        measure.time_systems({"a": factory}, [(1, 1)], repeats=4, warmup=1, clock=machine.clock)
    assert calls[-1] is False and gc.isenabled()


def test_a_row_s_spread_is_that_of_a_sample_of_seeds() -> None:
    bench = BenchConfig(batch_sizes=[1], repeats=1, warmup=1, cold_starts=0, stream_texts=0)
    run = SimpleNamespace(config=SimpleNamespace(bench=bench), progress=Progress())
    rows = {key: Row(key, "student", lambda batch, length: lambda: None) for key in ("three", "one", "none")}
    scores = {
        "three": [{"accuracy": 0.5, "f1": 0.3}, {"accuracy": 0.9, "f1": 0.3}, {"accuracy": 0.7, "f1": 0.6}],
        "one": [{"accuracy": 0.5, "f1": 0.3}],
    }
    three, one, none = measure_rows(run, None, [8], rows, scores, "accuracy", {})
    # deviations -0.2, 0.2, 0 and -0.1, -0.1, 0.2, their squares' sums over two
    assert three.metrics["accuracy"] == pytest.approx({"mean": 0.7, "sd": 0.2})
    assert three.metrics["f1"] == pytest.approx({"mean": 0.4, "sd": 0.03**0.5})
    assert (three.score_mean, three.score_sd) == pytest.approx((0.7, 0.2)) and three.scores == [0.5, 0.9, 0.7]
    assert (one.score_mean, one.score_sd, none.score_mean, none.score_sd) == (0.5, None, None, None), "one seed has no spread"


def test_runtimes_are_fed_full_random_texts() -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    model = BertForSequenceClassification(BertConfig(**TINY))
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((kwargs["input_ids"], kwargs["attention_mask"])), with_kwargs=True
    )
    timing = measure.time_systems({"bert": TorchRuntime(model, 1)}, [(3, 7)], repeats=2, warmup=1)["bert"][0]
    assert (timing.batch_size, timing.seq_len, timing.runtime, timing.precision, timing.threads) == (
        3,
        7,
        "torch",
        "fp32",
        1,
    )
    assert timing.latency_ms_p50 > 0
    for ids, mask in seen:
        assert ids.shape == mask.shape == (3, 7) and mask.all()
        assert ids.min() >= 30 and ids.max() < 60 and ids.unique().numel() > 5
        assert torch.equal(ids, seen[0][0])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_macs_of_a_transformer_are_those_counted_by_hand(attention: str) -> None:
    model = BertForSequenceClassification(BertConfig(**TINY, attn_implementation=attention)).train()
    tokens, hidden, inner = 10, 16, 24
    layer = tokens * (4 * hidden**2 + 2 * hidden * inner) + 2 * tokens**2 * hidden
    assert measure.count_macs(model, tokens) == 2 * layer + hidden**2 + 3 * hidden  # layers, pooler, classifier
    assert model.training


def test_macs_of_a_convolution() -> None:
    class Convolution(nn.Module):
        config = BertConfig(**TINY)

        def __init__(self) -> None:
            super().__init__()
            self.table, self.convolution = nn.Embedding(60, 8), nn.Conv1d(8, 4, 3, padding=1, groups=2)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.convolution(self.table(input_ids).mT)

    assert measure.count_macs(Convolution(), 11) == 11 * 4 * (8 // 2) * 3


def test_parameters_are_counted_once() -> None:
    model = BertForMaskedLM(BertConfig(**TINY))  # its decoder is the word table again
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    every, embedding = measure.count_params(model)
    assert embedding == (60 + 32 + 2) * 16
    assert every == sum({id(p): p.numel() for p in model.parameters()}.values())


def test_size_is_what_is_deployed(tmp_path: Path) -> None:
    sizes = {"model.safetensors": 1000, "config.json": 10, "tokenizer.json": 200, "vocab.txt": 150,
             "tokenizer_config.json": 20, "README.md": 77, "modeling_adasearch.py": 30, "training_args.bin": 5,
             "onnx/model.onnx": 900, "onnx/model.onnx.data": 50, "onnx/tokenizer.json": 200,
             "onnx/model_int8.onnx": 300}  # fmt: skip
    (tmp_path / "onnx").mkdir()
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    assert measure.size_bytes(tmp_path) == 1000 + 10 + 200 + 20 + 30
    assert measure.size_bytes(tmp_path, "onnxruntime") == 900 + 50 + 10 + 200 + 20
    assert measure.size_bytes(tmp_path, "openvino") == measure.size_bytes(tmp_path, "onnxruntime")
    assert measure.size_bytes(tmp_path, "torch_compile") == measure.size_bytes(tmp_path)
    assert measure.size_bytes(tmp_path, "onnxruntime", tmp_path / "onnx" / "model_int8.onnx") == 300 + 10 + 200 + 20
    assert measure.size_bytes(tmp_path / "README.md") == 77
    (tmp_path / "tokenizer.json").unlink()
    assert measure.size_bytes(tmp_path) == 1000 + 10 + 150 + 20 + 30  # then the vocabulary is needed
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights for runtime 'torch'"):
        measure.size_bytes(tmp_path)


def test_hardware_says_what_matters_and_does_not_name_the_machine() -> None:
    facts = measure.hardware()
    assert facts["torch"] == torch.__version__ and facts["torch_threads"] == torch.get_num_threads()
    assert facts["cores"] >= facts["cores_usable"] >= 1 and facts["memory_bytes"] > 1 << 28 and facts["cpu"]
    assert platform.node() not in json.dumps(facts).split('"')


def test_threads() -> None:
    try:
        measure.set_threads(2)
        assert torch.get_num_threads() == 2
    finally:
        measure.set_threads(1)
    with pytest.raises(ConfigError, match="threads: 0 is out of range"):
        measure.set_threads(0)


def test_what_is_trained_after_a_report_has_the_threads_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(*_: object) -> None:
        measure.set_threads(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(honest, "_tfidf", timed)  # the first thing that is asked of the run
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            honest.measure_and_report(None, None, None, [])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", [name for name in available_runtimes() if name != "torch_compile"])  # which compiles for long
def test_a_model_in_memory_is_ready_in_every_runtime(name: str, tmp_path: Path) -> None:
    model = load_classifier(make_classifier(tmp_path / "model"))
    ready = measure.ready_runtime(model, name, 1, tmp_path / "model.onnx")
    ids, mask = np.array([[2, 5, 7, 3]]), np.ones((1, 4), dtype=np.int64)
    assert ready.name == name and np.allclose(ready(ids, mask), TorchRuntime(model, 1)(ids, mask), atol=1e-4)


def test_a_runtime_that_only_reads_folders_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "choose_runtime", lambda name: name)
    with pytest.raises(ConfigError, match="'my_runtime' cannot be timed .*torch, torch_compile, onnxruntime, openvino"):
        measure.ready_runtime(nn.Linear(1, 1), "my_runtime", 1, tmp_path / "model.onnx")
