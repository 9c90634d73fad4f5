"""How models of Prune Once for All are kept: zeros and rounded weights in float32, a file of few bytes, graphs.

    config.json model.safetensors   as Hugging Face loads it
    sparse/                         the file of few bytes; computes the same as what was scored
    onnx/                           model.onnx in float32, or model_int8.onnx with the scales that were trained
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from adasearch.encoder_layers import EncoderPreTrainedModel
from adasearch.encoder_problem import EncoderProblem
from adasearch.encoder_training import Form
from adasearch.errors import ModelError
from adasearch.export import export_student, save_student
from adasearch.files import write_folder
from adasearch.graph_runtimes import OnnxRuntime
from adasearch.prune_ofa_config import PruneOfaTaskConfig
from adasearch.qdq_export import SPARSE, export_trained, has_packages, zeros_of
from adasearch.quantize_aware import bake_int8, stacked_layers
from adasearch.sparse_files import SparseModel, save_sparse
from adasearch.sparse_size import sparse_size
from adasearch.teaching import predictions


@dataclass(frozen=True)
class SparseForm(Form):
    """Plain float32 weights, zeros among them, and the small file."""

    config: PruneOfaTaskConfig
    is_sparse: bool = True

    @property
    def has_graphs(self) -> bool:
        """Whether graphs are written."""
        return self.config.export and has_packages()

    def save(self, model: PreTrainedModel, problem: EncoderProblem, folder: Path, logits: np.ndarray) -> dict[str, Any]:
        """Folder, small file and graph; ``size`` says what the file takes."""
        save_student(model, problem.own_tokenizer, folder)
        facts = {"size": self._save_small(model, problem, folder)}
        if self.has_graphs:
            export_student(folder)
        return facts

    def sparsity(self, problem: EncoderProblem, model: PreTrainedModel) -> float:
        """Share of the unpruned encoder's weights in its layers' linear maps that are 0 or cut off; of a searched student, and of a
        dense model, which may be of another size, of its own."""
        weights = [model.get_submodule(name).weight for name in stacked_layers(model)]
        whole = sum(weight.numel() for weight in weights)
        if self.is_sparse and isinstance(model, EncoderPreTrainedModel):
            full = problem.whole_config
            heads, neurons = full.head_size * sum(full.heads), sum(full.neurons)
            whole = full.hidden_size * (4 * heads + 2 * neurons)
        return 1 - sum(int(weight.count_nonzero()) for weight in weights) / whole

    def columns(self, facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Sizes of the first seed's file; the graph's agreement with what was scored, the least of all seeds, and its scores, their mean."""
        size, agreed = facts[0]["size"], [fact["agreement"] for fact in facts if "agreement" in fact]
        scores = [fact["graph_scores"] for fact in facts if "graph_scores" in fact]
        graph = {name: mean(found[name] for found in scores) for name in scores[0]} if scores else {}
        return {"size_ratios": size["ratios"], "sparse_bytes": size["file_bytes"], "agreement": min(agreed, default=None), "graph_scores": graph}

    def _save_small(self, model: PreTrainedModel, problem: EncoderProblem, folder: Path) -> dict[str, Any]:
        """``sparse/`` of the folder, read back: its size. Raises ``ModelError`` when it computes something else."""

        def fill(partial: Path) -> None:
            save_sparse(model, partial, format=self.config.format, compression=self.config.compression)
            problem.own_tokenizer.save_pretrained(partial)

        write_folder(folder / SPARSE, fill)
        batch = problem.held_out.collate([0])
        with torch.inference_mode():
            own, read = (predictions(problem.forward(one, batch)) for one in (model, SparseModel.from_pretrained(folder / SPARSE)))
        if not torch.equal(own, read):
            raise ModelError(f"{folder / SPARSE}: read back, its logits differ by {float((own - read).abs().max()):.3g}; this is a bug")
        return sparse_size(folder / SPARSE).to_dict()


@dataclass(frozen=True)
class Int8Form(SparseForm):
    """int8 weights and activations: quantisers while it trains, rounded float32 weights in the folder, integers in file and graph."""

    precision = "int8"

    def save(self, model: PreTrainedModel, problem: EncoderProblem, folder: Path, logits: np.ndarray) -> dict[str, Any]:
        """The same with the int8 graph: ``agreement`` is the share of the held-out examples on which it predicts as the model
        did, whose ``logits`` these are, ``graph_scores`` its own metrics."""
        plain = copy.deepcopy(model)
        bake_int8(plain, {"bits": 8, "per": self.config.int8.per})
        save_student(plain, problem.own_tokenizer, folder)
        facts: dict[str, Any] = {"size": self._save_small(model, problem, folder)}
        if self.has_graphs:
            graph = export_trained(folder)
            found = problem.graph_logits(OnnxRuntime(graph, 1, "int8", model.config.vocab_size), problem.held_out)
            facts["graph_zeros"], facts["graph_weights"] = zeros_of(graph)
            facts["agreement"] = problem.agreement(logits, found, problem.held_out)
            facts["graph_scores"] = problem.scores_of(found, problem.held_out)
        return facts

    def answering(self, problem: EncoderProblem, folder: Path) -> PreTrainedModel:
        """The small file's model: it rounds activations, too."""
        return SparseModel.from_pretrained(folder / SPARSE)
