//! The integer product on NEON.
//!
//! `smull` multiplies eight pairs of i8 to i16 and `sadalp` adds neighbours to i32. Each product is added on its own: a
//! second one beside it in i16 could be -128 * -128 twice, which is 2^15. The tile is generic over [`Multiply`], so that
//! `sdot` runs in the same loops.

use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;

use super::neon::Quads;
use crate::gemm::{Line, PANEL, Tile};
use crate::simd::Product;

/// Columns that are multiplied in one go: four accumulators for each of six rows leave eight registers for the operands.
pub(super) const STRIP: usize = 16;
/// Accumulators of a row.
pub(super) const VECTORS: usize = STRIP / 4;

/// How one group of K is multiplied; the value is the proof that the machine has NEON and what else is needed.
pub(super) trait Multiply: Product {
    /// The weights of one group and strip: `STRIP * K_GROUP` bytes.
    type Weights: Copy;

    /// # Safety
    /// `from` points to the bytes of one group and strip.
    unsafe fn load(self, from: *const i8) -> Self::Weights;

    /// Adds the products of the weights and `K_GROUP` activations.
    ///
    /// # Safety
    /// `activations` points to `K_GROUP` values.
    unsafe fn multiply_add(
        self,
        sums: &mut [int32x4_t; VECTORS],
        weights: &Self::Weights,
        activations: *const i8,
    );
}

/// Proof that the machine has NEON and keeps bytes in the order that packing assumes: [`Smull::detect`] is the only way
/// to get one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Smull(());

impl Smull {
    pub(super) fn detect() -> Option<Self> {
        (cfg!(target_endian = "little") && is_aarch64_feature_detected!("neon")).then_some(Self(()))
    }

    /// Where NEON was found with another product, which keeps bytes in that order too.
    pub(super) fn beside<P>(_proof: Quads<P>) -> Self {
        Self(())
    }
}

impl Product for Smull {
    const STRIP: usize = STRIP;
    const K_GROUP: usize = 2;
    const WEIGHT_FLIP: u8 = 0;

    #[inline(always)]
    fn row_offset(self, _row: &[i8]) -> i32 {
        0
    }

    fn tile(self, a: &[i8], inputs: usize, panel: &[Line], offsets: &[i32], tile: &mut Tile) {
        #[target_feature(enable = "neon")]
        fn enabled(token: Smull, a: &[i8], inputs: usize, panel: &[Line], rows: usize, tile: &mut Tile) {
            any_tile(token, a, inputs, panel, rows, tile);
        }
        // SAFETY: `self` exists only where NEON was detected.
        unsafe { enabled(self, a, inputs, panel, offsets.len(), tile) }
    }
}

impl Multiply for Smull {
    type Weights = [int8x16_t; 2];

    #[inline(always)]
    unsafe fn load(self, from: *const i8) -> Self::Weights {
        // SAFETY: `self` exists only where NEON was detected; a group is two vectors, as the caller promises.
        unsafe { [vld1q_s8(from), vld1q_s8(from.add(16))] }
    }

    #[inline(always)]
    unsafe fn multiply_add(
        self,
        sums: &mut [int32x4_t; VECTORS],
        weights: &Self::Weights,
        activations: *const i8,
    ) {
        // SAFETY: `self` exists only where NEON was detected; there are two activations, as the caller promises.
        unsafe {
            let pair = vreinterpretq_s8_s16(vdupq_n_s16(activations.cast::<i16>().read_unaligned()));
            for (sums, &weights) in sums.as_chunks_mut::<2>().0.iter_mut().zip(weights) {
                sums[0] = vpadalq_s16(sums[0], vmull_s8(vget_low_s8(weights), vget_low_s8(pair)));
                sums[1] = vpadalq_s16(sums[1], vmull_high_s8(weights, pair));
            }
        }
    }
}

/// See [`Product::tile`].
#[inline(always)]
pub(super) fn any_tile<M: Multiply>(
    token: M,
    a: &[i8],
    inputs: usize,
    panel: &[Line],
    rows: usize,
    tile: &mut Tile,
) {
    match rows {
        1 => fixed_tile::<M, 1>(token, a, inputs, panel, tile),
        2 => fixed_tile::<M, 2>(token, a, inputs, panel, tile),
        3 => fixed_tile::<M, 3>(token, a, inputs, panel, tile),
        4 => fixed_tile::<M, 4>(token, a, inputs, panel, tile),
        5 => fixed_tile::<M, 5>(token, a, inputs, panel, tile),
        6 => fixed_tile::<M, 6>(token, a, inputs, panel, tile),
        rows => unreachable!("a tile of {rows} rows"),
    }
}

#[inline(always)]
fn fixed_tile<M: Multiply, const ROWS: usize>(
    token: M,
    a: &[i8],
    inputs: usize,
    panel: &[Line],
    tile: &mut Tile,
) {
    assert_eq!(a.len(), ROWS * inputs, "`a` is [ROWS, inputs]");
    let padded = inputs.next_multiple_of(M::K_GROUP);
    assert_eq!(size_of_val(panel), padded * PANEL, "the panel has a byte for each input and column");
    let group_bytes = STRIP * M::K_GROUP;
    for strip in 0..PANEL / STRIP {
        // SAFETY: the size of the panel, which was checked, is that of its strips.
        let weights = unsafe { panel.as_ptr().cast::<i8>().add(strip * padded * STRIP) };
        // SAFETY: the token exists only where NEON was detected.
        let mut sums = unsafe { [[vdupq_n_s32(0); VECTORS]; ROWS] };
        let groups = inputs / M::K_GROUP;
        for group in 0..groups {
            // SAFETY: a strip has the bytes of `padded / K_GROUP` groups, and each of the ROWS rows of `a` has K_GROUP
            // values for each of the first `groups`.
            unsafe {
                let weights = token.load(weights.add(group * group_bytes));
                for (row, sums) in sums.iter_mut().enumerate() {
                    token.multiply_add(sums, &weights, a.as_ptr().add(row * inputs + group * M::K_GROUP));
                }
            }
        }
        // A last group of which the row has a part.
        if inputs < padded {
            // SAFETY: the strip has that group too.
            let weights = unsafe { token.load(weights.add(groups * group_bytes)) };
            for (sums, row) in sums.iter_mut().zip(a.chunks_exact(inputs)) {
                let mut rest = [0; 4];
                for (to, &x) in rest[..M::K_GROUP].iter_mut().zip(&row[groups * M::K_GROUP..]) {
                    *to = x;
                }
                // SAFETY: `rest` has K_GROUP values: the slice above would have panicked.
                unsafe { token.multiply_add(sums, &weights, rest.as_ptr()) };
            }
        }
        for (sums, tile) in sums.iter().zip(&mut *tile) {
            let (to, _) = tile[strip * STRIP..].as_chunks_mut::<4>();
            for (sum, to) in sums.iter().zip(to) {
                // SAFETY: the token exists only where NEON was detected; the reference is to 16 bytes.
                unsafe { vst1q_s32(to.as_mut_ptr(), *sum) };
            }
        }
    }
}
