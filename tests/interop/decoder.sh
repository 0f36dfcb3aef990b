#!/usr/bin/env bash
# Runs prompts through a decoder of Zeropoint and of transformers, on the same directory, and compares logits and texts.
#
#   tests/interop/decoder.sh [--venv DIR] MODEL_DIR [ORIGINAL_DIR]
#
# MODEL_DIR is a decoder that Zeropoint wrote and ORIGINAL_DIR the float model it came from, or MODEL_DIR alone is a float model.
# Environment: ZEROPOINT, the binary (default target/release/zeropoint, built when absent); PYTHON, for making the
# environment (default python3); MIN_COSINE (default 0.999); MIN_TEXTS, of the ten prompts (default 9); STRICT=1, see decoder.py.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$root/target/interop-venv
if [[ ${1:-} == --venv ]]; then
    [[ $# -ge 2 ]] || { echo "usage: $0 [--venv DIR] MODEL_DIR [ORIGINAL_DIR]" >&2; exit 2; }
    venv=$2
    shift 2
fi
[[ $# -eq 1 || $# -eq 2 ]] || { echo "usage: $0 [--venv DIR] MODEL_DIR [ORIGINAL_DIR]" >&2; exit 2; }
for model in "$@"; do
    [[ -f $model/config.json ]] || { echo "error: $model/config.json is not there" >&2; exit 2; }
done
if ! "$venv/bin/python" -c 'import torch, transformers, compressed_tensors' 2>/dev/null; then
    echo "making a Python environment in $venv" >&2
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --requirement "$here/requirements.txt"
fi
zeropoint=${ZEROPOINT:-$root/target/release/zeropoint}
if [[ ! -x $zeropoint ]]; then
    [[ -z ${ZEROPOINT:-} ]] || { echo "error: ZEROPOINT=$zeropoint is not a program" >&2; exit 2; }
    (cd "$root" && cargo build --release --locked -p zeropoint-cli) >&2
fi
"$venv/bin/python" "$here/decoder.py" "$@" --zeropoint "$zeropoint" --min-cosine "${MIN_COSINE:-0.999}" \
    --min-texts "${MIN_TEXTS:-9}" ${STRICT:+--strict}
