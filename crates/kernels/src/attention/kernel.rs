//! Blocks of queries against panels of keys: scores, softmax and the mix of values.

use std::array::from_fn;
use std::f32::consts::LOG2_E;
use std::marker::PhantomData;
use std::ops::Range;

use super::pack::{Factors, Integers, PANEL, Packed, Paired, Rounded, Single, VECTORS, part, store_pairs};
use super::{AttentionPrecision, HeadInput};
use crate::activation::{exp2_nonpositive, tanh};
use crate::simd::{Kernel, LANES, Simd};

/// Queries whose scores are held at a time.
pub(super) const ROWS: usize = 6;
/// Panels between the one that is read and the one that is asked for.
const AHEAD: usize = 2;

/// Blocks of queries against packed keys and values.
pub(super) struct Attend<'a, 'i> {
    /// Of which keys and values are not read.
    pub(super) input: &'a HeadInput<'i>,
    /// Rows of queries of each token: heads that share keys and values.
    pub(super) together: usize,
    pub(super) packed: Packed<'a>,
    /// Whether the products read pairs on every instruction set.
    pub(super) paired: bool,
    /// Whether the products read INT8 keys and values.
    pub(super) integers: bool,
    pub(super) scores: &'a mut [f32],
    pub(super) queries: &'a mut [f32],
    pub(super) query_pairs: &'a mut [i32],
    pub(super) share_pairs: &'a mut [i32],
    pub(super) out: &'a mut [f32],
    pub(super) out_stride: usize,
}

impl Kernel for Attend<'_, '_> {
    type Output = ();

    const USES_PRODUCT: bool = false;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.input.precision {
            AttentionPrecision::F32 if self.integers => self.all::<S, Integers>(s),
            AttentionPrecision::F32 => self.all::<S, Single>(s),
            AttentionPrecision::Bf16 if S::BF16 || self.paired => self.all::<S, Paired>(s),
            AttentionPrecision::Bf16 => self.all::<S, Rounded>(s),
        }
    }
}

/// Some rows of the queries, from `at` on.
struct Block<'b, 'a, 'i, F, const R: usize> {
    attend: &'b mut Attend<'a, 'i>,
    at: usize,
    factors: PhantomData<F>,
}

impl<F: Factors, const R: usize> Kernel for Block<'_, '_, '_, F, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.attend.rows::<S, F, R>(s, self.at);
    }
}

/// One query's scores in some panels, up to the key `end`.
struct Reach<'b, 'a, 'i> {
    attend: &'b mut Attend<'a, 'i>,
    query: usize,
    row: usize,
    panels: Range<usize>,
    end: usize,
}

impl Kernel for Reach<'_, '_, '_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        self.attend.reach(s, self.query, self.row, (self.panels, self.end))
    }
}

impl Attend<'_, '_> {
    #[inline(always)]
    fn all<S: Simd, F: Factors>(&mut self, s: S) {
        let rows = self.input.queries.len() * self.together;
        for at in (0..rows).step_by(ROWS) {
            match rows - at {
                1 => self.block::<S, F, 1>(s, at),
                2 => self.block::<S, F, 2>(s, at),
                3 => self.block::<S, F, 3>(s, at),
                4 => self.block::<S, F, 4>(s, at),
                5 => self.block::<S, F, 5>(s, at),
                _ => self.block::<S, F, ROWS>(s, at),
            }
        }
    }

    /// [`Attend::rows`], as a function of its own.
    #[inline(always)]
    fn block<S: Simd, F: Factors, const R: usize>(&mut self, s: S, at: usize) {
        s.apart(Block::<F, R> { attend: self, at, factors: PhantomData });
    }

    /// The token of a row of queries.
    #[inline(always)]
    fn token(&self, row: usize) -> usize {
        self.input.queries.start + row / self.together
    }

    /// The rows `at..at + R` of the queries: scores, softmax, and the mix of values.
    #[inline(always)]
    fn rows<S: Simd, F: Factors, const R: usize>(&mut self, s: S, at: usize) {
        let HeadInput { tokens, head_dim, before, after, .. } = *self.input;
        let (first, last) = (self.token(at), self.token(at + R - 1));
        self.pack_queries::<S, F, R>(s, at);
        // The panels with keys that any of the queries reaches.
        let end = (last + 1).saturating_add(after).min(tokens);
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
        let factors = self.softmax::<S, F, R>(s, at, (panels.clone(), end));
        let width = head_dim.next_multiple_of(LANES);
        let mut channel = 0;
        while channel < width {
            if S::WIDE && width - channel >= 2 * PANEL {
                self.mix::<S, F, R, { 2 * VECTORS }>(s, at, channel, (panels.clone(), end), &factors);
                channel += 2 * PANEL;
            } else if S::WIDE && width - channel >= PANEL {
                self.mix::<S, F, R, VECTORS>(s, at, channel, (panels.clone(), end), &factors);
                channel += PANEL;
            } else {
                self.mix::<S, F, R, 1>(s, at, channel, (panels.clone(), end), &factors);
                channel += LANES;
            }
        }
    }

    /// Where the queries are one block, so that keys and values come from memory: the panel that is read soon, of panels of `len`
    /// numbers, to be asked for. What fetches ahead by itself stops at each page, which a panel is about as large as.
    #[inline(always)]
    fn ahead<'p>(&self, of: &'p [i32], panel: usize, len: usize) -> &'p [i32] {
        if self.input.queries.len() * self.together > ROWS {
            return &[];
        }
        let start = of.len().min((panel + AHEAD) * len);
        &of[start..of.len().min(start + len)]
    }

    /// The queries from `at` on, rounded; f32 ones are read where they are.
    #[inline(always)]
    fn pack_queries<S: Simd, F: Factors, const R: usize>(&mut self, s: S, at: usize) {
        let HeadInput { query, query_stride: stride, head_dim, .. } = *self.input;
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
        let HeadInput { query, query_stride: stride, head_dim, .. } = *self.input;
        let from = vector * LANES;
        let width = head_dim.next_multiple_of(PANEL);
        let mut sums = [[s.splat(0.0); V]; R];
        if F::PAIRED {
            let pairs = head_dim.div_ceil(2);
            let queries: [&[i32]; R] = from_fn(|row| &self.query_pairs[row * width / 2..][..pairs]);
            let keys = &self.packed.key_pairs[panel * pairs * PANEL..][..pairs * PANEL];
            let ahead = self.ahead(self.packed.key_pairs, panel, pairs * PANEL);
            for (pair, keys) in keys.chunks_exact(PANEL).enumerate() {
                ask(s, ahead, pair * PANEL + from, V);
                let (keys, _) = keys[from..from + V * LANES].as_chunks::<LANES>();
                let keys: [S::I; V] = from_fn(|vector| s.load_i32(&keys[vector]));
                for (sums, query) in sums.iter_mut().zip(queries) {
                    let query = s.splat_i32(query[pair]);
                    for (sum, keys) in sums.iter_mut().zip(keys) {
                        *sum = s.dot_pairs(*sum, keys, query);
                    }
                }
            }
        } else if F::INTEGERS {
            let queries: [&[f32]; R] = from_fn(|row| &query[(at + row) * stride..][..head_dim]);
            let panel_keys = head_dim.next_multiple_of(2) * PANEL;
            let keys = &self.packed.key_integers[panel * panel_keys..][..head_dim * PANEL];
            for (channel, keys) in keys.chunks_exact(PANEL).enumerate() {
                let (keys, _) = keys[from..from + V * LANES].as_chunks::<LANES>();
                let keys: [S::F; V] = from_fn(|vector| s.to_f32(s.load_i8(&keys[vector])));
                for (sums, query) in sums.iter_mut().zip(queries) {
                    let query = s.splat(query[channel]);
                    for (sum, keys) in sums.iter_mut().zip(keys) {
                        *sum = s.mul_add(query, keys, *sum);
                    }
                }
            }
            let (scales, _) = self.packed.key_scales[panel * PANEL + from..].as_chunks::<LANES>();
            for sums in &mut sums {
                for (sum, scales) in sums.iter_mut().zip(scales) {
                    *sum = s.mul(*sum, s.load(scales));
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
            let keys = &self.packed.keys[panel * head_dim.next_multiple_of(2) * PANEL..][..channels * PANEL];
            for (channel, keys) in keys.chunks_exact(PANEL).enumerate() {
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
        at: usize,
        (panels, end): (Range<usize>, usize),
    ) -> [f32; R] {
        // In powers of two.
        let settled = self.input.bias.is_some() || self.input.cap.is_some();
        let scale = if settled { 1.0 } else { self.input.scale } * LOG2_E;
        let mut largest = [0.0; R];
        for (row, largest) in largest.iter_mut().enumerate() {
            let (query, panels) = (self.token(at + row), panels.clone());
            *largest = s.apart(Reach { attend: self, query, row, panels, end });
        }
        let mut sums = [s.splat(0.0); R];
        for (row, (sum, largest)) in sums.iter_mut().zip(largest).enumerate() {
            let (scale, shift) = (s.splat(scale), s.splat(-largest * scale));
            for panel in panels.clone() {
                let place = panel * ROWS + row;
                let scores = &mut self.scores[place * PANEL..][..filled(panel, end) * LANES];
                let (vectors, _) = scores.as_chunks_mut::<LANES>();
                if F::PAIRED {
                    let mut pair = [s.splat(0.0); VECTORS];
                    for (vector, shares) in vectors.iter().zip(&mut pair) {
                        *shares = exp2_nonpositive(s, s.mul_add(s.load(vector), scale, shift));
                        *sum = s.add(*sum, *shares);
                    }
                    let pairs = s.pairs_in_order(pair[0], pair[1]);
                    store_pairs(s, pairs, &mut self.share_pairs[place * PANEL / 2..]);
                    continue;
                }
                *sum = match vectors.first_chunk_mut::<VECTORS>() {
                    Some(whole) => exponentials_of::<S, F>(s, whole, (scale, shift), *sum),
                    None => exponentials_of::<S, F>(s, vectors, (scale, shift), *sum),
                };
                if F::INTEGERS {
                    let (scales, _) = self.packed.value_scales[panel * PANEL..].as_chunks::<LANES>();
                    for (shares, scales) in vectors.iter_mut().zip(scales) {
                        let scaled = s.mul(s.load(shares), s.load(scales));
                        s.store(scaled, shares);
                    }
                }
            }
        }
        let mut factors = [0.0; R];
        for (factor, sum) in factors.iter_mut().zip(sums) {
            *factor = 1.0 / s.sum(sum);
        }
        factors
    }

    /// Caps a query's scores and adds the bias, gives those that it does not reach negative infinity, and returns the largest.
    #[inline(always)]
    fn reach<S: Simd>(
        &mut self,
        s: S,
        query: usize,
        row: usize,
        (panels, end): (Range<usize>, usize),
    ) -> f32 {
        let HeadInput { tokens, mut scale, cap, before, after, bias, .. } = *self.input;
        let reached = query.saturating_sub(before)..query.saturating_add(after).saturating_add(1).min(tokens);
        let mut largest = s.splat(f32::NEG_INFINITY);
        if let Some(cap) = cap {
            let (inward, outward) = (s.splat(scale / cap), s.splat(cap));
            for panel in panels.clone() {
                let scores = &mut self.scores[(panel * ROWS + row) * PANEL..][..filled(panel, end) * LANES];
                for scores in scores.as_chunks_mut::<LANES>().0 {
                    let capped = s.mul(outward, tanh(s, s.mul(s.load(scores), inward)));
                    s.store(capped, scores);
                }
            }
            scale = 1.0;
        }
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
                let rows = self.packed.value_pairs[panel * PANEL / 2 * width..].chunks_exact(width);
                let ahead = self.ahead(self.packed.value_pairs, panel, PANEL / 2 * width);
                for (i, row) in rows.enumerate().take(count.div_ceil(2)) {
                    ask(s, ahead, i * width + channel, V);
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
            if F::INTEGERS {
                let rows = self.packed.value_integers[panel * PANEL * width..].chunks_exact(width);
                for (i, row) in rows.enumerate().take(count) {
                    let (values, _) = row[channel..channel + V * LANES].as_chunks::<LANES>();
                    let values: [S::F; V] = from_fn(|vector| s.to_f32(s.load_i8(&values[vector])));
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let share = s.splat(shares[row * PANEL + i]);
                        for (sum, values) in sums.iter_mut().zip(values) {
                            *sum = s.mul_add(share, values, *sum);
                        }
                    }
                }
                continue;
            }
            let rows = self.packed.values[panel * PANEL * width..].chunks_exact(width);
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

/// Asks for so many lines from a number on, where they are.
#[inline(always)]
fn ask<S: Simd>(s: S, numbers: &[i32], from: usize, lines: usize) {
    for line in 0..lines {
        if let Some(number) = numbers.get(from + line * LANES) {
            s.prefetch(number);
        }
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
