//! The product of float rows with a weight of small integers and their scales: weight-only quantisation.

use std::ops::Range;

use zeropoint_core::WeightBits;

use crate::gemm::{Aligned, Line, PANEL};
use crate::pages::Lines;
use crate::simd::{Kernel, LANES, Simd};
use crate::{Isa, PackError};

/// Columns of a row whose products are added up before they are scaled.
const BLOCK: usize = 64;

/// Rows that go through a panel together: each block of the weight is unpacked once for them.
const ROWS: usize = 48;

/// Rows whose sums are in registers together.
const TILE: usize = 6;

/// Vectors of a panel.
const VECTORS: usize = PANEL / LANES;

/// A weight of 4-bit or 8-bit integers, packed, with a scale for each output and group of neighbouring inputs.
///
/// Outputs stand in panels of [`WeightOnlyMatrix::PANEL`], and within a panel column after column: a product reads its memory
/// from one end to the other. What is missing to a whole panel is filled with zeros. The layout is the same on all instruction
/// sets.
#[derive(Debug, Clone)]
pub struct WeightOnlyMatrix {
    bits: WeightBits,
    outputs: usize,
    inputs: usize,
    /// Inputs of a group.
    group: usize,
    lines: Lines,
    lines_per_panel: usize,
    /// `[panels, groups]`: the scales of a panel's outputs, 0 beyond the last.
    scales: Vec<[f32; PANEL]>,
}

impl WeightOnlyMatrix {
    /// Outputs of one panel: the unit in which a product can be split over threads.
    pub const PANEL: usize = PANEL;

    /// Packs `q`, row-major `[outputs, inputs]`, with `scales`, row-major `[outputs, groups]`: every `inputs / groups`
    /// neighbouring values of a row share one.
    pub fn pack(
        q: &[i8],
        (outputs, inputs): (usize, usize),
        bits: WeightBits,
        scales: &[f32],
    ) -> Result<Self, PackError> {
        if outputs == 0 || inputs == 0 {
            return Err(PackError::Empty { outputs, inputs });
        }
        if outputs.checked_mul(inputs) != Some(q.len()) {
            return Err(PackError::Length { outputs, inputs, len: q.len() });
        }
        let groups = scales.len() / outputs;
        if groups == 0 || groups * outputs != scales.len() || !inputs.is_multiple_of(groups) {
            return Err(PackError::Scales { outputs, inputs, len: scales.len() });
        }
        if let Some(&value) = q.iter().find(|value| !bits.holds(**value)) {
            return Err(PackError::Value { value, bits: bits.width() });
        }
        let panels = outputs.div_ceil(PANEL);
        let lines_per_panel = match bits {
            WeightBits::Eight => inputs,
            WeightBits::Four => inputs.div_ceil(2),
        };
        let mut lines = Lines::filled(Line([0; PANEL]), panels * lines_per_panel);
        for (output, row) in q.chunks_exact(inputs).enumerate() {
            let panel = &mut lines[output / PANEL * lines_per_panel..][..lines_per_panel];
            for (column, value) in row.iter().enumerate() {
                let output = output % PANEL;
                match bits {
                    WeightBits::Eight => panel[column].0[output] = *value,
                    WeightBits::Four => {
                        // Half a line a column; the low halves of sixteen bytes are one vector, the high ones the next.
                        let (pair, lane) = (output / (2 * LANES), output % LANES);
                        let byte =
                            &mut panel[column / 2].0[(column % 2 * (VECTORS / 2) + pair) * LANES + lane];
                        *byte |= if (output / LANES).is_multiple_of(2) { value & 0xf } else { value << 4 };
                    }
                }
            }
        }
        let mut by_panel = vec![[0.0; PANEL]; panels * groups];
        for (output, row) in scales.chunks_exact(groups).enumerate() {
            for (group, scale) in row.iter().enumerate() {
                by_panel[output / PANEL * groups + group][output % PANEL] = *scale;
            }
        }
        let group = inputs / groups;
        Ok(Self { bits, outputs, inputs, group, lines, lines_per_panel, scales: by_panel })
    }

    /// Rows of the weight: the width of the product.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the weight: the length of each sum.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.lines) + size_of_val(self.scales.as_slice())
    }

    fn panel(&self, index: usize) -> Panel<'_> {
        let groups = self.inputs / self.group;
        Panel {
            bits: self.bits,
            group: self.group,
            lines: &self.lines[index * self.lines_per_panel..][..self.lines_per_panel],
            scales: &self.scales[index * groups..][..groups],
        }
    }
}

/// `out[r, c - columns.start] = sum over k of x[r, k] * q[c, k] * scale[c, k]` for the outputs in `columns`.
///
/// `x` is `[rows, inputs]`. `columns.start` is a multiple of [`WeightOnlyMatrix::PANEL`], and rows of `out` begin every
/// `out_stride` values, of which those past the columns are left alone.
///
/// A row's columns are taken in blocks of up to 64 that do not cross a group: the products `x * q` of a block are added up in
/// order, each step a fused operation from 0 on, and then the sums of the blocks times their scales, in order and fused as
/// well. So results are equal bit for bit on all instruction sets, and do not depend on which rows or outputs are computed
/// together. The error is at most `2^-24 * (65 + blocks)` times the sum of the magnitudes of `x * q * scale`, apart from f32's
/// overflow and underflow.
pub fn weight_only_product(
    isa: Isa,
    x: &[f32],
    rows: usize,
    w: &WeightOnlyMatrix,
    columns: Range<usize>,
    out: &mut [f32],
    out_stride: usize,
) {
    assert_eq!(x.len(), rows * w.inputs, "`x` is [rows, inputs]");
    assert!(columns.start.is_multiple_of(PANEL), "the first column is a multiple of WeightOnlyMatrix::PANEL");
    assert!(
        columns.start <= columns.end && columns.end <= w.outputs,
        "the columns are outputs of the weight"
    );
    assert!(out_stride >= columns.len(), "a row of `out` holds all columns");
    if rows == 0 || columns.is_empty() {
        return;
    }
    assert!(out.len() >= (rows - 1) * out_stride + columns.len(), "`out` holds all rows");
    isa.run(Product { x, w, columns, out, stride: out_stride });
}

struct Product<'a> {
    x: &'a [f32],
    w: &'a WeightOnlyMatrix,
    columns: Range<usize>,
    out: &'a mut [f32],
    stride: usize,
}

impl Kernel for Product<'_> {
    type Output = ();

    const USES_PRODUCT: bool = false;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, w, columns, out, stride } = self;
        if x.len() == w.inputs {
            for start in columns.clone().step_by(PANEL) {
                let panel = w.panel(start / PANEL);
                let totals = match w.bits {
                    WeightBits::Four => panel.one_row::<S, Nibbles>(s, x),
                    WeightBits::Eight => panel.one_row::<S, Bytes>(s, x),
                };
                let out = &mut out[start - columns.start..columns.len().min(start - columns.start + PANEL)];
                for (out, totals) in out.chunks_mut(LANES).zip(totals) {
                    s.store_some(totals, out);
                }
            }
            return;
        }
        let Aligned(unpacked) = &mut Aligned([[0.0; PANEL]; BLOCK]);
        let Aligned(totals) = &mut Aligned([[0.0; PANEL]; ROWS]);
        for (x, out) in x.chunks(ROWS * w.inputs).zip(out.chunks_mut(ROWS * stride)) {
            let totals = &mut totals[..x.len() / w.inputs];
            for start in columns.clone().step_by(PANEL) {
                w.panel(start / PANEL).rows(s, x, w.inputs, unpacked, totals);
                let place = start - columns.start..columns.len().min(start - columns.start + PANEL);
                for (out, totals) in out.chunks_mut(stride).zip(&*totals) {
                    out[place.clone()].copy_from_slice(&totals[..place.len()]);
                }
            }
        }
    }
}

/// How the integers of a panel's column lie in its lines.
trait Column {
    /// As f32, output after output.
    fn load<S: Simd>(s: S, lines: &[Line], column: usize) -> [S::F; VECTORS];
}

/// A byte each.
struct Bytes;

impl Column for Bytes {
    #[inline(always)]
    fn load<S: Simd>(s: S, lines: &[Line], column: usize) -> [S::F; VECTORS] {
        let mut values = [s.splat(0.0); VECTORS];
        for (values, bytes) in values.iter_mut().zip(lines[column].0.as_chunks::<LANES>().0) {
            *values = s.to_f32(s.load_i8(bytes));
        }
        values
    }
}

/// Half a byte each.
struct Nibbles;

impl Column for Nibbles {
    #[inline(always)]
    fn load<S: Simd>(s: S, lines: &[Line], column: usize) -> [S::F; VECTORS] {
        let bytes = lines[column / 2].0.as_chunks::<LANES>().0;
        let first = column % 2 * (VECTORS / 2);
        let ([a, b], [c, d]) = (s.load_i4(&bytes[first]), s.load_i4(&bytes[first + 1]));
        [a, b, c, d]
    }
}

/// Sixty-four outputs of a weight.
struct Panel<'a> {
    bits: WeightBits,
    group: usize,
    lines: &'a [Line],
    /// One for each group.
    scales: &'a [[f32; PANEL]],
}

impl Panel<'_> {
    /// The products with one row.
    #[inline(always)]
    fn one_row<S: Simd, C: Column>(&self, s: S, x: &[f32]) -> [S::F; VECTORS] {
        let mut totals = [s.splat(0.0); VECTORS];
        let mut column = 0;
        for (x, scales) in x.chunks_exact(self.group).zip(self.scales) {
            for x in x.chunks(BLOCK) {
                let mut sums = [s.splat(0.0); VECTORS];
                for x in x {
                    let (x, values) = (s.splat(*x), C::load(s, self.lines, column));
                    for i in 0..VECTORS {
                        sums[i] = s.mul_add(x, values[i], sums[i]);
                    }
                    column += 1;
                }
                let scales = scales.as_chunks::<LANES>().0;
                for i in 0..VECTORS {
                    totals[i] = s.mul_add(sums[i], s.load(&scales[i]), totals[i]);
                }
            }
        }
        totals
    }

    /// The products with `totals.len()` rows of `inputs` values, a block of columns after the other, through `unpacked`.
    #[inline(always)]
    fn rows<S: Simd>(
        &self,
        s: S,
        x: &[f32],
        inputs: usize,
        unpacked: &mut [[f32; PANEL]; BLOCK],
        totals: &mut [[f32; PANEL]],
    ) {
        totals.fill([0.0; PANEL]);
        for (group, scales) in self.scales.iter().enumerate() {
            let end = (group + 1) * self.group;
            for start in (group * self.group..end).step_by(BLOCK) {
                let block = &mut unpacked[..BLOCK.min(end - start)];
                match self.bits {
                    WeightBits::Four => self.unpack::<S, Nibbles>(s, start, block),
                    WeightBits::Eight => self.unpack::<S, Bytes>(s, start, block),
                }
                add_block(s, &x[start..], inputs, block, scales, totals);
            }
        }
    }

    /// The integers of the columns from `start` on.
    #[inline(always)]
    fn unpack<S: Simd, C: Column>(&self, s: S, start: usize, block: &mut [[f32; PANEL]]) {
        for (column, values) in (start..).zip(block) {
            let loaded = C::load(s, self.lines, column);
            for (to, vector) in values.as_chunks_mut::<LANES>().0.iter_mut().zip(loaded) {
                s.store(vector, to);
            }
        }
    }
}

/// Adds the products of a block of columns to those of all rows; `x` begins at the block in the first row.
#[inline(always)]
fn add_block<S: Simd>(
    s: S,
    x: &[f32],
    inputs: usize,
    block: &[[f32; PANEL]],
    scales: &[f32; PANEL],
    totals: &mut [[f32; PANEL]],
) {
    let tiles = totals.len().div_ceil(TILE);
    for tile in 0..tiles {
        let rows = tile * totals.len() / tiles..(tile + 1) * totals.len() / tiles;
        let (x, totals) = (&x[rows.start * inputs..], &mut totals[rows]);
        match totals.len() {
            TILE => add_rows::<S, TILE>(s, x, inputs, block, scales, totals),
            5 => add_rows::<S, 5>(s, x, inputs, block, scales, totals),
            4 => add_rows::<S, 4>(s, x, inputs, block, scales, totals),
            3 => add_rows::<S, 3>(s, x, inputs, block, scales, totals),
            2 => add_rows::<S, 2>(s, x, inputs, block, scales, totals),
            _ => add_rows::<S, 1>(s, x, inputs, block, scales, totals),
        }
    }
}

/// [`add_block`] of R rows, with as many sums as the registers hold beside a column of the block: of a whole panel, or of a
/// vector of it. With fewer rows each value of a column would be loaded for fewer products.
#[inline(always)]
fn add_rows<S: Simd, const R: usize>(
    s: S,
    x: &[f32],
    inputs: usize,
    block: &[[f32; PANEL]],
    scales: &[f32; PANEL],
    totals: &mut [[f32; PANEL]],
) {
    if S::WIDE {
        add_tile::<S, R, VECTORS>(s, x, inputs, block, scales, totals);
    } else {
        add_tile::<S, R, 1>(s, x, inputs, block, scales, totals);
    }
}

/// [`add_block`] of R rows, V vectors of outputs at a time.
#[inline(always)]
fn add_tile<S: Simd, const R: usize, const V: usize>(
    s: S,
    x: &[f32],
    inputs: usize,
    block: &[[f32; PANEL]],
    scales: &[f32; PANEL],
    totals: &mut [[f32; PANEL]],
) {
    let mut rows = [x; R];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = &x[r * inputs..][..block.len()];
    }
    for first in (0..VECTORS).step_by(V) {
        let mut sums = [[s.splat(0.0); V]; R];
        for (k, column) in block.iter().enumerate() {
            let column = &column.as_chunks::<LANES>().0[first..first + V];
            for (sums, row) in sums.iter_mut().zip(rows) {
                let x = s.splat(row[k]);
                for (sum, values) in sums.iter_mut().zip(column) {
                    *sum = s.mul_add(x, s.load(values), *sum);
                }
            }
        }
        let scales = &scales.as_chunks::<LANES>().0[first..first + V];
        for (sums, totals) in sums.iter().zip(&mut *totals) {
            let totals = &mut totals.as_chunks_mut::<LANES>().0[first..first + V];
            for ((sum, scales), total) in sums.iter().zip(scales).zip(totals) {
                s.store(s.mul_add(*sum, s.load(scales), s.load(total)), total);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zeropoint_core::Rng;

    struct Case {
        bits: WeightBits,
        outputs: usize,
        inputs: usize,
        groups: usize,
        q: Vec<i8>,
        scales: Vec<f32>,
        x: Vec<f32>,
    }

    impl Case {
        fn new(
            bits: WeightBits,
            rows: usize,
            outputs: usize,
            group: usize,
            groups: usize,
            seed: u64,
        ) -> Self {
            let mut rng = Rng::new(seed);
            let inputs = group * groups;
            let mut integer = || {
                let value = rng.next_u64() as i8;
                if bits == WeightBits::Four { value >> 4 } else { value }
            };
            let q = (0..outputs * inputs).map(|_| integer()).collect();
            let scales = (0..outputs * groups).map(|_| 1e-4 + 0.01 * rng.uniform() as f32).collect();
            let x = (0..rows * inputs).map(|_| rng.normal() as f32).collect();
            Self { bits, outputs, inputs, groups, q, scales, x }
        }

        fn pack(&self) -> WeightOnlyMatrix {
            WeightOnlyMatrix::pack(&self.q, (self.outputs, self.inputs), self.bits, &self.scales).unwrap()
        }

        /// The definition, one value after the other.
        fn expected(&self, row: &[f32], output: usize) -> f32 {
            let size = self.inputs / self.groups;
            let q = &self.q[output * self.inputs..][..self.inputs];
            let mut total = 0f32;
            for (group, (x, q)) in row.chunks(size).zip(q.chunks(size)).enumerate() {
                for (x, q) in x.chunks(64).zip(q.chunks(64)) {
                    let sum = x.iter().zip(q).fold(0f32, |sum, (x, q)| x.mul_add(f32::from(*q), sum));
                    total = sum.mul_add(self.scales[output * self.groups + group], total);
                }
            }
            total
        }
    }

    fn bits_of(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    fn widths() -> impl Strategy<Value = WeightBits> {
        prop_oneof![Just(WeightBits::Four), Just(WeightBits::Eight)]
    }

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_bits_of_the_definition(
            bits in widths(), rows in prop_oneof![1usize..8, Just(50), Just(97)], outputs in 1usize..200,
            group in prop_oneof![1usize..100, Just(32), Just(64), Just(128)], groups in 1usize..4, seed: u64,
        ) {
            let case = Case::new(bits, rows, outputs, group, groups, seed);
            let packed = case.pack();
            let rows_of_x = || case.x.chunks(case.inputs);
            let expected: Vec<f32> = rows_of_x()
                .flat_map(|row| (0..outputs).map(|output| case.expected(row, output)).collect::<Vec<_>>())
                .collect();
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; rows * outputs];
                weight_only_product(isa, &case.x, rows, &packed, 0..outputs, &mut out, outputs);
                prop_assert_eq!(bits_of(&out), bits_of(&expected), "{}", isa);
                let mut alone = vec![f32::NAN; rows * outputs];
                for (row, out) in rows_of_x().zip(alone.chunks_mut(outputs)) {
                    for (start, out) in (0..outputs).step_by(PANEL).zip(out.chunks_mut(PANEL)) {
                        let (columns, count) = (start..start + out.len(), out.len());
                        weight_only_product(isa, row, 1, &packed, columns, out, count);
                    }
                }
                prop_assert_eq!(bits_of(&alone), bits_of(&expected), "{}: in parts", isa);
            }
        }

        #[test]
        fn the_error_is_within_its_bound(
            bits in widths(), group in prop_oneof![1usize..100, Just(128), Just(1000)], groups in 1usize..6, seed: u64,
        ) {
            let case = Case::new(bits, 2, 3, group, groups, seed);
            let mut out = [0f32; 6];
            weight_only_product(Isa::best(), &case.x, 2, &case.pack(), 0..3, &mut out, 3);
            let blocks = groups * group.div_ceil(64);
            for (i, found) in out.iter().enumerate() {
                let (row, output) = (&case.x[i / 3 * case.inputs..][..case.inputs], i % 3);
                let product = |k: usize| {
                    let scale = case.scales[output * groups + k / group];
                    f64::from(row[k]) * f64::from(case.q[output * case.inputs + k]) * f64::from(scale)
                };
                let exact: f64 = (0..case.inputs).map(product).sum();
                let magnitude: f64 = (0..case.inputs).map(|k| product(k).abs()).sum();
                let bound = 2f64.powi(-24) * (65 + blocks) as f64 * magnitude;
                let error = (f64::from(*found) - exact).abs();
                prop_assert!(error <= bound, "off by {} of {}", error, bound);
            }
        }
    }

    #[test]
    fn a_part_of_the_outputs_leaves_the_rest_of_the_rows_alone() {
        let case = Case::new(WeightBits::Four, 3, 150, 32, 2, 7);
        let (packed, mut whole) = (case.pack(), vec![0.0; 3 * 150]);
        weight_only_product(Isa::best(), &case.x, 3, &packed, 0..150, &mut whole, 150);
        for rows in [1, 3] {
            let mut part = vec![7.0; (rows - 1) * 40 + 22];
            weight_only_product(Isa::best(), &case.x[..rows * 64], rows, &packed, 128..150, &mut part, 40);
            for (part, whole) in part.chunks(40).zip(whole.chunks(150)) {
                assert_eq!(part[..22], whole[128..]);
                assert!(part[22..].iter().all(|value| *value == 7.0));
            }
        }
        weight_only_product(Isa::best(), &[], 0, &packed, 0..150, &mut [], 150);
        weight_only_product(Isa::best(), &case.x, 3, &packed, 128..128, &mut [], 150);
    }

    #[test]
    fn a_weight_takes_the_bytes_of_its_integers_and_scales() {
        for (bits, bytes) in [(WeightBits::Eight, 128 * 96), (WeightBits::Four, 128 * 96 / 2)] {
            let packed = Case::new(bits, 0, 65, 32, 3, 1).pack();
            assert_eq!((packed.outputs(), packed.inputs()), (65, 96));
            assert_eq!(packed.bytes(), bytes + 128 * 3 * size_of::<f32>());
        }
    }

    #[test]
    fn sizes_and_values_that_cannot_be_packed_are_refused() {
        use WeightBits::{Eight, Four};
        let pack = |q: &[i8], size, bits, scales: &[f32]| {
            WeightOnlyMatrix::pack(q, size, bits, scales).map(drop).unwrap_err().to_string()
        };
        let cases = [
            (pack(&[], (0, 3), Eight, &[]), "has no values"),
            (pack(&[], (3, 0), Eight, &[]), "has no values"),
            (pack(&[0; 5], (2, 3), Eight, &[1.0; 2]), "cannot have 5 values"),
            (pack(&[0; 5], (usize::MAX, 2), Eight, &[1.0; 2]), "cannot have 5 values"),
            (pack(&[0; 6], (2, 3), Eight, &[]), "cannot have 0 scales"),
            (pack(&[0; 6], (2, 3), Eight, &[1.0; 3]), "cannot have 3 scales"),
            (pack(&[0; 6], (2, 3), Eight, &[1.0; 4]), "cannot have 4 scales"),
            (pack(&[0, 8], (1, 2), Four, &[1.0]), "holds 8"),
            (pack(&[-9, 0], (1, 2), Four, &[1.0]), "holds -9"),
        ];
        for (message, expected) in cases {
            assert!(message.contains(expected), "{message}");
        }
    }
}
