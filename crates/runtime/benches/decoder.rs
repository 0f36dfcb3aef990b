//! An INT8 decoder against candle-transformers' f32 `Llama`, in turns: a prompt that is read, and new tokens one by one.
//!
//! ```sh
//! ZEROPOINT_ORIGINAL=DIR ZEROPOINT_QUANTIZED=DIR/model RAYON_NUM_THREADS=2 \
//!   RUSTFLAGS='-C target-cpu=native' cargo bench -p zeropoint-runtime --bench decoder
//! ```
//!
//! The directories of a float Llama and of what `zeropoint run` made of it, both absolute. Without them nothing is measured.

// What a benchmark prints is its result.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use zeropoint_core::Rng;
use zeropoint_models::Task;
use zeropoint_runtime::{QuantizedModel, Sampler, Sampling};

/// Tokens of the prompt, and new ones behind it.
const PROMPT: usize = 512;
const NEW: usize = 64;
/// Measured turns of both.
const RUNS: usize = 7;

/// Times of prefill and decode.
type Phases = [Duration; 2];

fn main() {
    // `cargo test` runs benches as well, to see that they run.
    let measured = std::env::args().any(|argument| argument == "--bench");
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    let (true, Some(original), Some(quantized)) =
        (measured, path("ZEROPOINT_ORIGINAL"), path("ZEROPOINT_QUANTIZED"))
    else {
        eprintln!("nothing is measured without ZEROPOINT_ORIGINAL and ZEROPOINT_QUANTIZED");
        return;
    };
    let (candle, config) = load_candle(&original);
    let int8 = QuantizedModel::load(&quantized, Task::Auto).expect("the quantised model loads");
    let mut rng = Rng::new(1);
    let prompt: Vec<u32> = (0..PROMPT).map(|_| rng.below(1000) as u32).collect();

    let mut times: Vec<[Phases; 2]> = Vec::new();
    for run in 0..=RUNS {
        let found = [run_candle(&candle, &config, &prompt), run_int8(&int8, &prompt)];
        // The first turn warms both up.
        if run > 0 {
            times.push(found);
        }
    }
    let threads = std::env::var_os("RAYON_NUM_THREADS").unwrap_or_else(|| OsString::from("all"));
    println!("threads: {}, instruction set: {}", threads.to_string_lossy(), int8.model().isa());
    println!("| phase | candle f32, tokens/s | int8, tokens/s (quartiles) | ratio |");
    println!("|---|---|---|---|");
    for (phase, (name, tokens)) in [("prefill", PROMPT), ("decode", NEW)].into_iter().enumerate() {
        let sorted = |engine: usize| {
            let mut times: Vec<f64> = times.iter().map(|turn| turn[engine][phase].as_secs_f64()).collect();
            times.sort_by(f64::total_cmp);
            times.into_iter().map(|time| tokens as f64 / time).collect::<Vec<_>>()
        };
        let (theirs, ours) = (sorted(0), sorted(1));
        println!(
            "| {name} | {:.1} | {:.1} ({:.1} to {:.1}) | {:.2} |",
            theirs[RUNS / 2],
            ours[RUNS / 2],
            ours[3 * RUNS / 4],
            ours[RUNS / 4],
            ours[RUNS / 2] / theirs[RUNS / 2],
        );
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
