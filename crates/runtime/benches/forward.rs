//! The INT8 model against the float original, on the same batches: 64 samples of 128 tokens, and 256 of 16.
//!
//! `ZEROPOINT_ORIGINAL=DIR ZEROPOINT_QUANTIZED=DIR/model cargo bench -p zeropoint-runtime`: the directory of a float
//! model, and what `zeropoint run` made of it.

use std::path::PathBuf;
use std::sync::OnceLock;

use divan::Bencher;
use zeropoint_core::Rng;
use zeropoint_models::{Model, ModelDirectory, PackedBatch, SourceRef, Task, TokenSequence};
use zeropoint_runtime::QuantizedModel;

const BATCH: usize = 16;
/// Samples and their length.
const SHAPES: [(usize, usize); 2] = [(64, 128), (256, 16)];

struct Models {
    float: Model,
    quantized: QuantizedModel,
}

fn models() -> Option<&'static Models> {
    static MODELS: OnceLock<Option<Models>> = OnceLock::new();
    let load = || {
        let original = PathBuf::from(std::env::var_os("ZEROPOINT_ORIGINAL")?);
        let quantized = PathBuf::from(std::env::var_os("ZEROPOINT_QUANTIZED")?);
        let directory =
            ModelDirectory::open(&SourceRef::Directory(original), Task::Auto).expect("the original opens");
        Some(Models {
            float: Model::load(&directory).expect("the original loads"),
            quantized: QuantizedModel::load(&quantized, Task::Auto).expect("the quantised model loads"),
        })
    };
    MODELS.get_or_init(load).as_ref()
}

/// Random tokens of a small vocabulary; their values do not change the time.
fn batches((samples, length): (usize, usize)) -> Vec<PackedBatch> {
    const VOCABULARY: u64 = 1000;
    let mut rng = Rng::new(1);
    let sequences: Vec<TokenSequence> = (0..samples)
        .map(|_| TokenSequence {
            ids: (0..length).map(|_| rng.below(VOCABULARY) as u32).collect(),
            type_ids: vec![0; length],
            prompt: 0,
        })
        .collect();
    sequences.chunks(BATCH).map(|chunk| PackedBatch::new(chunk).expect("samples have tokens")).collect()
}

fn bench(bencher: Bencher<'_, '_>, shape: (usize, usize), pick: fn(&Models) -> &Model) {
    let Some(models) = models() else {
        // Nothing is measured without models; `cargo test` runs benches as well.
        return;
    };
    let model = pick(models);
    let batches = batches(shape);
    bencher.bench(|| {
        for batch in &batches {
            divan::black_box(model.forward(batch).expect("the model runs"));
        }
    });
}

#[divan::bench(args = SHAPES, sample_count = 5, sample_size = 1)]
fn float(bencher: Bencher<'_, '_>, shape: (usize, usize)) {
    bench(bencher, shape, |models| &models.float);
}

#[divan::bench(args = SHAPES, sample_count = 5, sample_size = 1)]
fn int8(bencher: Bencher<'_, '_>, shape: (usize, usize)) {
    bench(bencher, shape, |models| models.quantized.model());
}

fn main() {
    divan::main();
}
