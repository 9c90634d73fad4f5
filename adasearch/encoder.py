"""Our encoder from a Hugging Face checkpoint's model, with equal logits; the axes of an encoder.

The models themselves are in ``encoder_layers``, which travels with what is saved; their names are taken from here, too.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from adasearch.encoder_layers import (
    Encoder, EncoderConfig, EncoderForQuestionAnswering, EncoderForSequenceClassification, EncoderPreTrainedModel,
)  # fmt: skip
from adasearch.errors import ModelError
from adasearch.structure import Axes, GateValues

__all__ = [
    "Axes", "Encoder", "EncoderConfig", "EncoderForQuestionAnswering", "EncoderForSequenceClassification",
    "EncoderPreTrainedModel", "GateValues", "axes_of", "from_hugging_face",
]  # fmt: skip

KINDS = {
    "ForSequenceClassification": EncoderForSequenceClassification,
    "ForQuestionAnswering": EncoderForQuestionAnswering,
}
BERT = {  # our names in a layer -> theirs
    "attention.query": "attention.self.query", "attention.key": "attention.self.key", "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense", "attention_norm": "attention.output.LayerNorm",
    "ffn.input": "intermediate.dense", "ffn.output": "output.dense", "ffn_norm": "output.LayerNorm",
}  # fmt: skip
DISTILBERT = {
    "attention.query": "attention.q_lin", "attention.key": "attention.k_lin", "attention.value": "attention.v_lin",
    "attention.output": "attention.out_lin", "attention_norm": "sa_layer_norm",
    "ffn.input": "ffn.lin1", "ffn.output": "ffn.lin2", "ffn_norm": "output_layer_norm",
}  # fmt: skip
FAMILIES = {  # model type -> (base model's name, its layers, a layer's names, the classifier's two layers)
    "bert": ("bert", "encoder.layer", BERT, ("bert.pooler.dense", "classifier")),
    "roberta": ("roberta", "encoder.layer", BERT, ("classifier.dense", "classifier.out_proj")),
    "xlm-roberta": ("roberta", "encoder.layer", BERT, ("classifier.dense", "classifier.out_proj")),
    "distilbert": ("distilbert", "transformer.layer", DISTILBERT, ("pre_classifier", "classifier")),
}
KEPT = (  # what the config takes along
    "id2label", "label2id", "problem_type", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "initializer_range",
    "is_pair",
)  # fmt: skip


def from_hugging_face(model: PreTrainedModel) -> EncoderForSequenceClassification | EncoderForQuestionAnswering:
    """Our encoder with a copy of the weights of BERT, DistilBERT, RoBERTa, XLM-R or MiniLM, and their logits to rounding.

    The model has a head for sequence classification (regression and multi-label too) or question answering; one of ours is
    copied. In eval or training mode as it was. Raises ``ModelError`` naming what is not supported.
    """
    if isinstance(model, EncoderPreTrainedModel):
        return copy.deepcopy(model)
    config, name = model.config, type(model).__name__
    kind = next((kind for suffix, kind in KINDS.items() if name.endswith(suffix)), None)
    if kind is None or config.model_type not in FAMILIES:
        raise ModelError(
            f"{name}: no encoder of ours can be made of it; choices: {', '.join(FAMILIES)} {' or '.join(KINDS)}"
        )
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise ModelError(f"{name}: is_decoder or add_cross_attention is set; choices: an encoder")
    if (positions := getattr(config, "position_embedding_type", "absolute")) not in (None, "absolute"):
        raise ModelError(f"{name}: position_embedding_type: {positions!r} is not supported; choices: absolute")
    if not isinstance(config.hidden_act if config.model_type != "distilbert" else config.activation, str):
        raise ModelError(f"{name}: its activation is a function; choices: a name that transformers knows")
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
        ours = kind(_config(model, kind))
    theirs = model.state_dict()
    state = {}
    for ours_name, theirs_name in _names(config, kind).items():
        for part in ("weight", "bias"):
            if f"{theirs_name}.{part}" in theirs:
                state[f"{ours_name}.{part}"] = theirs[f"{theirs_name}.{part}"].detach().clone()
    missing = sorted(set(ours.state_dict()) - set(state))
    if missing:
        raise ModelError(f"{name}: it has no {missing[0]} as ours; {len(missing)} weights are missing")
    ours.load_state_dict(state, assign=True)
    return ours.train(model.training)


def axes_of(model: EncoderPreTrainedModel) -> Axes:
    """The axes of an encoder, as it is now."""
    config, embeddings = model.config, model.encoder.embeddings
    tables = [config.vocab_size, config.max_position_embeddings, config.type_vocab_size]
    is_qa = isinstance(model, EncoderForQuestionAnswering)
    assert len(embeddings.word_embeddings.weight) == config.vocab_size, "the config tells the table's size"
    return Axes(
        config.hidden_size, config.head_size, config.heads, config.neurons, tables=[rows for rows in tables if rows],
        pooler=0 if is_qa else config.pooler_size, labels=2 if is_qa else config.num_labels,
    )  # fmt: skip


def _names(config: Any, kind: type[EncoderPreTrainedModel]) -> dict[str, str]:
    """Our modules that hold weights -> theirs."""
    base, layers, in_layer, head = FAMILIES[config.model_type]
    names = {
        f"encoder.embeddings.{table}_embeddings": f"{base}.embeddings.{table}_embeddings" for table in ("word", "position", "token_type")
    }
    names["encoder.embeddings.norm"] = f"{base}.embeddings.LayerNorm"
    for n in range(config.num_hidden_layers):
        names |= {f"encoder.layers.{n}.{ours}": f"{base}.{layers}.{n}.{theirs}" for ours, theirs in in_layer.items()}
    if kind is EncoderForQuestionAnswering:
        return names | {"qa_outputs": "qa_outputs"}
    return names | {"head.dense": head[0], "head.classifier": head[1]}


def _config(model: PreTrainedModel, kind: type[EncoderPreTrainedModel]) -> EncoderConfig:
    config = model.config
    is_distilbert, is_qa = config.model_type == "distilbert", kind is EncoderForQuestionAnswering
    D, H, N = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    if is_distilbert:
        own = {
            "hidden_act": config.activation, "type_vocab_size": 0, "layer_norm_eps": 1e-12, "hidden_dropout": config.dropout,
            "attention_output_dropout": 0.0, "attention_dropout": config.attention_dropout,
            "head_dropout": config.qa_dropout if is_qa else config.seq_classif_dropout,
        }  # fmt: skip
    else:
        dropout = config.hidden_dropout_prob
        of_head = 0.0 if is_qa else dropout if config.classifier_dropout is None else config.classifier_dropout
        own = {
            "hidden_act": config.hidden_act, "type_vocab_size": config.type_vocab_size, "layer_norm_eps": config.layer_norm_eps,
            "hidden_dropout": dropout, "attention_output_dropout": dropout,
            "attention_dropout": config.attention_probs_dropout_prob, "head_dropout": of_head,
        }  # fmt: skip
    is_roberta = FAMILIES[config.model_type][0] == "roberta"
    kept = {key: value for key in KEPT if (value := getattr(config, key, None)) is not None}
    return EncoderConfig(
        vocab_size=len(model.get_input_embeddings().weight), hidden_size=D, head_size=D // H, heads=[H] * N,
        neurons=[config.hidden_dim if is_distilbert else config.intermediate_size] * N,
        max_position_embeddings=config.max_position_embeddings, pad_token_id=config.pad_token_id,
        position_offset=config.pad_token_id + 1 if is_roberta else 0, family=config.model_type,
        head_kind={"xlm-roberta": "roberta"}.get(config.model_type, config.model_type),
        tie_word_embeddings=False, dtype=config.dtype, **own, **kept,
    )  # fmt: skip
