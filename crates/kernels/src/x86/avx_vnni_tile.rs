//! The integer product of VNNI on 256-bit registers.
//!
//! `vpdpbusd` has two encodings of this width: that of AVX-VNNI, for processors without AVX-512, and that of AVX-512 VNNI
//! and VL. They compute the same, and the code here is generic over them. As in the tile of 512 bits, weights are
//! stored as u8 = w + 128 and the accumulators begin at -128 times the row's sum. There are half as many registers,
//! so that a panel is taken in strips of 16 columns.

use std::arch::x86_64::*;

use crate::gemm::{Line, PANEL, Tile};
use crate::simd::Product;

/// Values of K that are multiplied at once.
const K_GROUP: usize = 4;
/// Columns that are multiplied in one go: two accumulators for each of six rows leave registers for the operands.
const STRIP: usize = 16;
/// Accumulators of a row.
const VECTORS: usize = STRIP / 8;
const _: () = assert!(STRIP * K_GROUP == size_of::<Line>(), "a line is one group of a strip");

/// Proof that the machine has AVX2 and VNNI on its registers: [`Dpbusd::detect`] is the only way to get one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dpbusd(Found);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    AvxVnni(AvxVnni),
    Avx512Vnni(Avx512Vnni),
}

impl Dpbusd {
    pub(super) fn detect() -> Option<Self> {
        let avx_vnni = AvxVnni::detect().map(Found::AvxVnni);
        avx_vnni.or_else(|| Avx512Vnni::detect().map(Found::Avx512Vnni)).map(Self)
    }
}

impl Product for Dpbusd {
    const STRIP: usize = STRIP;
    const K_GROUP: usize = K_GROUP;
    const WEIGHT_FLIP: u8 = 0x80;

    #[inline(always)]
    fn row_offset(self, row: &[i8]) -> i32 {
        // SAFETY: `self` exists only where AVX2 was detected.
        unsafe { row_offset(row) }
    }

    #[inline(always)]
    fn tile(self, a: &[i8], inputs: usize, panel: &[Line], offsets: &[i32], tile: &mut Tile) {
        match self.0 {
            Found::AvxVnni(encoding) => encoding.tile(a, inputs, panel, offsets, tile),
            Found::Avx512Vnni(encoding) => encoding.tile(a, inputs, panel, offsets, tile),
        }
    }
}

/// An encoding of `vpdpbusd`; the value is the proof that the machine has it, and AVX2.
trait Encoding: Copy {
    /// Adds to each i32 of `sums` four products of u8 in `weights` and i8 in `activations`.
    fn dpbusd(self, sums: __m256i, weights: __m256i, activations: __m256i) -> __m256i;

    /// [`any_tile`], compiled for this encoding.
    fn tile(self, a: &[i8], inputs: usize, panel: &[Line], offsets: &[i32], tile: &mut Tile);
}

macro_rules! encoding {
    ($(#[$doc:meta])* $name:ident, $features:literal, $detected:expr, $dpbusd:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        struct $name(());

        impl $name {
            fn detect() -> Option<Self> {
                (is_x86_feature_detected!("avx2") && $detected).then_some(Self(()))
            }
        }

        impl Encoding for $name {
            #[inline(always)]
            fn dpbusd(self, sums: __m256i, weights: __m256i, activations: __m256i) -> __m256i {
                // SAFETY: `self` exists only where the encoding was detected.
                unsafe { $dpbusd(sums, weights, activations) }
            }

            fn tile(self, a: &[i8], inputs: usize, panel: &[Line], offsets: &[i32], tile: &mut Tile) {
                #[target_feature(enable = $features)]
                fn enabled(
                    encoding: $name,
                    a: &[i8],
                    inputs: usize,
                    panel: &[Line],
                    offsets: &[i32],
                    tile: &mut Tile,
                ) {
                    any_tile(encoding, a, inputs, panel, offsets, tile);
                }
                // SAFETY: `self` exists only where AVX2 and the encoding were detected.
                unsafe { enabled(self, a, inputs, panel, offsets, tile) }
            }
        }
    };
}

encoding!(
    /// VEX-encoded: AVX-VNNI.
    AvxVnni,
    "avx2,avxvnni",
    is_x86_feature_detected!("avxvnni"),
    _mm256_dpbusd_avx_epi32
);
encoding!(
    /// EVEX-encoded: AVX-512 VNNI and VL.
    Avx512Vnni,
    "avx2,avx512vnni,avx512vl",
    is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl"),
    _mm256_dpbusd_epi32
);

/// `-128 * sum(row)`, for rows of 65536 values at most.
#[target_feature(enable = "avx2")]
fn row_offset(row: &[i8]) -> i32 {
    let (vectors, tail) = row.as_chunks::<32>();
    let mut sums = _mm256_setzero_si256();
    for vector in vectors {
        // SAFETY: the reference is to 32 bytes.
        let vector = unsafe { _mm256_loadu_si256(vector.as_ptr().cast()) };
        // Flipping the sign bit makes `x + 128`, and the sum of absolute differences from 0 adds eight of them.
        let flipped = _mm256_xor_si256(vector, _mm256_set1_epi8(-128));
        sums = _mm256_add_epi64(sums, _mm256_sad_epu8(flipped, _mm256_setzero_si256()));
    }
    let mut lanes = [0i32; 8];
    // SAFETY: the reference is to 32 bytes.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums) };
    let sum = lanes.iter().sum::<i32>() - 128 * 32 * vectors.len() as i32;
    -128 * (sum + tail.iter().map(|&x| i32::from(x)).sum::<i32>())
}

/// See [`Product::tile`].
#[inline(always)]
fn any_tile<E: Encoding>(
    encoding: E,
    a: &[i8],
    inputs: usize,
    panel: &[Line],
    offsets: &[i32],
    tile: &mut Tile,
) {
    // Rows that are few have few accumulators: several sets of them keep the multipliers busy.
    match offsets.len() {
        1 => fixed_tile::<E, 1, 4>(encoding, a, inputs, panel, offsets, tile),
        2 => fixed_tile::<E, 2, 2>(encoding, a, inputs, panel, offsets, tile),
        3 => fixed_tile::<E, 3, 2>(encoding, a, inputs, panel, offsets, tile),
        4 => fixed_tile::<E, 4, 1>(encoding, a, inputs, panel, offsets, tile),
        5 => fixed_tile::<E, 5, 1>(encoding, a, inputs, panel, offsets, tile),
        6 => fixed_tile::<E, 6, 1>(encoding, a, inputs, panel, offsets, tile),
        rows => unreachable!("a tile of {rows} rows"),
    }
}

/// `ROWS` rows, `SETS` groups of K at a time with their own accumulators.
#[inline(always)]
fn fixed_tile<E: Encoding, const ROWS: usize, const SETS: usize>(
    encoding: E,
    a: &[i8],
    inputs: usize,
    panel: &[Line],
    offsets: &[i32],
    tile: &mut Tile,
) {
    assert_eq!(a.len(), ROWS * inputs, "`a` is [ROWS, inputs]");
    assert_eq!(offsets.len(), ROWS, "an offset for each row");
    let padded = inputs.div_ceil(K_GROUP);
    assert_eq!(panel.len(), padded * (PANEL / STRIP), "a line of the panel for each group of each strip");
    let groups = inputs / K_GROUP;
    for (strip, lines) in panel.chunks_exact(padded).enumerate() {
        // SAFETY: `encoding` exists only where AVX2 was detected.
        let mut sums = unsafe { [[[_mm256_setzero_si256(); VECTORS]; ROWS]; SETS] };
        for (sums, &offset) in sums[0].iter_mut().zip(offsets) {
            // SAFETY: as above.
            *sums = unsafe { [_mm256_set1_epi32(offset); VECTORS] };
        }
        let mut group = 0;
        while group + SETS <= groups {
            for (set, sums) in sums.iter_mut().enumerate() {
                let weights = load(encoding, &lines[group + set]);
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: `group + set < groups`: each of the ROWS rows of `a` has K_GROUP bytes for it.
                    let activations = unsafe {
                        let first = a.as_ptr().add(row * inputs + (group + set) * K_GROUP);
                        first.cast::<i32>().read_unaligned()
                    };
                    multiply_add(encoding, sums, &weights, activations);
                }
            }
            group += SETS;
        }
        // What the sets left over, and then a last group of which the row has a part.
        for (group, line) in lines.iter().enumerate().skip(group) {
            let weights = load(encoding, line);
            for (sums, row) in sums[0].iter_mut().zip(a.chunks_exact(inputs)) {
                let mut bytes = [0; K_GROUP];
                for (byte, &x) in bytes.iter_mut().zip(&row[group * K_GROUP..]) {
                    *byte = x as u8;
                }
                multiply_add(encoding, sums, &weights, i32::from_le_bytes(bytes));
            }
        }
        for row in 0..ROWS {
            let (to, _) = tile[row][strip * STRIP..].as_chunks_mut::<8>();
            for (vector, to) in to.iter_mut().take(VECTORS).enumerate() {
                // SAFETY: as above; the reference is to 32 bytes.
                unsafe {
                    let sum = sums
                        .iter()
                        .skip(1)
                        .fold(sums[0][row][vector], |sum, set| _mm256_add_epi32(sum, set[row][vector]));
                    _mm256_storeu_si256(to.as_mut_ptr().cast(), sum);
                }
            }
        }
    }
}

#[inline(always)]
fn load<E: Encoding>(_encoding: E, line: &Line) -> [__m256i; VECTORS] {
    let vectors = std::ptr::from_ref(line).cast::<__m256i>();
    // SAFETY: the encoding exists only where AVX2 was detected; a line is two vectors of 32 bytes, aligned to 64.
    unsafe { [_mm256_load_si256(vectors), _mm256_load_si256(vectors.add(1))] }
}

#[inline(always)]
fn multiply_add<E: Encoding>(
    encoding: E,
    sums: &mut [__m256i; VECTORS],
    weights: &[__m256i; VECTORS],
    activations: i32,
) {
    // SAFETY: the encoding exists only where AVX2 was detected.
    let activations = unsafe { _mm256_set1_epi32(activations) };
    for (sum, &weights) in sums.iter_mut().zip(weights) {
        *sum = encoding.dpbusd(*sum, weights, activations);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::TILE_ROWS;
    use crate::pack::position;
    use zeropoint_core::Rng;

    fn check<E: Encoding>(encoding: Option<E>, fill: impl Fn(&mut Rng) -> (i8, i8)) {
        let Some(encoding) = encoding else { return };
        let mut rng = Rng::new(7);
        for inputs in [1, 3, 4, 5, 8, 15, 16, 31, 33, 515] {
            let mut w = vec![[0; PANEL]; inputs];
            let mut panel =
                vec![Line([Dpbusd::WEIGHT_FLIP as i8; 64]); inputs.div_ceil(K_GROUP) * (PANEL / STRIP)];
            for (k, row) in w.iter_mut().enumerate() {
                for (column, w) in row.iter_mut().enumerate() {
                    *w = fill(&mut rng).1;
                    let at = position::<Dpbusd>(k, column, inputs.next_multiple_of(K_GROUP));
                    panel[at / 64].0[at % 64] = (*w as u8 ^ Dpbusd::WEIGHT_FLIP) as i8;
                }
            }
            for rows in 1..=TILE_ROWS {
                let a: Vec<i8> = (0..rows * inputs).map(|_| fill(&mut rng).0).collect();
                // SAFETY: `encoding` exists only where AVX2 was detected.
                let offsets: Vec<i32> =
                    a.chunks_exact(inputs).map(|row| unsafe { row_offset(row) }).collect();
                let mut tile = [[i32::MAX; PANEL]; TILE_ROWS];
                encoding.tile(&a, inputs, &panel, &offsets, &mut tile);
                for (row, (a, sums)) in a.chunks_exact(inputs).zip(&tile).enumerate() {
                    for (column, &sum) in sums.iter().enumerate() {
                        let expected: i32 =
                            a.iter().zip(&w).map(|(&a, w)| i32::from(a) * i32::from(w[column])).sum();
                        assert_eq!(sum, expected, "{rows} rows of {inputs}: row {row}, column {column}");
                    }
                }
            }
        }
    }

    /// Whatever encoding [`Dpbusd`] takes on this machine, the other one is tested too where the machine has it.
    #[test]
    fn both_encodings_are_exact() {
        let random = |rng: &mut Rng| (rng.next_u64() as i8, rng.next_u64() as i8);
        check(AvxVnni::detect(), random);
        check(Avx512Vnni::detect(), random);
        for extremes in [(-128, -128), (-128, 127), (127, -128), (127, 127)] {
            check(AvxVnni::detect(), |_| extremes);
            check(Avx512Vnni::detect(), |_| extremes);
        }
    }
}
