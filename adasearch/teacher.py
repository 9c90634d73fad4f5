"""The teacher: any sequence classifier, the probes on its frozen levels, and what it says of every text, computed once.

Dimensions: N texts, B batch, L tokens, D hidden, P levels (embeddings and every layer), C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from adasearch.errors import ModelError, loading, one_line
from adasearch.known_labels import HF_PROBLEM_TYPES, label_settings, places_of
from adasearch.model_inputs import LAST_READERS, read_literally, segment_ids, uses_token_types
from adasearch.objectives import task_loss
from adasearch.progress import Progress
from adasearch.student import AdasearchConfig
from adasearch.tasks import Task

PROBE_EXAMPLES = 10_000  # a linear probe on a few hundred features needs no more
PROBE_L2 = 1e-3


@dataclass
class Teacher:
    """A frozen classifier with its tokenizer and, once fitted, one linear probe a level; ``note`` is what the user should know of it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    probe_weights_PCD: Tensor | None = None
    probe_biases_PC: Tensor | None = None
    note: str = ""

    @property
    def levels(self) -> int:
        """P: embeddings and layers."""
        return self.model.config.num_hidden_layers + 1

    def segments(self, input_ids: Tensor) -> Tensor:
        """Segment ids (B, L); of a model that does not say whether it reads pairs, the separators decide."""
        return segment_ids(input_ids, self.tokenizer, is_pair=getattr(self.model.config, "is_pair", None) is not False)

    def token_types(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Segment ids, for models that were trained with two of them."""
        return {"token_type_ids": self.segments(input_ids)} if uses_token_types(self.model.config) else {}

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, C)."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **self.token_types(input_ids)).logits

    def logits_and_features(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and each level's vector (B, P, D): the tokens' mean of the embeddings, a layer's first token, or its last
        one where a token sees only what stands before it."""
        output = self.model(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, **self.token_types(input_ids)
        )
        mask_BL1 = attention_mask[:, :, None].to(output.hidden_states[0].dtype)
        mean_BD = (output.hidden_states[0] * mask_BL1).sum(1) / mask_BL1.sum(1)
        places_BL = attention_mask * torch.arange(attention_mask.shape[1], device=attention_mask.device)
        read_B = places_BL.argmax(1) if self.is_causal else torch.zeros_like(places_BL[:, 0])
        rows_B = torch.arange(len(read_B), device=read_B.device)
        return output.logits, torch.stack([mean_BD, *(hidden[rows_B, read_B] for hidden in output.hidden_states[1:])], 1)

    @cached_property
    @torch.no_grad()
    def is_causal(self) -> bool:
        """Whether the first token knows nothing of the second, as in GPT-2; asked of the model, since no setting says so of all."""
        first, second, other = [index for index in range(4) if index != self.tokenizer.pad_token_id][:3]
        ids_BL = torch.tensor([[first, second], [first, other]], device=self.model.device)
        was_training = self.model.training
        output = self.model.eval()(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL), output_hidden_states=True, **self.token_types(ids_BL))
        self.model.train(was_training)
        known_BD = output.hidden_states[-1][:, 0]
        return torch.allclose(known_BD[0], known_BD[1], rtol=1e-5, atol=1e-6)

    def outputs(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and the probes' logits (B, P, C)."""
        assert self.probe_weights_PCD is not None, "fit_probes comes first"
        logits, features_BPD = self.logits_and_features(input_ids, attention_mask)
        # the probes' weights are for standardised features, folded: their terms are far larger than the sum, and in the
        # 8 bits of bfloat16 nothing of it would be left
        with torch.autocast(features_BPD.device.type, enabled=False):
            probes = torch.einsum("bpd,pcd->bpc", features_BPD.float(), self.probe_weights_PCD) + self.probe_biases_PC
        return logits, probes


def needs_finetuning(path: str, when: str, trust_remote_code: bool = False, head: str = "ForSequenceClassification") -> bool:
    """Whether a checkpoint is to be fine-tuned: ``auto`` says no to those saved with a ``head`` for the task already."""
    if when != "auto":
        return when == "always"
    config = _config(path, trust_remote_code)
    return not any(head in name for name in (config.architectures or []))


def _config(path: str, trust_remote_code: bool) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"teacher: {path!r} has code of its own, which would run here; choices: read it, then --finetune.trust_remote_code true"
            ) from error
        reason = one_line(error, 300)
        raise ModelError(f"teacher: {path!r} cannot be loaded ({reason}); choices: a folder, a hub name, 'demo' or 'none'") from error


def _places(path: str, config: PreTrainedConfig, task: Task) -> list[int]:
    """Which of a checkpoint's outputs stands for each label of the task: the one of its name, in any case.

    Names that are no names of the task (LABEL_0, other words for the same) say nothing: their order is taken for the task's.
    """
    names = _names(config)
    places = places_of(task.label_names, names)
    if places is None and sorted(map(str.casefold, names)) == sorted(map(str.casefold, task.label_names)):
        raise _other_order(path, config, task)  # names that only their case tells apart, in a case of their own
    return list(range(task.num_labels)) if places is None else places


def _names(config: PreTrainedConfig) -> list[str]:
    return [str(name) for _, name in sorted((config.id2label or {}).items())]


def _other_order(path: str, config: PreTrainedConfig, task: Task) -> ModelError:
    return ModelError(
        f"teacher: {path!r} has the labels in the order {', '.join(_names(config))}, task {task.name!r} in the order"
        f" {', '.join(task.label_names)}, and its outputs cannot be put in that order: its logits would be misread;"
        " choices: another teacher, or --finetune.when always"
    )


@torch.no_grad()
def reorder_outputs(teacher: Teacher, places: Sequence[int]) -> bool:
    """Edit in place: rows of the head's last linear layer change places, so that output i is what output ``places[i]`` was.

    Whether the logits of some tokens are then the old ones in the new order; where they are not, nothing has changed.
    """
    model, was_training, pad = teacher.model, teacher.model.training, teacher.tokenizer.pad_token_id
    known = torch.tensor([index for index in range(len(teacher.tokenizer)) if index != pad])
    ids_BL = known[torch.linspace(0, len(known) - 1, 8).long()].view(2, 4).to(model.device)
    model.eval()
    before_BC = teacher.logits(ids_BL, torch.ones_like(ids_BL))
    wanted_BC, order_C = before_BC[:, list(places)], torch.tensor(places, device=model.device)
    moved = float((before_BC - wanted_BC).abs().max())
    layers = [part for part in model.modules() if isinstance(part, nn.Linear) and part.out_features == len(places)]
    is_done = False
    for layer in reversed(layers if moved else []):  # equal logits tell nothing
        _reorder_rows(layer, order_C)
        if is_done := torch.allclose(teacher.logits(ids_BL, torch.ones_like(ids_BL)), wanted_BC, rtol=1e-4, atol=1e-4 * moved):
            break
        _reorder_rows(layer, order_C.argsort())
    model.train(was_training)
    return is_done


def _reorder_rows(layer: nn.Linear, order_C: Tensor) -> None:
    for tensor in (layer.weight, layer.bias):
        if tensor is not None:
            tensor.copy_(tensor[order_C])


def _check_kind(path: str, config: PreTrainedConfig, task: Task) -> None:
    """A checkpoint that says what it was trained on was trained on this. Raises ``ModelError``."""
    for what, theirs, ours in (
        ("of problem type", config.problem_type, HF_PROBLEM_TYPES[task.problem_type]),
        ("of pairs of texts:", getattr(config, "is_pair", None), task.is_pair),
    ):
        if theirs is not None and theirs != ours:
            raise ModelError(
                f"teacher: {path!r} is a model {what} {theirs}, task {task.name!r} asks for {ours}: its logits would be misread;"
                " choices: another teacher, or --finetune.when always"
            )


def load_teacher(path: str, task: Task, *, is_finetuned: bool, trust_remote_code: bool = False) -> Teacher:
    """Load checkpoint and tokenizer. Raises ``ModelError`` when it cannot be loaded, is a searched student, lacks a head or a padding
    token, or its labels are not the task's.

    A checkpoint that ``is_finetuned`` is used as it is, with as many labels as the task's; where the names are the same (in upper or
    lower case) in another order, its outputs are put in the task's. Any other will be fine-tuned: its head does not matter.
    """
    config = _config(path, trust_remote_code)
    if config.model_type == AdasearchConfig.model_type:
        raise ModelError(
            f"teacher: {path!r} is a searched student, whose cells are no layers to learn from; choices: a transformer, such as 'demo',"
            " a hub name or runs/<name>/teacher"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"teacher: {path!r} is an encoder with a decoder ({config.model_type}), whose levels cannot be probed; choices: an encoder")
    if config.model_type in LAST_READERS:
        raise ModelError(
            f"teacher: {path!r} reads the last position of a batch ({config.model_type}), which of the shorter texts is padding; choices: a"
            " transformer that reads its first or last token"
        )
    if is_finetuned and config.num_labels != task.num_labels:
        known = ", ".join(str(name) for name in (config.id2label or {}).values())
        raise ModelError(
            f"teacher: {path!r} has {config.num_labels} labels ({known}), task {task.name!r} has"
            f" {task.num_labels} ({', '.join(task.label_names)}); choices: another teacher, or --finetune.when always"
        )
    places = list(range(task.num_labels))
    if is_finetuned:
        _check_kind(path, config, task)
        places = _places(path, config, task)
    with loading(f"teacher: {path!r} cannot be loaded as a sequence classifier"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, trust_remote_code=trust_remote_code, ignore_mismatched_sizes=not is_finetuned, output_loading_info=True,
            **label_settings(task),
        )  # fmt: skip
    if is_finetuned and report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise ModelError(f"teacher: {path!r} has no trained head ({missing} missing): its logits would be random; choices: --finetune.when always")
    _set_padding(model, tokenizer, path)
    model.config.is_pair = task.is_pair  # saved with what becomes of it: texts of the other kind are refused later
    if task.is_pair:
        read_literally(tokenizer)
    teacher = Teacher(model.float(), tokenizer)
    if places != sorted(places):
        if not reorder_outputs(teacher, places):
            raise _other_order(path, config, task)
        theirs, ours = ", ".join(_names(config)), ", ".join(task.label_names)
        teacher.note = f"teacher: {path} has the labels in the order {theirs}; its outputs were put in the task's: {ours}"
    return teacher


def _set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Edit in place: GPT-2 and its like read the last real token, and find it by a padding token that their configuration may lack."""
    if tokenizer.pad_token_id is None:
        raise ModelError(f"teacher: {path!r}: its tokenizer has no padding token, so texts make no batch; choices: another teacher")
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def fit_probes(
    features_NPD: np.ndarray, labels: np.ndarray, problem_type: str, num_labels: int, progress: Progress
) -> tuple[Tensor, Tensor]:
    """One linear probe a level on frozen features, weights (P, C, D) and biases (P, C). AdaBERT, section 3.2.

    The levels' losses add up without sharing anything, so each is a convex problem of its own; L-BFGS solves it to
    the end, with a little L2 on standardised features, where SGD would have to be tuned.
    """
    weights, biases = [], []
    targets = torch.from_numpy(np.array(labels))
    progress.stage("probes", features_NPD.shape[1])
    for level in range(features_NPD.shape[1]):
        features = torch.from_numpy(np.array(features_NPD[:, level], np.float32))
        mean, scale = features.mean(0), features.std(0).clamp_min(1e-6)
        features = (features - mean) / scale
        probe = nn.Linear(features.shape[1], num_labels)
        nn.init.zeros_(probe.weight), nn.init.zeros_(probe.bias)
        optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = task_loss(probe(features), targets, problem_type).mean() + PROBE_L2 * probe.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        weight = probe.weight.detach() / scale
        weights.append(weight)
        biases.append(probe.bias.detach() - weight @ mean)
        progress.step(level + 1)
    return torch.stack(weights), torch.stack(biases)


def tables_of(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """A model's word table (V, D) and, where it has learned absolute ones, its position table, both detached."""
    embeddings = getattr(model.base_model, "embeddings", None)
    position = getattr(embeddings, "position_embeddings", None)
    word = model.get_input_embeddings().weight.detach()
    if not isinstance(position, nn.Embedding):
        return word, None
    # RoBERTa counts positions from padding_idx + 1
    first = 0 if position.padding_idx is None else position.padding_idx + 1
    return word, position.weight.detach()[first:]
