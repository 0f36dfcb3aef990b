//! Sixteen lanes as one 512-bit register: AVX-512 F, BW, DQ, VL and VNNI.

use std::arch::x86_64::*;

use super::avx512_tile;
use crate::gemm::{Line, PANEL, Tile};
use crate::simd::{Kernel, LANES, Product, Simd};

/// Proof that the machine has AVX-512 with VNNI, and with BF16 where that is asked for: [`Avx512::detect`] is the only way to
/// get one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512<const BF16: bool>(());

/// Intrinsics on values, and loads and stores of whole references.
macro_rules! intrinsics {
    ($body:expr) => {
        // SAFETY: `self` exists only where AVX-512 F, BW, DQ, VL and VNNI were detected, and every pointer comes from a
        // reference to as many bytes as the intrinsic touches.
        unsafe { $body }
    };
}

impl<const BF16: bool> Avx512<BF16> {
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && (!BF16 || is_x86_feature_detected!("avx512bf16"));
        found.then_some(Self(()))
    }

    /// Runs `kernel`, compiled for AVX-512.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        #[inline(never)]
        fn enabled<K: Kernel, S: Simd>(kernel: K, simd: S) -> K::Output {
            kernel.run(simd)
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
        #[inline(never)]
        fn enabled_with_bf16<K: Kernel, S: Simd>(kernel: K, simd: S) -> K::Output {
            kernel.run(simd)
        }
        if BF16 { intrinsics!(enabled_with_bf16(kernel, self)) } else { intrinsics!(enabled(kernel, self)) }
    }
}

/// Where the numbers of two vectors stand when they alternate.
const ALTERNATING: [i16; 32] = {
    let mut places = [0; 32];
    let mut i = 0;
    while i < 16 {
        places[2 * i] = i as i16;
        places[2 * i + 1] = i as i16 + 16;
        i += 1;
    }
    places
};

/// A register as two of 256 bits.
macro_rules! halves {
    ($vector:expr) => {
        intrinsics!([_mm512_castps512_ps256($vector), _mm512_extractf32x8_ps::<1>($vector)])
    };
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type Product = Self;
    type F = __m512;
    type I = __m512i;
    type D = [__m512d; 2];

    const WIDE: bool = true;
    const BF16: bool = BF16;

    #[inline(always)]
    fn apart<K: Kernel>(self, kernel: K) -> K::Output {
        self.run(kernel)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        intrinsics!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        intrinsics!(_mm512_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F {
        intrinsics!({
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        })
    }

    #[inline(always)]
    fn store(self, vector: Self::F, to: &mut [f32; LANES]) {
        intrinsics!(_mm512_storeu_ps(to.as_mut_ptr(), vector));
    }

    #[inline(always)]
    fn load_tail(self, from: &[f32], fill: f32) -> Self::F {
        // SAFETY: the token as above; masked lanes are not read, and there are as many others as `from` has values.
        unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first_lanes(from.len()), from.as_ptr()) }
    }

    #[inline(always)]
    fn store_tail(self, vector: Self::F, to: &mut [f32]) {
        // SAFETY: the token as above; masked lanes are not written, and there are as many others as `to` has values.
        unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), first_lanes(to.len()), vector) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        intrinsics!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        intrinsics!(_mm512_andnot_ps(_mm512_set1_ps(-0.0), a))
    }

    #[inline(always)]
    fn floor(self, a: Self::F) -> Self::F {
        intrinsics!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn copysign(self, a: Self::F, sign: Self::F) -> Self::F {
        intrinsics!({
            let bit = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(bit, a), _mm512_and_ps(bit, sign))
        })
    }

    #[inline(always)]
    fn select_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        intrinsics!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x))
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> Self::I {
        intrinsics!(_mm512_set1_epi32(value))
    }

    #[inline(always)]
    fn load_i32(self, from: &[i32; LANES]) -> Self::I {
        intrinsics!(_mm512_loadu_si512(from.as_ptr().cast()))
    }

    #[inline(always)]
    fn store_i32(self, vector: Self::I, to: &mut [i32; LANES]) {
        intrinsics!(_mm512_storeu_si512(to.as_mut_ptr().cast(), vector));
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::I {
        intrinsics!(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_i4(self, from: &[i8; LANES]) -> [Self::F; 2] {
        // What a permutation reads of an index are its low four bits.
        const VALUES: [f32; LANES] =
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0];
        intrinsics!({
            let (values, bytes) = (_mm512_loadu_ps(VALUES.as_ptr()), self.load_i8(from));
            [
                _mm512_permutexvar_ps(bytes, values),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), values),
            ]
        })
    }

    #[inline(always)]
    fn store_i8(self, vector: Self::I, to: &mut [i8; LANES]) {
        intrinsics!(_mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(vector)));
    }

    #[inline(always)]
    fn store_i8_of_four(self, [a, b, c, d]: [Self::I; 4], to: &mut [i8; 4 * LANES]) {
        // Packing works within 128 bits: its fours of bytes are of a, b, c and d in turn.
        const ORDER: [i32; LANES] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
        intrinsics!({
            let words = [_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d)];
            let bytes = _mm512_packs_epi16(words[0], words[1]);
            let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
            _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_permutexvar_epi32(order, bytes));
        });
    }

    #[inline(always)]
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I {
        intrinsics!(_mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn sub_i32(self, a: Self::I, b: Self::I) -> Self::I {
        intrinsics!(_mm512_sub_epi32(a, b))
    }

    #[inline(always)]
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I {
        intrinsics!(_mm512_mullo_epi32(a, b))
    }

    #[inline(always)]
    fn max_i32(self, a: Self::I, b: Self::I) -> Self::I {
        intrinsics!(_mm512_max_epi32(a, b))
    }

    #[inline(always)]
    fn to_i32(self, a: Self::F) -> Self::I {
        intrinsics!(_mm512_cvtps_epi32(a))
    }

    #[inline(always)]
    fn to_f32(self, a: Self::I) -> Self::F {
        intrinsics!(_mm512_cvtepi32_ps(a))
    }

    #[inline(always)]
    fn magnitude_bits(self, a: Self::F) -> Self::I {
        intrinsics!(_mm512_castps_si512(self.abs(a)))
    }

    #[inline(always)]
    fn exp2_i32(self, n: Self::I) -> Self::F {
        intrinsics!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(n, _mm512_set1_epi32(127)))))
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        intrinsics!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn scale_by_exp2(self, a: Self::F, n: Self::F) -> Self::F {
        intrinsics!(_mm512_scalef_ps(a, n))
    }

    #[inline(always)]
    fn bf16(self, a: Self::F) -> Self::F {
        intrinsics!({
            let bits = _mm512_castps_si512(a);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let rounded = _mm512_castsi512_ps(_mm512_and_si512(sum, _mm512_set1_epi32(-0x1_0000)));
            self.select_less(self.abs(a), self.splat(f32::MIN_POSITIVE), self.splat(0.0), rounded)
        })
    }

    #[inline(always)]
    fn pairs(self, low: Self::F, high: Self::F) -> Self::I {
        let in_order = self.pairs_in_order(low, high);
        intrinsics!(_mm512_permutexvar_epi16(_mm512_loadu_si512(ALTERNATING.as_ptr().cast()), in_order))
    }

    #[inline(always)]
    fn pairs_in_order(self, first: Self::F, second: Self::F) -> Self::I {
        if BF16 {
            // SAFETY: `self` exists only where BF16 was detected as well; both types are 512 bits without meaning.
            return unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) };
        }
        let (first, second) = (self.bf16(first), self.bf16(second));
        intrinsics!({
            let narrow = |a| _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_castps_si512(a)));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(narrow(first)), narrow(second))
        })
    }

    #[inline(always)]
    fn dot_pairs(self, sum: Self::F, a: Self::I, b: Self::I) -> Self::F {
        if BF16 {
            // SAFETY: as above.
            return unsafe {
                let pairs = |vector| std::mem::transmute::<__m512i, __m512bh>(vector);
                _mm512_dpbf16_ps(sum, pairs(a), pairs(b))
            };
        }
        intrinsics!({
            let high = |pairs| _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-0x1_0000)));
            let low = |pairs| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
            _mm512_fmadd_ps(low(a), low(b), _mm512_fmadd_ps(high(a), high(b), sum))
        })
    }

    #[inline(always)]
    fn lookup(self, table: &[f32; LANES], index: Self::I) -> Self::F {
        intrinsics!(_mm512_permutexvar_ps(index, _mm512_loadu_ps(table.as_ptr())))
    }

    #[inline(always)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        // Pairs of rows, then fours: after that vector 4i + c holds, in its 128-bit part l, column 4l + c of the rows 4i
        // to 4i + 3. Loops, for closures would be compiled without the instruction set.
        let (mut pairs, mut fours, mut eights, mut columns) = (rows, rows, rows, rows);
        intrinsics!({
            for i in (0..LANES).step_by(2) {
                pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
                pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
            }
            for i in (0..LANES).step_by(4) {
                for c in 0..2 {
                    let (a, b) = (_mm512_castps_pd(pairs[i + c]), _mm512_castps_pd(pairs[i + c + 2]));
                    fours[i + 2 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    fours[i + 2 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            // Parts 0 and 2, then 1 and 3, of two such vectors; and again.
            for i in [0, 8] {
                for c in 0..4 {
                    let (a, b) = (fours[i + c], fours[i + c + 4]);
                    eights[i + c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                    eights[i + c + 4] = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
                }
            }
            for c in 0..8 {
                let (a, b) = (eights[c], eights[c + 8]);
                columns[c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                columns[c + 8] = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
            }
        });
        columns
    }

    #[inline(always)]
    fn butterflies(self, a: Self::F) -> Self::F {
        // Beside the other lane: their sum, and in the second of a pair their difference.
        intrinsics!({
            let b = _mm512_permute_ps::<0b10_11_00_01>(a);
            let a = _mm512_mask_sub_ps(_mm512_add_ps(a, b), 0xaaaa, b, a);
            let b = _mm512_permute_ps::<0b01_00_11_10>(a);
            let a = _mm512_mask_sub_ps(_mm512_add_ps(a, b), 0xcccc, b, a);
            let b = _mm512_shuffle_f32x4::<0b10_11_00_01>(a, a);
            let a = _mm512_mask_sub_ps(_mm512_add_ps(a, b), 0xf0f0, b, a);
            let b = _mm512_shuffle_f32x4::<0b01_00_11_10>(a, a);
            _mm512_mask_sub_ps(_mm512_add_ps(a, b), 0xff00, b, a)
        })
    }

    #[inline(always)]
    fn sum(self, vector: Self::F) -> f32 {
        fold!(halves!(vector), _mm256_add_ps, _mm_add_ps)
    }

    #[inline(always)]
    fn largest(self, vector: Self::F) -> f32 {
        fold!(halves!(vector), _mm256_max_ps, _mm_max_ps)
    }

    #[inline(always)]
    fn smallest(self, vector: Self::F) -> f32 {
        fold!(halves!(vector), _mm256_min_ps, _mm_min_ps)
    }

    #[inline(always)]
    fn largest_i32(self, vector: Self::I) -> i32 {
        intrinsics!(_mm512_reduce_max_epi32(vector))
    }

    #[inline(always)]
    fn zero_f64(self) -> Self::D {
        intrinsics!([_mm512_setzero_pd(); 2])
    }

    #[inline(always)]
    fn add_square_of_difference(self, sum: Self::D, a: Self::F, b: Self::F) -> Self::D {
        let add = |sum, a, b| {
            intrinsics!({
                let difference = _mm512_sub_pd(_mm512_cvtps_pd(a), _mm512_cvtps_pd(b));
                _mm512_add_pd(sum, _mm512_mul_pd(difference, difference))
            })
        };
        let high = |a| intrinsics!(_mm512_extractf32x8_ps::<1>(a));
        intrinsics!([
            add(sum[0], _mm512_castps512_ps256(a), _mm512_castps512_ps256(b)),
            add(sum[1], high(a), high(b))
        ])
    }

    #[inline(always)]
    fn store_f64(self, vector: Self::D, to: &mut [f64; LANES]) {
        intrinsics!({
            _mm512_storeu_pd(to.as_mut_ptr(), vector[0]);
            _mm512_storeu_pd(to[8..].as_mut_ptr(), vector[1]);
        });
    }

    #[inline(always)]
    fn product(self) -> Self {
        self
    }

    #[inline(always)]
    fn prefetch<T>(self, at: &T) {
        intrinsics!(_mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(at).cast()));
    }
}

impl<const BF16: bool> Product for Avx512<BF16> {
    const STRIP: usize = PANEL;
    const K_GROUP: usize = avx512_tile::K_GROUP;
    const WEIGHT_FLIP: u8 = avx512_tile::WEIGHT_FLIP;

    #[inline(always)]
    fn row_offset(self, row: &[i8]) -> i32 {
        intrinsics!(avx512_tile::row_offset(row))
    }

    #[inline(always)]
    fn tile(self, a: &[i8], inputs: usize, panel: &[Line], offsets: &[i32], tile: &mut Tile) {
        intrinsics!(avx512_tile::tile(a, inputs, panel, offsets, tile));
    }
}

/// The mask of the first `count` lanes, sixteen at most.
#[inline(always)]
fn first_lanes(count: usize) -> __mmask16 {
    assert!(count <= LANES);
    ((1u32 << count) - 1) as __mmask16
}
