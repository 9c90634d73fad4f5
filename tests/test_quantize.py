"""int8 graphs against arithmetic by hand; the choice of a runtime from settings to deploy.json on a tiny student."""

from __future__ import annotations

import errno
import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from hearing import Heard
from onnx import numpy_helper
from tiny_task import WORDS, rows, write_csv, write_teacher
from transformers import AutoTokenizer

from adasearch import int8
from adasearch.architecture import Architecture, Edge, Macro
from adasearch.deploy import load_deployed, load_deployment
from adasearch.errors import ConfigError, DataError, ModelError
from adasearch.export import export_student, save_student
from adasearch.graph_runtimes import weights_of
from adasearch.progress import Progress
from adasearch.qdq_export import export_folder
from adasearch.quantize import (
    Reference, _choose, _keep_score, _lost, _scores, choose_ways, format_deployment, quantize,
)  # fmt: skip
from adasearch.quantize_config import QuantizeConfig
from adasearch.quantize_texts import load_material
from adasearch.runtimes import OnnxRuntime, load_runtime
from adasearch.sources import PRESETS
from adasearch.student import AdasearchConfig, AdasearchForSequenceClassification

FAST = {"runtimes": ["torch", "onnxruntime", "openvino"], "repeats": 2, "warmup": 1, "seq_length": 8}  # nothing to compile
LABELS = ("negative", "positive")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of random weights in a folder ``student``, exported, with files of texts labelled by itself."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("made")
    nodes = ((Edge(0, "conv3"),), (Edge(2, "self_attention"),), (Edge(3, "sep_conv3"),))
    architecture = Architecture("test", "0", (nodes,), 16, Macro(attention_head_size=8, pooling="attention"))
    config = AdasearchConfig(
        architecture=architecture.to_dict(), vocab_size=len(WORDS), max_position_embeddings=32, sep_token_id=3,
        id2label=dict(enumerate(LABELS)), label2id={name: index for index, name in enumerate(LABELS)},
    )  # fmt: skip
    student = AdasearchForSequenceClassification(config).eval()
    torch.nn.init.normal_(student.trunk.embeddings.word.weight)
    torch.nn.init.normal_(student.trunk.read_out.classifier.weight)
    tokenizer = AutoTokenizer.from_pretrained(write_teacher(folder / "encoder"))
    save_student(student, tokenizer, folder / "student")
    write_csv(folder / "train.csv", 80, 1)
    texts = [row["text"] for row in rows(60, 2)]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = student(batch["input_ids"], batch["attention_mask"]).logits
        logits -= logits.median(0).values  # both labels occur
        student.trunk.read_out.classifier.bias -= (student(batch["input_ids"], batch["attention_mask"]).logits - logits)[0]
    save_student(student, tokenizer, folder / "student")
    export_student(folder / "student")
    (folder / "validation.jsonl").write_text(
        "".join(json.dumps({"text": t, "label": LABELS[int(c)]}) + "\n" for t, c in zip(texts, logits.argmax(1)))
    )
    assert set(logits.argmax(1).tolist()) == {0, 1}
    return folder


def copy_of(made: Path, place: Path) -> Path:
    """A student's folder of one's own."""
    import shutil

    return Path(shutil.copytree(made / "student", place / "student"))


def config_of(made: Path, **changes: object) -> QuantizeConfig:
    files = {"calibration_file": str(made / "train.csv"), "validation_file": str(made / "validation.jsonl")}
    return QuantizeConfig(**{**files, **FAST, **changes})


def ids_of(count: int = 4, length: int = 9) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(4, len(WORDS), (count, length))
    return ids, np.ones_like(ids)


def write_graphs(made: Path, folder: Path, calibration: str = "minmax") -> tuple[Path, Path]:
    """The int8_embedding and int8 graphs of the student."""
    material = load_material(made / "student", config_of(made))
    feeds = [{name: batch[name] for name in ("input_ids", "attention_mask")} for _, batch in material.calibration.batches()]
    table = int8.write_int8_embedding(made / "student" / "onnx" / "model.onnx", folder / "table.onnx", len(WORDS))
    return table, int8.write_int8(table, folder / "int8.onnx", feeds, calibration=calibration)


def test_the_table_is_within_half_a_step_in_every_row(made: Path, tmp_path: Path) -> None:
    source = onnx.load(made / "student" / "onnx" / "model.onnx")
    (name, exact_VD), = [
        (w.name, numpy_helper.to_array(w)) for w in source.graph.initializer if list(w.dims) == [len(WORDS), 16]
    ]  # fmt: skip
    path, _ = write_graphs(made, tmp_path)
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
    ints_VD, scale_V1 = weights[f"{name}.int8"], weights[f"{name}.scale"]
    assert ints_VD.dtype == np.int8 and name not in weights
    error_VD = np.abs(ints_VD * scale_V1 - exact_VD)
    assert (error_VD <= scale_V1 / 2 + 1e-7).all() and error_VD.max() > 0
    busy = np.abs(exact_VD).max(1) > 0
    assert (np.abs(ints_VD[busy]).max(1) == 127).all()  # every row uses its whole range
    # the graph computes what these numbers say: put them into torch
    model = AdasearchForSequenceClassification.from_pretrained(made / "student").eval()
    with torch.no_grad():
        model.trunk.embeddings.word.weight.copy_(torch.from_numpy(ints_VD * scale_V1))
        expected = model(*map(torch.from_numpy, ids_of())).logits.numpy()
    np.testing.assert_allclose(OnnxRuntime(path, 1)(*ids_of()), expected, atol=1e-5)


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy"])
def test_int8_is_static_and_near(calibration: str, made: Path, tmp_path: Path) -> None:
    _, path = write_graphs(made, tmp_path, calibration)
    graph = onnx.load(path).graph
    kinds = {node.op_type for node in graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert not {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"} & kinds
    exact = load_runtime("torch", made / "student")(*ids_of())
    found = OnnxRuntime(path, 1)(*ids_of())
    assert 1e-6 < abs(found - exact).max() < 0.1 * abs(exact).max()
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    assert sorted(int8.quantised_operations(path)) == sorted(convolutions)  # not attention, pooling, classifier
    made_by = {out: node for node in graph.node for out in node.output}
    for node in graph.node:  # nobody else reads rounded activations, but for a convolution's, which are never fp32
        raws = [int8._raw(name, made_by) for name in node.input if node.name not in convolutions]
        assert {made_by[raw].op_type for raw in raws if raw is not None} <= {"Conv"}
    metadata = OnnxRuntime(path, 1).metadata
    assert (metadata["adasearch.vocab_size"], metadata["adasearch.weights"]) == (str(len(WORDS)), weights_of(made / "student"))


@pytest.fixture(scope="module")
def hand_made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, np.ndarray]]]:
    """A convolution, a matrix product, and texts of a quarter of a million numbers of which one is far off."""
    rng, helper = np.random.default_rng(0), onnx.helper
    weights = {"kernel": rng.normal(size=(24, 16, 3)), "matrix": rng.normal(size=(24, 32))}
    weights["kernel"] *= np.geomspace(1, 100, 24)[:, None, None]
    weights["matrix"] *= np.geomspace(1, 100, 32)
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["sums"], name="conv", kernel_shape=[3], pads=[1, 1]),
        helper.make_node("Transpose", ["sums"], ["rows"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["rows", "matrix"], ["products"], name="product"),
        helper.make_node("Relu", ["products"], ["y"], name="relu"),  # what makes the outputs stays fp32
    ]
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", *dims]) for name, dims in (("x", [16, "L"]), ("y", ["L", 32])))
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path_factory.mktemp("hand") / "model.onnx"
    onnx.save(model, path)
    feeds = [{"x": rng.normal(size=(64, 16, 32)).astype(np.float32)} for _ in range(8)]
    feeds[3]["x"][0, 0, 0] = 1000
    return path, feeds


def test_weights_have_a_scale_for_each_output_channel(hand_made: tuple[Path, list[dict[str, np.ndarray]]], tmp_path: Path) -> None:
    path, feeds = hand_made
    exact = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    graph = onnx.load(int8.write_int8(path, tmp_path / "int8.onnx", feeds[:1])).graph
    arrays, made_by = {w.name: numpy_helper.to_array(w) for w in graph.initializer}, {out: n for n in graph.node for out in n.output}
    products = {node.name: node for node in graph.node if node.op_type in ("Conv", "MatMul")}
    for name, weight, axes in (("conv", "kernel", (1, 2)), ("product", "matrix", (0,))):
        scale_O = arrays[made_by[products[name].input[1]].input[1]]
        np.testing.assert_allclose(scale_O, np.abs(exact[weight]).max(axis=axes) / 127, rtol=0.01)  # 127 or 127.5 steps up


def test_a_percentile_leaves_an_outlier_out_of_the_range(hand_made: tuple[Path, list[dict[str, np.ndarray]]], tmp_path: Path) -> None:
    path, feeds = hand_made
    scales = {}
    for calibration in ("minmax", "percentile"):
        graph = onnx.load(int8.write_int8(path, tmp_path / f"{calibration}.onnx", feeds, calibration=calibration)).graph
        arrays = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
        scales[calibration] = {node.input[0]: float(arrays[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear"}
    low = min(float(feed["x"].min()) for feed in feeds)
    assert scales["minmax"]["x"] == pytest.approx((1000 - low) / 255, rel=1e-3)
    assert scales["percentile"]["x"] < 0.1 * scales["minmax"]["x"], "all but one in 262,144 are below 6"


def test_what_is_left_out_computes_in_fp32(made: Path, tmp_path: Path) -> None:
    table, path = write_graphs(made, tmp_path)
    names = int8.quantised_operations(path)
    none = int8.leave_out(path, tmp_path / "none.onnx", names)
    assert int8.quantised_operations(none) == []
    assert "QuantizeLinear" not in {node.op_type for node in onnx.load(none).graph.node}
    some = int8.leave_out(path, tmp_path / "some.onnx", names[:2])
    assert int8.quantised_operations(some) == names[2:]
    # nothing but rounded weights is left: put those, by hand, into the graph that was quantised
    ints = {w.name: numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
    plain, rounded = onnx.load(table), 0
    for weight in plain.graph.initializer:
        name, exact = weight.name, numpy_helper.to_array(weight)
        if f"{name}_quantized" in ints:
            scale = ints.get(f"{name}_scale", ints.get(f"{name}_quantized_scale")).reshape(-1, *[1] * (exact.ndim - 1))
            values = (ints[f"{name}_quantized"] * scale).astype(np.float32)
            assert (abs(values - exact) <= scale / 2 + 1e-6).all()
            weight.CopyFrom(numpy_helper.from_array(values, name))
            rounded += exact.ndim == 3
    assert rounded == len(names)
    onnx.save(plain, tmp_path / "plain.onnx")
    expected = OnnxRuntime(tmp_path / "plain.onnx", 1)(*ids_of())
    np.testing.assert_allclose(OnnxRuntime(none, 1)(*ids_of()), expected, atol=1e-5)
    assert abs(OnnxRuntime(path, 1)(*ids_of()) - expected).max() > 1e-4  # which rounded activations would not give


def test_the_operation_that_hurts_is_found_and_given_back(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = write_graphs(made, tmp_path)
    model = onnx.load(path)
    made_by = {out: node for node in model.graph.node for out in node.output}
    guilty = next(n for n in model.graph.node if n.op_type == "Conv" and n.name == int8.quantised_operations(path)[0])
    scale = made_by[made_by[guilty.input[0]].input[0]].input[1]
    for weight in model.graph.initializer:
        if weight.name == scale:  # a range 10,000 times too wide: all activations become 0
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1e4), scale))
    onnx.save(model, path)
    config = config_of(made, max_drop=0.0)
    material = load_material(made / "student", config)
    logits = material.validation.logits_of(load_runtime("torch", made / "student"))
    shares = np.bincount(material.labels) / len(material.labels)
    assert shares.max() < 0.95
    (tmp_path / "other_disk").mkdir()
    rename = Path.replace

    def replace(source: Path, target: Path) -> Path:
        if source.parent != target.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", replace)
    left = _keep_score(path, tmp_path / "other_disk", material, Reference(logits, (1.0,)), config_of(made, max_drop=5.0), Progress())
    assert left[0] == guilty.name
    assert guilty.name not in int8.quantised_operations(path)
    kept = material.validation.logits_of(OnnxRuntime(path, 1))
    assert (kept.argmax(1) == material.labels).mean() >= 0.95


def test_quantize_tries_all_keeps_the_fastest_good_one_and_saves_it(made: Path, tmp_path: Path) -> None:
    folder = copy_of(made, tmp_path)
    deployment = quantize(folder, config_of(made, max_drop=10.0))
    assert load_deployment(folder) == deployment
    ways = {(row["runtime"], row["precision"]) for row in deployment.tried}
    assert {("torch", "fp32"), ("onnxruntime", "int8"), ("openvino", "int8_embedding")} <= ways
    assert ways == set(choose_ways(config_of(made)))
    by_way = {(row["runtime"], row["precision"]): row for row in deployment.tried}
    for runtime in ("onnxruntime", "openvino"):
        assert by_way[runtime, "fp32"]["logits_difference"] < 1e-4
    assert deployment.score_fp32 == by_way["torch", "fp32"]["score"] == 1.0  # the labels are its own
    good = [row for row in deployment.tried if row["drop_points"] <= 10.0]
    assert deployment.latency_ms_p50 == min(row["latency_ms_p50"] for row in good)
    runtime = load_deployed(folder)
    assert (runtime.name, runtime.precision, runtime.threads) == (deployment.runtime, deployment.precision, 1)
    text = format_deployment(deployment)
    assert text.count("\n") == len(ways) + 2 and text.splitlines()[-1].startswith(f"kept: {deployment.runtime}")
    assert not list(folder.rglob("*partial*"))


def test_a_shift_that_no_correlation_sees_is_a_loss() -> None:
    """A regression's predictions, shifted and stretched: by hand R² loses (shift / deviation)² and (stretch - 1)² of a perfect one."""
    labels_N = np.array([0, 2, 4, np.nan, 6], np.float32)  # mean 3, variance 5
    exact_N1 = np.nan_to_num(labels_N, nan=1.0)[:, None]
    material = SimpleNamespace(model_dir="m", metrics=("pearson", "mse"), labels=labels_N, validation=SimpleNamespace(logits_of=lambda logits: logits))
    reference = Reference(exact_N1, _scores(material, exact_N1))
    assert reference.scores == pytest.approx((1.0, 1.0))
    for moved_N1, lost in ((exact_N1 + 1, 100 / 5), (3 + 1.1 * (exact_N1 - 3), 1.0), (exact_N1 + 0.01, 0.01 / 5), (exact_N1, 0.0)):
        assert _lost(reference, material, moved_N1) == pytest.approx(lost, abs=1e-4)
    rows = [
        {"runtime": name, "precision": "int8", "score": 1.0, "drop_points": _lost(reference, material, logits_N1), "latency_ms_p50": ms}
        for name, logits_N1, ms in (("shifted", exact_N1 + 1, 1.0), ("true", exact_N1 + 0.01, 2.0))
    ]
    assert _choose(rows, QuantizeConfig(), material)["runtime"] == "true"
    with pytest.raises(ModelError, match="shifted int8 comes nearest with 20.00"):
        _choose(rows[:1], QuantizeConfig(), material)


def test_who_quantises_has_the_threads_he_had(made: Path, tmp_path: Path) -> None:
    folder = copy_of(made, tmp_path)
    torch.set_num_threads(2)
    try:
        quantize(folder, config_of(made, runtimes=["torch"], precisions=["fp32"]))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_folder_in_a_run_takes_the_runs_texts(made: Path, tmp_path: Path) -> None:
    copy_of(made, tmp_path)
    (tmp_path / "run.json").write_text("{}")
    settings = {
        "task": "tiny", "train_file": str(made / "train.csv"), "validation_file": str(made / "validation.jsonl"),
        "max_seq_length": 7, "seed": 3, "bench": {"seq_lengths": [6]}, "a_setting_of_later": 1,
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    for path in (tmp_path, tmp_path / "student"):
        material = load_material(path, QuantizeConfig(calibration_texts=40))
        assert material.model_dir == tmp_path / "student" and material.seq_len == 6 and material.metrics[0] == "accuracy"
        assert (len(material.calibration), len(material.validation), len(material.labels)) == (40, 60, 60)
        assert max(map(len, material.validation.ids)) == 7
    for given, metric in (({"metric": "matthews_correlation"}, "matthews_correlation"), ({"task": "mrpc"}, PRESETS["mrpc"].metrics[0])):  # of other examples it is the same one
        (tmp_path / "config.yaml").write_text(json.dumps({**settings, **given}))
        assert load_material(tmp_path, config_of(made)).metrics[0] == metric
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    (tmp_path / "student" / "config.json").write_text(
        json.dumps({**json.loads((made / "student" / "config.json").read_text()), "id2label": {"0": "a", "1": "b", "2": "c"}})
    )
    with pytest.raises(ModelError, match="is a model of another task: it has 3 labels, tiny of .* has 2"):
        load_material(tmp_path, QuantizeConfig())


def test_labels_may_be_names_or_numbers(made: Path, tmp_path: Path) -> None:
    by_name = load_material(made / "student", config_of(made)).labels
    numbered = tmp_path / "numbers.jsonl"
    lines = [json.loads(line) for line in (made / "validation.jsonl").read_text().splitlines()]
    numbered.write_text("".join(json.dumps({**line, "label": LABELS.index(line["label"])}) + "\n" for line in lines))
    by_number = load_material(made / "student", config_of(made, validation_file=str(numbered))).labels
    np.testing.assert_array_equal(by_name, by_number)
    assert len(set(by_name)) == 2
    numbered.write_text('{"text": "good", "label": "neutral"}\n')
    with pytest.raises(DataError, match="unknown label 'neutral'; known: 0 = negative, 1 = positive"):
        load_material(made / "student", config_of(made, validation_file=str(numbered)))


def test_few_texts_are_refused(made: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("good film\nbad plot\nfine\n")
    message = r"calibration: 3 texts \(.*few.txt\) are too few to set ranges; at least 32 are asked for"
    with pytest.raises(DataError, match=message):
        quantize(made / "student", config_of(made, calibration_file=str(few)))
    with pytest.raises(DataError, match="calibration: 5 texts"):
        quantize(made / "student", config_of(made, calibration_texts=5))


def test_a_choice_does_not_outlive_the_graph_it_was_of(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails after int8 was written anew leaves no word of the old graph's score, and one of a graph that is as it was."""
    folder = copy_of(made, tmp_path)
    kept = quantize(folder, config_of(made, runtimes=["onnxruntime"], precisions=["fp32"]))
    assert (folder / "deploy.json").exists()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adasearch.quantize._try_all", fail)
    with pytest.raises(KeyboardInterrupt):
        quantize(folder, config_of(made, runtimes=["torch"], precisions=["fp32"]))
    assert (folder / "deploy.json").exists(), "no graph was written"
    with pytest.raises(KeyboardInterrupt):
        quantize(folder, config_of(made, runtimes=["onnxruntime"], precisions=["int8"]))
    assert load_deployment(folder) == kept, "its graph was not among those written"
    for left in (json.dumps(dataclasses.asdict(dataclasses.replace(kept, precision="int8"))), "{"):
        (folder / "deploy.json").write_text(left)
        with pytest.raises(KeyboardInterrupt):
            quantize(folder, config_of(made, runtimes=["onnxruntime"], precisions=["int8"]))
        assert not (folder / "deploy.json").exists()


def test_a_student_of_a_table_and_a_classifier_is_quantised_without_int8(made: Path, tmp_path: Path) -> None:
    """No convolution, no matrix product but the one that makes the logits: int8_embedding is all there is."""
    folder = tmp_path / "student"
    architecture = Architecture("bag", "0", (), 16, Macro(pooling="mean", position_embeddings=False))
    config = AdasearchConfig(
        architecture=architecture.to_dict(), vocab_size=len(WORDS), max_position_embeddings=32, sep_token_id=3,
        id2label=dict(enumerate(LABELS)), label2id={name: index for index, name in enumerate(LABELS)},
    )  # fmt: skip
    save_student(AdasearchForSequenceClassification(config).eval(), AutoTokenizer.from_pretrained(made / "student"), folder)
    found = quantize(folder, config_of(made, runtimes=["torch", "onnxruntime"], max_drop=100))
    (note,) = (row["note"] for row in found.tried if row["precision"] == "int8" and row["runtime"] == "onnxruntime")
    assert "no convolution or matrix product" in note and load_deployment(folder) is not None
    with pytest.raises(ModelError, match="no convolution or matrix product"):
        quantize(folder, config_of(made, runtimes=["onnxruntime"], precisions=["int8"]))


def test_a_graph_of_other_weights_is_refused(made: Path, tmp_path: Path) -> None:
    folder = copy_of(made, tmp_path)
    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    bias = next(w for w in model.graph.initializer if w.name.endswith("classifier.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.5), bias.name))
    onnx.save(model, path)
    with pytest.raises(ModelError, match="differs from torch by 0.5 .*: it is not this model's; `adasearch export"):
        quantize(folder, config_of(made))
    assert not (folder / "deploy.json").exists()


def test_an_export_removes_graphs_of_other_weights_and_no_others(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what they were made of; times, which a copy has as its files came, count only for graphs that do not say."""
    monkeypatch.setattr("adasearch.qdq_export.export_student", lambda folder: folder / "onnx" / "model.onnx")  # it takes long
    folder, heard = copy_of(made, tmp_path), Heard()
    graphs = [folder / "onnx" / name for name in ("model_int8_embedding.onnx", "model_int8.onnx")]
    for path, written in zip(graphs, write_graphs(made, tmp_path)):
        path.write_bytes(written.read_bytes())
        os.utime(path, (0, 0))
    (folder / "deploy.json").write_text("{}")
    export_folder(folder, heard)
    assert all(path.exists() for path in graphs) and (folder / "deploy.json").exists() and not heard.warnings
    silent = onnx.load(graphs[0])
    del silent.metadata_props[:]
    onnx.save(silent, graphs[0])
    export_folder(folder, heard)
    assert graphs[0].exists(), "it is younger than the weights"
    os.utime(graphs[0], (0, 0))
    export_folder(folder, heard)
    assert [path.exists() for path in graphs] == [False, True] and not (folder / "deploy.json").exists()
    graphs[0].write_bytes(b"half a file")
    model = AdasearchForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.trunk.read_out.classifier.bias += 0.5
    model.save_pretrained(folder)
    os.utime(folder / "model.safetensors", (0, 0))
    export_folder(folder, heard)
    assert [path.exists() for path in graphs] == [True, False]
    said = "{}: made of other weights, removed with deploy.json; `adasearch quantize"
    assert [said.format(path.name) in warning for path, warning in zip(graphs, heard.warnings, strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtimes": ["tvm"]}, "runtime: 'tvm' is not known; choices: auto, onnxruntime"),
        ({"precisions": ["int4"]}, "precisions: 'int4' is not known; choices: .*int8_embedding"),
        ({"runtimes": ["torch"], "precisions": ["int8"]}, "'int8' is not known to runtime 'torch'; choices: fp32, bf16"),
        ({"calibration": "guess"}, "calibration: 'guess' is not known; choices: minmax, percentile, entropy"),
        ({"threads": 0}, "threads: 0 on .* choices: 1 to "),
        ({"threads": 1000}, "threads: 1000 on .* choices: 1 to "),
        ({"max_drop": -1.0}, "max_drop: -1.0 is out of range"),
        ({"seq_length": 33}, "seq_length: 33 is more than .* takes; choices: up to 32"),
        ({"validation_file": None}, "validation_file: .* lies in no run's folder, which would have texts; name a file"),
    ],
)
def test_wrong_settings_are_refused_before_the_work(changes: dict[str, object], message: str, made: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        quantize(made / "student", config_of(made, **changes))


def test_the_fastest_that_keeps_the_score_is_chosen(made: Path) -> None:
    def row(name: str, score: float | None, latency: float | None) -> dict[str, object]:
        drop = None if score is None else 90 - 100 * score
        return {"runtime": name, "precision": "fp32", "score": score, "drop_points": drop, "latency_ms_p50": latency, "note": "why"}

    material = load_material(made / "student", config_of(made))
    tried = [row("slow", 0.92, 3.0), row("good", 0.895, 2.0), row("bad", 0.894, 1.0), row("broken", None, None)]
    config = QuantizeConfig(max_drop=0.5)
    assert _choose(tried, config, material)["runtime"] == "good"  # exactly half a point is allowed
    assert _choose(tried, dataclasses.replace(config, max_drop=0.0), material)["runtime"] == "slow"
    with pytest.raises(ModelError, match="nothing that was asked for loses 0.5 points or less; bad fp32 comes nearest with 0.60"):
        _choose(tried[2:], config, material)
    with pytest.raises(ModelError, match=r"no runtime that was asked for could run it \(why\)"):
        _choose(tried[3:], config, material)
