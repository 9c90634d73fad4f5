"""What a study's workers are worth, and that a study runs on a real PostgreSQL server.

    python scripts/benchmark_tune.py [--trials 8] [--steps 600] [--workers 1 2]      # about 15 minutes on two cores
    python scripts/benchmark_tune.py --postgres                                      # two workers on a server, about 5 minutes

Studies of one task, each trial a search and a retraining of the same number of steps, nothing pruned, one thread a
worker; the preparation is made once, before the clock starts. What is timed is a second call of the study, from its
first trial on: workers' start-up counts. Written to results/runs/tune.json: trials an hour for each number of workers,
and their ratio (wanted: 2 workers >= 1.7 times 1 on two idle cores). With --postgres a server of Debian's package
(apt-get install postgresql) is started on a socket in a temporary folder, one of the two workers is killed in the midst
of a trial, and the server is stopped at the end whatever happens. The task is made here: texts of which one word decides.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import optuna
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from adasearch.config import FinetuneConfig, RetrainConfig, SearchConfig, TransferConfig
from adasearch.console import make_progress
from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json
from adasearch.measure import hardware
from adasearch.progress import Progress
from adasearch.run_files import commit, script_command
from adasearch.tune_study import tune
from adasearch.tune_config import TuneConfig
from adasearch.tune_storage import open_storage
from adasearch.tune_trial import open_study

WORDS = [f"w{index}" for index in range(400)]
GOOD, BAD = WORDS[:20], WORDS[20:40]
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").is_dir() else []


def make_task(folder: Path, texts: int) -> None:
    """A teacher of random weights and two files of labelled texts."""
    generator = random.Random(0)
    for name, count in (("train", texts), ("validation", 400)):
        lines = ["text,label"]
        for index in range(count):
            words = generator.choices(WORDS[40:], k=generator.randint(6, 24))
            words.insert(generator.randrange(len(words)), generator.choice(GOOD if index % 2 else BAD))
            lines.append(f"{' '.join(words)},{index % 2}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    vocabulary = {word: index for index, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special).save_pretrained(folder / "teacher")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 64}
    BertModel(BertConfig(vocab_size=len(vocabulary), **shape)).save_pretrained(folder / "teacher")


def settings(folder: Path, steps: int, **changes: Any) -> TuneConfig:
    """A study of that task: equal work in every trial."""
    chosen = {
        "task": "made", "train_file": str(folder / "train.csv"), "validation_file": str(folder / "validation.csv"),
        "teacher": str(folder / "teacher"), "max_seq_length": 64, "cpu": True, "mixed_precision": "no", "quiet": True,
        "finetune": FinetuneConfig(epochs=1.0), "transfer": TransferConfig(size=2_000),
        "search": SearchConfig(steps=steps // 3, batch_size=64, candidates=8),
        "retrain": RetrainConfig(steps=steps, batch_size=64),
        "tune": {"retrain.learning_rate": {"low": 5e-4, "high": 5e-3, "log": True}, "distill.gamma": {"low": 0.3, "high": 1.0}},
        "objectives": ["score", "macs"], "pruner": "none", "threads": 1,
    }  # fmt: skip
    return TuneConfig(**{**chosen, **changes})


def trials_per_hour(folder: Path, workers: int, trials: int, steps: int) -> dict[str, float]:
    """A study in a folder of its own, prepared before the clock starts."""
    config = settings(folder, steps, output_dir=str(folder / f"study-{workers}"), workers=workers, n_trials=trials)
    open_study(config, Progress())
    with make_progress(quiet=True) as progress:
        start = time.monotonic()
        tune(config, progress)
        seconds = time.monotonic() - start
    return {"workers": workers, "trials": trials, "seconds": seconds, "trials_per_hour": 3600 * trials / seconds}


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A PostgreSQL server in a temporary folder, on a socket only; its URL. It is stopped at the end."""
    if not POSTGRES:
        raise ConfigError("--postgres: no server below /usr/lib/postgresql; choices: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="adasearch-pg-"))
    is_root = os.geteuid() == 0
    if is_root:  # the server refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
    as_user = ["runuser", "-u", "postgres", "--"] if is_root else []

    def call(program: str, *arguments: str) -> None:
        subprocess.run([*as_user, str(POSTGRES[-1] / program), *arguments], check=True, cwd=folder, stdout=subprocess.DEVNULL)

    call("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "tune", "--no-sync")
    try:
        call("pg_ctl", "-D", str(folder / "data"), "-l", str(folder / "log"), "-w", "-o", f"-k {folder} -c listen_addresses=''", "start")
        yield f"postgresql://tune@/postgres?host={folder}"
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):  # it did not start
            call("pg_ctl", "-D", str(folder / "data"), "-m", "fast", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def kill_one(study: optuna.Study, killed: list[int]) -> None:
    """SIGKILL to the first of this process's workers, once a trial runs and another is done."""
    while not killed:
        time.sleep(0.5)
        states = [trial.state.name for trial in study.get_trials(deepcopy=False)]
        if "RUNNING" in states and "COMPLETE" in states:
            process = multiprocessing.active_children()[0]
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)


def on_postgres(folder: Path, trials: int, steps: int) -> dict[str, Any]:
    """A study with two workers on a server, one of which is killed; what the storage holds in the end."""
    with server() as url:
        config = settings(folder, steps, output_dir=str(folder / "on-postgres"), workers=2, n_trials=trials, storage=url)
        open_study(config, Progress())
        killed: list[int] = []

        def watch() -> None:
            while True:
                try:
                    study = optuna.load_study(study_name=config.name, storage=open_storage(config))
                except KeyError:  # not created yet
                    time.sleep(0.5)
                    continue
                return kill_one(study, killed)

        threading.Thread(target=watch, daemon=True).start()
        with make_progress(quiet=True) as progress:
            tune(config, progress)
        found = optuna.load_study(study_name=config.name, storage=open_storage(config)).trials
        states = [trial.state.name for trial in found]
        again = [trial.user_attrs["retry_of"] for trial in found if "retry_of" in trial.user_attrs]
    assert states.count("COMPLETE") == trials, states
    assert not killed or len(again) == 1, "one trial was lost, and it was run again"
    return {"trials": trials, "complete": states.count("COMPLETE"), "workers_killed": len(killed), "trials_lost": states.count("FAIL"), "retried": again}


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--texts", type=int, default=2_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("results/runs/tune.json"))
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server is stopped all the same
    with tempfile.TemporaryDirectory(prefix="adasearch-tune-") as name:
        folder = Path(name)
        make_task(folder, asked.texts)
        if asked.postgres:
            record: dict[str, Any] = {"postgres": on_postgres(folder, asked.trials, asked.steps)}
        else:
            rows = [trials_per_hour(folder, workers, asked.trials, asked.steps) for workers in asked.workers]
            record = {"workers": rows, "ratio": rows[-1]["trials_per_hour"] / rows[0]["trials_per_hour"]}
    known = read_json(asked.output) if asked.output.exists() else {}
    commands = {**known.get("commands", {}), "postgres" if asked.postgres else "workers": script_command()}
    facts = {
        "what": "studies of one task: trials an hour by workers; a study on a PostgreSQL server", **known, **record, "steps": asked.steps,
        "hardware": hardware(), "commit": commit(), "commands": commands, "command": " && ".join(commands.values()),
    }  # fmt: skip
    write_json(asked.output, facts)
    print(record)


if __name__ == "__main__":
    main()
