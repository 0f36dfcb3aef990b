//! Time and memory of loading a quantised model: reading its description, checking and reading its tensors, packing its
//! weights.
//!
//! ```sh
//! ZEROPOINT_QUANTIZED=runs/minilm-w8a8-dynamic/model cargo bench -p zeropoint-runtime --bench load
//! ```
//!
//! Without the variable it does nothing. The files are read once before, so that they are in the page cache; the tokenizer is
//! no part of it. Resident memory is that of the process (`VmRSS` of `/proc/self/status`, Linux alone) before and after the
//! first load, freed memory given back or not.

// What a benchmark prints is its result.
#![allow(clippy::print_stdout)]

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use zeropoint_models::Task;
use zeropoint_runtime::QuantizedModel;

const LOADS: usize = 21;

fn main() {
    // `cargo test` runs benches as well, to see that they run.
    let measured = std::env::args().any(|argument| argument == "--bench");
    let (true, Some(directory)) = (measured, std::env::var_os("ZEROPOINT_QUANTIZED").map(PathBuf::from))
    else {
        println!("nothing is measured without ZEROPOINT_QUANTIZED");
        return;
    };
    let file = directory.join("model.safetensors");
    let mut opened = File::open(&file).expect("the directory has a model.safetensors");
    let bytes = std::io::copy(&mut opened, &mut std::io::sink()).expect("the file is read");
    let before = resident();
    let mut times: Vec<Duration> = Vec::with_capacity(LOADS);
    for load in 0..LOADS {
        let start = Instant::now();
        let model = QuantizedModel::load(&directory, Task::Auto).expect("the directory is a quantised model");
        times.push(start.elapsed());
        if let (0, Some(before), Some(after)) = (load, before, resident()) {
            let grown = after.saturating_sub(before);
            println!(
                "{}: {bytes} bytes, {grown} bytes more resident once loaded: {:.2} times the file",
                file.display(),
                grown as f64 / bytes as f64
            );
        }
        drop(model);
    }
    let first = times[0];
    times.sort();
    println!(
        "load: first {first:.1?}, median {:.1?}, fastest {:.1?}, slowest {:.1?} of {LOADS}",
        times[LOADS / 2],
        times[0],
        times[LOADS - 1]
    );
}

/// Bytes of this process that are in memory.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
