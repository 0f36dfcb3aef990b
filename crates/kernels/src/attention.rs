//! Scaled dot-product attention of one head over one sequence.

mod cache;
mod kernel;
mod pack;

use std::ops::Range;

pub use self::cache::{CachedInput, HeadCache, KvPrecision, attend_cached};

use self::kernel::{Attend, ROWS};
use self::pack::{PANEL, Pack, Packed};
use crate::simd::LANES;
use crate::{AlignedMemory, Isa};

/// What the two products of attention multiply; their sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttentionPrecision {
    /// The f32 numbers as they are.
    #[default]
    F32,
    /// Queries, keys, values and exponentials rounded to bfloat16, half to even. Relative error of a factor: `2^-9`.
    Bf16,
}

/// One head's part of a sequence. Rows, one a token, begin every so many values, so that the slices may lie in one fused
/// projection of all heads; heads that share keys and values read the same ones.
#[derive(Debug, Clone)]
pub struct HeadInput<'a> {
    /// The head's values of the tokens in `queries`, from the first one's first on.
    pub query: &'a [f32],
    /// Of all tokens, from the first one's first on.
    pub key: &'a [f32],
    /// As `key`.
    pub value: &'a [f32],
    /// The tokens whose output is asked for.
    pub queries: Range<usize>,
    /// Values from one token's row of `query` to the next.
    pub query_stride: usize,
    /// The same of `key` and of `value`.
    pub kv_stride: usize,
    /// Tokens of the sequence, at least 1.
    pub tokens: usize,
    /// Channels of the head, at least 1.
    pub head_dim: usize,
    /// On the scores: positive and finite.
    pub scale: f32,
    /// Scaled scores `s` become `cap * tanh(s / cap)`: positive and finite.
    pub cap: Option<f32>,
    /// Tokens before its own that a query attends to; `usize::MAX` for all.
    pub before: usize,
    /// Tokens after its own; 0 is causal attention.
    pub after: usize,
    /// Added to the scaled scores by the distance from query to key, `-(tokens - 1)` first: `2 * tokens - 1` values.
    pub bias: Option<&'a [f32]>,
    /// What the products multiply.
    pub precision: AttentionPrecision,
}

/// Memory that [`attend`] works in; it grows to the largest sequence and is then used again.
#[derive(Debug, Clone, Default)]
pub struct AttentionScratch {
    /// `[panels, head_dim, PANEL]`: the keys of a panel by channel.
    keys: AlignedMemory<f32>,
    /// `[tokens, head_dim]`, rows padded to whole vectors: in the fused projection a head's values lie so far apart that they
    /// share few sets of the first cache.
    values: AlignedMemory<f32>,
    /// `[panels, ROWS, PANEL]`: so that a block's scores of one key stand at fixed distances.
    scores: AlignedMemory<f32>,
    /// As `keys`, of neighbouring channels: `[panels, head_dim / 2, PANEL]`.
    key_pairs: AlignedMemory<i32>,
    /// As `values`, of neighbouring tokens: `[tokens / 2, head_dim]`.
    value_pairs: AlignedMemory<i32>,
    /// The queries of a block, of neighbouring channels: `[ROWS, head_dim / 2]`.
    query_pairs: AlignedMemory<i32>,
    /// As `scores`, exponentials of neighbouring keys: `[panels, ROWS, PANEL / 2]`.
    share_pairs: AlignedMemory<i32>,
    /// The queries of a block, rounded: `[ROWS, head_dim]`.
    queries: AlignedMemory<f32>,
}

/// `out[i] = sum over j of softmax(capped(scale * query[i] . key[j]) + bias[j - i]) * value[j]` over the tokens `j` that `i`
/// reaches, for each `i` in `queries`, where `capped` does nothing without a cap.
///
/// Rows of `out`, of `head_dim` values for each query, begin every `out_stride` values; others are left alone. Scores that
/// are not finite make their row NaN; a cap makes infinite ones finite.
///
/// Each sum over channels or tokens is in the order of its index, each step a fused operation in f32, and an exponential has
/// the relative error `2e-7 + 1e-7 * d` where its score lies `d` below the largest; more than 87.3 below it is exactly 0.
/// Results do not depend on which other sequences, heads or queries are computed, and are equal bit for bit on all
/// instruction sets; where a sum of products of bfloat16 numbers is below `2^-126` along the way, `avx512bf16` may take it as 0.
///
/// With [`AttentionPrecision::Bf16`] the second channel of a pair comes before the first, and the second token of a pair, as in
/// Intel's `VDPBF16PS`; what makes the shares sum to 1 is added from exponentials that are not rounded.
pub fn attend(
    isa: Isa,
    input: &HeadInput<'_>,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
    out_stride: usize,
) {
    let HeadInput { query_stride, kv_stride, tokens, head_dim, scale, .. } = *input;
    let queries = input.queries.clone();
    assert!(tokens > 0 && head_dim > 0, "there is something to attend to");
    assert!(query_stride.min(kv_stride).min(out_stride) >= head_dim, "rows do not overlap");
    assert!(scale > 0.0 && scale.is_finite(), "`scale` is positive and finite");
    assert!(input.cap.is_none_or(|cap| cap > 0.0 && cap.is_finite()), "`cap` is positive and finite");
    assert!(queries.start < queries.end && queries.end <= tokens, "the queries are tokens, at least one");
    let least = |rows: usize, stride: usize| (rows - 1) * stride + head_dim;
    assert!(input.query.len() >= least(queries.len(), query_stride), "`query` holds all rows");
    for (name, rows) in [("key", input.key), ("value", input.value)] {
        assert!(rows.len() >= least(tokens, kv_stride), "`{name}` holds all rows");
    }
    assert!(input.bias.is_none_or(|bias| bias.len() == 2 * tokens - 1), "a bias for each distance");
    assert!(out.len() >= least(queries.len(), out_stride), "`out` holds all rows");
    let padded = tokens.next_multiple_of(PANEL);
    let width = head_dim.next_multiple_of(LANES);
    let (channel_pairs, token_pairs) = (head_dim.div_ceil(2), tokens.div_ceil(2));
    // Memory that the products read as pairs is asked for only with them.
    let rounded = input.precision == AttentionPrecision::Bf16;
    let pairs = |len: usize| if rounded { len } else { 0 };
    let keys = scratch.keys.room(2 * channel_pairs * padded);
    let values = scratch.values.room(2 * token_pairs * width);
    let key_pairs = scratch.key_pairs.room(pairs(channel_pairs * padded));
    let value_pairs = scratch.value_pairs.room(pairs(token_pairs * width));
    isa.run(Pack { input, padded, keys, values, key_pairs, value_pairs });
    let packed = Packed { keys, values, key_pairs, value_pairs, ..Packed::default() };
    isa.run(Attend {
        input,
        together: 1,
        packed,
        paired: false,
        integers: false,
        scores: scratch.scores.room(ROWS * padded),
        queries: scratch.queries.room(pairs(ROWS * head_dim.next_multiple_of(PANEL))),
        query_pairs: scratch.query_pairs.room(pairs(ROWS * head_dim.next_multiple_of(PANEL) / 2)),
        share_pairs: scratch.share_pairs.room(pairs(ROWS * padded / 2)),
        out,
        out_stride,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zeropoint_core::Rng;

    /// The definition in f64.
    fn exact(input: &HeadInput<'_>) -> Vec<f64> {
        let HeadInput { query_stride, kv_stride, tokens, head_dim, .. } = *input;
        let row = |rows: &[f32], token: usize, stride: usize| -> Vec<f64> {
            rows[token * stride..][..head_dim].iter().map(|&v| f64::from(v)).collect()
        };
        let mut out = Vec::new();
        for i in 0..tokens {
            let reached: Vec<usize> = (0..tokens)
                .filter(|&j| j + input.before.min(tokens) >= i && j <= i + input.after.min(tokens))
                .collect();
            let scores: Vec<f64> = reached
                .iter()
                .map(|&j| {
                    let dot: f64 = row(input.query, i, query_stride)
                        .iter()
                        .zip(row(input.key, j, kv_stride))
                        .map(|(q, k)| q * k)
                        .sum();
                    let bias = input.bias.map_or(0.0, |bias| f64::from(bias[tokens - 1 + j - i]));
                    let score = dot * f64::from(input.scale);
                    let capped = input.cap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh());
                    capped + bias
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for channel in 0..head_dim {
                let sum: f64 = reached
                    .iter()
                    .zip(&weights)
                    .map(|(&j, w)| w * row(input.value, j, kv_stride)[channel])
                    .sum();
                out.push(sum / total);
            }
        }
        out
    }

    #[derive(Debug, Clone)]
    struct Shape {
        tokens: usize,
        head_dim: usize,
        gap: usize,
        apart: bool,
        before: usize,
        after: usize,
        bias: bool,
        cap: Option<f32>,
        precision: AttentionPrecision,
    }

    fn rounded(value: f32) -> f32 {
        f32::from_bits((value.to_bits() + 0x7fff + (value.to_bits() >> 16 & 1)) & 0xffff_0000)
    }

    fn shapes() -> impl Strategy<Value = Shape> {
        let tokens = prop_oneof![1usize..40, 60usize..70, 120usize..140];
        let reach = || prop_oneof![Just(usize::MAX), 0usize..20];
        let head_dim = prop_oneof![1usize..70, Just(32), Just(64)];
        let precision = prop_oneof![Just(AttentionPrecision::F32), Just(AttentionPrecision::Bf16)];
        let cap = prop_oneof![Just(None), (0.3f32..4.0).prop_map(Some)];
        (tokens, head_dim, 0usize..9, any::<bool>(), reach(), reach(), any::<bool>(), cap, precision)
            .prop_map(|(tokens, head_dim, gap, apart, before, after, bias, cap, precision)| Shape {
                tokens,
                head_dim,
                gap,
                apart,
                before,
                after,
                bias,
                cap,
                precision,
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_instruction_set_gives_the_same_bits_near_the_definition(shape in shapes(), seed: u64) {
            let Shape { tokens, head_dim, gap, apart, before, after, bias, cap, precision } = shape;
            let mut rng = Rng::new(seed);
            let mut normal = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.normal() as f32).collect() };
            // Query, key and value side by side, as a fused projection has them, or keys and values by themselves.
            let stride = 3 * head_dim + gap;
            let kv_stride = if apart { 2 * head_dim } else { stride };
            let fused = normal(tokens * stride);
            let own = normal(if apart { tokens * kv_stride } else { 0 });
            let (key, value) =
                if apart { (&own[..], &own[head_dim..]) } else { (&fused[head_dim..], &fused[2 * head_dim..]) };
            let bias = bias.then(|| normal(2 * tokens - 1));
            let input = HeadInput {
                query: &fused, key, value,
                queries: 0..tokens, query_stride: stride, kv_stride, tokens, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), cap, before, after, bias: bias.as_deref(), precision,
            };
            // A share is rounded once more, to one part in 512.
            let factors = [&fused[..], key, value].map(|rows| rows.iter().map(|v| rounded(*v)).collect::<Vec<f32>>());
            let (expected, bound) = match precision {
                AttentionPrecision::F32 => (exact(&input), 1e-5),
                AttentionPrecision::Bf16 => (exact(&HeadInput { query: &factors[0], key: &factors[1], value: &factors[2], ..input.clone() }), 0.02),
            };
            let out_stride = head_dim + 2;
            let mut first: Option<Vec<f32>> = None;
            // Memory that a longer sequence has left its numbers in.
            let mut scratch = AttentionScratch::default();
            for memory in [&mut scratch.keys, &mut scratch.values, &mut scratch.scores, &mut scratch.queries] {
                memory.room(19_999).fill(f32::NAN);
            }
            let pairs = [&mut scratch.key_pairs, &mut scratch.value_pairs, &mut scratch.query_pairs, &mut scratch.share_pairs];
            for memory in pairs {
                memory.room(19_999).fill(-1);
            }
            for isa in Isa::available() {
                let mut out = vec![-7.0; tokens * out_stride];
                attend(isa, &input, &mut scratch, &mut out, out_stride);
                for (token, row) in out.chunks_exact(out_stride).enumerate() {
                    prop_assert_eq!(&row[head_dim..], &[-7.0; 2]);
                    for (found, exact) in row[..head_dim].iter().zip(&expected[token * head_dim..]) {
                        prop_assert!((f64::from(*found) - exact).abs() < bound, "{}: {} is not {}", isa, found, exact);
                    }
                }
                let first = first.get_or_insert_with(|| out.clone());
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(first), bits(&out), "{}", isa);
                // The queries in two parts.
                let cut = rng.below(tokens as u64) as usize;
                let mut parts = vec![-7.0; tokens * out_stride];
                for queries in [0..cut, cut..tokens].into_iter().filter(|queries| !queries.is_empty()) {
                    let start = queries.start;
                    let input = HeadInput { query: &fused[start * stride..], queries, ..input.clone() };
                    attend(isa, &input, &mut scratch, &mut parts[start * out_stride..], out_stride);
                }
                prop_assert_eq!(bits(&parts), bits(&out), "{}: cut at {}", isa, cut);
            }
        }
    }

    #[test]
    fn what_is_not_finite_shows_in_its_rows_alone() {
        let (tokens, head_dim) = (9, 20);
        let mut rng = Rng::new(3);
        let mut rows = || (0..tokens * head_dim).map(|_| rng.normal() as f32).collect::<Vec<f32>>();
        let (mut query, key, value) = (rows(), rows(), rows());
        query[4 * head_dim + 3] = f32::NAN;
        let f32_input = HeadInput {
            query: &query,
            key: &key,
            value: &value,
            queries: 0..tokens,
            query_stride: head_dim,
            kv_stride: head_dim,
            tokens,
            head_dim,
            scale: 0.2,
            cap: None,
            before: usize::MAX,
            after: usize::MAX,
            bias: None,
            precision: AttentionPrecision::F32,
        };
        let bf16_input = HeadInput { precision: AttentionPrecision::Bf16, ..f32_input.clone() };
        for (isa, input) in
            Isa::available().into_iter().flat_map(|isa| [(isa, &f32_input), (isa, &bf16_input)])
        {
            let mut out = vec![0.0; tokens * head_dim];
            attend(isa, input, &mut AttentionScratch::default(), &mut out, head_dim);
            for (token, row) in out.chunks_exact(head_dim).enumerate() {
                assert_eq!(row.iter().all(|value| value.is_nan()), token == 4, "{isa}: {token}");
                assert_eq!(row.iter().any(|value| value.is_nan()), token == 4, "{isa}: {token}");
            }
        }
    }
}
