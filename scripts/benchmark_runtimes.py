"""A finished student against its teacher and the reference shapes, every system in its best runtime and precision.

    adasearch quantize runs/sst2
    python scripts/benchmark_runtimes.py runs/sst2 [--name sst2_runtimes] [--repeats 15]

Time: about fifteen minutes on two cores, most of it the BERT-base shape's batches of 32 x 128 tokens; one thread each, all
systems in turns. Reference shapes have random weights, and whatever is int8 but the student has its ranges from random
texts: these serve for time only. Expected of SST-2: >= 40 times the BERT-base shape at batch 1 and 32, >= 8 times the
MiniLM teacher.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import adasearch
from adasearch.bench import bench_folders
from adasearch.bench_config import REFERENCE_SHAPES
from adasearch.bench_ratios import ANY, best_ratios, best_runtimes, format_bench
from adasearch.config import BenchConfig
from adasearch.console import make_progress
from adasearch.files import read_json, write_json
from adasearch.measure import hardware
from adasearch.run_files import commit, script_command


def teacher_of(run: Path) -> Path:
    """The teacher's folder: the run's own, or the one it was given."""
    return run / "teacher" if (run / "teacher").is_dir() else Path(read_json(run / "run.json")["config"]["teacher"])


def main() -> None:
    """Measure, print, and write results/runs/NAME.json."""
    results = Path(__file__).resolve().parent.parent / "results" / "runs"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--teacher", type=Path, help="folder of the teacher; the run's own when absent")
    parser.add_argument("--name", default="sst2_runtimes")
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8"])
    parser.add_argument("--references", nargs="*", default=[*REFERENCE_SHAPES])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seq_len", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    adasearch.register_student()
    config = BenchConfig(
        runtimes=arguments.runtimes, precisions=arguments.precisions, references=arguments.references, threads=1,
        batch_sizes=arguments.batch_sizes, seq_lengths=[arguments.seq_len], repeats=arguments.repeats, stream_texts=0,
    )  # fmt: skip
    models = [arguments.run / "student", arguments.teacher or teacher_of(arguments.run)]
    with make_progress(quiet=True) as progress:
        rows = bench_folders(models, config, progress)
    ratios = [found for found in best_ratios(rows) if found["precision"] == ANY]
    best = [found for found in best_runtimes(rows) if found["precision"] == ANY]
    write_json(
        results / f"{arguments.name}.json",
        {
            "command": script_command(),
            "commit": commit(),
            "what": "a student against its teacher and reference shapes (random weights, time only), each in its best runtime and precision",
            "ratios": {f"{found['shape']}: student to {found['against']}": found["speed"] for found in ratios},
            "best": {f"{found['name']}, {found['shape']}": {key: found[key] for key in ("runtime", "with", "texts_per_s")} for found in best},
            "threads": 1, "seq_len": arguments.seq_len, "rows": rows, "hardware": hardware(),
        },
    )  # fmt: skip
    print(format_bench(rows))


if __name__ == "__main__":
    main()
