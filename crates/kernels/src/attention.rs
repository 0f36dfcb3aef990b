//! Scaled dot-product attention of one head over one sequence.

use std::array::from_fn;
use std::ops::Range;

use crate::Isa;
use crate::activation::exp_nonpositive;
use crate::simd::{Kernel, LANES, Simd};

/// Queries whose scores are held at a time.
const ROWS: usize = 6;
/// Vectors of keys, or of a head's channels, that a block of queries is multiplied with at a time.
const VECTORS: usize = 2;
/// Keys of such a step.
const PANEL: usize = VECTORS * LANES;

/// One head's part of a sequence. The rows of query, key and value, one a token, begin every `stride` values, so that the
/// slices may lie in one fused projection of all heads.
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
    /// Values from one token's row to the next.
    pub stride: usize,
    /// Tokens of the sequence, at least 1.
    pub tokens: usize,
    /// Channels of the head, at least 1.
    pub head_dim: usize,
    /// On the scores: positive and finite.
    pub scale: f32,
    /// Tokens before its own that a query attends to; `usize::MAX` for all.
    pub before: usize,
    /// Tokens after its own; 0 is causal attention.
    pub after: usize,
    /// Added to the scaled scores by the distance from query to key, `-(tokens - 1)` first: `2 * tokens - 1` values.
    pub bias: Option<&'a [f32]>,
}

/// Memory that [`attend`] works in; it grows to the largest sequence and is then used again.
#[derive(Debug, Clone, Default)]
pub struct AttentionScratch {
    /// `[head_dim, padded tokens]`: the keys of every channel side by side.
    keys: Vec<f32>,
    /// `[ROWS, padded tokens]`.
    scores: Vec<f32>,
}

/// `out[i] = sum over j of softmax(scale * query[i] . key[j] + bias[j - i]) * value[j]` over the tokens `j` that `i` reaches,
/// for each `i` in `queries`.
///
/// Rows of `out`, of `head_dim` values for each query, begin every `out_stride` values; others are left alone. Scores that
/// are not finite make their row NaN.
///
/// Each sum is over its index in order, each step a fused operation in f32, and the exponentials are those of
/// [`softmax_rows`](crate::softmax_rows): results are equal bit for bit on all instruction sets and do not depend on which
/// other sequences, heads or queries are computed.
pub fn attend(
    isa: Isa,
    input: &HeadInput<'_>,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
    out_stride: usize,
) {
    let HeadInput { stride, tokens, head_dim, scale, .. } = *input;
    let queries = input.queries.clone();
    assert!(tokens > 0 && head_dim > 0, "there is something to attend to");
    assert!(stride >= head_dim && out_stride >= head_dim, "rows do not overlap");
    assert!(scale > 0.0 && scale.is_finite(), "`scale` is positive and finite");
    assert!(queries.start < queries.end && queries.end <= tokens, "the queries are tokens, at least one");
    let least = |rows: usize, stride: usize| (rows - 1) * stride + head_dim;
    assert!(input.query.len() >= least(queries.len(), stride), "`query` holds all rows");
    for (name, rows) in [("key", input.key), ("value", input.value)] {
        assert!(rows.len() >= least(tokens, stride), "`{name}` holds all rows");
    }
    assert!(input.bias.is_none_or(|bias| bias.len() == 2 * tokens - 1), "a bias for each distance");
    assert!(out.len() >= least(queries.len(), out_stride), "`out` holds all rows");
    let padded = tokens.next_multiple_of(PANEL);
    scratch.keys.resize(head_dim * padded, 0.0);
    scratch.scores.resize(ROWS * padded, 0.0);
    isa.run(Attend { input, padded, keys: &mut scratch.keys, scores: &mut scratch.scores, out, out_stride });
}

struct Attend<'a, 'i> {
    input: &'a HeadInput<'i>,
    padded: usize,
    keys: &'a mut [f32],
    scores: &'a mut [f32],
    out: &'a mut [f32],
    out_stride: usize,
}

impl Kernel for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.pack_keys(s);
        let queries = self.input.queries.clone();
        for first in queries.clone().step_by(ROWS) {
            match queries.end - first {
                1 => self.block::<S, 1>(s, first),
                2 => self.block::<S, 2>(s, first),
                3 => self.block::<S, 3>(s, first),
                4 => self.block::<S, 4>(s, first),
                5 => self.block::<S, 5>(s, first),
                _ => self.block::<S, ROWS>(s, first),
            }
        }
    }
}

impl Attend<'_, '_> {
    /// The keys by channel; columns past the last token hold zeros.
    #[inline(always)]
    fn pack_keys<S: Simd>(&mut self, s: S) {
        let HeadInput { key, stride, tokens, head_dim, .. } = *self.input;
        for token in (0..self.padded).step_by(LANES) {
            for channel in (0..head_dim).step_by(LANES) {
                let width = LANES.min(head_dim - channel);
                let row = |at: usize| {
                    if at < tokens {
                        s.load_some(&key[at * stride + channel..][..width], 0.0)
                    } else {
                        s.splat(0.0)
                    }
                };
                let columns = s.transpose(from_fn(|i| row(token + i)));
                for (i, column) in columns.into_iter().enumerate().take(width) {
                    s.store_some(column, &mut self.keys[(channel + i) * self.padded + token..][..LANES]);
                }
            }
        }
    }

    /// The queries `first..first + R`.
    #[inline(always)]
    fn block<S: Simd, const R: usize>(&mut self, s: S, first: usize) {
        let HeadInput { tokens, before, after, .. } = *self.input;
        // The keys that any of the queries reaches, from the beginning of a panel.
        let from = first.saturating_sub(before) / PANEL * PANEL;
        let to = (first + R).saturating_add(after).min(tokens);
        for panel in (from..to).step_by(PANEL) {
            self.score::<S, R>(s, first, panel);
        }
        let mut factors = [0.0; R];
        for (row, factor) in factors.iter_mut().enumerate() {
            *factor = self.exponentials(s, first + row, row, from..to);
        }
        let head_dim = self.input.head_dim;
        for channel in (0..head_dim).step_by(PANEL) {
            self.mix::<S, R>(s, first, channel, from..to, &factors);
        }
    }

    /// Scores of R queries and one panel of keys.
    #[inline(always)]
    fn score<S: Simd, const R: usize>(&mut self, s: S, first: usize, panel: usize) {
        let HeadInput { query, stride, head_dim, .. } = *self.input;
        let at = first - self.input.queries.start;
        let queries: [&[f32]; R] = from_fn(|row| &query[(at + row) * stride..][..head_dim]);
        let mut sums = [[s.splat(0.0); VECTORS]; R];
        for (channel, keys) in self.keys.chunks_exact(self.padded).take(head_dim).enumerate() {
            let keys = vectors(&keys[panel..panel + PANEL]).map(|keys| s.load(keys));
            for (sums, query) in sums.iter_mut().zip(queries) {
                let query = s.splat(query[channel]);
                for (sum, keys) in sums.iter_mut().zip(keys) {
                    *sum = s.mul_add(query, keys, *sum);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let at = row * self.padded + panel;
            for (vector, sum) in sums.into_iter().enumerate() {
                s.store_some(sum, &mut self.scores[at + vector * LANES..at + (vector + 1) * LANES]);
            }
        }
    }

    /// Replaces a query's scores among `range` by exponentials, 0 where it does not reach, and returns what makes their sum 1.
    #[inline(always)]
    fn exponentials<S: Simd>(&mut self, s: S, query: usize, row: usize, range: Range<usize>) -> f32 {
        let HeadInput { tokens, scale, before, after, bias, .. } = *self.input;
        let scores = &mut self.scores[row * self.padded..(row + 1) * self.padded];
        let (from, to) =
            (query.saturating_sub(before), query.saturating_add(after).saturating_add(1).min(tokens));
        scores[range.start..from].fill(0.0);
        scores[to..range.end].fill(0.0);
        let scores = &mut scores[from..to];
        let mut scale = s.splat(scale);
        if let Some(bias) = bias {
            // The bias of key j stands at distance j - query.
            let bias = &bias[tokens - 1 - query + from..][..scores.len()];
            for (scores, bias) in scores.chunks_mut(LANES).zip(bias.chunks(LANES)) {
                let sum = s.mul_add(s.load_some(scores, 0.0), scale, s.load_some(bias, 0.0));
                s.store_some(sum, scores);
            }
            scale = s.splat(1.0);
        }
        let mut largest = s.splat(f32::NEG_INFINITY);
        for v in scores.chunks(LANES) {
            largest = s.max(s.load_some(v, f32::NEG_INFINITY), largest);
        }
        let largest = s.splat(-s.largest(largest));
        let shift = s.mul(largest, scale);
        let mut sum = s.splat(0.0);
        for v in scores.chunks_mut(LANES) {
            let e = exp_nonpositive(s, s.mul_add(s.load_some(v, f32::NEG_INFINITY), scale, shift));
            s.store_some(e, v);
            sum = s.add(sum, e);
        }
        1.0 / s.sum(sum)
    }

    /// R rows of the output, up to a panel of channels.
    #[inline(always)]
    fn mix<S: Simd, const R: usize>(
        &mut self,
        s: S,
        first: usize,
        channel: usize,
        range: Range<usize>,
        factors: &[f32; R],
    ) {
        let HeadInput { value, stride, head_dim, .. } = *self.input;
        let width = (head_dim - channel).min(PANEL);
        let shares: [&[f32]; R] = from_fn(|row| &self.scores[row * self.padded..(row + 1) * self.padded]);
        let mut sums = [[s.splat(0.0); VECTORS]; R];
        for token in range {
            let values = &value[token * stride + channel..][..width];
            let values: [S::F; VECTORS] = match values.first_chunk::<PANEL>() {
                Some(full) => vectors(full).map(|values| s.load(values)),
                None => from_fn(|vector| {
                    let at = (vector * LANES).min(width);
                    s.load_some(&values[at..(at + LANES).min(width)], 0.0)
                }),
            };
            for (sums, shares) in sums.iter_mut().zip(shares) {
                let share = s.splat(shares[token]);
                for (sum, values) in sums.iter_mut().zip(values) {
                    *sum = s.mul_add(share, values, *sum);
                }
            }
        }
        for (row, (sums, factor)) in sums.into_iter().zip(factors).enumerate() {
            let at = first - self.input.queries.start + row;
            let out = &mut self.out[at * self.out_stride + channel..][..width];
            for (sum, out) in sums.into_iter().zip(out.chunks_mut(LANES)) {
                s.store_some(s.mul(sum, s.splat(*factor)), out);
            }
        }
    }
}

/// A panel as whole vectors.
#[inline(always)]
fn vectors(panel: &[f32]) -> [&[f32; LANES]; VECTORS] {
    let (vectors, _) = panel.as_chunks::<LANES>();
    from_fn(|vector| &vectors[vector])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zeropoint_core::Rng;

    /// The definition in f64.
    fn exact(input: &HeadInput<'_>) -> Vec<f64> {
        let HeadInput { stride, tokens, head_dim, .. } = *input;
        let row = |rows: &[f32], token: usize| -> Vec<f64> {
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
                    let dot: f64 =
                        row(input.query, i).iter().zip(row(input.key, j)).map(|(q, k)| q * k).sum();
                    let bias = input.bias.map_or(0.0, |bias| f64::from(bias[tokens - 1 + j - i]));
                    dot * f64::from(input.scale) + bias
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for channel in 0..head_dim {
                let sum: f64 =
                    reached.iter().zip(&weights).map(|(&j, w)| w * row(input.value, j)[channel]).sum();
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
        before: usize,
        after: usize,
        bias: bool,
    }

    fn shapes() -> impl Strategy<Value = Shape> {
        let tokens = prop_oneof![1usize..40, 60usize..70, 120usize..140];
        let reach = || prop_oneof![Just(usize::MAX), 0usize..20];
        (tokens, prop_oneof![1usize..70, Just(32), Just(64)], 0usize..9, reach(), reach(), any::<bool>())
            .prop_map(|(tokens, head_dim, gap, before, after, bias)| Shape {
                tokens,
                head_dim,
                gap,
                before,
                after,
                bias,
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_instruction_set_gives_the_same_bits_near_the_definition(shape in shapes(), seed: u64) {
            let Shape { tokens, head_dim, gap, before, after, bias } = shape;
            let mut rng = Rng::new(seed);
            let mut normal = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.normal() as f32).collect() };
            // Query, key and value side by side, as a fused projection has them.
            let stride = 3 * head_dim + gap;
            let fused = normal(tokens * stride);
            let bias = bias.then(|| normal(2 * tokens - 1));
            let input = HeadInput {
                query: &fused, key: &fused[head_dim..], value: &fused[2 * head_dim..],
                queries: 0..tokens, stride, tokens, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), before, after, bias: bias.as_deref(),
            };
            let expected = exact(&input);
            let out_stride = head_dim + 2;
            let mut first: Option<Vec<f32>> = None;
            // Memory that a longer sequence has left its numbers in.
            let mut scratch = AttentionScratch { keys: vec![f32::NAN; 9999], scores: vec![f32::NAN; 9999] };
            for isa in Isa::available() {
                let mut out = vec![-7.0; tokens * out_stride];
                attend(isa, &input, &mut scratch, &mut out, out_stride);
                for (token, row) in out.chunks_exact(out_stride).enumerate() {
                    prop_assert_eq!(&row[head_dim..], &[-7.0; 2]);
                    for (found, exact) in row[..head_dim].iter().zip(&expected[token * head_dim..]) {
                        prop_assert!((f64::from(*found) - exact).abs() < 1e-5, "{} is not {}", found, exact);
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
        let input = HeadInput {
            query: &query,
            key: &key,
            value: &value,
            queries: 0..tokens,
            stride: head_dim,
            tokens,
            head_dim,
            scale: 0.2,
            before: usize::MAX,
            after: usize::MAX,
            bias: None,
        };
        for isa in Isa::available() {
            let mut out = vec![0.0; tokens * head_dim];
            attend(isa, &input, &mut AttentionScratch::default(), &mut out, head_dim);
            for (token, row) in out.chunks_exact(head_dim).enumerate() {
                assert_eq!(row.iter().all(|value| value.is_nan()), token == 4, "{isa}: {token}");
                assert_eq!(row.iter().any(|value| value.is_nan()), token == 4, "{isa}: {token}");
            }
        }
    }
}
