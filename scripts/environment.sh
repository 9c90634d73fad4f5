# Purpose:  sourced by demo.sh and test.sh, with $extra set: make the virtual environment and install adasearch[$extra].
# Time:     about one minute the first time, nothing after, until pyproject.toml or constraints.txt change.
# Settings: PYTHON=python3.12 makes the environment with that one, VENV=path puts it there (.venv). Leaves $venv.
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
if [ "$(cat "$venv/.adasearch-$extra" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into $venv (about a minute)"
    "$venv/bin/python" -m pip install --quiet -c constraints.txt -e ".[$extra]"
    echo "$wanted" >"$venv/.adasearch-$extra"
fi
