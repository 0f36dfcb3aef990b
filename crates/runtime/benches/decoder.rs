//! An INT8 decoder, and the calibration that it comes from, against candle-transformers' f32 `Llama`, in turns: a prompt that is
//! read, new tokens one by one, and static ranges observed over 64 samples beside candle's reading of a prompt.
//!
//! Each turn is a process of its own, as either is used: in one process the first to free large memory changes how the
//! allocator serves the other, and candle reads a prompt up to a third faster or slower for it.
//!
//! ```sh
//! ZEROPOINT_ORIGINAL=DIR ZEROPOINT_QUANTIZED=DIR/model RAYON_NUM_THREADS=2 \
//!   RUSTFLAGS='-C target-cpu=native' cargo bench -p zeropoint-runtime --bench decoder
//! ```
//!
//! The directories of a float Llama and of what `zeropoint run` made of it, both absolute. Without the second the calibration is
//! measured, without both nothing.

// What a benchmark prints is its result.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use zeropoint_calibrator::{BatchPlan, CalibrationSet, calibrate};
use zeropoint_core::Rng;
use zeropoint_models::{Model, ModelDirectory, ModelInput, SourceRef, Task, TokenSequence};
use zeropoint_runtime::{QuantizedModel, Sampler, Sampling};

/// Tokens of the prompt, and new ones behind it.
const PROMPT: usize = 512;
const NEW: usize = 64;
/// Turns of both.
const ROUNDS: usize = 5;
/// Measured passes of a turn, after one that warms up.
const RUNS: usize = 3;
/// Samples that are calibrated with, each as long as the prompt, and those of a batch.
const SAMPLES: usize = 64;
const BATCH: usize = 4;
/// Says to a process which of the two it is.
const SIDE: &str = "ZEROPOINT_BENCH_SIDE";

/// Times of prefill and decode.
type Phases = [Duration; 2];

fn main() {
    // As the program does.
    if std::env::var(SIDE).is_ok_and(|side| side != "candle") {
        zeropoint_kernels::keep_freed_memory();
    }
    // `cargo test` runs benches as well, to see that they run.
    let measured = std::env::args().any(|argument| argument == "--bench");
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    let (true, Some(original)) = (measured, path("ZEROPOINT_ORIGINAL")) else {
        eprintln!("nothing is measured without ZEROPOINT_ORIGINAL");
        return;
    };
    let quantized = path("ZEROPOINT_QUANTIZED");
    let mut rng = Rng::new(1);
    let prompt: Vec<u32> = (0..PROMPT).map(|_| rng.below(1000) as u32).collect();
    match std::env::var(SIDE).as_deref() {
        Ok("candle") => {
            let (model, config) = load_candle(&original);
            turn(|| run_candle(&model, &config, &prompt));
        }
        Ok("calibration") => observe(&original),
        Ok(_) => {
            let quantized = quantized.expect("a quantised directory");
            let model = QuantizedModel::load(&quantized, Task::Auto).expect("the quantised model loads");
            turn(|| run_int8(&model, &prompt));
        }
        Err(_) => compare(quantized.is_some()),
    }
}

/// Prints the seconds of a prompt's length of samples that are calibrated with.
fn observe(original: &Path) {
    let directory =
        ModelDirectory::open(&SourceRef::Directory(original.to_owned()), Task::Auto).expect("it opens");
    let model = Model::load(&directory).expect("the float model loads");
    let mut rng = Rng::new(2);
    let mut samples = |count: usize| {
        let sample = |rng: &mut Rng| -> ModelInput {
            let ids = (0..PROMPT).map(|_| rng.below(1000) as u32).collect();
            TokenSequence { ids, type_ids: vec![0; PROMPT], prompt: 0 }.into()
        };
        let inputs: Vec<ModelInput> = (0..count).map(|_| sample(&mut rng)).collect();
        CalibrationSet { plan: BatchPlan::new(&inputs, BATCH), inputs, available: count }
    };
    let mut calibrate = |count| {
        let set = samples(count);
        timed(|| calibrate(&model, &set, &mut |_| ControlFlow::Continue(())).expect("calibration runs")).0
    };
    calibrate(BATCH);
    println!("{}", calibrate(SAMPLES).as_secs_f64() / SAMPLES as f64);
}

/// Prints the seconds of some passes, a line each.
fn turn(pass: impl Fn() -> Phases) {
    pass();
    for _ in 0..RUNS {
        let [prefill, decode] = pass().map(|time| time.as_secs_f64());
        println!("{prefill} {decode}");
    }
}

/// Prints a table of what both take: with a quantised model or in calibration.
fn compare(quantized: bool) {
    let program = std::env::current_exe().expect("this program has a path");
    // Seconds by side and phase.
    let mut times: [[Vec<f64>; 2]; 2] = Default::default();
    let ours = if quantized { "int8" } else { "calibration" };
    for _ in 0..ROUNDS {
        for (side, times) in ["candle", ours].into_iter().zip(&mut times) {
            let output =
                Command::new(&program).arg("--bench").env(SIDE, side).output().expect("it runs again");
            assert!(output.status.success(), "{side}: {}", String::from_utf8_lossy(&output.stderr));
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                for (seconds, times) in line.split(' ').zip(&mut *times) {
                    times.push(seconds.parse().expect("seconds"));
                }
            }
        }
    }
    let threads = std::env::var_os("RAYON_NUM_THREADS").unwrap_or_else(|| OsString::from("all"));
    println!("threads: {}", threads.to_string_lossy());
    println!("| phase | candle f32, tokens/s (quartiles) | Zeropoint, tokens/s (quartiles) | ratio |");
    println!("|---|---|---|---|");
    let [candle, ours] = &times;
    let rows: &[_] = if quantized {
        &[("INT8 prefill", PROMPT), ("INT8 decode", NEW)]
    } else {
        &[("f32 calibration", PROMPT)]
    };
    for ((name, tokens), (theirs, ours)) in rows.iter().zip(candle.iter().zip(ours)) {
        let [theirs, ours] = [theirs, ours].map(|times| {
            let mut times = times.clone();
            times.sort_by(f64::total_cmp);
            [3, 2, 1].map(|quarter| *tokens as f64 / times[times.len() * quarter / 4])
        });
        let range = |of: [f64; 3]| format!("{:.1} ({:.1} to {:.1})", of[1], of[0], of[2]);
        println!("| {name} | {} | {} | {:.2} |", range(theirs), range(ours), ours[1] / theirs[1]);
    }
}

fn load_candle(dir: &Path) -> (Llama, Config) {
    let config = std::fs::read(dir.join("config.json")).expect("config.json is there");
    let config: LlamaConfig = serde_json::from_slice(&config).expect("the original is a Llama");
    let config = config.into_config(false);
    let weights = std::fs::read(dir.join("model.safetensors")).expect("model.safetensors is there");
    let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu);
    (Llama::load(weights.expect("the weights are read"), &config).expect("the original loads"), config)
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let clock = Instant::now();
    let done = work();
    (clock.elapsed(), done)
}

fn run_candle(model: &Llama, config: &Config, prompt: &[u32]) -> Phases {
    let device = Device::Cpu;
    let step = |tokens: &[u32], place: usize, cache: &mut Cache| -> u32 {
        let input = Tensor::new(tokens, &device).and_then(|ids| ids.unsqueeze(0)).expect("token ids");
        let logits = model.forward(&input, place, cache).expect("candle runs");
        logits.flatten_all().and_then(|row| row.argmax(0)?.to_scalar()).expect("one row of logits")
    };
    let mut cache = Cache::new(true, DType::F32, config, &device).expect("a cache");
    let (prefill, mut token) = timed(|| step(prompt, 0, &mut cache));
    let (decode, ()) = timed(|| {
        for i in 0..NEW {
            token = step(&[token], PROMPT + i, &mut cache);
        }
    });
    divan::black_box(token);
    [prefill, decode]
}

fn run_int8(model: &QuantizedModel, prompt: &[u32]) -> Phases {
    let model = model.model();
    let mut cache = model.new_cache().expect("a decoder");
    let mut sampler = Sampler::new(Sampling::default()).expect("it is in range");
    let mut step = |tokens: &[u32]| -> u32 {
        let logits = model.extend(tokens, &mut cache, 1).expect("the INT8 model runs").values;
        sampler.choose(&logits).expect("logits are finite")
    };
    let (prefill, mut token) = timed(|| step(prompt));
    let (decode, ()) = timed(|| {
        for _ in 0..NEW {
            token = step(&[token]);
        }
    });
    divan::black_box(token);
    [prefill, decode]
}
