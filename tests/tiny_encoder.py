"""Tiny Hugging Face models of every family our encoder is made of, a batch for them, and gate values of every sort.

Dimensions: B batch, L tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig, BertForQuestionAnswering, BertForSequenceClassification, DistilBertConfig, DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification, PreTrainedModel, RobertaConfig, RobertaForQuestionAnswering, RobertaForSequenceClassification,
)  # fmt: skip

from adasearch.encoder import EncoderPreTrainedModel, axes_of, from_hugging_face
from adasearch.structure import GateValues

VOCAB, LAYERS, HEADS, HIDDEN, NEURONS = 60, 2, 4, 16, 24
FAMILIES = ("bert", "distilbert", "roberta")
TASKS = {
    "single_label": {"num_labels": 3, "problem_type": "single_label_classification"},
    "multi_label": {"num_labels": 3, "problem_type": "multi_label_classification"},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "question_answering": {},
}
CLASSES = {
    "bert": (BertConfig, BertForSequenceClassification, BertForQuestionAnswering),
    "distilbert": (DistilBertConfig, DistilBertForSequenceClassification, DistilBertForQuestionAnswering),
    "roberta": (RobertaConfig, RobertaForSequenceClassification, RobertaForQuestionAnswering),
}


def make_model(family: str = "bert", task: str = "single_label", **changes: Any) -> PreTrainedModel:
    """A model of two layers in eval mode, random in every parameter, LayerNorms and biases too."""
    config_class, classifier, reader = CLASSES[family]
    settings: dict[str, Any] = {"vocab_size": VOCAB, "max_position_embeddings": 30, **TASKS[task]}
    if family == "distilbert":
        settings |= {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": NEURONS}
    else:
        settings |= {
            "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": NEURONS,
            "layer_norm_eps": 1e-5,
        }  # fmt: skip
    if family == "roberta":
        settings |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
    model = (reader if task == "question_answering" else classifier)(config_class(**{**settings, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0.1
    return model.eval()


def make_encoder(family: str = "bert", task: str = "single_label", **changes: Any) -> EncoderPreTrainedModel:
    """Our encoder of such a model."""
    return from_hugging_face(make_model(family, task, **changes))


def batch_for(model: PreTrainedModel, task: str = "single_label", with_types: bool = True) -> dict[str, Tensor]:
    """Three texts of 9 tokens, the first padded by four, token types where the model has two, and labels."""
    ids_BL = torch.randint(3, VOCAB, (3, 9))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[0, 5:] = 0
    ids_BL[0, 5:] = model.config.pad_token_id
    batch = {"input_ids": ids_BL, "attention_mask": mask_BL}
    if with_types and getattr(model.config, "type_vocab_size", 0) > 1:
        batch["token_type_ids"] = (torch.arange(9) > 3).long() * mask_BL
    labels = {
        "single_label": {"labels": torch.tensor([0, 2, 1])}, "multi_label": {"labels": (torch.rand(3, 3) > 0.5).float()},
        "regression": {"labels": torch.randn(3)},
        "question_answering": {"start_positions": torch.tensor([1, 2, 30]), "end_positions": torch.tensor([4, 8, 5])},
    }  # fmt: skip
    return batch | labels[task]


def forward(model: PreTrainedModel, batch: dict[str, Tensor], **inputs: Any) -> Any:
    """A model's output for texts without token types."""
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **inputs)


def answer(model: PreTrainedModel, batch: dict[str, Tensor], **more: Any) -> Tensor:
    """Logits, or start and end logits one above the other."""
    output = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}, **more)
    return output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], -1)


def soft(values: GateValues, zeros: float) -> GateValues:
    """Random values between 0.5 and 2 in place of the given, a share of them exactly 0; no family all 0 by chance of few."""
    return values.map(lambda tensor: (0.5 + 1.5 * torch.rand_like(tensor)) * (torch.rand_like(tensor) >= zeros))


def every_gate(model: EncoderPreTrainedModel) -> dict[str, GateValues]:
    """Settings that together touch every rule: each family alone and all, soft, with holes, nothing left of sublayers."""
    axes = axes_of(model)

    def ones() -> GateValues:
        return axes.ones()

    found = {"ones": ones(), "all soft": soft(ones(), 0.0), "all with holes": soft(ones(), 0.4)}
    for family in ("heads", "neurons", "hidden"):
        found[f"{family} soft"] = soft(axes.ones([family]), 0.0)
        found[f"{family} with holes"] = soft(axes.ones([family]), 0.5)
    found["sublayers soft"] = soft(axes.ones(["layers"]), 0.0)
    values = soft(ones(), 0.3)
    values.mha_N = torch.tensor([0.0, 0.7])
    values.ffn_N = torch.tensor([1.3, 0.0])
    found["one sublayer of each kind"] = values
    values = soft(axes.ones(["heads", "hidden"]), 0.3)
    values.heads[1] = torch.zeros(HEADS)
    found["no head in a layer"] = values
    values = soft(ones(), 0.3)
    values.neurons[0], values.ffn_N = torch.zeros(NEURONS), torch.tensor([0.8, 1.2])
    found["no neuron under an open gate"] = values
    values = soft(ones(), 0.3)
    values.mha_N[0] = values.ffn_N[0] = 0.0
    found["a whole layer gone"] = values
    values = soft(axes.ones(["layers", "hidden"]), 0.3)
    values.mha_N, values.ffn_N = torch.zeros(LAYERS), torch.zeros(LAYERS)
    found["no layer at all"] = values
    values = soft(ones(), 0.3)
    values.hidden_D = torch.zeros(HIDDEN)
    values.hidden_D[[2, 7]] = torch.tensor([0.6, 1.4])
    found["two hidden dimensions"] = values
    return found
