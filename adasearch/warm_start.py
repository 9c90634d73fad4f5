"""A warm supernet as the start of searches and students: whether it fits, and what is taken from it.

Every system that has a teacher starts from the same weights, random members too: a warm start is no merit of the search.
What belongs to a task, the classifier and the gates, starts afresh.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adasearch.architecture import Architecture, Space
from adasearch.errors import ConfigError
from adasearch.files import fingerprint, read_json
from adasearch.shrink import READ_OUT_ROWS
from adasearch.student import AdasearchConfig, AdasearchForSequenceClassification
from adasearch.supernet import Supernet

WARM_VERSION = 1
FACTS, WEIGHTS = "warm.json", "supernet.safetensors"
TEACHER_ROWS = "teacher_rows"  # of the word table it was taught by, kept beside the weights
ROWS = 256
KINSHIP = 0.9  # mean cosine of these rows with another table's: fine-tuned ones have 0.99 and more, strangers 0
OF_A_TASK = ("trunk.read_out.classifier.", "cell_gates.", "depth_gate.", "width_gate.")
POSITIONS = "trunk.embeddings.position.weight"


@dataclass(frozen=True)
class WarmStart:
    """A warm supernet's folder, read."""

    folder: Path
    facts: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """Everything that does not belong to a task, by the names of a supernet's state."""
        state = load_file(self.folder / WEIGHTS)
        return {name: tensor for name, tensor in state.items() if name != TEACHER_ROWS and not name.startswith(OF_A_TASK)}

    def teacher_rows(self) -> Tensor:
        """Rows of its teacher's word table, those of ``sampled_rows``."""
        return load_file(self.folder / WEIGHTS)[TEACHER_ROWS]


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of pieces and their numbers."""
    return fingerprint(sorted(tokenizer.get_vocab().items()))


def sampled_rows(word_VM: Tensor) -> Tensor:
    """Evenly spread rows of a word table, the same ones for tables of one size."""
    return word_VM[torch.linspace(0, len(word_VM) - 1, min(ROWS, len(word_VM))).long()]


def read_warm_start(folder: str | Path, space: Space) -> WarmStart:
    """Raise ``ConfigError`` unless the folder holds a warm supernet of ``space``, as its YAML says it (for no task)."""
    folder = Path(folder)
    if not (folder / FACTS).is_file() or not (folder / WEIGHTS).is_file():
        raise ConfigError(f"warm_start: {folder} holds no warm supernet; choices: a finished folder of `adasearch warm`")
    facts = read_json(folder / FACTS)
    if facts["version"] != WARM_VERSION:
        raise ConfigError(f"warm_start: {folder}: version {facts['version']!r} cannot be read; known: {WARM_VERSION}")
    if facts["space_digest"] != space.digest:
        raise ConfigError(
            f"warm_start: {folder} is of space {facts['space']!r} ({facts['space_digest']}), the run's is {space.name!r}"
            f" ({space.digest}); choices: --space as there, or `adasearch warm --space` as here"
        )
    return WarmStart(folder, facts)


def check_warm_start(warm: WarmStart, tokenizer: PreTrainedTokenizerBase, word_VM: Tensor, positions: int) -> None:
    """Raise ``ConfigError`` unless the run's vocabulary, tables and teacher are those it was made with.

    The teacher may have been fine-tuned since: its word table must be kin to the one it was taught by (``KINSHIP``).
    """
    facts, where = warm.facts, f"warm_start: {warm.folder}"
    again = "choices: `adasearch warm` with this run's teacher, or no warm start"
    if facts["vocabulary"] != vocabulary_fingerprint(tokenizer):
        raise ConfigError(f"{where} has another vocabulary ({facts['student']['vocab_size']:,} pieces of {facts['teacher']}); {again}")
    shape = facts["student"]["vocab_size"], facts["student"]["embedding_rank"]
    if shape != tuple(word_VM.shape):
        theirs = f"{word_VM.shape[0]:,} x {word_VM.shape[1]}"
        raise ConfigError(f"{where} has embeddings of {shape[0]:,} x {shape[1]}, the run's teacher of {theirs}; {again}")
    kinship = float(torch.cosine_similarity(warm.teacher_rows(), sampled_rows(word_VM).float().cpu()).mean())
    if kinship < KINSHIP:
        raise ConfigError(
            f"{where} was taught by {facts['teacher']}, whose word table has a cosine of {kinship:.2f} with that of the run's"
            f" teacher (at least {KINSHIP} is expected of one that was fine-tuned from it); {again}"
        )
    longest = facts["student"]["max_position_embeddings"]
    if facts["has_positions"] and positions > longest:
        raise ConfigError(f"{where} has positions for {longest} word pieces, max_seq_length is {positions}; choices: up to {longest}")


def check_architecture(warm: WarmStart, architecture: Architecture, space: Space, where: str) -> None:
    """Raise ``ConfigError`` unless a given architecture is a member of ``space``, as the run's task sees it."""
    if architecture.space_digest != space.digest:
        raise ConfigError(
            f"{where}: of space {architecture.space!r} ({architecture.space_digest}), warm_start {warm.folder} is of {space.name!r}"
            f" ({space.digest} for this task); choices: an architecture of that space, or no warm start"
        )


@torch.no_grad()
def warm_supernet(supernet: Supernet, warm: WarmStart) -> list[str]:
    """Edit in place: every weight that the warm supernet has; the operations it does not have, which stay fresh.

    Those are the pair operations where it was taught with single texts.
    """
    own, fresh = supernet.state_dict(), set()
    weights = warm.weights()
    for name, tensor in own.items():
        if name in weights:
            tensor.copy_(weights[name][: len(tensor)] if name == POSITIONS else weights[name])
        elif not name.startswith(OF_A_TASK):
            fresh.add(name.split(".")[5])  # trunk.cells.<c>.edges.<edge>.<operation>
    return sorted(fresh)


@torch.no_grad()
def warm_student(student: AdasearchForSequenceClassification, warm: WarmStart, space: Space) -> None:
    """Edit in place: what ``shrink`` would cut out of the warm supernet; of a student without cells its embeddings."""
    weights = warm.weights()
    row = student.architecture.depth - space.cells[0]
    for name, tensor in student.state_dict().items():
        whole = weights.get(name)
        if name == READ_OUT_ROWS:
            whole = whole[row][None] if row >= 0 else None
        if whole is not None:
            tensor.copy_(whole[tuple(slice(0, n) for n in tensor.shape)])


def facts_of(config: AdasearchConfig, space: Space, whole_space: Space) -> dict[str, Any]:
    """What ``warm.json`` says of the supernet; ``whole_space`` is the YAML's."""
    keys = ("vocab_size", "max_position_embeddings", "embedding_rank", "sep_token_id", "pad_token_id")
    return {
        "version": WARM_VERSION,
        "space": whole_space.name,
        "space_digest": whole_space.digest,
        "operations": list(space.operations),
        "has_positions": space.macro.position_embeddings,
        "macro": dataclasses.asdict(space.macro),
        "student": {key: getattr(config, key) for key in keys},
    }
