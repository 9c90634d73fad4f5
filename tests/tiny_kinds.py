"""A tiny model of every kind that becomes int8: the families of transformers, our encoder, a searched student."""

from __future__ import annotations

import torch
from tiny import tiny_architecture, tiny_config
from tiny_encoder import make_model
from torch import Tensor
from transformers import PreTrainedModel

from adasearch.encoder import from_hugging_face
from adasearch.student import AdasearchForSequenceClassification

KINDS = ("bert", "distilbert", "roberta", "ours", "student")


def a_model(kind: str) -> PreTrainedModel:
    torch.manual_seed(3)
    if kind == "student":
        model = AdasearchForSequenceClassification(tiny_config(tiny_architecture(), embedding_rank=None))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()
    model = make_model("bert" if kind == "ours" else kind)
    return (from_hugging_face(model) if kind == "ours" else model).eval()


def inputs(kind: str, count: int = 6) -> dict[str, Tensor]:
    ids = torch.randint(3, 28, (count, 9), generator=torch.Generator().manual_seed(count))
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    return {"input_ids": ids.where(mask.bool(), 1 if kind == "roberta" else 0), "attention_mask": mask}


@torch.no_grad()
def logits(model: PreTrainedModel, kind: str) -> Tensor:
    return model(**inputs(kind)).logits
