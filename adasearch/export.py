"""A trained classifier as files: the student's folder, its ONNX graph checked against torch, its modelling code.

Dimensions: B batch, L tokens, C labels.
"""

from __future__ import annotations

import ast
import inspect
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adasearch.errors import ConfigError, ModelError, TrainingError
from adasearch.files import read_json, write_json, write_text
from adasearch.runtimes import ONNX_FILES, OnnxRuntime, load_classifier, one_line, uses_token_types

MODELLING_FILE = "modeling_adasearch.py"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "spm.model",
    "tokenizer.model", "bpe.codes",
)  # fmt: skip
ONE_FILE_BYTES = 2_000_000_000  # a protobuf message ends at 2 GiB: larger weights lie beside the graph
LONGEST_CHECK = 512  # tokens of the longest text tried where the model itself sets no limit


class _Exportable(TorchFunctionMode):
    """While tracing, says what the exporter or onnxruntime cannot take in terms that they can, with equal values.

    ``max_pool1d`` fixes the length it was traced with (torch 2.13), ``max_pool2d`` does not; onnxruntime has no
    ``Where`` on booleans. Operations, our users' too, are thus written as anybody would write them.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.max_pool1d, torch.max_pool1d) and not kwargs.get("return_indices"):
            return _max_pool1d(*args, **kwargs)
        if func in (torch.where, Tensor.where) and len(args) == 3:
            condition, yes, no = (args[1], args[0], args[2]) if func is Tensor.where else args
            if all(isinstance(value, Tensor) and value.dtype == torch.bool for value in (yes, no)):
                return (condition & yes) | (~condition & no)
        return func(*args, **kwargs)


def _max_pool1d(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:  # fmt: skip
    def flat(value: Any) -> tuple[int, int]:
        return 1, value[0] if isinstance(value, (tuple, list)) else value

    steps = flat(kernel_size if stride in (None, (), []) else stride)
    sides = (0, flat(padding)[1])
    return F.max_pool2d(x.unsqueeze(-2), flat(kernel_size), steps, sides, flat(dilation), ceil_mode).squeeze(-2)


class _Logits(nn.Module):
    """A classifier as a function of tensors alone."""

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names
        takes_cache = "use_cache" in inspect.signature(model.forward).parameters
        self.settings = {"use_cache": False} if takes_cache else {}

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs)), return_dict=True, **self.settings).logits


def input_names(model: PreTrainedModel) -> tuple[str, ...]:
    """What the ONNX graph takes: ids, mask, and token types where the model has embeddings for them."""
    return ("input_ids", "attention_mask", *(("token_type_ids",) if uses_token_types(model) else ()))


def longest_input(model: PreTrainedModel) -> int | None:
    """The most tokens the model has positions for; None where it sets no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if not limit or limit < 0:
        return None
    for name, module in model.named_modules():  # RoBERTa and its kin number positions from padding_idx + 1
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return limit - module.padding_idx - 1
    return limit


def example_inputs(model: PreTrainedModel, batch: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Random texts (B, L) by input name, with a separator in the middle; the first of several is padded by half."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    input_ids = torch.randint(0, config.vocab_size, (batch, length), generator=generator)
    pad_token_id = config.pad_token_id if getattr(config, "pad_token_id", None) is not None else 0
    input_ids[input_ids == pad_token_id] = (
        pad_token_id + 1 if pad_token_id + 1 < config.vocab_size else pad_token_id - 1
    )
    middle = length // 3
    separator = next(
        (i for i in (getattr(config, key, None) for key in ("sep_token_id", "eos_token_id")) if isinstance(i, int)),
        None,
    )
    if separator is not None and length > 2:
        input_ids[:, middle] = separator
    mask = torch.ones_like(input_ids)
    if batch > 1 and length > 1:
        mask[0, (length + 1) // 2 :] = 0
        input_ids[0, (length + 1) // 2 :] = pad_token_id
    types = (torch.arange(length) > middle).long().expand(batch, length).contiguous() * mask
    return {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes of its own insides; errors come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def export_onnx(model: PreTrainedModel, path: Path, *, length: int = 7) -> Path:
    """Write the model's logits as an ONNX graph of ``input_ids``, ``attention_mask`` (and ``token_type_ids``).

    Inputs are (B, L) int64, the output "logits" is (B, C). Batch and length stay free; ``length`` is only what it is
    traced with. One file below 2 GB, else the weights lie in ``<name>.data``. The model must be on the processor; it
    is exported in eval mode and left as it was. Raises ``ConfigError`` when the exporter is not installed,
    ``ModelError`` when the model does something it cannot express, ``TrainingError`` when the disk is full.
    """
    _require_exporter()
    names, was_training = input_names(model), model.training
    wrapper = _Logits(model, names).eval()
    examples = example_inputs(model, batch=2, length=length)
    limit = longest_input(model)
    free = {
        0: torch.export.Dim("batch"),
        1: torch.export.Dim("length", max=limit) if limit else torch.export.Dim("length"),
    }
    try:
        with _quiet(), torch.no_grad():
            with _Exportable():
                # Guards as run-time assertions: "length - 1 != 1" would otherwise refuse lengths that compute the same.
                program = torch.export.export(
                    wrapper, tuple(examples[name] for name in names), dynamic_shapes=(tuple(free for _ in names),),
                    strict=False, prefer_deferred_runtime_asserts_over_guards=True,
                )  # fmt: skip
            onnx_program = torch.onnx.export(
                program, (), None, input_names=list(names), output_names=["logits"], dynamo=True, verbose=False,
                dynamic_shapes=(tuple({0: "batch", 1: "length"} for _ in names),),
            )  # fmt: skip
            weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
            with _staged(path) as partial:
                onnx_program.save(str(partial), external_data=weight_bytes >= ONE_FILE_BYTES)
    except OSError as error:
        raise TrainingError(
            f"{path}: cannot be written ({error.strerror or error}); what was saved before is intact"
        ) from error
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        raise ModelError(
            f"{path}: {type(model).__name__} cannot be exported to ONNX ({one_line(error)[:600]})"
        ) from error
    finally:
        model.train(was_training)
    return path


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """A file of that name in a temporary folder beside it, moved into place with whatever lies there if all goes well.

    The named file goes last: a graph is never without the weights beside it.
    """
    folder = path.parent / f".{path.name}.partial"
    shutil.rmtree(folder, ignore_errors=True)  # left there by a kill
    folder.mkdir(parents=True)
    try:
        yield folder / path.name
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            _sync(file)
            os.replace(file, path.parent / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(file: Path) -> None:
    with open(file, "rb+") as stream:
        os.fsync(stream.fileno())


def _require_exporter() -> None:
    for package in ("onnx", "onnxscript"):
        try:
            __import__(package)
        except ImportError as error:
            raise ConfigError(f"export: {package!r} is not installed; pip install 'adasearch[onnx]'") from error


def check_onnx(model: PreTrainedModel, path: Path, *, tolerance: float = 1e-4) -> float:
    """Compare the graph with torch on texts short and long, alone and padded; returns the logits' largest difference.

    ``tolerance`` is absolute, and relative where logits exceed 1. Raises ``ModelError`` naming shape and difference.
    """
    runtime = OnnxRuntime(path, threads=1)
    longest = min(longest_input(model) or LONGEST_CHECK, LONGEST_CHECK)
    shapes = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 17), (2, longest)]
    names, was_training, worst = input_names(model), model.training, 0.0
    wrapper = _Logits(model, names).eval()
    try:
        for batch, length in shapes:
            if length > longest:
                continue
            inputs = example_inputs(model, batch, length, seed=length)
            with torch.inference_mode():
                expected_BC = wrapper(*(inputs[name] for name in names)).float().numpy()
            try:
                found_BC = runtime(*(inputs[name].numpy() for name in names))
            except Exception as error:  # onnxruntime's own exceptions have no other common base
                raise ModelError(f"{path}: fails on batch {batch} x length {length} ({one_line(error)})") from error
            difference = (
                float(abs(expected_BC - found_BC).max()) if expected_BC.shape == found_BC.shape else float("nan")
            )
            if not difference <= tolerance * max(1.0, float(abs(expected_BC).max())):  # also when it is NaN
                raise ModelError(
                    f"{path}: differs from torch by {difference:.3g} on batch {batch} x length {length}; "
                    f"allowed: {tolerance:g}"
                )
            worst = max(worst, difference)
    finally:
        model.train(was_training)
    return worst


def export_student(student_dir: Path) -> Path:
    """Write and check ``<student_dir>/onnx/model.onnx`` and put the tokenizer's files beside it; returns its path.

    Any folder with a sequence classifier will do. A graph that fails its check does not replace an earlier one.
    Raises ``ModelError``, ``ConfigError`` (exporter or onnxruntime missing) or ``TrainingError`` (full disk).
    """
    student_dir = Path(student_dir)
    model = load_classifier(student_dir)
    path = student_dir / "onnx" / ONNX_FILES["fp32"]
    with _staged(path) as partial:
        check_onnx(model, export_onnx(model, partial))
    for name in TOKENIZER_FILES:
        if (student_dir / name).is_file() and not (path.parent / name).exists():
            shutil.copyfile(student_dir / name, path.parent / name)
    return path


def save_student(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, card: str | None = None
) -> Path:
    """Write the student's folder whole: config, safetensors, tokenizer, model card and modelling file; returns it.

    Where adasearch is not installed it loads with ``trust_remote_code=True``, through ``modeling_adasearch.py``. It is
    filled beside its place and renamed: a kill leaves the old folder or the new one (between two renames, when
    there was an old one, neither at its place and both beside it). Raises ``TrainingError`` when the disk is full.
    """
    folder = Path(folder)
    partial, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        bundle_modelling(modelling_modules(model), partial / MODELLING_FILE)
        module = MODELLING_FILE.removesuffix(".py")
        auto_map = {"AutoConfig": f"{module}.{type(model.config).__name__}",
                    "AutoModelForSequenceClassification": f"{module}.{type(model).__name__}"}  # fmt: skip
        write_json(partial / "config.json", {**read_json(partial / "config.json"), "auto_map": auto_map})
        if card is not None:
            write_text(partial / "README.md", card)
        for file in partial.rglob("*"):
            if file.is_file():
                _sync(file)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:  # safetensors and tokenizers say "(os error 28)" in exceptions of their own
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        raise TrainingError(
            f"{folder}: cannot be written ({getattr(error, 'strerror', None) or error}); "
            "what was saved before is intact"
        ) from error
    finally:
        if old.exists() and not folder.exists():  # the second rename failed
            os.replace(old, folder)
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def modelling_modules(model: nn.Module) -> list[ModuleType]:
    """The modules of ours and of the user's operations that the model's classes need; what others import comes first.

    The user's are those that import adasearch. ``modelling_source(modelling_modules(student))`` of an untrained student
    tells before the work begins whether it can be saved. Raises ``ModelError`` when a module cannot travel.
    """
    ordered: dict[str, ModuleType] = {}
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name not in seen:
            seen.add(name)
            for node in _own_imports(name, ast.parse(_source(sys.modules[name]))):
                if (
                    node.module != "adasearch"
                ):  # names taken from the package itself are found in the modules they are of
                    visit(str(node.module))
            ordered[name] = sys.modules[name]

    roots = {cls.__module__ for part in model.modules() for cls in type(part).__mro__} - {"builtins"}
    for root in sorted(roots, key=lambda name: (not _is_ours(name), name)):  # theirs lean on ours
        if root == "__main__" or _is_ours(root) or "adasearch" in _source(sys.modules[root]):
            visit(root)
    return list(ordered.values())


def modelling_source(modules: Sequence[ModuleType]) -> str:
    """The modules as one Python file that does not need adasearch; modules come after those they import from.

    Imports are merged at the top, module docstrings become comments, everything else stays as written. Raises
    ``ModelError`` when two modules give one name two meanings, or one imports from adasearch what none of them defines.
    """
    imports: dict[str, str] = {}  # name -> the import that binds it
    owners: dict[str, tuple[str, list[str]]] = {}  # name -> module and statements that define it
    parts: list[str] = []

    def define(name: str, module: str, statements: list[str]) -> None:
        owner, known = owners.get(name, (module, statements))
        is_same = owner == module or known == statements and " = " in statements[0]  # equal constants do not quarrel
        if name in imports or not is_same and not name.startswith("__"):
            where = owner if name not in imports else repr(imports[name])
            raise ModelError(
                f"{module}: top-level name {name!r} also means something else in {where}; rename one of them"
            )
        owners[name] = (owner, known)

    for module in modules:
        source, where = _source(module), module.__name__
        tree = ast.parse(source)
        edits: list[tuple[ast.stmt, str]] = []
        statements: dict[str, list[str]] = {}
        for node in _own_imports(where, tree):
            for alias in node.names:
                if alias.name not in owners:
                    raise ModelError(
                        f"{where}: line {node.lineno}: {alias.name!r} is not defined by what travels with the student"
                    )
            renamed = [
                f"{alias.asname} = {alias.name}" for alias in node.names if alias.asname not in (None, alias.name)
            ]
            if node in tree.body:
                statements.update({line.split(" = ")[0]: [line] for line in renamed})
            edits.append((node, "; ".join(renamed) or ("" if node in tree.body else "pass")))
        own = {node for node, _ in edits}
        for node in tree.body:
            if node is tree.body[0] and ast.get_docstring(tree) is not None:
                edits.append((node, "\n".join(f"# {line}".rstrip() for line in ast.get_docstring(tree).splitlines())))
            elif _is_type_checking(node):
                edits.append((node, ""))
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                if node not in own:
                    edits.append((node, ""))
                    _collect_import(where, node, imports, owners)
            else:
                text = ast.unparse(node)
                for name in _defined(node):
                    statements.setdefault(name, []).append(text)
        for name, lines in statements.items():
            define(name, where, lines)
        parts.append(f"# {f' {where} ':-^100}\n{_edit(source, edits).strip()}")
    header = (
        "# The model of this folder in one file, made from its modules; adasearch itself is not needed. Apache-2.0.\n"
    )
    grouped: dict[str, list[str]] = {}
    for line in sorted(set(imports.values()), key=lambda line: (line.startswith("from"), line)):
        start, _, name = line.rpartition(" import ")
        grouped.setdefault(f"{start} import " if start else line, []).append(name if start else "")
    ordered = [start + ", ".join(names) for start, names in grouped.items()]
    return (
        "\n".join([header, "from __future__ import annotations", "", *ordered, ""])
        + "\n\n"
        + "\n\n\n".join(parts)
        + "\n"
    )


def bundle_modelling(modules: Sequence[ModuleType], path: Path) -> None:
    """Write ``modelling_source`` to a file. Raises ``ModelError`` as it does."""
    source = modelling_source(modules)
    compile(source, path.name, "exec")
    write_text(path, source)


def _is_ours(name: str | None) -> bool:
    return (name or "").partition(".")[0] == "adasearch"


def _defined(node: ast.AST) -> set[str]:
    """Names that a top-level statement binds in its module; imports are not counted."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        return set()  # what they bind is their own
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return {node.id}
    return {name for child in ast.iter_child_nodes(node) for name in _defined(child)}


def _is_type_checking(node: ast.AST) -> bool:
    """Whether it is an ``if TYPE_CHECKING:``, which never runs."""
    return isinstance(node, ast.If) and not node.orelse and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _source(module: ModuleType) -> str:
    if module.__name__ == "__main__":
        raise ModelError(
            "__main__: an operation is defined in the script itself; put it into a module that the script imports"
        )
    try:
        return inspect.getsource(module)
    except (OSError, TypeError) as error:
        raise ModelError(
            f"{module.__name__}: its source cannot be read, so it cannot travel with the student"
        ) from error


def _own_imports(where: str, tree: ast.AST) -> list[ast.ImportFrom]:
    """``from adasearch... import`` statements that may run, wherever they stand; ``ModelError`` for other forms."""
    found: list[ast.ImportFrom] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import) and any(_is_ours(alias.name) for alias in node.names):
            raise ModelError(
                f"{where}: line {node.lineno}: {ast.unparse(node)!r} cannot travel; "
                "write: from adasearch.MODULE import NAME"
            )
        if isinstance(node, ast.ImportFrom) and (node.level or any(alias.name == "*" for alias in node.names)):
            raise ModelError(
                f"{where}: line {node.lineno}: {ast.unparse(node)!r} cannot travel; write: from MODULE import NAME"
            )
        if isinstance(node, ast.ImportFrom) and _is_ours(node.module):
            found.append(node)
        elif not _is_type_checking(node):
            found += _own_imports(where, node)
    return found


def _collect_import(
    where: str, node: ast.Import | ast.ImportFrom, imports: dict[str, str], owners: dict[str, tuple[str, list[str]]]
) -> None:
    """Note what a top-level import binds. Raises ``ModelError`` when the name is taken by something else."""
    if isinstance(node, ast.ImportFrom) and node.module == "__future__":
        return
    start = f"from {node.module} import" if isinstance(node, ast.ImportFrom) else "import"
    for alias in node.names:
        line = f"{start} {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
        bound = alias.asname or (alias.name if isinstance(node, ast.ImportFrom) else alias.name.partition(".")[0])
        key = (
            alias.name if isinstance(node, ast.Import) and not alias.asname else bound
        )  # import a.b and a.c both bind a
        other = owners[bound][0] if bound in owners else repr(imports[key]) if imports.get(key, line) != line else None
        if other is not None:
            raise ModelError(
                f"{where}: {line!r}: top-level name {bound!r} also means something else in {other}; rename one of them"
            )
        imports[key] = line


def _edit(source: str, edits: Sequence[tuple[ast.stmt, str]]) -> str:
    """The source with statements replaced; one that becomes nothing takes its lines along if it is alone on them."""
    data = source.encode()  # columns of the syntax tree count bytes
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node, text in sorted(edits, key=lambda edit: (edit[0].lineno, edit[0].col_offset), reverse=True):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        rest = data[end : starts[node.end_lineno]].strip()
        if not text and node.col_offset == 0 and (not rest or rest.startswith(b"#")):
            end = starts[node.end_lineno]
        data = data[:begin] + (text or ("" if end == starts[node.end_lineno] else "pass")).encode() + data[end:]
    return data.decode()
