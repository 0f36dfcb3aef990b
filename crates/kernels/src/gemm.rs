//! Exact integer products of INT8 activations and packed weights.

use std::ops::Range;

use crate::PackedWeights;
use crate::simd::{Kernel, Product, Simd};

/// Outputs of a packed panel, and the width of a tile.
pub(crate) const PANEL: usize = 64;

/// Rows of a tile: six rows of four 512-bit accumulators fill the register file and leave room for the operands.
pub(crate) const TILE_ROWS: usize = 6;

/// Sixty-four packed weights, aligned to a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [i8; 64]);

/// Begins at a cache line: a vector that crosses one cannot be read back before it has reached the cache.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Aligned<T>(pub(crate) T);

/// Sums of a tile.
pub(crate) type Tile = [[i32; PANEL]; TILE_ROWS];

/// Activations up to this many bytes are walked over again for each panel: they and the panel share the L2 cache.
const BLOCK_BYTES: usize = 512 << 10;
/// The most rows of such a block.
const BLOCK_ROWS: usize = 240;

/// `out[r, c] = sum over k of a[r, k] * w[c, k]`, exact.
///
/// `a` is `[rows, inputs]` and `out` is `[rows, outputs]`, both row-major; the bound on `inputs` in
/// [`PackedWeights::pack`] keeps every sum inside i32.
pub fn gemm_i32(a: &[i8], rows: usize, w: &PackedWeights, out: &mut [i32]) {
    assert_eq!(out.len(), rows * w.outputs(), "`out` is [rows, outputs]");
    let outputs = w.outputs();
    multiply(a, rows, w, 0..outputs, StoreSums { out, outputs, columns: 0..0 });
}

/// What becomes of the sums of a tile.
pub(crate) trait Finish {
    /// Called before the tiles of a panel, whose first column is `columns.start`; at most [`PANEL`] columns.
    fn begin_panel(&mut self, columns: Range<usize>, column_sums: &[i32; PANEL]);

    /// Takes the sums of the rows from `first_row` on.
    fn finish<S: Simd>(&mut self, simd: S, first_row: usize, sums: &[[i32; PANEL]]);
}

/// Runs all tiles of `a` (`[rows, inputs]`) against the columns, which begin at a panel.
pub(crate) fn multiply<T: Finish>(a: &[i8], rows: usize, w: &PackedWeights, columns: Range<usize>, to: T) {
    assert_eq!(a.len(), rows * w.inputs(), "`a` is [rows, inputs]");
    assert!(columns.start.is_multiple_of(PANEL), "the first column is a multiple of PackedWeights::PANEL");
    assert!(
        columns.start <= columns.end && columns.end <= w.outputs(),
        "the columns are outputs of the weight"
    );
    w.isa().run(Multiply { a, w, columns, to });
}

struct Multiply<'a, T> {
    a: &'a [i8],
    w: &'a PackedWeights,
    columns: Range<usize>,
    to: T,
}

impl<T: Finish> Kernel for Multiply<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (inputs, product) = (self.w.inputs(), simd.product());
        let block_rows = (BLOCK_BYTES / inputs).clamp(4 * TILE_ROWS, BLOCK_ROWS);
        let mut offsets = [0; BLOCK_ROWS];
        let Aligned(tile) = &mut Aligned([[0; PANEL]; TILE_ROWS]);
        for (index, block) in self.a.chunks(block_rows * inputs).enumerate() {
            let rows = block.len() / inputs;
            for (offset, row) in offsets.iter_mut().zip(block.chunks_exact(inputs)) {
                *offset = product.row_offset(row);
            }
            for start in self.columns.clone().step_by(PANEL) {
                let panel = start / PANEL;
                self.to.begin_panel(start..self.columns.end.min(start + PANEL), self.w.column_sums(panel));
                // Weights of a whole model are more than the second cache holds, and what fetches ahead by itself stops at
                // each page: the tiles of a panel ask for the next one. One row alone reads faster than what it asks for comes.
                let next = if rows == 1 { &[] } else { self.w.panel_after(panel) };
                let count = rows.div_ceil(TILE_ROWS);
                for (tile_index, range) in tiles(rows).enumerate() {
                    for line in &next[tile_index * next.len() / count..(tile_index + 1) * next.len() / count]
                    {
                        simd.prefetch(line);
                    }
                    let a = &block[range.start * inputs..range.end * inputs];
                    product.tile(a, inputs, self.w.panel(panel), &offsets[range.clone()], tile);
                    self.to.finish(simd, index * block_rows + range.start, &tile[..range.len()]);
                }
            }
        }
    }
}

/// Splits rows into tiles of nearly equal height: seven become 4 + 3, not 6 + 1.
fn tiles(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let count = rows.div_ceil(TILE_ROWS);
    (0..count).map(move |tile| tile * rows / count..(tile + 1) * rows / count)
}

struct StoreSums<'a> {
    out: &'a mut [i32],
    outputs: usize,
    columns: Range<usize>,
}

impl Finish for StoreSums<'_> {
    #[inline(always)]
    fn begin_panel(&mut self, columns: Range<usize>, _column_sums: &[i32; PANEL]) {
        self.columns = columns;
    }

    #[inline(always)]
    fn finish<S: Simd>(&mut self, _simd: S, first_row: usize, sums: &[[i32; PANEL]]) {
        for (out, sums) in self.out.chunks_exact_mut(self.outputs).skip(first_row).zip(sums) {
            out[self.columns.clone()].copy_from_slice(&sums[..self.columns.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use proptest::prelude::*;
    use zeropoint_core::Rng;

    fn random_i8(rng: &mut Rng, len: usize) -> Vec<i8> {
        (0..len).map(|_| rng.next_u64() as i8).collect()
    }

    fn reference(a: &[i8], w: &[i8], inputs: usize) -> Vec<i32> {
        let dot = |a: &[i8], w: &[i8]| a.iter().zip(w).map(|(&a, &w)| i32::from(a) * i32::from(w)).sum();
        a.chunks_exact(inputs).flat_map(|a| w.chunks_exact(inputs).map(move |w| dot(a, w))).collect()
    }

    fn check(a: &[i8], w: &[i8], rows: usize, inputs: usize, outputs: usize) {
        let expected = reference(a, w, inputs);
        for isa in Isa::available() {
            let packed = PackedWeights::pack(isa, w, outputs, inputs).unwrap();
            let mut out = vec![i32::MAX; rows * outputs];
            gemm_i32(a, rows, &packed, &mut out);
            assert!(out == expected, "{isa}: {rows} x {inputs} x {outputs}");
        }
    }

    #[test]
    fn products_are_exact_for_every_shape_of_the_edges() {
        let mut rng = Rng::new(1);
        for rows in [0, 1, 2, 3, 4, 5, 6, 7, 13] {
            for (inputs, outputs) in
                [(1, 1), (3, 64), (4, 65), (5, 63), (6, 17), (7, 128), (130, 130), (515, 1)]
            {
                let (a, w) = (random_i8(&mut rng, rows * inputs), random_i8(&mut rng, outputs * inputs));
                check(&a, &w, rows, inputs, outputs);
            }
        }
    }

    #[test]
    fn rows_beyond_one_block_are_exact() {
        let mut rng = Rng::new(2);
        for (rows, inputs, outputs) in [(250, 9, 70), (61, 11_000, 2)] {
            let (a, w) = (random_i8(&mut rng, rows * inputs), random_i8(&mut rng, outputs * inputs));
            check(&a, &w, rows, inputs, outputs);
        }
    }

    #[test]
    fn extremes_do_not_saturate() {
        for (x, y) in [(-128, -128), (-128, 127), (127, -128), (127, 127)] {
            for inputs in [1, 4, 514, 65_536] {
                check(&vec![x; 2 * inputs], &vec![y; 3 * inputs], 2, inputs, 3);
            }
        }
    }

    #[test]
    fn tiles_cover_the_rows_and_differ_by_one_at_most() {
        for rows in 0..100 {
            let heights: Vec<usize> = tiles(rows).map(|range| range.len()).collect();
            assert_eq!(heights.iter().sum::<usize>(), rows);
            assert!(heights.iter().all(|&height| (1..=TILE_ROWS).contains(&height)));
            assert!(heights.iter().max().unwrap_or(&0) - heights.iter().min().unwrap_or(&0) <= 1);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn products_are_exact(seed: u64, rows in 1usize..20, inputs in 1usize..70, outputs in 1usize..140) {
            let mut rng = Rng::new(seed);
            let (a, w) = (random_i8(&mut rng, rows * inputs), random_i8(&mut rng, outputs * inputs));
            check(&a, &w, rows, inputs, outputs);
        }
    }
}
