"""The student: embeddings from the teacher, a stack of cells, a read-out over all levels; a Hugging Face model.

The same trunk serves the search (``supernet.py``) and the final model. Of a pair ``[CLS] a [SEP] b [SEP]`` the second
text is found by the first separator, so no token type ids are needed; single texts have none, whatever separators they hold.

Dimensions: B batch, L tokens, D width, E embedding width, V vocabulary, C labels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from adasearch.architecture import Architecture, Macro
from adasearch.carried_code import CarryingConfig
from adasearch.cell import fixed_cell, fixed_path
from adasearch.masked_norm import ChannelLayerNorm, Context


class AdasearchConfig(CarryingConfig):
    """Configuration of a student: the Architecture and what the tokenizer dictates.

    ``embedding_rank`` is the width of the teacher's table while a projection to the student's width is being trained;
    None once the two are folded into one table (``AdasearchForSequenceClassification.fold_embeddings``). ``is_pair`` says
    whether it was trained on pairs of texts; None: not known.
    """

    model_type = "adasearch"

    def __init__(
        self,
        architecture: dict[str, Any] | None = None,
        vocab_size: int = 30522,
        max_position_embeddings: int = 512,
        embedding_rank: int | None = None,
        sep_token_id: int | None = 102,
        pad_token_id: int = 0,
        is_pair: bool | None = None,
        **kwargs: Any,
    ):
        self.architecture = architecture
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.embedding_rank = embedding_rank
        self.sep_token_id = sep_token_id
        self.is_pair = is_pair
        super().__init__(pad_token_id=pad_token_id, **kwargs)

    @property
    def hidden_size(self) -> int:
        """The cells' width."""
        return self.architecture["width"]


class Embeddings(nn.Module):
    """Word (and position) embeddings -> (B, D, L), zero on padding.

    Word and position tables have the teacher's width ``rank`` and share one projection to the embedding width while
    they train (AdaBERT's factorised embedding); ``fold`` multiplies the projection into the tables.
    """

    def __init__(self, vocab_size: int, positions: int, rank: int | None, width: int, macro: Macro, pad_token_id: int):
        super().__init__()
        size = macro.embedding_size or width
        self.zero_cls = macro.zero_cls
        self.word = nn.Embedding(vocab_size, rank or size, padding_idx=pad_token_id)
        self.position = nn.Embedding(positions, rank or size) if macro.position_embeddings else None
        self.projection = nn.Linear(rank, size, bias=False) if rank else None
        self.widen = nn.Linear(size, width, bias=False) if macro.embedding_size else None
        self.norm = ChannelLayerNorm(width)
        self.dropout = nn.Dropout(macro.dropout)

    def forward(self, input_ids: Tensor, context: Context) -> Tensor:
        """(B, L) -> (B, D, L)."""
        x_BLE = self.word(input_ids)
        if self.position is not None:
            x_BLE = x_BLE + self.position.weight[: input_ids.shape[1]]
        for layer in (self.projection, self.widen):
            x_BLE = x_BLE if layer is None else layer(x_BLE)
        x_BDL = context.clean(self.dropout(self.norm(x_BLE.mT, context)))
        if not self.zero_cls:
            return x_BDL
        return torch.cat([torch.zeros_like(x_BDL[:, :, :1]), x_BDL[:, :, 1:]], -1)

    @torch.no_grad()
    def fold(self) -> None:
        """Edit in place: tables become table @ projection, exactly what the projection would have given."""
        if self.projection is None:
            return
        for name in ("word", "position"):
            table = getattr(self, name)
            if table is not None:
                folded = F.linear(table.weight, self.projection.weight)
                setattr(self, name, nn.Embedding.from_pretrained(folded, freeze=False, padding_idx=table.padding_idx))
        self.projection = None


class Pooling(nn.Module):
    """Tokens -> one vector, (B, D, L) -> (B, D): "mean", "max" or "attention" (learned softmax over tokens)."""

    def __init__(self, width: int, kind: str):
        super().__init__()
        self.kind = kind
        self.score = nn.Linear(width, 1, bias=False) if kind == "attention" else None
        if self.score is not None:
            nn.init.zeros_(self.score.weight)  # starts as the mean

    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        mask_B1L = context.mask_B1L
        if self.kind == "mean":
            return x_BDL.sum(-1) / mask_B1L.sum(-1).clamp_min(1)
        padding = mask_B1L == 0
        if self.kind == "max":
            return x_BDL.masked_fill(padding, torch.finfo(x_BDL.dtype).min).amax(-1)
        scores_B1L = self.score(x_BDL.mT).mT  # of a smaller range than the tokens where autocast is on
        scores_B1L = scores_B1L.masked_fill(padding, torch.finfo(scores_B1L.dtype).min)
        return (x_BDL @ scores_B1L.softmax(-1).mT).squeeze(-1)


class ReadOut(nn.Module):
    """Pooled levels 0..K -> logits: softmax-weighted sum, tanh, dropout, linear (AdaBERT; specs of the read-out).

    One row of level weights for each depth at which the network may stop; one classifier.
    """

    def __init__(self, levels: int, exits: int, width: int, num_labels: int, macro: Macro):
        super().__init__()
        self.pools = nn.ModuleList(Pooling(width, macro.pooling) for _ in range(levels))
        self.level_logits = nn.Parameter(torch.zeros(exits, levels))
        self.dropout = nn.Dropout(macro.dropout)
        self.classifier = nn.Linear(width, num_labels)

    def forward(self, levels: list[Tensor], exit_index: int = -1) -> Tensor:
        """Logits (B, C) of the network that stops after ``levels``, which are (B, D) each."""
        weights = self.level_logits[exit_index, : len(levels)].softmax(0)
        mixed_BD = sum(weight * level for weight, level in zip(weights.unbind(), levels))
        return self.classifier(self.dropout(mixed_BD.tanh()))


class Trunk(nn.Module):
    """Everything around the cells that search and final student have in common."""

    def __init__(
        self, config: AdasearchConfig, cells: list[nn.Module], width: int, macro: Macro, exits: int, num_labels: int
    ):
        super().__init__()
        self.macro, self.pad_token_id = macro, config.pad_token_id
        # -1 is no token: not every tokenizer has a separator, and a "[SEP]" that stands in a single text begins no second one
        self.sep_token_id = -1 if config.is_pair is False or config.sep_token_id is None else config.sep_token_id
        self.embeddings = Embeddings(
            config.vocab_size, config.max_position_embeddings, config.embedding_rank, width, macro, config.pad_token_id
        )
        self.cells = nn.ModuleList(cells)
        self.read_out = ReadOut(len(cells) + 1, exits, width, num_labels, macro)

    def inputs(
        self, input_ids: Tensor, attention_mask: Tensor | None, keep_D: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Context]:
        """The two input nodes of the first cell, (B, D, L), and the context of every operation."""
        if attention_mask is None:
            attention_mask = input_ids != self.pad_token_id
        real_BL = attention_mask.bool()
        is_sep_BL = (input_ids == self.sep_token_id) & real_BL
        second_BL = ((is_sep_BL.cumsum(1) - is_sep_BL.long()) > 0) & real_BL  # after the first separator
        dtype = self.embeddings.norm.weight.dtype
        if self.macro.inputs == "joint":
            context = Context(real_BL[:, None].to(dtype), second_BL, keep_D)
            x_BDL = self.embeddings(input_ids, context)
            return x_BDL, x_BDL, context
        return self._two_inputs(input_ids, real_BL, second_BL, dtype, keep_D)

    def _two_inputs(
        self, input_ids: Tensor, real_BL: Tensor, second_BL: Tensor, dtype: torch.dtype, keep_D: Tensor | None
    ) -> tuple[Tensor, Tensor, Context]:
        """AdaBERT's pairs: each text embedded by itself from position 0, behind the sequence's first token, [CLS]; a single text
        is both inputs.
        """
        first_BL = real_BL & ~second_BL
        length = input_ids.shape[1]
        columns_L = torch.arange(length, device=input_ids.device)
        before_B1 = first_BL.sum(1, keepdim=True)
        # RoBERTa's second separator stands where the second text's [CLS] is to stand; one that nothing follows ends an empty text
        is_doubled_B1 = (input_ids.gather(1, before_B1.clamp_max(length - 1)) == self.sep_token_id) & (second_BL.sum(1, keepdim=True) > 1)
        shift_B1 = before_B1 - 1 + is_doubled_B1.long()
        shifted_BL = torch.where(columns_L > 0, (columns_L + shift_B1).clamp_max(length - 1), 0)
        moved_BL = columns_L < second_BL.sum(1, keepdim=True) + (~is_doubled_B1).long()  # the second text, brought to the front
        is_pair_B1 = second_BL.any(1, keepdim=True)
        second_ids_BL = torch.where(is_pair_B1, input_ids.gather(1, shifted_BL), input_ids)
        moved_BL = torch.where(is_pair_B1, moved_BL, first_BL)
        nodes = []
        for ids_BL, mask_BL in ((input_ids, first_BL), (second_ids_BL, moved_BL)):
            nodes.append(self.embeddings(ids_BL, Context(mask_BL[:, None].to(dtype), second_BL, keep_D)))
        # from here on positions of either text count as real; which is the second is a matter of the node, not the token
        either_B1L = (first_BL | moved_BL)[:, None].to(dtype)
        return nodes[0], nodes[1], Context(either_B1L, torch.zeros_like(second_BL), keep_D)

    def pool(self, level: int, x_BDL: Tensor, context: Context) -> Tensor:
        """Level ``level`` (0: embeddings, k: cell k) as one vector, (B, D)."""
        return self.read_out.pools[level](x_BDL, context)


class AdasearchPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation."""

    config_class = AdasearchConfig
    base_model_prefix = "trunk"
    main_input_name = "input_ids"

    _is_made = False  # whether the constructor has ended: what asks for initial weights then is a checkpoint that lacks some

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif self._is_made:  # what a checkpoint lacks is memory as it was found: it becomes what it is in a new model
            name = next((name for name, part in self.named_modules() if part is module), None)
            if name is None:
                return
            new = type(self)(self.config).get_submodule(name)
            for tensors, fresh in ((module.named_parameters, new.get_parameter), (module.named_buffers, new.get_buffer)):
                for key, tensor in tensors(recurse=False):
                    if not getattr(tensor, "_is_hf_initialized", False):
                        tensor.copy_(fresh(key))


class AdasearchForSequenceClassification(AdasearchPreTrainedModel):
    """The derived student as a sequence classifier. ``levels`` gives what its probes see."""

    def __init__(self, config: AdasearchConfig):
        super().__init__(config)
        self.architecture = Architecture.from_dict(config.architecture, where="config.architecture")
        width, macro = self.architecture.width, self.architecture.macro
        cells = [fixed_cell(choice, width, macro) for choice in self.architecture.cells]
        self.paths = [fixed_path(choice) for choice in self.architecture.cells]
        self.trunk = Trunk(config, cells, width, macro, exits=1, num_labels=config.num_labels)
        self.post_init()
        self._is_made = True

    def levels(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
        """The pooled embeddings and cell outputs, K + 1 times (B, D)."""
        first, second, context = self.trunk.inputs(input_ids, attention_mask)
        levels = [self.trunk.pool(0, first if first is second else (first + second) / 2, context)]
        for index, (cell, path) in enumerate(zip(self.trunk.cells, self.paths), start=1):
            first, second = second, cell(first, second, context, path)
            levels.append(self.trunk.pool(index, second, context))
        return levels

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Logits (B, C) and, given labels, their loss by ``config.problem_type``. Token type ids are not needed.

        ``hidden_states`` of the output are the pooled levels, (B, D) each, not token states.
        """
        levels = self.levels(input_ids, attention_mask)
        logits = self.trunk.read_out(levels)
        loss = None
        if labels is not None:
            if self.config.problem_type == "regression":
                loss = F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
            elif self.config.problem_type == "multi_label_classification":
                loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
            else:
                loss = F.cross_entropy(logits, labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=tuple(levels))

    def fold_embeddings(self) -> None:
        """Edit in place: multiply the projection into the tables; outputs stay the same to rounding."""
        self.trunk.embeddings.fold()
        self.config.embedding_rank = None

    def get_input_embeddings(self) -> nn.Embedding:
        """The word table."""
        return self.trunk.embeddings.word

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word table."""
        self.trunk.embeddings.word = value
