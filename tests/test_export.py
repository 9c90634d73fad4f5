"""What leaves the package: ONNX graphs equal to torch at every shape, folders that load anywhere."""

from __future__ import annotations

import importlib.util
import json
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from elsewhere import logits_without_adasearch
from reports import make_report
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification, PreTrainedModel,
    PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification,
)  # fmt: skip

import adasearch
from adasearch import bundle, export, trace
from adasearch.architecture import Architecture, Edge, Macro
from adasearch.card import usage
from adasearch.errors import ConfigError, ModelError, TrainingError
from adasearch.model_inputs import positions_of
from adasearch.runtimes import OnnxRuntime
from adasearch.student import AdasearchConfig, AdasearchForSequenceClassification

TINY = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 24, "num_labels": 3, "initializer_range": 0.5}  # fmt: skip


def make_student(operations: list[str], **macro: object) -> AdasearchForSequenceClassification:
    """A student of one cell, one operation a node, whose weights make every part felt."""
    nodes = tuple((Edge(index + 1 if index else 0, name),) for index, name in enumerate(operations))
    architecture = Architecture("test", "0", (nodes,), 32, Macro(**macro))
    config = AdasearchConfig(
        architecture=architecture.to_dict(), vocab_size=60, max_position_embeddings=24, sep_token_id=3, num_labels=3
    )
    torch.manual_seed(0)
    student = AdasearchForSequenceClassification(config)
    for parameter in student.trunk.embeddings.parameters():
        nn.init.normal_(parameter)
    return student.eval()


def make_bert() -> PreTrainedModel:
    return BertForSequenceClassification(BertConfig(**TINY))


def make_roberta() -> PreTrainedModel:
    return RobertaForSequenceClassification(
        RobertaConfig(**TINY, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1)
    )


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": make_bert,
    "student": lambda: make_student(["max_pool3", "soft_alignment", "gated_conv5"], zero_cls=True, pooling="max"),
    "student_two_inputs": lambda: make_student(
        ["avg_pool3", "self_attention"], inputs="two", pooling="attention", norm="layer"
    ),
}


@pytest.fixture(scope="module", params=sorted(MODELS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    """A model and its graph."""
    torch.manual_seed(0)
    model = MODELS[request.param]().train()
    path = export.export_onnx(model, tmp_path_factory.mktemp(request.param) / "model.onnx")
    assert model.training  # left as it was
    return model.eval(), path


def test_the_graph_gives_torchs_logits_at_every_shape(exported: tuple[PreTrainedModel, Path]) -> None:
    model, path = exported
    runtime = OnnxRuntime(path, threads=1)
    longest = positions_of(model.config)
    assert longest == 24
    generator = np.random.default_rng(1)
    for batch, length in ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (5, 4), (3, 17), (2, longest)):
        ids = generator.integers(4, 60, (batch, length))
        ids[:, length // 2] = 3  # the students' separator
        mask = (np.arange(length) < generator.integers(1, length + 1, (batch, 1))).astype(np.int64)
        ids[mask == 0] = model.config.pad_token_id
        with torch.no_grad():
            expected = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
        np.testing.assert_allclose(runtime(ids, mask), expected, atol=1e-5, err_msg=f"{batch} x {length}")
    assert export.check_onnx(model, path) < 1e-5
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx"]


def test_the_graph_gives_torchs_logits_where_a_text_of_a_pair_is_empty(exported: tuple[PreTrainedModel, Path]) -> None:
    model, path = exported
    runtime = OnnxRuntime(path, threads=1)
    rows = [[4, 5, 3, 3], [4, 3, 5, 3], [4, 3, 3], [4, 5, 3, 3, 3]]  # the last as RoBERTa's tokenizer writes it
    ids = np.array([row + [model.config.pad_token_id] * (6 - len(row)) for row in rows])
    mask = (np.arange(6) < np.array([[len(row)] for row in rows])).astype(np.int64)
    for rows_, width in ((slice(None), 6), (slice(0, 1), 4), (slice(2, 3), 3)):  # beside longer ones, and alone
        ids_BL, mask_BL = ids[rows_, :width], mask[rows_, :width]
        with torch.no_grad():
            expected = model(input_ids=torch.from_numpy(ids_BL), attention_mask=torch.from_numpy(mask_BL)).logits.numpy()
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(runtime(ids_BL, mask_BL), expected, atol=1e-5)


def test_only_models_with_token_types_take_them(exported: tuple[PreTrainedModel, Path]) -> None:
    model, path = exported
    takes_types = model.config.model_type == "bert"
    assert OnnxRuntime(path, threads=1).input_names == set(export.input_names(model))
    assert ("token_type_ids" in export.input_names(model)) == takes_types


def test_the_check_names_shape_and_difference(exported: tuple[PreTrainedModel, Path]) -> None:
    model, path = exported
    bias = [
        parameter for name, parameter in model.named_parameters() if name.endswith("bias") and parameter.shape == (3,)
    ][0]
    with torch.no_grad():
        bias += 0.5
        try:
            with pytest.raises(
                ModelError, match=r"model.onnx: differs from torch by 0.5 on batch 1 x length 1; allowed: 0.0001"
            ):
                export.check_onnx(model, path)
            assert export.check_onnx(model, path, tolerance=0.51) == pytest.approx(0.5, abs=1e-4)
            bias[0] = float("nan")
            with pytest.raises(ModelError, match="differs from torch by nan"):
                export.check_onnx(model, path, tolerance=1e9)
        finally:
            bias.copy_(torch.zeros(3))


@pytest.mark.parametrize(
    "settings",
    [{"kernel_size": 3}, {"kernel_size": (2,), "stride": 1},
     {"kernel_size": 3, "stride": (2,), "padding": 1, "dilation": 2},
     {"kernel_size": 2, "stride": 3, "ceil_mode": True}],
)  # fmt: skip
def test_replaced_pooling_has_equal_values(settings: dict[str, object]) -> None:
    x = torch.randn(2, 4, 13)
    with trace.Exportable():
        found = F.max_pool1d(x, **settings), torch.max_pool1d(x, **settings), nn.MaxPool1d(**settings)(x)
    for values in found:
        assert torch.equal(values, F.max_pool1d(x, **settings))


def test_replaced_where_has_equal_values() -> None:
    condition, yes, no = torch.randn(3, 4) > 0, torch.randn(3, 4) > 0, torch.randn(4) > 0
    with trace.Exportable():
        found = torch.where(condition, yes, no), yes.where(condition, no), torch.where(condition, yes.float(), 2.0)
    assert torch.equal(found[0], torch.where(condition, yes, no)) and torch.equal(found[1], yes.where(condition, no))
    assert torch.equal(found[2], torch.where(condition, yes.float(), 2.0))


@pytest.mark.parametrize("kind", ["none", "bool", "row", "float"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_replaced_attention_has_equal_values(kind: str, scale: float | None) -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 6).unbind()
    visible = torch.rand(2, 1, 5, 5) > 0.4
    visible[0, 0, 2] = False  # a query that sees nothing
    mask = {"none": None, "bool": visible, "row": visible[:, :, :1], "float": torch.randn(2, 1, 5, 5)}[kind]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    with trace.Exportable():
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    if kind == "float":
        return  # torch wants that mask in the other's type
    with trace.Exportable():
        rounded = F.scaled_dot_product_attention(*(x.bfloat16() for x in (q, k, v)), attn_mask=mask, scale=scale)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), expected, atol=0.05, rtol=0)


def test_attention_is_replaced_only_where_it_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(trace, "_attention", lambda *args, **kwargs: calls.append(args) or args[0])
    q, k, v = torch.randn(3, 1, 2, 5, 6).unbind()
    with trace.Exportable():
        causal = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        F.scaled_dot_product_attention(q, k, v, dropout_p=0.0, is_causal=False)
    assert len(calls) == 1 and torch.equal(causal, F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_the_graph_names_its_vocabulary(exported: tuple[PreTrainedModel, Path]) -> None:
    assert OnnxRuntime(exported[1], threads=1).metadata == {"adasearch.vocab_size": "60"}


def test_large_weights_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "ONE_FILE_BYTES", 1)
    model = make_roberta()
    assert positions_of(model.config) == 22  # its positions begin at padding_idx + 1
    path = export.export_onnx(model, tmp_path / "deep" / "model.onnx")
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert export.check_onnx(model, path) < 1e-5


class CountingWords(PreTrainedModel):
    """A classifier whose computation depends on the values of its inputs, which no graph can express."""

    config_class = BertConfig

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.linear = nn.Linear(1, 2)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, return_dict: bool = True) -> Tensor:
        return self.linear(input_ids.float().mean().view(1, 1)) if int(input_ids.sum()) % 2 else self.linear.bias


def test_what_cannot_be_exported_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an earlier graph")
    with pytest.raises(ModelError, match="CountingWords cannot be exported to ONNX") as caught:
        export.export_onnx(CountingWords(BertConfig(**TINY)), path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"an earlier graph" and list(tmp_path.iterdir()) == [path]
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"'onnxscript' is not installed; pip install 'adasearch\[onnx\]'"):
        export.export_onnx(make_bert(), path)


def make_module(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a module from text under a name of ours."""
    path = folder / f"{name.rpartition('.')[2]}.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


FIRST = '''\
"""The first.

With two paragraphs.
"""

from __future__ import annotations

import math, os.path  # two at once
from collections.abc import Callable
T = 3
squares = [i * i for i in range(3)]


def scale(x: float) -> float:
    """Not a statement: from adasearch.nowhere import nothing"""
    return x * T * math.pi  # kept
'''
SECOND = '''\
"""The second."""
from __future__ import annotations
from typing import TYPE_CHECKING
import math
name = "é"; from adasearch._first import scale as times  # behind two bytes of one letter
from adasearch._first import (
    T as three,
    scale,
)
if TYPE_CHECKING:
    from adasearch.nowhere import Nothing
T = 3
cubes = {i: i**3 for i in range(4)}  # their i is nobody else's
if T > 2:
    for i, j in ((1, 2), (3, 4)): last = i


def twice(x: Nothing) -> float:
    from adasearch._first import scale as again
    if x > 1e9: from adasearch._first import scale
    return again(x) + times(x) + three * math.e - math.e * T
'''


def test_bundled_modules_work_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [
        make_module(tmp_path, "adasearch._first", FIRST, monkeypatch),
        make_module(tmp_path, "adasearch._second", SECOND, monkeypatch),
    ]
    target = tmp_path / "bundle.py"
    bundle.bundle_modelling(modules, target)
    text = target.read_text(encoding="utf-8")
    assert text.count("from __future__") == text.count("import math\n") == 1
    assert "# The first.\n#\n# With two paragraphs.\n" in text and "  # kept" in text
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.modules['adasearch'] = None; "
    program += "import bundle; print(bundle.twice(2.0))"
    answer = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True).stdout
    assert float(answer) == modules[1].twice(2.0)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("def scale(x): return x", "top-level name 'scale' also means something else in adasearch._first"),
        ("from json import dumps as scale", "'scale' also means something else in adasearch._first"),
        ("import json as math", "'math' also means something else in 'import math'"),
        ("math = 3", "'math' also means something else in 'import math'"),
        ("if squares:\n    scale, x = 1, 2", "top-level name 'scale' also means something else in adasearch._first"),
        ("T = 4", "'T' also means something else in adasearch._first"),
        (
            "import adasearch._first",
            "'import adasearch._first' cannot travel; write: from adasearch.MODULE import NAME",
        ),
        ("from .first import scale", "'from .first import scale' cannot travel"),
        ("from adasearch._first import *", "cannot travel"),
        ("from adasearch._first import absent", "'absent' is not defined by what travels"),
    ],
)
def test_what_cannot_be_bundled(second: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [make_module(tmp_path, "adasearch._first", FIRST, monkeypatch)]
    modules.append(make_module(tmp_path, "adasearch._second", "'''Empty.'''", monkeypatch))
    (tmp_path / "_second.py").write_text(f"'''Filled after its import.'''\n{second}\n")
    importlib.import_module("linecache").clearcache()
    with pytest.raises(ModelError, match=message.replace("*", r"\*")):
        bundle.modelling_source(modules)


def make_tokenizer(words: int = 56) -> PreTrainedTokenizerFast:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{index}" for index in range(words))]
    tokenizer = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


USERS_OPERATION = '''
"""An operation of a user's."""
from torch import Tensor
from adasearch.operations import Context, Operation, register_operation

@register_operation("test_doubling")
class Doubling(Operation):
    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        return x_BDL * 2
'''


def test_a_saved_student_loads_bit_equal_with_and_without_adasearch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adasearch.operations.OPERATIONS, "_items", dict(adasearch.operations.OPERATIONS._items))
    make_module(tmp_path, "users_operations", USERS_OPERATION, monkeypatch)
    student = make_student(["conv3", "test_doubling", "soft_alignment"])
    folder = export.save_student(student, make_tokenizer(), tmp_path / "student", card="# A card\n")
    ids = torch.tensor([[2, 8, 9, 3, 11, 3], [2, 59, 3, 0, 0, 0]])
    expected = student(ids).logits
    again = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(again) is AdasearchForSequenceClassification and torch.equal(again(ids).logits, expected)
    assert AutoTokenizer.from_pretrained(folder)("word4 word55")["input_ids"] == [8, 59]
    assert (folder / "README.md").read_text() == "# A card\n" and (folder / "model.safetensors").exists()
    modes = {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir() if file.is_file()}
    assert len(modes) == 1, "weights for their owner alone could be served by nobody else"

    path = export.export_student(folder)
    assert path == folder / "onnx" / "model.onnx" and (path.parent / "tokenizer.json").exists()
    np.testing.assert_allclose(
        OnnxRuntime(path, 1)(ids.numpy(), (ids != 0).long().numpy()), expected.detach().numpy(), atol=1e-5
    )

    assert torch.equal(logits_without_adasearch(folder, ids, tmp_path), expected)


def test_a_loaded_student_that_is_saved_again_takes_its_code_along(tmp_path: Path) -> None:
    """As ``push_to_hub`` saves it, on a machine with adasearch, for one without."""
    student, ids = make_student(["conv3"]), torch.tensor([[2, 5, 6, 3]])
    folder = export.save_student(student, make_tokenizer(), tmp_path / "student")
    again = AutoModelForSequenceClassification.from_pretrained(folder)
    again.save_pretrained(tmp_path / "again")
    again.save_pretrained(folder)  # on itself
    assert (folder / export.MODELLING_FILE).read_text() == (tmp_path / "again" / export.MODELLING_FILE).read_text() != ""
    assert torch.equal(logits_without_adasearch(tmp_path / "again", ids, tmp_path), student(ids).logits)

    (folder / export.MODELLING_FILE).unlink()
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path / "bare")
    assert "auto_map" not in json.loads((tmp_path / "bare" / "config.json").read_text()), "names no file that is not there"
    assert torch.equal(AutoModelForSequenceClassification.from_pretrained(tmp_path / "bare")(ids).logits, student(ids).logits)


@pytest.mark.parametrize("make", [lambda: make_student(["conv3"]), make_bert], ids=["searched", "compressed"])
def test_the_cards_program_for_onnxruntime_alone_runs_as_it_stands(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    """A BERT's graph wants segment ids, too; a searched student's does not."""
    folder = export.save_student(make(), make_tokenizer(), tmp_path / "student")
    export.export_student(folder)
    snippet = next(snippet for snippet in usage(str(folder), make_report()) if "onnxruntime alone" in snippet.title)
    names: dict[str, object] = {}
    exec(snippet.code, names)  # the program that the card shows
    text = AutoTokenizer.from_pretrained(folder)("...", return_tensors="pt")
    expected = AutoModelForSequenceClassification.from_pretrained(folder).eval()(text["input_ids"], text["attention_mask"]).logits
    np.testing.assert_allclose(names["logits"], expected.detach().numpy(), atol=1e-5)


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Let the system refuse larger files, as a full disk does."""
    resource = pytest.importorskip("resource", reason="Unix has it")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_student_is_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    first, second = make_student(["conv3"]), make_student(["skip"])
    folder = export.save_student(first, None, tmp_path / "student")
    (folder / "onnx").mkdir()  # the old student's graph must not be taken for the new one's
    for tokenizer, size_bytes in (
        (None, 4_000),
        (make_tokenizer(words=9_000), 60_000),
    ):  # weights, tokenizer do not fit
        message = r"student: cannot be written \(.*too large.*\); what was saved before is intact"
        with largest_file(size_bytes), pytest.raises(TrainingError, match=message):
            export.save_student(second, tokenizer, folder)
        assert list(tmp_path.iterdir()) == [folder]
    ids = torch.tensor([[2, 8, 9, 3]])
    assert torch.equal(AutoModelForSequenceClassification.from_pretrained(folder)(ids).logits, first(ids).logits)
    export.save_student(second, None, folder)
    assert torch.equal(AutoModelForSequenceClassification.from_pretrained(folder)(ids).logits, second(ids).logits)
    assert list(tmp_path.iterdir()) == [folder] and not (folder / "onnx").exists()


@pytest.mark.parametrize("limit", [4, 5, 6])
def test_a_model_of_very_short_texts_is_exported(limit: int, tmp_path: Path) -> None:
    """The length that a graph is traced with is no longer than its texts may be."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=60, max_position_embeddings=limit, **shape)).eval()
    path = export.export_onnx(model, tmp_path / "model.onnx")
    batch = trace.example_inputs(model, batch=2, length=limit)
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
    found = OnnxRuntime(path, 1, "fp32", 60)(**{name: tensor.numpy() for name, tensor in batch.items()})
    np.testing.assert_allclose(found, expected, atol=1e-5)
