#!/usr/bin/env bash
# Compiles the kernels for 64-bit Arm and runs their tests in an emulator, on a processor with the dot product instructions
# and on one without: where a machine of that kind is at hand, `cargo test -p zeropoint-kernels` there does the same.
#
#   tests/neon.sh [ARGUMENTS_OF_THE_TESTS]
#
# Needs the target (`rustup target add aarch64-unknown-linux-gnu`), a linker and C library for it, and QEMU's user mode;
# on Debian: `apt-get install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross`. What is built goes into target/.
# Environment: SYSROOT, where the emulator finds the C library (default /usr/aarch64-linux-gnu).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=aarch64-unknown-linux-gnu
for program in qemu-aarch64 aarch64-linux-gnu-gcc; do
    command -v "$program" >/dev/null || {
        echo "$program is not installed: see the head of $0" >&2
        exit 2
    }
done
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc

# PROCESSOR INSTRUCTION_SET [ARGUMENT...]: all tests, of which the example in the documentation runs on that set: it fails
# where the set is not found, so that no test passes by leaving it out.
check() {
    echo "== $1, with $2"
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L ${SYSROOT:-/usr/aarch64-linux-gnu} -cpu $1" \
        ZEROPOINT_ISA=$2 cargo test --locked -p zeropoint-kernels --target "$target" -- "${@:3}"
}

check max neon-dotprod "$@"
check cortex-a72 neon "$@"
