//! See the target of this name in `zeropoint-fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| zeropoint_fuzzing::run("chat_template", input));
