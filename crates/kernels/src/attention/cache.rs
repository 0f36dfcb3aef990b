//! Attention over the keys and values that a sequence has left so far.

use std::ops::Range;

use zeropoint_core::{QuantParams, quantize};

use super::kernel::{Attend, ROWS};
use super::pack::{PANEL, Packed};
use super::{AttentionPrecision, AttentionScratch, HeadInput};
use crate::simd::LANES;
use crate::{AlignedMemory, Isa};

/// How a [`HeadCache`] holds its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvPrecision {
    /// In f32, four bytes.
    #[default]
    F32,
    /// In bfloat16, two bytes; the products of attention round their other side too.
    Bf16,
    /// In INT8, one byte: a key or value is `q * scale` with a scale in f32 of its own, symmetric. The products multiply integers
    /// by f32 numbers, which are not rounded.
    Int8,
}

impl From<AttentionPrecision> for KvPrecision {
    fn from(precision: AttentionPrecision) -> Self {
        match precision {
            AttentionPrecision::F32 => Self::F32,
            AttentionPrecision::Bf16 => Self::Bf16,
        }
    }
}

/// Keys and values of one head, of the tokens of a sequence so far, in the form that attention reads: nothing is packed again
/// when a token is added.
#[derive(Debug, Default)]
pub struct HeadCache {
    head_dim: usize,
    precision: KvPrecision,
    tokens: usize,
    keys: AlignedMemory<f32>,
    values: AlignedMemory<f32>,
    key_pairs: AlignedMemory<i32>,
    value_pairs: AlignedMemory<i32>,
    key_integers: AlignedMemory<i8>,
    value_integers: AlignedMemory<i8>,
    key_scales: AlignedMemory<f32>,
    value_scales: AlignedMemory<f32>,
}

impl HeadCache {
    /// Of no token yet. A head has at least one channel.
    pub fn new(head_dim: usize, precision: KvPrecision) -> Self {
        assert!(head_dim > 0, "a head has channels");
        Self { head_dim, precision, ..Self::default() }
    }

    /// Tokens in it.
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Channels of a key.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Bytes of the numbers that it holds, without what is set aside for later tokens.
    pub fn bytes(&self) -> usize {
        let row = match self.precision {
            KvPrecision::F32 => 4 * self.head_dim,
            KvPrecision::Bf16 => 2 * self.head_dim,
            KvPrecision::Int8 => self.head_dim + size_of::<f32>(),
        };
        2 * self.tokens * row
    }

    /// Forgets all tokens but the first so many.
    pub fn truncate(&mut self, tokens: usize) {
        if tokens >= self.tokens {
            return;
        }
        self.tokens = tokens;
        if self.precision == KvPrecision::Bf16 && tokens % 2 == 1 {
            // The next token shares its pair.
            let width = self.head_dim.next_multiple_of(LANES);
            for pair in &mut self.value_pairs.kept((tokens / 2 + 1) * width)[tokens / 2 * width..] {
                *pair &= 0xffff;
            }
        }
    }

    /// Adds the next token, of which key and value have `head_dim` channels.
    pub fn append(&mut self, key: &[f32], value: &[f32]) {
        let head_dim = self.head_dim;
        assert!(
            key.len() == head_dim && value.len() == head_dim,
            "a key and a value have the head's channels"
        );
        let (token, column) = (self.tokens, self.tokens % PANEL);
        let width = head_dim.next_multiple_of(LANES);
        let channels = head_dim.next_multiple_of(2);
        let panels = token / PANEL + 1;
        match self.precision {
            KvPrecision::F32 => {
                let panel = &mut self.keys.kept(panels * channels * PANEL)[(panels - 1) * channels * PANEL..];
                for (to, key) in panel.chunks_exact_mut(PANEL).zip(key) {
                    to[column] = *key;
                }
                let values = self.values.kept((token + 1) * width);
                values[token * width..][..head_dim].copy_from_slice(value);
            }
            KvPrecision::Bf16 => {
                let pairs = channels / 2;
                let panel = &mut self.key_pairs.kept(panels * pairs * PANEL)[(panels - 1) * pairs * PANEL..];
                for (to, key) in panel.chunks_exact_mut(PANEL).zip(key.chunks(2)) {
                    to[column] = pair(key[0], key.get(1).copied().unwrap_or(0.0));
                }
                let row = &mut self.value_pairs.kept((token / 2 + 1) * width)[token / 2 * width..];
                for (to, value) in row.iter_mut().zip(value) {
                    *to = if token % 2 == 0 { pair(*value, 0.0) } else { *to | pair(0.0, *value) };
                }
            }
            KvPrecision::Int8 => {
                let room = panels * channels * PANEL;
                let panel = &mut self.key_integers.kept(room)[(panels - 1) * channels * PANEL..];
                let params = range_of(key);
                for (to, key) in panel.chunks_exact_mut(PANEL).zip(key) {
                    to[column] = quantize(*key, params);
                }
                self.key_scales.kept(panels * PANEL)[token] = params.scale;
                let params = range_of(value);
                let values = self.value_integers.kept((token + 1) * width);
                for (to, value) in values[token * width..].iter_mut().zip(value) {
                    *to = quantize(*value, params);
                }
                self.value_scales.kept(panels * PANEL)[token] = params.scale;
            }
        }
        self.tokens += 1;
    }

    fn packed(&self) -> Packed<'_> {
        Packed {
            keys: &self.keys,
            values: &self.values,
            key_pairs: &self.key_pairs,
            value_pairs: &self.value_pairs,
            key_integers: &self.key_integers,
            value_integers: &self.value_integers,
            key_scales: &self.key_scales,
            value_scales: &self.value_scales,
        }
    }
}

/// The symmetric range of a key or value. One that is not finite has NaN for a scale, which shows in whatever attends to it.
fn range_of(row: &[f32]) -> QuantParams {
    let absmax = row.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
    let absmax = if row.iter().all(|x| x.is_finite()) { absmax } else { f32::NAN };
    QuantParams::symmetric(absmax).unwrap_or(QuantParams { scale: f32::NAN, zero_point: 0 })
}

/// Two numbers rounded to bfloat16, half to even, the first in the low half; magnitudes below `2^-126` become 0.
fn pair(low: f32, high: f32) -> i32 {
    let rounded = |value: f32| {
        let bits = value.to_bits();
        let sum = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        if value.abs() < f32::MIN_POSITIVE { 0 } else { sum }
    };
    (rounded(low) | rounded(high) << 16) as i32
}

/// Queries of the last tokens of a [`HeadCache`].
#[derive(Debug, Clone)]
pub struct CachedInput<'a> {
    /// `together` rows for each token in `queries`, from the first one's first value on.
    pub query: &'a [f32],
    /// The tokens whose output is asked for, counted from the sequence's first; the cache holds them.
    pub queries: Range<usize>,
    /// Values from one row of `query` to the next.
    pub query_stride: usize,
    /// Heads of queries that read this cache, rows of one token one after the other. At least 1.
    pub together: usize,
    /// On the scores: positive and finite.
    pub scale: f32,
    /// As [`HeadInput::cap`].
    pub cap: Option<f32>,
    /// Tokens before its own that a query attends to, itself and none after it; `usize::MAX` for all.
    pub before: usize,
}

/// As [`attend`](super::attend) with `after` 0 and no bias, over the keys and values of `cache`, with the same bits; rows of `out`
/// are in the order of those of the queries.
///
/// Over [`KvPrecision::Int8`] a score is the sum of the products of a query's f32 numbers and a key's integers, each step a fused
/// operation, times the key's scale; an exponential, whose sum is taken before, is multiplied with the scale of its value, and
/// that with the value's integers.
pub fn attend_cached(
    isa: Isa,
    input: &CachedInput<'_>,
    cache: &HeadCache,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
    out_stride: usize,
) {
    let &HeadCache { head_dim, precision, tokens, .. } = cache;
    let CachedInput { query, query_stride, together, scale, cap, before, .. } = *input;
    let queries = input.queries.clone();
    assert!(query_stride.min(out_stride) >= head_dim, "rows do not overlap");
    assert!(scale > 0.0 && scale.is_finite(), "`scale` is positive and finite");
    assert!(cap.is_none_or(|cap| cap > 0.0 && cap.is_finite()), "`cap` is positive and finite");
    assert!(queries.start < queries.end && queries.end <= tokens, "the queries are tokens, at least one");
    assert!(together > 0, "there are heads of queries");
    let rows = queries.len() * together;
    let least = |stride: usize| (rows - 1) * stride + head_dim;
    assert!(query.len() >= least(query_stride), "`query` holds all rows");
    assert!(out.len() >= least(out_stride), "`out` holds all rows");
    let input = HeadInput {
        query,
        key: &[],
        value: &[],
        queries,
        query_stride,
        kv_stride: head_dim,
        tokens,
        head_dim,
        scale,
        cap,
        before,
        after: 0,
        bias: None,
        precision: match precision {
            KvPrecision::Bf16 => AttentionPrecision::Bf16,
            KvPrecision::F32 | KvPrecision::Int8 => AttentionPrecision::F32,
        },
    };
    let padded = tokens.next_multiple_of(PANEL);
    let pairs = |len: usize| if precision == KvPrecision::Bf16 { len } else { 0 };
    isa.run(Attend {
        input: &input,
        together,
        packed: cache.packed(),
        paired: true,
        integers: precision == KvPrecision::Int8,
        scores: scratch.scores.room(ROWS * padded),
        queries: &mut [],
        query_pairs: scratch.query_pairs.room(pairs(ROWS * head_dim.next_multiple_of(PANEL) / 2)),
        share_pairs: scratch.share_pairs.room(pairs(ROWS * padded / 2)),
        out,
        out_stride,
    });
}

#[cfg(test)]
mod tests {
    use super::super::attend;
    use super::*;
    use proptest::prelude::*;
    use zeropoint_core::Rng;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn token_by_token_has_the_bits_of_all_at_once(
            tokens in prop_oneof![1usize..40, 60usize..70], head_dim in prop_oneof![1usize..40, Just(64)],
            together in 1usize..5, window in prop_oneof![Just(usize::MAX), 0usize..20], bf16: bool,
            cap in prop_oneof![Just(None), (0.3f32..4.0).prop_map(Some)], seed: u64,
        ) {
            let mut rng = Rng::new(seed);
            let mut normal = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.normal() as f32).collect() };
            let (key, value) = (normal(tokens * head_dim), normal(tokens * head_dim));
            let query = normal(tokens * together * head_dim);
            let precision = if bf16 { AttentionPrecision::Bf16 } else { AttentionPrecision::F32 };
            let scale = 1.0 / (head_dim as f32).sqrt();
            let mut scratch = AttentionScratch::default();
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            for isa in Isa::available() {
                let mut expected = vec![0.0; tokens * together * head_dim];
                for head in 0..together {
                    let input = HeadInput {
                        query: &query[head * head_dim..], key: &key, value: &value, queries: 0..tokens,
                        query_stride: together * head_dim, kv_stride: head_dim, tokens, head_dim, scale, cap,
                        before: window, after: 0, bias: None, precision,
                    };
                    attend(isa, &input, &mut scratch, &mut expected[head * head_dim..], together * head_dim);
                }
                let mut cache = HeadCache::new(head_dim, precision.into());
                let step = together * head_dim;
                let mut out = vec![0.0; expected.len()];
                let mut run = |queries: Range<usize>, cache: &HeadCache, out: &mut [f32]| {
                    let input = CachedInput {
                        query: &query[queries.start * step..], queries: queries.clone(), query_stride: head_dim, together,
                        scale, cap, before: window,
                    };
                    attend_cached(isa, &input, cache, &mut scratch, &mut out[queries.start * step..], head_dim);
                };
                for token in 0..tokens {
                    // Something that is taken back.
                    if token % 3 == 1 {
                        cache.append(&vec![f32::NAN; head_dim], &vec![f32::INFINITY; head_dim]);
                        cache.truncate(token);
                    }
                    let row = token * head_dim..(token + 1) * head_dim;
                    cache.append(&key[row.clone()], &value[row]);
                    run(token..token + 1, &cache, &mut out);
                }
                prop_assert_eq!(cache.len(), tokens);
                prop_assert_eq!(cache.bytes(), 2 * tokens * head_dim * if bf16 { 2 } else { 4 });
                prop_assert_eq!(bits(&out), bits(&expected), "{}: token by token", isa);
                let mut out = vec![0.0; expected.len()];
                run(0..tokens, &cache, &mut out);
                prop_assert_eq!(bits(&out), bits(&expected), "{}: all at once", isa);
            }
        }

        #[test]
        fn integers_have_the_same_bits_everywhere_and_are_as_near_as_their_steps(
            tokens in prop_oneof![1usize..40, 60usize..70], head_dim in prop_oneof![1usize..40, Just(64)],
            together in 1usize..4, window in prop_oneof![Just(usize::MAX), 0usize..20], seed: u64,
        ) {
            let mut rng = Rng::new(seed);
            let mut normal = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.normal() as f32).collect() };
            let (key, value) = (normal(tokens * head_dim), normal(tokens * head_dim));
            let query = normal(tokens * together * head_dim);
            let scale = 1.0 / (head_dim as f32).sqrt();
            let row = |rows: &[f32], at: usize| -> Vec<f32> { rows[at * head_dim..][..head_dim].to_vec() };
            let input = |queries: Range<usize>| CachedInput {
                query: &query[queries.start * together * head_dim..], queries, query_stride: head_dim, together,
                scale, cap: None, before: window,
            };
            let bits = |out: &[f32]| out.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let mut first: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                let mut cache = HeadCache::new(head_dim, KvPrecision::Int8);
                let mut out = vec![0.0; query.len()];
                let mut scratch = AttentionScratch::default();
                for token in 0..tokens {
                    if token % 3 == 1 {
                        cache.append(&vec![f32::NAN; head_dim], &vec![f32::INFINITY; head_dim]);
                        cache.truncate(token);
                    }
                    cache.append(&row(&key, token), &row(&value, token));
                    let at = token * together * head_dim;
                    attend_cached(isa, &input(token..token + 1), &cache, &mut scratch, &mut out[at..], head_dim);
                }
                prop_assert_eq!(cache.bytes(), 2 * tokens * (head_dim + 4));
                let mut at_once = vec![0.0; query.len()];
                attend_cached(isa, &input(0..tokens), &cache, &mut scratch, &mut at_once, head_dim);
                prop_assert_eq!(bits(&out), bits(&at_once), "{}: all at once", isa);
                let first = first.get_or_insert_with(|| out.clone());
                prop_assert_eq!(bits(first), bits(&out), "{}", isa);
            }
            // Shares of scores that are off by at most d are off by at most exp(2 d) - 1 together, and a value by half a step.
            let out = first.unwrap();
            let sum = |values: &[f32]| values.iter().map(|v| f64::from(v.abs())).sum::<f64>();
            let largest = |values: &[f32]| values.iter().fold(0.0, |max: f64, v| max.max(f64::from(v.abs())));
            let step = |values: &[f32]| f64::from(range_of(values).scale);
            for (at, found) in out.chunks_exact(head_dim).enumerate() {
                let token = at / together;
                let reached = token.saturating_sub(window)..token + 1;
                let q = row(&query, at);
                let mut shares: Vec<f64> = reached.clone().map(|j| {
                    let dot: f64 = q.iter().zip(row(&key, j)).map(|(q, k)| f64::from(*q) * f64::from(k)).sum();
                    dot * f64::from(scale)
                }).collect();
                let most = shares.iter().copied().fold(f64::MIN, f64::max);
                for share in &mut shares {
                    *share = (*share - most).exp();
                }
                let total: f64 = shares.iter().sum();
                let key_step = reached.clone().map(|j| step(&row(&key, j))).fold(0.0, f64::max);
                let value_step = reached.clone().map(|j| step(&row(&value, j))).fold(0.0, f64::max);
                let value_most = reached.clone().map(|j| largest(&row(&value, j))).fold(0.0, f64::max);
                let off = f64::from(scale) * sum(&q) * key_step / 2.0;
                let bound = value_step / 2.0 + (2.0 * off).exp_m1() * value_most + 1e-5;
                for (channel, found) in found.iter().enumerate() {
                    let exact: f64 = reached.clone().zip(&shares)
                        .map(|(j, share)| share / total * f64::from(value[j * head_dim + channel])).sum();
                    prop_assert!((f64::from(*found) - exact).abs() <= bound, "{} is not {} by {}", found, exact, bound);
                }
            }
        }

        #[test]
        fn integers_attend_as_their_dequantised_numbers_do(tokens in 1usize..70, head_dim in 1usize..40, seed: u64) {
            let mut rng = Rng::new(seed);
            let mut normal = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.normal() as f32).collect() };
            let (query, key, value) = (normal(head_dim), normal(tokens * head_dim), normal(tokens * head_dim));
            let dequantised = |row: &[f32]| -> Vec<f32> {
                let params = range_of(row);
                row.iter().map(|x| zeropoint_core::dequantize(quantize(*x, params), params)).collect()
            };
            let mut caches = [KvPrecision::Int8, KvPrecision::F32].map(|kind| HeadCache::new(head_dim, kind));
            for (key, value) in key.chunks_exact(head_dim).zip(value.chunks_exact(head_dim)) {
                caches[0].append(key, value);
                caches[1].append(&dequantised(key), &dequantised(value));
            }
            let input = CachedInput {
                query: &query, queries: tokens - 1..tokens, query_stride: head_dim, together: 1,
                scale: 0.3, cap: Some(2.0), before: usize::MAX,
            };
            for isa in Isa::available() {
                let [found, expected] = [0, 1].map(|i| {
                    let mut out = vec![0.0; head_dim];
                    let mut scratch = AttentionScratch::default();
                    attend_cached(isa, &input, &caches[i], &mut scratch, &mut out, head_dim);
                    out
                });
                for (found, expected) in found.iter().zip(&expected) {
                    prop_assert!((found - expected).abs() < 1e-5, "{}: {} is not {}", isa, found, expected);
                }
            }
        }
    }
}
