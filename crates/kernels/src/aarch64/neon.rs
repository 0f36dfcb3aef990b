//! Sixteen lanes as four 128-bit registers (eight for f64): NEON.

use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;
use std::array::from_fn;

use crate::simd::{Kernel, LANES, Product, Simd};

/// Proof that the machine has NEON, with one of the integer products that go with it: [`Quads::new`] is the only way to
/// get one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quads<P>(P);

/// Intrinsics on values, and loads and stores of whole references.
macro_rules! intrinsics {
    ($body:expr) => {
        // SAFETY: `self` exists only where NEON was detected, and every pointer comes from a reference to as many bytes
        // as the intrinsic touches.
        unsafe { $body }
    };
}

impl<P: Product> Quads<P> {
    pub(super) fn new(product: P) -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Self(product))
    }

    /// Where the machine was found to have the registers, with another product.
    pub(super) fn beside<Q>(product: P, _proof: Quads<Q>) -> Self {
        Self(product)
    }

    /// Runs `kernel`, compiled for NEON.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        #[inline(never)]
        fn enabled<K: Kernel, S: Simd>(kernel: K, simd: S) -> K::Output {
            kernel.run(simd)
        }
        intrinsics!(enabled(kernel, self))
    }
}

/// An operation on all four quarters.
macro_rules! each {
    ($f:ident $(::<$constant:literal>)? ($($vector:ident),+)) => {
        intrinsics!([
            $f$(::<$constant>)?($($vector[0]),+),
            $f$(::<$constant>)?($($vector[1]),+),
            $f$(::<$constant>)?($($vector[2]),+),
            $f$(::<$constant>)?($($vector[3]),+),
        ])
    };
}

impl<P: Product> Simd for Quads<P> {
    type Product = P;
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type D = [float64x2_t; 8];

    const WIDE: bool = false;

    #[inline(always)]
    fn apart<K: Kernel>(self, kernel: K) -> K::Output {
        self.run(kernel)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        intrinsics!([vdupq_n_f32(value); 4])
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        let (from, _) = from.as_chunks::<4>();
        from_fn(|quarter| intrinsics!(vld1q_f32(from[quarter].as_ptr())))
    }

    #[inline(always)]
    fn store(self, vector: Self::F, to: &mut [f32; LANES]) {
        for (quarter, to) in vector.into_iter().zip(to.as_chunks_mut::<4>().0) {
            intrinsics!(vst1q_f32(to.as_mut_ptr(), quarter));
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        each!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        each!(vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        each!(vdivq_f32(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each!(vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // `vmaxq_f32` gives NaN for either operand, and the larger zero.
        let greater = each!(vcgtq_f32(a, b));
        each!(vbslq_f32(greater, a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        let less = each!(vcltq_f32(a, b));
        each!(vbslq_f32(less, a, b))
    }

    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        each!(vabsq_f32(a))
    }

    #[inline(always)]
    fn floor(self, a: Self::F) -> Self::F {
        each!(vrndmq_f32(a))
    }

    #[inline(always)]
    fn copysign(self, a: Self::F, sign: Self::F) -> Self::F {
        let bit = intrinsics!([vdupq_n_u32(1 << 31); 4]);
        each!(vbslq_f32(bit, sign, a))
    }

    #[inline(always)]
    fn select_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        let less = each!(vcltq_f32(a, b));
        each!(vbslq_f32(less, x, y))
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> Self::I {
        intrinsics!([vdupq_n_s32(value); 4])
    }

    #[inline(always)]
    fn load_i32(self, from: &[i32; LANES]) -> Self::I {
        let (from, _) = from.as_chunks::<4>();
        from_fn(|quarter| intrinsics!(vld1q_s32(from[quarter].as_ptr())))
    }

    #[inline(always)]
    fn store_i32(self, vector: Self::I, to: &mut [i32; LANES]) {
        for (quarter, to) in vector.into_iter().zip(to.as_chunks_mut::<4>().0) {
            intrinsics!(vst1q_s32(to.as_mut_ptr(), quarter));
        }
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::I {
        intrinsics!({
            let bytes = vld1q_s8(from.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            let widen = |words| [vmovl_s16(vget_low_s16(words)), vmovl_high_s16(words)];
            let ([a, b], [c, d]) = (widen(low), widen(high));
            [a, b, c, d]
        })
    }

    #[inline(always)]
    fn store_i8(self, vector: Self::I, to: &mut [i8; LANES]) {
        intrinsics!({
            let low = vmovn_high_s32(vmovn_s32(vector[0]), vector[1]);
            let high = vmovn_high_s32(vmovn_s32(vector[2]), vector[3]);
            vst1q_s8(to.as_mut_ptr(), vmovn_high_s16(vmovn_s16(low), high));
        });
    }

    #[inline(always)]
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I {
        each!(vaddq_s32(a, b))
    }

    #[inline(always)]
    fn sub_i32(self, a: Self::I, b: Self::I) -> Self::I {
        each!(vsubq_s32(a, b))
    }

    #[inline(always)]
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I {
        each!(vmulq_s32(a, b))
    }

    #[inline(always)]
    fn max_i32(self, a: Self::I, b: Self::I) -> Self::I {
        each!(vmaxq_s32(a, b))
    }

    #[inline(always)]
    fn to_i32(self, a: Self::F) -> Self::I {
        each!(vcvtnq_s32_f32(a))
    }

    #[inline(always)]
    fn to_f32(self, a: Self::I) -> Self::F {
        each!(vcvtq_f32_s32(a))
    }

    #[inline(always)]
    fn magnitude_bits(self, a: Self::F) -> Self::I {
        let magnitude = self.abs(a);
        each!(vreinterpretq_s32_f32(magnitude))
    }

    #[inline(always)]
    fn exp2_i32(self, n: Self::I) -> Self::F {
        let biased = self.add_i32(n, self.splat_i32(127));
        let bits = each!(vshlq_n_s32::<23>(biased));
        each!(vreinterpretq_f32_s32(bits))
    }

    #[inline(always)]
    fn bf16(self, a: Self::F) -> Self::F {
        let mut rounded = a;
        for quarter in &mut rounded {
            intrinsics!({
                let bits = vreinterpretq_u32_f32(*quarter);
                let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
                let sum = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
                *quarter = vreinterpretq_f32_u32(vandq_u32(sum, vdupq_n_u32(0xffff_0000)));
            });
        }
        self.select_less(self.abs(a), self.splat(f32::MIN_POSITIVE), self.splat(0.0), rounded)
    }

    #[inline(always)]
    fn lookup(self, table: &[f32; LANES], index: Self::I) -> Self::F {
        let table = self.load(table);
        let bytes = each!(vreinterpretq_u8_f32(table));
        let [a, b, c, d] = bytes;
        let mut found = table;
        for (found, index) in found.iter_mut().zip(index) {
            intrinsics!({
                // Byte j of a lane is byte 4 * index + j of the table.
                let first = vmulq_n_u32(vreinterpretq_u32_s32(index), 0x0404_0404);
                let at = vreinterpretq_u8_u32(vaddq_u32(first, vdupq_n_u32(0x0302_0100)));
                *found = vreinterpretq_f32_u8(vqtbl4q_u8(uint8x16x4_t(a, b, c, d), at));
            });
        }
        found
    }

    #[inline(always)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        // `blocks[i][j]`: the columns 4i to 4i + 3 of the rows 4j to 4j + 3.
        let blocks: [[[float32x4_t; 4]; 4]; 4] =
            from_fn(|i| from_fn(|j| transpose_four(self, from_fn(|row| rows[4 * j + row][i]))));
        from_fn(|column| from_fn(|j| blocks[column / 4][j][column % 4]))
    }

    #[inline(always)]
    fn zero_f64(self) -> Self::D {
        intrinsics!([vdupq_n_f64(0.0); 8])
    }

    #[inline(always)]
    fn add_square_of_difference(self, sum: Self::D, a: Self::F, b: Self::F) -> Self::D {
        let (a, b) = (widen(self, a), widen(self, b));
        from_fn(|pair| {
            intrinsics!({
                let difference = vsubq_f64(a[pair], b[pair]);
                vaddq_f64(sum[pair], vmulq_f64(difference, difference))
            })
        })
    }

    #[inline(always)]
    fn store_f64(self, vector: Self::D, to: &mut [f64; LANES]) {
        for (pair, to) in vector.into_iter().zip(to.as_chunks_mut::<2>().0) {
            intrinsics!(vst1q_f64(to.as_mut_ptr(), pair));
        }
    }

    #[inline(always)]
    fn product(self) -> P {
        self.0
    }
}

/// A square of four by four.
#[inline(always)]
fn transpose_four<P>(_token: Quads<P>, rows: [float32x4_t; 4]) -> [float32x4_t; 4] {
    intrinsics!({
        let even = |a, b| vreinterpretq_f64_f32(vtrn1q_f32(a, b));
        let odd = |a, b| vreinterpretq_f64_f32(vtrn2q_f32(a, b));
        let [a, b, c, d] = rows;
        [
            vtrn1q_f64(even(a, b), even(c, d)),
            vtrn1q_f64(odd(a, b), odd(c, d)),
            vtrn2q_f64(even(a, b), even(c, d)),
            vtrn2q_f64(odd(a, b), odd(c, d)),
        ]
        .map(|column| vreinterpretq_f32_f64(column))
    })
}

#[inline(always)]
fn widen<P>(_token: Quads<P>, a: [float32x4_t; 4]) -> [float64x2_t; 8] {
    from_fn(|pair| {
        let quarter = a[pair / 2];
        intrinsics!(if pair % 2 == 0 {
            vcvt_f64_f32(vget_low_f32(quarter))
        } else {
            vcvt_high_f64_f32(quarter)
        })
    })
}
