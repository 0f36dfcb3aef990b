//! The integer product on AVX2.
//!
//! `vpmaddubsw` saturates, so both sides are widened to i16 and `vpmaddwd` adds pairs of products in i32. Weights stay
//! i8 in memory and are widened as they are loaded; activations are widened once for all columns of a panel.

use std::arch::x86_64::*;

use super::avx2::Ymm;
use crate::gemm::{Line, PANEL, TILE_ROWS, Tile};
use crate::pack::position;
use crate::simd::Product;

/// Values of K that are multiplied at once.
const K_GROUP: usize = 2;
/// Columns that are multiplied in one go: two accumulators for each of six rows leave registers for the operands.
const STRIP: usize = 16;
/// Values of K for which activations are widened at a time: with the weights of a strip they fit the L1 cache.
const BLOCK: usize = 512;

/// Proof that the machine has AVX2: [`Madd::detect`] is the only way to get one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Madd(());

impl Madd {
    pub(super) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }

    /// Where AVX2 was found with another product.
    pub(super) fn beside<P>(_proof: Ymm<P>) -> Self {
        Self(())
    }
}

impl Product for Madd {
    const STRIP: usize = STRIP;
    const K_GROUP: usize = K_GROUP;
    const WEIGHT_FLIP: u8 = 0;

    #[inline(always)]
    fn row_offset(self, _row: &[i8]) -> i32 {
        0
    }

    #[inline(always)]
    fn tile(self, a: &[i8], inputs: usize, panel: &[Line], offsets: &[i32], to: &mut Tile) {
        // SAFETY: `self` exists only where AVX2 was detected.
        unsafe { tile(a, inputs, panel, offsets.len(), to) }
    }
}

/// Pairs of activations, as `vpmaddwd` takes them.
type Widened = [[[i16; K_GROUP]; BLOCK / K_GROUP]; TILE_ROWS];

/// See [`Product::tile`].
#[target_feature(enable = "avx2")]
fn tile(a: &[i8], inputs: usize, panel: &[Line], rows: usize, tile: &mut Tile) {
    match rows {
        1 => fixed_tile::<1>(a, inputs, panel, tile),
        2 => fixed_tile::<2>(a, inputs, panel, tile),
        3 => fixed_tile::<3>(a, inputs, panel, tile),
        4 => fixed_tile::<4>(a, inputs, panel, tile),
        5 => fixed_tile::<5>(a, inputs, panel, tile),
        6 => fixed_tile::<6>(a, inputs, panel, tile),
        rows => unreachable!("a tile of {rows} rows"),
    }
}

#[target_feature(enable = "avx2")]
fn fixed_tile<const ROWS: usize>(a: &[i8], inputs: usize, panel: &[Line], tile: &mut Tile) {
    assert_eq!(a.len(), ROWS * inputs, "`a` is [ROWS, inputs]");
    let padded = inputs.next_multiple_of(K_GROUP);
    assert_eq!(size_of_val(panel), padded * PANEL, "the panel has a byte for each input and column");
    tile[..ROWS].fill([0; PANEL]);
    let mut widened: Widened = [[[0; K_GROUP]; BLOCK / K_GROUP]; TILE_ROWS];
    for start in (0..inputs).step_by(BLOCK) {
        let end = inputs.min(start + BLOCK);
        for (widened, row) in widened.iter_mut().zip(a.chunks_exact(inputs)) {
            for (to, &x) in widened.as_flattened_mut().iter_mut().zip(&row[start..end]) {
                *to = i16::from(x);
            }
        }
        // Beside an odd last value stands whatever was there before: its weight is 0.
        let groups = (end - start).div_ceil(K_GROUP);
        for strip in 0..PANEL / STRIP {
            let first = position::<Madd>(start, strip * STRIP, padded);
            // SAFETY: `groups` groups of STRIP * K_GROUP bytes from there are in the panel, whose size was checked:
            // the block ends with the strip at the latest.
            unsafe {
                multiply_strip::<ROWS>(&widened, groups, panel.as_ptr().cast::<i8>().add(first), tile, strip);
            };
        }
    }
}

/// Adds the products of one block and one strip to the tile.
///
/// # Safety
/// `weights` points to `groups` groups of `STRIP * K_GROUP` bytes.
#[target_feature(enable = "avx2")]
unsafe fn multiply_strip<const ROWS: usize>(
    widened: &Widened,
    groups: usize,
    weights: *const i8,
    tile: &mut Tile,
    strip: usize,
) {
    assert!(groups <= BLOCK / K_GROUP);
    let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
    for group in 0..groups {
        // SAFETY: `group < groups`, and a group is two vectors of 16 bytes.
        let weights: [__m256i; 2] = std::array::from_fn(|half| unsafe {
            let bytes = _mm_loadu_si128(weights.add((group * 2 + half) * 16).cast());
            _mm256_cvtepi8_epi16(bytes)
        });
        for (sums, widened) in sums.iter_mut().zip(widened) {
            let [low, high] = widened[group];
            let pair = _mm256_set1_epi32((i32::from(high) << 16) | i32::from(low as u16));
            for (sum, &weights) in sums.iter_mut().zip(&weights) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(weights, pair));
            }
        }
    }
    for (sums, tile) in sums.iter().zip(tile) {
        let (to, _) = tile[strip * STRIP..].as_chunks_mut::<8>();
        for (sum, to) in sums.iter().zip(to) {
            // SAFETY: the reference is to 32 bytes.
            unsafe {
                let before = _mm256_loadu_si256(to.as_ptr().cast());
                _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_add_epi32(before, *sum));
            }
        }
    }
}
