//! The integer product on AVX-512 VNNI.
//!
//! `vpdpbusd` multiplies groups of four u8 and i8 and adds them to an i32, without saturating. Weights are stored as
//! u8 = w + 128, so that activations are read as they are: a group of four is broadcast straight from the caller's row.
//! The surplus is 128 times the row's sum, and the accumulators begin at minus that.

use std::arch::x86_64::*;

use crate::gemm::{Line, PANEL, Tile};

/// Values of K that are multiplied at once.
pub(super) const K_GROUP: usize = 4;
/// XOR with this makes `w + 128`.
pub(super) const WEIGHT_FLIP: u8 = 0x80;
/// Accumulators of a row.
const VECTORS: usize = PANEL / 16;

/// `-128 * sum(row)`, for rows of 65536 values at most.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn row_offset(row: &[i8]) -> i32 {
    let (vectors, tail) = row.as_chunks::<64>();
    let mut sums = _mm512_setzero_si512();
    for vector in vectors {
        // SAFETY: the reference is to 64 bytes.
        let vector = unsafe { _mm512_loadu_si512(vector.as_ptr().cast()) };
        sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), vector);
    }
    let tail: i32 = tail.iter().map(|&x| i32::from(x)).sum();
    -128 * (_mm512_reduce_add_epi32(sums) + tail)
}

/// See [`crate::simd::Product::tile`].
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn tile(a: &[i8], inputs: usize, panel: &[Line], offsets: &[i32], tile: &mut Tile) {
    // Rows that are few have few accumulators: several sets of them keep the multipliers busy.
    match offsets.len() {
        1 => fixed_tile::<1, 4>(a, inputs, panel, offsets, tile),
        2 => fixed_tile::<2, 2>(a, inputs, panel, offsets, tile),
        3 => fixed_tile::<3, 1>(a, inputs, panel, offsets, tile),
        4 => fixed_tile::<4, 1>(a, inputs, panel, offsets, tile),
        5 => fixed_tile::<5, 1>(a, inputs, panel, offsets, tile),
        6 => fixed_tile::<6, 1>(a, inputs, panel, offsets, tile),
        rows => unreachable!("a tile of {rows} rows"),
    }
}

/// `ROWS` rows, `SETS` groups of K at a time with their own accumulators.
#[target_feature(enable = "avx512f,avx512vnni")]
fn fixed_tile<const ROWS: usize, const SETS: usize>(
    a: &[i8],
    inputs: usize,
    panel: &[Line],
    offsets: &[i32],
    tile: &mut Tile,
) {
    assert_eq!(a.len(), ROWS * inputs, "`a` is [ROWS, inputs]");
    assert_eq!(panel.len(), inputs.div_ceil(K_GROUP) * VECTORS, "four lines of the panel for each group");
    assert_eq!(offsets.len(), ROWS, "an offset for each row");
    let groups = inputs / K_GROUP;
    let mut sums = [[[_mm512_setzero_si512(); VECTORS]; ROWS]; SETS];
    for (sums, &offset) in sums[0].iter_mut().zip(offsets) {
        *sums = [_mm512_set1_epi32(offset); VECTORS];
    }
    let mut group = 0;
    while group + SETS <= groups {
        for (set, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `group + set < groups`: the panel has four lines for each group, and each of the ROWS rows of `a`
            // has K_GROUP bytes for it.
            unsafe {
                let weights = load_group(panel.as_ptr().add((group + set) * VECTORS));
                let a = a.as_ptr().add((group + set) * K_GROUP);
                for (row, sums) in sums.iter_mut().enumerate() {
                    multiply_add(sums, &weights, a.add(row * inputs).cast::<i32>().read_unaligned());
                }
            }
        }
        group += SETS;
    }
    // What the sets left over, and then a last group of which the row has a part.
    while group * K_GROUP < inputs {
        // SAFETY: `group < inputs.div_ceil(K_GROUP)`: the panel has four lines for it.
        let weights = unsafe { load_group(panel.as_ptr().add(group * VECTORS)) };
        for (sums, row) in sums[0].iter_mut().zip(a.chunks_exact(inputs)) {
            let mut bytes = [0; K_GROUP];
            let rest = &row[group * K_GROUP..];
            let count = rest.len().min(K_GROUP);
            bytes[..count].copy_from_slice(&rest[..count]);
            multiply_add(sums, &weights, i32::from_le_bytes(bytes.map(|byte| byte as u8)));
        }
        group += 1;
    }
    for row in 0..ROWS {
        for (vector, to) in tile[row].as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let sum = sums
                .iter()
                .skip(1)
                .fold(sums[0][row][vector], |sum, set| _mm512_add_epi32(sum, set[row][vector]));
            // SAFETY: the reference is to 64 bytes.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), sum) };
        }
    }
}

/// # Safety
/// `lines` points to four lines.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn load_group(lines: *const Line) -> [__m512i; VECTORS] {
    // SAFETY: as the caller promises; lines are aligned to 64 bytes.
    unsafe { std::array::from_fn(|i| _mm512_load_si512(lines.add(i).cast())) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply_add(sums: &mut [__m512i; VECTORS], weights: &[__m512i; VECTORS], activations: i32) {
    let activations = _mm512_set1_epi32(activations);
    for (sum, &weights) in sums.iter_mut().zip(weights) {
        *sum = _mm512_dpbusd_epi32(*sum, weights, activations);
    }
}
