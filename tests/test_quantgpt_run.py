"""A whole run on tiny models: what it writes, that it goes on and is not repeated, what is refused before it begins."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from hearing import KillAt, Killed
from tiny_language import save_texts, save_tiny
from transformers import BertConfig

from adasearch import QuantGptConfig, quantgpt_run, quantize_language_model
from adasearch.cli import main
from adasearch.errors import AdasearchError, ConfigError, ModelError
from adasearch.language_task import load_language_task
from adasearch.low_bit import load_low_bit
from adasearch.perplexity import perplexity
from adasearch.progress import Progress
from adasearch.quantgpt_run import _tokenizer, language_config, load_language_model

SMALL = {"steps": 6, "batch_size": 4, "block_length": 8, "source_length": 8, "target_length": 8, "evaluations": 2, "cpu": True, "task": "words"}


def settings(kind: str, folder: Path, **changes: Any) -> QuantGptConfig:
    model = folder / "tiny"
    if not model.exists():
        save_tiny(kind, model)
    return QuantGptConfig(**{**SMALL, "model": str(model), "output_dir": str(folder / "run"), **save_texts(kind, folder), **changes})


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_a_run_leaves_a_packed_model_and_says_how_good_and_how_small_it_is(tmp_path: Path, kind: str) -> None:
    config = settings(kind, tmp_path, figures=kind == "gpt2")
    report = quantize_language_model(config)
    run = tmp_path / "run"
    assert json.loads((run / "report.json").read_text()) == report
    assert report["metric"] == ("perplexity" if kind == "gpt2" else "rougeL") and report["split"] == "test"
    assert report["packed_logits_max_difference"] == 0  # packed is what was trained, in every bit
    written = (run / "model" / "model.safetensors").stat().st_size
    assert report["size_mib_quantized"] == written / 2**20
    full = sum(p.numel() for p in load_language_model(config.model).state_dict().values()) * 4  # the tied head counts once
    tied = {"gpt2": 1, "bart": 3}[kind] * 40 * 16 * 4
    assert report["size_mib_full_precision"] == pytest.approx((full - tied) / 2**20)
    assert report["size_ratio"] == pytest.approx(report["size_mib_full_precision"] / report["size_mib_quantized"])
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file() and "cache" not in path.parts}
    drawn = {f"figures/{name}.{ending}" for name in ("weights", "scales", "similarity") for ending in ("svg", "png") if kind == "gpt2"}
    assert names == drawn | {
        "config.yaml", "run.json", "history.jsonl", "quantizers.json", "report.json", "report.md",
        *(f"model/{name}" for name in ("config.json", "generation_config.json", "model.safetensors", "README.md", "tokenizer.json", "tokenizer_config.json")),
    }  # fmt: skip
    assert "logits are those of the trained one, bit by bit" in (run / "report.md").read_text()


def test_texts_without_blanks_have_no_perplexity_of_words_and_a_report(tmp_path: Path) -> None:
    """In Chinese or Thai what stands between two blanks may be a whole line, and e to the power of its loss beyond every float."""
    config = settings("gpt2", tmp_path, figures=False)
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(".".join(f"w{number % 30}" for number in range(400)), encoding="utf-8")
    report = quantize_language_model(config)
    assert report["scores_full_precision"]["word_perplexity"] == math.inf and math.isfinite(report["score_full_precision"])
    assert (tmp_path / "run" / "report.md").exists()


def test_scores_are_those_of_the_models_in_the_folders(tmp_path: Path) -> None:
    config = settings("gpt2", tmp_path, stride=3, figures=False)
    report = quantize_language_model(config)
    found = language_config(config.model)
    tokenizer = _tokenizer(config.model, found)
    task = load_language_task(config, found, tokenizer, cache=tmp_path / "cache", progress=Progress())
    ids_T = task.splits["test"].stream_T
    for model, name in ((load_language_model(config.model), "full_precision"), (load_low_bit(tmp_path / "run" / "model"), "quantized")):
        expected = perplexity(model, ids_T, block_length=8, stride=3, accelerator=Accelerator(cpu=True))["perplexity"]
        assert report[f"score_{name}"] == pytest.approx(expected, rel=1e-6)


def test_a_finished_run_is_only_reported_again_and_other_settings_are_refused(tmp_path: Path) -> None:
    config = settings("gpt2", tmp_path, figures=False)
    report = quantize_language_model(config)
    weights = tmp_path / "run" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    (tmp_path / "run" / "report.md").unlink()
    config.quiet = True
    assert quantize_language_model(config) == report
    assert weights.stat().st_mtime_ns == before and (tmp_path / "run" / "report.md").exists()
    config.seed = 7
    with pytest.raises(ConfigError, match="seed was 42, is 7"):
        quantize_language_model(config)


def test_a_killed_run_ends_with_the_same_files(tmp_path: Path) -> None:
    config = settings("gpt2", tmp_path, figures=False, checkpoint_seconds=0.0)
    quantize_language_model(config)
    config.output_dir = str(tmp_path / "killed")
    with pytest.raises(Killed):
        quantize_language_model(config, KillAt(4, f"quantise to {config.bits}"))
    assert (tmp_path / "killed" / "checkpoint.pt").exists()
    quantize_language_model(config)
    left, right = (load_low_bit(tmp_path / name / "model").state_dict() for name in ("run", "killed"))
    assert left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def test_a_kill_after_the_model_was_written_leaves_no_checkpoint_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("gpt2", tmp_path, figures=False, checkpoint_seconds=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(quantgpt_run, "_difference", lambda this, student: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            quantize_language_model(config)
    assert (tmp_path / "run" / "checkpoint.pt").exists() and (tmp_path / "run" / "model" / "config.json").exists()
    quantize_language_model(config)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bits": "2-2"}, "2-2"),
        ({"seed": -1}, "seed: -1 is out of range"),
        ({"bits": "32-32-8"}, "bits: 32-32-8 quantises no weights"),
        ({"quantizer": "best"}, "quantizer 'best'; known: dynamic_scale"),
        ({"quantizer": "twn", "bits": "4-4-8"}, "twn: 4 bits"),
        ({"block_length": 64}, "block_length: 64 is out of range; choices: 2 to 32"),
        ({"model": "nowhere/at/all"}, "model: 'nowhere/at/all' cannot be loaded"),
        ({"train_file": "absent.txt"}, "absent.txt"),
        ({"validation_file": None, "test_file": None}, "expected: train, validation"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(AdasearchError) as error:
        quantize_language_model(settings("gpt2", tmp_path, **changes))
    assert says in str(error.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_other_models_are_refused(tmp_path: Path) -> None:
    BertConfig(hidden_size=8, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a bert; choices: gpt2, bart"):
        language_config(str(tmp_path))


def test_the_command_line_takes_flags_and_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings("gpt2", tmp_path)
    file = tmp_path / "settings.yaml"
    file.write_text("steps: 3\nbatch_size: 4\nblock_length: 8\nfigures: false\nevaluations: 0\ncpu: true\n")
    texts = [part for split in ("train", "validation") for part in (f"--{split}_file", getattr(config, f"{split}_file"))]
    run = str(tmp_path / "cli")
    arguments = ["compress", "quantgpt", "--config", str(file), "--model", config.model, *texts, "--bits", "4-4-8", "--output_dir", run]
    assert main([*arguments, "--quiet"]) == 0
    assert "at 4-4-8" in capsys.readouterr().out
    report = json.loads((tmp_path / "cli" / "report.json").read_text())
    assert report["config"]["bits"] == "4-4-8" and report["steps"] == 3 and report["split"] == "validation"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["compress", "--help"], 0, "quantgpt"),
        (["compress"], 2, "quantgpt"),
        (["compress", "quantgtp"], 2, "unknown method 'quantgtp' (did you mean 'quantgpt'?)"),
        (["compress", "quantgpt", "--help"], 0, "--lambda_contrastive"),
        (["compress", "quantgpt", "--bitz", "2-2-8"], 2, "unknown setting 'bitz' (did you mean 'bits'?)"),
        (["compress", "quantgpt"], 2, "model: none given"),
    ],
)
def test_the_command_line_explains_itself(arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert says in captured.out + captured.err
