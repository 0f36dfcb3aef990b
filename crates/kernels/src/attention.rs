//! Scaled dot-product attention of one head over one sequence.

use std::array::from_fn;
use std::f32::consts::LOG2_E;
use std::ops::Range;

use crate::activation::exp2_nonpositive;
use crate::simd::{Kernel, LANES, Simd};
use crate::{AlignedMemory, Isa};

/// Queries whose scores are held at a time.
const ROWS: usize = 6;
/// Vectors of keys, or of a head's channels, that a block of queries is multiplied with at a time.
const VECTORS: usize = 2;
/// Keys of such a step.
const PANEL: usize = VECTORS * LANES;

/// What the two products of attention multiply; their sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttentionPrecision {
    /// The f32 numbers as they are.
    #[default]
    F32,
    /// Queries, keys, values and exponentials rounded to bfloat16, half to even. Relative error of a factor: `2^-9`.
    Bf16,
}

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
    /// What the products multiply.
    pub precision: AttentionPrecision,
}

/// Memory that [`attend`] works in; it grows to the largest sequence and is then used again.
#[derive(Debug, Clone, Default)]
pub struct AttentionScratch {
    /// `[head_dim, padded tokens]`: the keys of every channel side by side.
    keys: AlignedMemory<f32>,
    /// `[tokens, head_dim]`, rows padded to whole vectors: in the fused projection a head's values lie so far apart that they
    /// share few sets of the first cache.
    values: AlignedMemory<f32>,
    /// `[panels, ROWS, PANEL]`: so that a block's scores of one key stand at fixed distances.
    scores: AlignedMemory<f32>,
    /// As `keys`, of neighbouring channels: `[head_dim / 2, padded tokens]`.
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

/// `out[i] = sum over j of softmax(scale * query[i] . key[j] + bias[j - i]) * value[j]` over the tokens `j` that `i` reaches,
/// for each `i` in `queries`.
///
/// Rows of `out`, of `head_dim` values for each query, begin every `out_stride` values; others are left alone. Scores that
/// are not finite make their row NaN.
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
    let width = head_dim.next_multiple_of(LANES);
    let (channel_pairs, token_pairs) = (head_dim.div_ceil(2), tokens.div_ceil(2));
    // Memory that the products read as pairs is asked for only with them.
    let rounded = input.precision == AttentionPrecision::Bf16;
    let pairs = |len: usize| if rounded { len } else { 0 };
    isa.run(Attend {
        input,
        padded,
        keys: scratch.keys.room(2 * channel_pairs * padded),
        values: scratch.values.room(2 * token_pairs * width),
        scores: scratch.scores.room(ROWS * padded),
        queries: scratch.queries.room(pairs(ROWS * head_dim.next_multiple_of(PANEL))),
        key_pairs: scratch.key_pairs.room(pairs(channel_pairs * padded)),
        value_pairs: scratch.value_pairs.room(pairs(token_pairs * width)),
        query_pairs: scratch.query_pairs.room(pairs(ROWS * head_dim.next_multiple_of(PANEL) / 2)),
        share_pairs: scratch.share_pairs.room(pairs(ROWS * padded / 2)),
        out,
        out_stride,
    });
}

struct Attend<'a, 'i> {
    input: &'a HeadInput<'i>,
    padded: usize,
    keys: &'a mut [f32],
    values: &'a mut [f32],
    scores: &'a mut [f32],
    queries: &'a mut [f32],
    key_pairs: &'a mut [i32],
    value_pairs: &'a mut [i32],
    query_pairs: &'a mut [i32],
    share_pairs: &'a mut [i32],
    out: &'a mut [f32],
    out_stride: usize,
}

/// What the products read.
trait Factors {
    /// bfloat16 numbers, in memory as f32: neighbours have changed places, so that the second of a pair comes first.
    const ROUNDED: bool;
    /// Pairs of bfloat16 numbers.
    const PAIRED: bool;
}

struct Single;
struct Rounded;
struct Paired;

impl Factors for Single {
    const ROUNDED: bool = false;
    const PAIRED: bool = false;
}

impl Factors for Rounded {
    const ROUNDED: bool = true;
    const PAIRED: bool = false;
}

impl Factors for Paired {
    const ROUNDED: bool = false;
    const PAIRED: bool = true;
}

impl Kernel for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.input.precision {
            AttentionPrecision::F32 => self.all::<S, Single>(s),
            AttentionPrecision::Bf16 if S::BF16 => self.all::<S, Paired>(s),
            AttentionPrecision::Bf16 => self.all::<S, Rounded>(s),
        }
    }
}

impl Attend<'_, '_> {
    #[inline(always)]
    fn all<S: Simd, F: Factors>(&mut self, s: S) {
        self.pack_keys::<S, F>(s);
        self.pack_values::<S, F>(s);
        let queries = self.input.queries.clone();
        for first in queries.clone().step_by(ROWS) {
            match queries.end - first {
                1 => self.block::<S, F, 1>(s, first),
                2 => self.block::<S, F, 2>(s, first),
                3 => self.block::<S, F, 3>(s, first),
                4 => self.block::<S, F, 4>(s, first),
                5 => self.block::<S, F, 5>(s, first),
                _ => self.block::<S, F, ROWS>(s, first),
            }
        }
    }

    /// The keys by channel; columns past the last token hold zeros.
    #[inline(always)]
    fn pack_keys<S: Simd, F: Factors>(&mut self, s: S) {
        let HeadInput { key, stride, tokens, head_dim, .. } = *self.input;
        for token in (0..self.padded).step_by(LANES) {
            for channel in (0..head_dim).step_by(LANES) {
                let width = LANES.min(head_dim - channel);
                let mut square = [s.splat(0.0); LANES];
                for (row, at) in square.iter_mut().zip(token..tokens) {
                    *row = s.load_some(&key[at * stride + channel..][..width], 0.0);
                }
                let columns = s.transpose(square);
                let even = width.next_multiple_of(2);
                if F::PAIRED {
                    for (i, pair) in columns.as_chunks::<2>().0.iter().enumerate().take(even / 2) {
                        let to = &mut self.key_pairs[(channel / 2 + i) * self.padded + token..];
                        store_pairs(s, s.pairs(pair[0], pair[1]), to);
                    }
                    continue;
                }
                for (i, column) in columns.into_iter().enumerate().take(if F::ROUNDED { even } else { width })
                {
                    let (column, i) = if F::ROUNDED { (s.bf16(column), i ^ 1) } else { (column, i) };
                    s.store_some(column, &mut self.keys[(channel + i) * self.padded + token..][..LANES]);
                }
            }
        }
    }

    #[inline(always)]
    fn pack_values<S: Simd, F: Factors>(&mut self, s: S) {
        let HeadInput { value, stride, tokens, head_dim, .. } = *self.input;
        let width = head_dim.next_multiple_of(LANES);
        let row = |token: usize| if token < tokens { &value[token * stride..][..head_dim] } else { &[] };
        if F::PAIRED {
            for (pair, to) in self.value_pairs.chunks_exact_mut(width).enumerate() {
                for channel in (0..head_dim).step_by(LANES) {
                    let low = s.load_some(part(row(2 * pair), channel), 0.0);
                    let high = s.load_some(part(row(2 * pair + 1), channel), 0.0);
                    store_pairs(s, s.pairs(low, high), &mut to[channel..]);
                }
            }
            return;
        }
        for (token, to) in self.values.chunks_exact_mut(width).enumerate() {
            let row = row(if F::ROUNDED { token ^ 1 } else { token });
            for (i, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                let v = s.load_some(part(row, i * LANES), 0.0);
                s.store(if F::ROUNDED { s.bf16(v) } else { v }, to);
            }
        }
    }

    /// The queries `first..first + R`.
    #[inline(always)]
    fn block<S: Simd, F: Factors, const R: usize>(&mut self, s: S, first: usize) {
        let HeadInput { tokens, head_dim, before, after, .. } = *self.input;
        let at = first - self.input.queries.start;
        self.pack_queries::<S, F, R>(s, at);
        // The panels with keys that any of the queries reaches.
        let end = (first + R).saturating_add(after).min(tokens);
        let panels = first.saturating_sub(before) / PANEL..end.div_ceil(PANEL);
        for panel in panels.clone() {
            let vectors = filled(panel, end);
            if S::WIDE && vectors == VECTORS {
                self.score::<S, F, R, VECTORS>(s, at, panel, 0);
            } else {
                for vector in 0..vectors {
                    self.score::<S, F, R, 1>(s, at, panel, vector);
                }
            }
        }
        let factors = self.softmax::<S, F, R>(s, first, (panels.clone(), end));
        let width = head_dim.next_multiple_of(LANES);
        let mut channel = 0;
        while channel < width {
            if S::WIDE && width - channel >= PANEL {
                self.mix::<S, F, R, VECTORS>(s, at, channel, (panels.clone(), end), &factors);
                channel += PANEL;
            } else {
                self.mix::<S, F, R, 1>(s, at, channel, (panels.clone(), end), &factors);
                channel += LANES;
            }
        }
    }

    /// The queries from `at` on, rounded; f32 ones are read where they are.
    #[inline(always)]
    fn pack_queries<S: Simd, F: Factors, const R: usize>(&mut self, s: S, at: usize) {
        let HeadInput { query, stride, head_dim, .. } = *self.input;
        if !F::ROUNDED && !F::PAIRED {
            return;
        }
        let width = head_dim.next_multiple_of(PANEL);
        for row in 0..R {
            let query = &query[(at + row) * stride..][..head_dim];
            for channel in (0..head_dim).step_by(PANEL) {
                let low = s.load_some(part(query, channel), 0.0);
                let high = s.load_some(part(query, channel + LANES), 0.0);
                if F::PAIRED {
                    let to = &mut self.query_pairs[row * (width / 2) + channel / 2..];
                    store_pairs(s, s.pairs_in_order(low, high), to);
                } else {
                    let to = &mut self.queries[row * width + channel..][..PANEL];
                    s.store_some(s.bf16(low), &mut to[..LANES]);
                    s.store_some(s.bf16(high), &mut to[LANES..]);
                }
            }
        }
    }

    /// Scores of R queries from `at` on and V vectors of keys of a panel.
    #[inline(always)]
    fn score<S: Simd, F: Factors, const R: usize, const V: usize>(
        &mut self,
        s: S,
        at: usize,
        panel: usize,
        vector: usize,
    ) {
        let HeadInput { query, stride, head_dim, .. } = *self.input;
        let from = panel * PANEL + vector * LANES;
        let width = head_dim.next_multiple_of(PANEL);
        let mut sums = [[s.splat(0.0); V]; R];
        if F::PAIRED {
            let pairs = head_dim.div_ceil(2);
            let queries: [&[i32]; R] = from_fn(|row| &self.query_pairs[row * width / 2..][..pairs]);
            for (pair, keys) in self.key_pairs.chunks_exact(self.padded).enumerate() {
                let (keys, _) = keys[from..from + V * LANES].as_chunks::<LANES>();
                let keys: [S::I; V] = from_fn(|vector| s.load_i32(&keys[vector]));
                for (sums, query) in sums.iter_mut().zip(queries) {
                    let query = s.splat_i32(query[pair]);
                    for (sum, keys) in sums.iter_mut().zip(keys) {
                        *sum = s.dot_pairs(*sum, keys, query);
                    }
                }
            }
        } else {
            let channels = if F::ROUNDED { head_dim.next_multiple_of(2) } else { head_dim };
            let queries: [&[f32]; R] = from_fn(|row| {
                if F::ROUNDED {
                    &self.queries[row * width..][..channels]
                } else {
                    &query[(at + row) * stride..][..channels]
                }
            });
            for (channel, keys) in self.keys.chunks_exact(self.padded).enumerate().take(channels) {
                let (keys, _) = keys[from..from + V * LANES].as_chunks::<LANES>();
                let keys: [S::F; V] = from_fn(|vector| s.load(&keys[vector]));
                for (sums, query) in sums.iter_mut().zip(queries) {
                    let query = s.splat(query[if F::ROUNDED { channel ^ 1 } else { channel }]);
                    for (sum, keys) in sums.iter_mut().zip(keys) {
                        *sum = s.mul_add(query, keys, *sum);
                    }
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let (scores, _) = self.scores[(panel * ROWS + row) * PANEL..][..PANEL].as_chunks_mut::<LANES>();
            for (sum, scores) in sums.into_iter().zip(&mut scores[vector..]) {
                s.store(sum, scores);
            }
        }
    }

    /// Replaces the scores of R queries in some panels, up to the key `end`, by exponentials, 0 where a query does not reach,
    /// and returns what makes each row's sum 1. One step for all rows before the next, so that no row waits for another.
    #[inline(always)]
    fn softmax<S: Simd, F: Factors, const R: usize>(
        &mut self,
        s: S,
        first: usize,
        (panels, end): (Range<usize>, usize),
    ) -> [f32; R] {
        // In powers of two.
        let scale = if self.input.bias.is_some() { 1.0 } else { self.input.scale } * LOG2_E;
        let mut largest = [0.0; R];
        for (row, largest) in largest.iter_mut().enumerate() {
            *largest = self.reach(s, first + row, row, (panels.clone(), end));
        }
        let mut sums = [s.splat(0.0); R];
        for (row, (sum, largest)) in sums.iter_mut().zip(largest).enumerate() {
            let (scale, shift) = (s.splat(scale), s.splat(-largest * scale));
            for panel in panels.clone() {
                let at = panel * ROWS + row;
                let scores = &mut self.scores[at * PANEL..][..filled(panel, end) * LANES];
                let (vectors, _) = scores.as_chunks_mut::<LANES>();
                if F::PAIRED {
                    let mut pair = [s.splat(0.0); VECTORS];
                    for (vector, shares) in vectors.iter().zip(&mut pair) {
                        *shares = exp2_nonpositive(s, s.mul_add(s.load(vector), scale, shift));
                        *sum = s.add(*sum, *shares);
                    }
                    let pairs = s.pairs_in_order(pair[0], pair[1]);
                    store_pairs(s, pairs, &mut self.share_pairs[at * PANEL / 2..]);
                    continue;
                }
                *sum = match vectors.first_chunk_mut::<VECTORS>() {
                    Some(whole) => exponentials_of::<S, F>(s, whole, (scale, shift), *sum),
                    None => exponentials_of::<S, F>(s, vectors, (scale, shift), *sum),
                };
            }
        }
        let mut factors = [0.0; R];
        for (factor, sum) in factors.iter_mut().zip(sums) {
            *factor = 1.0 / s.sum(sum);
        }
        factors
    }

    /// Adds the bias to a query's scores, gives those that it does not reach negative infinity, and returns the largest.
    #[inline(always)]
    fn reach<S: Simd>(
        &mut self,
        s: S,
        query: usize,
        row: usize,
        (panels, end): (Range<usize>, usize),
    ) -> f32 {
        let HeadInput { tokens, scale, before, after, bias, .. } = *self.input;
        let reached = query.saturating_sub(before)..query.saturating_add(after).saturating_add(1).min(tokens);
        let mut largest = s.splat(f32::NEG_INFINITY);
        // Panels of which every key is reached as it is.
        let whole = if bias.is_some() || reached.start > panels.start * PANEL {
            panels.start
        } else {
            panels.end.min(reached.end / PANEL)
        };
        for panel in panels.start..whole {
            let scores = &self.scores[(panel * ROWS + row) * PANEL..][..PANEL];
            largest = largest_of(s, scores.as_chunks::<LANES>().0, largest);
        }
        for panel in whole..panels.end {
            let first = panel * PANEL;
            let scores = &mut self.scores[(panel * ROWS + row) * PANEL..][..filled(panel, end) * LANES];
            let last = first + scores.len();
            let inside = reached.start.clamp(first, last) - first..reached.end.clamp(first, last) - first;
            if let Some(bias) = bias {
                // The bias of key j stands at distance j - query.
                let scores = &mut scores[inside.clone()];
                let bias = &bias[tokens - 1 - query + first + inside.start..][..scores.len()];
                for (scores, bias) in scores.chunks_mut(LANES).zip(bias.chunks(LANES)) {
                    let sum = s.mul_add(s.load_some(scores, 0.0), s.splat(scale), s.load_some(bias, 0.0));
                    s.store_some(sum, scores);
                }
            }
            if inside != (0..scores.len()) {
                scores[..inside.start].fill(f32::NEG_INFINITY);
                scores[inside.end..].fill(f32::NEG_INFINITY);
            }
            let (vectors, _) = scores.as_chunks::<LANES>();
            largest = match vectors.first_chunk::<VECTORS>() {
                Some(whole) => largest_of(s, whole, largest),
                None => largest_of(s, vectors, largest),
            };
        }
        s.largest(largest)
    }

    /// R rows of the output from `at` on, up to V vectors of channels.
    #[inline(always)]
    fn mix<S: Simd, F: Factors, const R: usize, const V: usize>(
        &mut self,
        s: S,
        at: usize,
        channel: usize,
        (panels, end): (Range<usize>, usize),
        factors: &[f32; R],
    ) {
        let width = self.input.head_dim.next_multiple_of(LANES);
        let mut sums = [[s.splat(0.0); V]; R];
        for panel in panels {
            let count = (end - panel * PANEL).min(PANEL);
            if F::PAIRED {
                let shares = &self.share_pairs[panel * ROWS * PANEL / 2..][..ROWS * PANEL / 2];
                let rows = self.value_pairs[panel * PANEL / 2 * width..].chunks_exact(width);
                for (i, row) in rows.enumerate().take(count.div_ceil(2)) {
                    let (values, _) = row[channel..channel + V * LANES].as_chunks::<LANES>();
                    let values: [S::I; V] = from_fn(|vector| s.load_i32(&values[vector]));
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let share = s.splat_i32(shares[row * PANEL / 2 + i]);
                        for (sum, values) in sums.iter_mut().zip(values) {
                            *sum = s.dot_pairs(*sum, share, values);
                        }
                    }
                }
                continue;
            }
            let count = if F::ROUNDED { count.next_multiple_of(2) } else { count };
            let shares = &self.scores[panel * ROWS * PANEL..][..ROWS * PANEL];
            let rows = self.values[panel * PANEL * width..].chunks_exact(width);
            for (i, row) in rows.enumerate().take(count) {
                let (values, _) = row[channel..channel + V * LANES].as_chunks::<LANES>();
                let values: [S::F; V] = from_fn(|vector| s.load(&values[vector]));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let share = s.splat(shares[row * PANEL + if F::ROUNDED { i ^ 1 } else { i }]);
                    for (sum, values) in sums.iter_mut().zip(values) {
                        *sum = s.mul_add(share, values, *sum);
                    }
                }
            }
        }
        let width = (self.input.head_dim - channel).min(V * LANES);
        for (row, (sums, factor)) in sums.into_iter().zip(factors).enumerate() {
            let out = &mut self.out[(at + row) * self.out_stride + channel..][..width];
            for (sum, out) in sums.into_iter().zip(out.chunks_mut(LANES)) {
                s.store_some(s.mul(sum, s.splat(*factor)), out);
            }
        }
    }
}

/// The vector of a row that begins at a channel, shorter at its end.
#[inline(always)]
fn part(row: &[f32], channel: usize) -> &[f32] {
    &row[channel.min(row.len())..(channel + LANES).min(row.len())]
}

#[inline(always)]
fn store_pairs<S: Simd>(s: S, pairs: S::I, to: &mut [i32]) {
    if let Some(to) = to.first_chunk_mut() {
        s.store_i32(pairs, to);
    }
}

/// Of lanes and `largest`.
#[inline(always)]
fn largest_of<S: Simd>(s: S, vectors: &[[f32; LANES]], mut largest: S::F) -> S::F {
    for v in vectors {
        largest = s.max(s.load(v), largest);
    }
    largest
}

/// Replaces scores by exponentials and adds them to `sum`.
#[inline(always)]
fn exponentials_of<S: Simd, F: Factors>(
    s: S,
    vectors: &mut [[f32; LANES]],
    (scale, shift): (S::F, S::F),
    mut sum: S::F,
) -> S::F {
    for v in vectors {
        let e = exp2_nonpositive(s, s.mul_add(s.load(v), scale, shift));
        s.store(if F::ROUNDED { s.bf16(e) } else { e }, v);
        sum = s.add(sum, e);
    }
    sum
}

/// Vectors of a panel that hold keys before `end`.
#[inline(always)]
fn filled(panel: usize, end: usize) -> usize {
    (end - panel * PANEL).div_ceil(LANES).min(VECTORS)
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
        (tokens, head_dim, 0usize..9, reach(), reach(), any::<bool>(), precision).prop_map(
            |(tokens, head_dim, gap, before, after, bias, precision)| Shape {
                tokens,
                head_dim,
                gap,
                before,
                after,
                bias,
                precision,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_instruction_set_gives_the_same_bits_near_the_definition(shape in shapes(), seed: u64) {
            let Shape { tokens, head_dim, gap, before, after, bias, precision } = shape;
            let mut rng = Rng::new(seed);
            let mut normal = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.normal() as f32).collect() };
            // Query, key and value side by side, as a fused projection has them.
            let stride = 3 * head_dim + gap;
            let fused = normal(tokens * stride);
            let bias = bias.then(|| normal(2 * tokens - 1));
            let input = HeadInput {
                query: &fused, key: &fused[head_dim..], value: &fused[2 * head_dim..],
                queries: 0..tokens, stride, tokens, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), before, after, bias: bias.as_deref(), precision,
            };
            // A share is rounded once more, to one part in 512.
            let factors: Vec<f32> = fused.iter().map(|value| rounded(*value)).collect();
            let (expected, bound) = match precision {
                AttentionPrecision::F32 => (exact(&input), 1e-5),
                AttentionPrecision::Bf16 => (exact(&HeadInput { query: &factors, key: &factors[head_dim..], value: &factors[2 * head_dim..], ..input.clone() }), 0.02),
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
            stride: head_dim,
            tokens,
            head_dim,
            scale: 0.2,
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
