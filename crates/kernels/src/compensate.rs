//! Rounding of a weight column by column, each error made good by the columns that follow.

use zeropoint_core::WeightBits;

use crate::Isa;
use crate::simd::{Kernel, LANES, Simd};

/// Columns whose errors are put off and then taken from all later columns together.
const BLOCK: usize = 32;
/// Later columns that are changed together.
const TOGETHER: usize = 4;

/// Rounds sixteen rows of a weight, and takes the error of each column from those behind it (Frantar et al. 2022, "GPTQ: Accurate
/// Post-Training Quantization for Generative Pre-trained Transformers", algorithm 1).
///
/// `columns` has the sixteen values of each column, in the order in which they are rounded; what is left of them is of no use.
/// `lower` is the lower triangle, row by row, of the transpose of the upper Cholesky factor `U` of the inverse of the second moments:
/// entry `j (j + 1) / 2 + i` is `U[i, j]`. `out` gets `clamp(round(w / scale), low, high)` of `grid`, halves to even. Of a finite
/// weight all numbers must stay finite. The same bits on every instruction set.
pub fn round_and_compensate(
    isa: Isa,
    columns: &mut [[f32; LANES]],
    lower: &[f32],
    grid: RoundingGrid<'_>,
    out: &mut [[i8; LANES]],
) {
    let count = columns.len();
    assert_eq!(lower.len(), count * (count + 1) / 2, "a triangle with a row for each column");
    assert_eq!(out.len(), count, "`out` is as long as `columns`");
    assert!(grid.groups.is_empty() || grid.groups.len() == count, "a group for each column, or one for all");
    isa.run(Round { columns, lower, grid, out });
}

/// The integers and scales of the sixteen rows.
#[derive(Debug, Clone, Copy)]
pub struct RoundingGrid<'a> {
    /// Of an integer.
    pub bits: WeightBits,
    /// Of each group of columns those of the rows.
    pub scales: &'a [[f32; ROUNDED_ROWS]],
    /// The group of each column, in the order of the columns; empty where all are of the first.
    pub groups: &'a [u32],
}

/// Rows that [`round_and_compensate`] takes at a time.
pub const ROUNDED_ROWS: usize = LANES;

struct Round<'a> {
    columns: &'a mut [[f32; LANES]],
    lower: &'a [f32],
    grid: RoundingGrid<'a>,
    out: &'a mut [[i8; LANES]],
}

/// A row of the triangle.
#[inline(always)]
fn row(lower: &[f32], j: usize) -> &[f32] {
    &lower[j * (j + 1) / 2..][..=j]
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Round { columns, lower, grid: RoundingGrid { bits, scales, groups }, out } = self;
        let (low, high) = bits.range();
        let (low, high) = (s.splat(f32::from(low)), s.splat(f32::from(high)));
        let mut errors = [[0f32; LANES]; BLOCK];
        for start in (0..columns.len()).step_by(BLOCK) {
            let end = columns.len().min(start + BLOCK);
            for j in start..end {
                let factors = row(lower, j);
                let mut w = s.load(&columns[j]);
                for (i, error) in (start..j).zip(&errors) {
                    w = s.mul_add(s.splat(-factors[i]), s.load(error), w);
                }
                let scale = s.load(&scales[groups.get(j).map_or(0, |group| *group as usize)]);
                let q = s.round(s.min(s.max(s.div(w, scale), low), high));
                s.store_i8(s.to_i32(q), &mut out[j]);
                let error = s.div(s.sub(w, s.mul(q, scale)), s.splat(factors[j]));
                s.store(error, &mut errors[j - start]);
            }
            let errors = &errors[..end - start];
            let mut j = end;
            while j + TOGETHER <= columns.len() {
                let mut sums = [s.splat(0.0); TOGETHER];
                let rows: [&[f32]; TOGETHER] = std::array::from_fn(|c| &row(lower, j + c)[start..end]);
                for c in 0..TOGETHER {
                    sums[c] = s.load(&columns[j + c]);
                }
                for (i, error) in errors.iter().enumerate() {
                    let error = s.load(error);
                    for c in 0..TOGETHER {
                        sums[c] = s.mul_add(s.splat(-rows[c][i]), error, sums[c]);
                    }
                }
                for c in 0..TOGETHER {
                    s.store(sums[c], &mut columns[j + c]);
                }
                j += TOGETHER;
            }
            for (j, column) in columns.iter_mut().enumerate().skip(j) {
                let mut sum = s.load(column);
                for (factor, error) in row(lower, j)[start..end].iter().zip(errors) {
                    sum = s.mul_add(s.splat(-factor), s.load(error), sum);
                }
                s.store(sum, column);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zeropoint_core::{Rng, quantize_weight};

    /// The algorithm as it is written down, one row at a time and one column after the other, in f64.
    fn by_definition(
        weights: &[f32],
        lower: &[f32],
        scale: impl Fn(usize) -> f32,
        bits: WeightBits,
    ) -> Vec<i8> {
        let mut w: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
        let mut out = Vec::new();
        for i in 0..w.len() {
            let q = quantize_weight(w[i] as f32, scale(i), bits);
            let error = (w[i] - f64::from(q) * f64::from(scale(i))) / f64::from(row(lower, i)[i]);
            for (j, w) in w.iter_mut().enumerate().skip(i + 1) {
                *w -= error * f64::from(row(lower, j)[i]);
            }
            out.push(q);
        }
        out
    }

    /// Of a problem: columns, a triangle with a positive diagonal, scales of groups, and the group of each column.
    struct Problem {
        columns: Vec<[f32; LANES]>,
        lower: Vec<f32>,
        scales: Vec<[f32; LANES]>,
        groups: Vec<u32>,
        bits: WeightBits,
    }

    impl Problem {
        fn grid(&self) -> RoundingGrid<'_> {
            RoundingGrid { bits: self.bits, scales: &self.scales, groups: &self.groups }
        }

        fn scale(&self, row: usize, column: usize) -> f32 {
            self.scales[self.groups.get(column).map_or(0, |group| *group as usize)][row]
        }
    }

    fn problem(rng: &mut Rng, count: usize) -> Problem {
        let columns = (0..count).map(|_| std::array::from_fn(|_| rng.normal() as f32)).collect();
        let entry = |i: usize, j: usize, rng: &mut Rng| {
            if i == j { 1.0 + rng.below(100) as f32 / 100.0 } else { rng.normal() as f32 * 0.05 }
        };
        let lower =
            (0..count).flat_map(|j| (0..=j).map(move |i| (i, j))).map(|(i, j)| entry(i, j, rng)).collect();
        let (bits, unit) =
            if rng.below(2) == 0 { (WeightBits::Eight, 0.01) } else { (WeightBits::Four, 0.2) };
        let scales = (0..3).map(|group| std::array::from_fn(|row| unit * (1.0 + (row + group) as f32 * 0.2)));
        let groups =
            if rng.below(2) == 0 { Vec::new() } else { (0..count).map(|_| rng.below(3) as u32).collect() };
        Problem { columns, lower, scales: scales.collect(), groups, bits }
    }

    #[test]
    fn it_is_the_algorithm_but_for_rounding() {
        for count in [1, 2, 31, 32, 33, 70, 131] {
            let problem = problem(&mut Rng::new(count as u64), count);
            let mut columns = problem.columns.clone();
            let rows: Vec<Vec<f32>> =
                (0..LANES).map(|row| columns.iter().map(|column| column[row]).collect()).collect();
            let mut out = vec![[0i8; LANES]; count];
            round_and_compensate(Isa::best(), &mut columns, &problem.lower, problem.grid(), &mut out);
            let mut differ = 0;
            for (row, weights) in rows.iter().enumerate() {
                let expected =
                    by_definition(weights, &problem.lower, |i| problem.scale(row, i), problem.bits);
                differ +=
                    out.iter().zip(&expected).filter(|(found, expected)| found[row] != **expected).count();
            }
            // An integer that lies between two flips, and moves some of those behind it.
            assert!(differ * 50 <= count * LANES, "{differ} of {}", count * LANES);
        }
    }

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_same_integers(count in 1usize..80, seed: u64) {
            let problem = problem(&mut Rng::new(seed), count);
            let run = |isa: Isa| {
                let (mut columns, mut out) = (problem.columns.clone(), vec![[0i8; LANES]; count]);
                round_and_compensate(isa, &mut columns, &problem.lower, problem.grid(), &mut out);
                (out, columns.iter().flatten().map(|w| w.to_bits()).collect::<Vec<_>>())
            };
            let expected = run(Isa::SCALAR);
            for isa in Isa::available() {
                prop_assert_eq!(&run(isa), &expected, "{}", isa);
            }
        }

        #[test]
        fn without_correlation_it_rounds_to_nearest(count in 1usize..80, seed: u64) {
            let mut problem = problem(&mut Rng::new(seed), count);
            for j in 0..count {
                problem.lower[j * (j + 1) / 2..][..j].fill(0.0);
            }
            let mut columns = problem.columns.clone();
            let nearest = |i: usize, row: usize| quantize_weight(columns[i][row], problem.scale(row, i), problem.bits);
            let expected: Vec<[i8; LANES]> =
                (0..count).map(|i| std::array::from_fn(|row| nearest(i, row))).collect();
            let mut out = vec![[0i8; LANES]; count];
            round_and_compensate(Isa::best(), &mut columns, &problem.lower, problem.grid(), &mut out);
            prop_assert_eq!(out, expected);
        }
    }
}
