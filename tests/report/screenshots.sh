#!/bin/sh
# Makes reports of the embedded model and a comparison of them, opens them in headless Chromium and checks what a reader
# would see; see check.py. Screenshots and prints are left in target/report-screenshots.
#
#     tests/report/screenshots.sh [PATH/TO/zeropoint]
#
# Needs python3 and chromium (CHROMIUM=... names it). Without an argument the program is built first.
set -eu
cd "$(dirname "$0")/../.."
root=$(pwd)
zeropoint=${1:-}
if [ -z "$zeropoint" ]; then
    cargo build --workspace --bin zeropoint
    zeropoint=$root/target/debug/zeropoint
fi
out=$root/target/report-screenshots
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
run() {
    name=$1
    shift
    # A gate that is not met ends with 3 and is worth seeing.
    "$zeropoint" run configs/quickstart.toml --quiet --cache "$work/cache" --out "$work/$name" "$@" || [ $? -eq 3 ]
}
run static
run dynamic --set quantization.scheme=w8a8-dynamic
run bf16 --set quantization.scheme=w8a8-dynamic --set quantization.embeddings=bf16
run clipped --set 'quantization.activations={ observer = "percentile", percentile = 90 }'
"$zeropoint" compare "$work/static" "$work/dynamic" "$work/bf16" "$work/clipped" \
    --metric fidelity.cosine_mean --out "$work/compare" --quiet
rm -rf "$out"
exec python3 tests/report/check.py "$out" "$work/static/report.html" "$work/clipped/report.html" "$work/compare/compare.html"
