"""Everything that can be drawn of a folder is drawn, its costs are the model's, what cannot be drawn is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from pictures import history, random_report
from tiny import tiny_architecture, tiny_config

from adasearch import inspect_run
from adasearch.cofi_plots import prunings_figure
from adasearch.errors import ConfigError
from adasearch.files import write_json
from adasearch.formats import format_count
from adasearch.report import figures_of
from adasearch.structure_plots import MODEL_TYPE, Structure, write_structures
from adasearch.student import AdasearchForSequenceClassification
from adasearch.ticket_plots import read_distances


def test_inspect_draws_all_that_a_run_holds(tmp_path: Path) -> None:
    architecture = tiny_architecture()
    model = AdasearchForSequenceClassification(tiny_config(architecture))
    write_json(tmp_path / "search" / "architecture.json", architecture.to_dict())
    model.config.save_pretrained(tmp_path / "student")
    (tmp_path / "search" / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in history(6, 2)))
    write_json(tmp_path / "models" / "student-1" / "history.json", history(3, 0))
    write_json(tmp_path / "report.json", random_report(0))
    text = inspect_run.inspect(tmp_path, None)
    expected = ["cell", "network", "search", "training", "comparison"]
    assert figures_of(tmp_path) == expected
    files = {path.name for path in (tmp_path / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in expected for kind in ("svg", "png")}
    assert all(f"{name}.svg" in text for name in expected) and "self_attention" in text
    total = sum(p.numel() for p in model.parameters())
    network = (tmp_path / "figures" / "network.svg").read_text(encoding="utf-8")
    assert f"tiny: {format_count(total)} parameters" in network


def test_costs_and_parts_are_those_of_the_model() -> None:
    """Against the built student: its parts' parameters, and the weights of each of its operations."""
    architecture = tiny_architecture()
    model = AdasearchForSequenceClassification(tiny_config(architecture))
    costs, details = inspect_run._costs_of(architecture, model.config.to_dict(), where=Path("here"))
    assert details.embeddings + sum(details.cells) + details.read_out == sum(p.numel() for p in model.parameters())
    for name, operation in model.trunk.cells[0].edges["0_to_2"].items():
        assert costs[name][0] == sum(p.numel() for p in operation.parameters())
        assert costs[name][1] == sum(p.numel() for p in operation.parameters() if p.dim() > 1)
    assert torch.is_tensor(next(model.parameters())) and details.vocab_size == 30 and details.labels == 3


def test_inspect_of_an_architecture_and_of_a_student(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    write_json(path, tiny_architecture().to_dict())
    inspect_run.inspect(path, tmp_path / "there")
    drawn = sorted(path.name for path in (tmp_path / "there").iterdir())
    assert drawn == ["cell.png", "cell.svg", "network.png", "network.svg"]
    bag = tiny_architecture(cells=0)
    tiny_config(bag).save_pretrained(tmp_path / "bag")
    assert "0 cells" in inspect_run.inspect(tmp_path / "bag", None)
    assert sorted(p.name for p in (tmp_path / "bag" / "figures").iterdir()) == ["network.png", "network.svg"]


def test_a_run_without_cells_has_no_picture_of_one(tmp_path: Path) -> None:
    bag = tiny_architecture(cells=0)
    write_json(tmp_path / "search" / "architecture.json", bag.to_dict())
    assert "0 cells" in inspect_run.inspect(tmp_path, None)
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["network.png", "network.svg"]


def test_what_cannot_be_drawn_is_refused_in_one_line(tmp_path: Path) -> None:
    unknown = tiny_architecture().to_dict()
    unknown["cells"][0][0][0][1] = "conv99"
    write_json(tmp_path / "unknown.json", unknown)
    (tmp_path / "empty").mkdir()
    write_json(tmp_path / "other" / "config.json", {"model_type": "bert"})
    (tmp_path / "broken" / "search").mkdir(parents=True)
    (tmp_path / "broken" / "search" / "history.jsonl").write_text("{", encoding="utf-8")
    write_json(tmp_path / "quantgpt" / "report.json", {"task": "t"})
    write_json(tmp_path / "begun" / "run.json", {"stages": {}})
    cases = {"quantgpt": "nothing to draw", "begun": "the run is not finished: give the same command again", "unknown.json": "unknown operation 'conv99'.*known:.*conv3", "empty": "nothing to draw.*choices",
             "nowhere": "no such folder", "other": "no key 'architecture'", "broken": "cannot be read"}  # fmt: skip
    for name, says in cases.items():
        with pytest.raises(ConfigError, match=says) as caught:
            inspect_run.inspect(tmp_path / name, tmp_path / "out")
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_every_layer_that_teaches_is_drawn() -> None:
    """Twelve of them, where there are seven colours."""
    record = {"step": 1, "target": 0.5, "expected_saved": 0.4, "saved": 0.5, "open": {"heads": 0.9}, "multipliers": [0.0, 0.0]}
    figure = prunings_figure({"cofi-sparsity-0.5-1": [{**record, "match": {str(layer): layer for layer in range(12)}}]})
    _, _, matched, _ = figure.axes
    assert [line.get_ydata()[0] for line in matched.get_lines()] == list(range(12))


def test_of_a_cut_encoder_alone_nobody_says_of_how_much(tmp_path: Path) -> None:
    """Its folder tells what is left, and not what it was cut from."""
    config = {"model_type": MODEL_TYPE, "hidden_size": 200, "heads": [3, 0], "neurons": [1500, 12]}
    write_json(tmp_path / "student" / "config.json", config)
    text = inspect_run.inspect(tmp_path / "student", None)
    assert "student: 200 hidden dimensions" in text and " of " not in text and "1,500" in text and "none" in text
    drawn = (tmp_path / "student" / "figures" / "structure.svg").read_text(encoding="utf-8")
    assert "hidden 200" in drawn and "hidden 200 of" not in drawn
    layers = {"full_heads": [12, 12], "full_neurons": [1536, 1536], "heads": config["heads"], "neurons": config["neurons"]}
    write_structures(tmp_path / "run", [Structure(name="CoFi", kind="student", hidden=200, full_hidden=384, **layers)])
    write_json(tmp_path / "run" / "run.json", {"stages": {}})
    assert "CoFi: 200 of 384 hidden dimensions" in inspect_run.inspect(tmp_path / "run", None)


def test_the_tickets_drawn_are_those_of_the_model_made_first(tmp_path: Path) -> None:
    for order, seed in enumerate((2, 10, 1)):
        file = tmp_path / "models" / f"earlybert-{seed}" / "mask_distances.json"
        write_json(file, {"check_every": 1, "heads": [[0.0, 0.5], [0.5, 0.0]]})
        os.utime(file, ns=(order, order))
    assert list(read_distances(tmp_path)) == ["earlybert-2", "earlybert-10", "earlybert-1"]
    write_json(tmp_path / "run.json", {"stages": {}})
    inspect_run.inspect(tmp_path, None)
    assert "earlybert-2: share" in (tmp_path / "figures" / "tickets.svg").read_text(encoding="utf-8")


def test_what_an_unfinished_run_has_made_is_drawn(tmp_path: Path) -> None:
    record = {"step": 1, "target": 0.5, "expected_saved": 0.4, "saved": 0.5, "open": {"heads": 0.9}, "multipliers": [0.0, 0.0], "match": {}}
    write_json(tmp_path / "run.json", {"stages": {}})
    write_json(tmp_path / "models" / "cofi-sparsity-0.5-1" / "history.json", [{**history(1, 0)[0], **record}])
    assert "pruning.svg" in inspect_run.inspect(tmp_path, None) and (tmp_path / "figures" / "pruning.png").is_file()
