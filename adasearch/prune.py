"""A finished student with a smaller word table: how small it may be is measured, not believed.

The table of a small student is most of it: 4.9 of 5.3 million parameters of the one for SST-2. A task uses a part of the
pieces. The others go, and words that lose theirs are split into smaller pieces that stay (``vocabulary.py``).

Dimensions: N texts, C labels, V pieces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from adasearch.errors import ConfigError, DataError, ModelError
from adasearch.export import export_student, save_student
from adasearch.files import write_json
from adasearch.metrics import points_lost, scores_to_keep
from adasearch.outputs import outputs_of
from adasearch.progress import Progress
from adasearch.quantize_aware import refuse_quantised
from adasearch.runtimes import ONNX_FILES, load_classifier
from adasearch.student import AdasearchForSequenceClassification
from adasearch.texts import Split
from adasearch.tokens import Examples, TokenStore
from adasearch.vocabulary import check_size, choose_pieces, count_pieces, reduce_tokenizer, required_pieces
from adasearch.word_pieces import pieces_of

SIZES = (24_000, 20_000, 16_000, 14_000, 12_000, 10_000, 8_000, 6_000, 4_000, 3_000)  # tried where none is asked for
REPORT = "vocabulary.json"  # what was tried and chosen, in the new student's folder
# the score, a fraction, higher is better; of several the first is told, and the one that loses most counts
Evaluate = Callable[[PreTrainedModel, PreTrainedTokenizerBase], float | tuple[float, ...]]
Refit = Callable[[PreTrainedModel, PreTrainedTokenizerBase], None]  # trains the cut student in place


@dataclass(frozen=True)
class Cut:
    """One size of the table and what it costs: ``size_bytes`` are those of the float32 weights, ``drop`` is in points
    (hundredths of the score, in regression of R² where that loses more) against the whole table. Score and drop are None where there
    was nothing to score."""

    rows: int
    params: int
    size_bytes: int
    score: float | None = None
    drop: float | None = None


@dataclass(frozen=True)
class Pruned:
    """A student cut out of another: its folder, both as they are, and every size that was tried, largest first."""

    folder: Path
    before: Cut
    after: Cut
    tried: tuple[Cut, ...]

    def lines(self) -> list[tuple[str, Cut]]:
        """The whole table, then every cut, with a word for what it is."""
        return [("whole", self.before), *(("chosen" if cut is self.after else "tried", cut) for cut in self.tried)]


def prune_vocabulary(
    student_dir: str | Path, texts: Sequence[str] | TokenStore, *, output_dir: str | Path,
    labelled: Sequence[str] | TokenStore | None = None, size: int | None = None, sizes: Sequence[int] | None = None,
    min_count: int = 1, max_drop: float = 0.5, evaluate: Evaluate | None = None, refit: Refit | None = None,
    calibrate: Callable[[Path], None] | None = None, progress: Progress | None = None,
) -> Pruned:  # fmt: skip
    """Write a student with the pieces that ``texts`` use to ``output_dir``, a model folder like the first.

    Args:
        texts: texts like those it will meet, or their ids by its tokenizer: the pieces that occur in them less often
            than ``min_count`` go.
        labelled: those of them that count most when there is not room for all pieces.
        size: rows at most.
        sizes: several of which the smallest is taken that loses no more than ``max_drop`` points of the score; with
            ``evaluate`` and without a size, ``SIZES`` and the table that ``min_count`` leaves.
        refit: trains the student after each cut. Sizes are then tried from the smallest on until one is good enough.
        calibrate: writes the temperature into the new folder, before its graph is written: whoever is stopped there has a folder
            whose probabilities are right.

    Special pieces and single characters stay, so a word whose piece is gone is split and not unknown. Texts of kept
    pieces give the same logits. What was tried is in ``vocabulary.json`` of the new folder; it has an ONNX file where the
    old one has. Raises ``ConfigError`` for sizes and folders that cannot be, ``DataError`` for no texts, ``ModelError``
    for other models and tokenizers and when no size is good enough.
    """
    student_dir, output_dir, progress = Path(student_dir), Path(output_dir), progress or Progress()
    _check_request(student_dir, output_dir, size, sizes, evaluate)
    model, tokenizer = load_student_and_tokenizer(student_dir)
    wanted = [size] if sizes is None else list(sizes)
    if sizes is None and size is None and evaluate is not None:
        wanted = [None, *(rows for rows in SIZES if rows > required_pieces(tokenizer).sum())]
    for rows in wanted:
        check_size(tokenizer, rows)
    counts_V = _count(texts, tokenizer)
    labelled_V = None if labelled is None else _count(labelled, tokenizer)
    chosen_ids = (
        choose_pieces(tokenizer, counts_V, labelled_V=labelled_V, size=rows, min_count=min_count) for rows in wanted
    )
    kept = {len(ids): ids for ids in chosen_ids}  # sizes beyond what occurs come to the same
    whole = _evaluated(model, tokenizer, evaluate)
    before, tried = _cost(model, whole, None), []
    made: dict[int, tuple[PreTrainedModel, PreTrainedTokenizerBase]] = {}
    progress.stage("prune the vocabulary", len(kept))
    for rows, ids in sorted(kept.items(), reverse=refit is None):
        student, smaller = made[rows] = cut_table(model, ids), reduce_tokenizer(tokenizer, ids)
        if refit is not None:
            refit(student, smaller)
            progress.stage("prune the vocabulary", len(kept), len(tried))  # training was a stage of its own
        tried.append(cut := _cost(student, _evaluated(student, smaller, evaluate), whole))
        progress.step(len(tried), rows=rows, **({} if cut.score is None else {"score": cut.score}))
        if refit is not None and _is_good(cut, max_drop):
            break
    tried.sort(key=lambda cut: -cut.rows)
    chosen = _choose(tried, max_drop, is_free=size is None, progress=progress)
    save_student(*made[chosen.rows], output_dir, _card(student_dir, before, chosen))
    found = Pruned(output_dir, before, chosen, tuple(tried))
    facts = {key: value for key, value in dataclasses.asdict(found).items() if key != "folder"}
    write_json(output_dir / REPORT, {"source": str(student_dir), **facts})
    if calibrate is not None:
        calibrate(output_dir)
    if (student_dir / "onnx" / ONNX_FILES["fp32"]).is_file():
        progress.stage("export")
        export_student(output_dir)
    return found


def load_student_and_tokenizer(student_dir: Path) -> tuple[AdasearchForSequenceClassification, PreTrainedTokenizerBase]:
    """Both from a student's folder. Raises ``ModelError`` for other models."""
    model = load_classifier(student_dir)
    if not isinstance(model, AdasearchForSequenceClassification):
        raise ModelError(f"{student_dir}: a {model.config.model_type!r} model; choices: a student, runs/<name>/student")
    refuse_quantised(model)
    return model, AutoTokenizer.from_pretrained(student_dir, local_files_only=True)


@torch.no_grad()
def cut_table(model: AdasearchForSequenceClassification, kept: np.ndarray) -> AdasearchForSequenceClassification:
    """A copy of the student with these rows of its word table, in this order; special ids renumbered."""
    place = {int(index): row for row, index in enumerate(kept)}
    settings = model.config.to_dict()
    moved = {key: place[value] for key, value in settings.items() if key.endswith("_token_id") and isinstance(value, int)}
    config = type(model.config).from_dict({**settings, **moved, "vocab_size": len(kept)})
    student = type(model)(config)
    name = next(name for name, value in model.named_parameters() if value is model.get_input_embeddings().weight)
    student.load_state_dict({**model.state_dict(), name: model.get_input_embeddings().weight[torch.from_numpy(kept)]})
    return student.eval()


def scorer(split: Split, metric: str) -> Evaluate:
    """A function that gives a student's ``scores_to_keep`` on labelled texts."""

    def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[float, ...]:
        return scores_to_keep(metric, logits_of(model, tokenizer, split), split.labels)

    return evaluate


def logits_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split) -> np.ndarray:
    """What a student says of texts, (N, C)."""
    accelerator, store = Accelerator(), encode(split, tokenizer, model.config.max_position_embeddings)
    model.eval().to(accelerator.device)
    examples = Examples(store, tokenizer.pad_token_id)
    return outputs_of(lambda ids, mask: (model(ids, mask).logits,), examples, accelerator)[0]


def encode(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenStore:
    """The texts as ids, special tokens included, cut to ``max_length``."""
    return TokenStore.from_lists(
        tokenizer(split.texts, split.pairs, truncation="longest_first", max_length=max_length)["input_ids"]
    )


def _count(texts: Sequence[str] | TokenStore, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    if not isinstance(texts, TokenStore):
        ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if len(texts) else []
        texts = TokenStore.from_lists(ids)
    size = len(pieces_of(tokenizer))
    if not len(texts.ids):
        raise DataError("texts: there are none, or they are empty; choices: texts like those the student will meet")
    if len(texts.ids) and int(texts.ids.max()) >= size:
        raise ModelError(f"texts: piece {int(texts.ids.max())} is beyond the student's {size} pieces: another tokenizer made them")
    return count_pieces([texts], tokenizer)


def _evaluated(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, evaluate: Evaluate | None) -> tuple[float, ...] | None:
    if evaluate is None:
        return None
    found = evaluate(model, tokenizer)
    return found if isinstance(found, tuple) else (found,)


def _cost(model: PreTrainedModel, found: tuple[float, ...] | None, whole: tuple[float, ...] | None) -> Cut:
    tensors = model.cpu().state_dict().values()
    return Cut(
        rows=model.config.vocab_size,
        params=sum(parameter.numel() for parameter in model.parameters()),
        size_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        score=None if found is None else found[0],
        drop=None if found is None or whole is None else points_lost(whole, found),
    )


def _is_good(cut: Cut, max_drop: float) -> bool:
    return cut.drop is None or cut.drop <= max_drop + 1e-9  # rounding of the difference


def _choose(tried: Sequence[Cut], max_drop: float, *, is_free: bool, progress: Progress) -> Cut:
    """The smallest that is good enough; the one that was asked for, with a warning when it is not."""
    good = [cut for cut in tried if _is_good(cut, max_drop)]
    if good:
        return min(good, key=lambda cut: cut.rows)
    best = min(tried, key=lambda cut: cut.drop)
    if is_free:
        raise ModelError(
            f"max_drop: no size loses {max_drop:g} points or less; the best, {best.rows:,} rows, loses {best.drop:.2f};"
            " choices: a larger --max_drop, larger --vocabulary.sizes, --refit_steps"
        )
    progress.warning(f"{best.rows:,} rows lose {best.drop:.2f} points, more than max_drop {max_drop:g}")
    return best


def _check_request(
    student_dir: Path, output_dir: Path, size: int | None, sizes: Sequence[int] | None, evaluate: Evaluate | None
) -> None:
    """Refuse sizes that say nothing, and a place where something else would be overwritten."""
    if sizes is not None and size is not None:
        raise ConfigError(f"vocabulary.sizes: {list(sizes)} and vocabulary.size {size} exclude each other; choices: one of them")
    if sizes is not None and not sizes:
        raise ConfigError("vocabulary.sizes: the list is empty; choices: one or more numbers of rows, or leave it out")
    if sizes is not None and evaluate is None:
        raise ConfigError("vocabulary.sizes: nothing to choose by; choices: a run's folder, --validation_file, or --vocabulary.size")
    if output_dir.resolve() == student_dir.resolve():
        raise ConfigError(f"output_dir: {output_dir} is the student itself; choices: another folder")
    if output_dir.is_file():
        raise ConfigError(f"output_dir: {output_dir} is a file; choices: a new folder")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not (output_dir / REPORT).is_file():
        raise ConfigError(f"output_dir: {output_dir} holds something else; choices: a new folder, or one that prune has written")


def _card(student_dir: Path, before: Cut, after: Cut) -> str | None:
    """The model card of the first student with what was done to it since; None where it has none."""
    path = student_dir / "README.md"
    if not path.is_file():
        return None
    lost = "" if after.drop is None else f" It scores {100 * after.score:.1f} where the whole one scores {100 * before.score:.1f}."
    return path.read_text(encoding="utf-8").rstrip("\n") + f"""

## Vocabulary

The numbers above are those of the student before its vocabulary was cut from {before.rows:,} to {after.rows:,} word
pieces, which left {after.params:,} of {before.params:,} parameters.{lost}
"""
