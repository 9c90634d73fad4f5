"""Tiny language models built from a config, and random data for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from adasearch.language import Seq2SeqPairs, TokenBlocks
from adasearch.tokens import TokenStore

VOCABULARY = 40
TEXTS = ("a cat sat on the mat .\n", "the dog saw a cat !\n", "  one two three\n\nfour five six\n")


def tiny_gpt2(seed: int = 0, **settings: Any) -> GPT2LMHeadModel:
    """Two layers of width 16 with dropout, so that random numbers matter."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, "bos_token_id": 0, "eos_token_id": 0, **settings}))


def tiny_bart(seed: int = 0, **settings: Any) -> BartForConditionalGeneration:
    """The same with an encoder."""
    torch.manual_seed(seed)
    layers = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    sizes = {"vocab_size": VOCABULARY, "d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32}
    tokens = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2}
    return BartForConditionalGeneration(BartConfig(**{**layers, **sizes, **tokens, **settings}))


def small_gpt2(vocabulary: int) -> GPT2LMHeadModel:
    """Without dropout."""
    return tiny_gpt2(vocab_size=vocabulary, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def small_bart(vocabulary: int) -> BartForConditionalGeneration:
    """Without dropout and a forced end, of one layer a side."""
    return tiny_bart(vocab_size=vocabulary, encoder_layers=1, decoder_layers=1, dropout=0.0, forced_eos_token_id=None)


def tiny_model(kind: str, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """By the names that transformers gives them."""
    return {"gpt2": tiny_gpt2, "bart": tiny_bart}[kind](seed, **settings)


def tiny_examples(kind: str, count: int = 12, length: int = 8) -> TokenBlocks | Seq2SeqPairs:
    """Blocks of one length but for the last, or pairs of several lengths."""
    rng = np.random.default_rng(0)
    if kind == "gpt2":
        offsets = np.append(np.arange(0, count * length, length), count * length - length // 2)
        return TokenBlocks(TokenStore(rng.integers(3, VOCABULARY, offsets[-1]).astype(np.int32), offsets), 0, words=count)
    sides = [TokenStore.from_lists([rng.integers(3, VOCABULARY, rng.integers(3, length)) for _ in range(count)]) for _ in range(2)]
    return Seq2SeqPairs(*sides, tuple("a text" for _ in range(count)), pad_token_id=1)


def save_tiny(kind: str, folder: Path) -> Path:
    """A sure model and its tokenizer of whole words, as transformers writes them."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(VOCABULARY - 4))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    tiny_model(kind, **{"initializer_range" if kind == "gpt2" else "init_std": 0.3}).save_pretrained(folder)
    return folder


def save_texts(kind: str, folder: Path) -> dict[str, str]:
    """Files of random words by the settings that name them: text for GPT-2, pairs for BART."""
    rng, files = np.random.default_rng(1), {}
    folder.mkdir(parents=True, exist_ok=True)

    def words(count: int) -> str:
        return " ".join(f"w{number}" for number in rng.integers(0, VOCABULARY - 4, count))

    for split, count in (("train", 24), ("validation", 6), ("test", 6)):
        if kind == "gpt2":
            path, text = folder / f"{split}.txt", words(8 * count)
        else:
            path, rows = folder / f"{split}.jsonl", [{"source": words(6), "target": words(4)} for _ in range(count)]
            text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
        files[f"{split}_file"] = str(path)
    return files


def byte_level(is_paired: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE with GPT-2's or BART's special tokens."""
    special = ["<s>", "<pad>", "</s>"] if is_paired else ["<|endoftext|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False))
    if is_paired:
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
        return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", pad_token="<pad>", eos_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
