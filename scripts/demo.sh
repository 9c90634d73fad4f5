#!/usr/bin/env bash
# Purpose:  from a bare machine to a searched, trained, exported and timed student. Arguments go to `adasearch run demo`.
# Time:     at most 15 minutes, of which about one to install (once).
# Hardware: two CPU cores, 6 GB of memory, 2 GB of disk (several more with a CUDA build of torch); no accelerator, and no network but the package index.
# Expected: runs/demo/report.md, whose table is printed at the end; the student is at least 10 times as fast as its teacher.
# Settings: PYTHON=python3.12 makes the environment with that one, VENV=path puts it there (.venv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_WAIT_POLICY=PASSIVE # spinning threads slow tiny models a hundredfold where cores are shared
extra=demo
source scripts/environment.sh
# a cost to meet instead of one to weigh: 5 M MACs a sentence is far below the teacher and leaves the student room to learn;
# fewer steps than the defaults keep it within a quarter of an hour
exec "$venv/bin/adasearch" run demo --search.efficiency constraint --search.target_macs 5000000 \
    --search.steps 300 --retrain.steps 750 --bench.repeats 10 "$@"
