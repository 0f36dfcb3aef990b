//! The product of a float matrix and one vector, which takes as long as reading the matrix does.

use crate::Isa;
use crate::simd::{Kernel, LANES, Simd};

/// Vectors whose products are added up apart from each other, so that no sum waits for the one before. Rows go through one
/// after the other: several at a time are several streams within a page, which processors fetch less far ahead.
const SUMS: usize = 4;

/// The numbers of a matrix, row-major.
#[derive(Debug, Clone, Copy)]
pub enum MatrixValues<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// The bits of bfloat16 numbers, which f32 holds exactly.
    Bf16(&'a [u16]),
}

/// A number of a matrix.
trait Value: Copy {
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F;
    fn load_some<S: Simd>(s: S, from: &[Self]) -> S::F;
}

impl Value for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F {
        s.load(from)
    }

    #[inline(always)]
    fn load_some<S: Simd>(s: S, from: &[Self]) -> S::F {
        s.load_some(from, 0.0)
    }
}

impl Value for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F {
        s.load_bf16(from)
    }

    #[inline(always)]
    fn load_some<S: Simd>(s: S, from: &[Self]) -> S::F {
        let mut whole = [0; LANES];
        whole[..from.len()].copy_from_slice(from);
        Self::load(s, &whole)
    }
}

/// `out[r] = sum over c of matrix[r][c] * x[c]` for a `matrix` of `[out.len(), x.len()]`, row-major.
///
/// Columns are added up by their index modulo 64, in order and each step a fused operation, and then these 64 sums; so results are
/// equal bit for bit on all instruction sets and do not depend on which rows are computed together. The error is at most
/// `2^-24 * (columns / 64 + 8)` times the sum of the products' magnitudes.
pub fn matrix_vector(isa: Isa, matrix: MatrixValues<'_>, x: &[f32], out: &mut [f32]) {
    let len = match matrix {
        MatrixValues::F32(matrix) => matrix.len(),
        MatrixValues::Bf16(matrix) => matrix.len(),
    };
    assert!(!x.is_empty(), "a row has columns");
    assert_eq!(len, x.len() * out.len(), "`matrix` is [out.len(), x.len()]");
    match matrix {
        MatrixValues::F32(matrix) => isa.run(MatrixVector { matrix, x, out }),
        MatrixValues::Bf16(matrix) => isa.run(MatrixVector { matrix, x, out }),
    }
}

struct MatrixVector<'a, W> {
    matrix: &'a [W],
    x: &'a [f32],
    out: &'a mut [f32],
}

impl<W: Value> Kernel for MatrixVector<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { matrix, x, out } = self;
        for (row, out) in matrix.chunks_exact(x.len()).zip(out) {
            *out = dot(s, row, x);
        }
    }
}

/// The product of a row and `x`.
#[inline(always)]
fn dot<S: Simd, W: Value>(s: S, row: &[W], x: &[f32]) -> f32 {
    let mut sums = [s.splat(0.0); SUMS];
    let whole = x.len() / (SUMS * LANES) * (SUMS * LANES);
    for (row, x) in row[..whole].chunks_exact(SUMS * LANES).zip(x[..whole].chunks_exact(SUMS * LANES)) {
        let (values, vectors) = (row.as_chunks::<LANES>().0, x.as_chunks::<LANES>().0);
        for i in 0..SUMS {
            sums[i] = s.mul_add(W::load(s, &values[i]), s.load(&vectors[i]), sums[i]);
        }
    }
    let rest = row[whole..].chunks(LANES).zip(x[whole..].chunks(LANES));
    for ((row, x), sum) in rest.zip(&mut sums) {
        *sum = s.mul_add(W::load_some(s, row), s.load_some(x, 0.0), *sum);
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zeropoint_core::Rng;

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_same_bits_near_the_definition(
            rows in 1usize..20, columns in prop_oneof![1usize..100, Just(576)], seed: u64,
        ) {
            let mut rng = Rng::new(seed);
            let mut normal = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.normal() as f32).collect() };
            let (matrix, x) = (normal(rows * columns), normal(columns));
            let halves: Vec<u16> = matrix.iter().map(|v| (v.to_bits() >> 16) as u16).collect();
            let rounded: Vec<f32> = halves.iter().map(|bits| f32::from_bits(u32::from(*bits) << 16)).collect();
            let mut first: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; rows];
                matrix_vector(isa, MatrixValues::F32(&matrix), &x, &mut out);
                for (row, found) in matrix.chunks_exact(columns).zip(&out) {
                    let products = || row.iter().zip(&x).map(|(a, b)| f64::from(*a) * f64::from(*b));
                    let magnitude: f64 = products().map(f64::abs).sum();
                    let bound = 2f64.powi(-24) * (columns as f64 / 64.0 + 8.0) * magnitude;
                    let error = (f64::from(*found) - products().sum::<f64>()).abs();
                    prop_assert!(error <= bound, "{}: off by {} of {}", isa, error, bound);
                }
                let mut apart = vec![0.0; rows];
                for (row, out) in matrix.chunks_exact(columns).zip(apart.chunks_exact_mut(1)) {
                    matrix_vector(isa, MatrixValues::F32(row), &x, out);
                }
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(&apart), bits(&out), "{}: row by row", isa);
                let (mut narrow, mut wide) = (vec![0.0; rows], vec![0.0; rows]);
                matrix_vector(isa, MatrixValues::Bf16(&halves), &x, &mut narrow);
                matrix_vector(isa, MatrixValues::F32(&rounded), &x, &mut wide);
                prop_assert_eq!(bits(&narrow), bits(&wide), "{}: bfloat16", isa);
                let first = first.get_or_insert_with(|| out.clone());
                prop_assert_eq!(bits(first), bits(&out), "{}", isa);
            }
        }
    }
}
