//! A head's keys and values in the form in which blocks of queries read them.

use super::{AttentionPrecision, HeadInput};
use crate::simd::{Kernel, LANES, Simd};

/// Vectors of keys, or of a head's channels, that a block of queries is multiplied with at a time.
pub(super) const VECTORS: usize = 2;
/// Keys of such a step.
pub(super) const PANEL: usize = VECTORS * LANES;

/// Keys and values as blocks of queries read them; of each two the ones that the precision asks for.
#[derive(Clone, Copy, Default)]
pub(super) struct Packed<'a> {
    /// `[panels, channels, PANEL]`: the keys of a panel by channel, of which there is an even number.
    pub(super) keys: &'a [f32],
    /// `[tokens, width]`, rows padded to whole vectors.
    pub(super) values: &'a [f32],
    /// As `keys`, of neighbouring channels: `[panels, channels / 2, PANEL]`.
    pub(super) key_pairs: &'a [i32],
    /// As `values`, of neighbouring tokens: `[tokens / 2, width]`.
    pub(super) value_pairs: &'a [i32],
    /// As `keys`, in INT8.
    pub(super) key_integers: &'a [i8],
    /// As `values`.
    pub(super) value_integers: &'a [i8],
    /// One for each key, `[panels, PANEL]`.
    pub(super) key_scales: &'a [f32],
    /// One for each value, `[panels, PANEL]`.
    pub(super) value_scales: &'a [f32],
}

/// Brings a head's keys and values into the form of [`Packed`].
pub(super) struct Pack<'a, 'i> {
    pub(super) input: &'a HeadInput<'i>,
    /// Tokens rounded up to whole panels.
    pub(super) padded: usize,
    pub(super) keys: &'a mut [f32],
    pub(super) values: &'a mut [f32],
    pub(super) key_pairs: &'a mut [i32],
    pub(super) value_pairs: &'a mut [i32],
}

/// What the products read.
pub(super) trait Factors {
    /// bfloat16 numbers, in memory as f32: neighbours have changed places, so that the second of a pair comes first.
    const ROUNDED: bool;
    /// Pairs of bfloat16 numbers.
    const PAIRED: bool;
    /// f32 numbers against integers with scales.
    const INTEGERS: bool = false;
}

/// f32 numbers.
pub(super) struct Single;
/// f32 numbers rounded to bfloat16.
pub(super) struct Rounded;
/// Pairs of bfloat16 numbers.
pub(super) struct Paired;
/// INT8 numbers with scales.
pub(super) struct Integers;

impl Factors for Single {
    const ROUNDED: bool = false;
    const PAIRED: bool = false;
}

impl Factors for Integers {
    const ROUNDED: bool = false;
    const PAIRED: bool = false;
    const INTEGERS: bool = true;
}

impl Factors for Rounded {
    const ROUNDED: bool = true;
    const PAIRED: bool = false;
}

impl Factors for Paired {
    const ROUNDED: bool = false;
    const PAIRED: bool = true;
}

impl Kernel for Pack<'_, '_> {
    type Output = ();

    const USES_PRODUCT: bool = false;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        match self.input.precision {
            AttentionPrecision::F32 => self.all::<S, Single>(s),
            AttentionPrecision::Bf16 if S::BF16 => self.all::<S, Paired>(s),
            AttentionPrecision::Bf16 => self.all::<S, Rounded>(s),
        }
    }
}

impl Pack<'_, '_> {
    #[inline(always)]
    fn all<S: Simd, F: Factors>(&mut self, s: S) {
        self.pack_keys::<S, F>(s);
        self.pack_values::<S, F>(s);
    }

    /// The keys by channel; columns past the last token hold zeros.
    #[inline(always)]
    fn pack_keys<S: Simd, F: Factors>(&mut self, s: S) {
        let HeadInput { key, kv_stride: stride, tokens, head_dim, .. } = *self.input;
        let channels = head_dim.next_multiple_of(2);
        for token in (0..self.padded).step_by(LANES) {
            // Where the panel begins, counted in channels, and the column in it.
            let (panel, column) = (token / PANEL * channels, token % PANEL);
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
                        let at = panel / 2 + channel / 2 + i;
                        let to = &mut self.key_pairs[at * PANEL + column..];
                        store_pairs(s, s.pairs(pair[0], pair[1]), to);
                    }
                    continue;
                }
                for (i, values) in columns.into_iter().enumerate().take(if F::ROUNDED { even } else { width })
                {
                    let (values, i) = if F::ROUNDED { (s.bf16(values), i ^ 1) } else { (values, i) };
                    let at = (panel + channel + i) * PANEL;
                    s.store_some(values, &mut self.keys[at + column..][..LANES]);
                }
            }
        }
    }

    #[inline(always)]
    fn pack_values<S: Simd, F: Factors>(&mut self, s: S) {
        let HeadInput { value, kv_stride: stride, tokens, head_dim, .. } = *self.input;
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
}

/// The vector of a row that begins at a channel, shorter at its end.
#[inline(always)]
pub(super) fn part(row: &[f32], channel: usize) -> &[f32] {
    &row[channel.min(row.len())..(channel + LANES).min(row.len())]
}

/// Into the front of `to`.
#[inline(always)]
pub(super) fn store_pairs<S: Simd>(s: S, pairs: S::I, to: &mut [i32]) {
    if let Some(to) = to.first_chunk_mut() {
        s.store_i32(pairs, to);
    }
}
