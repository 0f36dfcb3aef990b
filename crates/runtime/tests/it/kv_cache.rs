//! What a narrower cache of keys and values costs a real decoder: SmolLM2-135M on WikiText-2.
//!
//! `ZEROPOINT_MODELS` is a directory with `smollm2/` in it, `ZEROPOINT_DATA` one with `wikitext2-valid.txt`.

use std::path::PathBuf;

use zeropoint_kernels::KvPrecision;
use zeropoint_models::{Model, ModelDirectory, SourceRef, Task};

const WINDOWS: usize = 4;
const WINDOW: usize = 512;

fn path(variable: &str, name: &str) -> PathBuf {
    let directory = std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set"));
    PathBuf::from(directory).join(name)
}

/// Natural logarithms of the probabilities.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    logits.iter().map(|logit| f64::from(logit - largest) - sum.ln()).collect()
}

/// The mean divergence in nats, and the share of rows with the same likeliest token.
fn compare(original: &[f32], other: &[f32], columns: usize) -> (f64, f64) {
    let rows = original.chunks_exact(columns).zip(other.chunks_exact(columns));
    let (mut divergence, mut same, mut count) = (0.0, 0.0, 0.0);
    for (original, other) in rows {
        let (p, q) = (log_softmax(original), log_softmax(other));
        divergence += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        let top = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i);
        same += f64::from(u8::from(top(original) == top(other)));
        count += 1.0;
    }
    (divergence / count, same / count)
}

#[test]
#[ignore = "needs ZEROPOINT_MODELS and ZEROPOINT_DATA"]
fn a_narrower_cache_costs_as_little_as_the_guide_says() {
    let source = SourceRef::Directory(path("ZEROPOINT_MODELS", "smollm2"));
    let directory = ModelDirectory::open(&source, Task::Auto).unwrap();
    let model = Model::load(&directory).unwrap();
    let text = std::fs::read_to_string(path("ZEROPOINT_DATA", "wikitext2-valid.txt")).unwrap();
    let text: String = text.chars().take(20 * WINDOWS * WINDOW).collect();
    let ids = directory.tokenizer(None).unwrap().align(&text, None).unwrap().tokens.ids;
    let windows: Vec<&[u32]> = ids.chunks_exact(WINDOW).take(WINDOWS).collect();
    assert_eq!(windows.len(), WINDOWS);
    let mut sums = [(0.0, 0.0); 2];
    for window in windows {
        let logits = |precision| {
            let mut cache = model.new_cache_in(precision).unwrap();
            model.extend(window, &mut cache, window.len()).unwrap()
        };
        let wide = logits(KvPrecision::F32);
        for (sum, precision) in sums.iter_mut().zip([KvPrecision::Bf16, KvPrecision::Int8]) {
            let (divergence, same) = compare(&wide.values, &logits(precision).values, wide.columns);
            (sum.0, sum.1) = (sum.0 + divergence / WINDOWS as f64, sum.1 + same / WINDOWS as f64);
        }
    }
    let [bf16, int8] = sums;
    println!("bfloat16: {:.5} nats, {:.4} the same; INT8: {:.5} nats, {:.4}", bf16.0, bf16.1, int8.0, int8.1);
    assert!(bf16.0 < 1e-4 && bf16.1 > 0.99, "{bf16:?}");
    assert!(int8.0 < 1e-3 && int8.1 > 0.97, "{int8:?}");
}
