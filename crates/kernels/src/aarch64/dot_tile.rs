//! The integer product on NEON with the dot product instructions.
//!
//! `sdot` adds four products of i8 to an i32, without saturating. Its intrinsic is not in the stable standard library, so
//! that it is written as assembly.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::neon_tile::{Multiply, STRIP, Smull, VECTORS, any_tile};
use crate::gemm::{Line, Tile};
use crate::simd::Product;

/// Proof that the machine has what [`Smull`] needs and the dot product instructions: [`Sdot::detect`] is the only way to
/// get one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sdot(());

impl Sdot {
    pub(super) fn detect() -> Option<Self> {
        Smull::detect().filter(|_| is_aarch64_feature_detected!("dotprod")).map(|_| Self(()))
    }
}

impl Product for Sdot {
    const STRIP: usize = STRIP;
    const K_GROUP: usize = 4;
    const WEIGHT_FLIP: u8 = 0;

    #[inline(always)]
    fn row_offset(self, _row: &[i8]) -> i32 {
        0
    }

    fn tile(self, a: &[i8], inputs: usize, panel: &[Line], offsets: &[i32], tile: &mut Tile) {
        #[target_feature(enable = "neon,dotprod")]
        fn enabled(token: Sdot, a: &[i8], inputs: usize, panel: &[Line], rows: usize, tile: &mut Tile) {
            any_tile(token, a, inputs, panel, rows, tile);
        }
        // SAFETY: `self` exists only where NEON and the dot product were detected.
        unsafe { enabled(self, a, inputs, panel, offsets.len(), tile) }
    }
}

impl Multiply for Sdot {
    type Weights = [int8x16_t; VECTORS];

    #[inline(always)]
    unsafe fn load(self, from: *const i8) -> Self::Weights {
        // SAFETY: `self` exists only where NEON was detected; a group is four vectors, as the caller promises.
        std::array::from_fn(|vector| unsafe { vld1q_s8(from.add(16 * vector)) })
    }

    #[inline(always)]
    unsafe fn multiply_add(
        self,
        sums: &mut [int32x4_t; VECTORS],
        weights: &Self::Weights,
        activations: *const i8,
    ) {
        // SAFETY: `self` exists only where NEON and the dot product were detected; there are four activations, as the
        // caller promises.
        unsafe {
            let four = vreinterpretq_s8_s32(vdupq_n_s32(activations.cast::<i32>().read_unaligned()));
            for (sum, &weights) in sums.iter_mut().zip(weights) {
                *sum = sdot(*sum, weights, four);
            }
        }
    }
}

/// Adds to each i32 of `sums` four products of i8 from `a` and `b`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: one instruction on registers, which the feature above has.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
