#!/usr/bin/env bash
# Runs sentences through Zeropoint's INT8 runtime and through the Python libraries, on the same directory, and compares.
#
#   tests/interop/run.sh [--venv DIR] MODEL_DIR ORIGINAL_DIR [SENTENCES_FILE]
#
# MODEL_DIR is a directory that Zeropoint wrote, ORIGINAL_DIR the float model it came from. SENTENCES_FILE is .jsonl with
# a `text` key or .txt with a text per line (default calibration-data/general-en.jsonl); the first 200 texts are used.
# Environment: ZEROPOINT, the binary (default target/release/zeropoint, built when absent); PYTHON, for making the
# environment (default python3); MIN_COSINE (default 0.999); STRICT=1, see check.py.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$root/target/interop-venv

usage() {
    echo "usage: $0 [--venv DIR] MODEL_DIR ORIGINAL_DIR [SENTENCES_FILE]" >&2
    exit 2
}

while [[ ${1:-} == --* ]]; do
    case $1 in
        --venv) [[ $# -ge 2 ]] || usage; venv=$2; shift 2 ;;
        --venv=*) venv=${1#--venv=}; shift ;;
        *) usage ;;
    esac
done
[[ $# -eq 2 || $# -eq 3 ]] || usage
model=$1
original=$2
sentences=${3:-$root/calibration-data/general-en.jsonl}
for path in "$model/config.json" "$original/config.json" "$sentences"; do
    [[ -f $path ]] || { echo "error: $path is not there" >&2; exit 2; }
done

if ! "$venv/bin/python" -c 'import torch, transformers, compressed_tensors, sentence_transformers' 2>/dev/null; then
    echo "making a Python environment in $venv" >&2
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --requirement "$here/requirements.txt"
fi

zeropoint=${ZEROPOINT:-$root/target/release/zeropoint}
if [[ ! -x $zeropoint ]]; then
    [[ -z ${ZEROPOINT:-} ]] || { echo "error: ZEROPOINT=$zeropoint is not a program" >&2; exit 2; }
    (cd "$root" && cargo build --release --locked -p zeropoint-cli) >&2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$venv/bin/python" "$here/check.py" sentences "$sentences" --limit 200 > "$work/sentences.txt"
"$zeropoint" encode "$model" --data "$work/sentences.txt" --out "$work/output.jsonl" >&2
"$venv/bin/python" "$here/check.py" compare "$model" "$original" "$work/sentences.txt" "$work/output.jsonl" \
    --min-cosine "${MIN_COSINE:-0.999}" ${STRICT:+--strict}
