"""Two small language models from scratch, for machines where no checkpoint can be had: what QuantGPT is tried on.

    python scripts/train_small_language_models.py --data_dir DIR [--output_dir runs/language] [--models gpt2 bart]

DIR holds wikitext2/{train,validation,test}.parquet and squad/{train,validation}.parquet.
gpt2: 4 layers of width 128 on WikiText-2, with a byte-level BPE of its own; scored by perplexity, per token and per word.
bart: 2 + 2 layers of width 128 that ask the question to a marked answer (SQuAD, lower case); scored by ROUGE.
Each leaves a folder for ``from_pretrained`` with its tokenizer and ``scores.json``; the pairs lie beside as jsonl.
Seeded; a killed run goes on from its checkpoint, and what is whole already is left as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from adasearch.cli import explained
from adasearch.config import FitConfig
from adasearch.console import LogProgress
from adasearch.corpora import find_corpus, find_pairs
from adasearch.files import write_folder, write_json, write_text
from adasearch.fit import fit
from adasearch.language import tokenize_blocks, tokenize_pairs
from adasearch.methods.language_model import LanguageModel
from adasearch.perplexity import perplexity, target_perplexity
from adasearch.rouge import generate_texts, rouge, rouge_scorer

VOCABULARY = 4_096
WIDTH = 128  # small enough that a hundred quantised trainings are an afternoon on two cores
BLOCK = 128
MARK = "<answer>"  # stands before and after the answer in a source
SOURCE_LENGTH, TARGET_LENGTH = 96, 32
HELD_OUT = 1_000  # pairs for validation, and as many others for the test
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])")


def byte_level_bpe(texts: Iterable[str], special: list[str]) -> Tokenizer:
    """A byte-level BPE of ``VOCABULARY`` pieces, as GPT-2's (Radford et al. 2019), learned from ``texts``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def saved(path: Path, tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer as it is read back, so that a run that goes on has the very same."""
    write_folder(path, lambda partial: tokenizer.save_pretrained(partial))
    return PreTrainedTokenizerFast.from_pretrained(path)


def train(
    model: torch.nn.Module, examples, evaluate, config: FitConfig, work: Path, args: argparse.Namespace, title: str
) -> dict[str, float]:
    """Train in place; seconds and steps."""
    start = time.monotonic()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if args.is_mixed else "no")
    with LogProgress() as progress:
        fit(
            model, LanguageModel(config), {"train": examples}, config, seed=args.seed, folder=work, accelerator=accelerator,
            progress=progress, title=title, evaluate=evaluate, evaluations=2, is_mixed=args.is_mixed,
        )  # fmt: skip
    return {"steps": config.steps, "seconds_of_this_start": time.monotonic() - start, "parameters": model.num_parameters()}


def save(folder: Path, model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, scores: dict) -> None:
    """Model, tokenizer and scores as one whole folder."""

    def write(partial: Path) -> None:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        write_json(partial / "scores.json", scores)

    write_folder(folder, write)
    print(json.dumps(scores, indent=2), flush=True)


def train_gpt2(args: argparse.Namespace, output: Path) -> None:
    """WikiText-2, perplexity."""
    work = output / "work" / "gpt2"
    corpora = find_corpus("wikitext2", data_dir=args.data_dir)
    if not (work / "tokenizer").exists():
        bpe = byte_level_bpe(corpora["train"].texts, ["<|endoftext|>"])
        end = "<|endoftext|>"
        saved(work / "tokenizer", PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=end, eos_token=end, unk_token=end))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    blocks = {
        split: tokenize_blocks(corpus, tokenizer, BLOCK, cache=work / "cache", name=split) for split, corpus in corpora.items()
    }
    torch.manual_seed(args.seed)
    end_id = tokenizer.eos_token_id
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=256, n_embd=WIDTH, n_layer=4, n_head=4, bos_token_id=end_id, eos_token_id=end_id,
            resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1,
        )
    )  # fmt: skip
    config = FitConfig(
        steps=args.steps or 2_500, batch_size=32, learning_rate=1e-3, warmup=0.05, weight_decay=0.1, clip_norm=1.0
    )

    def measure(model: torch.nn.Module, split: str, stride: int) -> dict[str, float]:
        part = blocks[split]
        return perplexity(model, part.stream_T, block_length=BLOCK, stride=stride, batch_size=32, words=part.words)

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        return measure(model, "validation", BLOCK)  # windows side by side: half the time

    scores = train(model, blocks["train"], evaluate, config, work, args, "small GPT-2")
    scores |= {split: measure(model, split, BLOCK // 2) for split in ("validation", "test")}
    save(output / "gpt2", model, tokenizer, scores)


def question_pairs(path: Path) -> Iterator[dict[str, str]]:
    """SQuAD's rows as source (the answer's sentence, the answer marked) and target (the question), in lower case.

    Rows whose answer runs over the end of a sentence, as the rule cuts it, are left out.
    """
    for row in pq.read_table(path).to_pylist():
        answer, begin = row["answers"]["text"][0], row["answers"]["answer_start"][0]
        starts = [0, *(match.end() for match in SENTENCE_END.finditer(row["context"])), len(row["context"])]
        for first, last in zip(starts, starts[1:]):
            if first <= begin and begin + len(answer) <= last:
                before, after = row["context"][first:begin], row["context"][begin + len(answer) : last]
                source = f"{before}{MARK} {answer} {MARK}{after}"
                yield {"source": " ".join(source.lower().split()), "target": " ".join(row["question"].lower().split())}


def write_pairs(args: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """The pairs as jsonl by split; validation and test are disjoint draws from SQuAD's own validation rows."""
    files = {split: folder / f"{split}.jsonl" for split in ("train", "validation", "test")}
    if all(path.exists() for path in files.values()):
        return files
    source = Path(args.data_dir) / "squad"
    train = [pair for pair in question_pairs(source / "train.parquet") if pair["target"]]
    held_out = [pair for pair in question_pairs(source / "validation.parquet") if pair["target"]]
    chosen = np.random.default_rng(args.seed).permutation(len(held_out))[: 2 * HELD_OUT]
    parts = (train, [held_out[i] for i in chosen[:HELD_OUT]], [held_out[i] for i in chosen[HELD_OUT:]])
    for path, pairs in zip(files.values(), parts):
        write_text(path, "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    return files


def train_bart(args: argparse.Namespace, output: Path) -> None:
    """Questions to marked answers, ROUGE."""
    rouge_scorer()  # before the training: it may not be installed
    work = output / "work" / "bart"
    texts = find_pairs("questions", files=write_pairs(args, output / "questions"))
    if not (work / "tokenizer").exists():
        bpe = byte_level_bpe([*texts["train"].sources, *texts["train"].targets], ["<s>", "<pad>", "</s>", "<unk>", MARK])
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[(piece, bpe.token_to_id(piece)) for piece in ("<s>", "</s>")]
        )
        names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        saved(work / "tokenizer", PreTrainedTokenizerFast(tokenizer_object=bpe, **names))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    pairs = {
        split: tokenize_pairs(part, tokenizer, SOURCE_LENGTH, TARGET_LENGTH, cache=work / "cache", name=split)[0]
        for split, part in texts.items()
    }
    torch.manual_seed(args.seed)
    model = BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(tokenizer), max_position_embeddings=128, d_model=WIDTH, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=4 * WIDTH, decoder_ffn_dim=4 * WIDTH,
            dropout=0.1, attention_dropout=0.0, activation_dropout=0.0, forced_eos_token_id=None,
            bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    config = FitConfig(
        steps=args.steps or 2_500, batch_size=64, learning_rate=1e-3, warmup=0.1, weight_decay=0.01, clip_norm=1.0
    )
    scores = train(
        model, pairs["train"], lambda model: target_perplexity(model, pairs["validation"]), config, work, args, "small BART"
    )
    for split in ("validation", "test"):
        written = generate_texts(model, pairs[split], tokenizer, max_new_tokens=TARGET_LENGTH, batch_size=64)
        scores[split] = {**target_perplexity(model, pairs[split]), **rouge(written, pairs[split].references)}
        lines = zip(texts[split].sources, pairs[split].references, written)
        shown = [{"source": source, "target": target, "written": text} for source, target, text in lines]
        write_text(work / f"written-{split}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in shown))
    save(output / "bart", model, tokenizer, scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--output_dir", default="runs/language")
    parser.add_argument("--models", nargs="+", default=["gpt2", "bart"], choices=["gpt2", "bart"])
    parser.add_argument("--steps", type=int, help="of every model; its own number when absent")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--is_mixed", action=argparse.BooleanOptionalAction, default=True, help="compute in bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.models:
        folder = Path(args.output_dir) / name
        if folder.exists():
            print(f"{folder}: there already")
        else:
            {"gpt2": train_gpt2, "bart": train_bart}[name](args, Path(args.output_dir))


if __name__ == "__main__":
    sys.exit(explained(main))
