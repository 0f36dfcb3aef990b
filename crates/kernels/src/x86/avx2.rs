//! Sixteen lanes as two 256-bit registers (four for f64): AVX2 and FMA.

use std::arch::x86_64::*;

use crate::simd::{Kernel, LANES, Product, Simd};

/// Proof that the machine has AVX2 and FMA, with one of the integer products that go with them: [`Ymm::new`] is the only
/// way to get one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ymm<P>(P);

/// Intrinsics on values, and loads and stores of whole references.
macro_rules! intrinsics {
    ($body:expr) => {
        // SAFETY: `self` exists only where AVX2 and FMA were detected, and every pointer comes from a reference to as
        // many bytes as the intrinsic touches.
        unsafe { $body }
    };
}

impl<P: Product> Ymm<P> {
    pub(super) fn new(product: P) -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(product))
    }

    /// Where the machine was found to have the registers, with another product.
    pub(super) fn beside<Q>(product: P, _proof: Ymm<Q>) -> Self {
        Self(product)
    }

    /// Runs `kernel`, compiled for AVX2 and FMA.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma")]
        #[inline(never)]
        fn enabled<K: Kernel, S: Simd>(kernel: K, simd: S) -> K::Output {
            kernel.run(simd)
        }
        intrinsics!(enabled(kernel, self))
    }
}

/// An f32 operation on both halves.
macro_rules! both {
    ($f:ident($($vector:ident),+)) => {
        intrinsics!([$f($($vector[0]),+), $f($($vector[1]),+)])
    };
}

impl<P: Product> Simd for Ymm<P> {
    type Product = P;
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type D = [__m256d; 4];

    const WIDE: bool = false;

    #[inline(always)]
    fn apart<K: Kernel>(self, kernel: K) -> K::Output {
        self.run(kernel)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        intrinsics!([_mm256_set1_ps(value); 2])
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        intrinsics!([_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[8..].as_ptr())])
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F {
        // A loop, for a closure would be compiled without the instruction set.
        let mut halves = self.splat(0.0);
        for (i, half) in halves.iter_mut().enumerate() {
            intrinsics!({
                let bits = _mm_loadu_si128(from.as_ptr().add(i * LANES / 2).cast());
                *half = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)));
            });
        }
        halves
    }

    #[inline(always)]
    fn store(self, vector: Self::F, to: &mut [f32; LANES]) {
        intrinsics!({
            _mm256_storeu_ps(to.as_mut_ptr(), vector[0]);
            _mm256_storeu_ps(to[8..].as_mut_ptr(), vector[1]);
        });
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        let sign = self.splat(-0.0);
        both!(_mm256_andnot_ps(sign, a))
    }

    #[inline(always)]
    fn floor(self, a: Self::F) -> Self::F {
        both!(_mm256_floor_ps(a))
    }

    #[inline(always)]
    fn copysign(self, a: Self::F, sign: Self::F) -> Self::F {
        let (magnitude, bit) = (self.abs(a), self.splat(-0.0));
        let sign = both!(_mm256_and_ps(sign, bit));
        both!(_mm256_or_ps(magnitude, sign))
    }

    #[inline(always)]
    fn select_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        let less = |half: usize| intrinsics!(_mm256_cmp_ps::<_CMP_LT_OQ>(a[half], b[half]));
        let mask = [less(0), less(1)];
        both!(_mm256_blendv_ps(y, x, mask))
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> Self::I {
        intrinsics!([_mm256_set1_epi32(value); 2])
    }

    #[inline(always)]
    fn load_i32(self, from: &[i32; LANES]) -> Self::I {
        intrinsics!([_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from[8..].as_ptr().cast())])
    }

    #[inline(always)]
    fn store_i32(self, vector: Self::I, to: &mut [i32; LANES]) {
        intrinsics!({
            _mm256_storeu_si256(to.as_mut_ptr().cast(), vector[0]);
            _mm256_storeu_si256(to[8..].as_mut_ptr().cast(), vector[1]);
        });
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::I {
        intrinsics!({
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            [_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes))]
        })
    }

    #[inline(always)]
    fn load_i4(self, from: &[i8; LANES]) -> [Self::F; 2] {
        let [a, b] = self.load_i8(from);
        intrinsics!({
            let low = |bytes| _mm256_cvtepi32_ps(_mm256_srai_epi32::<28>(_mm256_slli_epi32::<28>(bytes)));
            let high = |bytes| _mm256_cvtepi32_ps(_mm256_srai_epi32::<4>(bytes));
            [[low(a), low(b)], [high(a), high(b)]]
        })
    }

    #[inline(always)]
    fn store_i8(self, vector: Self::I, to: &mut [i8; LANES]) {
        intrinsics!({
            // Packing works within 128-bit lanes: the middle quarters come out swapped.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(vector[0], vector[1]));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        });
    }

    #[inline(always)]
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_add_epi32(a, b))
    }

    #[inline(always)]
    fn sub_i32(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_sub_epi32(a, b))
    }

    #[inline(always)]
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_mullo_epi32(a, b))
    }

    #[inline(always)]
    fn max_i32(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_max_epi32(a, b))
    }

    #[inline(always)]
    fn to_i32(self, a: Self::F) -> Self::I {
        both!(_mm256_cvtps_epi32(a))
    }

    #[inline(always)]
    fn to_f32(self, a: Self::I) -> Self::F {
        both!(_mm256_cvtepi32_ps(a))
    }

    #[inline(always)]
    fn magnitude_bits(self, a: Self::F) -> Self::I {
        let magnitude = self.abs(a);
        both!(_mm256_castps_si256(magnitude))
    }

    #[inline(always)]
    fn exp2_i32(self, n: Self::I) -> Self::F {
        let biased = self.add_i32(n, self.splat_i32(127));
        intrinsics!([
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased[0])),
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased[1])),
        ])
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        intrinsics!([_mm256_round_ps::<NEAREST>(a[0]), _mm256_round_ps::<NEAREST>(a[1])])
    }

    #[inline(always)]
    fn bf16(self, a: Self::F) -> Self::F {
        let mut rounded = a;
        for half in &mut rounded {
            intrinsics!({
                let bits = _mm256_castps_si256(*half);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
                *half = _mm256_castsi256_ps(_mm256_and_si256(sum, _mm256_set1_epi32(-0x1_0000)));
            });
        }
        self.select_less(self.abs(a), self.splat(f32::MIN_POSITIVE), self.splat(0.0), rounded)
    }

    #[inline(always)]
    fn lookup(self, table: &[f32; LANES], index: Self::I) -> Self::F {
        // The permutation reads the low three bits of an index; the fourth, shifted into the sign, chooses the half.
        let [low, high] = self.load(table);
        let mut found = [low, high];
        for (found, index) in found.iter_mut().zip(index) {
            *found = intrinsics!(_mm256_blendv_ps(
                _mm256_permutevar8x32_ps(low, index),
                _mm256_permutevar8x32_ps(high, index),
                _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)),
            ));
        }
        found
    }

    #[inline(always)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        // Four squares of eight by eight.
        let mut columns = rows;
        for half in 0..2 {
            for first in [0, 8] {
                let mut square = [rows[0][0]; 8];
                for (square, row) in square.iter_mut().zip(&rows[first..]) {
                    *square = row[half];
                }
                for (column, part) in columns[half * 8..].iter_mut().zip(transpose_eight(self, square)) {
                    column[first / 8] = part;
                }
            }
        }
        columns
    }

    #[inline(always)]
    fn sum(self, vector: Self::F) -> f32 {
        fold!(vector, _mm256_add_ps, _mm_add_ps)
    }

    #[inline(always)]
    fn largest(self, vector: Self::F) -> f32 {
        fold!(vector, _mm256_max_ps, _mm_max_ps)
    }

    #[inline(always)]
    fn smallest(self, vector: Self::F) -> f32 {
        fold!(vector, _mm256_min_ps, _mm_min_ps)
    }

    #[inline(always)]
    fn butterflies(self, a: Self::F) -> Self::F {
        let mut halves = a;
        for half in &mut halves {
            // Beside the other lane: their sum, and in the second of a pair their difference.
            intrinsics!({
                let (a, b) = (*half, _mm256_permute_ps::<0b10_11_00_01>(*half));
                let a = _mm256_blend_ps::<0b1010_1010>(_mm256_add_ps(a, b), _mm256_sub_ps(b, a));
                let b = _mm256_permute_ps::<0b01_00_11_10>(a);
                let a = _mm256_blend_ps::<0b1100_1100>(_mm256_add_ps(a, b), _mm256_sub_ps(b, a));
                let b = _mm256_permute2f128_ps::<1>(a, a);
                *half = _mm256_blend_ps::<0b1111_0000>(_mm256_add_ps(a, b), _mm256_sub_ps(b, a));
            });
        }
        intrinsics!([_mm256_add_ps(halves[0], halves[1]), _mm256_sub_ps(halves[0], halves[1])])
    }

    #[inline(always)]
    fn zero_f64(self) -> Self::D {
        intrinsics!([_mm256_setzero_pd(); 4])
    }

    #[inline(always)]
    fn add_square_of_difference(self, sum: Self::D, a: Self::F, b: Self::F) -> Self::D {
        let (a, b) = (widen(self, a), widen(self, b));
        let add = |quarter: usize| {
            intrinsics!({
                let difference = _mm256_sub_pd(a[quarter], b[quarter]);
                _mm256_add_pd(sum[quarter], _mm256_mul_pd(difference, difference))
            })
        };
        [add(0), add(1), add(2), add(3)]
    }

    #[inline(always)]
    fn store_f64(self, vector: Self::D, to: &mut [f64; LANES]) {
        for (quarter, to) in vector.into_iter().zip(to.as_chunks_mut::<4>().0) {
            intrinsics!(_mm256_storeu_pd(to.as_mut_ptr(), quarter));
        }
    }

    #[inline(always)]
    fn product(self) -> P {
        self.0
    }
}

/// A square of eight by eight.
#[inline(always)]
fn transpose_eight<P>(_token: Ymm<P>, rows: [__m256; 8]) -> [__m256; 8] {
    let (mut pairs, mut fours, mut columns) = (rows, rows, rows);
    intrinsics!({
        for i in (0..8).step_by(2) {
            pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
            pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
        }
        for i in [0, 4] {
            for c in 0..2 {
                let (a, b) = (_mm256_castps_pd(pairs[i + c]), _mm256_castps_pd(pairs[i + c + 2]));
                fours[i + 2 * c] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                fours[i + 2 * c + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
            }
        }
        for c in 0..4 {
            columns[c] = _mm256_permute2f128_ps::<0x20>(fours[c], fours[c + 4]);
            columns[c + 4] = _mm256_permute2f128_ps::<0x31>(fours[c], fours[c + 4]);
        }
    });
    columns
}

#[inline(always)]
fn widen<P>(_token: Ymm<P>, a: [__m256; 2]) -> [__m256d; 4] {
    let low = |half| intrinsics!(_mm256_cvtps_pd(_mm256_castps256_ps128(half)));
    let high = |half| intrinsics!(_mm256_cvtps_pd(_mm256_extractf128_ps::<1>(half)));
    [low(a[0]), high(a[0]), low(a[1]), high(a[1])]
}
