"""Tasks with examples to choose by that are not those reported, and a fine-tuned teacher for each.

    python scripts/prepare_tasks.py --data_dir DIR [--tasks sst2 mrpc snli rte qnli squad] [--output_dir runs/glue] [--model demo]

Of sst2, rte and qnli the labelled test sets are not public: what is reported is the validation set, so choosing a step or a
model by it would flatter. In <output_dir>/data/<task>/ test.parquet is therefore the public validation set, and
validation.parquet examples drawn from the training set. mrpc has a labelled test set and stays as it is. Of snli, DIR may
hold the whole, or in snli_devtest/ the two small splits alone: the first is learned from then. Of squad 20,000 questions are
learned from and 2,000 of the public ones scored, in windows of 192 word pieces: the whole takes a core half a day for each model.

rte and sst2 are given texts without labels, which a run's teacher labels: the training pairs of snli and mrpc, and the reviews of
imdb, where DIR has them. They are unlabeled.parquet beside the other three: `adasearch run` learns from them, cofi and prune-ofa with `--transfer.unlabeled_size`.

Teachers lie in <output_dir>/teachers/<task>. 2,490 pairs do not teach MiniLM what follows from what (54.9 of 52.7 for the
constant answer), so that the teacher of rte learns snli first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adasearch.cli import explained
from adasearch.config import FinetuneConfig
from adasearch.console import make_progress, quiet_third_parties
from adasearch.encoder_config import EncoderRunConfig
from adasearch.encoder_run import About, open_encoders
from adasearch.errors import ConfigError, DataError
from adasearch.files import read_json, write_atomically, write_folder
from adasearch.question_config import QuestionConfig
from adasearch.sources import PRESETS

HELD_OUT = {"sst2": 1_000, "rte": 200, "qnli": 1_000, "snli": 500, "squad": 500}  # rows of the training set; mrpc has a validation set to spare
EPOCHS = {"sst2": 2.0, "mrpc": 4.0, "rte": 4.0, "qnli": 1.0, "snli": 2.0, "squad": 2.0}
DRAWN = {"squad": {"train": 20_000, "test": 2_000}}  # rows that are taken of a large task
MORE_TEXTS = {"rte": ("snli", "mrpc"), "sst2": ("imdb",)}  # whose training texts are a task's texts without labels
ABOUT = About("fine-tuning", "finetune", "", "The dense model alone.")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with <task>/{train,validation,test}.parquet")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "mrpc", "snli", "rte", "qnli"], choices=EPOCHS)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/glue"))
    parser.add_argument("--model", default="demo", help="the pre-trained checkpoint")
    parser.add_argument("--epochs", type=float, help="of fine-tuning; by task when absent")
    parser.add_argument("--learning_rate", type=float, default=8e-5)
    parser.add_argument("--seed", type=int, default=42, help="of the rows held out and of fine-tuning")
    parser.add_argument("--mixed_precision", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def read_train(source: Path, task: str) -> pa.Table:
    """A task's training rows; of snli those of the first small split where the whole is not there."""
    path = source / task / "train.parquet"
    return read(path if task != "snli" or path.exists() else source / "snli_devtest" / "validation.parquet")


def read(path: Path) -> pa.Table:
    """A split as it was given."""
    if not path.exists():
        raise DataError(f"data_dir: {path} is not there; choices: a folder that has it, --tasks with those that are there")
    return pq.read_table(path)


def hold_out(train: pa.Table, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` random rows, and the others in random order. With contexts all questions on one go together: a few more rows."""
    order = np.random.default_rng(seed).permutation(len(train))
    if "context" not in train.column_names:
        return order[:count], order[count:]
    contexts = train["context"].combine_chunks().dictionary_encode().indices.to_numpy()
    names, first, sizes = np.unique(contexts[order], return_index=True, return_counts=True)
    drawn = np.argsort(first)  # the contexts as they come in that order
    is_held = np.isin(contexts[order], names[drawn[: np.searchsorted(sizes[drawn].cumsum(), count) + 1]])
    return order[is_held], order[~is_held]


def split(source: Path, target: Path, task: str, seed: int) -> None:
    """Write the task's three splits."""
    train = read_train(source, task)
    folder = "snli_devtest" if task == "snli" and not (source / task).is_dir() else task
    test = read(source / folder / f"{'test' if task in ('mrpc', 'snli') else 'validation'}.parquet")
    target.mkdir(parents=True, exist_ok=True)
    if task == "mrpc":
        shutil.copyfile(source / task / "validation.parquet", target / "validation.parquet")
    else:
        drawn, count = DRAWN.get(task, {}), HELD_OUT[task]
        held, others = hold_out(train, count, seed)
        pq.write_table(train.take(np.sort(held)), target / "validation.parquet")
        train = train.take(np.sort(others[: drawn.get("train")]))
        if "test" in drawn:
            test = test.take(np.sort(np.random.default_rng(seed).permutation(len(test))[: drawn["test"]]))
    if more := more_texts(source, task):
        pq.write_table(more, target / "unlabeled.parquet")
    pq.write_table(test, target / "test.parquet")
    write_atomically(target / "train.parquet", lambda partial: pq.write_table(train, partial))  # last: it says that all is there


def more_texts(source: Path, task: str) -> pa.Table | None:
    """The texts without labels under the task's own column names; None where there are none."""
    own, tables = PRESETS[task], []
    for name in MORE_TEXTS.get(task, ()):
        if (source / name).is_dir() or name == "snli":
            theirs, rows = PRESETS[name], read_train(source, name)
            tables.append(pa.table({own.text: rows[theirs.text]} | ({own.pair: rows[theirs.pair]} if own.pair else {})))
    return pa.concat_tables(tables, promote_options="permissive") if tables else None


def finetune(args: argparse.Namespace, task: str) -> None:
    """The task's teacher."""
    target = args.output_dir / "teachers" / task
    start = args.output_dir / "teachers" / "snli" if task == "rte" else args.model
    if task == "rte" and not start.is_dir():
        raise ConfigError("tasks: rte: its teacher learns snli first; choices: --tasks snli rte")
    config = EncoderRunConfig(
        task=task, data_dir=str(args.output_dir / "data"), model=str(start), output_dir=str(args.output_dir / "work" / task), seed=args.seed,
        mixed_precision=args.mixed_precision, threads=args.threads, cpu=True,
        finetune=FinetuneConfig(when="always", epochs=args.epochs or EPOCHS[task], learning_rate=args.learning_rate, batch_size=32),
        question=QuestionConfig(max_seq_length=192, doc_stride=64),
    )  # fmt: skip
    with make_progress(quiet=True) as progress:
        _, problem = open_encoders(config, ABOUT, progress)
        scores = problem.scores(problem.teacher.model, problem.held_out)
        write_folder(target, lambda partial: shutil.copytree(problem.teacher_folder, partial, dirs_exist_ok=True))
    took = read_json(target / "training.json").get("cpu_seconds")
    print(f"{task}: " + ", ".join(f"{name} {100 * value:.1f}" for name, value in scores.items()) + (f", {took:.0f} s" if took else ""), flush=True)


def main() -> None:
    """Make what is missing."""
    args = arguments()
    quiet_third_parties()
    for task in sorted(args.tasks, key=lambda name: name == "rte"):  # its teacher starts from snli's
        data = args.output_dir / "data" / task
        if not (data / "train.parquet").exists():  # written last
            split(args.data_dir, data, task, args.seed)
        if not (args.output_dir / "teachers" / task).is_dir():
            finetune(args, task)


if __name__ == "__main__":
    sys.exit(explained(main))
