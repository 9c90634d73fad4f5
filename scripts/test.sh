#!/usr/bin/env bash
# Purpose:  run the tests on any machine: make a virtual environment, install, pytest. Arguments go to pytest.
# Time:     about one minute to install (once), then at most five.
# Hardware: two CPU cores, 4 GB of memory, 2 GB of disk; no accelerator, and no network but the package index.
# Expected: the last line says "N passed".
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
if [ "$(cat "$venv/.adasearch-test" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into $venv (about a minute)"
    "$venv/bin/python" -m pip install --quiet -c constraints.txt -e '.[test]'
    echo "$wanted" >"$venv/.adasearch-test"
fi
exec "$venv/bin/python" -m pytest -q "$@"
