//! Speed of the kernels on every instruction set of this machine, one thread.
//!
//! `cargo bench -p zeropoint-kernels [-- FILTER]`. Rates are operations (a multiplication and an addition are two) or
//! values per second.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use zeropoint_core::{QuantParams, Rng, Symmetry, WeightBits};
use zeropoint_kernels::{
    Activation, AttentionPrecision, AttentionScratch, Epilogue, HeadInput, Isa, PackedWeights, RowParams,
    WeightOnlyMatrix, activate, attend, channel_absmax, dequantize, extremes, histogram, layer_norm, linear,
    quantize_static, quantize_tokens, rms_norm, sum_squared_error, tanh_in_place, weight_only_product,
};

fn main() {
    divan::main();
}

/// Rows, inputs and outputs of a Linear: one token and more, of small and base BERTs and of a 7B decoder.
const SHAPES: [(usize, usize, usize); 10] = [
    (1, 384, 384),
    (1, 768, 768),
    (1, 4096, 4096),
    (8, 768, 768),
    (32, 768, 768),
    (128, 384, 1536),
    (128, 768, 768),
    (128, 768, 3072),
    (128, 3072, 768),
    (128, 4096, 4096),
];

/// Tokens and channels of an activation: 128 of BERT-base.
const ROWS: usize = 128;
const COLUMNS: usize = 768;

fn names() -> Vec<&'static str> {
    Isa::available().into_iter().map(Isa::name).collect()
}

fn isa(name: &str) -> Isa {
    Isa::from_name(name).expect("the name is of an available set")
}

fn cases() -> Vec<String> {
    let of = |name: &str| SHAPES.map(|(rows, inputs, outputs)| format!("{name} {rows}x{inputs}x{outputs}"));
    names().into_iter().flat_map(of).collect()
}

fn case(text: &str) -> (Isa, [usize; 3]) {
    let (name, shape) = text.split_once(' ').expect("a name and a shape");
    let mut sizes = shape.split('x').map(|size| size.parse().expect("a size"));
    (isa(name), std::array::from_fn(|_| sizes.next().expect("three sizes")))
}

fn normal(len: usize) -> Vec<f32> {
    let mut rng = Rng::new(1);
    (0..len).map(|_| rng.normal() as f32).collect()
}

fn integers(len: usize) -> Vec<i8> {
    let mut rng = Rng::new(2);
    (0..len).map(|_| rng.next_u64() as i8).collect()
}

fn bench_linear(bencher: Bencher<'_, '_>, text: &str, activation: Activation) {
    let (isa, [rows, inputs, outputs]) = case(text);
    let packed = PackedWeights::pack(isa, &integers(outputs * inputs), outputs, inputs).expect("valid sizes");
    let (a, scales, bias) = (integers(rows * inputs), vec![0.01; outputs], normal(outputs));
    let params = vec![QuantParams { scale: 0.02, zero_point: 0 }; rows];
    let epilogue = Epilogue {
        input: RowParams::PerToken(&params),
        weight_scales: &scales,
        bias: Some(&bias),
        activation,
    };
    let mut out = vec![0.0; rows * outputs];
    bencher
        .counter(ItemsCount::new(2 * rows * inputs * outputs))
        .bench_local(|| linear(black_box(&a), rows, &packed, 0..outputs, &epilogue, &mut out, outputs));
}

#[divan::bench(args = cases())]
fn linear_plain(bencher: Bencher<'_, '_>, case: &str) {
    bench_linear(bencher, case, Activation::None);
}

#[divan::bench(args = cases())]
fn linear_gelu_erf(bencher: Bencher<'_, '_>, case: &str) {
    bench_linear(bencher, case, Activation::GeluErf);
}

#[divan::bench(args = cases())]
fn weight_only_8_bits(bencher: Bencher<'_, '_>, case: &str) {
    bench_weight_only(bencher, case, WeightBits::Eight);
}

#[divan::bench(args = cases())]
fn weight_only_4_bits(bencher: Bencher<'_, '_>, case: &str) {
    bench_weight_only(bencher, case, WeightBits::Four);
}

/// A scale for 64 inputs.
fn bench_weight_only(bencher: Bencher<'_, '_>, text: &str, bits: WeightBits) {
    let (isa, [rows, inputs, outputs]) = case(text);
    let low = if bits == WeightBits::Four { 4 } else { 0 };
    let q: Vec<i8> = integers(outputs * inputs).iter().map(|q| q >> low).collect();
    let scales = vec![0.01; outputs * inputs / 64];
    let weight = WeightOnlyMatrix::pack(&q, (outputs, inputs), bits, &scales).expect("valid sizes");
    let x = normal(rows * inputs);
    let mut out = vec![0.0; rows * outputs];
    bencher.counter(ItemsCount::new(2 * rows * inputs * outputs)).bench_local(|| {
        weight_only_product(isa, black_box(&x), rows, &weight, 0..outputs, &mut out, outputs);
    });
}

/// Tokens, heads and their channels: short and long sequences of small and base BERTs.
const SEQUENCES: [(usize, usize, usize); 4] = [(16, 12, 32), (128, 12, 32), (128, 12, 64), (512, 12, 64)];

fn sequences() -> Vec<String> {
    let of =
        |name: &str| SEQUENCES.map(|(tokens, heads, head_dim)| format!("{name} {tokens}x{heads}x{head_dim}"));
    names().into_iter().flat_map(of).collect()
}

#[divan::bench(args = sequences())]
fn attention(bencher: Bencher<'_, '_>, text: &str) {
    bench_attention(bencher, text, AttentionPrecision::F32);
}

#[divan::bench(args = sequences())]
fn attention_of_bf16(bencher: Bencher<'_, '_>, text: &str) {
    bench_attention(bencher, text, AttentionPrecision::Bf16);
}

fn bench_attention(bencher: Bencher<'_, '_>, text: &str, precision: AttentionPrecision) {
    let (isa, [tokens, heads, head_dim]) = case(text);
    let stride = 3 * heads * head_dim;
    let fused = normal(tokens * stride);
    let (mut scratch, mut out) = (AttentionScratch::default(), vec![0.0; tokens * heads * head_dim]);
    bencher.counter(ItemsCount::new(4 * tokens * tokens * heads * head_dim)).bench_local(|| {
        for head in 0..heads {
            let part = |index: usize| &fused[(index * heads + head) * head_dim..];
            let input = HeadInput {
                query: part(0),
                key: part(1),
                value: part(2),
                queries: 0..tokens,
                query_stride: stride,
                kv_stride: stride,
                tokens,
                head_dim,
                cap: None,
                scale: 0.125,
                before: usize::MAX,
                after: usize::MAX,
                bias: None,
                precision,
            };
            attend(isa, black_box(&input), &mut scratch, &mut out[head * head_dim..], heads * head_dim);
        }
    });
}

#[divan::bench(args = names())]
fn pack(bencher: Bencher<'_, '_>, name: &str) {
    let (isa, q) = (isa(name), integers(768 * 3072));
    bencher.counter(ItemsCount::new(q.len())).bench_local(|| PackedWeights::pack(isa, &q, 3072, 768));
}

/// Times `f` on the values of an activation.
fn bench_values<T>(bencher: Bencher<'_, '_>, mut f: impl FnMut(&[f32]) -> T) {
    let x = normal(ROWS * COLUMNS);
    bencher.counter(ItemsCount::new(x.len())).bench_local(|| f(black_box(&x)));
}

/// Times `f` in place; copying the values first is part of the time.
fn bench_in_place(bencher: Bencher<'_, '_>, mut f: impl FnMut(&mut [f32])) {
    let mut y = vec![0.0; ROWS * COLUMNS];
    bench_values(bencher, |x| {
        y.copy_from_slice(x);
        f(&mut y);
    });
}

const PARAMS: QuantParams = QuantParams { scale: 0.03, zero_point: 5 };

#[divan::bench(args = names())]
fn quantize_per_tensor(bencher: Bencher<'_, '_>, name: &str) {
    let (isa, mut q) = (isa(name), vec![0; ROWS * COLUMNS]);
    bench_values(bencher, |x| quantize_static(isa, x, COLUMNS, PARAMS, &mut q));
}

#[divan::bench(args = names())]
fn quantize_per_token(bencher: Bencher<'_, '_>, name: &str) {
    let (isa, mut q, mut params) = (isa(name), vec![0; ROWS * COLUMNS], [PARAMS; ROWS]);
    bench_values(bencher, |x| quantize_tokens(isa, x, COLUMNS, Symmetry::Asymmetric, &mut q, &mut params));
}

#[divan::bench(args = names(), name = "dequantize")]
fn dequantize_values(bencher: Bencher<'_, '_>, name: &str) {
    let (isa, q) = (isa(name), integers(ROWS * COLUMNS));
    bench_in_place(bencher, |x| dequantize(isa, &q, PARAMS, x));
}

#[divan::bench(args = names())]
fn gelu_erf(bencher: Bencher<'_, '_>, name: &str) {
    let isa = isa(name);
    bench_in_place(bencher, |x| activate(isa, x, Activation::GeluErf));
}

#[divan::bench(args = names())]
fn gelu_tanh(bencher: Bencher<'_, '_>, name: &str) {
    let isa = isa(name);
    bench_in_place(bencher, |x| activate(isa, x, Activation::GeluTanh));
}

#[divan::bench(args = names())]
fn tanh(bencher: Bencher<'_, '_>, name: &str) {
    let isa = isa(name);
    bench_in_place(bencher, |x| tanh_in_place(isa, x));
}

#[divan::bench(args = names(), name = "layer_norm")]
fn layer(bencher: Bencher<'_, '_>, name: &str) {
    let (isa, gamma) = (isa(name), normal(COLUMNS));
    bench_in_place(bencher, |x| layer_norm(isa, x, &gamma, &gamma, 1e-12));
}

#[divan::bench(args = names(), name = "rms_norm")]
fn rms(bencher: Bencher<'_, '_>, name: &str) {
    let (isa, gamma) = (isa(name), normal(COLUMNS));
    bench_in_place(bencher, |x| rms_norm(isa, x, &gamma, 1e-6));
}

#[divan::bench(args = names(), name = "extremes")]
fn range(bencher: Bencher<'_, '_>, name: &str) {
    let isa = isa(name);
    bench_values(bencher, |x| extremes(isa, x));
}

#[divan::bench(args = names(), name = "channel_absmax")]
fn absmax(bencher: Bencher<'_, '_>, name: &str) {
    let (isa, mut out) = (isa(name), vec![0.0; COLUMNS]);
    bench_values(bencher, |x| channel_absmax(isa, x, COLUMNS, &mut out));
}

#[divan::bench(args = names())]
fn histogram_of_4096_bins(bencher: Bencher<'_, '_>, name: &str) {
    let (isa, mut counts) = (isa(name), vec![0; 4096]);
    bench_values(bencher, |x| {
        counts.fill(0);
        histogram(isa, x, 256.0, &mut counts);
    });
}

/// As after a `ReLU`: half of the values fall into one bin.
#[divan::bench(args = names())]
fn histogram_of_half_zeros(bencher: Bencher<'_, '_>, name: &str) {
    let (isa, mut counts) = (isa(name), vec![0; 4096]);
    let x: Vec<f32> = normal(ROWS * COLUMNS).into_iter().map(|x| x.max(0.0)).collect();
    bencher.counter(ItemsCount::new(x.len())).bench_local(|| {
        counts.fill(0);
        histogram(isa, black_box(&x), 256.0, &mut counts);
    });
}

#[divan::bench(args = names())]
fn squared_error(bencher: Bencher<'_, '_>, name: &str) {
    let (isa, other) = (isa(name), vec![0.25; ROWS * COLUMNS]);
    bench_values(bencher, |x| sum_squared_error(isa, x, &other));
}
