//! Attention over the keys and values that a sequence has left so far.

use std::ops::Range;

use super::kernel::{Attend, PANEL, Packed, ROWS};
use super::{AttentionPrecision, AttentionScratch, HeadInput};
use crate::simd::LANES;
use crate::{AlignedMemory, Isa};

/// Keys and values of one head, of the tokens of a sequence so far, in the form that attention reads: nothing is packed again
/// when a token is added.
///
/// With [`AttentionPrecision::Bf16`] a number takes two bytes.
#[derive(Debug, Default)]
pub struct HeadCache {
    head_dim: usize,
    precision: AttentionPrecision,
    tokens: usize,
    keys: AlignedMemory<f32>,
    values: AlignedMemory<f32>,
    key_pairs: AlignedMemory<i32>,
    value_pairs: AlignedMemory<i32>,
}

impl HeadCache {
    /// Of no token yet. A head has at least one channel.
    pub fn new(head_dim: usize, precision: AttentionPrecision) -> Self {
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
        let size = if self.precision == AttentionPrecision::Bf16 { 2 } else { 4 };
        2 * self.tokens * self.head_dim * size
    }

    /// Forgets all tokens but the first so many.
    pub fn truncate(&mut self, tokens: usize) {
        if tokens >= self.tokens {
            return;
        }
        self.tokens = tokens;
        if self.precision == AttentionPrecision::Bf16 && tokens % 2 == 1 {
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
            AttentionPrecision::F32 => {
                let panel = &mut self.keys.kept(panels * channels * PANEL)[(panels - 1) * channels * PANEL..];
                for (to, key) in panel.chunks_exact_mut(PANEL).zip(key) {
                    to[column] = *key;
                }
                let values = self.values.kept((token + 1) * width);
                values[token * width..][..head_dim].copy_from_slice(value);
            }
            AttentionPrecision::Bf16 => {
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
        }
        self.tokens += 1;
    }

    fn packed(&self) -> Packed<'_> {
        Packed {
            keys: &self.keys,
            values: &self.values,
            key_pairs: &self.key_pairs,
            value_pairs: &self.value_pairs,
        }
    }
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
        precision,
    };
    let padded = tokens.next_multiple_of(PANEL);
    let pairs = |len: usize| if precision == AttentionPrecision::Bf16 { len } else { 0 };
    isa.run(Attend {
        input: &input,
        together,
        packed: cache.packed(),
        paired: true,
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
                let mut cache = HeadCache::new(head_dim, precision);
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
    }
}
