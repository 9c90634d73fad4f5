"""A trained classifier as files: the student's folder, its ONNX graph checked against torch.

Dimensions: B batch, L tokens, C labels.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adasearch.bundle import bundle_modelling, modelling_modules
from adasearch.errors import ModelError, TrainingError, one_line
from adasearch.files import read_json, refuse_full_disk, sync, write_json, write_text
from adasearch.graph_runtimes import VOCABULARY_KEY, WEIGHTS_KEY, weights_of
from adasearch.model_inputs import limited_tokenizer, positions_of
from adasearch.runtime_base import require_onnx
from adasearch.runtimes import ONNX_FILES, OnnxRuntime, load_classifier
from adasearch.trace import Logits, example_inputs, input_names, trace

MODELLING_FILE = "modeling_adasearch.py"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "spm.model",
    "tokenizer.model", "bpe.codes",
)  # fmt: skip
ONE_FILE_BYTES = 2_000_000_000  # a protobuf message ends at 2 GiB: larger weights lie beside the graph
LONGEST_CHECK = 512  # tokens of the longest text tried where the model itself sets no limit


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


def export_onnx(model: PreTrainedModel, path: Path, *, length: int = 7, weights: str | None = None) -> Path:
    """Write the model's logits as an ONNX graph of ``input_ids``, ``attention_mask`` (and ``token_type_ids``).

    Inputs are (B, L) int64, the output "logits" is (B, C). Batch and length stay free; ``length`` is only what it is
    traced with. ``weights`` is the fingerprint (``weights_of``) of the folder that the model was read from, if any: whoever
    loads the graph can tell when others lie there. One file below 2 GB, else the weights lie in ``<name>.data``. The model
    must be on the processor; it is exported in eval mode and left as it was. Raises ``ConfigError`` when the exporter is not installed,
    ``ModelError`` when the model does something it cannot express, ``TrainingError`` when the disk is full.
    """
    require_onnx("export", "onnx", "onnxscript")
    names = input_names(model)
    try:
        with _quiet(), torch.no_grad():
            program = trace(model, length)
            onnx_program = torch.onnx.export(
                program, (), None, input_names=list(names), output_names=["logits"], dynamo=True, verbose=False,
                dynamic_shapes=(tuple({0: "batch", 1: "length"} for _ in names),),
            )  # fmt: skip
            onnx_program.model.metadata_props[VOCABULARY_KEY] = str(model.config.vocab_size)
            if weights is not None:
                onnx_program.model.metadata_props[WEIGHTS_KEY] = weights
            weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
            with staged(path) as partial:
                onnx_program.save(str(partial), external_data=weight_bytes >= ONE_FILE_BYTES)
    except OSError as error:
        raise TrainingError(
            f"{path}: cannot be written ({error.strerror or error}); what was saved before is intact"
        ) from error
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        raise ModelError(
            f"{path}: {type(model).__name__} cannot be exported to ONNX ({one_line(error, 600)})"
        ) from error
    return path


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A file of that name in a temporary folder beside it, moved into place with whatever lies there if all goes well.

    The named file goes last: a graph is never without the weights beside it.
    """
    folder = path.parent / f".{path.name}.partial"
    shutil.rmtree(folder, ignore_errors=True)  # left there by a kill
    folder.mkdir(parents=True)
    try:
        yield folder / path.name
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            sync(file)
            os.replace(file, path.parent / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_onnx(model: PreTrainedModel, path: Path, *, tolerance: float = 1e-4) -> float:
    """Compare the graph with torch on texts short and long, alone and padded; returns the logits' largest difference.

    ``tolerance`` is absolute, and relative where logits exceed 1. Raises ``ModelError`` naming shape and difference.
    """
    runtime = OnnxRuntime(path, threads=1)
    longest = min(positions_of(model.config) or LONGEST_CHECK, LONGEST_CHECK)
    shapes = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 17), (2, longest)]
    names, was_training, worst = input_names(model), model.training, 0.0
    wrapper = Logits(model, names).eval()
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
    weights, model = weights_of(student_dir), load_classifier(student_dir)
    path = student_dir / "onnx" / ONNX_FILES["fp32"]
    with staged(path) as partial:
        check_onnx(model, export_onnx(model, partial, weights=weights))
    copy_tokenizer(student_dir)
    return path


def copy_tokenizer(student_dir: Path) -> None:
    """Put the tokenizer's files of a folder beside its graphs, which travel without the rest."""
    for name in TOKENIZER_FILES:
        if (student_dir / name).is_file() and not (student_dir / "onnx" / name).exists():
            shutil.copyfile(student_dir / name, student_dir / "onnx" / name)


def save_student(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, card: str | None = None
) -> Path:
    """Write a student's or an encoder's folder whole: config, safetensors, tokenizer, card, modelling file; returns it.

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
            served = limited_tokenizer(tokenizer, positions_of(model.config))
            served.padding_side = "right"  # as it learned and was scored, whatever side its teacher pads
            served.save_pretrained(partial)
        bundle_modelling(modelling_modules(model), partial / MODELLING_FILE)
        module = MODELLING_FILE.removesuffix(".py")
        auto_map = {"AutoConfig": f"{module}.{type(model.config).__name__}",
                    f"AutoModelFor{type(model).__name__.rpartition('For')[2]}": f"{module}.{type(model).__name__}"}  # fmt: skip
        write_json(partial / "config.json", {**read_json(partial / "config.json"), "auto_map": auto_map})
        if card is not None:
            write_text(partial / "README.md", card)
        for file in partial.rglob("*"):
            if file.is_file():
                shutil.copymode(partial / "config.json", file)  # safetensors are written for their owner alone; another user may serve them
                sync(file)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        refuse_full_disk(folder, error)
        raise
    finally:
        if old.exists() and not folder.exists():  # the second rename failed
            os.replace(old, folder)
        shutil.rmtree(partial, ignore_errors=True)
    return folder
