"""An encoder's latency from its structure: known times are found again, tables are checked, real ones are measured and kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hearing import Heard, KillAt, Killed
from tiny_encoder import make_encoder

from adasearch.encoder import axes_of
from adasearch.encoder_latency import PARTS, EncoderLatencyTable, EncoderShape, part_counts
from adasearch.encoder_latency_bench import _counts, build_encoder_table, compare_encoder, fit_table, random_structures, shape_of
from adasearch.encoder_layers import EncoderConfig, EncoderForSequenceClassification
from adasearch.errors import ConfigError
from adasearch.latency import Deployment
from adasearch.latency_bench import deployment_here

HERE = Deployment("a processor", "torch", "1.0", 1, 1)
CONFIG = EncoderConfig(vocab_size=60, hidden_size=32, head_size=8, heads=[4] * 3, neurons=[64] * 3, max_position_embeddings=40)
TIMES = dict(zip(PARTS, (0.2, 0.3, 0.05, 0.1, 0.02, 0.04, 0.06, 0.08, 0.001, 0.002)))


def made_up(structure: dict[str, Any]) -> float:
    """Milliseconds by the law, written out."""
    share, heads, neurons = structure["hidden_size"] / 32, structure["heads"], structure["neurons"]
    numbers = {
        "call": 1, "attention": sum(h > 0 for h in heads), "head": sum(heads), "ffn": sum(f > 0 for f in neurons), "neuron": sum(neurons),
    }  # fmt: skip
    return sum(number * (TIMES[name] + share * TIMES[f"{name} x hidden"]) for name, number in numbers.items())


def fitted(lengths: tuple[int, ...] = (8,)) -> EncoderLatencyTable:
    structures = random_structures(shape_of(CONFIG), 60)
    return fit_table(CONFIG, lengths, HERE, structures, [[made_up(s) * (1 + n) for n in range(len(lengths))] for s in structures])


def test_the_fit_finds_the_times_that_made_the_measurements() -> None:
    table = fitted((8, 16))
    assert {part: row[0] for part, row in table.part_ms.items()} == pytest.approx(TIMES, rel=1e-3)
    assert table.fit["median_error"] < 1e-6 and table.fit["left_out"] == 2 * 56
    latency = table.at({8: 0.5, 12: 0.5})
    structure = {"hidden_size": 16, "heads": [0, 3, 1], "neurons": [10, 0, 5]}
    sizes = {"hidden": 16.0, "0.mha": 0.0, "0.heads": 0.0, "1.mha": 1.0, "1.heads": 3.0, "2.mha": 1.0, "2.heads": 1.0,
             "0.ffn": 1.0, "0.neurons": 10.0, "1.ffn": 0.0, "1.neurons": 0.0, "2.ffn": 1.0, "2.neurons": 5.0}  # fmt: skip
    assert latency.predict(sizes) == pytest.approx(1.25 * made_up(structure), rel=1e-4), "between two lengths, a straight line"
    assert _counts(structure, table.shape) == part_counts(sizes, table.shape)


def test_expected_time_is_the_mean_over_all_that_may_be() -> None:
    """Gates of one layer are independent of the hidden dimensions', so the expectation of the products is exact."""
    model = make_encoder(num_hidden_layers=1)
    axes, latency = axes_of(model), None
    shape = shape_of(model.config)
    table = EncoderLatencyTable(HERE, shape, (8,), {part: [ms] for part, ms in TIMES.items()})
    latency = table.at({8: 1.0})
    p = axes.ones().map(lambda tensor: 0.2 + 0.6 * torch.rand_like(tensor))
    draws = torch.zeros(2_000)
    for index in range(len(draws)):
        draws[index] = latency.predict(axes.expected_sizes(p.map(torch.bernoulli).kept()))
    expected = float(latency.predict(axes.expected_sizes(p)))
    assert abs(float(draws.mean()) - expected) < 4 * float(draws.std()) / len(draws) ** 0.5


def test_structures_are_encoders_and_reach_from_all_to_nearly_nothing() -> None:
    shape = shape_of(CONFIG)
    structures = random_structures(shape, 40)
    assert structures == random_structures(shape, 40) and structures[:30] == random_structures(shape, 30)
    assert structures[0] == {"hidden_size": 32, "heads": [4] * 3, "neurons": [64] * 3}
    for structure in structures:
        assert 1 <= structure["hidden_size"] <= 32 and any(structure["heads"] + structure["neurons"])
        assert all(0 <= h <= 4 for h in structure["heads"]) and all(0 <= f <= 64 for f in structure["neurons"])
    assert np.linalg.matrix_rank(np.array([_counts(structure, shape) for structure in structures])) == len(PARTS)


def test_a_table_goes_through_json_and_says_what_it_is_not_of(tmp_path: Path) -> None:
    table, path = fitted((8, 16)), tmp_path / "table.json"
    path.write_text(json.dumps(table.to_dict()))
    assert EncoderLatencyTable.load(path) == table
    table.check(HERE, table.shape, "here")
    with pytest.raises(ConfigError, match="threads 1 there, 2 here"):
        table.check(dataclasses.replace(HERE, threads=2), table.shape, "here")
    with pytest.raises(ConfigError, match="hidden 32 there, 99 here"):
        table.check(HERE, dataclasses.replace(table.shape, hidden=99), "here")
    with pytest.raises(ConfigError, match=r"measured at \[8, 16\] word pieces, asked for 4 to 20"):
        table.at({4: 0.5, 20: 0.5})
    for broken, says in (({"version": 9}, "version 1"), ({"part_ms": {}}, "KeyError"), ({"lengths": [8]}, "no times at")):
        path.write_text(json.dumps({**table.to_dict(), **broken}))
        with pytest.raises(ConfigError, match=says):
            EncoderLatencyTable.load(path)
    with pytest.raises(ConfigError, match="no latency table can be read"):
        EncoderLatencyTable.load(tmp_path / "none.json")


def test_a_table_is_measured_group_by_group_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    here, output = deployment_here("torch"), tmp_path / "table.json"
    small = EncoderConfig(**{**CONFIG.to_dict(), "heads": [4], "neurons": [64]})
    with pytest.raises(Killed):
        build_encoder_table(small, [4], output=output, deployment=here, networks=16, progress=KillAt(0, "latency table, 13 to 16 of 16: export"))
    kept = json.loads((tmp_path / "table.measured.json").read_text())["ms"]
    assert len(kept) == 12 and not output.exists()
    progress = Heard()
    table = build_encoder_table(small, [4], output=output, deployment=here, networks=16, progress=progress)
    assert not any("1 to 12" in title for title in progress.titles), "what was measured is not measured again"
    assert EncoderLatencyTable.load(output) == table and table.fit["networks"] == 16
    assert json.loads((tmp_path / "table.measured.json").read_text())["ms"][:12] == kept
    facts = compare_encoder(table, EncoderForSequenceClassification(small), {4: 1.0}, progress, target_ms=1e-6)
    assert facts["measured_ms"] > 0 and facts["error"] == pytest.approx(facts["predicted_ms"] / facts["measured_ms"] - 1)
    assert "its target is 1e-06 ms" in facts["warning"] and progress.warnings
    with pytest.raises(ConfigError, match="choices: from 1 to 40 word pieces"):
        build_encoder_table(small, [41], output=output, deployment=here)


def test_a_shape_says_what_times_depend_on() -> None:
    assert shape_of(CONFIG) == EncoderShape(32, 8, (4, 4, 4), (64, 64, 64))
