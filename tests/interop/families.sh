#!/usr/bin/env bash
# Quantises every small checkpoint of tests/fixtures, dynamic and static, and loads the results with transformers.
#
#   tests/interop/families.sh [--venv DIR] [NAME...]
#
# Environment: ZEROPOINT, the binary (default target/release/zeropoint, built when absent); PYTHON, for making the
# environment (default python3).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$root/target/interop-venv
if [[ ${1:-} == --venv ]]; then
    [[ $# -ge 2 ]] || { echo "usage: $0 [--venv DIR] [NAME...]" >&2; exit 2; }
    venv=$2
    shift 2
fi
if ! "$venv/bin/python" -c 'import torch, transformers, compressed_tensors, sentence_transformers, PIL' 2>/dev/null; then
    echo "making a Python environment in $venv" >&2
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --requirement "$here/requirements.txt"
fi
zeropoint=${ZEROPOINT:-$root/target/release/zeropoint}
if [[ ! -x $zeropoint ]]; then
    [[ -z ${ZEROPOINT:-} ]] || { echo "error: ZEROPOINT=$zeropoint is not a program" >&2; exit 2; }
    (cd "$root" && cargo build --release --locked -p zeropoint-cli) >&2
fi
texts=()
images=()
for name in "$@"; do
    if [[ -d $root/tests/fixtures/$name/images ]]; then images+=("$name"); else texts+=("$name"); fi
done
failed=0
if [[ $# -eq 0 || ${#texts[@]} -gt 0 ]]; then
    "$venv/bin/python" "$here/families.py" --zeropoint "$zeropoint" "${texts[@]}" || failed=1
fi
if [[ $# -eq 0 || ${#images[@]} -gt 0 ]]; then
    "$venv/bin/python" "$here/images.py" --zeropoint "$zeropoint" "${images[@]}" || failed=1
fi
exit $failed
