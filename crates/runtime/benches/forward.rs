//! The INT8 model against candle-transformers' f32 `BertModel`, in turns, on the same sentences.
//!
//! ```sh
//! ZEROPOINT_ORIGINAL=DIR ZEROPOINT_QUANTIZED=DIR/model ZEROPOINT_TEXTS=FILE RAYON_NUM_THREADS=2 \
//!   RUSTFLAGS='-C target-cpu=native' cargo bench -p zeropoint-runtime
//! ```
//!
//! The directories of a float BERT and of what `zeropoint run` made of it, both absolute; `ZEROPOINT_TEXTS`, one text a
//! line, may be left out. Without the first two nothing is measured.

// What a benchmark prints is its result.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use zeropoint_core::Rng;
use zeropoint_models::{PackedBatch, Task, TokenSequence};
use zeropoint_runtime::QuantizedModel;

/// Sentences of a batch and their tokens.
const SHAPES: [(usize, usize); 3] = [(32, 128), (1, 32), (1, 128)];
/// Sentences of a batch of the texts.
const TEXTS_AT_ONCE: usize = 32;
/// What both engines together may spend on one line of the table.
const BUDGET: Duration = Duration::from_secs(12);

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
    let candle = load_candle(&original);
    let int8 = QuantizedModel::load(&quantized, Task::Auto).expect("the quantised model loads");

    let threads = std::env::var_os("RAYON_NUM_THREADS").unwrap_or_else(|| OsString::from("all"));
    println!("threads: {}, instruction set: {}", threads.to_string_lossy(), int8.model().isa());
    println!("| batch | candle f32, ms | int8, ms (quartiles) | tokens/s | ratio |");
    println!("|---|---|---|---|---|");
    for (sentences, tokens) in SHAPES {
        let batch = random_batch(sentences, tokens);
        measure(&format!("{sentences} x {tokens}"), &candle, &int8, &[batch]);
    }
    if let Some(texts) = path("ZEROPOINT_TEXTS") {
        let batches = sorted_batches(&int8, &texts);
        let sentences: usize = batches.iter().map(Vec::len).sum();
        measure(&format!("{sentences} texts, sorted, {TEXTS_AT_ONCE} at once"), &candle, &int8, &batches);
    }
}

fn load_candle(dir: &Path) -> BertModel {
    let config = std::fs::read(dir.join("config.json")).expect("config.json is there");
    let config: Config = serde_json::from_slice(&config).expect("the original is a BERT");
    let weights = std::fs::read(dir.join("model.safetensors")).expect("model.safetensors is there");
    let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu);
    BertModel::load(weights.expect("the weights are read"), &config).expect("the original loads")
}

/// Random tokens of a small vocabulary; their values do not change the time.
fn random_batch(sentences: usize, tokens: usize) -> Vec<TokenSequence> {
    const VOCABULARY: u64 = 1000;
    let mut rng = Rng::new(1);
    (0..sentences)
        .map(|_| TokenSequence {
            ids: (0..tokens).map(|_| rng.below(VOCABULARY) as u32).collect(),
            type_ids: vec![0; tokens],
            prompt: 0,
        })
        .collect()
}

fn sorted_batches(model: &QuantizedModel, texts: &Path) -> Vec<Vec<TokenSequence>> {
    let texts = std::fs::read_to_string(texts).expect("the texts are UTF-8");
    let tokenizer = model.directory().tokenizer(None).expect("the model has a tokenizer");
    let encode = |text: &str| tokenizer.encode(text, None).expect("a text is encoded");
    let mut sequences: Vec<TokenSequence> = texts.lines().map(encode).collect();
    sequences.sort_by_key(TokenSequence::len);
    sequences.chunks(TEXTS_AT_ONCE).map(<[TokenSequence]>::to_vec).collect()
}

/// As candle-transformers takes a batch: padded to its longest sentence, with a mask where there is padding.
fn run_candle(model: &BertModel, batch: &[TokenSequence]) {
    let width = batch.iter().map(TokenSequence::len).max().expect("a batch has a sentence");
    let grid = |value: &dyn Fn(&TokenSequence, usize) -> u32| {
        let row = |sequence| (0..width).map(move |at| value(sequence, at));
        let cells: Vec<u32> = batch.iter().flat_map(row).collect();
        Tensor::from_vec(cells, (batch.len(), width), &Device::Cpu).expect("a rectangle")
    };
    let ids = grid(&|sequence, at| sequence.ids.get(at).copied().unwrap_or(0));
    let types = grid(&|_, _| 0);
    let padded = batch.iter().any(|sequence| sequence.len() < width);
    let mask = padded.then(|| grid(&|sequence, at| u32::from(at < sequence.len())));
    divan::black_box(model.forward(&ids, &types, mask.as_ref()).expect("candle runs"));
}

fn measure(name: &str, candle: &BertModel, int8: &QuantizedModel, batches: &[Vec<TokenSequence>]) {
    let packed: Vec<PackedBatch> =
        batches.iter().map(|batch| PackedBatch::new(batch).expect("sentences have tokens")).collect();
    let time = |pass: &dyn Fn()| {
        let clock = Instant::now();
        pass();
        clock.elapsed()
    };
    let theirs = || time(&|| batches.iter().for_each(|batch| run_candle(candle, batch)));
    let ours = || {
        time(&|| {
            for batch in &packed {
                divan::black_box(int8.forward(batch).expect("the INT8 model runs"));
            }
        })
    };
    let once = theirs() + ours();
    let runs = (BUDGET.as_secs_f64() / once.as_secs_f64()).clamp(5.0, 301.0) as usize;
    let (mut their_times, mut our_times): (Vec<_>, Vec<_>) = (0..runs).map(|_| (theirs(), ours())).unzip();
    their_times.sort();
    our_times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (their, our) = (ms(their_times[runs / 2]), ms(our_times[runs / 2]));
    let tokens: usize = batches.iter().flatten().map(TokenSequence::len).sum();
    println!(
        "| {name} | {their:.2} | {our:.3} ({:.3} to {:.3}) | {:.0} | {:.2} |",
        ms(our_times[runs / 4]),
        ms(our_times[3 * runs / 4]),
        tokens as f64 / our * 1e3,
        their / our,
    );
}
