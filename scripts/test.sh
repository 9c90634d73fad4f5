#!/usr/bin/env bash
# Purpose:  run the tests on any machine: make a virtual environment, install, pytest. Arguments go to pytest.
# Time:     about one minute to install (once), then at most five.
# Hardware: two CPU cores, 4 GB of memory, 2 GB of disk; no accelerator, and no network but the package index.
# Expected: the last line says "N passed".
# Settings: PYTHON=python3.12 makes the environment with that one, VENV=path puts it there (.venv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_WAIT_POLICY=PASSIVE # spinning threads slow tiny models a hundredfold where cores are shared
extra=test
source scripts/environment.sh
exec "$venv/bin/python" -m pytest -q --numprocesses auto --maxprocesses 4 --dist worksteal "$@" # -n 0: one process
