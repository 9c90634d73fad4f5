#!/usr/bin/env bash
# Purpose:  from a bare machine to a searched, trained, exported and timed student. Arguments go to `adasearch run demo`.
# Time:     at most 15 minutes, of which about one to install (once).
# Hardware: two CPU cores, 4 GB of memory, 2 GB of disk; no accelerator, and no network but the package index.
# Expected: runs/demo/report.md, whose table is printed at the end; the student is at least 10 times as fast as its teacher.
# Settings: PYTHON=python3.12 makes the environment with that one, VENV=path puts it there (.venv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_WAIT_POLICY=PASSIVE # spinning threads slow tiny models a hundredfold where cores are shared
venv=${VENV:-.venv}

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    for python in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && break
        python=
    done
    : "${python:?no Python 3.10 or later among: ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; name one with PYTHON=/path/to/python3}"
    "$python" -m venv "$venv"
fi
wanted=$(cat pyproject.toml constraints.txt | cksum)
if [ "$(cat "$venv/.adasearch-demo" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into $venv (about a minute)"
    "$venv/bin/python" -m pip install --quiet -c constraints.txt -e '.[demo]'
    echo "$wanted" >"$venv/.adasearch-demo"
fi
exec "$venv/bin/adasearch" run demo "$@"
