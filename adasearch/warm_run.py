"""The warm supernet of a space and a teacher: texts, the teacher's vectors, training, a folder that searches start from.

    teacher + space + texts -> word pieces -> the teacher's pooled levels, on disk -> fit -> supernet.safetensors, warm.json

Every stage leaves its result in the folder and is skipped when that is there; vectors are written chunk by chunk into one
file and read back memory-mapped, so memory does not grow with the number of texts beyond their word pieces.

Dimensions: N texts, P levels, M the teacher's hidden size, B batch, L tokens.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from adasearch.accelerator import make_accelerator
from adasearch.architecture import Space
from adasearch.chunks import READERS, RowFile
from adasearch.demo_assets import model_path
from adasearch.errors import ConfigError, DataError, ModelError, loading
from adasearch.fit_config import capped
from adasearch.files import fingerprint, write_atomically, write_json
from adasearch.fit import fit
from adasearch.inherit_layers import inherited_operations
from adasearch.measure import hardware
from adasearch.methods.warm import Warm
from adasearch.model_inputs import check_positions, check_separator, check_vocabulary, read_literally
from adasearch.objectives import teacher_level
from adasearch.outputs import partial_path, streamed_outputs
from adasearch.progress import Progress
from adasearch.run_files import ALWAYS_FREE, begin_run, check_begun, check_same, only_one, refuse_processes, refuse_run
from adasearch.settings import to_dict
from adasearch.shrink import inherit_embeddings
from adasearch.space import load_space
from adasearch.student import AdasearchConfig
from adasearch.supernet import Supernet
from adasearch.tables import check_file
from adasearch.teacher import Teacher, tables_of
from adasearch.texts import CHUNK_TEXTS, split_sentences
from adasearch.tokens import Examples, TokenStore
from adasearch.warm_config import WarmConfig
from adasearch.warm_start import FACTS, TEACHER_ROWS, WEIGHTS, facts_of, sampled_rows, vocabulary_fingerprint

FREE = (*ALWAYS_FREE, "disk_gib")
SPARE = 0.9  # of what is free on the disk may be filled
MEASURED_ROWS = 10_000  # evenly spread, from which the vectors' mean and spread are taken


@dataclass
class WarmRun:
    """A run's folder and its parts."""

    config: WarmConfig
    folder: Path
    whole_space: Space
    space: Space
    teacher: Teacher
    accelerator: Accelerator
    progress: Progress


def warm(config: WarmConfig, progress: Progress | None = None) -> Path:
    """Train the warm supernet and return its folder, which `warm_start` of a run takes; a finished one is left as it is.

    Raises ``ConfigError``, ``DataError`` or ``ModelError`` before any work when request, texts or teacher are wrong, and
    ``TrainingError`` when the loss is not finite or the disk is full.
    """
    refuse_processes("warm")
    config.check()
    folder = Path(config.output_dir)
    refuse_run("teacher", config.teacher)
    check_begun(folder, config, FREE)
    if (folder / FACTS).exists():
        return folder
    with only_one(folder):
        this = _open(config, folder, progress or Progress())
        tokens = tokenize_stream(this)
        states_NPM = _states(this, tokens)
        _train(this, tokens, states_NPM)
    return folder


def _open(config: WarmConfig, folder: Path, progress: Progress) -> WarmRun:
    """Check all that can be checked without the texts."""
    accelerator = make_accelerator(config)
    check_file(Path(config.unlabeled_file), "unlabeled_file", tuple(READERS))
    file_of(config).check_header()
    whole_space = load_space(config.space)
    if inherited_operations(whole_space):
        raise ConfigError(
            f"space: {whole_space.name!r} has layers of the teacher, which know its vectors already; choices: a space without them"
        )
    space = whole_space.for_task(is_pair=config.text_pair_column is not None)
    teacher = load_encoder(config, folder)
    teacher.model.eval().requires_grad_(False).to(accelerator.device)
    return WarmRun(config, folder, whole_space, space, teacher, accelerator, progress)


def load_encoder(config: WarmConfig, folder: Path) -> Teacher:
    """The teacher without its head, whatever it was saved with. Raises ``ModelError``, and ``ConfigError`` where it reads no texts of ``max_seq_length``."""
    path = model_path(config.teacher, folder / "cache", config.demo_assets)
    with loading(f"teacher: {config.teacher!r} cannot be loaded", "a folder, a hub name or 'demo'"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        model = AutoModel.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    if not tokenizer.is_fast or tokenizer.sep_token_id is None or tokenizer.pad_token_id is None:
        raise ModelError(f"teacher: the tokenizer of {config.teacher!r} must be a fast one with a separator and a padding token")
    if config.max_seq_length > tokenizer.model_max_length:
        longest = tokenizer.model_max_length
        raise ConfigError(f"max_seq_length: {config.max_seq_length} is too long; {config.teacher!r} takes up to {longest}")
    if config.text_pair_column is not None:
        check_separator("teacher", config.teacher, tokenizer, f"text_pair_column {config.text_pair_column!r}")
    check_vocabulary("teacher", config.teacher, tokenizer, model.config)
    check_positions("max_seq_length", config.max_seq_length, config.teacher, model.config)
    model.config.is_pair = config.text_pair_column is not None
    if model.config.is_pair:
        read_literally(tokenizer)
    return Teacher(model.float(), tokenizer)


def file_of(config: WarmConfig) -> RowFile:
    """The file of texts and what is read of it."""
    pair = config.text_pair_column
    return RowFile(Path(config.unlabeled_file), (config.text_column, *([pair] if pair else [])), "unlabeled_file")


def texts_of(config: WarmConfig) -> Iterator[tuple[str, str | None]]:
    """Texts or pairs, row by row, empty ones left out. Raises ``DataError`` naming the row that cannot be read."""
    file, pair = file_of(config), config.text_pair_column
    for row in file.rows():
        if row.problem:
            raise DataError(f"unlabeled_file: {file.path}: {file.unit} {row.number}: {row.problem}")
        text = row.values[config.text_column]
        if pair:
            if text.strip() or row.values[pair].strip():
                yield text, row.values[pair]
        elif config.split_sentences:
            yield from ((sentence, None) for sentence in split_sentences([text]))
        elif text.strip():
            yield text, None


def tokenize_stream(this: WarmRun) -> TokenStore:
    """The first ``texts`` of them as word pieces, mapped from the cache; done once, a chunk of texts in memory at a time."""
    config, tokenizer, cache = this.config, this.teacher.tokenizer, this.folder / "cache"
    keys = ("text_column", "text_pair_column", "texts", "split_sentences", "max_seq_length")
    name = f"texts-{fingerprint(Path(config.unlabeled_file), vocabulary_fingerprint(tokenizer), [getattr(config, key) for key in keys])}"
    store = TokenStore.load(cache, name)
    if store is not None:
        return store
    this.progress.stage("tokenize", config.texts)

    def sequences() -> Iterator[list[int]]:
        texts = itertools.islice(texts_of(config), config.texts)
        done = 0
        while chunk := list(itertools.islice(texts, CHUNK_TEXTS)):
            first, second = [text for text, _ in chunk], [pair for _, pair in chunk]
            yield from tokenizer(
                first, second if config.text_pair_column else None, truncation="longest_first", max_length=config.max_seq_length,
                padding=False, return_attention_mask=False, return_token_type_ids=False,
            )["input_ids"]  # fmt: skip
            done += len(chunk)
            this.progress.step(done)

    store = TokenStore.from_lists(sequences())
    if not len(store):
        raise DataError(f"unlabeled_file: {config.unlabeled_file} holds no text (sentences of 3 to 60 words where split_sentences is on)")
    store.save(cache, name)
    return TokenStore.load(cache, name)


def _states(this: WarmRun, tokens: TokenStore) -> np.ndarray:
    """The teacher's pooled levels, one for each level of the student, (N, P, M) float16, mapped from the cache."""
    config, teacher = this.config, this.teacher
    deepest, size = this.space.cells[1], teacher.model.config.hidden_size
    picked = [teacher_level(level, deepest, teacher.levels) for level in range(deepest + 1)]
    path = this.folder / "cache" / f"states-{fingerprint(tokens.ids, tokens.offsets, picked, config.pooling)}.npy"
    need = len(tokens) * len(picked) * size * 2
    if not path.exists():
        _check_disk(need, len(tokens), config, path)
        this.progress.message(f"the teacher's vectors of {len(tokens):,} texts take {need / 2**20:,.1f} MiB in {path.parent}")
    data = {"texts": {"examples": len(tokens), "texts": fingerprint(tokens.ids, tokens.offsets)}}
    inputs = {"teacher": Path(config.teacher), "space": this.space.digest}
    check_same(this.folder / "run.json", data, inputs)  # after it nothing is left to refuse
    begin_run(this.folder, to_dict(config), this.accelerator.mixed_precision, hardware=hardware(), data=data, inputs=inputs)

    def forward(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        states = teacher.model(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, **teacher.token_types(input_ids)
        ).hidden_states
        mask_BL1 = attention_mask[:, :, None].to(states[0].dtype)
        pooled = [
            states[level][:, 0] if config.pooling == "first" and level else (states[level] * mask_BL1).sum(1) / mask_BL1.sum(1)
            for level in picked
        ]  # of the embeddings the mean in any case: the first token's is the same for all texts
        return (torch.stack(pooled, 1),)

    examples = Examples(tokens, teacher.tokenizer.pad_token_id)
    return streamed_outputs(forward, examples, path, this.accelerator, this.progress, f"teacher reads {len(tokens):,} texts")


def _check_disk(need: int, count: int, config: WarmConfig, path: Path) -> None:
    """``path`` of ``need`` bytes must be allowed and find room; what a killed pass has written of it takes none a second time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free, partial = shutil.disk_usage(path.parent).free, partial_path(path)
    held = partial.stat().st_blocks * 512 if partial.exists() else 0  # not its length: most of it may be a hole
    allowed = min(config.disk_gib * 2**30, held + SPARE * free)
    if need > allowed:
        fits = int(allowed // (need // count))
        written = f" beside {held / 2**30:.2f} that are written" if held else ""
        raise ConfigError(
            f"texts: the teacher's vectors of {count:,} texts take {need / 2**20:,.1f} MiB; disk_gib allows {config.disk_gib:g}, and"
            f" {free / 2**30:.1f} are free in {path.parent}{written}; choices: --texts {fits}, or more --disk_gib"
        )


def _train(this: WarmRun, tokens: TokenStore, states_NPM: np.ndarray) -> None:
    config, folder, teacher = this.config, this.folder, this.teacher
    word, position = (table if table is None else table.float().cpu() for table in tables_of(teacher.model))
    student_config = AdasearchConfig(
        vocab_size=len(word), max_position_embeddings=config.max_seq_length, embedding_rank=word.shape[1],
        sep_token_id=teacher.tokenizer.sep_token_id, pad_token_id=teacher.tokenizer.pad_token_id,
        is_pair=config.text_pair_column is not None,
    )  # fmt: skip
    torch.manual_seed(config.seed)
    supernet = Supernet(this.space, student_config)
    inherit_embeddings(supernet.trunk, word, position)
    sample = states_NPM[np.linspace(0, len(tokens) - 1, min(MEASURED_ROWS, len(tokens))).astype(np.int64)].astype(np.float32)
    mean_PM, scale_PM = torch.from_numpy(sample.mean(0)), torch.from_numpy(sample.std(0)).clamp_min(1e-4)
    settings = capped(config.fit, config.max_steps)
    method = Warm(settings, mean_PM, scale_PM, config.level_weight, config.cosine_weight)
    examples = Examples(tokens, teacher.tokenizer.pad_token_id, teacher_states=states_NPM)
    teacher.model.cpu()
    history = fit(
        supernet, method, {"train": examples}, settings, seed=config.seed, folder=folder, accelerator=this.accelerator,
        progress=this.progress, title="warm supernet", checkpoint_seconds=config.checkpoint_seconds,
    )  # fmt: skip
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in supernet.state_dict().items()}
    state[TEACHER_ROWS] = sampled_rows(word).contiguous()
    write_atomically(folder / WEIGHTS, lambda partial: save_file(state, partial))
    facts: dict[str, Any] = {
        **facts_of(student_config, this.space, this.whole_space),
        "teacher": config.teacher,
        "vocabulary": vocabulary_fingerprint(teacher.tokenizer),
        "texts": len(tokens),
        "steps": settings.steps,
        "loss_first": history[0]["terms"],
        "loss_last": history[-1]["terms"],
        "settings": to_dict(config),
    }
    write_json(folder / FACTS, facts)  # last: its presence says that all is there
    (folder / "checkpoint.pt").unlink(missing_ok=True)
