#!/usr/bin/env bash
# Measures OpenVINO's INT8 and Zeropoint's INT8 in turns, on one model.
#
#   tests/performance/openvino.sh [--venv DIR] ORIGINAL_DIR MODEL_DIR [--texts FILE] [OPTION...]
#
# ORIGINAL_DIR is a float sentence encoder of the BERT kind, MODEL_DIR what `zeropoint run` made of it (its model/).
# `openvino.sh --help` lists the options, openvino.py says what is measured and how. DIR is a Python environment with the
# packages of requirements.txt, made there when it lacks them (default target/performance-venv; a few GB, fewer with
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu).
# Environment: ZEROPOINT, the binary (default target/release/zeropoint, built when absent); PYTHON, for making the
# environment (default python3).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$root/target/performance-venv
case ${1:-} in
    --venv) [[ $# -ge 2 ]] || { echo "error: --venv needs a directory" >&2; exit 2; }; venv=$2; shift 2 ;;
    --venv=*) venv=${1#--venv=}; shift ;;
esac
# The arguments are looked at before anything is installed or built.
"${PYTHON:-python3}" "$here/openvino.py" "$@" --check-arguments
for argument in "$@"; do
    case $argument in -h | --help) exit 0 ;; esac
done
if ! "$venv/bin/python" "$here/openvino.py" --check-packages 2>/dev/null; then
    echo "making a Python environment in $venv" >&2
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --requirement "$here/requirements.txt"
fi
zeropoint=${ZEROPOINT:-$root/target/release/zeropoint}
if [[ ! -x $zeropoint ]]; then
    [[ -z ${ZEROPOINT:-} ]] || { echo "error: ZEROPOINT=$zeropoint is not a program" >&2; exit 2; }
    (cd "$root" && cargo build --release --locked -p zeropoint-cli) >&2
fi
"$venv/bin/python" "$here/openvino.py" "$@" --zeropoint "$zeropoint"
